//! Paths in normal form.

use std::hint::black_box;

use outrigger::http::path::{Normal, PathPolicy, normalise};

use crate::{Step, Work};

pub const STEPS: &[Step] = &[
    Step { name: "path: normal, 4 B", prepare: || normal(b"/100") },
    Step {
        name: "path: normal, 64 B",
        prepare: || normal(b"/shop/departments/garden/tools/items/000000000042/reviews/latest/"),
    },
    Step { name: "path: with an escape to decode", prepare: || odd(b"/api/items/%7Euser/42") },
    Step { name: "path: with dot segments", prepare: || odd(b"/api/./items/../things/42") },
];

fn normal(path: &'static [u8]) -> Work {
    assert!(matches!(
        normalise(path, &PathPolicy::default(), &mut Vec::new()),
        Ok(Normal::Same(_))
    ));
    work(path)
}

fn odd(path: &'static [u8]) -> Work {
    assert!(matches!(
        normalise(path, &PathPolicy::default(), &mut Vec::new()),
        Ok(Normal::Written)
    ));
    work(path)
}

fn work(path: &'static [u8]) -> Work {
    let policy = PathPolicy::default();
    let mut out = Vec::with_capacity(1024);
    Box::new(move || _ = black_box(normalise(black_box(path), black_box(&policy), &mut out)))
}

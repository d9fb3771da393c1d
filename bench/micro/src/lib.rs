//! Single steps of a request, each ready to be done again and again: what `benches/instructions.rs`
//! counts and `benches/time.rs` times. Only what the proxy's library shows to everybody is called,
//! with inputs that the optimiser cannot see through.
//!
//! A step that is new gets a module of its own with a constant `STEPS`, and a line in [`steps`].

use std::hint::black_box;

mod agreement;
mod balance;
mod framing;
mod head;
mod mailbox;
mod messages;
mod path;
mod rate;
mod record;
mod request;
mod route;

/// Done so often in one count, so that the average is over different inputs, where a step has some.
/// A multiple of what the steps have of them.
pub const ROUNDS: u32 = 256;

/// Does a step once.
pub type Work = Box<dyn FnMut()>;

/// One step of a request.
pub struct Step {
    /// `part: what`, as the table shows it and the baseline file knows it.
    pub name: &'static str,
    /// Makes its inputs. Not counted.
    pub prepare: fn() -> Work,
}

/// All of them, in the order of the table.
pub fn steps() -> impl Iterator<Item = &'static Step> {
    [
        NOTHING,
        head::STEPS,
        framing::STEPS,
        path::STEPS,
        route::STEPS,
        balance::STEPS,
        rate::STEPS,
        agreement::STEPS,
        request::STEPS,
        record::STEPS,
        mailbox::STEPS,
    ]
    .into_iter()
    .flatten()
}

/// What counting itself costs; `bench/micro/run` subtracts it from the others.
const NOTHING: &[Step] = &[Step { name: "nothing", prepare: || Box::new(|| _ = black_box(0)) }];

/// The step of this name, after it was done once: what is looked up only the first time (what the
/// CPU can do, for instance) is not counted.
///
/// # Panics
/// If there is none.
pub fn prepare(name: &'static str) -> Work {
    let step = steps().find(|step| step.name == name).expect("a step of this name");
    let mut work = (step.prepare)();
    work();
    work
}

/// The names of all steps.
pub fn names() -> Vec<&'static str> {
    steps().map(|step| step.name).collect()
}

/// Does a step [`ROUNDS`] times, and gives it back: its end is not counted.
pub fn repeat(mut work: Work) -> Work {
    for _ in 0..ROUNDS {
        work();
    }
    work
}

/// Takes the inputs in turn, for ever. There must be a power of two of them.
pub(crate) struct Turns<T> {
    items: Vec<T>,
    next: usize,
}

impl<T> Turns<T> {
    pub(crate) fn new(items: impl IntoIterator<Item = T>) -> Turns<T> {
        let items: Vec<T> = items.into_iter().collect();
        assert!(items.len().is_power_of_two() && items.len() <= ROUNDS as usize);
        Turns { items, next: 0 }
    }

    pub(crate) fn next(&mut self) -> &T {
        self.next = (self.next + 1) & (self.items.len() - 1);
        black_box(&self.items[self.next])
    }
}

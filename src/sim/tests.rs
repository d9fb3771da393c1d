//! The simulator on many seeds, and on machines that are broken on purpose.

use super::*;

/// Steps of chaos in each run.
const STEPS: u32 = 250;

#[test]
fn smoke() {
    let settings = Settings { shards: None, steps: STEPS };
    let mut tally = Tally::default();
    for seed in 0..300 {
        match run(seed, settings) {
            Ok(more) => tally.add(&more),
            Err(failure) => panic!("{failure}"),
        }
    }
    println!("{tally:?}");
}

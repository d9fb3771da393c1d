//! Cuts a failing history down: leaves out runs of steps, long ones first, for as long as it still
//! fails in the same way.

use super::{Failure, Fault, Op, Settings, replay};

/// Replays at most; shrinking is a service, not a proof.
const REPLAYS_MAX: u32 = 3_000;

pub(super) fn shrink(seed: u64, settings: Settings, fault: Fault, history: &[Op]) -> Failure {
    let mut best = Failure { seed, fault, history: history.to_vec() };
    let mut replays = 0;
    let mut length = best.history.len().div_ceil(2);
    loop {
        let mut start = 0;
        while start < best.history.len() && replays < REPLAYS_MAX {
            let mut shorter = best.history.clone();
            shorter.drain(start..(start + length).min(shorter.len()));
            replays += 1;
            match replay(seed, settings, &shorter) {
                Err((fault, at)) if same_kind(&fault, &best.fault) => {
                    shorter.truncate(at);
                    best.history = shorter;
                    best.fault = fault;
                }
                _ => start += length,
            }
        }
        if length <= 1 || replays >= REPLAYS_MAX {
            return best;
        }
        length = length.div_ceil(2);
    }
}

fn same_kind(one: &Fault, other: &Fault) -> bool {
    matches!(
        (one, other),
        (Fault::Safety(_), Fault::Safety(_)) | (Fault::Liveness(_), Fault::Liveness(_))
    )
}

//! Cuts a failing history down: leaves out runs of steps, long ones first, for as long as it still
//! fails in the same way.

use super::Fault;

/// Replays at most; shrinking is a service, not a proof.
const REPLAYS_MAX: u32 = 3_000;

/// `replay`: what a history ends with, and after how many steps.
pub(super) fn shrink<Op: Clone, Good>(
    mut fault: Fault,
    history: &[Op],
    replay: impl Fn(&[Op]) -> Result<Good, (Fault, usize)>,
) -> (Fault, Vec<Op>) {
    let mut best = history.to_vec();
    let mut replays = 0;
    let mut length = best.len().div_ceil(2);
    loop {
        let mut start = 0;
        while start < best.len() && replays < REPLAYS_MAX {
            let mut shorter = best.clone();
            shorter.drain(start..(start + length).min(shorter.len()));
            replays += 1;
            match replay(&shorter) {
                Err((other, at)) if same_kind(&other, &fault) => {
                    shorter.truncate(at);
                    best = shorter;
                    fault = other;
                }
                _ => start += length,
            }
        }
        if length <= 1 || replays >= REPLAYS_MAX {
            return (fault, best);
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

//! Which shard serves a newly accepted socket. Under SO_REUSEPORT the kernel does not look at load:
//! a few long-lived connections may all lie on one shard.

/// A shard keeps what it accepts while it has no more than its share and an eighth: a hand-over
/// costs a message and perhaps a wake-up (some 20 µs), which even shares of many connections are
/// not worth.
const SLACK: u32 = 8;

/// Who takes the socket that shard `own` has just accepted; `None`: itself.
///
/// `connections`: open connections of each shard, the new one not included, and those on their way
/// to a shard counted as its own. All of the same age: read them together, at once.
///
/// ```
/// use outrigger::reconcile::handover;
/// assert_eq!(handover(&[0, 0], 0), None);
/// assert_eq!(handover(&[1, 0], 0), Some(1));
/// assert_eq!(handover(&[100, 99], 0), None);
/// ```
pub fn handover(connections: &[u32], own: usize) -> Option<usize> {
    let held = *connections.get(own)?;
    let total: u64 = connections.iter().map(|count| u64::from(*count)).sum();
    let share = (total + 1).div_ceil(connections.len() as u64);
    let kept = share + share / u64::from(SLACK);
    if u64::from(held) < kept {
        return None;
    }
    // The lightest; of several the next one round, so that not all give to the same.
    let count = connections.len();
    let lightest = (1..count).map(|step| (own + step) % count).min_by_key(|at| connections[*at])?;
    (connections[lightest] < held).then_some(lightest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whoever accepts: nobody ends far above its share.
        #[test]
        fn shares_stay_even(shards in 1usize..17, accepts in prop::collection::vec(0usize..17, 1..400)) {
            let mut connections = vec![0u32; shards];
            for accepted in &accepts {
                let own = accepted % shards;
                let taker = handover(&connections, own).unwrap_or(own);
                prop_assert!(taker == own || connections[taker] < connections[own]);
                connections[taker] += 1;
            }
            let share = (accepts.len() as u64).div_ceil(shards as u64);
            let most = u64::from(*connections.iter().max().unwrap());
            prop_assert!(most <= share + share / u64::from(SLACK) , "{connections:?}");
        }
    }
}

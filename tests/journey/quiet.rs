//! Shards in which nothing goes wrong do not wake each other.

use crate::support::{Crowd, OK, Origin, Setup, by_shard};

/// Whatever they have to say while all succeed, they leave in each other's mailboxes.
#[test]
fn shards_do_not_wake_each_other_while_all_succeed() {
    // By default, and with a limit that is not far away.
    for limits in ["", "limits: {max_requests: 64, max_connections: 64}"] {
        for shards in [2, 4, 8] {
            let origin = Origin::answering(OK);
            let mut setup = Setup::new(&origin).shards(&format!("count: {shards}"));
            if !limits.is_empty() {
                setup = setup.cluster(limits);
            }
            let proxy = setup.start();
            let mut crowds = Crowd::on_each_shard(&proxy, 2);
            // The first requests bring credits to where they are needed.
            crowds.iter_mut().for_each(|crowd| crowd.ask().assert_all("200"));
            let waking = by_shard(&proxy, "outrigger_shard_messages_waking_total");
            let all: u64 = by_shard(&proxy, "outrigger_shard_messages_total").iter().sum();
            let served = by_shard(&proxy, "outrigger_requests_total");
            for _ in 0..400 / shards {
                crowds.iter_mut().for_each(|crowd| crowd.ask().assert_all("200"));
            }
            let now = by_shard(&proxy, "outrigger_requests_total");
            assert!(now.iter().zip(&served).all(|(now, before)| now > before), "all took part");
            assert_eq!(by_shard(&proxy, "outrigger_shard_messages_waking_total"), waking);
            let all_now: u64 = by_shard(&proxy, "outrigger_shard_messages_total").iter().sum();
            assert!(all_now > all, "they do tell each other");
        }
    }
}

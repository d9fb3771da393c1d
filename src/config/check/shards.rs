//! Threads: CPUs that exist, sizes that work.

use super::Checker;
use crate::config::machine::Machine;
use crate::config::model::{CpuList, PerCore, ShardCount};
use crate::config::values::Size;

/// Entries of an io_uring submission queue; io_uring_setup(2).
const RING_ENTRIES_MAX: u32 = 32_768;

/// Fewer would be handed to the kernel one by one.
const RING_ENTRIES_MIN: u32 = 32;

/// A page.
const BUFFER_BYTES_MIN: u64 = 4 * 1024;

/// Each busy connection takes one.
const BUFFER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The kernel keeps the backlog in 16 bits in places.
const BACKLOG_MAX: u32 = 65_535;

impl Checker<'_> {
    pub(super) fn shards(&mut self, machine: &Machine) {
        let shards = &self.config.shards;
        let allowed = list(&machine.cpus);
        if let Some(CpuList(cpus)) = &shards.cpus {
            if self.given("shards.count") && shards.count != ShardCount::Auto {
                self.error(
                    "shards.count",
                    "'count' and 'cpus' are both given",
                    "keep one: 'cpus' already says how many",
                );
            }
            if cpus.is_empty() {
                self.error("shards.cpus", "no CPUs, no shards", "name at least one CPU");
            }
            for (index, cpu) in cpus.iter().enumerate() {
                let path = match self.given(&format!("shards.cpus.{index}")) {
                    true => format!("shards.cpus.{index}"),
                    false => "shards.cpus".to_owned(),
                };
                if !machine.cpus.contains(cpu) {
                    self.error(
                        &path,
                        format!("CPU {cpu} is not there, or not allowed to this process"),
                        format!("allowed: {allowed}"),
                    );
                } else if cpus[..index].contains(cpu) {
                    self.error(
                        &path,
                        format!("CPU {cpu} is named twice"),
                        "one shard for each CPU",
                    );
                }
            }
        } else if let ShardCount::Exactly(count) = shards.count
            && count as usize > machine.cpus.len()
        {
            self.warn(
                "shards.count",
                format!("{count} shards share {} CPUs", machine.cpus.len()),
                "a shard of its own for each CPU is faster: 'auto'",
            );
        }
        self.ring("shards", Some(shards.ring_entries), Some(shards.buffer_bytes));
        self.backlog("shards", Some(shards.backlog));
        let mut used = shards.cpus(machine);
        used.sort_unstable();
        used.dedup();
        let lost = ["shards.cpus", "shards.count"].iter().any(|it| self.root.blame(it).pruned);
        for (index, core) in shards.per_core.iter().enumerate() {
            let path = format!("shards.per_core.{index}");
            let PerCore { cpu, ring_entries, buffer_bytes, backlog, .. } = *core;
            if !used.contains(&cpu) && !used.is_empty() && !lost {
                self.error(
                    &format!("{path}.cpu"),
                    format!("no shard runs on CPU {cpu}"),
                    format!("used: {}", list(&used)),
                );
            }
            if shards.per_core[..index].iter().any(|other| other.cpu == cpu) {
                self.error(
                    &format!("{path}.cpu"),
                    format!("CPU {cpu} is overridden twice"),
                    "merge the two",
                );
            }
            self.ring(&path, ring_entries, buffer_bytes);
            self.backlog(&path, backlog);
        }
    }

    fn ring(&mut self, path: &str, ring_entries: Option<u32>, buffer_bytes: Option<Size>) {
        if let Some(entries) = ring_entries
            && !(entries.is_power_of_two()
                && (RING_ENTRIES_MIN..=RING_ENTRIES_MAX).contains(&entries))
        {
            let near = entries.clamp(RING_ENTRIES_MIN, RING_ENTRIES_MAX).next_power_of_two();
            self.error(
                &format!("{path}.ring_entries"),
                format!("a ring has a power of two from {RING_ENTRIES_MIN} to {RING_ENTRIES_MAX} entries"),
                format!("write {near}"),
            );
        }
        if let Some(Size(bytes)) = buffer_bytes
            && !(BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX).contains(&bytes)
        {
            self.error(
                &format!("{path}.buffer_bytes"),
                "a buffer has 4KiB to 16MiB",
                "32KiB is the default",
            );
        }
    }

    fn backlog(&mut self, path: &str, backlog: Option<u32>) {
        if backlog.is_some_and(|backlog| !(1..=BACKLOG_MAX).contains(&backlog)) {
            let path = format!("{path}.backlog");
            self.error(&path, format!("a backlog is 1 to {BACKLOG_MAX}"), "4096 is the default");
        }
    }
}

/// `0, 1, 2` as a person reads it, not endlessly.
fn list(cpus: &[usize]) -> String {
    const SHOWN_MAX: usize = 16;
    let shown: Vec<String> = cpus.iter().take(SHOWN_MAX).map(usize::to_string).collect();
    match cpus.len() > SHOWN_MAX {
        true => format!("{}, ... {}", shown.join(", "), cpus[cpus.len() - 1]),
        false => shown.join(", "),
    }
}

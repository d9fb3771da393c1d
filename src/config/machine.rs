//! Which CPUs this process may use: by its affinity, and by the quota of its cgroups. Read once,
//! before any thread is pinned; the checks and the number of shards depend on it.

use std::fs;
use std::path::{Path, PathBuf};

use super::model::{Config, CpuList, Driver, ShardCount, Shards};

/// What the configuration may ask of this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// CPUs that the affinity allows, ascending. Never empty.
    pub cpus: Vec<usize>,
    /// CPUs' worth of time that the cgroups grant in each period, if they bound it.
    pub quota: Option<f64>,
}

/// One shard, with its overrides applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOptions {
    /// The CPU to pin to.
    pub cpu: usize,
    /// io_uring, epoll, or whichever works.
    pub driver: Driver,
    /// Entries of the submission ring.
    pub ring_entries: u32,
    /// Size of each relay buffer.
    pub buffer_bytes: usize,
    /// For listen(2).
    pub backlog: u32,
}

impl Machine {
    /// The machine that we run on.
    pub fn here() -> Machine {
        let mut cpus: Vec<usize> = core_affinity::get_core_ids()
            .unwrap_or_default()
            .into_iter()
            .map(|core| core.id)
            .collect();
        cpus.sort_unstable();
        if cpus.is_empty() {
            cpus.push(0);
        }
        Machine { cpus, quota: cgroup_quota() }
    }

    /// How many shards `auto` means: the allowed CPUs, or fewer if the quota is smaller.
    pub fn shards(&self) -> usize {
        let quota = self.quota.map_or(usize::MAX, |quota| quota.ceil().max(1.0) as usize);
        self.cpus.len().min(quota).max(1)
    }
}

impl Shards {
    /// The CPU of each shard. More shards than CPUs share them in turn.
    pub fn cpus(&self, machine: &Machine) -> Vec<usize> {
        let count = match (&self.cpus, self.count) {
            (Some(CpuList(cpus)), _) => return cpus.clone(),
            (None, ShardCount::Exactly(count)) => count as usize,
            (None, ShardCount::Auto) => machine.shards(),
        };
        machine.cpus.iter().copied().cycle().take(count).collect()
    }

    /// Every shard's options, in order.
    pub fn options(&self, machine: &Machine) -> Vec<ShardOptions> {
        let options = |cpu| {
            let own = self.per_core.iter().find(|core| core.cpu == cpu);
            ShardOptions {
                cpu,
                driver: own.and_then(|core| core.driver).unwrap_or(self.driver),
                ring_entries: own.and_then(|core| core.ring_entries).unwrap_or(self.ring_entries),
                buffer_bytes: own.and_then(|core| core.buffer_bytes).unwrap_or(self.buffer_bytes).0
                    as usize,
                backlog: own.and_then(|core| core.backlog).unwrap_or(self.backlog),
            }
        };
        self.cpus(machine).into_iter().map(options).collect()
    }
}

impl Config {
    /// Every shard's options on this machine, in order.
    pub fn shard_options(&self, machine: &Machine) -> Vec<ShardOptions> {
        self.shards.options(machine)
    }
}

/// The smallest quota on the way from our cgroup to the root, in CPUs.
fn cgroup_quota() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut quota: Option<f64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, read): (&str, fn(&Path) -> Option<f64>) = match controllers {
            "" => ("/sys/fs/cgroup", quota_v2),
            list if list.split(',').any(|it| it == "cpu") => ("/sys/fs/cgroup/cpu", quota_v1),
            _ => continue,
        };
        // Inside a container the path may be the host's, and only the root is there.
        let root = PathBuf::from(root);
        let own = root.join(path.trim_start_matches('/'));
        for group in own.ancestors().take_while(|group| group.starts_with(&root)) {
            if let Some(found) = read(group) {
                quota = Some(quota.map_or(found, |quota| quota.min(found)));
            }
        }
    }
    quota
}

/// `cpu.max`: quota and period in microseconds, or `max`.
fn quota_v2(group: &Path) -> Option<f64> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota.parse().ok()?, period.parse().ok()?)
}

/// `cpu.cfs_quota_us` and `cpu.cfs_period_us`; -1 is no quota.
fn quota_v1(group: &Path) -> Option<f64> {
    let read = |name: &str| -> Option<f64> {
        fs::read_to_string(group.join(name)).ok()?.trim().parse().ok()
    };
    ratio(read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
}

fn ratio(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::super::model::PerCore;
    use super::super::values::Size;
    use super::*;

    fn machine(quota: Option<f64>) -> Machine {
        Machine { cpus: vec![2, 3, 6], quota }
    }

    #[test]
    fn the_quota_is_rounded_up() {
        for (quota, shards) in
            [(None, 3), (Some(0.5), 1), (Some(1.0), 1), (Some(1.1), 2), (Some(64.0), 3)]
        {
            assert_eq!(machine(quota).shards(), shards, "{quota:?}");
        }
    }

    #[test]
    fn more_shards_than_cpus_share_them() {
        let shards = Shards { count: ShardCount::Exactly(4), ..Shards::default() };
        assert_eq!(shards.cpus(&machine(None)), [2, 3, 6, 2]);
    }

    #[test]
    fn overrides_hold_for_their_cpu_only() {
        let own = PerCore {
            cpu: 6,
            driver: Some(Driver::Epoll),
            ring_entries: None,
            buffer_bytes: Some(Size(4096)),
            backlog: None,
        };
        let cpus = Some(CpuList(vec![2, 6]));
        let shards = Shards { cpus, per_core: vec![own], ..Shards::default() };
        let options = shards.options(&machine(None));
        assert_eq!((options[0].driver, options[0].buffer_bytes), (Driver::Auto, 32_768));
        assert_eq!((options[1].driver, options[1].buffer_bytes), (Driver::Epoll, 4_096));
        assert_eq!(options[1].ring_entries, 1024);
    }

    #[test]
    fn this_machine_has_a_cpu() {
        assert!(Machine::here().shards() >= 1);
    }
}

//! What the kernel says about this process: the `process_*` metrics that every exporter has.
//! Reads `/proc/self`, so the control thread only.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Read in one go; a figure that could not be read is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProcessStats {
    /// User and system time of all threads, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Address space.
    pub virtual_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open descriptors.
    pub fds_open: Option<u64>,
    /// Descriptors that may be open; `None` means no limit.
    pub fds_max: Option<u64>,
    /// When the process began, in seconds since 1970.
    pub start_seconds: Option<f64>,
}

impl ProcessStats {
    /// Asks the kernel. Takes longer the more descriptors are open (they are counted one by one).
    pub fn read() -> ProcessStats {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec as u32);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        ProcessStats {
            cpu_seconds: cpu.as_secs_f64(),
            resident_bytes: status_number(&status, "VmRSS:").map(|kib| kib * 1024),
            virtual_bytes: status_number(&status, "VmSize:").map(|kib| kib * 1024),
            threads: status_number(&status, "Threads:"),
            // One descriptor is the one we count with.
            fds_open: fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as u64 - 1),
            fds_max: getrlimit(Resource::Nofile).current,
            start_seconds: start_seconds(),
        }
    }
}

/// The number on a line of proc_pid_status(5).
fn status_number(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The 22nd field of proc_pid_stat(5), in ticks since boot, on top of the boot time.
fn start_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    let ticks = start_ticks(&stat)? as f64;
    Some(boot + ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// The process's name, the second field, may hold blanks and parentheses; so count from its end.
fn start_ticks(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_found_whole() {
        let status = "VmSize:\t  123 kB\nVmRSS:\t   45 kB\nThreads:\t3\n";
        assert_eq!(status_number(status, "VmRSS:"), Some(45));
        assert_eq!(status_number(status, "Threads:"), Some(3));
        assert_eq!(status_number(status, "VmSwap:"), None);
    }

    #[test]
    fn a_name_with_blanks_and_parentheses_moves_nothing() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 5 0 0 0 1 2 0 0 20 0 1 0 4242 9 9";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks("garbage"), None);
    }

    #[test]
    fn this_process_has_figures() {
        let stats = ProcessStats::read();
        assert!(stats.resident_bytes.unwrap() > 0);
        assert!(stats.fds_open.unwrap() >= 3);
        assert!(stats.threads.unwrap() >= 1);
        assert!(stats.start_seconds.unwrap() > 1.6e9);
    }
}

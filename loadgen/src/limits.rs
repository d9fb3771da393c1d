//! What the kernel lets this process have: descriptors, and ports to connect from.

use std::io;

/// Standard streams, signals, output files and what the runtime of the process keeps open.
const SPARE: u64 = 24;

/// Of each worker: ring or epoll and its waker, the watch, the bell and its duplicate, one alarm for
/// the start. Generous.
const OF_WORKER: u64 = 12;

/// Raises the soft limit of descriptors to the hard one, and returns it; getrlimit(2).
///
/// # Errors
/// When the kernel refuses, which it does not for that.
pub fn raise_descriptors() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

/// How many descriptors a run needs at most.
pub fn descriptors_needed(connections: usize, threads: usize, addresses: usize) -> u64 {
    connections as u64 + threads as u64 * (OF_WORKER + addresses as u64) + SPARE
}

/// How many connections this machine can have to one address, from one address of its own; ip(7).
/// `None` where nobody tells.
pub fn ports() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = text.split_ascii_whitespace().map(str::parse::<u64>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else { return None };
    Some((last + 1).saturating_sub(first))
}

//! Which interface of the kernel a shard waits on: the ladder of rings, and epoll below it.

use std::future::Future;
use std::io;

use super::watch;

/// Which of the runtime's drivers a shard runs on, and with which ring flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `SINGLE_ISSUER | DEFER_TASKRUN | TASKRUN_FLAG`: Linux 6.1.
    RingDeferred,
    /// `COOP_TASKRUN | TASKRUN_FLAG`: Linux 5.19.
    RingCooperative,
    /// A ring without flags.
    RingPlain,
    /// No io_uring: blocked by seccomp or a sysctl, or an old kernel.
    Epoll,
}

impl Driver {
    /// From the cheapest to the one that always works.
    pub const LADDER: [Driver; 4] =
        [Driver::RingDeferred, Driver::RingCooperative, Driver::RingPlain, Driver::Epoll];

    /// `io_uring` or `epoll`.
    pub fn name(self) -> &'static str {
        if self == Driver::Epoll { "epoll" } else { "io_uring" }
    }

    /// The ring's flags, as in io_uring_setup(2).
    pub fn flags(self) -> &'static str {
        match self {
            Driver::RingDeferred => "SINGLE_ISSUER|DEFER_TASKRUN|TASKRUN_FLAG",
            Driver::RingCooperative => "COOP_TASKRUN|TASKRUN_FLAG",
            Driver::RingPlain | Driver::Epoll => "",
        }
    }
}

/// Runs a shard's main task on this thread until it ends; the rungs of `ladder` are tried in order.
/// `begin` gets the rung that was built, inside the runtime.
///
/// # Errors
/// The last rung's error where none could be built.
pub fn run<F: Future<Output = ()>>(
    ladder: &[Driver],
    ring_entries: u32,
    begin: impl FnOnce(Driver) -> F,
) -> io::Result<()> {
    watch::begin()?;
    let mut failure = io::Error::from(io::ErrorKind::Unsupported);
    for &driver in ladder {
        let mut ring = io_uring::IoUring::builder();
        match driver {
            Driver::RingDeferred => {
                ring.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
            }
            Driver::RingCooperative => {
                ring.setup_coop_taskrun().setup_taskrun_flag();
            }
            Driver::RingPlain => {}
            Driver::Epoll => {
                let builder = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new();
                match builder.with_entries(ring_entries).enable_timer().build() {
                    Ok(mut runtime) => {
                        runtime.block_on(watched(driver, begin));
                        return Ok(());
                    }
                    Err(error) => failure = error,
                }
                continue;
            }
        }
        let builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new();
        match builder.uring_builder(ring).with_entries(ring_entries).enable_timer().build() {
            Ok(mut runtime) => {
                runtime.block_on(watched(driver, begin));
                return Ok(());
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The main task, and beside it the one that passes edges on.
async fn watched<F: Future<Output = ()>>(driver: Driver, begin: impl FnOnce(Driver) -> F) {
    monoio::spawn(watch::run());
    begin(driver).await;
}

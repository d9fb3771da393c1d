//! Flags -> options -> a run. Called by `main`; measures nothing itself.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::net::Driver;
use crate::origin::{Options, Origin};

/// Wrong usage, or a target that cannot be reached.
const EXIT_USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(name = "outrigger-loadgen", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the bundled upstream: /b/N, /s/MS/N, /e/CODE, /p/PERCENT/CODE, /stat.
    Origin(OriginArgs),
}

/// `--driver` of both commands.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum DriverName {
    /// io_uring, or epoll where it is blocked.
    Auto,
    /// io_uring or an error.
    IoUring,
    /// epoll.
    Epoll,
}

impl From<DriverName> for Driver {
    fn from(name: DriverName) -> Self {
        match name {
            DriverName::Auto => Self::Auto,
            DriverName::IoUring => Self::IoUring,
            DriverName::Epoll => Self::Epoll,
        }
    }
}

#[derive(Debug, Args)]
struct OriginArgs {
    /// Where to listen; port 0 takes a free one.
    #[arg(short, long, default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Threads [default: one for each CPU, or for each of --cpus].
    #[arg(short, long)]
    threads: Option<usize>,
    /// CPUs to pin the threads to, such as 1 or 0,2-3 [default: the CPUs at hand, in turn].
    #[arg(long, value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// What the threads wait on.
    #[arg(long, value_enum, default_value = "auto")]
    driver: DriverName,
    /// Answer paths that mean nothing with this text instead of a 404.
    #[arg(long, value_name = "TEXT")]
    greeting: Option<String>,
    /// Answer everything but /stat this much later, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay_ms: u64,
    /// Write the address to this file once it listens.
    #[arg(long, value_name = "FILE")]
    address_path: Option<std::path::PathBuf>,
}

/// CPU numbers, in the order given.
#[derive(Debug, Clone)]
struct CpuList(Vec<usize>);

fn cpu_list(text: &str) -> Result<CpuList, String> {
    let bad = || format!("'{text}' is no list of CPUs such as 1 or 0,2-3");
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>(), last.trim().parse::<usize>());
        let (Ok(first), Ok(last)) = (first, last) else { return Err(bad()) };
        if first > last || last >= 4_096 {
            return Err(bad());
        }
        cpus.extend(first..=last);
    }
    let ours = crate::net::cpus();
    match cpus.iter().find(|cpu| !ours.contains(cpu)) {
        Some(cpu) => Err(format!("CPU {cpu} is not there, or not ours; these are: {ours:?}")),
        None => Ok(CpuList(cpus)),
    }
}

/// Runs the command line of the process.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Origin(args) => origin(args),
    }
}

fn origin(args: OriginArgs) -> ExitCode {
    let cpus = args.cpus.map_or_else(crate::net::cpus, |list| list.0);
    let options = Options {
        address: args.listen,
        threads: args.threads.unwrap_or(cpus.len()).max(1),
        cpus,
        driver: args.driver.into(),
        greeting: args.greeting,
        delay: Duration::from_millis(args.delay_ms),
        ..Options::default()
    };
    let threads = options.threads;
    let origin = match Origin::start(options) {
        Ok(origin) => origin,
        Err(error) => {
            eprintln!("outrigger-loadgen: cannot serve on {}: {error}", args.listen);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    println!("origin on http://{} ({} x {})", origin.address(), threads, origin.driver());
    if let Some(path) = args.address_path
        && let Err(error) = std::fs::write(&path, format!("{}\n", origin.address()))
    {
        eprintln!("outrigger-loadgen: cannot write {}: {error}", path.display());
        return ExitCode::from(EXIT_USAGE);
    }
    loop {
        std::thread::park();
    }
}

//! Flags and scenario -> settings -> runs -> reports. Called by `main`; measures nothing itself.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;

use crate::files::{Files, Out};
use crate::limits;
use crate::net::Driver;
use crate::origin::{Fail, Options, Origin};
use crate::plan::{DURATION, Plan, Settings};
use crate::progress::Progress;
use crate::record::Interval;
use crate::report::{self, Report, Second, html, rates, text};
use crate::scenario::{self, Scenario};
use crate::schedule::{Arrivals, Phase};
use crate::target::{self, Expect, HashWanted, Request};
use crate::threshold::Threshold;
use crate::{run, units};

/// A line to standard output. Whoever closed it wants no more, and the exit code still tells.
macro_rules! say {
    ($($line:tt)*) => {
        let _ = writeln!(std::io::stdout(), $($line)*);
    };
}

/// The run is over and its report printed, but a file could not be written.
const EXIT_UNWRITTEN: u8 = 1;

/// Wrong usage, or a target that cannot be reached.
const EXIT_USAGE: u8 = 2;

/// A threshold was not held; as k6.
const EXIT_THRESHOLD: u8 = 99;

/// One run of a search, unless `-d` says.
const TRIAL: Duration = Duration::from_secs(5);

/// After a run of a search: a rate that leaves more behind than this is not held anyway.
const TRIAL_DRAIN: Duration = Duration::from_millis(500);

/// Unless `--timeout` says.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where `--find-max` begins, in requests a second.
const SEARCH_FROM: f64 = 1_000.0;

/// Where `--find-max` stops: the highest rate that holds is known this well.
const SEARCH_PRECISION: f64 = 1.03;

/// Of the requests may fail at a rate that holds, unless a threshold judges failures.
const SEARCH_ERRORS_MAX: f64 = 0.01;

/// No target reaches it; the search ends here at the latest.
const SEARCH_MAX: f64 = 100e6;

const NEITHER: &str = "say how requests are to be sent: -R RATE sends each when it is due, whatever \
the target does, so a stall shows in full; --closed sends each when the one before it was answered, \
so a slow target slows the load down and hides its stalls. When in doubt, take -R";

const EXAMPLES: &str = "Examples:
  outrigger-loadgen -R 10k -c 64 -d 30s http://127.0.0.1:8080/b/100
  outrigger-loadgen -R 2k -d 1m --threshold 'p99<20ms' --threshold 'errors<0.1%' --html run.html URL
  outrigger-loadgen --closed -c 64 -d 10s URL
  outrigger-loadgen --find-max 'p99<5ms' -c 64 URL
  outrigger-loadgen -R 5k 9@http://127.0.0.1:8080/b/100 1@http://127.0.0.1:8080/b/100000
  outrigger-loadgen --scenario mix.toml --json a.json
  outrigger-loadgen report a.json b.json --html compared.html
  outrigger-loadgen origin --listen 127.0.0.1:8081

Exit codes: 0 done; 1 done, but a file could not be written; 2 wrong usage or an unreachable target,
nothing was measured; 99 a threshold was not held.";

#[derive(Debug, Parser)]
#[command(
    name = "outrigger-loadgen",
    version,
    about = "Sends HTTP requests at a rate, and tells how long they took from when they were due",
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the bundled upstream: /b/N, /s/MS/N, /e/CODE, /p/PERCENT/CODE, /stat.
    Origin(OriginArgs),
    /// Compare runs from their JSON files.
    Report(ReportArgs),
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// Where to send: http://HOST[:PORT]/PATH, or several with weights, as in 9@URL 1@URL.
    #[arg(value_name = "URL")]
    urls: Vec<String>,
    /// Requests a second, such as 500 or 10k: an open loop.
    #[arg(short = 'R', long, value_parser = units::rate, conflicts_with_all = ["closed", "steps"])]
    rate: Option<f64>,
    /// Send each request when the one before it was answered: a closed loop.
    #[arg(long, conflicts_with_all = ["steps", "find_max"])]
    closed: bool,
    /// Run once at each of these rates: 1k,2k,4k.
    #[arg(long, value_name = "RATES", value_delimiter = ',', value_parser = units::rate)]
    steps: Vec<f64>,
    /// Search the highest rate that holds this threshold. No more than 1% may fail there, unless
    /// --threshold 'errors<..' says otherwise.
    #[arg(long, value_name = "THRESHOLD", conflicts_with_all = ["steps", "count"])]
    find_max: Option<Threshold>,
    /// Requests, phases and settings from a TOML file; flags go before it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["urls", "rate", "steps", "find_max"])]
    scenario: Option<PathBuf>,

    /// Connections, over all threads [default: 64].
    #[arg(short, long, value_parser = units::count)]
    connections: Option<u64>,
    /// Threads, each on its own CPU [default: one for each CPU].
    #[arg(short, long, value_parser = units::count)]
    threads: Option<u64>,
    /// How long, such as 30s or 1m30s, after the warm-up [default: 10s, or until -n].
    #[arg(short, long, value_parser = units::positive_duration)]
    duration: Option<Duration>,
    /// Stop after so many requests; those of the warm-up come on top.
    #[arg(short = 'n', long = "count", value_parser = units::count)]
    count: Option<u64>,
    /// Do not record at first, for so long.
    #[arg(long, value_parser = units::duration)]
    warmup: Option<Duration>,
    /// For connecting, and from sending a request to the last byte of its answer [default: 10s].
    #[arg(long, value_parser = units::positive_duration)]
    timeout: Option<Duration>,
    /// How requests are spread: evenly, or as many independent users would send them.
    #[arg(long, value_enum)]
    arrivals: Option<ArrivalsName>,
    /// Makes Poisson arrivals and the choice of URLs repeatable.
    #[arg(long)]
    seed: Option<u64>,
    /// Requests on one connection at once.
    #[arg(long, value_parser = units::count)]
    pipeline: Option<u64>,
    /// A new connection for each request.
    #[arg(long)]
    no_keepalive: bool,

    /// A header field, 'Name: value'; may be given again.
    #[arg(short = 'H', long = "header", value_parser = target::header)]
    headers: Vec<(String, String)>,
    /// The method [default: GET, or POST with a body].
    #[arg(short = 'X', long)]
    method: Option<String>,
    /// The body: TEXT, or @FILE for a file's contents.
    #[arg(short = 'b', long, value_name = "TEXT|@FILE")]
    body: Option<String>,
    /// Send the body in chunks instead of with a length.
    #[arg(long)]
    chunked: bool,
    /// The only right status [default: any below 400].
    #[arg(long, value_name = "STATUS")]
    expect_status: Option<u16>,
    /// The right length of an answer's body, in bytes.
    #[arg(long, value_name = "BYTES")]
    expect_length: Option<u64>,
    /// The right hash of an answer's body: its xxh64, or 'first' for that of the first answer.
    #[arg(long, value_name = "HASH", value_parser = scenario::hash)]
    expect_hash: Option<HashWanted>,

    /// Exit 99 unless this holds, such as 'p99<20ms', 'errors<0.1%', 'rate>9.9k'; may be given
    /// again. Latencies count from the due time; service.p99 and so on from the sending. A request
    /// that broke off (no connection, a reset) counts as slower than all others.
    #[arg(long = "threshold", value_name = "THRESHOLD")]
    thresholds: Vec<Threshold>,
    /// Write everything as JSON, for `report` and for scripts.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the latency distribution as HdrHistogram's percentile text, in milliseconds.
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write each second's histogram as an HdrHistogram interval log, in nanoseconds.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["steps", "find_max"])]
    hlog: Option<PathBuf>,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// What to call this run in tables and plots [default: its URLs].
    #[arg(long)]
    label: Option<String>,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,

    /// CPUs to pin the threads to, such as 1 or 0,2-3 [default: the CPUs at hand, in turn].
    #[arg(long, value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// Spin for so long before each due time instead of sleeping: more exact, and a CPU's worth.
    #[arg(long, value_parser = units::duration)]
    spin: Option<Duration>,
    /// What the threads wait on.
    #[arg(long, value_enum, default_value = "auto")]
    driver: DriverName,
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// JSON files of runs.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// On the page, show by rate what the other runs add to those of this label.
    #[arg(long, value_name = "LABEL", requires = "html")]
    added_to: Option<String>,
}

#[derive(Debug, Args)]
struct OriginArgs {
    /// Where to listen; port 0 takes a free one.
    #[arg(short, long, default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Threads [default: one for each CPU, or for each of --cpus].
    #[arg(short, long, value_parser = units::count)]
    threads: Option<u64>,
    /// CPUs to pin the threads to, such as 1 or 0,2-3 [default: the CPUs at hand, in turn].
    #[arg(long, value_parser = cpu_list)]
    cpus: Option<CpuList>,
    /// What the threads wait on.
    #[arg(long, value_enum, default_value = "auto")]
    driver: DriverName,
    /// Answer paths that mean nothing with this text instead of a 404.
    #[arg(long, value_name = "TEXT")]
    greeting: Option<String>,
    /// Answer everything but /stat this much later, in whole milliseconds.
    #[arg(long, value_name = "DURATION", value_parser = units::duration, default_value = "0s")]
    delay: Duration,
    /// Fail this share of everything but /stat, as in 5/503.
    #[arg(long, value_name = "PERCENT/CODE", value_parser = fail)]
    fail: Option<Fail>,
    /// Write the address to this file once it listens.
    #[arg(long, value_name = "FILE")]
    address_path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DriverName {
    /// io_uring, or epoll where it is blocked.
    Auto,
    /// io_uring or an error.
    #[value(name = "io_uring")]
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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArrivalsName {
    /// Evenly.
    Constant,
    /// With exponential gaps.
    Poisson,
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
    let ours = crate::cpu::ours();
    match cpus.iter().find(|cpu| !ours.contains(cpu)) {
        Some(cpu) => Err(format!("CPU {cpu} is not there, or not ours; these are: {ours:?}")),
        None => Ok(CpuList(cpus)),
    }
}

fn fail(text: &str) -> Result<Fail, String> {
    let bad = || format!("'{text}' is no share and status such as 5/503");
    let (percent, status) = text.split_once('/').ok_or_else(bad)?;
    let percent: f64 = percent.parse().map_err(|_| bad())?;
    let status: u16 = status.parse().map_err(|_| bad())?;
    match (0.0..=100.0).contains(&percent) && (200..600).contains(&status) {
        true => Ok(Fail { percent, status }),
        false => Err(bad()),
    }
}

/// Runs the command line of the process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let done = match cli.command {
        None => load(&cli.load),
        Some(Command::Origin(args)) => origin(args),
        Some(Command::Report(args)) => compare(&args),
    };
    match done {
        Ok(code) => code,
        Err(why) => {
            eprintln!("outrigger-loadgen: {why}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Help goes out whole; a mistake in one line.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody to tell if standard output is closed.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            let text = error.to_string();
            let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
            let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("For more"));
            let line = lines.collect::<Vec<_>>().join(" ");
            eprintln!("outrigger-loadgen: {}", line.trim_start_matches("error: "));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn load(args: &LoadArgs) -> Result<ExitCode, String> {
    let scenario = match &args.scenario {
        Some(path) => Scenario::read(path)?,
        None => Scenario::default(),
    };
    let mut thresholds = args.thresholds.clone();
    for text in &scenario.thresholds {
        thresholds.push(text.parse()?);
    }
    thresholds.extend(args.find_max.clone());
    let settings = settings(args, &scenario)?;
    let descriptors =
        limits::raise_descriptors().map_err(|error| format!("cannot read limits: {error}"))?;
    check_room(&settings.plan()?, descriptors, limits::ports())?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first asks for the report so far; a second one kills as ever.
        signal_hook::flag::register_conditional_default(signal, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|error| format!("cannot listen for signals: {error}"))?;
    }
    let files = Files {
        json: args.json.as_deref().map(Out::open).transpose()?,
        hgrm: args.hgrm.as_deref().map(Out::open).transpose()?,
        html: args.html.as_deref().map(Out::open).transpose()?,
        hlog: args.hlog.as_deref().map(Out::open).transpose()?,
    };
    let runs = Runs { args, settings, thresholds, stop };
    let ran = if args.find_max.is_some() {
        runs.find_max().map(|(reports, best)| (reports, best, None))
    } else if !args.steps.is_empty() {
        runs.steps().map(|(reports, best)| (reports, best, None))
    } else {
        let ran = runs.once(runs.settings.clone(), files.hlog.as_ref());
        ran.map(|(report, failed)| (vec![report], Some(0), failed))
    };
    let (reports, best, hlog_failed) = ran?;
    let held = runs.verdict(&reports, best);
    // After the report: an hour's figures must not go with a disk that is full.
    let failed = files.write(&reports, best, runs.searches());
    let failed: Vec<_> = hlog_failed.into_iter().chain(failed).collect();
    for why in &failed {
        eprintln!("outrigger-loadgen: {why}");
    }
    Ok(match (held, failed.is_empty()) {
        (false, _) => ExitCode::from(EXIT_THRESHOLD),
        (true, false) => ExitCode::from(EXIT_UNWRITTEN),
        (true, true) => ExitCode::SUCCESS,
    })
}

/// Flags before the scenario, the scenario before defaults.
fn settings(args: &LoadArgs, scenario: &Scenario) -> Result<Settings, String> {
    let here = Path::new("");
    let requests = match &args.scenario {
        Some(path) => scenario.requests(path.parent().unwrap_or(here))?,
        None => args.requests(here)?,
    };
    if requests.is_empty() {
        return Err("name a URL to send to, or a scenario that does".to_owned());
    }
    let closed = args.closed || scenario.closed == Some(true);
    let phases = scenario.phases()?;
    refuse_unused(args, scenario, closed)?;
    let searching = args.find_max.is_some() || !args.steps.is_empty();
    let duration = args.duration.or(scenario.duration);
    let duration = match (duration, args.count) {
        (None, None) => Some(if searching { TRIAL } else { DURATION }),
        (duration, _) => duration,
    };
    let phases = match (closed, args.rate, phases.is_empty()) {
        (true, _, false) => return Err("a closed loop has no phases: nothing is due".to_owned()),
        (true, _, true) => Vec::new(),
        (false, _, false) => phases,
        (false, Some(rate), true) => vec![Phase::hold(rate, duration)],
        (false, None, true) if searching => vec![Phase::hold(SEARCH_FROM, duration)],
        (false, None, true) => return Err(NEITHER.to_owned()),
    };
    let arrivals = match args.arrivals {
        Some(ArrivalsName::Constant) => Arrivals::Constant,
        Some(ArrivalsName::Poisson) => Arrivals::Poisson,
        None => scenario.arrivals.unwrap_or_default(),
    };
    let cpus = args.cpus.clone().map_or_else(crate::cpu::ours, |list| list.0);
    let number = |flag: Option<u64>, file: Option<usize>, default: usize| {
        flag.map_or(file.unwrap_or(default), |n| n as usize).max(1)
    };
    let timeout = args.timeout.or(scenario.timeout).unwrap_or(TIMEOUT);
    let keep_alive = !args.no_keepalive && scenario.keep_alive.unwrap_or(true);
    let pipeline = number(args.pipeline, scenario.pipeline, 1);
    if pipeline > 1 && !keep_alive {
        return Err("a connection for each request leaves nothing to pipeline".to_owned());
    }
    Ok(Settings {
        requests,
        phases,
        arrivals,
        connections: number(args.connections, scenario.connections, 64),
        threads: number(args.threads, scenario.threads, cpus.len()),
        duration,
        count: args.count,
        warmup: args.warmup.or(scenario.warmup).unwrap_or_default(),
        timeout,
        drain: if searching { timeout.min(TRIAL_DRAIN) } else { timeout },
        pipeline,
        keep_alive,
        seed: args.seed.or(scenario.seed).unwrap_or(1),
        spin: args.spin.unwrap_or_default(),
        driver: args.driver.into(),
        cpus,
    })
}

/// Whether all connections can be had.
fn check_room(plan: &Plan, descriptors: u64, ports: Option<u64>) -> Result<(), String> {
    let connections = plan.lanes.iter().map(|lane| lane.connections).sum();
    let needed = limits::descriptors_needed(connections, plan.threads, plan.lanes.len());
    if needed > descriptors {
        return Err(format!(
            "-c {connections} needs about {needed} descriptors, and this process may have \
             {descriptors}: raise the hard limit (ulimit -Hn), or take fewer connections"
        ));
    }
    for lane in &plan.lanes {
        if let Some(ports) = ports.filter(|ports| lane.connections as u64 > *ports) {
            return Err(format!(
                "{} connections to {} do not fit: there are {ports} ports to connect from \
                 (net.ipv4.ip_local_port_range)",
                lane.connections, lane.address
            ));
        }
    }
    Ok(())
}

/// What would be ignored is refused: whoever gave it believes that it was used.
fn refuse_unused(args: &LoadArgs, scenario: &Scenario, closed: bool) -> Result<(), String> {
    let named = |flags: &[(&'static str, bool)]| {
        let given = flags.iter().filter(|(_, given)| *given).map(|(name, _)| *name);
        let given = given.collect::<Vec<_>>().join(", ");
        (!given.is_empty()).then_some(given)
    };
    let of_requests = named(&[
        ("-H", !args.headers.is_empty()),
        ("-X", args.method.is_some()),
        ("--body", args.body.is_some()),
        ("--chunked", args.chunked),
        ("--expect-status", args.expect_status.is_some()),
        ("--expect-length", args.expect_length.is_some()),
        ("--expect-hash", args.expect_hash.is_some()),
    ]);
    if let (Some(_), Some(flags)) = (&args.scenario, of_requests) {
        return Err(format!("with --scenario the file describes the requests; not used: {flags}"));
    }
    let of_time = named(&[
        ("-d", args.duration.is_some()),
        ("the file's duration", scenario.duration.is_some()),
    ]);
    if let (true, Some(flags)) = (scenario.has_phases(), of_time) {
        return Err(format!("each phase of a scenario has its duration; not used: {flags}"));
    }
    let of_open = named(&[
        ("--arrivals", args.arrivals.is_some()),
        ("the file's arrivals", scenario.arrivals.is_some()),
        ("--spin", args.spin.is_some()),
    ]);
    match (closed, of_open) {
        (true, Some(flags)) => {
            Err(format!("in a closed loop nothing is due at a time; not used: {flags}"))
        }
        _ => Ok(()),
    }
}

impl LoadArgs {
    fn requests(&self, beside: &Path) -> Result<Vec<Request>, String> {
        let body = match &self.body {
            Some(text) => scenario::body(text, beside)?,
            None => Vec::new(),
        };
        let request = |text: &String| {
            let (weight, url) = target::weighted(text)?;
            Ok(Request {
                url: url.to_owned(),
                weight,
                method: self.method.clone(),
                headers: self.headers.clone(),
                body: body.clone(),
                chunked: self.chunked,
                expect: Expect {
                    status: self.expect_status,
                    length: self.expect_length,
                    hash: self.expect_hash,
                },
            })
        };
        self.urls.iter().map(request).collect()
    }
}

/// What all runs of one command share.
struct Runs<'a> {
    args: &'a LoadArgs,
    settings: Settings,
    thresholds: Vec<Threshold>,
    stop: Arc<AtomicBool>,
}

impl Runs<'_> {
    /// Runs once, and writes the hlog file as it goes. Returns also why that was not possible.
    fn once(
        &self,
        settings: Settings,
        hlog_file: Option<&Out>,
    ) -> Result<(Report, Option<String>), String> {
        let plan = Arc::new(settings.plan()?);
        let recorded = plan.length.map(|length| length.saturating_sub(plan.warmup));
        let recorded_seconds = recorded.map_or(u64::MAX, |recorded| recorded.as_secs());
        let mut progress = Progress::new(recorded, self.args.quiet);
        let mut seconds = Vec::new();
        let mut to = hlog_file.map(Out::buffered);
        let mut serializer = V2DeflateSerializer::new();
        let (mut hlog, mut hlog_failed) = (None, None);
        if let (Some(out), Some(to)) = (hlog_file, &mut to) {
            let start = SystemTime::now() + plan.warmup;
            out.empty().map_err(|error| out.failed(&error))?;
            let log = IntervalLogWriterBuilder::new()
                .add_comment("[Logged with outrigger-loadgen; nanoseconds from the due time]")
                .with_start_time(start)
                .with_base_time(start)
                .with_max_value_divisor(1e6)
                .begin_log_with(to, &mut serializer);
            hlog = Some(log.map_err(|error| out.failed(&error))?);
        }
        let mut watch = |interval: &Interval| {
            let second = Second::of(interval);
            if second.requests + second.failed == 0 && recorded_seconds <= second.second {
                return; // The end came before anything else did.
            }
            progress.pass(&second);
            seconds.push(second);
            if let Some(log) = &mut hlog {
                let (start, length) = (Duration::from_secs(interval.index), Duration::from_secs(1));
                let wrote = log.write_histogram(&interval.corrected, start, length, None);
                hlog_failed = hlog_failed.take().or(wrote.err().map(|error| format!("{error:?}")));
            }
        };
        let outcome = run::run(&plan, &self.stop, &mut watch)?;
        progress.finish();
        drop(hlog);
        hlog_file.inspect(|out| out.keep());
        if let Some(error) = to.and_then(|mut to| to.flush().err()) {
            hlog_failed = hlog_failed.or(Some(error.to_string()));
        }
        let failed = hlog_file.zip(hlog_failed).map(|(out, why)| out.failed(&why));
        Ok((Report::new(&plan, &outcome, seconds, self.args.label.as_deref()), failed))
    }

    fn at_rate(&self, rate: f64) -> Result<Report, String> {
        let mut settings = self.settings.clone();
        settings.phases = vec![Phase::hold(rate, settings.duration)];
        let (mut report, _) = self.once(settings, None)?;
        report.label = format!("{} at {}", report.label, units::show_rate(rate));
        report.held = Some(self.holds(&report));
        say!("{}", text::table_row(&report, text::held(&report)));
        Ok(report)
    }

    /// All thresholds, and the rate itself: a rate that is not reached is not held, nor is one that
    /// the target answers by refusing, unless a threshold says how much of that is right.
    fn holds(&self, report: &Report) -> bool {
        let errors_judged = self.thresholds.iter().any(Threshold::judges_errors);
        report.reached_rate()
            && (errors_judged || report.error_share() <= SEARCH_ERRORS_MAX)
            && self.thresholds.iter().all(|threshold| threshold.holds(report))
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Every rate; the best is the highest that holds.
    fn steps(&self) -> Result<(Vec<Report>, Option<usize>), String> {
        say!("{}", text::table_head());
        let (mut reports, mut best) = (Vec::<Report>::new(), None);
        for &rate in &self.args.steps {
            let report = self.at_rate(rate)?;
            let better = |best: usize| reports[best].asked.rate < report.asked.rate;
            if report.held == Some(true) && best.is_none_or(better) {
                best = Some(reports.len());
            }
            reports.push(report);
            if self.stopped() {
                break;
            }
        }
        Ok((reports, best))
    }

    /// Doubles while it holds (halves while it does not), then halves the gap.
    fn find_max(&self) -> Result<(Vec<Report>, Option<usize>), String> {
        say!("{}", text::table_head());
        let mut reports = Vec::new();
        let (mut holds, mut fails): (Option<(f64, usize)>, Option<f64>) = (None, None);
        let mut rate = self.args.rate.unwrap_or(SEARCH_FROM);
        while (1.0..=SEARCH_MAX).contains(&rate) && !self.stopped() {
            let report = self.at_rate(rate)?;
            if report.held == Some(true) {
                holds = Some((rate, reports.len()));
            } else {
                fails = Some(rate);
            }
            reports.push(report);
            rate = match (holds, fails) {
                (Some((low, _)), Some(high)) if high / low <= SEARCH_PRECISION => break,
                (Some((low, _)), Some(high)) => (low * high).sqrt().round(),
                (Some((low, _)), None) => low * 2.0,
                (None, Some(high)) => high / 2.0,
                (None, None) => break,
            };
        }
        Ok((reports, holds.map(|(_, index)| index)))
    }

    fn searches(&self) -> bool {
        self.args.find_max.is_some() || !self.args.steps.is_empty()
    }

    /// Prints the report. Whether all thresholds were held.
    fn verdict(&self, reports: &[Report], best: Option<usize>) -> bool {
        if self.searches() {
            say!("\n{}", text::conclusion(reports, best));
        }
        let Some(report) = best.and_then(|best| reports.get(best)) else {
            return false;
        };
        if self.searches() {
            say!("");
        }
        say!("{}", text::full(report).trim_end());
        let mut all = true;
        for threshold in &self.thresholds {
            let held = threshold.holds(report);
            let verdict = if held { "held" } else { "FAILED" };
            say!("Threshold    {}: {verdict} ({})", threshold.text, threshold.shown(report));
            all &= held;
        }
        all
    }
}

fn write_page(path: &Path, page: &str) -> Result<(), String> {
    std::fs::write(path, page).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn compare(args: &ReportArgs) -> Result<ExitCode, String> {
    let mut reports = Vec::new();
    for path in &args.files {
        reports.extend(report::read(path)?);
    }
    say!("{}", text::table_head().replace("holds", "run"));
    for report in &reports {
        let ours =
            if report.generator.bottleneck { " (the generator was the bottleneck)" } else { "" };
        say!("{}", text::table_row(report, &format!("{}{ours}", report.label)));
    }
    if let Some(path) = &args.html {
        let page = match &args.added_to {
            Some(baseline) => rates::page(&reports, baseline)?,
            None => html::page(&reports)?,
        };
        write_page(path, &page)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn origin(args: OriginArgs) -> Result<ExitCode, String> {
    // Whoever tests with many connections finds them refused here otherwise.
    limits::raise_descriptors().map_err(|error| format!("cannot read limits: {error}"))?;
    let cpus = args.cpus.map_or_else(crate::cpu::ours, |list| list.0);
    let threads = args.threads.map_or(cpus.len(), |threads| threads as usize).max(1);
    let options = Options {
        address: args.listen,
        threads,
        cpus,
        driver: args.driver.into(),
        greeting: args.greeting,
        delay: args.delay,
        fail: args.fail,
        ..Options::default()
    };
    let origin = Origin::start(options)
        .map_err(|error| format!("cannot serve on {}: {error}", args.listen))?;
    say!("origin on http://{} ({threads} x {})", origin.address(), origin.driver());
    if let Some(path) = args.address_path {
        std::fs::write(&path, format!("{}\n", origin.address()))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_do_not_clash() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}

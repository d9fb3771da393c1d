//! The real binary: started on ports that the kernel chooses, asked through its listeners and its
//! admin pages, and killed at the end.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use super::{Client, Message, Origin, PATIENCE, eventually};

/// The binary.
pub const OUTRIGGER: &str = env!("CARGO_BIN_EXE_outrigger");

/// The driver that this run of the tests is about.
pub fn driver() -> String {
    std::env::var("OUTRIGGER_TEST_DRIVER").unwrap_or_else(|_| "io_uring".into())
}

/// A configuration in the making: one listener `main`, one route, one cluster `app`, unless more is
/// said. What is said is YAML in flow style. Nothing is sent twice, unless the test is about that:
/// [`Setup::retries`].
#[derive(Clone, Default)]
pub struct Setup {
    endpoints: Vec<SocketAddr>,
    /// What more is said of each.
    seats: Vec<String>,
    listener: String,
    cluster: String,
    route: String,
    retries: Option<String>,
    routes: Vec<String>,
    clusters: Vec<String>,
    listeners: Vec<String>,
    sections: Vec<String>,
    shards: String,
    files_max: Option<u32>,
}

impl Setup {
    pub fn new(origin: &Origin) -> Setup {
        Setup::to(&[origin])
    }

    /// Several endpoints of one cluster.
    pub fn to(origins: &[&Origin]) -> Setup {
        Setup::at(&origins.iter().map(|origin| origin.address()).collect::<Vec<_>>())
    }

    pub fn at(endpoints: &[SocketAddr]) -> Setup {
        Setup { endpoints: endpoints.to_vec(), shards: "count: 2".into(), ..Setup::default() }
    }

    /// Says more about each endpoint, as far as there are words.
    pub fn seats(mut self, texts: &[&str]) -> Setup {
        self.seats = texts.iter().map(|text| text.to_string()).collect();
        self
    }

    /// Says more about the listener.
    pub fn listener(mut self, text: &str) -> Setup {
        self.listener = format!("{}, {text}", self.listener);
        self
    }

    /// Says more about the cluster.
    pub fn cluster(mut self, text: &str) -> Setup {
        self.cluster = format!("{}, {text}", self.cluster);
        self
    }

    /// Says more about the route.
    pub fn route(mut self, text: &str) -> Setup {
        self.route = format!("{}, {text}", self.route);
        self
    }

    /// Retries of the route, in place of none.
    pub fn retries(mut self, text: &str) -> Setup {
        self.retries = Some(text.into());
        self
    }

    /// A route before the usual one.
    pub fn and_route(mut self, text: impl Into<String>) -> Setup {
        self.routes.push(text.into());
        self
    }

    /// One more cluster.
    pub fn and_cluster(mut self, name: &str, origin: &Origin) -> Setup {
        self.clusters.push(format!("name: {name}, endpoints: ['{}']", origin.address()));
        self
    }

    /// The same, in its own words.
    pub fn and_cluster_text(mut self, text: &str) -> Setup {
        self.clusters.push(text.into());
        self
    }

    /// One more listener.
    pub fn and_listener(mut self, text: &str) -> Setup {
        self.listeners.push(text.into());
        self
    }

    /// A section of its own, `shutdown: {...}` for instance.
    pub fn section(mut self, text: &str) -> Setup {
        self.sections.push(text.into());
        self
    }

    /// Where things have to happen on the same shard.
    pub fn one_shard(mut self) -> Setup {
        self.shards = "count: 1".into();
        self
    }

    /// In place of the number of shards.
    pub fn shards(mut self, text: &str) -> Setup {
        self.shards = text.into();
        self
    }

    /// The hard limit of descriptors.
    pub fn files_max(mut self, files: u32) -> Setup {
        self.files_max = Some(files);
        self
    }

    /// As the file says it. `{dir}` stands for the test's directory.
    pub fn yaml(&self) -> String {
        let mut lines = vec![
            "log: {level: debug}".to_owned(),
            "admin: {address: '127.0.0.1:0'}".to_owned(),
            format!("shards: {{{}, driver: {}}}", self.shards, driver()),
        ];
        lines.extend(self.sections.iter().cloned());
        lines.push("listeners:".into());
        lines.push(format!("  - {{name: main, address: '127.0.0.1:0'{}}}", self.listener));
        for text in &self.listeners {
            lines.push(format!("  - {{address: '127.0.0.1:0', {text}}}"));
        }
        let more = self.seats.iter().map(String::as_str).chain(std::iter::repeat(""));
        let endpoints: Vec<_> = self
            .endpoints
            .iter()
            .zip(more)
            .map(|(it, more)| match more {
                "" => format!("'{it}'"),
                more => format!("{{address: '{it}', {more}}}"),
            })
            .collect();
        // In turn, unless the test says otherwise: so each endpoint is known to be asked.
        let balance = if self.cluster.contains("balance:") { "" } else { ", balance: round_robin" };
        lines.push("clusters:".into());
        lines.push(format!(
            "  - {{name: app, endpoints: [{}]{balance}{}}}",
            endpoints.join(", "),
            self.cluster
        ));
        lines.extend(self.clusters.iter().map(|text| format!("  - {{{text}}}")));
        lines.push("routes:".into());
        lines.extend(self.routes.iter().map(|text| format!("  - {{{text}}}")));
        let retries = self.retries.as_deref().unwrap_or("attempts: 0");
        lines.push(format!(
            "  - {{name: usual, cluster: app, retries: {{{retries}}}{}}}",
            self.route
        ));
        lines.join("\n") + "\n"
    }

    #[track_caller]
    pub fn start(self) -> Proxy {
        Proxy::run(&self.yaml(), self.files_max)
    }
}

/// A running proxy.
pub struct Proxy {
    child: Child,
    directory: TempDir,
    listeners: HashMap<String, SocketAddr>,
    admin: SocketAddr,
    /// The test expects it to end.
    may_end: bool,
}

impl Proxy {
    /// With the defaults, in front of one origin.
    #[track_caller]
    pub fn before(origin: &Origin) -> Proxy {
        Setup::new(origin).start()
    }

    #[track_caller]
    fn run(yaml: &str, files_max: Option<u32>) -> Proxy {
        let directory = TempDir::new().expect("a directory");
        write_config(directory.path(), yaml);
        let mut command = match files_max {
            None => Command::new(OUTRIGGER),
            Some(files) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]);
                shell.arg(OUTRIGGER);
                shell
            }
        };
        command.arg("run").arg("-c").arg(directory.path().join("config.yaml"));
        Proxy::spawn(command, directory)
    }

    /// With a file as it is, and these environment variables.
    #[track_caller]
    pub fn from_file(file: &Path, variables: &[(&str, &str)]) -> Proxy {
        let mut command = Command::new(OUTRIGGER);
        command.arg("run").arg("-c").arg(file).envs(variables.iter().copied());
        Proxy::spawn(command, TempDir::new().expect("a directory"))
    }

    #[track_caller]
    fn spawn(mut command: Command, directory: TempDir) -> Proxy {
        let path = |name: &str| directory.path().join(name);
        command.arg("--listen-address-path").arg(path("listen"));
        command.arg("--admin-address-path").arg(path("admin"));
        command.stdin(Stdio::null());
        command.stdout(File::create(path("stdout")).expect("a file"));
        command.stderr(File::create(path("stderr")).expect("a file"));
        let child = command.spawn().expect("the binary starts");
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let listeners = HashMap::new();
        let mut proxy = Proxy { child, directory, listeners, admin: nowhere, may_end: false };
        let listen = proxy.await_file("listen");
        for line in listen.lines() {
            let (name, address) = line.rsplit_once(' ').expect("a name and an address");
            proxy.listeners.insert(name.into(), address.parse().expect("an address"));
        }
        proxy.admin = proxy.await_file("admin").trim().parse().expect("an address");
        eventually("the proxy is ready", || proxy.admin("/ready").status() == 200);
        proxy
    }

    #[track_caller]
    fn await_file(&mut self, name: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(self.path(name)) {
                assert!(text.ends_with('\n'), "{name} is written whole");
                return text;
            }
            if let Some(status) = self.child.try_wait().expect("a child") {
                self.may_end = true;
                panic!("it ended at once: {status}\n{}", self.log());
            }
            assert!(begun.elapsed() < PATIENCE, "no file {name}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address_of("main")
    }

    #[track_caller]
    pub fn address_of(&self, listener: &str) -> SocketAddr {
        *self.listeners.get(listener).expect("a listener of this name")
    }

    /// A new connection.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Message {
        self.client().ask(request)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Message {
        self.client().get(path)
    }

    /// A page of the admin's.
    #[track_caller]
    pub fn admin(&self, path: &str) -> Message {
        let mut client = Client::connect(self.admin);
        client.ask(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// A metric, summed over the series that have all these labels.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.admin("/metrics");
        let mut found = false;
        let mut sum = 0.0;
        for line in page.text().lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let named = series.split('{').next() == Some(name);
            if named && labels.iter().all(|label| series.contains(label)) {
                found = true;
                sum += value.parse::<f64>().expect("a number");
            }
        }
        assert!(found, "no metric {name} {labels:?}");
        sum
    }

    /// How often this reason was met.
    #[track_caller]
    pub fn refusals(&self, reason: &str) -> f64 {
        self.metric("outrigger_refusals_total", &[&format!("reason=\"{reason}\"")])
    }

    /// Waits until every shard serves by this plan.
    #[track_caller]
    pub fn await_generation(&self, generation: u64) {
        eventually("the plan is applied", || {
            let page = self.admin("/metrics");
            let mut series =
                page.text().lines().filter(|it| it.starts_with("outrigger_plan_generation{"));
            series.all(|line| line.ends_with(&format!(" {generation}")))
        });
    }

    /// Replaces the configuration file.
    pub fn rewrite(&self, yaml: &str) {
        write_config(self.directory.path(), yaml);
    }

    /// Replaces the configuration by what the same setup says now, and waits until it holds.
    #[track_caller]
    pub fn reload(&self, setup: &Setup) {
        let generation = self.metric("outrigger_plan_generation_newest", &[]) as u64 + 1;
        self.rewrite(&setup.yaml());
        self.signal(Signal::HUP);
        self.await_generation(generation);
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid()).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("a running process");
        // The signal is only sent: on another CPU, threads go on for a moment.
        if signal == Signal::STOP {
            eventually("a stopped process", || self.is_stopped());
        }
    }

    /// Whether each of its threads stands still.
    fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("threads");
        threads.flatten().all(|thread| {
            let status = fs::read_to_string(thread.path().join("status"));
            status.is_ok_and(|status| status.contains("State:\tT"))
        })
    }

    /// Waits for its end.
    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        self.may_end = true;
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// A file in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// What it has printed: access logs that go to `-`.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.path("stdout")).unwrap_or_default()
    }

    /// Resident memory now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most that it ever was.
    pub fn resident_bytes_peak(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a status");
        let line = status.lines().find(|line| line.starts_with(key)).expect("a line");
        let kilobytes = line.split_whitespace().nth(1).expect("a figure");
        kilobytes.parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let ended = self.child.try_wait().ok().flatten();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let begin = log.len().saturating_sub(4000);
            eprintln!("--- the proxy's log:\n{}", log.get(begin..).unwrap_or(&log));
        } else if let Some(status) = ended
            && !self.may_end
        {
            panic!("the proxy ended by itself: {status}\n{}", self.log());
        }
    }
}

/// `{dir}` becomes the directory.
fn write_config(directory: &Path, yaml: &str) {
    let text = yaml.replace("{dir}", directory.to_str().expect("a readable path"));
    fs::write(directory.join("config.yaml"), text).expect("a file");
}

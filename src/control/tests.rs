//! The whole loop against shards that only answer messages, and a name server of ten lines.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;
use crate::access_log::{Format, ShardLog, line_record};
use crate::breaker::{Epoch, Override, Phase};
use crate::shard::message::Drain;

/// After which something that must happen has not. Nothing that works comes near it.
const NEVER: Duration = Duration::from_secs(20);

/// What the shards were told, in order, each with the shard's number.
type Told = Arc<Mutex<Vec<(usize, String)>>>;

/// A control thread with two shards, as a task.
struct World {
    signals: mpsc::Sender<Signal>,
    control: tokio::task::JoinHandle<std::io::Result<Exit>>,
    admin: SocketAddr,
    told: Told,
    dir: tempfile::TempDir,
    shard_logs: Vec<ShardLog>,
}

fn config_text(endpoints: &[&str]) -> String {
    let mut text =
        "listeners:\n  - address: 127.0.0.1:0\nclusters:\n  - name: c\n    endpoints:\n".to_owned();
    for endpoint in endpoints {
        text += &format!("      - \"{endpoint}\"\n");
    }
    text
}

/// How a shard that only answers messages behaves.
#[derive(Clone, Copy)]
struct Manners {
    /// On which step it says that it is done.
    drains_on: Drain,
}

impl World {
    fn start(endpoints: &[&str], dns: DnsOptions, manners: Manners) -> World {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outrigger.yaml");
        fs::write(&path, config_text(endpoints)).unwrap();
        let listener = admin::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let admin = listener.local_addr().unwrap();
        let (signals, received) = mpsc::channel(8);
        let told = Told::default();
        let mut inbox = Inbox::new().unwrap();
        let shards: Vec<_> =
            (0..2).map(|id| shard(id, &mut inbox, told.clone(), manners)).collect();
        let counters: Vec<_> = shards.iter().map(|shard| shard.counters.clone()).collect();
        let (access_logs, shard_logs) = AccessLogs::start(&counters).unwrap();
        let source = config::Source::file(&path);
        let options = ControlOptions {
            config: source.load().unwrap(),
            source: Some(source),
            shards,
            inbox,
            admin: Some(listener),
            access_logs,
            listening: Vec::new(),
            set_log_level: None,
            dns,
        };
        let local = tokio::task::spawn_local(serve(options, received));
        World { signals, control: local, admin, told, dir, shard_logs }
    }

    fn rewrite(&self, text: &str) {
        fs::write(self.dir.path().join("outrigger.yaml"), text).unwrap();
    }

    async fn signal(&self, signal: Signal) {
        self.signals.send(signal).await.unwrap();
    }

    fn told(&self) -> Vec<(usize, String)> {
        self.told.lock().unwrap().clone()
    }

    /// Waits until both shards were told this.
    async fn until_told(&self, what: &str) {
        let seen = || {
            let told = self.told();
            (0..2).all(|id| told.iter().any(|(shard, said)| *shard == id && said == what))
        };
        let wait = async {
            while !seen() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(timeout(NEVER, wait).await.is_ok(), "never told {what}: {:?}", self.told());
    }

    async fn metrics(&self) -> String {
        self.ask("GET /metrics").await
    }

    async fn ask(&self, what: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        stream.write_all(format!("{what} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    }

    async fn until_metrics(&self, line: &str) {
        let wait = async {
            while !self.metrics().await.lines().any(|told| told == line) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(timeout(NEVER, wait).await.is_ok(), "never {line}:\n{}", self.metrics().await);
    }

    /// Waits until a metric is at least so much.
    async fn until_counted(&self, name: &str, least: u64) {
        let count = |page: String| -> Option<u64> {
            page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        let wait = async {
            while count(self.metrics().await) < Some(least) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(timeout(NEVER, wait).await.is_ok(), "never {name} {least}");
    }

    async fn exit(self) -> (Exit, Vec<(usize, String)>) {
        let exit = timeout(NEVER, self.control).await.expect("it ends").unwrap().unwrap();
        let told = self.told.lock().unwrap().clone();
        (exit, told)
    }
}

/// Acknowledges what it is told, on a thread of its own.
fn shard(
    id: usize,
    to_control: &mut Inbox<FromShard>,
    told: Told,
    manners: Manners,
) -> ShardHandle {
    let mut inbox = Inbox::new().unwrap();
    let sender = inbox.sender(TO_SHARD_CAPACITY);
    let control = to_control.sender(FROM_SHARD_CAPACITY);
    thread::spawn(move || {
        let ready = FromShard::Ready { shard: id, driver: "epoll".into(), flags: String::new() };
        control.send(ready).unwrap();
        let mut prepared: Option<Arc<Plan>> = None;
        loop {
            let Some(message) = inbox.pop() else {
                inbox.wait(None);
                continue;
            };
            let (said, answer, ends) = match message {
                ToShard::Prepare(plan) => {
                    let generation = plan.generation;
                    prepared = Some(plan.clone());
                    let endpoints = plan.clusters.iter().flat_map(|cluster| &cluster.endpoints);
                    let addresses: Vec<_> = endpoints.map(|e| e.address.to_string()).collect();
                    let said = format!("plan {generation}: {}", addresses.join(" "));
                    (said, Some(FromShard::PlanPrepared { shard: id, generation }), false)
                }
                ToShard::Activate { generation } => {
                    control.send(FromShard::PlanApplied { shard: id, generation }).unwrap();
                    continue;
                }
                ToShard::Drain(step) => {
                    if step == Drain::Close {
                        control.send(FromShard::Closed { shard: id }).unwrap();
                    }
                    let done = step >= manners.drains_on;
                    (format!("{step:?}"), done.then_some(FromShard::Drained { shard: id }), done)
                }
                ToShard::Peer { .. } | ToShard::Rate { .. } | ToShard::Accepted(_) => {
                    unreachable!("not of control")
                }
                ToShard::Override { endpoint, wanted, generation } => {
                    // As its home would, had every shard agreed at once.
                    let phase = match wanted {
                        Override::ForceOpen => Phase::ForcedOpen,
                        Override::ForceClosed => Phase::ForcedClosed,
                        Override::Release => Phase::Closed,
                    };
                    let breaker = prepared.as_ref().unwrap().breaker(endpoint).unwrap();
                    breaker.record.publish(phase, Epoch(generation as u32));
                    let said = format!("override {generation}: {} {wanted:?}", breaker.name);
                    (said, Some(FromShard::OverrideApplied { endpoint, generation }), false)
                }
                ToShard::StopNow => {
                    ("stop".to_owned(), Some(FromShard::Drained { shard: id }), true)
                }
            };
            told.lock().unwrap().push((id, said));
            if let Some(answer) = answer {
                control.send(answer).unwrap();
            }
            if ends {
                return;
            }
        }
    });
    ShardHandle { id, sender, counters: Arc::default() }
}

const PROMPT: Manners = Manners { drains_on: Drain::Finish };

/// Runs a test whose tasks stay on this thread, as in [`run`].
fn run_local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn quick(servers: Vec<SocketAddr>) -> DnsOptions {
    DnsOptions {
        servers,
        interval: Duration::from_millis(20),
        retry_interval: Duration::from_millis(10),
        timeout: Duration::from_millis(300),
    }
}

#[test]
fn from_the_first_plan_to_the_end() {
    run_local(async {
        let world = World::start(&["127.0.0.1:9000"], DnsOptions::default(), PROMPT);
        world.until_told("plan 1: 127.0.0.1:9000").await;
        world.until_metrics("outrigger_ready 1").await;
        let page = world.metrics().await;
        assert!(page.contains("outrigger_driver_info{shard=\"1\",driver=\"epoll\",flags=\"\"} 1"));
        assert!(page.contains("outrigger_plan_generation{shard=\"1\"} 1"));
        world.signal(Signal::Terminate).await;
        let (exit, told) = world.exit().await;
        assert_eq!(exit, Exit { code: 0, drained: true });
        for id in 0..2 {
            let said: Vec<_> =
                told.iter().filter(|(shard, _)| *shard == id).map(|(_, said)| &**said).collect();
            assert_eq!(said, ["plan 1: 127.0.0.1:9000", "Announce", "Close", "Finish"]);
        }
    });
}

#[test]
fn a_reload_is_taken_over_and_a_bad_one_is_not() {
    run_local(async {
        let world = World::start(&["127.0.0.1:9000"], DnsOptions::default(), PROMPT);
        world.until_told("plan 1: 127.0.0.1:9000").await;
        world.rewrite(&config_text(&["127.0.0.1:9001"]));
        world.signal(Signal::Hangup).await;
        world.until_told("plan 2: 127.0.0.1:9001").await;
        world.until_metrics("outrigger_config_reloads_total{result=\"success\"} 1").await;

        world.rewrite("bad: [");
        world.signal(Signal::Hangup).await;
        world.until_metrics("outrigger_config_last_reload_successful 0").await;
        assert!(world.metrics().await.contains("\noutrigger_plan_generation_newest 2\n"));

        world.rewrite(&config_text(&["127.0.0.1:9002"]));
        world.signal(Signal::Hangup).await;
        world.until_told("plan 3: 127.0.0.1:9002").await;
        world.until_metrics("outrigger_config_last_reload_successful 1").await;

        // A listener cannot move while the process runs.
        let moved = config_text(&["127.0.0.1:9003"]).replace("127.0.0.1:0", "127.0.0.1:1");
        world.rewrite(&moved);
        world.signal(Signal::Hangup).await;
        world.until_metrics("outrigger_config_last_reload_successful 0").await;
        assert!(world.metrics().await.contains("\noutrigger_plan_generation_newest 3\n"));
    });
}

/// The home of the cluster is told, it alone, and the page answers behind it. Generations rise,
/// whatever happens to the plan.
#[test]
fn an_override_goes_to_the_home() {
    run_local(async {
        let world =
            World::start(&["127.0.0.1:9000", "127.0.0.1:9001"], DnsOptions::default(), PROMPT);
        world.until_told("plan 1: 127.0.0.1:9000 127.0.0.1:9001").await;
        let path = "/breakers/c/127.0.0.1:9001";
        let answer = world.ask(&format!("POST {path}/force-open")).await;
        assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
        assert!(answer.contains("\"state\":\"forced-open\"") && answer.contains(path), "{answer}");

        for unknown in ["/breakers/c/127.0.0.1:9002", "/breakers/x/y", "/breakers/c/routes/c"] {
            let answer = world.ask(&format!("POST {unknown}/force-open")).await;
            assert!(answer.starts_with("HTTP/1.0 404 "), "{answer}");
            let names = "there are:\n/breakers/c/127.0.0.1:9000\n/breakers/c/127.0.0.1:9001\n";
            assert!(answer.ends_with(names), "{answer}");
        }

        // The record stays with the endpoint, and one that is gone is unknown.
        world.rewrite(&config_text(&["127.0.0.1:9001"]));
        world.signal(Signal::Hangup).await;
        world.until_told("plan 2: 127.0.0.1:9001").await;
        let state = "outrigger_breaker_state{cluster=\"c\",endpoint=\"127.0.0.1:9001\",";
        let state = format!("{state}kind=\"endpoint\",state=\"forced-open\"}} 1");
        assert!(world.metrics().await.lines().any(|line| line == state));
        let answer = world.ask("POST /breakers/c/127.0.0.1:9000/auto").await;
        assert!(answer.starts_with("HTTP/1.0 404 "), "{answer}");
        let answer = world.ask(&format!("POST {path}/auto")).await;
        assert!(answer.contains("\"state\":\"closed\""), "{answer}");

        let told = world.told();
        let home = usize::from(home_of(Default::default(), 2).0);
        let overrides: Vec<_> =
            told.iter().filter(|(_, said)| said.starts_with("override")).cloned().collect();
        assert_eq!(
            overrides,
            [
                (home, "override 1: 127.0.0.1:9001 ForceOpen".to_owned()),
                (home, "override 2: 127.0.0.1:9001 Release".to_owned()),
            ]
        );
    });
}

#[test]
fn shards_that_do_not_finish_are_cut_off() {
    run_local(async {
        let manners = Manners { drains_on: Drain::Cut };
        let world = World::start(&["127.0.0.1:9000"], DnsOptions::default(), manners);
        world.until_told("plan 1: 127.0.0.1:9000").await;
        world.signal(Signal::Interrupt).await;
        let (exit, told) = world.exit().await;
        assert_eq!(exit, Exit { code: 0, drained: true });
        assert_eq!(told.iter().filter(|(_, said)| said == "Cut").count(), 2);
    });
}

#[test]
fn the_second_interrupt_stops_at_once() {
    run_local(async {
        let manners = Manners { drains_on: Drain::Cut };
        let world = World::start(&["127.0.0.1:9000"], DnsOptions::default(), manners);
        world.until_told("plan 1: 127.0.0.1:9000").await;
        world.signal(Signal::Interrupt).await;
        world.until_told("Close").await;
        world.until_metrics("outrigger_draining 1").await;
        world.signal(Signal::Interrupt).await;
        let (exit, told) = world.exit().await;
        assert_eq!(exit, Exit { code: 0, drained: true });
        assert!(told.iter().all(|(_, said)| said != "Cut"));
        assert_eq!(told.iter().filter(|(_, said)| said == "stop").count(), 2);
    });
}

#[test]
fn a_name_in_the_hosts_file_needs_no_server() {
    run_local(async {
        // Nobody answers there.
        let dns = quick(vec!["127.0.0.1:9".parse().unwrap()]);
        let world = World::start(&["localhost:9000"], dns, PROMPT);
        world.until_told("plan 1: 127.0.0.1:9000").await;
    });
}

/// Answers A queries for any name with what is written there; with nothing, NXDOMAIN. Never
/// answers while it is `None`.
async fn name_server(answer: Arc<Mutex<Option<Vec<[u8; 4]>>>>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut packet = [0; 512];
        loop {
            let (_, peer) = socket.recv_from(&mut packet).await.unwrap();
            let Some(addresses) = answer.lock().unwrap().clone() else { continue };
            // RFC 1035, 4.1: twelve bytes of header, then the name's labels, type and class.
            let mut end = 12;
            while packet[end] != 0 {
                end += usize::from(packet[end]) + 1;
            }
            end += 5;
            let is_a = packet[end - 4..end] == [0, 1, 0, 1];
            let mut reply = packet[..end].to_vec();
            let count = if is_a { addresses.len() as u8 } else { 0 };
            let code = if addresses.is_empty() { 3 } else { 0 };
            reply[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
            for address in &addresses[..count.into()] {
                // The name again, A, IN, a day to live, four bytes.
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 1, 0x51, 0x80, 0, 4]);
                reply.extend(address);
            }
            let _ = socket.send_to(&reply, peer).await;
        }
    });
    address
}

#[test]
fn names_are_asked_for_again_and_good_answers_stay() {
    run_local(async {
        let answer = Arc::new(Mutex::new(Some(vec![[127, 0, 0, 3], [127, 0, 0, 2]])));
        let set = |addresses: Option<&[[u8; 4]]>| {
            *answer.lock().unwrap() = addresses.map(<[_]>::to_vec);
        };
        let server = name_server(answer.clone()).await;
        let world = World::start(&["app.test:80", "[::1]:81"], quick(vec![server]), PROMPT);
        world.until_told("plan 1: 127.0.0.2:80 127.0.0.3:80 [::1]:81").await;

        // Another order is no change: the next plan is the next change.
        set(Some(&[[127, 0, 0, 2], [127, 0, 0, 3]]));
        world.until_counted("outrigger_dns_lookups_total{result=\"success\"}", 3).await;
        set(Some(&[[127, 0, 0, 4]]));
        world.until_told("plan 2: 127.0.0.4:80 [::1]:81").await;

        // Neither a denial nor silence takes the last good answer away.
        set(Some(&[]));
        world.until_counted("outrigger_dns_lookups_total{result=\"failure\"}", 1).await;
        set(None);
        world.until_counted("outrigger_dns_lookups_total{result=\"failure\"}", 3).await;
        assert!(world.metrics().await.contains("\noutrigger_plan_generation_newest 2\n"));
        set(Some(&[[127, 0, 0, 5]]));
        world.until_told("plan 3: 127.0.0.5:80 [::1]:81").await;
    });
}

#[test]
fn a_silent_server_holds_up_the_start_for_a_bounded_time() {
    run_local(async {
        let answer = Arc::new(Mutex::new(None));
        let server = name_server(answer.clone()).await;
        let world = World::start(&["app.test:80", "127.0.0.1:81"], quick(vec![server]), PROMPT);
        world.until_told("plan 1: 127.0.0.1:81").await;
        *answer.lock().unwrap() = Some(vec![[127, 0, 0, 2]]);
        world.until_told("plan 2: 127.0.0.2:80 127.0.0.1:81").await;
    });
}

#[test]
fn logs_are_reopened_on_request() {
    run_local(async {
        let mut world = World::start(&["127.0.0.1:9000"], DnsOptions::default(), PROMPT);
        let (path, moved) = (world.dir.path().join("log"), world.dir.path().join("log.1"));
        let log = &mut world.shard_logs[0];
        let sink = log.sink(path.to_str().unwrap());
        let mut write = || {
            log.log(sink, Format::Json, &line_record());
            log.flush();
        };
        write();
        until_written(&path).await;
        fs::rename(&path, &moved).unwrap();
        world.signals.send(Signal::ReopenLogs).await.unwrap();
        // The order of a signal and a line is not given, so write until the name is back.
        let wait = async {
            while !path.exists() {
                write();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(timeout(NEVER, wait).await.is_ok(), "not reopened");
    });
}

async fn until_written(path: &Path) {
    let wait = async {
        while fs::metadata(path).map_or(0, |metadata| metadata.len()) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(NEVER, wait).await.is_ok(), "nothing written");
}

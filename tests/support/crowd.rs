//! Many clients at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Client, GET, Message, Proxy, eventually};

/// Several connections that ask together: all send, then all are answered.
pub struct Crowd(pub Vec<Client>);

impl Crowd {
    /// Wherever they end.
    #[track_caller]
    pub fn connect(proxy: &Proxy, count: usize) -> Crowd {
        Crowd((0..count).map(|_| proxy.client()).collect())
    }

    /// So many on each shard.
    #[track_caller]
    pub fn on_each_shard(proxy: &Proxy, count: usize) -> Vec<Crowd> {
        let shards = proxy.metric("outrigger_shards", &[]) as usize;
        let mut crowds: Vec<Crowd> = (0..shards).map(|_| Crowd(Vec::new())).collect();
        for _ in 0..8 * count * shards {
            if crowds.iter().all(|crowd| crowd.0.len() >= count) {
                break;
            }
            let (client, shard) = placed(proxy);
            crowds[shard].0.push(client);
        }
        for crowd in &mut crowds {
            assert!(crowd.0.len() >= count, "the kernel leaves out a shard");
            crowd.0.truncate(count);
        }
        crowds
    }

    /// All on one shard.
    #[track_caller]
    pub fn on_shard(proxy: &Proxy, shard: usize, count: usize) -> Crowd {
        Crowd::on_each_shard(proxy, count).swap_remove(shard)
    }

    /// Each sends this.
    #[track_caller]
    pub fn send(&mut self, request: impl AsRef<[u8]>) {
        self.0.iter_mut().for_each(|client| client.send(request.as_ref()));
    }

    /// An answer of each: how many there were of each status, with its reason.
    #[track_caller]
    pub fn answers(&mut self) -> Answers {
        let mut answers = Answers::default();
        self.0.iter_mut().for_each(|client| answers.add(&client.answer()));
        answers
    }

    /// Each sends a GET, and gets an answer.
    #[track_caller]
    pub fn ask(&mut self) -> Answers {
        self.send(GET);
        self.answers()
    }
}

/// A connection, and the shard that serves it.
#[track_caller]
fn placed(proxy: &Proxy) -> (Client, usize) {
    let before = by_shard(proxy, "outrigger_connections_open");
    let client = proxy.client();
    let mut shard = None;
    eventually("it is served somewhere", || {
        let now = by_shard(proxy, "outrigger_connections_open");
        shard = now.iter().zip(&before).position(|(now, before)| now > before);
        shard.is_some()
    });
    (client, shard.unwrap())
}

/// A metric that each shard has, by shard.
#[track_caller]
pub fn by_shard(proxy: &Proxy, name: &str) -> Vec<u64> {
    let page = proxy.admin("/metrics");
    let mut values = BTreeMap::new();
    for line in page.text().lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        if series.split('{').next() != Some(name) {
            continue;
        }
        let (_, shard) = series.split_once("shard=\"").expect("a shard");
        let shard: usize = shard.split('"').next().unwrap().parse().expect("a number");
        *values.entry(shard).or_insert(0) += value.parse::<u64>().expect("a number");
    }
    assert!(!values.is_empty(), "no metric {name}");
    values.into_values().collect()
}

/// How many answers there were of each kind: `200`, `503 breaker-open`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers(BTreeMap<String, usize>);

impl Answers {
    fn add(&mut self, answer: &Message) {
        let kind = match answer.get("x-outrigger-reason") {
            Some(reason) => format!("{} {reason}", answer.status()),
            None => answer.status().to_string(),
        };
        *self.0.entry(kind).or_insert(0) += 1;
    }

    /// Of one kind.
    pub fn of(&self, kind: &str) -> usize {
        self.0.get(kind).copied().unwrap_or(0)
    }

    pub fn total(&self) -> usize {
        self.0.values().sum()
    }

    /// All are of this kind.
    #[track_caller]
    pub fn assert_all(&self, kind: &str) {
        assert!(self.0.keys().all(|other| other == kind), "{:?}", self.0);
    }
}

/// Clients that ask again and again, each on a connection and a thread of its own.
pub struct Hammer {
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Answers>>,
    threads: Vec<JoinHandle<()>>,
}

impl Hammer {
    /// So many of them, with a little rest behind each answer: the machine is to be shared.
    pub fn start(address: SocketAddr, clients: usize) -> Hammer {
        let stop = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(Mutex::new(Answers::default()));
        let threads = (0..clients).map(|_| {
            let (stop, answers) = (stop.clone(), answers.clone());
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                while !stop.load(SeqCst) {
                    let answer = client.get("/");
                    answers.lock().unwrap().add(&answer);
                    if answer.connection("close") {
                        client = Client::connect(address);
                    }
                    std::thread::sleep(Duration::from_millis(3));
                }
            })
        });
        let threads = threads.collect();
        Hammer { stop, answers, threads }
    }

    /// All answers so far.
    pub fn answers(&self) -> Answers {
        self.answers.lock().unwrap().clone()
    }

    /// Each gets its last answer.
    #[track_caller]
    pub fn stop(mut self) -> Answers {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client that was answered");
        }
        self.answers()
    }
}

/// Threads that nobody joins end with their next answer.
impl Drop for Hammer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

/// Runs a test with each of these numbers of shards, all at the same time.
#[track_caller]
pub fn with_shards(counts: &[usize], test: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        let test = &test;
        let runs: Vec<_> =
            counts.iter().map(|count| (count, scope.spawn(move || test(*count)))).collect();
        let failed: Vec<usize> =
            runs.into_iter().filter_map(|(count, run)| run.join().err().map(|_| *count)).collect();
        assert!(failed.is_empty(), "it failed with {failed:?}");
    });
}

//! An origin that follows a script, one thread for each connection.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::wire::Broken;
use super::{Message, Wire};

/// A listening origin. A script that panics fails the test.
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    connections: AtomicUsize,
    ended: AtomicUsize,
    requests: Mutex<Vec<Message>>,
    received: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    problems: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

/// The proxy's connection, as the script sees it.
pub struct Peer {
    wire: Wire,
    /// Which connection this is, from 0.
    pub number: usize,
    shared: Arc<Shared>,
}

impl Origin {
    /// Runs `script` for every connection, and closes it afterwards.
    pub fn start(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Origin {
        Origin::on(TcpListener::bind("127.0.0.1:0").expect("a port"), script)
    }

    /// The same, on a socket of the test's.
    pub fn on(listener: TcpListener, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Origin {
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let (ours, script) = (shared.clone(), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ours.stopped.load(SeqCst) {
                    return;
                }
                let (shared, script) = (ours.clone(), script.clone());
                let stream = stream.expect("a connection");
                let number = shared.connections.fetch_add(1, SeqCst);
                let record = Arc::new(Mutex::new(Vec::new()));
                shared.received.lock().unwrap().push(record.clone());
                std::thread::spawn(move || {
                    let wire = Wire::recording(stream, record);
                    let mut peer = Peer { wire, number, shared: shared.clone() };
                    let result = catch_unwind(AssertUnwindSafe(|| script(&mut peer)));
                    if let Err(panic) = result {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text = text.or(panic.downcast_ref::<&str>().map(|it| it.to_string()));
                        shared.problems.lock().unwrap().push(text.unwrap_or_default());
                    }
                    drop(peer);
                    shared.ended.fetch_add(1, SeqCst);
                });
            }
        });
        Origin { address, shared }
    }

    /// Gives every request the same answer.
    pub fn answering(answer: impl Into<Vec<u8>>) -> Origin {
        let answer = answer.into();
        Origin::start(move |peer| {
            while peer.try_request().is_ok() {
                if peer.try_send(&answer).is_err() {
                    return;
                }
            }
        })
    }

    /// Reads one request on each connection, sends these bytes, and closes.
    pub fn closing_after(answer: impl Into<Vec<u8>>) -> Origin {
        let answer = answer.into();
        Origin::start(move |peer| {
            if peer.try_request().is_ok() {
                let _ = peer.try_send(&answer);
            }
        })
    }

    /// Answers each request with its own first line.
    pub fn echoing() -> Origin {
        Origin::start(|peer| {
            while let Ok(request) = peer.try_request() {
                peer.answer(&request.start);
            }
        })
    }

    /// Answers each request with this name.
    pub fn named(name: &'static str) -> Origin {
        let length = name.len();
        Origin::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}"))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that were ever accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// Connections whose script has ended.
    pub fn ended(&self) -> usize {
        self.shared.ended.load(SeqCst)
    }

    /// The complete requests, in their order of completion.
    pub fn requests(&self) -> Vec<Message> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The only request.
    #[track_caller]
    pub fn request(&self) -> Message {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "one request: {requests:#?}");
        requests.remove(0)
    }

    /// The request that was completed last.
    #[track_caller]
    pub fn last_request(&self) -> Message {
        self.requests().pop().expect("a request")
    }

    /// Every byte of every connection.
    pub fn received(&self) -> Vec<u8> {
        let records = self.shared.received.lock().unwrap();
        records.iter().flat_map(|record| record.lock().unwrap().clone()).collect()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
        let problems = self.shared.problems.lock().unwrap().clone();
        if !problems.is_empty() && !std::thread::panicking() {
            panic!("the origin's script failed: {problems:#?}");
        }
    }
}

impl Deref for Peer {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.wire
    }
}

impl DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.wire
    }
}

impl Peer {
    /// One whole request.
    #[track_caller]
    pub fn request(&mut self) -> Message {
        self.try_request().expect("a request")
    }

    /// The same, where the connection may end instead.
    #[track_caller]
    pub fn try_request(&mut self) -> Result<Message, Broken> {
        let request = self.wire.try_message(|_| false)?;
        assert!(request.start.ends_with(" HTTP/1.1"), "we ask in HTTP/1.1: {}", request.start);
        self.shared.requests.lock().unwrap().push(request.clone());
        Ok(request)
    }

    /// The head of a request whose body the script reads itself, or not at all.
    #[track_caller]
    pub fn request_head(&mut self) -> Message {
        let head = self.wire.read_until("\r\n\r\n");
        Message::parse(&head)
    }

    /// A plain answer with this body.
    #[track_caller]
    pub fn answer(&mut self, body: &str) {
        let length = body.len();
        self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"));
    }

    /// Takes the connection out of the script, to reset it or to keep it open behind its end.
    pub fn take(&mut self) -> Wire {
        let spare = TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = TcpStream::connect(spare.local_addr().unwrap()).expect("a spare");
        std::mem::replace(&mut self.wire, Wire::new(stream))
    }

    /// Ends the connection with RST.
    pub fn reset(&mut self) {
        self.take().reset();
    }
}

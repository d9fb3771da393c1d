//! An origin that counts what is inside at once, and lets it go when the test says so.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::origin::{Origin, Peer};
use super::{OK, Setup};

/// How often a request that is held looks whether its connection has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Answered with 500, whatever the others get.
pub const FAILING: &str = "/failing";

/// Held until [`Gate::let_held_go`], whether or not the gate is shut.
pub const HELD: &str = "/held";

/// An origin with a gate: shut, it holds every request that comes. It begins open, and answers
/// [`OK`].
pub struct Gate {
    origin: Origin,
    hall: Arc<Hall>,
}

#[derive(Default)]
struct Hall {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    is_shut: bool,
    /// So many may leave although it is shut.
    leave: usize,
    /// The same, of those that ask for [`HELD`].
    leave_held: usize,
    pause: Duration,
    answer: Answer,
    arrived: usize,
    inside: usize,
    peak: usize,
    left: usize,
    gone: usize,
}

#[derive(Clone)]
enum Answer {
    Bytes(Vec<u8>),
    Reset,
}

impl Default for Answer {
    fn default() -> Answer {
        Answer::Bytes(OK.into())
    }
}

/// Connections that are open at once, to several origins together.
#[derive(Clone, Default)]
pub struct Census(Arc<Mutex<Counted>>);

#[derive(Default)]
struct Counted {
    open: Vec<std::net::TcpStream>,
    peak: usize,
}

impl Census {
    /// The most that were open when one more was accepted.
    pub fn peak(&self) -> usize {
        self.0.lock().unwrap().peak
    }

    /// A new one. What the proxy has closed is not open, even if its thread does not know it yet.
    fn enter(&self, peer: &Peer) {
        let mut counted = self.0.lock().unwrap();
        counted.open.push(peer.stream_again());
        let is_open = |stream: &&std::net::TcpStream| super::wire::is_established(stream);
        let count = counted.open.iter().filter(is_open).count();
        counted.peak = counted.peak.max(count);
    }

    fn leave(&self, peer: &Peer) {
        let address = peer.peer_address();
        let mut counted = self.0.lock().unwrap();
        counted.open.retain(|stream| stream.peer_addr().is_ok_and(|other| other != address));
    }
}

impl Gate {
    pub fn new() -> Gate {
        Gate::counted_by(&Census::default())
    }

    /// One that begins shut.
    pub fn shut_from_the_start() -> Gate {
        let gate = Gate::new();
        gate.shut();
        gate
    }

    /// Its connections are counted together with others.
    pub fn counted_by(census: &Census) -> Gate {
        Gate::on(std::net::TcpListener::bind("127.0.0.1:0").expect("a port"), census)
    }

    /// On a socket of the test's.
    pub fn on(listener: std::net::TcpListener, census: &Census) -> Gate {
        let hall = Arc::new(Hall::default());
        let (ours, census) = (hall.clone(), census.clone());
        let origin = Origin::on(listener, move |peer| {
            census.enter(peer);
            let ends_with_reset = ours.serve(peer);
            census.leave(peer); // It has a handle of the socket.
            if ends_with_reset {
                peer.reset();
            }
        });
        Gate { origin, hall }
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// A configuration with this as the only endpoint, reasons told, and clients that may take
    /// their time: many are connected before the first one asks.
    pub fn setup(&self) -> Setup {
        Setup::new(&self.origin).listener("reason_header: true, timeouts: {header: 0s, idle: 0s}")
    }

    /// What comes, stays.
    pub fn shut(&self) {
        let mut inner = self.hall.lock();
        (inner.is_shut, inner.leave) = (true, 0);
    }

    /// What is there leaves, and what comes is answered at once.
    pub fn open(&self) {
        let mut inner = self.hall.lock();
        (inner.is_shut, inner.leave) = (false, 0);
        self.hall.changed.notify_all();
    }

    /// So many of those that are there, or come, are answered.
    pub fn let_go(&self, count: usize) {
        self.hall.lock().leave += count;
        self.hall.changed.notify_all();
    }

    /// The same, of those that ask for [`HELD`].
    pub fn let_held_go(&self, count: usize) {
        self.hall.lock().leave_held += count;
        self.hall.changed.notify_all();
    }

    /// From now on, what leaves gets this answer.
    pub fn answer_with(&self, answer: impl Into<Vec<u8>>) {
        self.hall.lock().answer = Answer::Bytes(answer.into());
    }

    /// From now on, answers are 500.
    pub fn fail(&self) {
        self.answer_with("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n");
    }

    /// From now on, answers are 200.
    pub fn heal(&self) {
        self.answer_with(OK);
    }

    /// From now on, what leaves is reset.
    pub fn reset(&self) {
        self.hall.lock().answer = Answer::Reset;
    }

    /// Each request takes so long.
    pub fn take(&self, milliseconds: u64) {
        self.hall.lock().pause = Duration::from_millis(milliseconds);
    }

    /// Requests that ever came.
    pub fn arrived(&self) -> usize {
        self.hall.lock().arrived
    }

    /// Requests that are there now.
    pub fn inside(&self) -> usize {
        self.hall.lock().inside
    }

    /// The most that were there at once, since the last call of [`Gate::forget_peak`].
    pub fn peak(&self) -> usize {
        self.hall.lock().peak
    }

    pub fn forget_peak(&self) {
        let mut inner = self.hall.lock();
        inner.peak = inner.inside;
    }

    /// Requests that were let go.
    pub fn left(&self) -> usize {
        self.hall.lock().left
    }

    /// Requests whose connections ended before they were let go.
    pub fn gone(&self) -> usize {
        self.hall.lock().gone
    }
}

impl Hall {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A test that has failed elsewhere shall say so, and not that a lock is poisoned.
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Until the connection ends; `true` where it is to be reset.
    fn serve(&self, peer: &mut Peer) -> bool {
        while let Ok(request) = peer.try_request() {
            let mut inner = self.lock();
            inner.arrived += 1;
            inner.inside += 1;
            inner.peak = inner.peak.max(inner.inside);
            let pause = inner.pause;
            drop(inner);
            if pause > Duration::ZERO {
                std::thread::sleep(pause);
            }
            let is_held = request.target().starts_with(HELD);
            let answer = self.wait(peer, is_held);
            // Counted out before its answer: the proxy may send the next as soon as it has it.
            let sent = match answer {
                None => return false,
                Some(_) if request.target().starts_with(FAILING) => {
                    peer.try_send("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
                }
                Some(Answer::Bytes(bytes)) => peer.try_send(bytes),
                Some(Answer::Reset) => return true,
            };
            if sent.is_err() {
                return false;
            }
        }
        false
    }

    /// Until it may leave; `None` where its connection ended before.
    fn wait(&self, peer: &Peer, is_held: bool) -> Option<Answer> {
        let mut inner = self.lock();
        loop {
            let is_shut = is_held || inner.is_shut;
            let leave = if is_held { &mut inner.leave_held } else { &mut inner.leave };
            if *leave > 0 || !is_shut {
                *leave = leave.saturating_sub(1);
                inner.inside -= 1;
                inner.left += 1;
                return Some(inner.answer.clone());
            }
            if !peer.is_established() {
                inner.inside -= 1;
                inner.gone += 1;
                return None;
            }
            inner = self.changed.wait_timeout(inner, LOOK_EVERY).unwrap().0;
        }
    }
}

/// Everything it holds leaves, so that no thread outlives the test for long.
impl Drop for Gate {
    fn drop(&mut self) {
        let mut inner = self.hall.lock();
        (inner.is_shut, inner.leave_held) = (false, usize::MAX);
        self.hall.changed.notify_all();
    }
}

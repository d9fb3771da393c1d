//! Listening socket to client connection: one task per listener and shard, for ever.
//!
//! Takes connections until the queue is empty, refuses those above a limit, and survives running
//! out of descriptors: one is kept in reserve, so that the queue can be emptied even then.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::metrics::ShardCounters;
use crate::net::{self, Socket};
use crate::session;
use crate::shard::Shard;
use crate::shard::message::{Accepted, Drain};
use crate::time::Nanos;

/// Connections taken before the sessions get a turn.
const ACCEPTS_PER_TURN_MAX: usize = 64;

/// Pause after a failure that the reserve did not help against, so that the shard does not spin.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

/// What a connection above a limit is told before it is closed.
const SHED_ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\
    Connection: close\r\n\r\n";

/// One listener, as one shard sees it. Lives until the shard ends.
pub struct ListenerState {
    /// Its place in the plan.
    pub index: usize,
    socket: RefCell<Option<Rc<Socket>>>,
    open: Cell<u32>,
    by_client: RefCell<HashMap<IpAddr, u32, foldhash::fast::RandomState>>,
    waker: Cell<Option<Waker>>,
    reserve: Cell<Option<OwnedFd>>,
}

/// One client connection, counted against its listener's limits until it is dropped.
pub struct Slot {
    /// The listener that accepted it.
    pub listener: Rc<ListenerState>,
    address: IpAddr,
    counters: Arc<ShardCounters>,
}

/// A client's connection.
pub struct Client {
    /// Its socket.
    pub socket: Socket,
    /// What is known of it.
    pub info: ClientInfo,
}

/// What outlives the task of an idle connection.
pub struct ClientInfo {
    /// The other end.
    pub peer: SocketAddr,
    /// Its place among the listener's connections.
    pub slot: Slot,
    /// When it was accepted.
    pub accepted: Nanos,
    /// When its last answer was complete; at first, when it was accepted.
    pub waiting_since: Nanos,
    /// Requests that it has sent.
    pub requests: u64,
}

impl ClientInfo {
    /// Of a connection that nobody has made, to a listener by its place in the plan: what would
    /// become of a request on it can be asked all the same.
    pub fn imagined(index: usize, peer: SocketAddr, counters: &Arc<ShardCounters>) -> ClientInfo {
        let listener = ListenerState {
            index,
            socket: RefCell::default(),
            open: Cell::new(1),
            by_client: RefCell::new([(peer.ip(), 1)].into_iter().collect()),
            waker: Cell::default(),
            reserve: Cell::default(),
        };
        counters.connections_open.add(1);
        let (listener, counters) = (Rc::new(listener), counters.clone());
        let slot = Slot { listener, address: peer.ip(), counters };
        let now = Nanos::now();
        ClientInfo { peer, slot, accepted: now, waiting_since: now, requests: 0 }
    }
}

impl ListenerState {
    /// Takes over a listening socket. Must run on the shard.
    pub fn new(index: usize, socket: OwnedFd) -> io::Result<ListenerState> {
        Ok(ListenerState {
            index,
            socket: RefCell::new(Some(Rc::new(Socket::adopt(socket)?))),
            open: Cell::new(0),
            by_client: RefCell::default(),
            waker: Cell::new(None),
            reserve: Cell::new(reserve()),
        })
    }

    /// Lets the accept task look at the shard's drain again.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// One connection from the queue.
    fn accept(&self, socket: &Socket) -> Result<(OwnedFd, SocketAddr), Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accepted = socket.reading(|| rustix::net::acceptfrom_with(socket, flags));
        let (descriptor, address) = accepted?;
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        Ok((descriptor, address.ok_or(Errno::CONNABORTED)?))
    }

    /// Out of descriptors: uses the reserve to take one connection from the queue and close it, so
    /// that its client learns at once.
    fn shed_with_reserve(&self, socket: &Socket) -> Result<(), Errno> {
        drop(self.reserve.take());
        let shed = self.accept(socket).map(drop);
        self.reserve.set(reserve());
        shed
    }
}

impl Slot {
    /// A place among the listener's connections; `None` where a limit is reached.
    fn take(shard: &Shard, listener: &Rc<ListenerState>, address: IpAddr) -> Option<Slot> {
        let plan = shard.plan();
        let limits = &plan.shared().listeners[listener.index];
        let share = limits.connections_max.div_ceil(shard.count as u32);
        let all = u32::try_from(shard.counters.connections_open.get()).unwrap_or(0);
        if listener.open.get() >= share || all >= shard.clients_max {
            return None;
        }
        // Counted always, so that a limit set by a reload holds for those already open.
        let mut by_client = listener.by_client.borrow_mut();
        let open = by_client.entry(address).or_insert(0);
        let most = limits.connections_per_client_max;
        if most != 0 && *open >= most {
            return None;
        }
        *open += 1;
        listener.open.set(listener.open.get() + 1);
        shard.counters.connections_open.add(1);
        let counters = shard.counters.clone();
        Some(Slot { listener: listener.clone(), address, counters })
    }
}

impl std::ops::Drop for Slot {
    fn drop(&mut self) {
        let listener = &self.listener;
        listener.open.set(listener.open.get() - 1);
        self.counters.connections_open.sub(1);
        let mut by_client = listener.by_client.borrow_mut();
        if let Some(open) = by_client.get_mut(&self.address) {
            *open -= 1;
            if *open == 0 {
                by_client.remove(&self.address);
            }
        }
    }
}

/// Accepts until a drain closes the listener.
pub async fn run(shard: Rc<Shard>, listener: Rc<ListenerState>) {
    let Some(socket) = listener.socket.borrow().clone() else { return };
    loop {
        let closing = shard.drain() >= Some(Drain::Close);
        match take_queued(&shard, &listener, &socket).await {
            Ok(Queue::Empty) if closing => break,
            Ok(Queue::Empty) => wait(&listener, &socket).await,
            Ok(Queue::More) => net::yield_now().await,
            Err(error) => {
                shard.counters.accept_failures.add(1);
                tracing::warn!(shard = shard.id, %error, "accept failed");
                if closing {
                    break;
                }
                net::sleep(FAILURE_PAUSE).await;
            }
        }
    }
    socket.stop_listening();
    listener.socket.borrow_mut().take();
    shard.listener_closed();
}

/// Whether connections may still be queued.
enum Queue {
    Empty,
    More,
}

/// Takes connections until there are none, or the others' turn has come.
async fn take_queued(
    shard: &Rc<Shard>,
    listener: &Rc<ListenerState>,
    socket: &Socket,
) -> Result<Queue, Errno> {
    for _ in 0..ACCEPTS_PER_TURN_MAX {
        match listener.accept(socket) {
            Ok((descriptor, peer)) => keep_or_hand_over(shard, listener, descriptor, peer),
            Err(Errno::AGAIN) => return Ok(Queue::Empty),
            // The client gave up while it was queued, or the network did (accept(2)).
            Err(
                Errno::INTR
                | Errno::CONNABORTED
                | Errno::NETDOWN
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH,
            ) => {}
            Err(error @ (Errno::MFILE | Errno::NFILE)) => {
                match listener.shed_with_reserve(socket) {
                    Ok(()) => shard.counters.connections_shed.add(1),
                    // Out of descriptors is found before the queue is looked at: it was empty.
                    Err(Errno::AGAIN) => return Ok(Queue::Empty),
                    Err(_) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Queue::More)
}

/// A shard that has more than its share hands what it accepts to another one.
fn keep_or_hand_over(
    shard: &Rc<Shard>,
    listener: &Rc<ListenerState>,
    socket: OwnedFd,
    peer: SocketAddr,
) {
    let taker = if shard.is_draining() { None } else { shard.agreement.taker() };
    let kept = match taker {
        Some(to) => {
            let accepted = Accepted { by: shard.id, listener: listener.index, socket, peer };
            shard.agreement.hand_over(to, accepted).err().map(|accepted| accepted.socket)
        }
        None => Some(socket),
    };
    if let Some(socket) = kept {
        admit(shard, listener, socket, peer);
    }
}

/// Starts a session for a connection, or refuses it.
pub fn admit(
    shard: &Rc<Shard>,
    listener: &Rc<ListenerState>,
    descriptor: OwnedFd,
    peer: SocketAddr,
) {
    let address = peer.ip().to_canonical();
    let Some(slot) = Slot::take(shard, listener, address) else {
        shard.counters.connections_shed.add(1);
        shard.counters.refuse(crate::reason::Reason::ConnectionLimit);
        let _ = rustix::net::send(&descriptor, SHED_ANSWER, rustix::net::SendFlags::NOSIGNAL);
        return;
    };
    match Socket::adopt(descriptor) {
        Ok(socket) => {
            shard.counters.connections_accepted.add(1);
            let now = Nanos::now();
            let info = ClientInfo { peer, slot, accepted: now, waiting_since: now, requests: 0 };
            session::start(shard, Client { socket, info });
        }
        Err(error) => {
            shard.counters.accept_failures.add(1);
            tracing::warn!(shard = shard.id, %error, "cannot watch a connection");
        }
    }
}

/// Waits for a connection, or for a drain.
async fn wait(listener: &ListenerState, socket: &Socket) {
    let mut readable = std::pin::pin!(socket.readable());
    let mut first = true;
    std::future::poll_fn(|context| {
        listener.waker.set(Some(context.waker().clone()));
        let woken = !std::mem::replace(&mut first, false);
        match readable.as_mut().poll(context) {
            Poll::Pending if woken => Poll::Ready(()),
            other => other,
        }
    })
    .await;
}

/// A descriptor that can be given up when there are no others.
fn reserve() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

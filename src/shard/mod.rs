//! One pinned thread with one ring: it owns everything that its requests touch.
//!
//! Here is what the sessions of a shard share, and the main task that keeps house: it applies
//! messages, starts listeners, and ends the shard. The sessions are tasks beside it on the same
//! thread, so nothing here is locked.

pub mod agreement;

pub mod breakers;

pub mod buffers;

pub mod date;

pub mod message;

pub mod parking;

pub mod pipes;

pub mod plan;

pub mod rates;

pub mod transit;

use std::cell::{Cell, RefCell};
use std::os::fd::{BorrowedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;

use crate::accept::{self, ListenerState};
use crate::access_log::{Record, ShardLog};
use crate::http::forwarded::RequestIds;
use crate::mailbox::Sender;
use crate::metrics::ShardCounters;
use crate::net::{self, Socket, Timer};
use crate::plan::{AccessLog, Listener, Plan};
use crate::reason::Reason;
use crate::rng::Rng;
use crate::session;
use crate::time::Nanos;

use agreement::Agreement;
use buffers::Buffers;
use date::Date;
use message::{Accepted, Drain, FromShard, ToShard};
use parking::Parking;
use pipes::Pipes;
use plan::ShardPlan;

/// How often kept connections are looked over, while there are any.
const SWEEP_EVERY: Duration = Duration::from_millis(500);

/// What the sessions of one shard share.
pub struct Shard {
    /// Its number, from 0.
    pub id: usize,
    /// What it counts.
    pub counters: Arc<ShardCounters>,
    /// Its buffers.
    pub buffers: Buffers,
    /// Where a path is rewritten in passing.
    pub scratch: Cell<Vec<u8>>,
    /// Its pipes.
    pub pipes: Pipes,
    /// The current `Date` line.
    pub date: Date,
    /// Its random numbers.
    pub rng: RefCell<Rng>,
    /// Idle client connections that gave up their task.
    pub parking: Parking,
    /// Its part in the agreement between the shards.
    pub agreement: Rc<Agreement>,
    /// Its request ids.
    pub request_ids: RefCell<RequestIds>,
    /// How many shards there are.
    pub count: usize,
    /// Client connections that leave it descriptors for its endpoints.
    pub clients_max: u32,
    access_log: RefCell<ShardLog>,
    plan: RefCell<Rc<ShardPlan>>,
    /// The next plan, until all shards know it.
    prepared: RefCell<Option<Arc<Plan>>>,
    drain: Cell<Option<Drain>>,
    sessions: RefCell<Slab<Entry>>,
    listeners: RefCell<Vec<Rc<ListenerState>>>,
    listeners_open: Cell<usize>,
    /// Connections that others have handed over before this shard had its first plan. They stay
    /// counted as on their way, so that nobody sends more than its share.
    early: RefCell<Vec<Accepted>>,
    to_control: Sender<FromShard>,
    /// Wakes the housekeeping, while there is nothing for it to do.
    house: Cell<Option<Waker>>,
}

impl Shard {
    /// A shard that has no plan yet.
    pub fn new(
        id: usize,
        clients_max: u32,
        buffer_bytes: usize,
        access_log: ShardLog,
        agreement: Agreement,
        to_control: Sender<FromShard>,
    ) -> std::io::Result<Rc<Shard>> {
        Ok(Rc::new(Shard {
            id,
            count: agreement.shards(),
            clients_max,
            counters: agreement.counters().clone(),
            buffers: Buffers::new(buffer_bytes),
            scratch: Cell::default(),
            pipes: Pipes::default(),
            date: Date::default(),
            rng: RefCell::new(Rng::new(seed())),
            parking: Parking::new()?,
            agreement: Rc::new(agreement),
            request_ids: RefCell::new(RequestIds::new(seed())),
            access_log: RefCell::new(access_log),
            plan: RefCell::new(Rc::new(ShardPlan::empty())),
            prepared: RefCell::default(),
            drain: Cell::new(None),
            sessions: RefCell::new(Slab::with_capacity(1024)),
            listeners: RefCell::new(Vec::new()),
            listeners_open: Cell::new(0),
            early: RefCell::default(),
            to_control,
            house: Cell::new(None),
        }))
    }

    /// The plan that new requests are served by. A request keeps the one that it began with.
    pub fn plan(&self) -> Rc<ShardPlan> {
        self.plan.borrow().clone()
    }

    /// Logs a request, if its listener does.
    pub fn log(&self, listener: &Listener, record: &Record<'_>) {
        if let Some(AccessLog { path, format }) = &listener.access_log {
            let mut log = self.access_log.borrow_mut();
            let sink = log.sink(path);
            log.log(sink, *format, record);
        }
    }

    /// Something is kept from now on that has to be looked after: a connection, a log line.
    pub fn needs_housekeeping(&self) {
        if let Some(house) = self.house.take() {
            house.wake();
        }
    }

    /// How far the orderly end has come, if it has begun.
    pub fn drain(&self) -> Option<Drain> {
        self.drain.get()
    }

    /// Whether answers should say `Connection: close`.
    pub fn is_draining(&self) -> bool {
        self.drain.get().is_some()
    }

    /// Enters a session and its client's socket, so that a drain can wake or cut it. Leave with
    /// [`Shard::leave`] in the step that closes the socket.
    pub fn enter(&self, client: RawFd) -> usize {
        self.sessions.borrow_mut().insert(Entry { client, waker: None })
    }

    /// Tells how a session that has entered is woken.
    pub fn wake_by(&self, key: usize, waker: Waker) {
        self.sessions.borrow_mut()[key].waker = Some(waker);
    }

    /// A session has ended.
    pub fn leave(&self, key: usize) {
        self.sessions.borrow_mut().remove(key);
        self.look_again_if_draining();
    }

    /// A listener has emptied its queue and closed.
    pub fn listener_closed(&self) {
        self.listeners_open.set(self.listeners_open.get() - 1);
        self.look_again_if_draining();
    }

    /// Runs until the control thread has ended it.
    pub async fn run(self: Rc<Shard>, listeners: Vec<Listening>) {
        let bell = match self.agreement.bell().and_then(Socket::adopt) {
            Ok(bell) => bell,
            Err(error) => panic!("shard {}: cannot wait for messages: {error}", self.id),
        };
        let mut listeners = Some(listeners);
        net::spawn(self.clone().keep_house());
        net::spawn(parking::run(self.clone()));
        let mut timer = Timer::new(Nanos::now());
        let (mut closed, mut drained) = (false, false);
        loop {
            self.agreement.read(Nanos::now());
            while let Some(order) = self.agreement.next_order() {
                if !self.apply(order, &mut listeners) {
                    return;
                }
            }
            for cluster in self.agreement.closings() {
                self.plan().close_owed(cluster);
            }
            for (endpoint, generation) in self.agreement.overrides_applied() {
                self.tell(FromShard::OverrideApplied { endpoint, generation });
            }
            if !drained && self.drain.get() == Some(Drain::Cut) {
                // The sessions were woken: they end themselves, and say so in the log.
                net::yield_now().await;
                self.cut_off();
            }
            if !closed && self.drain.get() >= Some(Drain::Close) && self.listeners_open.get() == 0 {
                closed = true;
                self.tell(FromShard::Closed { shard: self.id });
            }
            if !drained && self.has_drained() {
                // It stays until all have: it may be the home of what the others still need.
                drained = true;
                self.access_log.borrow_mut().flush();
                self.tell(FromShard::Drained { shard: self.id });
            }
            self.agreement.send(Nanos::now());
            if let Some(due) = self.agreement.prepare_sleep() {
                timer.set(due, Nanos::now());
                self.sleep(&bell, &mut timer).await;
                self.agreement.wake_up();
            }
        }
    }

    /// Waits for a message, for the time to look, or for a session to say that something has
    /// changed.
    async fn sleep(&self, bell: &Socket, timer: &mut Timer) {
        let mut rung = std::pin::pin!(bell.readable());
        let mut first = true;
        std::future::poll_fn(|context| {
            let woken = !std::mem::replace(&mut first, false);
            if rung.as_mut().poll(context).is_ready() || woken {
                return Poll::Ready(());
            }
            self.agreement.main_sleeps(context.waker().clone());
            timer.poll_due(false, context)
        })
        .await;
        bell.emptied();
    }

    /// False when the shard has to end now.
    fn apply(self: &Rc<Shard>, message: ToShard, listeners: &mut Option<Vec<Listening>>) -> bool {
        match message {
            ToShard::Prepare(plan) => {
                let generation = plan.generation;
                if generation > self.plan().generation() {
                    self.agreement.prepare(&plan);
                    *self.prepared.borrow_mut() = Some(plan);
                }
                self.tell(FromShard::PlanPrepared { shard: self.id, generation });
            }
            ToShard::Activate { generation } => {
                let old = self.plan();
                let prepared = self.prepared.borrow_mut().take_if(|it| it.generation == generation);
                let Some(plan) = prepared else { return true };
                self.agreement.activate(&plan, Nanos::now());
                let new = ShardPlan::replacing(
                    &old,
                    plan,
                    &self.agreement,
                    &self.counters,
                    &mut self.rng.borrow_mut(),
                );
                *self.plan.borrow_mut() = Rc::new(new);
                if let Some(listeners) = listeners.take() {
                    for (index, listening) in listeners.into_iter().enumerate() {
                        self.start_listener(index, listening);
                    }
                    for accepted in self.early.take() {
                        self.take_over(accepted);
                    }
                }
                self.counters.plan_generation.set(generation as i64);
                self.tell(FromShard::PlanApplied { shard: self.id, generation });
            }
            ToShard::Override { endpoint, wanted, generation } => {
                // The control thread sends what it has prepared; it gives up by itself otherwise.
                if !self.agreement.override_to(endpoint, wanted, generation, Nanos::now()) {
                    tracing::warn!(shard = self.id, generation, "override of an unknown breaker");
                }
            }
            ToShard::Drain(step) if Some(step) > self.drain.get() => {
                self.drain.set(Some(step));
                if step == Drain::Close {
                    for client in self.parking.close_silent() {
                        session::start(self, client);
                    }
                }
                for (_, session) in self.sessions.borrow().iter() {
                    session.waker.iter().for_each(Waker::wake_by_ref);
                }
                for listener in self.listeners.borrow().iter() {
                    listener.wake();
                }
            }
            ToShard::Drain(_) => {}
            ToShard::StopNow => return false,
            ToShard::Accepted(accepted) if listeners.is_some() => {
                self.early.borrow_mut().push(accepted);
            }
            ToShard::Accepted(accepted) => self.take_over(accepted),
            ToShard::Peer { .. } | ToShard::Rate { .. } => {
                unreachable!("the agreement keeps these to itself")
            }
        }
        true
    }

    /// Time is up for those that did not end by themselves. What their clients have by now must not
    /// look complete: they get a reset.
    fn cut_off(&self) {
        for (_, session) in self.sessions.borrow().iter() {
            // SAFETY: a session leaves the register in the step in which its socket is closed.
            let client = unsafe { BorrowedFd::borrow_raw(session.client) };
            let _ = rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO));
        }
        for _ in 0..self.counters.requests_in_flight.get() {
            self.counters.refuse(Reason::DrainTimeout);
        }
    }

    /// Serves a connection that another shard has accepted.
    fn take_over(self: &Rc<Shard>, accepted: Accepted) {
        let listeners = self.listeners.borrow();
        let listener = listeners.iter().find(|state| state.index == accepted.listener);
        if let Some(listener) = listener {
            accept::admit(self, listener, accepted.socket, accepted.peer);
        }
        self.agreement.took_over(accepted.by);
    }

    fn start_listener(self: &Rc<Shard>, index: usize, listening: Listening) {
        match ListenerState::new(index, listening.socket) {
            Ok(state) => {
                let state = Rc::new(state);
                self.listeners.borrow_mut().push(state.clone());
                self.listeners_open.set(self.listeners_open.get() + 1);
                net::spawn(accept::run(self.clone(), state));
            }
            Err(error) => panic!("shard {}: cannot watch a listening socket: {error}", self.id),
        }
    }

    fn has_drained(&self) -> bool {
        match self.drain.get() {
            Some(Drain::Cut) => true,
            Some(Drain::Finish) => self.sessions.borrow().is_empty(),
            _ => false,
        }
    }

    fn look_again_if_draining(&self) {
        if self.is_draining() {
            self.agreement.wake_main();
        }
    }

    fn tell(&self, message: FromShard) {
        if self.to_control.send(message).is_err() {
            tracing::warn!(shard = self.id, "the control thread does not take messages");
        }
    }

    /// Closes stale connections, and hands finished log lines on. Sleeps where there are none: an
    /// idle shard is not woken.
    async fn keep_house(self: Rc<Shard>) {
        loop {
            std::future::poll_fn(|context| {
                if self.is_kept_busy() {
                    return Poll::Ready(());
                }
                self.house.set(Some(context.waker().clone()));
                Poll::Pending
            })
            .await;
            net::sleep(SWEEP_EVERY).await;
            let now = Nanos::now();
            self.plan().sweep(now);
            self.parking.sweep(now);
            self.access_log.borrow_mut().flush();
            self.counters.buffers_in_use.set(self.buffers.in_use() as i64);
        }
    }

    fn is_kept_busy(&self) -> bool {
        self.counters.upstream_idle.get() > 0
            || !self.parking.is_empty()
            || self.access_log.borrow().needs_flush()
            || self.counters.buffers_in_use.get() != self.buffers.in_use() as i64
    }
}

/// A session in the shard's register.
struct Entry {
    client: RawFd,
    /// `None` until its task has run for the first time.
    waker: Option<Waker>,
}

/// A bound socket, and what it is for.
pub struct Listening {
    /// Bound and listening, non-blocking, one of a SO_REUSEPORT group.
    pub socket: std::os::fd::OwnedFd,
}

/// A seed that nobody can guess.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::time::SystemTime::now())
}

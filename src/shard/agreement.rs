//! One shard's part in the agreement with the others, with what the pure machines lack: the
//! mailbox, the sessions that wait, and somebody to wake.
//!
//! ```text
//! session: choose, admit ---> Reconciler <--- receive: other shards' messages
//!    ^                            |
//!    |  Admitted, Elsewhere       | outgoing
//!    '-------- waits <------------+----------> main task ---> the others' mailboxes
//! ```
//!
//! Sessions call in and get their answer at once, or wait. The shard's main task carries the
//! messages: it is woken when there is something to send, or when the time has come to look.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use super::breakers::Breakers;
use super::message::{Accepted, ToShard};
use super::rates::{Rates, TokenWait};
use super::seed;
use super::transit::Transit;
use crate::breaker::{Admits, Outcome, Override, Pass, PermitUse};
use crate::mailbox::{Inbox, Sender};
use crate::metrics::ShardCounters;
use crate::plan::Plan;
use crate::rate::{Key, RateLimitId, Taken};
use crate::reconcile::{
    ClusterId, ClusterSlot, EndpointId, EndpointSlot, Event, FLUSH_INTERVAL, Kind, Message,
    Reconciler, Refusal, RetryRefusal, ShardId, Ticket, Waiter, handover,
};
use crate::time::Nanos;

/// The runtime's timers count whole milliseconds.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

/// A late turn of the loop is remembered for so long.
const LAG_KEPT_FOR: Duration = Duration::from_secs(1);

/// One shard's part.
pub struct Agreement {
    reconciler: RefCell<Reconciler>,
    inbox: RefCell<Inbox<ToShard>>,
    /// The others' mailboxes, by number; none at its own place.
    peers: Vec<Option<Sender<ToShard>>>,
    id: ShardId,
    /// Read from the mailbox, and for the main task.
    orders: RefCell<VecDeque<ToShard>>,
    waits: RefCell<Slab<Entry>>,
    /// Those among them that wait for a connection.
    connection_waits: Cell<u32>,
    /// Clusters of which idle connections have to be closed.
    closings: RefCell<Vec<ClusterSlot>>,
    /// Some may be owed: the question is only worth asking then.
    may_owe: Cell<bool>,
    breakers: Breakers,
    rates: Rates,
    /// Overrides that every shard has, and that the control thread does not know of.
    overrides: RefCell<Vec<(EndpointId, u64)>>,
    /// Wakes the main task.
    main: Cell<Option<Waker>>,
    /// When the main task looks by itself.
    armed: Cell<Nanos>,
    /// The worst lag of the last second, and since when.
    lag: Cell<(Duration, Nanos)>,
    transit: Arc<Transit>,
    counters: Arc<ShardCounters>,
    /// Of all shards, by number.
    all_counters: Vec<Arc<ShardCounters>>,
}

/// Somebody who waits.
struct Entry {
    waker: Option<Waker>,
    waiter: Option<Waiter>,
    /// To there, if it waits for a connection.
    connection: Option<EndpointSlot>,
    /// Of there, if it waits for a retry.
    retry: Option<ClusterSlot>,
    since: Nanos,
    news: Option<News>,
}

/// What a wait has brought.
#[derive(Debug)]
pub enum News {
    /// The request may go there.
    Admitted(Ticket),
    /// The connection may be opened; it counts already.
    Connect(EndpointSlot),
    /// The retry may go; it counts already.
    Retry(ClusterSlot),
    /// Nothing: choose again.
    Elsewhere,
}

/// What to wait for.
#[derive(Debug, Clone, Copy)]
pub enum For {
    /// A place for a request.
    Request(EndpointSlot),
    /// A permit to try a half-open endpoint, or the breaker of a route.
    Permit(EndpointSlot),
    /// A place for a connection.
    Connection(EndpointSlot),
}

impl Agreement {
    /// Without a plan. `peers`: the others' mailboxes by number, and none at `id`. `all_counters`:
    /// of all shards, by number.
    pub fn new(
        id: usize,
        inbox: Inbox<ToShard>,
        peers: Vec<Option<Sender<ToShard>>>,
        transit: Arc<Transit>,
        all_counters: Vec<Arc<ShardCounters>>,
    ) -> Agreement {
        let counters = all_counters[id].clone();
        let id = ShardId(id as u16);
        Agreement {
            reconciler: RefCell::new(Reconciler::new(id, peers.len() as u16).seeded(seed())),
            inbox: RefCell::new(inbox),
            peers,
            id,
            orders: RefCell::default(),
            waits: RefCell::default(),
            connection_waits: Cell::new(0),
            closings: RefCell::default(),
            may_owe: Cell::new(false),
            breakers: Breakers::default(),
            rates: Rates::new(id, all_counters.len(), counters.clone()),
            overrides: RefCell::default(),
            main: Cell::new(None),
            armed: Cell::new(Nanos::NEVER),
            lag: Cell::new((Duration::ZERO, Nanos::now())),
            transit,
            counters,
            all_counters,
        }
    }

    /// This shard's number.
    pub fn id(&self) -> usize {
        self.id.0.into()
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.peers.len()
    }

    /// This one's number.
    pub fn shard(&self) -> usize {
        usize::from(self.id.0)
    }

    /// What this shard counts.
    pub fn counters(&self) -> &Arc<ShardCounters> {
        &self.counters
    }

    // ---- The main task ------------------------------------------------------------------------

    /// Wakes the main task, if it sleeps.
    pub fn wake_main(&self) {
        if let Some(main) = self.main.take() {
            main.wake();
        }
    }

    /// The main task sleeps: it looks again at `armed`, or when it is woken.
    pub fn main_sleeps(&self, waker: Waker) {
        self.main.set(Some(waker));
    }

    /// The next message of the control thread.
    pub fn next_order(&self) -> Option<ToShard> {
        self.orders.borrow_mut().pop_front()
    }

    /// A descriptor that is readable when the mailbox has news and nobody looks.
    ///
    /// # Errors
    /// Where there is no descriptor left.
    pub fn bell(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        self.inbox.borrow().fd().try_clone_to_owned()
    }

    /// See [`Inbox::prepare_sleep`]. `Some`: when to look by oneself.
    pub fn prepare_sleep(&self) -> Option<Nanos> {
        if !self.orders.borrow().is_empty()
            || !self.closings.borrow().is_empty()
            || !self.inbox.borrow().prepare_sleep()
        {
            return None;
        }
        let due = self.reconciler.borrow().next_due().min(self.rates.due());
        self.armed.set(due);
        Some(due)
    }

    /// See [`Inbox::wake_up`].
    pub fn wake_up(&self) {
        self.note_lag(Nanos::now());
        self.armed.set(Nanos::NEVER);
        self.main.set(None);
        self.inbox.borrow().wake_up();
    }

    /// Remembers how late this turn of the loop is, and forgets what was long ago.
    fn note_lag(&self, now: Nanos) {
        let lag = now.since(self.armed.get());
        let (worst, since) = self.lag.get();
        let is_old = now.since(since) > LAG_KEPT_FOR;
        if is_old || lag > worst {
            self.lag.set((lag, if is_old { now } else { since }));
            self.counters.loop_lag_ns.set(lag.as_nanos() as i64);
        }
    }

    /// Reads what has arrived, and does what time has brought. Before the first admission of a
    /// turn, so that it knows what the others know.
    #[inline(always)]
    pub fn look(&self, now: Nanos) {
        if self.has_mail() || self.reconciler.borrow().next_due() <= now || self.rates.due() <= now
        {
            self.read(now);
        }
    }

    /// Whether another shard has said something. The control thread, which has the first queue, can
    /// wait for the main task.
    #[inline(always)]
    fn has_mail(&self) -> bool {
        self.inbox.borrow().has_more_than_of_first()
    }

    /// The same, whether there seems to be anything or not.
    pub fn read(&self, now: Nanos) {
        self.read_mail(now);
        self.reconciler.borrow_mut().turn(now);
        self.rates.turn(now);
        self.follow_up();
    }

    fn read_mail(&self, now: Nanos) {
        // A session may be the first to read after a late turn.
        self.note_lag(now);
        let mut inbox = self.inbox.borrow_mut();
        let mut reconciler = self.reconciler.borrow_mut();
        reconciler.set_age_bound(self.age_bound());
        while let Some(message) = inbox.pop() {
            match message {
                ToShard::Peer { from, message } => reconciler.receive(from, message, now),
                ToShard::Rate { from, message } => self.rates.receive(from, message, now),
                order => {
                    self.orders.borrow_mut().push_back(order);
                    self.wake_main();
                }
            }
        }
        let ages = reconciler.ages();
        self.counters.view_ages.publish(ages);
        self.counters.view_age_violations.set(ages.late);
    }

    /// How old a decision may be when it is applied here: what can wait is sent with the next
    /// flush; timers are rounded to milliseconds, on either side; and loops may be late.
    fn age_bound(&self) -> Duration {
        let lags = self.all_counters.iter().map(|counters| counters.loop_lag_ns.get());
        let (worst, own) = (lags.max().unwrap_or(0), self.counters.loop_lag_ns.get());
        let lag = Duration::from_nanos(worst.saturating_add(own).max(0) as u64);
        FLUSH_INTERVAL + 2 * TIMER_GRAIN + lag
    }

    /// Sends what there is to say to the others. What does not fit is sent again later.
    pub fn send(&self, now: Nanos) {
        let mut reconciler = self.reconciler.borrow_mut();
        while let Some((to, message)) = reconciler.outgoing(now) {
            let Message { wakes, .. } = message;
            self.post(to, ToShard::Peer { from: self.id, message }, wakes);
        }
        drop(reconciler);
        while let Some((to, message)) = self.rates.outgoing() {
            self.post(to, ToShard::Rate { from: self.id, message }, message.wakes);
        }
    }

    fn post(&self, to: ShardId, letter: ToShard, wakes: bool) {
        let Some(Some(peer)) = self.peers.get(usize::from(to.0)) else { return };
        self.counters.messages_sent.add(1);
        let sent = if wakes {
            self.counters.messages_waking.add(1);
            peer.send(letter)
        } else {
            peer.send_quietly(letter)
        };
        if sent.is_err() {
            self.counters.messages_dropped.add(1);
        }
    }

    /// Which shard should serve a connection that was just accepted here; `None`: this one.
    pub fn taker(&self) -> Option<usize> {
        let own = usize::from(self.id.0);
        if self.all_counters.len() == 1 {
            return None;
        }
        let open = |counters: &Arc<ShardCounters>| {
            u32::try_from(counters.connections_open.get()).unwrap_or(0)
        };
        let mut connections: Vec<u32> = self.all_counters.iter().map(open).collect();
        handover(&connections, own)?;
        for (shard, count) in connections.iter_mut().enumerate() {
            *count = count.saturating_add(self.transit.to(shard) as u32);
        }
        handover(&connections, own)
    }

    /// Hands a connection to another shard; gives it back where there is no room.
    ///
    /// # Errors
    /// The connection.
    pub fn hand_over(&self, to: usize, accepted: Accepted) -> Result<(), Accepted> {
        let Some(Some(peer)) = self.peers.get(to) else { return Err(accepted) };
        if peer.is_full() {
            return Err(accepted);
        }
        self.transit.hand(usize::from(self.id.0), to);
        self.counters.connections_handed_over.add(1);
        // There is room: nobody else sends by this queue.
        let _ = peer.send(ToShard::Accepted(accepted));
        Ok(())
    }

    /// A connection that another shard has handed over is counted here.
    pub fn took_over(&self, by: usize) {
        self.transit.take(by, usize::from(self.id.0));
        self.counters.connections_taken_over.add(1);
    }

    /// Clusters of which idle connections have to be closed, since the last call.
    pub fn closings(&self) -> Vec<ClusterSlot> {
        if self.may_owe.get() {
            self.may_owe.set(self.reconciler.borrow().owes_connections());
        }
        self.closings.take()
    }

    /// Overrides that every shard has applied, since the last call: whose, and which.
    pub fn overrides_applied(&self) -> Vec<(EndpointId, u64)> {
        self.overrides.take()
    }

    /// After each call that may have brought news: tells the sessions, and wakes the main task.
    fn follow_up(&self) {
        loop {
            let event = self.reconciler.borrow_mut().next_event();
            let Some(event) = event else { break };
            match event {
                Event::Admitted { token, ticket } => self.tell(token, News::Admitted(ticket)),
                Event::Connect { token, endpoint } => self.tell(token, News::Connect(endpoint)),
                Event::Elsewhere { token } => self.tell(token, News::Elsewhere),
                Event::CloseIdle { cluster } => {
                    self.may_owe.set(true);
                    let mut closings = self.closings.borrow_mut();
                    if !closings.contains(&cluster) {
                        closings.push(cluster);
                    }
                    self.wake_main();
                }
                Event::Transition { endpoint, epoch, phase } => {
                    self.breakers.changed(endpoint, phase, epoch);
                    self.counters.breaker_transitions.add(1);
                }
                Event::TripRefused { endpoint } => {
                    self.breakers.trip_refused(endpoint);
                    self.counters.breaker_trips_refused.add(1);
                }
                Event::Concurrency { cluster, limit, min_rtt_ns, gradient_milli, is_measuring } => {
                    self.breakers.concurrency(cluster, |record| {
                        record.publish(limit, min_rtt_ns, gradient_milli, is_measuring);
                    });
                }
                Event::OverrideApplied { endpoint, generation } => {
                    self.overrides.borrow_mut().push((endpoint, generation));
                    self.wake_main();
                }
                Event::RetryGranted { token } => {
                    let cluster =
                        self.waits.borrow().get(token as usize).and_then(|entry| entry.retry);
                    if let Some(cluster) = cluster {
                        self.tell(token, News::Retry(cluster));
                    }
                }
            }
        }
        let armed = self.armed.get();
        if self.reconciler.borrow().has_news(armed) || self.rates.has_news(armed) {
            self.wake_main();
        }
    }

    fn tell(&self, token: u64, news: News) {
        let mut waits = self.waits.borrow_mut();
        // Tokens are keys, and leave with their waiters: it is there.
        let Some(entry) = waits.get_mut(token as usize) else { return };
        entry.news = Some(news);
        if let Some(waker) = entry.waker.take() {
            waker.wake();
        }
    }

    // ---- Plans --------------------------------------------------------------------------------

    /// Gets to know who is new.
    pub fn prepare(&self, plan: &Arc<Plan>) {
        self.reconciler.borrow_mut().prepare(&plan.agreement);
        self.breakers.prepare(plan);
        self.rates.prepare(plan);
    }

    /// The prepared plan holds.
    pub fn activate(&self, plan: &Plan, now: Nanos) {
        self.reconciler.borrow_mut().activate(plan.generation, now);
        self.rates.activate(plan, now);
        self.follow_up();
        self.breakers.activate(plan.generation);
    }

    /// Where an endpoint, or the breaker of a route, is kept. Of an activated plan, all are.
    pub fn slot(&self, id: EndpointId) -> EndpointSlot {
        self.reconciler.borrow().endpoint(id).expect("the plan was prepared")
    }

    /// The same, where it may have left with a reload.
    pub fn endpoint(&self, id: EndpointId) -> Option<EndpointSlot> {
        self.reconciler.borrow().endpoint(id)
    }

    /// Whether this shard has no place left for a connection to this cluster.
    pub fn lacks_connections(&self, cluster: ClusterSlot) -> bool {
        let own = self.reconciler.borrow();
        own.cluster_purse(Kind::Connections, cluster).is_some_and(|purse| purse.free() == 0)
    }

    /// Where a cluster is kept.
    pub fn cluster_slot(&self, id: ClusterId) -> ClusterSlot {
        self.reconciler.borrow().cluster(id).expect("the plan was prepared")
    }

    /// The same, where it may have left with a reload.
    pub fn cluster(&self, id: ClusterId) -> Option<ClusterSlot> {
        self.reconciler.borrow().cluster(id)
    }

    // ---- Operators ----------------------------------------------------------------------------

    /// See [`Reconciler::override_to`].
    pub fn override_to(
        &self,
        endpoint: EndpointId,
        wanted: Override,
        generation: u64,
        now: Nanos,
    ) -> bool {
        let is_here = self.reconciler.borrow_mut().override_to(endpoint, wanted, generation, now);
        self.follow_up();
        is_here
    }

    // ---- Requests -----------------------------------------------------------------------------

    /// What requests ask. Not to be kept beyond a step.
    #[inline]
    pub fn reconciler(&self) -> RefMut<'_, Reconciler> {
        self.reconciler.borrow_mut()
    }

    /// Whether a request could go there now, or wait for no more than a place.
    pub fn admits(&self, slot: EndpointSlot, now: Nanos) -> bool {
        matches!(self.reconciler.borrow().admits(slot, now, 0), Admits::Yes | Admits::IfAlone)
    }

    /// When the probe that was just admitted there is ended.
    pub fn probe_end(&self, slot: EndpointSlot) -> Option<Nanos> {
        match self.reconciler.borrow().view(slot)?.permit()? {
            (permit, PermitUse::Sent) => Some(permit.end),
            (_, PermitUse::Unused) => None,
        }
    }

    /// A request has ended.
    #[inline]
    pub fn complete(&self, ticket: Ticket, outcome: Outcome, latency: Duration, now: Nanos) {
        let mut reconciler = self.reconciler.borrow_mut();
        reconciler.complete(ticket, outcome, latency, now);
        if reconciler.has_news(self.armed.get()) {
            drop(reconciler);
            self.follow_up();
        }
    }

    /// A request was admitted, but nothing was sent.
    pub fn give_back(&self, ticket: Ticket, now: Nanos) {
        self.reconciler.borrow_mut().give_back(ticket, now);
        self.follow_up();
    }

    /// See [`Reconciler::settle_probe`].
    pub fn settle_probe(
        &self,
        ticket: &mut Ticket,
        outcome: Outcome,
        latency: Duration,
        now: Nanos,
    ) {
        self.reconciler.borrow_mut().settle_probe(ticket, outcome, latency, now);
        self.follow_up();
    }

    /// See [`Reconciler::enter_route`].
    ///
    /// # Errors
    /// Why not.
    pub fn enter_route(&self, route: EndpointSlot, now: Nanos) -> Result<Pass, Refusal> {
        self.reconciler.borrow_mut().enter_route(route, now)
    }

    /// See [`Reconciler::leave_route`].
    pub fn leave_route(
        &self,
        route: EndpointSlot,
        pass: Pass,
        outcome: Option<(Outcome, Duration)>,
        now: Nanos,
    ) {
        self.reconciler.borrow_mut().leave_route(route, pass, outcome, now);
        self.follow_up();
    }

    // ---- Connections --------------------------------------------------------------------------

    /// Counts a new connection; `false` where there is no place for it.
    pub fn open_connection(&self, slot: EndpointSlot) -> bool {
        self.reconciler.borrow_mut().open_connection(slot).is_ok()
    }

    /// A connection is closed.
    pub fn close_connection(&self, slot: EndpointSlot) {
        self.reconciler.borrow_mut().close_connection(slot, Nanos::now());
        self.follow_up();
    }

    /// Whether an idle connection should be closed for somebody else.
    #[inline]
    pub fn owes_connection(&self, slot: EndpointSlot) -> bool {
        self.may_owe.get() && self.reconciler.borrow().connections_owed(slot) > 0
    }

    /// Whether somebody here waits for a connection to this endpoint.
    #[inline]
    pub fn awaits_connection(&self, slot: EndpointSlot) -> bool {
        self.connection_waits.get() > 0
            && self.waits.borrow().iter().any(|(_, entry)| entry.connection == Some(slot))
    }

    /// A connection to this endpoint has become idle: who waits for one may look.
    #[inline]
    pub fn connection_is_idle(&self, slot: EndpointSlot) {
        if self.connection_waits.get() > 0 {
            self.tell_of_idle(slot);
        }
    }

    fn tell_of_idle(&self, slot: EndpointSlot) {
        let mut waits = self.waits.borrow_mut();
        let waiting = waits.iter_mut().map(|(_, entry)| entry);
        let waiting =
            waiting.filter(|entry| entry.connection == Some(slot) && entry.news.is_none());
        let Some(entry) = waiting.min_by_key(|entry| entry.since) else { return };
        let waiter = entry.waiter.take();
        entry.news = Some(News::Elsewhere);
        if let Some(waker) = entry.waker.take() {
            waker.wake();
        }
        drop(waits);
        if let Some(waiter) = waiter {
            self.reconciler.borrow_mut().cancel(waiter, Nanos::now());
            self.follow_up();
        }
    }

    // ---- Retries ------------------------------------------------------------------------------

    /// A first attempt: it pays for a part of a retry.
    #[inline]
    pub fn deposit(&self, slot: EndpointSlot, now: Nanos) {
        let mut reconciler = self.reconciler.borrow_mut();
        reconciler.deposit(slot, now);
        if reconciler.has_news(self.armed.get()) {
            drop(reconciler);
            self.follow_up();
        }
    }

    /// See [`Reconciler::begin_retry`].
    ///
    /// # Errors
    /// Why not.
    pub fn begin_retry(&self, cluster: ClusterSlot, now: Nanos) -> Result<(), RetryRefusal> {
        self.reconciler.borrow_mut().begin_retry(cluster, now)
    }

    /// Waits for what a retry needs.
    pub fn wait_retry(&self, cluster: ClusterSlot, now: Nanos) -> Wait<'_> {
        let entry = Entry {
            waker: None,
            waiter: None,
            connection: None,
            retry: Some(cluster),
            since: now,
            news: None,
        };
        let key = self.waits.borrow_mut().insert(entry);
        let waiter = self.reconciler.borrow_mut().wait_retry(cluster, key as u64, now);
        self.waits.borrow_mut()[key].waiter = Some(waiter);
        self.follow_up();
        Wait { agreement: self, key: Some(key) }
    }

    /// A retry is over.
    pub fn end_retry(&self, cluster: ClusterSlot) {
        self.reconciler.borrow_mut().end_retry(cluster, Nanos::now());
        self.follow_up();
    }

    // ---- Rate limits --------------------------------------------------------------------------

    /// What counts them.
    pub fn rates(&self) -> &Rates {
        &self.rates
    }

    /// See [`crate::rate::RateLimiter::take`].
    #[inline]
    pub fn take_token(&self, limit: RateLimitId, key: Key, holds: bool, now: Nanos) -> Taken {
        let taken = self.rates.take(limit, key, holds, now);
        if self.rates.has_news(self.armed.get()) {
            self.wake_main();
        }
        taken
    }

    /// See [`crate::rate::RateLimiter::release`].
    pub fn release_token(
        &self,
        limit: RateLimitId,
        key: Key,
        voucher: u64,
        is_spent: bool,
        now: Nanos,
    ) {
        self.rates.release(limit, key, voucher, is_spent, now);
        if self.rates.has_news(self.armed.get()) {
            self.wake_main();
        }
    }

    /// Waits for a token of another shard; `None` where there is no room for one more key.
    pub fn wait_token(
        &self,
        limit: RateLimitId,
        key: Key,
        holds: bool,
        now: Nanos,
    ) -> Option<TokenWait<'_>> {
        let wait = self.rates.wait(limit, key, holds, now);
        if self.rates.has_news(self.armed.get()) {
            self.wake_main();
        }
        wait
    }

    // ---- Waiting ------------------------------------------------------------------------------

    /// Waits, in turn; a probe however many wait already.
    ///
    /// # Errors
    /// Why that is of no use.
    pub fn wait(&self, what: For, is_probe: bool, now: Nanos) -> Result<Wait<'_>, Refusal> {
        self.line_up(what, now, |reconciler, token| match what {
            For::Request(slot) => reconciler.wait(slot, token, is_probe, now),
            For::Permit(slot) => reconciler.wait_permit(slot, token, is_probe, now),
            For::Connection(slot) => reconciler.wait_connection(slot, token, is_probe, now),
        })
    }

    /// Where nobody may wait: asks the other shards, which takes milliseconds.
    ///
    /// # Errors
    /// Why that is of no use.
    pub fn ask(&self, what: For, now: Nanos) -> Result<Wait<'_>, Refusal> {
        self.line_up(what, now, |reconciler, token| match what {
            For::Request(slot) => reconciler.ask(Kind::Requests, slot, token, now),
            For::Permit(slot) => reconciler.wait_permit(slot, token, false, now),
            For::Connection(slot) => reconciler.ask(Kind::Connections, slot, token, now),
        })
    }

    fn line_up(
        &self,
        what: For,
        now: Nanos,
        join: impl FnOnce(&mut Reconciler, u64) -> Result<Waiter, Refusal>,
    ) -> Result<Wait<'_>, Refusal> {
        let connection = match what {
            For::Connection(slot) => Some(slot),
            For::Request(_) | For::Permit(_) => None,
        };
        let entry =
            Entry { waker: None, waiter: None, connection, retry: None, since: now, news: None };
        let key = self.waits.borrow_mut().insert(entry);
        let waiter = join(&mut self.reconciler.borrow_mut(), key as u64);
        match waiter {
            Ok(waiter) => self.waits.borrow_mut()[key].waiter = Some(waiter),
            Err(refusal) => {
                self.waits.borrow_mut().remove(key);
                return Err(refusal);
            }
        }
        self.connection_waits.set(self.connection_waits.get() + u32::from(connection.is_some()));
        self.counters.pending.add(1);
        self.follow_up();
        Ok(Wait { agreement: self, key: Some(key) })
    }

    fn leave(&self, key: usize) -> Entry {
        let entry = self.waits.borrow_mut().remove(key);
        let of_connections = u32::from(entry.connection.is_some());
        self.connection_waits.set(self.connection_waits.get() - of_connections);
        self.counters.pending.sub(i64::from(entry.retry.is_none()));
        entry
    }
}

/// Waits; dropping it leaves the queue, and gives back what came too late.
pub struct Wait<'a> {
    agreement: &'a Agreement,
    key: Option<usize>,
}

impl Wait<'_> {
    /// Leaves the queue, but the ask for a permit stands: it is for the next request that comes.
    pub fn step_aside(mut self) {
        let Some(key) = self.key else { return };
        let waiter = match &self.agreement.waits.borrow()[key] {
            Entry { news: None, waiter: Some(waiter), .. } => *waiter,
            _ => return,
        };
        self.key = None;
        self.agreement.leave(key);
        self.agreement.reconciler.borrow_mut().step_aside(waiter, Nanos::now());
        self.agreement.follow_up();
    }
}

impl Future for Wait<'_> {
    type Output = News;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<News> {
        let key = self.key.expect("polled after its end");
        let mut waits = self.agreement.waits.borrow_mut();
        let entry = &mut waits[key];
        let Some(news) = entry.news.take() else {
            entry.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        drop(waits);
        self.key = None;
        self.agreement.leave(key);
        Poll::Ready(news)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let Entry { waiter, news, connection, .. } = self.agreement.leave(key);
        let now = Nanos::now();
        match (news, waiter) {
            (Some(News::Admitted(ticket)), _) => self.agreement.give_back(ticket, now),
            (Some(News::Connect(slot)), _) => self.agreement.close_connection(slot),
            (Some(News::Retry(cluster)), _) => self.agreement.end_retry(cluster),
            // What it was told of is for the next.
            (Some(News::Elsewhere), _) => {
                connection.into_iter().for_each(|slot| self.agreement.connection_is_idle(slot));
            }
            (None, Some(waiter)) => {
                self.agreement.reconciler.borrow_mut().cancel(waiter, now);
                self.agreement.follow_up();
            }
            _ => {}
        }
    }
}

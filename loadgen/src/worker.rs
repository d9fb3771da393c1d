//! One core, many connections: sends what is due, reads what comes back, writes it down.
//!
//! ```text
//! schedule --due--> pump --idle connection--> send(2)
//!                    |                          |
//!                    `-- none idle: it waits    v
//!                        in the schedule     readable -> recv(2) -> answer -> record
//!                             ^                                        |
//!                             `------ a connection is free again <-----'
//! ```
//!
//! One task waits for connections that have something to read; one for each connection opens it and
//! opens it again; one for each address (`pump`) waits for the next due time; the main task keeps
//! house: timeouts, seconds, the end. Started by `run`, one thread each. Workers share nothing while
//! they run but a start time and a stop flag.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::task::{Poll, Waker};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::answer::{Answer, HeadCache, Reader};
use crate::cpu::Usage;
use crate::net::{self, Alarm, Edge, Socket, Watch};
use crate::plan::{Load, Plan};
use crate::random::Random;
use crate::record::{Counts, Failure, Interval, LATE_NANOS, Recorder};
use crate::schedule::{Arrivals, Schedule, quota};
use crate::target::{HashWanted, Target};

/// Read at once, in bytes; also the largest head.
const READ_BYTES: usize = 64 * 1024;

/// A body with more than this to come is dropped in the kernel, uncopied, if nobody hashes it.
const DROP_BYTES_MIN: u64 = 16 * 1024;

/// Connections opened at once before the start: a burst would overflow the target's accept queue.
const CONNECT_WAVE: usize = 64;

/// Pause before another try to connect; doubles up to [`RECONNECT_PAUSE_MAX`].
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// The longest pause between tries.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(500);

/// How often the house is kept, at least. Rarely, since a wake-up costs as much as a request.
const TICK: Duration = Duration::from_millis(50);

/// How often at the end, while the last answers come in.
const LAST_TICK: Duration = Duration::from_millis(2);

/// How long the end waits for connections to close.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// A look after the schedule when no connection was free, in case none frees, and to see whether this
/// thread still keeps time: nanoseconds.
const BACKLOG_LOOK: u64 = 5_000_000;

/// What is answered so soon after the end belongs to the run's last second: nanoseconds.
const LAST_ANSWERS: u64 = 100_000_000;

const SECOND: u64 = 1_000_000_000;

/// How `run` steers its workers.
#[derive(Debug, Default)]
pub struct Control {
    /// CLOCK_MONOTONIC nanoseconds; zero means: do not start, go home.
    pub start: AtomicU64,
    /// Stop as soon as you can; what is under way does not count.
    pub stop: Arc<AtomicBool>,
}

/// What a worker tells `run`.
#[derive(Debug)]
pub enum Told {
    /// Before the start.
    Ready {
        /// Of each lane.
        doors: Vec<Door>,
        /// `io_uring` or `epoll`.
        driver: &'static str,
    },
    /// It cannot even begin.
    Stuck(io::Error),
    /// A second has passed.
    Second(Box<Interval>),
    /// The end.
    Done(Box<Totals>),
}

/// What the first tries to connect to an address came to.
#[derive(Debug, Default)]
pub struct Door {
    /// Connections that stand.
    pub connected: usize,
    /// Why the last one that does not, does not.
    pub refused: Option<io::Error>,
}

/// A worker's whole run.
#[derive(Debug)]
pub struct Totals {
    /// Counts.
    pub counts: Counts,
    /// How late requests left for no lack of a connection.
    pub lateness: Histogram<u64>,
    /// The last answer, in nanoseconds from the start.
    pub last: u64,
    /// Its thread's CPU from start to end.
    pub usage: Usage,
    /// From start to end, in nanoseconds.
    pub wall: u64,
}

/// Runs worker `index` to its end on the calling thread.
pub fn run(
    plan: Arc<Plan>,
    index: usize,
    bell: OwnedFd,
    control: Arc<Control>,
    tell: Sender<Told>,
) {
    let mut runtime = match net::Runtime::new(plan.driver) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = tell.send(Told::Stuck(error));
            return;
        }
    };
    let driver = runtime.name();
    runtime.block_on(async move {
        match Worker::new(plan, index, control) {
            Ok(worker) => worker.work(bell, driver, tell).await,
            Err(error) => {
                let _ = tell.send(Told::Stuck(error));
            }
        }
    });
}

struct Worker {
    plan: Arc<Plan>,
    control: Arc<Control>,
    state: RefCell<State>,
    /// For each slot: its connection was lost, or, without keep-alive, there is work.
    wakes: Vec<Wake>,
    /// Connections with keep-alive.
    watch: Watch,
    /// Slots whose first try to connect has ended.
    settled: Cell<usize>,
    /// For each lane why the last connection that could not be had could not.
    refused: RefCell<Vec<Option<io::Error>>>,
    /// Connection tasks that still run.
    tasks: Cell<usize>,
}

struct State {
    plan: Arc<Plan>,
    lanes: Vec<LaneState>,
    slots: Vec<Slot>,
    recorder: Recorder,
    caches: Vec<HeadCache>,
    /// The hash of each target's first answer.
    hashes: Vec<Option<u64>>,
    random: Random,
    buffer: Vec<u8>,
    gathered: Vec<u8>,
    running: bool,
    ended: bool,
    /// These four in CLOCK_MONOTONIC nanoseconds.
    start: u64,
    warm: u64,
    end: u64,
    last: u64,
    in_flight: usize,
    connected: usize,
}

struct LaneState {
    pace: Pace,
    targets: Vec<usize>,
    /// Running sums of weights; empty for a single target.
    weights: Vec<u64>,
    /// Slots with room for a request. May name a slot twice or in vain: `Slot::idle` decides.
    idle: VecDeque<usize>,
    idle_count: usize,
    alarm: Rc<Alarm>,
    /// The alarm is set to the next due time; else to a look after the backlog.
    armed: bool,
    /// When the alarm is to ring, or when it was set if that had passed.
    wake_at: u64,
    /// What was due then waited because this thread did not run, not for a connection.
    stall: Range<u64>,
}

enum Pace {
    Open(Box<Schedule>),
    /// Requests left after the warm-up.
    Closed(u64),
}

#[derive(Default)]
struct Slot {
    lane: usize,
    socket: Option<Rc<Socket>>,
    flights: VecDeque<Flight>,
    reader: Reader,
    carry: Vec<u8>,
    unsent: Option<Unsent>,
    idle: bool,
    /// A request that waits for its own connection.
    assigned: Option<Flight>,
    /// Answers on this connection.
    answered: u64,
}

/// A request on its way.
#[derive(Debug, Clone, Copy)]
struct Flight {
    due: u64,
    sent: u64,
    target: usize,
}

/// What the socket did not take.
struct Unsent {
    bytes: Arc<[u8]>,
    at: usize,
}

/// What became of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// There may be more to read.
    More,
    /// A short read: nothing is left but, perhaps, the end.
    Short,
    /// Nothing to read.
    Empty,
    Lost,
}

/// Wakes one task from another on the same thread.
#[derive(Default)]
struct Wake {
    rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Wake {
    fn ring(&self) {
        self.rung.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn rang(&self) {
        poll_fn(|context| {
            if self.rung.replace(false) {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Worker {
    fn new(plan: Arc<Plan>, index: usize, control: Arc<Control>) -> io::Result<Rc<Self>> {
        let (mut lanes, mut slots) = (Vec::new(), Vec::new());
        let seed = plan.seed.wrapping_mul(1_000_003).wrapping_add(index as u64);
        let mut counts_left = plan.count;
        for (number, lane) in plan.lanes.iter().enumerate() {
            // The last lane takes what rounding left.
            let count = match (plan.count, counts_left) {
                (Some(count), Some(left)) if number + 1 < plan.lanes.len() => {
                    let here = ((count as f64 * lane.share).round() as u64).min(left);
                    counts_left = Some(left - here);
                    Some(here)
                }
                (_, left) => left,
            };
            let (connections, part) = lane.part(index, plan.threads, count);
            let pace = match &plan.load {
                Load::Closed => Pace::Closed(match part.count {
                    _ if connections == 0 => 0,
                    None => u64::MAX,
                    Some(count) => quota(count, part.index, part.of),
                }),
                Load::Open { .. } if connections == 0 => Pace::Open(Box::new(Schedule::new(
                    &[],
                    Arrivals::Constant,
                    part,
                    0,
                    Duration::ZERO,
                ))),
                Load::Open { phases, arrivals } => {
                    let seed = seed.wrapping_add(1_000_000_007 * number as u64);
                    Pace::Open(Box::new(Schedule::new(phases, *arrivals, part, seed, plan.warmup)))
                }
            };
            let mut sum = 0_u64;
            let weights = lane.targets.iter().map(|&target| {
                sum += u64::from(plan.targets[target].weight);
                sum
            });
            lanes.push(LaneState {
                pace,
                weights: if lane.targets.len() > 1 { weights.collect() } else { Vec::new() },
                targets: lane.targets.clone(),
                idle: VecDeque::with_capacity(connections),
                idle_count: 0,
                alarm: Rc::new(Alarm::new()?),
                armed: false,
                wake_at: u64::MAX,
                stall: 0..0,
            });
            slots.extend((0..connections).map(|_| Slot { lane: number, ..Slot::default() }));
        }
        let open_loop = matches!(plan.load, Load::Open { .. });
        let state = State {
            recorder: Recorder::new(plan.targets.len(), open_loop),
            caches: plan.targets.iter().map(|_| HeadCache::default()).collect(),
            hashes: vec![None; plan.targets.len()],
            random: Random::new(seed),
            buffer: vec![0; READ_BYTES],
            gathered: Vec::new(),
            running: false,
            ended: false,
            start: 0,
            warm: 0,
            end: u64::MAX,
            last: 0,
            in_flight: 0,
            connected: 0,
            lanes,
            slots,
            plan: plan.clone(),
        };
        let refused = state.lanes.iter().map(|_| None).collect();
        Ok(Rc::new(Self {
            wakes: state.slots.iter().map(|_| Wake::default()).collect(),
            watch: Watch::new()?,
            state: RefCell::new(state),
            plan,
            control,
            settled: Cell::new(0),
            refused: RefCell::new(refused),
            tasks: Cell::new(0),
        }))
    }

    async fn work(self: Rc<Self>, bell: OwnedFd, driver: &'static str, tell: Sender<Told>) {
        let bell = match Socket::new(bell) {
            Ok(bell) => bell,
            Err(error) => {
                let _ = tell.send(Told::Stuck(error));
                return;
            }
        };
        self.connect_all().await;
        let _ = tell.send(Told::Ready { doors: self.doors(), driver });
        let _ = bell.readable().await;
        let start = self.control.start.load(Ordering::Acquire);
        if start > 0 {
            self.wait_until(start).await;
            let before = Usage::now();
            self.begin(start);
            self.keep_house(&tell).await;
            let usage = Usage::now().since(before);
            let wall = net::now().saturating_sub(start);
            let mut state = self.state.borrow_mut();
            let interval = state.recorder.turn(0);
            let _ = tell.send(Told::Second(Box::new(interval)));
            let totals = Totals {
                counts: state.recorder.counts.clone(),
                lateness: state.recorder.lateness.clone(),
                last: state.last.saturating_sub(start),
                usage,
                wall,
            };
            let _ = tell.send(Told::Done(Box::new(totals)));
        }
        self.close_all().await;
    }

    /// Opens the connections, a wave at a time, and waits for the first try of each.
    async fn connect_all(self: &Rc<Self>) {
        net::spawn(self.clone().watch());
        let slots = self.state.borrow().slots.len();
        for first in (0..slots).step_by(CONNECT_WAVE) {
            let next = (first + CONNECT_WAVE).min(slots);
            for slot in first..next {
                self.tasks.set(self.tasks.get() + 1);
                net::spawn(self.clone().drive(slot));
            }
            while self.plan.keep_alive
                && self.settled.get() < next
                && !self.control.stop.load(Ordering::Relaxed)
            {
                net::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    fn doors(&self) -> Vec<Door> {
        let state = self.state.borrow();
        let mut doors: Vec<_> = self
            .refused
            .borrow_mut()
            .iter_mut()
            .map(|refused| Door { connected: 0, refused: refused.take() })
            .collect();
        for slot in state.slots.iter().filter(|slot| slot.socket.is_some()) {
            doors[slot.lane].connected += 1;
        }
        doors
    }

    async fn wait_until(&self, at: u64) {
        if let Ok(alarm) = Alarm::new() {
            alarm.set(at);
            let _ = alarm.rang().await;
        }
    }

    fn begin(self: &Rc<Self>, start: u64) {
        let mut state = self.state.borrow_mut();
        let nanos = |duration: Duration| duration.as_nanos() as u64;
        state.start = start;
        state.warm = start + nanos(self.plan.warmup);
        state.end = self.plan.length.map_or(u64::MAX, |length| start + nanos(length));
        state.last = start;
        state.running = true;
        let now = net::now();
        for slot in 0..state.slots.len() {
            if self.plan.keep_alive {
                self.feed(&mut state, slot, now);
            } else {
                self.wakes[slot].ring();
            }
        }
        if matches!(self.plan.load, Load::Open { .. }) {
            for lane in 0..state.lanes.len() {
                net::spawn(self.clone().pump(lane));
            }
        }
    }

    /// Timeouts, seconds and the end.
    async fn keep_house(self: &Rc<Self>, tell: &Sender<Told>) {
        let timeout = self.plan.timeout.as_nanos() as u64;
        let drain = self.plan.drain.as_nanos() as u64;
        let tick = (self.plan.timeout / 10).min(TICK);
        let (mut next_look, mut alive) = (0, net::now());
        loop {
            let wait = self.state.borrow().until_next(net::now()).min(tick);
            net::sleep(wait.max(LAST_TICK)).await;
            let now = net::now();
            let mut state = self.state.borrow_mut();
            let second = state.second(now);
            if now >= state.warm && second != state.recorder.interval.index {
                let _ = tell.send(Told::Second(Box::new(state.recorder.turn(second))));
            }
            if now >= next_look {
                next_look = now + timeout / 20;
                state.give_up(now, timeout);
            }
            if state.connected > 0 || !self.plan.keep_alive {
                alive = now;
            }
            if self.control.stop.load(Ordering::Relaxed) || state.finished(now) {
                break;
            }
            let last = state.end.saturating_add(drain);
            // What is due and has no answer by now has failed.
            if now > last || now > alive.saturating_add(timeout) {
                state.write_off(now);
                break;
            }
        }
    }

    async fn close_all(&self) {
        {
            let mut state = self.state.borrow_mut();
            state.ended = true;
            for slot in &state.slots {
                if let Some(socket) = &slot.socket {
                    socket.shut();
                }
            }
            for lane in &state.lanes {
                lane.alarm.set(1); // Long past: its pump wakes and leaves.
            }
        }
        self.wakes.iter().for_each(Wake::ring);
        let tick = Duration::from_millis(1);
        for _ in 0..CLOSE_WAIT.as_millis() {
            net::sleep(tick).await;
            if self.tasks.get() == 0 {
                break;
            }
        }
    }

    /// One connection slot: connects, reads, connects again.
    async fn drive(self: Rc<Self>, slot: usize) {
        let mut pause = RECONNECT_PAUSE;
        let mut first = true;
        let address = {
            let state = self.state.borrow();
            self.plan.lanes[state.slots[slot].lane].address
        };
        while !self.state.borrow().ended {
            let assigned = match self.plan.keep_alive {
                true => None,
                false => match self.assignment(slot).await {
                    Some(flight) => Some(flight),
                    None => break,
                },
            };
            let connected = connect(address, self.plan.timeout).await;
            if std::mem::take(&mut first) {
                self.settled.set(self.settled.get() + 1);
            }
            let socket = match connected {
                Ok(socket) => Rc::new(socket),
                Err(error) => {
                    self.refuse(slot, assigned, error);
                    net::sleep(pause).await;
                    pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
                    continue;
                }
            };
            self.open(slot, socket.clone(), assigned);
            if self.plan.keep_alive && self.watch.add(&socket, slot as u64).is_ok() {
                self.wakes[slot].rang().await; // By `watch`, when the connection is lost.
            } else {
                // Watching costs more than waiting once.
                while socket.readable().await.is_ok() && self.receive(slot, &socket) != Fate::Lost {
                }
            }
            let answered = self.close(slot);
            if answered > 0 {
                pause = RECONNECT_PAUSE;
            } else if !self.state.borrow().ended {
                // Accepted and dropped: no use in hammering.
                net::sleep(pause).await;
                pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
            }
        }
        self.tasks.set(self.tasks.get() - 1);
    }

    /// Reads from the connections that have something to read.
    async fn watch(self: Rc<Self>) {
        let receive = |edge: Edge| {
            let slot = edge.token as usize;
            let Some(socket) = self.state.borrow().slots[slot].socket.clone() else { return };
            loop {
                match self.receive(slot, &socket) {
                    Fate::More => {}
                    Fate::Short if edge.ended => {}
                    Fate::Short | Fate::Empty => break,
                    Fate::Lost => {
                        self.wakes[slot].ring();
                        break;
                    }
                }
            }
        };
        while self.watch.edges(receive).await.is_ok() && !self.state.borrow().ended {}
    }

    /// Waits for a request that needs a connection of its own; `None` at the end.
    async fn assignment(&self, slot: usize) -> Option<Flight> {
        loop {
            {
                let mut guard = self.state.borrow_mut();
                let state = &mut *guard;
                if state.ended {
                    return None;
                }
                if let Some(flight) = state.slots[slot].assigned.take() {
                    return Some(flight);
                }
                let now = net::now();
                let lane = state.slots[slot].lane;
                if let Some(due) = state.next_due(lane, now) {
                    state.unrest(slot);
                    let waited = state.waited(lane, due);
                    return Some(state.depart(lane, due, now, waited));
                }
                state.rest(slot);
            }
            self.wakes[slot].rang().await;
        }
    }

    fn refuse(&self, slot: usize, assigned: Option<Flight>, error: io::Error) {
        let mut state = self.state.borrow_mut();
        state.recorder.counts.connections_failed += 1;
        if let Some(flight) = assigned {
            state.in_flight -= 1;
            state.fail(&flight, Failure::Connect, None);
        }
        self.refused.borrow_mut()[state.slots[slot].lane] = Some(error);
    }

    fn open(self: &Rc<Self>, slot: usize, socket: Rc<Socket>, assigned: Option<Flight>) {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        state.connected += 1;
        state.recorder.counts.connections += 1;
        state.slots[slot].socket = Some(socket.clone());
        state.slots[slot].answered = 0;
        match assigned {
            Some(flight) => {
                state.slots[slot].flights.push_back(flight);
                let bytes = self.plan.targets[flight.target].bytes.clone();
                self.send(&mut state.slots[slot], slot, &socket, bytes);
            }
            None => self.feed(state, slot, net::now()),
        }
    }

    /// Forgets the connection; whatever was on it has failed. Returns how many answers it gave.
    fn close(&self, slot: usize) -> u64 {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        state.connected -= 1;
        state.lose(slot, Failure::Reset, None);
        state.slots[slot].socket = None;
        state.unrest(slot);
        state.slots[slot].answered
    }

    /// Sends what is due when it is due, for one address.
    async fn pump(self: Rc<Self>, lane: usize) {
        let alarm = self.state.borrow().lanes[lane].alarm.clone();
        let spin = self.plan.spin.as_nanos() as u64;
        while let Some(at) = self.send_due(lane) {
            let now = net::now();
            if at > now && at - now <= spin {
                // Answers that come meanwhile are read. An alarm that has rung makes the ring look
                // for them; on epoll, giving way does.
                alarm.set(1);
                while net::now() < at {
                    net::give_way().await;
                    if alarm.rang().await.is_err() {
                        break;
                    }
                }
            } else {
                alarm.set((at - spin).max(1));
                if alarm.rang().await.is_err() {
                    break;
                }
            }
        }
    }

    /// Sends all that is due while there are idle connections; returns when to look again.
    fn send_due(self: &Rc<Self>, lane: usize) -> Option<u64> {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        loop {
            if state.ended {
                return None;
            }
            let now = net::now();
            state.notice_stall(lane, now);
            let next = match &state.lanes[lane].pace {
                Pace::Open(schedule) => state.start + schedule.peek()?,
                Pace::Closed(_) => return None,
            };
            if next > now {
                state.lanes[lane].armed = true;
                state.lanes[lane].wake_at = next;
                return Some(next);
            }
            let Some(slot) = state.wake_idle(lane) else {
                // A connection that frees takes what is due, and sets the alarm when it is idle.
                state.lanes[lane].armed = false;
                state.lanes[lane].wake_at = now + BACKLOG_LOOK;
                return Some(now + BACKLOG_LOOK);
            };
            let Some(due) = state.next_due(lane, now) else { continue };
            let flight = state.depart(lane, due, now, false);
            match state.slots[slot].socket.clone() {
                Some(socket) => {
                    state.slots[slot].flights.push_back(flight);
                    let bytes = self.plan.targets[flight.target].bytes.clone();
                    self.send(&mut state.slots[slot], slot, &socket, bytes);
                    state.rest_if_room(slot);
                }
                None => {
                    state.slots[slot].assigned = Some(flight);
                    self.wakes[slot].ring();
                }
            }
        }
    }

    /// A connection has room: gives it what is due, or lets it rest.
    fn feed(self: &Rc<Self>, state: &mut State, slot: usize, now: u64) {
        if !state.running || state.ended {
            return;
        }
        let depth = self.plan.pipeline;
        let lane = state.slots[slot].lane;
        let mut gathered = std::mem::take(&mut state.gathered);
        let mut single = None;
        while state.slots[slot].flights.len() < depth && state.slots[slot].unsent.is_none() {
            let Some(due) = state.next_due(lane, now) else {
                state.rest(slot);
                break;
            };
            let waited = state.waited(lane, due);
            let flight = state.depart(lane, due, now, waited);
            state.slots[slot].flights.push_back(flight);
            let bytes = &self.plan.targets[flight.target].bytes;
            if depth == 1 {
                single = Some(bytes.clone());
            } else {
                gathered.extend_from_slice(bytes);
            }
        }
        if !gathered.is_empty() {
            single = Some(gathered.as_slice().into());
            gathered.clear();
        }
        state.gathered = gathered;
        if let Some(bytes) = single
            && let Some(socket) = state.slots[slot].socket.clone()
        {
            self.send(&mut state.slots[slot], slot, &socket, bytes);
        }
    }

    /// Sends as much as the socket takes, and has a task send the rest.
    fn send(self: &Rc<Self>, slot: &mut Slot, index: usize, socket: &Rc<Socket>, bytes: Arc<[u8]>) {
        match socket.send(&bytes) {
            Ok(sent) if sent == bytes.len() => {}
            Ok(sent) => {
                slot.unsent = Some(Unsent { bytes, at: sent });
                net::spawn(self.clone().send_rest(index, socket.clone()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                slot.unsent = Some(Unsent { bytes, at: 0 });
                net::spawn(self.clone().send_rest(index, socket.clone()));
            }
            // Its reader finds out, and settles what was on it.
            Err(_) => socket.shut(),
        }
    }

    async fn send_rest(self: Rc<Self>, index: usize, socket: Rc<Socket>) {
        while socket.writable().await.is_ok() {
            let mut guard = self.state.borrow_mut();
            let slot = &mut guard.slots[index];
            // The slot may have gone on to another connection.
            if !slot.socket.as_ref().is_some_and(|current| Rc::ptr_eq(current, &socket)) {
                break;
            }
            let Some(unsent) = &mut slot.unsent else { break };
            match socket.send(&unsent.bytes[unsent.at..]) {
                Ok(sent) => unsent.at += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    socket.shut();
                    break;
                }
            }
            if unsent.at == unsent.bytes.len() {
                slot.unsent = None;
                if self.plan.keep_alive {
                    self.feed(&mut guard, index, net::now());
                }
                break;
            }
        }
    }

    /// Reads what has come, and sends what comes next.
    fn receive(self: &Rc<Self>, slot: usize, socket: &Rc<Socket>) -> Fate {
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        if state.ended {
            return Fate::Lost;
        }
        let droppable = state.slots[slot].reader.droppable();
        if droppable >= DROP_BYTES_MIN && state.slots[slot].carry.is_empty() {
            let n = match socket.discard(droppable.min(1 << 30) as usize) {
                Ok(0) => return Fate::Lost,
                Ok(n) => n as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Empty,
                Err(_) => return Fate::Lost,
            };
            let Some(answer) = state.slots[slot].reader.dropped(n) else { return Fate::Short };
            let now = net::now();
            if !state.complete(slot, answer, now) {
                return Fate::Lost;
            }
            self.feed(state, slot, now);
            return Fate::More;
        }
        let mut buffer = std::mem::take(&mut state.buffer);
        let fate = self.receive_into(state, slot, socket, &mut buffer);
        state.buffer = buffer;
        fate
    }

    fn receive_into(
        self: &Rc<Self>,
        state: &mut State,
        slot: usize,
        socket: &Rc<Socket>,
        buffer: &mut [u8],
    ) -> Fate {
        let carried = state.slots[slot].carry.len();
        buffer[..carried].copy_from_slice(&state.slots[slot].carry);
        let filled = match socket.recv(&mut buffer[carried..]) {
            Ok(0) => {
                state.recorder.counts.connections_closed += 1;
                let now = net::now();
                // Only an answer without a length may end so; the rest is reset.
                if let Ok(Some(answer)) = state.slots[slot].reader.close() {
                    state.complete(slot, answer, now);
                }
                return Fate::Lost;
            }
            Ok(n) => carried + n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Empty,
            Err(_) => return Fate::Lost,
        };
        let now = net::now();
        let mut at = 0;
        while at < filled {
            let Some(&Flight { target, .. }) = state.slots[slot].flights.front() else {
                // Bytes that nobody asked for.
                return Fate::Lost;
            };
            let Target { head_only, expect, .. } = self.plan.targets[target];
            let cache = &mut state.caches[target];
            let reader = &mut state.slots[slot].reader;
            match reader.read(&buffer[at..filled], head_only, expect.hash.is_some(), cache) {
                Ok((taken, None)) => {
                    at += taken;
                    break;
                }
                Ok((taken, Some(answer))) => {
                    at += taken;
                    if !state.complete(slot, answer, now) {
                        return Fate::Lost;
                    }
                }
                Err(_) => {
                    state.lose(slot, Failure::Mismatch, None);
                    return Fate::Lost;
                }
            }
        }
        let carry = &mut state.slots[slot].carry;
        carry.clear();
        carry.extend_from_slice(&buffer[at..filled]);
        if carry.len() == READ_BYTES {
            state.lose(slot, Failure::Mismatch, None); // A head that does not end.
            return Fate::Lost;
        }
        self.feed(state, slot, now);
        if filled == buffer.len() { Fate::More } else { Fate::Short }
    }
}

impl State {
    /// The next request's due time, if it is due.
    fn next_due(&mut self, lane: usize, now: u64) -> Option<u64> {
        if !self.running {
            return None;
        }
        self.notice_stall(lane, now);
        match &mut self.lanes[lane].pace {
            Pace::Open(schedule) => Some(self.start + schedule.take(now - self.start)?),
            Pace::Closed(left) if *left > 0 && now < self.end => {
                if now >= self.warm {
                    *left -= 1;
                }
                Some(now)
            }
            Pace::Closed(_) => None,
        }
    }

    /// An alarm that is heard late tells that this thread stood still: something else had its CPU, or
    /// it had too much to do. What came due meanwhile, and for as long again, while it catches up,
    /// is the generator's fault even though no connection is free when its turn comes.
    fn notice_stall(&mut self, lane: usize, now: u64) {
        let lane = &mut self.lanes[lane];
        if now > lane.wake_at.saturating_add(LATE_NANOS) {
            let (from, to) = (lane.wake_at, now + (now - lane.wake_at));
            // Another one while it still catches up is the same one.
            lane.stall = match lane.stall.contains(&from) {
                true => lane.stall.start..lane.stall.end.max(to),
                false => from..to,
            };
        }
    }

    /// Whether what was due then has waited for a connection, and for nothing else.
    fn waited(&self, lane: usize, due: u64) -> bool {
        let lane = &self.lanes[lane];
        lane.idle_count == 0 && !lane.stall.contains(&due)
    }

    /// Chooses what to send, and writes down that it leaves.
    fn depart(&mut self, lane: usize, due: u64, now: u64, waited: bool) -> Flight {
        let lane = &self.lanes[lane];
        let target = match lane.weights.last() {
            None => lane.targets[0],
            Some(&sum) => {
                let point = (u128::from(self.random.draw()) * u128::from(sum)) >> 64;
                lane.targets[lane.weights.partition_point(|&below| u128::from(below) <= point)]
            }
        };
        if due >= self.warm {
            self.recorder.sent(due, now, waited);
        }
        self.in_flight += 1;
        Flight { due, sent: now, target }
    }

    /// The first request on the connection was answered. False: it was the last one there.
    fn complete(&mut self, slot: usize, answer: Answer, now: u64) -> bool {
        let Some(flight) = self.slots[slot].flights.pop_front() else { return false };
        self.in_flight -= 1;
        self.slots[slot].answered += 1;
        self.last = now;
        let target = &self.plan.targets[flight.target];
        if flight.due >= self.warm {
            let counts = &mut self.recorder.counts;
            counts.answered += 1;
            counts.body_bytes += answer.body_bytes;
            counts.targets[flight.target] += 1;
            if let Some(count) = counts.statuses.get_mut(usize::from(answer.status)) {
                *count += 1;
            }
            self.recorder.took(flight.due, flight.sent, now);
            let expect = &target.expect;
            let right_status = match expect.status {
                Some(status) => answer.status == status,
                None => answer.status < 400,
            };
            let right_length = expect.length.is_none_or(|length| length == answer.body_bytes);
            let right_hash = match (expect.hash, answer.hash) {
                (None, _) | (_, None) => true,
                (Some(HashWanted::Exactly(wanted)), Some(hash)) => wanted == hash,
                (Some(HashWanted::First), Some(hash)) => {
                    *self.hashes[flight.target].get_or_insert(hash) == hash
                }
            };
            if !right_status {
                self.recorder.failed(Failure::Status, 1);
            } else if !right_length || !right_hash {
                self.recorder.failed(Failure::Mismatch, 1);
            }
        }
        // An answer before its request had left ends the connection, as a close does.
        answer.keep_alive && self.plan.keep_alive && self.slots[slot].unsent.is_none()
    }

    /// `waited_until`: its time counts, for it was waited for until then. What broke off earlier has
    /// no time: counting it would make a target that resets at once look fast.
    fn fail(&mut self, flight: &Flight, failure: Failure, waited_until: Option<u64>) {
        if flight.due < self.warm {
            return;
        }
        match waited_until {
            Some(now) => self.recorder.took(flight.due, flight.sent, now),
            None => self.recorder.counts.lost += 1,
        }
        self.recorder.failed(failure, 1);
    }

    /// Everything on the connection has failed; see [`State::fail`].
    fn lose(&mut self, slot: usize, failure: Failure, waited_until: Option<u64>) {
        while let Some(flight) = self.slots[slot].flights.pop_front() {
            self.in_flight -= 1;
            self.fail(&flight, failure, waited_until);
        }
        let slot = &mut self.slots[slot];
        slot.reader = Reader::default();
        slot.carry = Vec::new();
        slot.unsent = None;
    }

    /// The slot has room.
    fn rest(&mut self, slot: usize) {
        if self.slots[slot].idle {
            return;
        }
        self.slots[slot].idle = true;
        let lane = &mut self.lanes[self.slots[slot].lane];
        lane.idle.push_back(slot);
        lane.idle_count += 1;
        if let (false, Pace::Open(schedule)) = (lane.armed, &lane.pace)
            && let Some(due) = schedule.peek()
        {
            lane.alarm.set((self.start + due).max(1));
            lane.armed = true;
            lane.wake_at = (self.start + due).max(net::now());
        }
    }

    fn rest_if_room(&mut self, slot: usize) {
        let Slot { flights, unsent, .. } = &self.slots[slot];
        if flights.len() < self.plan.pipeline && unsent.is_none() {
            self.rest(slot);
        }
    }

    fn unrest(&mut self, slot: usize) {
        if std::mem::take(&mut self.slots[slot].idle) {
            self.lanes[self.slots[slot].lane].idle_count -= 1;
        }
    }

    /// The slot that has had room for longest.
    fn wake_idle(&mut self, lane: usize) -> Option<usize> {
        while let Some(slot) = self.lanes[lane].idle.pop_front() {
            if self.slots[slot].idle {
                self.unrest(slot);
                return Some(slot);
            }
        }
        None
    }

    /// Requests that were sent too long ago have failed. Their time counts: leaving it out would
    /// make a target that never answers look better than a slow one.
    fn give_up(&mut self, now: u64, timeout: u64) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            let Some(oldest) = slot.flights.front() else { continue };
            if oldest.sent.saturating_add(timeout) > now {
                continue;
            }
            self.lose(index, Failure::Timeout, Some(now));
            self.last = now;
            if let Some(socket) = &self.slots[index].socket {
                socket.shut(); // Its task wakes, and connects anew.
            }
        }
    }

    /// Which second of the recording this is. The last answers belong to the last second.
    fn second(&self, now: u64) -> u64 {
        let now =
            if now < self.end.saturating_add(LAST_ANSWERS) { now.min(self.end - 1) } else { now };
        now.saturating_sub(self.warm) / SECOND
    }

    /// Until the next second begins, or the end.
    fn until_next(&self, now: u64) -> Duration {
        let second = match now.checked_sub(self.warm) {
            Some(recorded) => SECOND - recorded % SECOND,
            None => self.warm - now,
        };
        Duration::from_nanos(second.min(self.end.saturating_sub(now)))
    }

    fn finished(&self, now: u64) -> bool {
        self.in_flight == 0
            && self.lanes.iter().all(|lane| match &lane.pace {
                Pace::Open(schedule) => schedule.peek().is_none(),
                Pace::Closed(left) => *left == 0 || now >= self.end,
            })
    }

    /// The run is over, and these were never answered.
    fn write_off(&mut self, now: u64) {
        for index in 0..self.slots.len() {
            self.lose(index, Failure::Unfinished, Some(now));
        }
        let (start, warm, until) = (self.start, self.warm, now.min(self.end));
        for lane in &mut self.lanes {
            if let Pace::Open(schedule) = &mut lane.pace {
                while let Some(due) = schedule.take(until - start) {
                    if start + due >= warm {
                        self.recorder.never_sent(start + due, now);
                    }
                }
            }
        }
        self.last = now;
    }
}

async fn connect(address: SocketAddr, timeout: Duration) -> io::Result<Socket> {
    let socket = net::connect(address)?;
    match net::within(timeout, socket.writable()).await {
        None => Err(io::ErrorKind::TimedOut.into()),
        Some(Err(error)) => Err(error),
        Some(Ok(())) => socket.connect_error().map(|()| socket),
    }
}

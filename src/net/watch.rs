//! The sockets of a shard, watched through one epoll instance, which the ring watches in turn.
//!
//! Each socket is registered once, edge-triggered, for all that may happen to it (epoll(7)). What
//! the kernel tells is kept beside the socket, so that most waits end without a system call, and
//! the edges of a turn come in one batch however many sockets they belong to. A poll operation in
//! the ring for each wait, as before, cost two more operations for each request.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use slab::Slab;

use crate::time::Nanos;

/// Edges taken at once. What is left makes the instance readable again.
const EDGES_MAX: usize = 256;

/// A read would not block, as far as we know.
pub(super) const READABLE: u8 = 1;

/// A write would not block, as far as we know.
pub(super) const WRITABLE: u8 = 2;

/// The peer has ended its side, or the connection has failed.
pub(super) const ENDED: u8 = 4;

/// The peer has sent urgent data (tcp(7)): a read stops there, so a short one was not all.
pub(super) const URGENT: u8 = 8;

/// The token of the bell of those that gave way.
const GIVEN_WAY: u64 = u64::MAX;

/// On epoll, edges may come so fast that the runtime never waits. It looks at its timers only then,
/// so it is made to wait after so long.
const TIMERS_WAIT_MAX: Duration = Duration::from_millis(50);

/// What each socket is registered for.
const ALL: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::PRI)
    .union(EventFlags::ET);

thread_local! {
    /// The watch of the shard that runs on this thread.
    static CURRENT: RefCell<Option<Rc<Watch>>> = const { RefCell::new(None) };
}

/// The watched sockets of one shard.
pub(super) struct Watch {
    epoll: OwnedFd,
    places: RefCell<Slab<Place>>,
    generation: Cell<u32>,
    /// When edges were last taken, and room for them.
    taken: Cell<Nanos>,
    events: Cell<Vec<epoll::Event>>,
    /// Tasks that gave way, and what makes the instance readable for them.
    given_way: RefCell<Vec<Waker>>,
    bell: OwnedFd,
}

/// A watched socket. The generation tells it from those that had its key before.
struct Place {
    generation: u32,
    readiness: Rc<Readiness>,
}

/// What is known of one socket, and who waits for more. One task at a time may wait.
#[derive(Default)]
pub(super) struct Readiness {
    known: Cell<u8>,
    awaited: Cell<u8>,
    /// When it was last seen to become readable.
    readable_since: Cell<Nanos>,
    waker: Cell<Option<Waker>>,
}

/// A socket's registration, until it is dropped. Drop it before the descriptor is closed.
pub(super) struct Registration {
    watch: Rc<Watch>,
    key: usize,
    readiness: Rc<Readiness>,
}

impl Registration {
    /// Watches a descriptor for the shard of this thread. `known` is taken for granted at first.
    pub fn new(descriptor: BorrowedFd<'_>, known: u8) -> io::Result<Registration> {
        let watch = CURRENT.with_borrow(Clone::clone).expect("sockets belong to a shard");
        let readiness = Rc::new(Readiness {
            known: Cell::new(known),
            readable_since: Cell::new(watch.taken.get()),
            ..Readiness::default()
        });
        let generation = watch.generation.get().wrapping_add(1);
        watch.generation.set(generation);
        let place = Place { generation, readiness: readiness.clone() };
        let key = watch.places.borrow_mut().insert(place);
        let registration = Registration { watch, key, readiness };
        let token = u64::from(generation) << 32 | key as u64;
        epoll::add(&registration.watch.epoll, descriptor, EventData::new_u64(token), ALL)?;
        Ok(registration)
    }

    /// Stops the kernel's side of it. A descriptor that is closed needs no such thing.
    pub fn forget(&self, descriptor: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.watch.epoll, descriptor);
    }

    /// What is known of the socket.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.watch.places.borrow_mut().remove(self.key);
    }
}

impl Readiness {
    /// Whether one of these is known.
    pub fn knows(&self, any_of: u8) -> bool {
        self.known.get() & any_of != 0
    }

    /// A call has shown that this does not hold any more.
    pub fn clear(&self, what: u8) {
        self.known.set(self.known.get() & !what);
    }

    /// This may hold; a call will tell.
    pub fn suppose(&self, what: u8) {
        self.known.set(self.known.get() | what);
    }

    /// When it was last seen to become readable, or was registered.
    pub fn readable_since(&self) -> Nanos {
        self.readable_since.get()
    }

    /// Waits until one of these is known.
    pub fn wait(&self, any_of: u8) -> Ready<'_> {
        Ready { readiness: self, any_of }
    }

    fn tell(&self, news: u8, now: Nanos) {
        if news & !self.known.get() & READABLE != 0 {
            self.readable_since.set(now);
        }
        self.known.set(self.known.get() | news);
        if self.awaited.get() & news != 0 {
            self.awaited.set(0);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

/// Waits for a socket. Dropping it costs at most a wake-up in vain.
pub(super) struct Ready<'a> {
    readiness: &'a Readiness,
    any_of: u8,
}

impl Future for Ready<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Ready { readiness, any_of } = *self;
        if readiness.knows(any_of) {
            return Poll::Ready(());
        }
        readiness.awaited.set(readiness.awaited.get() | any_of);
        let waker = match readiness.waker.take() {
            Some(waker) if waker.will_wake(context.waker()) => waker,
            _ => context.waker().clone(),
        };
        readiness.waker.set(Some(waker));
        Poll::Pending
    }
}

/// Gives this thread a watch.
pub(super) fn begin() -> io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    epoll::add(&epoll, &bell, EventData::new_u64(GIVEN_WAY), EventFlags::IN | EventFlags::ET)?;
    let watch = Watch {
        epoll,
        places: RefCell::default(),
        generation: Cell::new(0),
        taken: Cell::new(Nanos::now()),
        events: Cell::new(Vec::with_capacity(EDGES_MAX)),
        given_way: RefCell::default(),
        bell,
    };
    CURRENT.set(Some(Rc::new(watch)));
    Ok(())
}

/// Passes edges on, for as long as the shard runs.
pub(super) async fn run() {
    let watch = CURRENT.with_borrow(Clone::clone).expect("begun before");
    // The runtime's stream is only used for its readiness, which any pollable descriptor has.
    let epoll = watch.epoll.try_clone().map(std::net::TcpStream::from);
    let epoll = epoll.and_then(monoio::net::TcpStream::from_std);
    let epoll = epoll.expect("a descriptor for the watch, at start");
    let mut busy_since = None;
    loop {
        let mut waited = false;
        let mut readable = std::pin::pin!(epoll.readable(false));
        let readable = std::future::poll_fn(|context| {
            let polled = readable.as_mut().poll(context);
            waited |= polled.is_pending();
            polled
        });
        if let Err(error) = readable.await {
            panic!("a shard cannot wait for its sockets any more: {error}");
        }
        watch.pass_on(Nanos::now());
        if waited {
            busy_since = None;
            continue;
        }
        // Epoll only: those that were woken have their turn.
        monoio::spawn(async {}).await;
        let now = Nanos::now();
        if now.since(*busy_since.get_or_insert(now)) > TIMERS_WAIT_MAX {
            busy_since = None;
            monoio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Lets all other tasks run that can, and looks at sockets and timers, before this one goes on. A
/// task that woke itself would go to the front of the queue; one behind the others would keep the
/// queue from ever being empty, and only then the runtime looks at the ring and at its timers.
pub async fn yield_now() {
    let mut gave_way = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut gave_way, true) {
            return Poll::Ready(());
        }
        CURRENT.with_borrow(|watch| {
            let watch = watch.as_ref().expect("tasks belong to a shard");
            let mut given_way = watch.given_way.borrow_mut();
            if given_way.is_empty() {
                // Cannot be full: each edge takes one, and it holds 2^64.
                let _ = rustix::io::write(&watch.bell, &1_u64.to_ne_bytes());
            }
            given_way.push(context.waker().clone());
        });
        Poll::Pending
    })
    .await;
}

impl Watch {
    /// One batch of edges; `true` if that was all of them.
    fn pass_on(&self, now: Nanos) -> bool {
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = self.events.take();
        events.clear();
        // An error is EINTR: it is still readable.
        let taken =
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&none));
        let all = taken.is_ok_and(|count| count < EDGES_MAX);
        if all {
            self.taken.set(now);
        }
        let places = self.places.borrow();
        for event in events.iter() {
            let token = event.data.u64();
            if token == GIVEN_WAY {
                self.given_way.borrow_mut().drain(..).for_each(Waker::wake);
                continue;
            }
            // A socket may have been closed after its edge was taken.
            if let Some(place) = places.get((token & u64::from(u32::MAX)) as usize)
                && u64::from(place.generation) == token >> 32
            {
                place.readiness.tell(news(event.flags), now);
            }
        }
        self.events.set(events);
        all
    }
}

/// Takes edges now if the last time that all were taken is longer ago than `age_max`. After it,
/// what is known of a socket is no older than that.
pub(super) fn refresh(now: Nanos, age_max: Duration) {
    CURRENT.with_borrow(|watch| {
        if let Some(watch) = watch
            && now.since(watch.taken.get()) > age_max
        {
            // Each socket is told of once, so that this ends, however many have news.
            let batches_max = watch.places.borrow().len() / EDGES_MAX + 2;
            let _ = (0..batches_max).find(|_| watch.pass_on(now));
        }
    });
}

/// What an event says. An error is something to read, and to write: the call will tell it.
fn news(flags: EventFlags) -> u8 {
    let mut news = 0;
    if flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
        news |= READABLE | ENDED;
    }
    if flags.contains(EventFlags::IN) {
        news |= READABLE;
    }
    if flags.contains(EventFlags::PRI) {
        news |= READABLE | URGENT;
    }
    if flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
        news |= WRITABLE;
    }
    news
}

//! Where idle client connections wait without a task of their own.
//!
//! A session costs nearly 4 KiB even while it only waits. One that has been idle for a while is
//! taken apart: its descriptor is watched by an epoll instance, which the shard in turn watches
//! with a single wait, and some hundred bytes remember the rest. The first byte brings it back.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use slab::Slab;

use crate::accept::{Client, ClientInfo};
use crate::net::Socket;
use crate::session;
use crate::shard::Shard;
use crate::time::Nanos;

/// A session that has waited so long gives up its task.
pub const PARK_AFTER: Duration = Duration::from_millis(500);

/// Connections woken before the sessions get a turn.
const WAKES_PER_TURN_MAX: usize = 64;

/// The parked connections of a shard.
pub struct Parking {
    epoll: OwnedFd,
    places: RefCell<Slab<Parked>>,
    due: RefCell<BTreeSet<(Nanos, usize)>>,
}

struct Parked {
    descriptor: OwnedFd,
    info: ClientInfo,
    due: Nanos,
}

impl Parking {
    /// An empty one.
    pub fn new() -> io::Result<Parking> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Parking { epoll, places: RefCell::default(), due: RefCell::default() })
    }

    /// Parks an idle connection, to be closed at `due`. Where the kernel will not watch it, it is
    /// closed.
    pub fn park(&self, client: Client, due: Nanos) {
        let Client { socket, info } = client;
        let descriptor = socket.into_descriptor();
        let mut places = self.places.borrow_mut();
        let place = places.vacant_entry();
        let key = place.key();
        let watched = epoll::add(
            &self.epoll,
            &descriptor,
            EventData::new_u64(key as u64),
            EventFlags::IN | EventFlags::RDHUP,
        );
        if watched.is_ok() {
            place.insert(Parked { descriptor, info, due });
            self.due.borrow_mut().insert((due, key));
        }
    }

    /// Whether nobody is parked.
    pub fn is_empty(&self) -> bool {
        self.places.borrow().is_empty()
    }

    /// Closes those whose time has come.
    pub fn sweep(&self, now: Nanos) {
        let mut due = self.due.borrow_mut();
        while let Some(&(at, key)) = due.first()
            && at <= now
        {
            due.pop_first();
            self.places.borrow_mut().remove(key);
        }
    }

    /// Closes all of them, but for those that have sent something by now: these it gives back.
    pub fn close_silent(&self) -> Vec<Client> {
        self.due.borrow_mut().clear();
        let parked = std::mem::take(&mut *self.places.borrow_mut());
        let clients = parked.into_iter().filter_map(|(_, Parked { descriptor, info, .. })| {
            let _ = epoll::delete(&self.epoll, &descriptor);
            let socket = Socket::adopt(descriptor).ok()?;
            (!socket.is_quiet() && !socket.is_closed()).then_some(Client { socket, info })
        });
        clients.collect()
    }

    fn take(&self, key: usize) -> Option<Parked> {
        let parked = self.places.borrow_mut().try_remove(key)?;
        self.due.borrow_mut().remove(&(parked.due, key));
        let _ = epoll::delete(&self.epoll, &parked.descriptor);
        Some(parked)
    }
}

/// Brings connections back when something arrives on them; runs as long as the shard.
pub async fn run(shard: Rc<Shard>) {
    let watch = shard.parking.epoll.try_clone().and_then(Socket::adopt);
    let watch = watch.expect("a descriptor for the parking place, at start");
    let mut events = Vec::with_capacity(WAKES_PER_TURN_MAX);
    loop {
        watch.readable().await;
        events.clear();
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let spare = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&shard.parking.epoll, spare, Some(&none)).is_err() {
            continue;
        }
        if events.len() < WAKES_PER_TURN_MAX {
            watch.emptied();
        }
        for event in &events {
            if let Some(Parked { descriptor, info, .. }) =
                shard.parking.take(event.data.u64() as usize)
                && let Ok(socket) = Socket::adopt(descriptor)
            {
                session::start(&shard, Client { socket, info });
            }
        }
        crate::net::yield_now().await;
    }
}

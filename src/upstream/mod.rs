//! Connections to endpoints: one shard's pool, and what it knows of each endpoint.
//!
//! The pool is last in, first out: the connection used last is the likeliest to be still open, and
//! the surplus ages at the other end, where the shard's housekeeping takes it away.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{FAILURE, Latency, Zone};
use crate::breaker::Outcome;
use crate::metrics::ShardCounters;
use crate::net::Socket;
use crate::plan::{self, Pool};
use crate::reconcile::{EndpointId, EndpointSlot};
use crate::shard::agreement::Agreement;
use crate::time::Nanos;

/// One endpoint, as one shard knows it. Lives as long as the plans that name it.
pub struct Endpoint {
    /// Its number in the agreement.
    pub id: EndpointId,
    /// Where this shard's part in the agreement keeps it.
    pub slot: EndpointSlot,
    /// Where it listens.
    pub address: SocketAddr,
    /// What the configuration calls it.
    pub name: String,
    /// How slow it was lately; only where its cluster's balancer asks.
    latency: Cell<Latency>,
    /// Where it is.
    zone: Cell<Zone>,
    /// It last answered in HTTP/1.0: it must not be sent a transfer coding (RFC 9112, 6.1).
    speaks_http10: Cell<bool>,
    /// No plan names it any more: nothing is kept for it.
    retired: Cell<bool>,
    idle: RefCell<Vec<Idle>>,
    agreement: Rc<Agreement>,
    counters: Arc<ShardCounters>,
}

/// A place for one connection, among those that the limits allow, until it is dropped.
pub struct Lease {
    agreement: Rc<Agreement>,
    slot: EndpointSlot,
}

/// An open connection, counted as such until it is closed.
struct Link {
    socket: Socket,
    born: Nanos,
    requests: u64,
    lease: Lease,
}

/// A kept connection.
struct Idle {
    link: Link,
    since: Nanos,
}

/// A connection that an exchange has borrowed. Dropping it closes it.
pub struct Connection {
    /// Whether it carried a request before this one.
    pub reused: bool,
    endpoint: Rc<Endpoint>,
    link: Link,
}

impl Endpoint {
    /// An endpoint without connections.
    pub fn new(
        planned: &plan::Endpoint,
        agreement: Rc<Agreement>,
        counters: Arc<ShardCounters>,
    ) -> Endpoint {
        Endpoint {
            id: planned.id,
            slot: agreement.slot(planned.id),
            address: planned.address,
            name: planned.name.clone(),
            latency: Cell::default(),
            zone: Cell::new(planned.zone),
            speaks_http10: Cell::new(false),
            retired: Cell::new(false),
            idle: RefCell::new(Vec::new()),
            agreement,
            counters,
        }
    }

    /// Where it is.
    #[inline]
    pub fn zone(&self) -> Zone {
        self.zone.get()
    }

    /// A new plan says where it is.
    pub fn set_zone(&self, zone: Zone) {
        self.zone.set(zone);
    }

    /// How slow it was lately.
    #[inline]
    pub fn latency(&self) -> Latency {
        self.latency.get()
    }

    /// A request has ended after this time, or has failed, or was given up.
    pub fn learn(&self, outcome: Outcome, taken: Duration, now: Nanos) {
        let mut latency = self.latency.get();
        match outcome {
            Outcome::Success => latency.observe(taken, now),
            Outcome::Failure => latency.observe(taken.max(FAILURE), now),
            // Nobody waits for it any more: it is at least so slow.
            Outcome::Neutral => latency.observe_at_least(taken, now),
        }
        self.latency.set(latency);
    }

    /// Whether its last answer was in HTTP/1.0.
    pub fn speaks_http10(&self) -> bool {
        self.speaks_http10.get()
    }

    /// Notes the version of an answer.
    pub fn answered_in_http10(&self, http10: bool) {
        self.speaks_http10.set(http10);
    }

    /// The youngest kept connection that may still be used: nothing has arrived on it, as of some
    /// microseconds ago; as of now for a request that could not be sent again.
    pub fn take_idle(
        self: &Rc<Endpoint>,
        pool: &Pool,
        now: Nanos,
        replayable: bool,
    ) -> Option<Connection> {
        loop {
            let Idle { link, since } = self.idle.borrow_mut().pop()?;
            self.counters.upstream_idle.sub(1);
            let fresh = now.since(since) < pool.idle_timeout
                && now.since(link.born) < pool.age_max
                && if replayable { link.socket.was_quiet(now) } else { link.socket.is_quiet() };
            if fresh {
                self.counters.upstream_reuses.add(1);
                return Some(Connection { reused: true, endpoint: self.clone(), link });
            }
        }
    }

    /// Counts one more connection; `None` where the limits leave no place for it, see
    /// [`Agreement::wait`].
    pub fn lease(&self) -> Option<Lease> {
        self.agreement.open_connection(self.slot).then(|| self.leased())
    }

    /// The place of a connection that counts already.
    pub fn leased(&self) -> Lease {
        Lease { agreement: self.agreement.clone(), slot: self.slot }
    }

    /// Opens a connection. The caller bounds the time.
    pub async fn connect(self: &Rc<Endpoint>, lease: Lease) -> io::Result<Connection> {
        let socket = Socket::connect(self.address).await.inspect_err(|_| {
            self.counters.upstream_connect_failures.add(1);
        })?;
        self.counters.upstream_connects.add(1);
        self.counters.upstream_open.add(1);
        let link = Link { socket, born: Nanos::now(), requests: 0, lease };
        Ok(Connection { reused: false, endpoint: self.clone(), link })
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&self, pool: &Pool, now: Nanos) {
        let mut idle = self.idle.borrow_mut();
        // The oldest stand in front.
        let stale = idle.iter().take_while(|kept| now.since(kept.since) >= pool.idle_timeout);
        let stale = stale.count();
        self.counters.upstream_idle.sub(stale as i64);
        idle.drain(..stale);
    }

    /// Closes the oldest idle connections, as many as others wait for.
    pub fn close_owed(&self) {
        while self.agreement.owes_connection(self.slot) && self.close_oldest() {}
    }

    /// Closes the connection that has been idle for longest; `false` if there is none.
    pub fn close_oldest(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        if idle.is_empty() {
            return false;
        }
        let oldest = idle.remove(0);
        drop(idle);
        self.counters.upstream_idle.sub(1);
        drop(oldest);
        true
    }

    /// This shard's part in the agreement.
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// Nothing names it any more: closes what is kept, and keeps nothing that comes back.
    pub fn retire(&self) {
        self.retired.set(true);
        let mut idle = self.idle.borrow_mut();
        self.counters.upstream_idle.sub(idle.len() as i64);
        idle.clear();
    }
}

impl Connection {
    /// Its socket.
    pub fn socket(&self) -> &Socket {
        &self.link.socket
    }

    /// Gives the connection back for the next exchange, unless it is used up or enough are kept.
    /// Only for one whose answer was read to its end, and nothing after it.
    pub fn keep(self, pool: &Pool, now: Nanos) {
        let Connection { endpoint, mut link, .. } = self;
        link.requests += 1;
        let used_up = (pool.requests_max != 0 && link.requests >= pool.requests_max)
            || now.since(link.born) >= pool.age_max;
        let mut idle = endpoint.idle.borrow_mut();
        if used_up
            || endpoint.retired.get()
            || idle.len() >= pool.idle_max as usize
            || endpoint.agreement.owes_connection(endpoint.slot)
        {
            return;
        }
        endpoint.counters.upstream_idle.add(1);
        idle.push(Idle { link, since: now });
        endpoint.agreement.connection_is_idle(endpoint.slot);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.lease.agreement.counters().upstream_open.sub(1);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.agreement.close_connection(self.slot);
    }
}

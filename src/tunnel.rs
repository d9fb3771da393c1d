//! Both directions of an upgraded connection, as they come, until both have ended.
//!
//! An end of one direction is handed on as an end (half-close), and the other goes on. Buffers are
//! only held while there is something in them.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::exchange::send;
use crate::net::{Socket, Timer, would_block};
use crate::reason::Reason;
use crate::relay::Flow;
use crate::shard::Shard;
use crate::shard::buffers::{Buffer, Buffers};
use crate::shard::message::Drain;
use crate::time::Nanos;

/// Bytes moved in one direction before the others get a turn.
const TURN_BYTES_MAX: usize = 1024 * 1024;

/// An upgraded connection.
pub struct Tunnel<'a> {
    /// The client.
    pub client: &'a Socket,
    /// The origin.
    pub upstream: &'a Socket,
    /// What the client sent already.
    pub from_client: Buffer,
    /// What the origin sent already.
    pub from_upstream: Buffer,
    /// What goes to the client first.
    pub head: &'a [u8],
    /// Where buffers come from.
    pub buffers: &'a Buffers,
    /// Counts what the client sent.
    pub up: &'a Flow,
    /// Counts what the origin sent.
    pub down: &'a Flow,
}

impl Tunnel<'_> {
    /// Runs until both directions have ended, nothing has moved in either for `idle` (zero: for
    /// ever), or a drain's time is up.
    pub async fn run(self, shard: &Shard, timer: &mut Timer, idle: Duration) -> Result<(), Reason> {
        let (up, down) = (self.up, self.down);
        let mut moved = 0;
        let mut looked = Nanos::now();
        timer.set(looked.after(idle), looked);
        let mut upward =
            pin!(pump(self.client, self.upstream, &[], self.from_client, self.buffers, up));
        let mut downward = pin!(pump(
            self.upstream,
            self.client,
            self.head,
            self.from_upstream,
            self.buffers,
            down
        ));
        let (mut up_ended, mut down_ended) = (false, false);
        let mut woken = false;
        std::future::poll_fn(|context| {
            let woken = std::mem::replace(&mut woken, true);
            if !up_ended && let Poll::Ready(result) = upward.as_mut().poll(context) {
                up_ended = true;
                if result.is_err() {
                    return Poll::Ready(Ok(())); // A reset ends both.
                }
            }
            if !down_ended && let Poll::Ready(result) = downward.as_mut().poll(context) {
                down_ended = true;
                if result.is_err() {
                    return Poll::Ready(Ok(()));
                }
            }
            if up_ended && down_ended {
                return Poll::Ready(Ok(()));
            }
            if shard.drain() == Some(Drain::Cut) {
                return Poll::Ready(Err(Reason::DrainTimeout));
            }
            while timer.poll_due(woken, context).is_ready() {
                let now = Nanos::now();
                let bytes = up.bytes.get() + down.bytes.get();
                if bytes == moved && now >= looked.after(idle) {
                    return Poll::Ready(Err(Reason::StreamIdle));
                }
                (moved, looked) = (bytes, now);
                timer.set(now.after(idle), now);
            }
            Poll::Pending
        })
        .await
    }
}

/// One direction, to its end.
async fn pump(
    from: &Socket,
    to: &Socket,
    head: &[u8],
    mut buffer: Buffer,
    buffers: &Buffers,
    flow: &Flow,
) -> Result<(), ()> {
    let result = pump_within(from, to, head, &mut buffer, buffers, flow).await;
    buffers.give_back(buffer);
    result
}

async fn pump_within(
    from: &Socket,
    to: &Socket,
    head: &[u8],
    buffer: &mut Buffer,
    buffers: &Buffers,
    flow: &Flow,
) -> Result<(), ()> {
    let mut turn_bytes = 0;
    send(to, head).await.map_err(drop)?;
    loop {
        send(to, buffer.filled()).await.map_err(drop)?;
        turn_bytes += buffer.len();
        flow.bytes.set(flow.bytes.get() + buffer.len() as u64);
        buffers.give_back(std::mem::take(buffer));
        if turn_bytes > TURN_BYTES_MAX {
            turn_bytes = 0;
            crate::net::yield_now().await;
        }
        from.readable().await;
        *buffer = buffers.take();
        match from.try_recv(buffer.spare()) {
            Ok(0) => {
                to.shutdown_write();
                return Ok(());
            }
            // SAFETY: the kernel has just written so many bytes of it.
            Ok(count) => unsafe { buffer.filled_by(count) },
            Err(error) if would_block(&error) => {}
            Err(_) => return Err(()),
        }
    }
}

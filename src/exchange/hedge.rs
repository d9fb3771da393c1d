//! A hedge: a second endpoint is asked while the first one has not answered.
//!
//! ```text
//! no answer after the delay -> leave, as for a retry -> another endpoint -> sent -> first word of both
//!                  '-- none: the first goes on                                  |
//!        the first answers: the hedge is broken off <---------------------------+
//!        the hedge answers, or the first fails: the hedge takes over <----------'
//! ```
//!
//! What is broken off says nothing about its endpoint, and its connection is closed.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::patience::{Waiting, attended};
use super::place::{ASK_WAIT, Place};
use super::reply::Reply;
use super::retry::{Leave, NO_ASK_FOR, Tries};
use super::{Exchange, NoAnswer, Undone, receive, send};
use crate::admit::Order;
use crate::net::{Socket, would_block};
use crate::reason::Reason;
use crate::shard::agreement::News;
use crate::shard::buffers::Buffer;
use crate::time::Nanos;
use crate::upstream::{Connection, Endpoint};

/// `HTTP/1.1 200`.
const STATUS_BYTES: usize = 12;

/// A try that takes the place of the one before it.
pub(super) struct Overtaking<'a> {
    pub endpoint: Rc<Endpoint>,
    pub place: Place<'a>,
    pub connection: Connection,
    pub leave: Leave<'a>,
    pub begun: Box<Begun>,
    /// How the one before has ended. `None`: it was too slow.
    pub before: Option<Result<u16, NoAnswer>>,
}

impl Overtaking<'_> {
    /// Ends the try before, which was asked at `asked`. Tells how it ended.
    pub fn end_before(
        &self,
        place: &mut Place<'_>,
        reused: bool,
        asked: Nanos,
        now: Nanos,
    ) -> Result<u16, Reason> {
        let ended = match self.before {
            // Given up, as by a client that leaves; and its connection may just have been old.
            None => return Err(Reason::ClientGone),
            Some(Err(NoAnswer::Stale)) if reused => return Err(Reason::ClientGone),
            Some(Ok(status)) => Ok(status),
            Some(Err(NoAnswer::Stale)) => Err(Reason::UpstreamReset),
            Some(Err(NoAnswer::Failed(reason))) => Err(reason),
        };
        place.end_try(ended, true, now.since(asked), now);
        ended
    }
}

/// A try whose request was sent already.
pub(super) struct Begun {
    /// When.
    pub asked: Nanos,
    /// What has come of its answer.
    pub received: Buffer,
}

/// Which of the two has moved.
enum Moved<T> {
    /// The first one: it answers with this status, or has failed.
    First(Result<u16, NoAnswer>),
    /// The hedge.
    Second(T),
    /// The hedge has not, and has had its time.
    SecondLate,
}

/// What the first one's word means for the hedge.
enum FirstSaid {
    /// Its answer is taken.
    Wins,
    /// The hedge goes on alone.
    Fails(Result<u16, NoAnswer>),
    /// Nothing goes on.
    EndsAll(NoAnswer),
}

impl<'a> Exchange<'a> {
    /// Asks another endpoint as well, if there is one that has leave and a place, until either has
    /// answered. `Ok`: the first one is to be waited for alone, or has answered.
    ///
    /// # Errors
    /// The hedge takes over; or the first one has failed, and no hedge is there.
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn hedge(
        &mut self,
        order: &Order,
        cluster: usize,
        hash: Option<u64>,
        upstream: &Socket,
        tries: &mut Tries<'a>,
        waiting: &mut Waiting<'_>,
        reply: &mut Reply<'_>,
    ) -> Result<(), Undone<'a>> {
        waiting.hedged();
        let first = (upstream, &mut *reply);
        let leave = self.second_leave(order, cluster, first, waiting).await?;
        let placed = leave.and_then(|leave| {
            let (endpoint, place) = self.second_place(order, cluster, hash, tries)?;
            Some((endpoint, place, leave))
        });
        let Some((endpoint, mut place, leave)) = placed else {
            self.shard.counters.hedges_refused.add(1);
            return Ok(());
        };
        self.shard.counters.hedges.add(1);
        place.has_waited();
        let mut failed = None;
        let opened = {
            let now = Nanos::now();
            let due = now.after(order.plan.cluster(cluster).connect_timeout).min(order.ends_by());
            let mut opening = pin!(self.open_second(order, cluster, &endpoint, now));
            loop {
                let first = failed.is_none().then_some((upstream, &mut *reply));
                match self.race(first, waiting, due, opening.as_mut()).await? {
                    Moved::First(said) => match first_said(order, said) {
                        FirstSaid::Wins => return Ok(()),
                        FirstSaid::Fails(ended) => failed = Some(ended),
                        FirstSaid::EndsAll(none) => return Err(none.into()),
                    },
                    Moved::Second(opened) => break opened,
                    // Nobody waits any more: that is not the endpoint's doing.
                    Moved::SecondLate if Nanos::now() >= order.ends_by() => {
                        return match failed {
                            Some(Ok(_)) => Ok(()),
                            _ => Err(order.out_of_time().into()),
                        };
                    }
                    Moved::SecondLate => break Err(Reason::ConnectTimeout),
                }
            }
        };
        let connection = match opened {
            Ok(connection) => connection,
            Err(reason) => {
                let is_tried = reason != Reason::ConnectionLimit;
                if is_tried {
                    place.used();
                    place.end_try(Err(reason), true, Duration::ZERO, Nanos::now());
                }
                return goes_on_alone(failed);
            }
        };
        place.used();
        let mut begun = Box::new(Begun { asked: Nanos::now(), received: Buffer::default() });
        if failed.is_none() {
            let reused = connection.reused;
            let due = begun.asked.after(order.timeouts().answer).min(order.ends_by());
            let due = due.min(begun.asked.after(order.retries().try_timeout));
            let moved = {
                let word = pin!(first_word(connection.socket(), self.shard, &mut begun.received));
                self.race(Some((upstream, &mut *reply)), waiting, due, word).await
            };
            match moved.map(|moved| met(order, moved, reused)) {
                Ok(Met::TakesOver(first)) => failed = first,
                other => {
                    self.shard.buffers.give_back(begun.received);
                    match other? {
                        Met::TakesOver(_) | Met::BrokenOff => {}
                        Met::Fails(ended) => {
                            let now = Nanos::now();
                            place.end_try(ended, true, now.since(begun.asked), now);
                        }
                        Met::EndsAll(none) => return Err(none.into()),
                    }
                    return Ok(());
                }
            }
        }
        self.shard.counters.hedges_won.add(1);
        let before = failed;
        let overtaking = Overtaking { endpoint, place, connection, leave, begun, before };
        Err(Undone::Overtaken(Box::new(overtaking)))
    }

    /// Leave for one more try. Where this shard has none, the others are asked for some
    /// milliseconds, unless that was in vain lately.
    async fn second_leave(
        &mut self,
        order: &Order,
        cluster: usize,
        (upstream, reply): (&Socket, &mut Reply<'_>),
        waiting: &mut Waiting<'_>,
    ) -> Result<Option<Leave<'a>>, Undone<'a>> {
        let agreement = &*self.shard.agreement;
        let Some(slot) = agreement.cluster(order.plan.cluster(cluster).id) else { return Ok(None) };
        let now = Nanos::now();
        if agreement.begin_retry(slot, now).is_ok() {
            return Ok(Some(Leave::new(agreement, slot)));
        }
        let ask_after = order.plan.retries_asked_after(cluster);
        if now < ask_after.get() {
            return Ok(None);
        }
        let asking = pin!(agreement.wait_retry(slot, now));
        let first = Some((upstream, reply));
        match self.race(first, waiting, now + ASK_WAIT, asking).await? {
            Moved::Second(News::Retry(_)) => Ok(Some(Leave::new(agreement, slot))),
            Moved::Second(_) | Moved::SecondLate => {
                ask_after.set(Nanos::now() + NO_ASK_FOR);
                Ok(None)
            }
            Moved::First(said) => match first_said(order, said) {
                FirstSaid::Wins | FirstSaid::Fails(Ok(_)) => Ok(None),
                FirstSaid::Fails(Err(none)) | FirstSaid::EndsAll(none) => Err(none.into()),
            },
        }
    }

    /// A place at an endpoint that was not tried, at once or not at all.
    fn second_place(
        &self,
        order: &Order,
        cluster: usize,
        hash: Option<u64>,
        tries: &mut Tries<'a>,
    ) -> Option<(Rc<Endpoint>, Place<'a>)> {
        let plan = self.shard.plan();
        let at = plan.position(order.plan.cluster(cluster).id)?;
        let first = order.endpoint.as_ref()?.slot;
        let is_new = |slot| slot != first && !tries.avoided().has(slot);
        let placed = self.place_at_once(&plan, at, hash, Nanos::now(), is_new).ok()?;
        tries.hedge_with(first, placed.0.slot);
        self.count_zone(&placed.0);
        Some(placed)
    }

    /// The hedge's connection, with the request sent.
    fn open_second(
        &self,
        order: &Order,
        cluster: usize,
        endpoint: &Rc<Endpoint>,
        now: Nanos,
    ) -> impl Future<Output = Result<Connection, Reason>> + use<> {
        let kept = self.take_kept(order, endpoint, &order.plan.cluster(cluster).pool, true, now);
        let endpoint = endpoint.clone();
        let mut head = order.out.filled().to_vec();
        if let Some(deadline) = order.deadline {
            deadline.tell(order.try_ends_by(now), now, &mut head);
        }
        async move {
            let connection = match kept {
                Some(connection) => connection,
                None => {
                    let lease = endpoint.lease().ok_or(Reason::ConnectionLimit)?;
                    endpoint.connect(lease).await.map_err(|_| Reason::ConnectFailed)?
                }
            };
            let sent = send(connection.socket(), &head).await;
            sent.map_err(|_| Reason::UpstreamReset)?;
            Ok(connection)
        }
    }

    /// Waits for the first word of the first one, if that is still waited for, and for the hedge.
    ///
    /// # Errors
    /// Why nothing is to be waited for: the client has left, or is not waited for any more.
    async fn race<T>(
        &mut self,
        first: Option<(&Socket, &mut Reply<'_>)>,
        waiting: &mut Waiting<'_>,
        due: Nanos,
        mut second: Pin<&mut impl Future<Output = T>>,
    ) -> Result<Moved<T>, Reason> {
        let Exchange { shard, client, timer, .. } = self;
        let now = Nanos::now();
        let is_first_on = first.is_some();
        let first_due = |waiting: &Waiting<'_>| match is_first_on {
            true => waiting.due(),
            false => Nanos::NEVER,
        };
        timer.set(due.min(first_due(waiting)), now);
        let mut first = pin!(async {
            match first {
                Some((upstream, reply)) => reply.first_word(upstream).await,
                None => std::future::pending().await,
            }
        });
        let both = pin!(std::future::poll_fn(|context| {
            if let Poll::Ready(said) = first.as_mut().poll(context) {
                return Poll::Ready(Moved::First(said));
            }
            second.as_mut().poll(context).map(Moved::Second)
        }));
        let late = Cell::new(None);
        let moved = attended(shard, Some(client), true, timer, both, |now| {
            let reason = match waiting.look(now) {
                Err(reason) if is_first_on => {
                    late.set(Some(Moved::First(Err(reason.into()))));
                    reason
                }
                _ if now >= due => {
                    late.set(Some(Moved::SecondLate));
                    Reason::TryTimeout
                }
                _ => return Ok(due.min(first_due(waiting))),
            };
            Err(reason)
        });
        let moved = moved.await;
        late.take().map_or(moved, Ok)
    }
}

/// What has become of a hedge that was sent.
enum Met {
    /// It goes on alone; how the first one has failed, if it has.
    TakesOver(Option<Result<u16, NoAnswer>>),
    /// The first one has answered.
    BrokenOff,
    /// The first one goes on alone.
    Fails(Result<u16, Reason>),
    /// Nothing goes on.
    EndsAll(NoAnswer),
}

fn met(order: &Order, moved: Moved<Result<u16, NoAnswer>>, reused: bool) -> Met {
    match moved {
        Moved::First(said) => match first_said(order, said) {
            FirstSaid::Wins => Met::BrokenOff,
            FirstSaid::Fails(ended) => Met::TakesOver(Some(ended)),
            FirstSaid::EndsAll(none) => Met::EndsAll(none),
        },
        Moved::Second(Ok(status)) if order.retries().wants_status(status) => Met::Fails(Ok(status)),
        Moved::Second(Ok(_)) => Met::TakesOver(None),
        // Its connection may just have been old.
        Moved::Second(Err(NoAnswer::Stale)) if reused => Met::BrokenOff,
        Moved::Second(Err(NoAnswer::Stale)) => Met::Fails(Err(Reason::UpstreamReset)),
        Moved::Second(Err(NoAnswer::Failed(reason))) => Met::Fails(Err(reason)),
        Moved::SecondLate => Met::Fails(Err(Reason::TryTimeout)),
    }
}

/// Whether the first one's word is worth waiting for the hedge: it is not, if it is good.
fn first_said(order: &Order, said: Result<u16, NoAnswer>) -> FirstSaid {
    match said {
        Ok(status) if order.retries().wants_status(status) => FirstSaid::Fails(said),
        Ok(_) => FirstSaid::Wins,
        Err(NoAnswer::Stale) => FirstSaid::Fails(said),
        Err(NoAnswer::Failed(Reason::UpstreamReset | Reason::BadAnswer | Reason::TryTimeout)) => {
            FirstSaid::Fails(said)
        }
        Err(none) => FirstSaid::EndsAll(none),
    }
}

/// There is no hedge any more. What the first one has said is still there to be dealt with.
fn goes_on_alone<'a>(failed: Option<Result<u16, NoAnswer>>) -> Result<(), Undone<'a>> {
    match failed {
        Some(Err(none)) => Err(none.into()),
        Some(Ok(_)) | None => Ok(()),
    }
}

/// The status with which an answer begins.
async fn first_word(
    upstream: &Socket,
    shard: &crate::shard::Shard,
    received: &mut Buffer,
) -> Result<u16, NoAnswer> {
    loop {
        upstream.readable().await;
        if received.room() == 0 {
            *received = shard.buffers.take();
        }
        match receive(upstream, received) {
            Err(error) if would_block(&error) => {}
            Ok(0) | Err(_) if received.is_empty() => return Err(NoAnswer::Stale),
            Ok(0) | Err(_) => return Err(Reason::UpstreamReset.into()),
            Ok(_) => {}
        }
        if let Some(status) = status_of(received.filled())? {
            return Ok(status);
        }
    }
}

/// The status in the first line of an answer, once it is there.
///
/// # Errors
/// It is no answer in HTTP/1.x.
pub(super) fn status_of(received: &[u8]) -> Result<Option<u16>, NoAnswer> {
    let begin = b"HTTP/1.";
    let length = received.len().min(begin.len());
    if received[..length] != begin[..length] {
        return Err(Reason::BadAnswer.into());
    }
    let Some(line) = received.first_chunk::<STATUS_BYTES>() else { return Ok(None) };
    let status = std::str::from_utf8(&line[9..]).ok().and_then(|digits| digits.parse().ok());
    status.map(Some).ok_or(Reason::BadAnswer.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_of_an_answer() {
        let bad = Err(NoAnswer::Failed(Reason::BadAnswer));
        for (received, status) in [
            ("", Ok(None)),
            ("HT", Ok(None)),
            ("HTTP/1.1 50", Ok(None)),
            ("HTTP/1.1 503", Ok(Some(503))),
            ("HTTP/1.0 200 OK\r\n", Ok(Some(200))),
            ("SSH-2.0", bad),
            ("HTTP/2 200 OK", bad),
            ("HTTP/1.1 2x0 OK", bad),
        ] {
            assert_eq!(status_of(received.as_bytes()), status, "{received}");
        }
    }
}

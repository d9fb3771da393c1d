//! What one shard has to tell another: the newest value of each subject, sent until acknowledged.
//!
//! A value that changes before it was sent replaces the old one; one that has been acknowledged is
//! silent until it changes. Off the request's path.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::message::{About, Body, Message, Stamp, Subject};
use super::mutation::{self, Mutation};
use crate::time::Nanos;

/// The first resend comes after this: a flush interval, by when an answer is due.
const RESEND_AFTER: Duration = Duration::from_millis(10);

/// Resends are at most so far apart, whatever was lost before: 8 flush intervals, so that 20 are
/// enough to converge.
const RESEND_AFTER_MAX: Duration = Duration::from_millis(80);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    /// In line to be sent.
    Ready,
    /// Sent; again at `due` if no answer comes.
    Sent { due: Nanos },
    /// The receiver has it.
    Acknowledged,
    /// The place is free.
    Free,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    body: Body,
    version: u32,
    wakes: bool,
    /// How long to wait for an answer.
    backoff: Duration,
    state: State,
}

/// One direction of one pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Outbox {
    entries: Vec<Entry>,
    index: BTreeMap<Subject, u32>,
    free: Vec<u32>,
    ready: VecDeque<u32>,
    /// Entries that are sent and not acknowledged.
    unacknowledged: Vec<u32>,
    /// Answers to what the other has sent.
    answers: VecDeque<(Stamp, Body)>,
}

impl Outbox {
    /// There is something to say. Nothing happens if the receiver is known to have it.
    pub fn publish(&mut self, body: Body, wakes: bool) {
        let Some(subject) = body.subject() else { return };
        let slot = match self.index.get(&subject) {
            Some(slot) => *slot,
            None => self.place(subject, body),
        };
        let entry = &mut self.entries[slot as usize];
        if entry.body == body && !matches!(entry.state, State::Free) {
            let heard = entry.state == State::Acknowledged;
            if heard || entry.wakes || !wakes {
                return;
            }
        }
        let settled = matches!(entry.state, State::Acknowledged | State::Free);
        // What the receiver must hear soon, it must hear even if something dull follows.
        entry.wakes = wakes || (entry.wakes && !settled);
        entry.body = body;
        entry.version = entry.version.wrapping_add(1);
        entry.backoff = RESEND_AFTER;
        if let State::Sent { .. } = entry.state {
            self.unacknowledged.retain(|other| *other != slot);
        }
        if entry.state != State::Ready {
            entry.state = State::Ready;
            self.ready.push_back(slot);
        }
    }

    fn place(&mut self, subject: Subject, body: Body) -> u32 {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.entries.push(Entry {
                    body,
                    version: 0,
                    wakes: false,
                    backoff: RESEND_AFTER,
                    state: State::Free,
                });
                (self.entries.len() - 1) as u32
            }
        };
        self.index.insert(subject, slot);
        slot
    }

    /// Answers a message of the other.
    pub fn answer(&mut self, stamp: Stamp, body: Body) {
        self.answers.push_back((stamp, body));
    }

    /// The next message to push.
    pub fn pop(&mut self, now: Nanos) -> Option<Message> {
        if let Some((stamp, body)) = self.answers.pop_front() {
            return Some(Message { wakes: false, stamp, body });
        }
        let slot = self.ready.pop_front()?;
        let entry = &mut self.entries[slot as usize];
        entry.state = State::Sent { due: now + entry.backoff };
        entry.backoff = (entry.backoff * 2).min(RESEND_AFTER_MAX);
        self.unacknowledged.push(slot);
        let stamp = Stamp { slot, version: entry.version };
        Some(Message { wakes: entry.wakes, stamp, body: entry.body })
    }

    /// The other's answer. Gives back what it acknowledges, the first time.
    pub fn answered(&mut self, stamp: Stamp, answer: Body) -> Option<Body> {
        let entry = self.entries.get_mut(stamp.slot as usize)?;
        if entry.version != stamp.version || mutation::is_on(Mutation::AcknowledgementForgotten) {
            return None; // It answers an older value.
        }
        let State::Sent { .. } = entry.state else { return None };
        if answer == Body::NotYet {
            return None; // The backoff goes on.
        }
        entry.state = State::Acknowledged;
        let body = entry.body;
        self.unacknowledged.retain(|other| *other != stamp.slot);
        (answer == Body::Ack).then_some(body)
    }

    /// Puts in line what has not been acknowledged in time.
    pub fn resend(&mut self, now: Nanos) {
        let entries = &mut self.entries;
        let ready = &mut self.ready;
        self.unacknowledged.retain(|slot| {
            let entry = &mut entries[*slot as usize];
            match entry.state {
                State::Sent { due } if now < due => true,
                _ => {
                    entry.state = State::Ready;
                    ready.push_back(*slot);
                    false
                }
            }
        });
    }

    /// When [`Outbox::resend`] has something to do that is worth a timer. What wakes nobody is
    /// worth none: it goes along when there is something else to do.
    pub fn due(&self) -> Nanos {
        self.unacknowledged
            .iter()
            .filter_map(|slot| match &self.entries[*slot as usize] {
                Entry { state: State::Sent { due }, wakes: true, .. } => Some(*due),
                _ => None,
            })
            .min()
            .unwrap_or(Nanos::NEVER)
    }

    /// Something is in line.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty() || !self.answers.is_empty()
    }

    /// Nothing is in line, and everything is acknowledged.
    pub fn is_silent(&self) -> bool {
        !self.is_ready() && self.unacknowledged.is_empty()
    }

    /// Forgets what is about somebody who is gone.
    pub fn forget(&mut self, gone: impl Fn(About) -> bool) {
        let Outbox { entries, index, free, ready, unacknowledged, .. } = self;
        index.retain(|subject, slot| {
            if !gone(subject.about()) {
                return true;
            }
            entries[*slot as usize].state = State::Free;
            free.push(*slot);
            ready.retain(|other| other != slot);
            unacknowledged.retain(|other| other != slot);
            false
        });
    }
}

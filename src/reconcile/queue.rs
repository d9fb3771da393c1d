//! Requests that wait: FIFO queues over one slab, each entry removable in constant time. Grows to
//! the largest number that ever waited at once, which limits bound; then it allocates no more.

/// Which waiter; stays good until it is served or cancelled, and is never mistaken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Waiter {
    place: u32,
    number: u64,
}

/// No entry.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry<T> {
    /// `None`: the place is free.
    value: Option<T>,
    number: u64,
    /// Who is served first, across queues: the lower one. The number, unless moved to a head.
    rank: u64,
    previous: u32,
    next: u32,
}

/// One queue of a [`Waiters`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Queue {
    head: u32,
    tail: u32,
    len: u32,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue { head: NONE, tail: NONE, len: 0 }
    }
}

impl Queue {
    /// How many wait.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What all queues of a shard are made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiters<T> {
    entries: Vec<Entry<T>>,
    free: u32,
    /// Counts all that ever waited: who is older.
    count: u64,
}

impl<T> Default for Waiters<T> {
    fn default() -> Waiters<T> {
        Waiters { entries: Vec::new(), free: NONE, count: 0 }
    }
}

impl<T: Copy> Waiters<T> {
    /// To the end of a queue.
    pub fn push(&mut self, queue: &mut Queue, value: T) -> Waiter {
        self.count += 1;
        let number = self.count;
        let entry = Entry { value: Some(value), number, rank: number, previous: NONE, next: NONE };
        let place = if self.free == NONE {
            self.entries.push(entry);
            (self.entries.len() - 1) as u32
        } else {
            let place = self.free;
            self.free = self.entries[place as usize].next;
            self.entries[place as usize] = entry;
            place
        };
        self.link(queue, place);
        Waiter { place, number }
    }

    /// From the head of one queue to the head of another, as another value; still the same waiter,
    /// but before all others.
    pub fn requeue(&mut self, from: &mut Queue, to: &mut Queue, value: T) {
        let place = from.head;
        if place == NONE {
            return;
        }
        self.unlink(from, place);
        let entry = &mut self.entries[place as usize];
        (entry.value, entry.rank) = (Some(value), 0);
        (entry.previous, entry.next) = (NONE, to.head);
        match to.head {
            NONE => to.tail = place,
            head => self.entries[head as usize].previous = place,
        }
        to.head = place;
        to.len += 1;
    }

    fn link(&mut self, queue: &mut Queue, place: u32) {
        let entry = &mut self.entries[place as usize];
        (entry.previous, entry.next) = (queue.tail, NONE);
        match queue.tail {
            NONE => queue.head = place,
            tail => self.entries[tail as usize].next = place,
        }
        queue.tail = place;
        queue.len += 1;
    }

    fn unlink(&mut self, queue: &mut Queue, place: u32) {
        let Entry { previous, next, .. } = self.entries[place as usize];
        match previous {
            NONE => queue.head = next,
            previous => self.entries[previous as usize].next = next,
        }
        match next {
            NONE => queue.tail = previous,
            next => self.entries[next as usize].previous = previous,
        }
        queue.len -= 1;
    }

    /// The head of a queue, and its rank: the lower one is served first, across queues.
    pub fn front(&self, queue: &Queue) -> Option<(T, u64)> {
        let entry = self.entries.get(queue.head as usize)?;
        entry.value.map(|value| (value, entry.rank))
    }

    /// Takes the oldest of a queue.
    pub fn pop(&mut self, queue: &mut Queue) -> Option<T> {
        let number = self.entries.get(queue.head as usize)?.number;
        self.remove(queue, Waiter { place: queue.head, number })
    }

    /// All that wait in a queue, the oldest first. Allocates: for rare changes of a plan.
    pub fn all(&self, queue: &Queue) -> Vec<Waiter> {
        let mut all = Vec::new();
        let mut place = queue.head;
        while let Some(entry) = self.entries.get(place as usize) {
            all.push(Waiter { place, number: entry.number });
            place = entry.next;
        }
        all
    }

    /// What waits there, if it still does.
    pub fn get(&self, waiter: Waiter) -> Option<T> {
        let entry = self.entries.get(waiter.place as usize)?;
        if entry.number == waiter.number { entry.value } else { None }
    }

    /// Takes one out of its queue. `None`: it does not wait any more.
    pub fn remove(&mut self, queue: &mut Queue, waiter: Waiter) -> Option<T> {
        let value = self.get(waiter)?;
        self.unlink(queue, waiter.place);
        self.entries[waiter.place as usize] =
            Entry { value: None, number: 0, rank: 0, previous: NONE, next: self.free };
        self.free = waiter.place;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against two ordinary queues.
        #[test]
        fn behaves_as_ordinary_queues_do(steps in prop::collection::vec((0u8..4, 0usize..2, 0usize..8), 1..200)) {
            let mut waiters = Waiters::default();
            let mut queues = [Queue::default(), Queue::default()];
            let mut model = [VecDeque::new(), VecDeque::new()];
            for (value, (step, at, which)) in steps.into_iter().enumerate() {
                match step {
                    0 => {
                        let waiter = waiters.push(&mut queues[at], value);
                        model[at].push_back((waiter, value));
                    }
                    1 => {
                        let expected = model[at].pop_front().map(|(_, value)| value);
                        prop_assert_eq!(waiters.pop(&mut queues[at]), expected);
                    }
                    2 => {
                        let [one, other] = &mut queues;
                        let (from, to) = if at == 0 { (one, other) } else { (other, one) };
                        waiters.requeue(from, to, value);
                        if let Some((waiter, _)) = model[at].pop_front() {
                            model[1 - at].push_front((waiter, value));
                        }
                    }
                    _ => {
                        if let Some((waiter, value)) = model[at].remove(which) {
                            prop_assert_eq!(waiters.remove(&mut queues[at], waiter), Some(value));
                            prop_assert_eq!(waiters.remove(&mut queues[at], waiter), None);
                        }
                    }
                }
                for (queue, model) in queues.iter().zip(&model) {
                    prop_assert_eq!(queue.len() as usize, model.len());
                    let front = waiters.front(queue).map(|(value, _)| value);
                    prop_assert_eq!(front, model.front().map(|(_, value)| *value));
                }
            }
        }
    }
}

//! A bounded table by key that knows who was used least recently. Chained, so that leaving costs
//! nothing later: no tombstones, no moment at which everything moves. It grows to its bound and
//! stays there.

use std::ops::{Index, IndexMut};

use super::Key;

/// No slot.
const NONE: u32 = u32::MAX;

/// Slots by key; a slot keeps its number until it is removed.
#[derive(Debug)]
pub(super) struct Table<V> {
    /// The first of each chain; a power of two of them.
    heads: Vec<u32>,
    slots: Vec<Slot<V>>,
    /// Free slots, linked by `chain`.
    free: u32,
    oldest: u32,
    newest: u32,
    len: usize,
    capacity: usize,
}

#[derive(Debug)]
struct Slot<V> {
    key: Key,
    chain: u32,
    older: u32,
    newer: u32,
    value: V,
}

impl<V> Table<V> {
    /// For so many keys, at least 1. The memory is asked for at once, so that no request waits for
    /// it; the kernel gives it as it is used.
    pub fn new(capacity: usize) -> Table<V> {
        let capacity = capacity.max(1);
        Table {
            heads: vec![NONE; capacity.next_power_of_two()],
            slots: Vec::with_capacity(capacity),
            free: NONE,
            oldest: NONE,
            newest: NONE,
            len: 0,
            capacity,
        }
    }

    /// Keys in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No key fits in any more.
    pub fn is_full(&self) -> bool {
        self.len >= self.capacity
    }

    /// For more keys, or for fewer: then the caller removes what is too much.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
        self.slots.reserve(self.capacity.saturating_sub(self.slots.len()));
        self.heads = vec![NONE; self.capacity.max(self.len).next_power_of_two()];
        let mut at = self.oldest;
        while at != NONE {
            let head = self.head(self.slots[at as usize].key);
            self.slots[at as usize].chain = std::mem::replace(&mut self.heads[head], at);
            at = self.slots[at as usize].newer;
        }
    }

    /// There are more keys in it than may be.
    pub fn is_too_full(&self) -> bool {
        self.len > self.capacity
    }

    fn head(&self, key: Key) -> usize {
        key.0 as usize & (self.heads.len() - 1)
    }

    /// Where a key is.
    #[inline]
    pub fn find(&self, key: Key) -> Option<u32> {
        let mut at = self.heads[self.head(key)];
        while at != NONE {
            let slot = &self.slots[at as usize];
            if slot.key == key {
                return Some(at);
            }
            at = slot.chain;
        }
        None
    }

    /// A key that is not in it, as the newest. Only if it is not full.
    pub fn insert(&mut self, key: Key, value: V) -> u32 {
        debug_assert!(!self.is_full() && self.find(key).is_none());
        let head = self.head(key);
        let slot = Slot { key, chain: self.heads[head], older: NONE, newer: NONE, value };
        let at = match self.free {
            NONE => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
            at => {
                self.free = self.slots[at as usize].chain;
                self.slots[at as usize] = slot;
                at
            }
        };
        self.heads[head] = at;
        self.len += 1;
        self.append(at);
        at
    }

    /// It was used now.
    #[inline]
    pub fn touch(&mut self, at: u32) {
        if self.newest != at {
            self.unlink(at);
            self.append(at);
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, at: u32) {
        self.unlink(at);
        let Slot { key, chain, .. } = self.slots[at as usize];
        let head = self.head(key);
        if self.heads[head] == at {
            self.heads[head] = chain;
        } else {
            let mut before = self.heads[head];
            while self.slots[before as usize].chain != at {
                before = self.slots[before as usize].chain;
            }
            self.slots[before as usize].chain = chain;
        }
        self.slots[at as usize].chain = std::mem::replace(&mut self.free, at);
        self.len -= 1;
    }

    /// Whose slot it is.
    pub fn key(&self, at: u32) -> Key {
        self.slots[at as usize].key
    }

    /// From the one that was used least recently on.
    pub fn by_age(&self) -> impl Iterator<Item = u32> + '_ {
        let first = Some(self.oldest).filter(|at| *at != NONE);
        std::iter::successors(first, |at| {
            Some(self.slots[*at as usize].newer).filter(|at| *at != NONE)
        })
    }

    fn append(&mut self, at: u32) {
        let before = std::mem::replace(&mut self.newest, at);
        let slot = &mut self.slots[at as usize];
        (slot.older, slot.newer) = (before, NONE);
        match before {
            NONE => self.oldest = at,
            before => self.slots[before as usize].newer = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let Slot { older, newer, .. } = self.slots[at as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
    }
}

impl<V> Index<u32> for Table<V> {
    type Output = V;

    fn index(&self, at: u32) -> &V {
        &self.slots[at as usize].value
    }
}

impl<V> IndexMut<u32> for Table<V> {
    fn index_mut(&mut self, at: u32) -> &mut V {
        &mut self.slots[at as usize].value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list that is searched from end to end.
        #[test]
        fn agrees_with_a_list(
            steps in prop::collection::vec((0u8..4, 0u128..12), 1..300), capacity in 1usize..9,
        ) {
            let mut table = Table::new(capacity);
            let mut list: Vec<(Key, u32)> = Vec::new();
            let mut capacity = capacity;
            for (count, (what, key)) in steps.into_iter().enumerate() {
                // Keys that share a chain, whatever the size.
                let key = Key((key << 64) | (key % 2));
                let found = table.find(key);
                let place = list.iter().position(|(other, _)| *other == key);
                prop_assert_eq!(found.map(|at| table[at]), place.map(|place| list[place].1));
                match (what, found, place) {
                    (0 | 1, None, _) if !table.is_full() => {
                        table.insert(key, count as u32);
                        list.push((key, count as u32));
                    }
                    (1, Some(at), Some(place)) => {
                        table.touch(at);
                        let entry = list.remove(place);
                        list.push(entry);
                    }
                    (2, Some(at), Some(place)) => {
                        table.remove(at);
                        list.remove(place);
                    }
                    (3, ..) => {
                        capacity = 1 + (key.0 >> 64) as usize;
                        table.set_capacity(capacity);
                        while table.is_too_full() {
                            let oldest = table.by_age().next().expect("it is not empty");
                            table.remove(oldest);
                            list.remove(0);
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), list.len());
                prop_assert_eq!(table.is_full(), list.len() >= capacity);
                let order: Vec<_> = table.by_age().map(|at| (table.key(at), table[at])).collect();
                prop_assert_eq!(&order, &list);
            }
        }
    }
}

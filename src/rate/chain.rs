//! Short lists that share one slab: vouchers of a bucket, those who wait for a token. A list that is
//! empty takes eight bytes, and none allocates once the slab has its size.

use slab::Slab;

/// No node.
const NONE: u32 = u32::MAX;

/// One list. Its nodes are in the [`Chains`] that it was made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    first: u32,
    last: u32,
}

impl Default for Chain {
    fn default() -> Chain {
        Chain { first: NONE, last: NONE }
    }
}

impl Chain {
    /// Nothing is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.first == NONE
    }
}

/// The nodes of many lists.
#[derive(Debug)]
pub(super) struct Chains<T>(Slab<(T, u32)>);

impl<T> Default for Chains<T> {
    fn default() -> Chains<T> {
        Chains(Slab::new())
    }
}

impl<T> Chains<T> {
    /// Appends.
    pub fn push(&mut self, chain: &mut Chain, value: T) {
        let at = self.0.insert((value, NONE)) as u32;
        match std::mem::replace(&mut chain.last, at) {
            NONE => chain.first = at,
            before => self.0[before as usize].1 = at,
        }
    }

    /// Takes the first one.
    pub fn pop(&mut self, chain: &mut Chain) -> Option<T> {
        if chain.is_empty() {
            return None;
        }
        let (value, next) = self.0.remove(chain.first as usize);
        chain.first = next;
        if next == NONE {
            chain.last = NONE;
        }
        Some(value)
    }

    /// Takes the first one that is meant.
    pub fn remove(&mut self, chain: &mut Chain, is_meant: impl Fn(&T) -> bool) -> Option<T> {
        let mut before = NONE;
        let mut at = chain.first;
        while at != NONE {
            let (value, next) = &self.0[at as usize];
            let next = *next;
            if is_meant(value) {
                match before {
                    NONE => chain.first = next,
                    before => self.0[before as usize].1 = next,
                }
                if next == NONE {
                    chain.last = before;
                }
                return Some(self.0.remove(at as usize).0);
            }
            (before, at) = (at, next);
        }
        None
    }

    /// All of them, in order.
    pub fn each<'a>(&'a self, chain: &Chain) -> impl Iterator<Item = &'a T> {
        let node = |at: u32| self.0.get(at as usize);
        let first = node(chain.first);
        std::iter::successors(first, move |(_, next)| node(*next)).map(|(value, _)| value)
    }

    /// The first one, to be changed.
    pub fn find_mut(&mut self, chain: &Chain, is_meant: impl Fn(&T) -> bool) -> Option<&mut T> {
        let mut at = chain.first;
        while at != NONE {
            let (value, next) = &self.0[at as usize];
            if is_meant(value) {
                return Some(&mut self.0[at as usize].0);
            }
            at = *next;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_share_a_slab_and_nothing_else() {
        let mut chains = Chains::default();
        let (mut one, mut two) = (Chain::default(), Chain::default());
        for value in 0..6 {
            chains.push(if value % 2 == 0 { &mut one } else { &mut two }, value);
        }
        assert_eq!(chains.remove(&mut one, |it| *it == 4), Some(4));
        assert_eq!(chains.remove(&mut one, |it| *it == 5), None);
        chains.push(&mut one, 6);
        *chains.find_mut(&two, |it| *it == 3).unwrap() = 7;
        assert_eq!(chains.each(&one).copied().collect::<Vec<_>>(), [0, 2, 6]);
        assert_eq!(chains.each(&two).copied().collect::<Vec<_>>(), [1, 7, 5]);
        assert_eq!(chains.remove(&mut two, |it| *it == 1), Some(1));
        assert_eq!([chains.pop(&mut two), chains.pop(&mut two)], [Some(7), Some(5)]);
        assert!(two.is_empty() && chains.pop(&mut two).is_none());
        chains.push(&mut two, 8);
        assert_eq!(chains.each(&two).copied().collect::<Vec<_>>(), [8]);
    }
}

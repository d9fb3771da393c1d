//! Answers that are kept, by what was asked for: bounded in bytes, and the one that was used least
//! recently goes first. One for each route and shard. Pure: times go in.
//!
//! ```text
//! key -> [variant, variant, ...]     of one key, by the fields that the answers' Vary names
//! use -> key                         all variants in the order of their last use
//! ```

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::fallbacks::FallbackCounters;
use crate::time::Nanos;

/// Variants of one key. More come of clients that make up what `Vary` names.
const VARIANTS_MAX: usize = 16;

/// What an answer takes beside its bytes, about.
const OVERHEAD_BYTES: usize = 256;

/// What a request says in a field that an answer varies by: its name, and the values if there are.
pub type Varied = (Box<[u8]>, Option<Box<[u8]>>);

/// An answer that was kept.
#[derive(Debug)]
pub struct Kept {
    /// Its head, as it came.
    pub head: Box<[u8]>,
    /// Its body, without framing.
    pub body: Box<[u8]>,
    /// When it came, as a `Date`.
    pub date: [u8; 29],
    /// By what it was chosen.
    pub vary: Vec<Varied>,
    /// It is for requests with credentials, too.
    pub is_shared: bool,
    /// How old it was when it came.
    pub age: Duration,
    /// When it came.
    pub since: Nanos,
    /// At which age it is of no more use.
    pub usable_for: Duration,
    /// When it was used last: greater is later. The store's own.
    pub used: Cell<u64>,
}

impl Kept {
    /// How old it is (RFC 9111, 4.2.3, by what its `Age` said; clocks are not compared).
    pub fn age(&self, now: Nanos) -> Duration {
        self.age + now.since(self.since)
    }

    /// Whether it may still be given.
    pub fn is_usable(&self, now: Nanos) -> bool {
        self.age(now) < self.usable_for
    }

    fn bytes(&self) -> usize {
        let varied = self.vary.iter();
        let varied =
            varied.map(|(name, value)| name.len() + value.as_ref().map_or(0, |it| it.len()));
        OVERHEAD_BYTES + self.head.len() + self.body.len() + varied.sum::<usize>()
    }
}

/// The answers of one route that one shard keeps.
#[derive(Debug)]
pub struct Store {
    kept: HashMap<Rc<[u8]>, Vec<Rc<Kept>>>,
    by_use: BTreeMap<u64, Rc<[u8]>>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
    /// Bytes and answers as the metrics were told. Another store may tell the same ones.
    told: (i64, i64),
    counters: Arc<FallbackCounters>,
}

impl Store {
    /// An empty one for so many bytes.
    pub fn new(bytes_max: usize, counters: Arc<FallbackCounters>) -> Store {
        let (kept, by_use) = (HashMap::new(), BTreeMap::new());
        Store { kept, by_use, uses: 0, bytes: 0, bytes_max, told: (0, 0), counters }
    }

    /// It may have so many bytes from now on.
    pub fn resize(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        self.shrink();
    }

    /// The newest answer for a key that fits a request. One that is too old is forgotten.
    pub fn find(
        &mut self,
        key: &[u8],
        now: Nanos,
        fits: impl Fn(&Kept) -> bool,
    ) -> Option<Rc<Kept>> {
        let found = self.look(key, now, fits)?;
        let (key, _) = self.kept.get_key_value(key)?;
        self.uses += 1;
        let before = found.used.replace(self.uses);
        self.by_use.remove(&before);
        self.by_use.insert(self.uses, key.clone());
        Some(found)
    }

    /// The same, without a use of it.
    pub fn look(
        &mut self,
        key: &[u8],
        now: Nanos,
        fits: impl Fn(&Kept) -> bool,
    ) -> Option<Rc<Kept>> {
        self.remove(key, |kept| !kept.is_usable(now));
        let fitting = self.kept.get(key)?.iter().filter(|kept| fits(kept));
        fitting.max_by_key(|kept| kept.since).cloned()
    }

    /// Keeps an answer in place of those that fit the same request. One that is too large for the
    /// store is not kept.
    pub fn keep(&mut self, key: &[u8], kept: Kept, fits: impl Fn(&Kept) -> bool) {
        self.remove(key, fits);
        if kept.bytes() + key.len() > self.bytes_max {
            return;
        }
        let variants = self.kept.get(key).map_or(&[][..], Vec::as_slice);
        if variants.len() >= VARIANTS_MAX
            && let Some(oldest) = variants.iter().map(|kept| kept.used.get()).min()
        {
            self.remove(key, |kept| kept.used.get() == oldest);
        }
        let key = self.kept.get_key_value(key).map_or_else(|| key.into(), |(key, _)| key.clone());
        self.uses += 1;
        kept.used.set(self.uses);
        self.bytes += kept.bytes() + key.len();
        self.by_use.insert(self.uses, key.clone());
        self.kept.entry(key).or_default().push(Rc::new(kept));
        self.shrink();
    }

    /// Forgets what is kept for a key, as far as it is meant.
    pub fn remove(&mut self, key: &[u8], is_meant: impl Fn(&Kept) -> bool) {
        let Some(variants) = self.kept.get_mut(key) else { return };
        let (bytes, by_use) = (&mut self.bytes, &mut self.by_use);
        variants.retain(|kept| {
            let goes = is_meant(kept);
            if goes {
                by_use.remove(&kept.used.get());
                *bytes -= kept.bytes() + key.len();
            }
            !goes
        });
        if variants.is_empty() {
            self.kept.remove(key);
        }
        self.publish();
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        self.by_use.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_use.is_empty()
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max
            && let Some((used, key)) = self.by_use.pop_first()
        {
            self.remove(&key, |kept| kept.used.get() == used);
        }
        self.publish();
    }

    fn publish(&mut self) {
        self.tell(self.bytes as i64, self.len() as i64);
    }

    fn tell(&mut self, bytes: i64, answers: i64) {
        let (bytes_before, answers_before) = std::mem::replace(&mut self.told, (bytes, answers));
        self.counters.kept_bytes.add(bytes - bytes_before);
        self.counters.kept_answers.add(answers - answers_before);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.tell(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn store(bytes_max: usize) -> Store {
        Store::new(bytes_max, Arc::default())
    }

    /// An answer with this body, in this variant.
    fn kept(body: &[u8], variant: u8, since: u64) -> Kept {
        Kept {
            head: Box::default(),
            body: body.into(),
            date: [b' '; 29],
            vary: vec![(b"v".as_slice().into(), Some([variant].as_slice().into()))],
            is_shared: false,
            age: Duration::ZERO,
            since: Nanos(since),
            usable_for: Duration::from_nanos(100),
            used: Cell::default(),
        }
    }

    fn is(variant: u8) -> impl Fn(&Kept) -> bool {
        move |kept| kept.vary[0].1.as_deref() == Some(&[variant])
    }

    /// What one of them takes.
    fn size(body: &[u8], key: &[u8]) -> usize {
        kept(body, 0, 0).bytes() + key.len()
    }

    #[test]
    fn the_last_answer_of_a_variant_is_kept_until_it_is_too_old() {
        let mut store = store(10_000);
        store.keep(b"a", kept(b"one", 1, 0), is(1));
        store.keep(b"a", kept(b"two", 2, 10), is(2));
        store.keep(b"a", kept(b"three", 1, 20), is(1));
        let found = |store: &mut Store, variant, now| {
            store.find(b"a", Nanos(now), is(variant)).map(|kept| kept.body.to_vec())
        };
        assert_eq!(found(&mut store, 1, 50), Some(b"three".to_vec()));
        assert_eq!(found(&mut store, 2, 109), Some(b"two".to_vec()));
        assert_eq!(found(&mut store, 2, 110), None);
        assert_eq!(store.len(), 1);
        assert_eq!(found(&mut store, 1, 200), None);
        assert_eq!((store.len(), store.bytes), (0, 0));
        assert!(store.kept.is_empty() && store.by_use.is_empty());
    }

    #[test]
    fn who_was_used_least_recently_goes_first() {
        let size = size(b"x", b"a");
        let mut store = store(2 * size);
        store.keep(b"a", kept(b"x", 0, 0), is(0));
        store.keep(b"b", kept(b"x", 0, 0), is(0));
        assert!(store.find(b"a", Nanos(1), is(0)).is_some());
        store.keep(b"c", kept(b"x", 0, 0), is(0));
        let has = |store: &mut Store, key: &[u8]| store.look(key, Nanos(1), is(0)).is_some();
        assert!(has(&mut store, b"a") && !has(&mut store, b"b") && has(&mut store, b"c"));
        store.resize(size);
        assert!(!has(&mut store, b"a") && has(&mut store, b"c"));
        store.keep(b"d", kept(&[0; 1000], 0, 0), is(0));
        assert!(has(&mut store, b"c"), "what fits nowhere displaces nobody");
    }

    #[test]
    fn variants_are_bounded() {
        let mut store = store(usize::MAX);
        for variant in 0..100 {
            store.keep(b"a", kept(b"x", variant, 0), is(variant));
        }
        assert_eq!(store.len(), VARIANTS_MAX);
        assert!(store.look(b"a", Nanos(1), is(99)).is_some());
        assert!(store.look(b"a", Nanos(1), is(83)).is_none());
    }

    proptest! {
        /// Against a list that is searched from one end to the other.
        #[test]
        fn it_does_what_a_list_does(
            steps in prop::collection::vec((0u8..3, 0u8..6, 0u8..3, 0usize..400), 1..200),
        ) {
            let bytes_max = 2_000;
            let mut store = store(bytes_max);
            // The last used at the end.
            let mut list: Vec<(u8, u8, usize)> = Vec::new();
            for (what, key, variant, length) in steps {
                let place = list.iter().position(|it| (it.0, it.1) == (key, variant));
                match what {
                    0 => {
                        store.keep(&[key], kept(&vec![0; length], variant, 0), is(variant));
                        place.map(|place| list.remove(place));
                        list.push((key, variant, length));
                        while list.iter().map(|it| size(&vec![0; it.2], &[0])).sum::<usize>()
                            > bytes_max
                        {
                            list.remove(0);
                        }
                    }
                    1 => {
                        let found = store.find(&[key], Nanos(1), is(variant));
                        prop_assert_eq!(found.map(|it| it.body.len()), place.map(|at| list[at].2));
                        if let Some(place) = place {
                            let it = list.remove(place);
                            list.push(it);
                        }
                    }
                    _ => {
                        store.remove(&[key], |_| true);
                        list.retain(|it| it.0 != key);
                    }
                }
                let bytes: usize = list.iter().map(|it| size(&vec![0; it.2], &[0])).sum();
                prop_assert_eq!((store.len(), store.bytes), (list.len(), bytes));
                prop_assert_eq!(store.counters.kept_bytes.get(), bytes as i64);
            }
        }
    }
}

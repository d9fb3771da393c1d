//! The home's side of the limits of one kind: who holds how much, who starves, who has to give
//! back. Pure; called by `home`.
//!
//! Asks stand in a FIFO. Each names its whole set, the cluster's limit and perhaps an endpoint's,
//! and is granted all or nothing: taking one credit after the other would deadlock. An entry that
//! is blocked may be passed by a later one; it cannot starve, since what it lacks is recalled for
//! it, and what came back for it stays free until the rest does.

use std::collections::{BTreeMap, VecDeque};

use super::mutation::{self, Mutation};
use super::plan::{PLENTY, UNLIMITED, first_share};
use super::{EndpointId, ShardId};

/// What the home knows of one shard and one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Account {
    granted: u64,
    returned: u64,
    recalled: u64,
}

impl Account {
    fn held(&self) -> u64 {
        self.granted - self.returned
    }

    fn owed(&self) -> u64 {
        self.recalled.saturating_sub(self.returned).min(self.held())
    }
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Ledger {
    limit: u64,
    lent: u64,
    accounts: Vec<Account>,
}

impl Ledger {
    fn new(limit: u64, shards: u16) -> Ledger {
        let first = first_share(limit, shards);
        let account = Account { granted: first, returned: 0, recalled: 0 };
        Ledger { limit, lent: first * u64::from(shards), accounts: vec![account; shards.into()] }
    }

    /// What the limit comes to in credits.
    fn total(&self) -> u64 {
        match self.limit {
            UNLIMITED => PLENTY * self.accounts.len() as u64,
            limit => limit,
        }
    }

    fn free(&self) -> u64 {
        self.total().saturating_sub(self.lent)
    }

    fn grant(&mut self, shard: ShardId, count: u64) {
        self.lent += count;
        self.accounts[usize::from(shard.0)].granted += count;
    }

    /// Books a return. `true`: it is news.
    fn book(&mut self, shard: ShardId, returned: u64) -> bool {
        let account = &mut self.accounts[usize::from(shard.0)];
        if returned <= account.returned || mutation::is_on(Mutation::ReturnLost) {
            return false;
        }
        self.lent -= returned - account.returned;
        account.returned = returned;
        true
    }

    /// Demands so many more of a shard than it has returned so far, at most all it holds.
    /// `true`: more than was demanded before.
    fn recall(&mut self, shard: ShardId, count: u64) -> bool {
        let account = &mut self.accounts[usize::from(shard.0)];
        let count = count.min(account.held());
        let demanded = account.returned + count;
        let news = count > 0 && demanded > account.recalled;
        account.recalled = account.recalled.max(demanded);
        news
    }

    /// More is lent than the limit allows: each holder owes its part of the excess.
    fn recall_excess(&mut self) -> Vec<ShardId> {
        let excess = self.lent.saturating_sub(self.total());
        let owed: u64 = self.accounts.iter().map(Account::owed).sum();
        if owed >= excess {
            return Vec::new();
        }
        let part = |held: u64| {
            (u128::from(excess) * u128::from(held)).div_ceil(u128::from(self.lent)) as u64
        };
        let parts: Vec<u64> = self.accounts.iter().map(|account| part(account.held())).collect();
        self.shards().filter(|shard| self.recall(*shard, parts[usize::from(shard.0)])).collect()
    }

    fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.accounts.len() as u16).map(ShardId)
    }
}

/// What is asked for beside the cluster's limit.
type Target = Option<EndpointId>;

/// What a shard has asked for and been granted, of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Asked {
    granted: u64,
    wanted: u64,
}

impl Asked {
    fn need(&self) -> u64 {
        self.wanted.saturating_sub(self.granted)
    }
}

/// All limits of one kind: the cluster's and those of its endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lender {
    shards: u16,
    cluster: Ledger,
    endpoints: BTreeMap<EndpointId, Ledger>,
    asked: BTreeMap<(ShardId, Target), Asked>,
    fifo: VecDeque<(ShardId, Target)>,
    /// What of the cluster's limit each shard is told to have been granted, when it is told about
    /// that limit alone: without what comes later, together with an endpoint's. Else a recall that
    /// overtakes such a pair would tear it apart, and the shard would have to ask again.
    told: Vec<u64>,
    /// Who is to be told about which limit.
    changed: Vec<(ShardId, Target)>,
}

/// What a shard is told about a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Terms {
    pub granted: u64,
    pub recalled: u64,
    pub cluster_granted: u64,
}

/// For the simulator and the metrics: one limit, as its home sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lent {
    /// The limit, in credits.
    pub limit: u64,
    /// Lent to all shards together.
    pub lent: u64,
}

impl Lender {
    pub fn new(limit: u64, shards: u16) -> Lender {
        Lender {
            shards,
            cluster: Ledger::new(limit, shards),
            endpoints: BTreeMap::new(),
            asked: BTreeMap::new(),
            fifo: VecDeque::new(),
            told: vec![first_share(limit, shards); shards.into()],
            changed: Vec::new(),
        }
    }

    /// A new endpoint. Both sides begin with its first share.
    pub fn add(&mut self, endpoint: EndpointId, limit: u64) {
        self.endpoints.insert(endpoint, Ledger::new(limit, self.shards));
        for shard in self.cluster.shards() {
            let asked = Asked { granted: first_share(limit, self.shards), wanted: 0 };
            self.asked.insert((shard, Some(endpoint)), asked);
        }
    }

    /// An endpoint is gone; what was granted of the cluster's limit together with it is told anew,
    /// without it.
    pub fn remove(&mut self, endpoint: EndpointId) {
        if self.endpoints.remove(&endpoint).is_none() {
            return;
        }
        self.asked.retain(|(_, target), _| *target != Some(endpoint));
        self.fifo.retain(|(_, target)| *target != Some(endpoint));
        self.changed.retain(|(_, target)| *target != Some(endpoint));
        for shard in self.cluster.shards() {
            self.tell_all(shard);
        }
    }

    /// Tells a shard about the cluster's limit, and all that was granted of it.
    fn tell_all(&mut self, shard: ShardId) {
        let index = usize::from(shard.0);
        self.told[index] = self.cluster.accounts[index].granted;
        self.changed.push((shard, None));
    }

    /// A new limit, of the cluster or of an endpoint. Lowering one is itself a recall.
    pub fn set_limit(&mut self, target: Target, limit: u64) {
        let shards = self.cluster.shards();
        let Some(ledger) = self.ledger_mut(target) else { return };
        let is_lifted = limit == UNLIMITED && ledger.limit != UNLIMITED;
        ledger.limit = limit;
        if !is_lifted {
            return;
        }
        // Nobody needs to ask for what there is plenty of.
        for shard in shards {
            let Some(ledger) = self.ledger_mut(target) else { return };
            let missing = PLENTY.saturating_sub(ledger.accounts[usize::from(shard.0)].held());
            let count = missing.min(ledger.free());
            ledger.grant(shard, count);
            match target {
                None => self.tell_all(shard),
                Some(_) => {
                    self.asked.entry((shard, target)).or_default().granted += count;
                    self.changed.push((shard, target));
                }
            }
        }
    }

    /// What a shard says about a limit.
    pub fn debit(&mut self, shard: ShardId, target: Target, returned: u64, wanted: u64) {
        let Some(ledger) = self.ledger_mut(target) else { return };
        ledger.book(shard, returned);
        let asked = self.asked.entry((shard, target)).or_default();
        asked.wanted = asked.wanted.max(wanted);
        if asked.need() > 0 && !self.fifo.contains(&(shard, target)) {
            self.fifo.push_back((shard, target));
        }
    }

    /// Lends what is free, recalls what is missing. Then [`Lender::changed`] has the news.
    pub fn balance(&mut self) {
        self.lend();
        self.recall();
    }

    /// Whom to tell what, since the last call.
    pub fn changed(&mut self) -> Vec<(ShardId, Target, Terms)> {
        let mut changed = std::mem::take(&mut self.changed);
        // Pairs first: a grant serves who waits before a recall takes it away again.
        changed.sort_unstable_by(|one, other| other.cmp(one));
        changed.dedup();
        changed
            .into_iter()
            .filter_map(|(shard, target)| Some((shard, target, self.terms(shard, target)?)))
            .collect()
    }

    pub fn terms(&self, shard: ShardId, target: Target) -> Option<Terms> {
        let index = usize::from(shard.0);
        let granted = self.asked.get(&(shard, target)).map_or(0, |asked| asked.granted);
        Some(Terms {
            granted,
            recalled: self.ledger(target)?.accounts[index].recalled,
            cluster_granted: match target {
                None => self.told[index],
                Some(_) => self.cluster.accounts[index].granted,
            },
        })
    }

    /// A limit as it stands.
    pub fn lent(&self, target: Target) -> Option<Lent> {
        self.ledger(target).map(|ledger| Lent { limit: ledger.total(), lent: ledger.lent })
    }

    /// What the home knows of a shard: granted and returned.
    pub fn account(&self, shard: ShardId, target: Target) -> Option<(u64, u64)> {
        let account = self.ledger(target)?.accounts[usize::from(shard.0)];
        Some((account.granted, account.returned))
    }

    fn lend(&mut self) {
        loop {
            let mut served = Vec::new();
            let mut progress = false;
            for _ in 0..self.fifo.len() {
                let Some(entry) = self.fifo.pop_front() else { break };
                let need = self.asked.get(&entry).map_or(0, Asked::need);
                let count = if need == 0 { 0 } else { self.quantity(entry, need) };
                if count > 0 {
                    self.grant(entry, count);
                    progress = true;
                }
                match (need > count, count > 0) {
                    (false, _) => {}
                    // Who got something and wants more goes behind those who got nothing.
                    (true, true) => served.push(entry),
                    // Round once, so that the order stays.
                    (true, false) => self.fifo.push_back(entry),
                }
            }
            self.fifo.extend(served);
            if !progress {
                return;
            }
        }
    }

    fn grant(&mut self, (shard, target): (ShardId, Target), count: u64) {
        self.cluster.grant(shard, count);
        if let Some(ledger) = target.and_then(|endpoint| self.endpoints.get_mut(&endpoint)) {
            ledger.grant(shard, count);
        }
        self.asked.entry((shard, target)).or_default().granted += count;
        match target {
            None => self.tell_all(shard),
            Some(_) => self.changed.push((shard, target)),
        }
    }

    /// As many as are free of the whole set: what is needed, and while nobody else waits some more,
    /// so that a shard with traffic does not ask for each request.
    fn quantity(&self, (_, target): (ShardId, Target), need: u64) -> u64 {
        let free = |ledger: &Ledger| (ledger.free(), ledger.total());
        let (mut count, mut total) = free(&self.cluster);
        if let Some(endpoint) = target.and_then(|endpoint| self.endpoints.get(&endpoint)) {
            let (free, limit) = free(endpoint);
            if !mutation::is_on(Mutation::EndpointLimitIgnored) {
                count = count.min(free);
            }
            total = total.min(limit);
        }
        let waiting = self.fifo.len() as u64;
        if waiting > 0 {
            return need.min(count.div_ceil(waiting + 1));
        }
        count.min(need.max(total / (4 * u64::from(self.shards))))
    }

    fn recall(&mut self) {
        let excess = self.cluster.recall_excess();
        self.changed.extend(excess.into_iter().map(|shard| (shard, None)));
        for (endpoint, ledger) in &mut self.endpoints {
            let excess = ledger.recall_excess();
            self.changed.extend(excess.into_iter().map(|shard| (shard, Some(*endpoint))));
        }
        if self.fifo.is_empty() {
            return;
        }
        let is_free = |target: &Target| {
            target.is_none_or(|it| self.endpoints.get(&it).is_some_and(|it| it.free() > 0))
        };
        if self.cluster.free() == 0 {
            for holder in self.cluster.shards() {
                let mut others: Vec<ShardId> =
                    self.fifo.iter().map(|(shard, _)| *shard).filter(|it| *it != holder).collect();
                others.sort_unstable();
                others.dedup();
                // Its own requests to other endpoints may hold what this one lacks.
                let own = self
                    .fifo
                    .iter()
                    .any(|(shard, target)| *shard == holder && target.is_some() && is_free(target));
                let count = others.len() as u64 + u64::from(own);
                if self.cluster.recall(holder, count) {
                    self.changed.push((holder, None));
                }
            }
        }
        for (endpoint, ledger) in &mut self.endpoints {
            if ledger.free() > 0 {
                continue;
            }
            for holder in ledger.shards() {
                let others = self
                    .fifo
                    .iter()
                    .filter(|(shard, target)| *target == Some(*endpoint) && *shard != holder)
                    .count();
                if ledger.recall(holder, others as u64) {
                    self.changed.push((holder, Some(*endpoint)));
                }
            }
        }
    }

    fn ledger(&self, target: Target) -> Option<&Ledger> {
        match target {
            None => Some(&self.cluster),
            Some(endpoint) => self.endpoints.get(&endpoint),
        }
    }

    fn ledger_mut(&mut self, target: Target) -> Option<&mut Ledger> {
        match target {
            None => Some(&mut self.cluster),
            Some(endpoint) => self.endpoints.get_mut(&endpoint),
        }
    }
}

//! One breaker and one or two views of it, driven by hand: each rule once.

use std::time::Duration;

use super::*;
use crate::reconcile::ShardId;
use crate::rng::Rng;

const ZERO: ShardId = ShardId(0);
const ONE: ShardId = ShardId(1);

fn at(millis: u64) -> Nanos {
    Nanos(1_000_000_000 + millis * 1_000_000)
}

fn settings() -> Settings {
    Settings::default()
}

/// A breaker for two shards, and their views, told of everything at once.
struct Pair {
    breaker: Breaker,
    views: [View; 2],
    rng: Rng,
    settings: Settings,
}

impl Pair {
    fn new(settings: Settings) -> Pair {
        Pair {
            breaker: Breaker::new(settings, 2),
            views: [View::default(), View::default()],
            rng: Rng::new(1),
            settings,
        }
    }

    /// A request through the view of a shard; its report reaches the home. Says whether it trips.
    fn request(&mut self, shard: ShardId, outcome: Outcome, now: Nanos) -> bool {
        self.timed(shard, outcome, Duration::ZERO, now)
    }

    fn timed(&mut self, shard: ShardId, outcome: Outcome, took: Duration, now: Nanos) -> bool {
        let view = &mut self.views[usize::from(shard.0)];
        let pass = view.take();
        view.record(&self.settings, pass, outcome, took, now);
        let report = *view.report();
        self.breaker.report(shard, &report, now)
    }

    fn trip(&mut self, now: Nanos) {
        self.breaker.trip(now, &mut self.rng);
        self.tell();
    }

    fn tick(&mut self, now: Nanos) -> bool {
        let ticked = self.breaker.tick(now, &mut self.rng);
        self.tell();
        ticked
    }

    fn tell(&mut self) {
        for view in &mut self.views {
            view.apply(self.breaker.epoch(), self.breaker.phase());
        }
    }

    /// Open, then half-open, at the time it returns.
    fn half_open(&mut self) -> Nanos {
        self.trip(at(0));
        assert!(self.tick(at(5_000)));
        assert_eq!(self.breaker.state(), State::HalfOpen);
        at(5_000)
    }

    /// A shard asks and gets a permit, and sends a probe.
    fn probe(&mut self, shard: ShardId, now: Nanos) -> Pass {
        let view = &mut self.views[usize::from(shard.0)];
        let number = view.want_permit().expect("may ask");
        self.breaker.ask(shard, self.breaker.epoch(), number);
        let (to, permit) = self.breaker.grant(now).expect("is granted");
        assert_eq!(to, shard);
        assert!(view.accept(permit, now));
        assert_eq!(view.admits(&self.settings, now, 0), Admits::Yes);
        view.take()
    }

    fn settle(&mut self, shard: ShardId, pass: Pass, outcome: Outcome, now: Nanos) -> bool {
        let view = &mut self.views[usize::from(shard.0)];
        assert!(view.record(&self.settings, pass, outcome, Duration::ZERO, now));
        let settlement = view.settled().expect("settled");
        let changed = self.breaker.settle(shard, settlement, now, &mut self.rng);
        self.tell();
        changed
    }
}

#[test]
fn a_run_trips_and_stops_its_shard_at_once() {
    let mut pair = Pair::new(settings());
    for _ in 0..4 {
        assert!(!pair.request(ZERO, Outcome::Failure, at(0)));
    }
    assert!(!pair.views[0].report().has_stopped());
    assert!(pair.request(ZERO, Outcome::Failure, at(0)));
    assert_eq!(pair.views[0].admits(&settings(), at(0), 0), Admits::No);
    assert_eq!(pair.breaker.unanswered_run(ZERO), Some(1));
    pair.trip(at(0));
    assert_eq!(pair.breaker.state(), State::Open { until: at(5_000) });
    assert_eq!(pair.views[1].admits(&settings(), at(0), 0), Admits::No);
}

#[test]
fn a_success_ends_a_run() {
    let mut pair = Pair::new(settings());
    for _ in 0..4 {
        pair.request(ZERO, Outcome::Failure, at(0));
    }
    pair.request(ZERO, Outcome::Success, at(1));
    assert!(!pair.request(ZERO, Outcome::Failure, at(2)));
}

/// A run may be spread over shards; but a success on any of them, or age, ends it.
#[test]
fn young_tails_add_up() {
    let mut pair = Pair::new(settings());
    for _ in 0..3 {
        assert!(!pair.request(ZERO, Outcome::Failure, at(0)));
    }
    assert!(!pair.request(ONE, Outcome::Failure, at(10)));
    assert!(pair.request(ONE, Outcome::Failure, at(20)));

    let mut pair = Pair::new(settings());
    for _ in 0..3 {
        pair.request(ZERO, Outcome::Failure, at(0));
    }
    pair.request(ONE, Outcome::Success, at(10));
    pair.request(ONE, Outcome::Failure, at(20));
    assert!(!pair.request(ONE, Outcome::Failure, at(30)), "disproved by the other shard");

    let mut pair = Pair::new(settings());
    for _ in 0..3 {
        pair.request(ZERO, Outcome::Failure, at(0));
    }
    pair.request(ONE, Outcome::Failure, at(10_001));
    assert!(!pair.request(ONE, Outcome::Failure, at(10_002)), "an old story");
}

#[test]
fn a_share_trips_from_twenty_requests_on() {
    let mut pair = Pair::new(settings());
    for step in 0..18 {
        let outcome = if step % 2 == 0 { Outcome::Failure } else { Outcome::Success };
        assert!(!pair.request(ShardId(step % 4 / 2), outcome, at(step.into())), "{step}");
    }
    assert!(!pair.request(ZERO, Outcome::Success, at(20)));
    assert!(pair.request(ZERO, Outcome::Failure, at(21)), "10 of 20");
}

#[test]
fn a_share_of_slow_requests_trips_if_asked_for() {
    let limits = Settings { latency_max: Some(Duration::from_millis(100)), ..settings() };
    for (settings, trips) in [(limits, true), (settings(), false)] {
        let mut pair = Pair::new(settings);
        let mut tripped = false;
        for step in 0..20 {
            let took = Duration::from_millis(if step % 2 == 0 { 101 } else { 100 });
            tripped = pair.timed(ZERO, Outcome::Success, took, at(step));
        }
        assert_eq!(tripped, trips);
    }
}

#[test]
fn what_never_counts() {
    let mut pair = Pair::new(settings());
    for _ in 0..100 {
        assert!(!pair.request(ZERO, Outcome::Neutral, at(0)));
    }
    assert_eq!(pair.views[0].report().requests, 0);
}

#[test]
fn late_answers_count_nowhere() {
    let mut pair = Pair::new(settings());
    let early = pair.views[0].take();
    let stale = *pair.views[0].report();
    pair.trip(at(0));
    pair.views[0].record(&settings(), early, Outcome::Failure, Duration::ZERO, at(1));
    assert_eq!(pair.views[0].report().requests, 0);
    let old = Report { requests: 9, failures: 9, tail: 9, ..stale };
    assert!(!pair.breaker.report(ZERO, &old, at(1)));
    // A success from before the trip closes nothing, half-open or not.
    pair.tick(at(5_000));
    pair.views[0].record(&settings(), early, Outcome::Success, Duration::ZERO, at(5_001));
    assert_eq!(pair.breaker.state(), State::HalfOpen);
}

#[test]
fn a_refusal_answers_one_run() {
    let mut pair = Pair::new(settings());
    for _ in 0..5 {
        pair.request(ZERO, Outcome::Failure, at(0));
    }
    pair.breaker.refuse_trip(at(0));
    assert!(!pair.views[0].refuse(Epoch(0), 7), "another run");
    assert!(pair.views[0].refuse(Epoch(0), 1));
    assert_eq!(pair.views[0].admits(&settings(), at(0), 0), Admits::Yes);
    assert_eq!(pair.breaker.refused_at(), Some(at(0)));
    pair.request(ZERO, Outcome::Success, at(1));
    assert_eq!(pair.breaker.refused_at(), None, "it answers again");
    for _ in 0..5 {
        pair.request(ZERO, Outcome::Failure, at(2));
    }
    assert_eq!(pair.breaker.unanswered_run(ZERO), Some(2));
}

#[test]
fn the_open_time_doubles_up_to_its_maximum() {
    let mut pair = Pair::new(settings());
    let mut now = pair.half_open();
    let mut expected = 5u64;
    for _ in 0..10 {
        let pass = pair.probe(ZERO, now);
        assert!(pair.settle(ZERO, pass, Outcome::Failure, now));
        let State::Open { until } = pair.breaker.state() else { panic!("not open") };
        expected = (expected * 2).min(300);
        let open = until.since(now);
        let longest = Duration::from_secs(expected);
        assert!(open <= longest && open > longest * 9 / 10, "{open:?} of {longest:?}");
        assert!(!pair.tick(Nanos(until.0 - 1)));
        assert!(pair.tick(until));
        now = until;
    }
}

#[test]
fn all_probes_must_succeed() {
    let mut pair = Pair::new(Settings { probes: 2, ..settings() });
    let now = pair.half_open();
    let (one, two) = (pair.probe(ZERO, now), pair.probe(ONE, now));
    assert!(!pair.settle(ZERO, one, Outcome::Success, now));
    assert!(pair.settle(ONE, two, Outcome::Success, now));
    assert_eq!(pair.breaker.state(), State::Recovering { since: now });

    let mut pair = Pair::new(Settings { probes: 2, ..settings() });
    let now = pair.half_open();
    let (one, two) = (pair.probe(ZERO, now), pair.probe(ONE, now));
    assert!(pair.settle(ZERO, one, Outcome::Failure, now));
    // The other is still out: no half-open before it is settled, however late that is.
    assert!(!pair.tick(at(1_000_000)));
    assert!(pair.settle(ONE, two, Outcome::Success, at(1_000_000)));
    assert_eq!(pair.breaker.state(), State::HalfOpen);
}

#[test]
fn an_unused_permit_goes_to_the_next_under_a_new_serial() {
    let mut pair = Pair::new(settings());
    let now = pair.half_open();
    for (view, shard) in pair.views.iter_mut().zip([ZERO, ONE]) {
        let number = view.want_permit().unwrap();
        pair.breaker.ask(shard, pair.breaker.epoch(), number);
    }
    let (shard, permit) = pair.breaker.grant(now).unwrap();
    assert_eq!((shard, permit.serial), (ZERO, 1));
    assert!(pair.breaker.grant(now).is_none(), "one probe");
    let view = &mut pair.views[0];
    assert!(view.accept(permit, now));
    assert!(!view.tick(Nanos(permit.use_by.0 - 1)));
    assert!(view.tick(permit.use_by));
    assert_eq!(view.admits(&settings(), permit.use_by, 0), Admits::WithPermit);
    assert!(!view.accept(permit, now), "a serial counts once");
    let settlement = view.settled().unwrap();
    assert!(!pair.breaker.settle(ZERO, settlement, permit.use_by, &mut pair.rng));
    let (shard, permit) = pair.breaker.grant(permit.use_by).unwrap();
    assert_eq!((shard, permit.serial), (ONE, 2));
    // The settlement again does not free it once more.
    pair.breaker.settle(ZERO, settlement, permit.use_by, &mut pair.rng);
    assert!(pair.breaker.grant(permit.use_by).is_none());
}

#[test]
fn silence_opens_anew_without_doubling_and_waits_for_settlement() {
    let mut pair = Pair::new(settings());
    let now = pair.half_open();
    let pass = pair.probe(ZERO, now);
    let (permit, _) = pair.views[0].permit().unwrap();
    let silent = permit.end + SETTLE_GRACE;
    assert!(!pair.tick(Nanos(silent.0 - 1)));
    assert!(pair.tick(silent));
    assert_eq!(pair.breaker.state(), State::Open { until: silent + Duration::from_secs(5) });
    assert!(!pair.tick(silent + Duration::from_secs(500)), "the probe may still be out");
    let late = silent + Duration::from_secs(501);
    assert!(pair.settle(ZERO, pass, Outcome::Success, late), "and now it is not");
    assert_eq!(pair.breaker.state(), State::HalfOpen, "but its success counts nowhere");
}

#[test]
fn a_probe_past_its_end_has_failed() {
    let mut pair = Pair::new(settings());
    let now = pair.half_open();
    let pass = pair.probe(ZERO, now);
    let (permit, _) = pair.views[0].permit().unwrap();
    pair.settle(ZERO, pass, Outcome::Success, permit.end);
    assert!(matches!(pair.breaker.state(), State::Open { .. }));
}

#[test]
fn withdrawn_and_repeated_asks_get_nothing() {
    let mut pair = Pair::new(settings());
    let now = pair.half_open();
    let epoch = pair.breaker.epoch();
    let (ask, withdrawal) =
        (pair.views[0].want_permit().unwrap(), pair.views[0].withdraw().unwrap());
    pair.breaker.ask(ZERO, epoch, withdrawal);
    pair.breaker.ask(ZERO, epoch, ask);
    assert!(pair.breaker.grant(now).is_none(), "the withdrawal is newer");
    let again = pair.views[0].want_permit().unwrap();
    pair.breaker.ask(ZERO, Epoch(0), again);
    assert!(pair.breaker.grant(now).is_none(), "of another epoch");
    pair.breaker.ask(ZERO, epoch, again);
    assert!(pair.breaker.grant(now).is_some());
}

#[test]
fn recovering_is_a_ramp() {
    let mut pair = Pair::new(settings());
    let now = pair.half_open();
    let pass = pair.probe(ZERO, now);
    pair.settle(ZERO, pass, Outcome::Success, now);
    let mut rng = Rng::new(3);
    for tenth in 0..=10u32 {
        let then = now + Duration::from_secs(tenth.into());
        let admitted = (0..10_000)
            .filter(|_| {
                let dice = rng.bits() as u32;
                pair.views[1].admits(&settings(), then, dice) == Admits::Yes
            })
            .count();
        assert!(admitted.abs_diff(tenth as usize * 1_000) < 200, "{admitted} at {tenth} s");
    }
    assert_eq!(pair.views[1].admits(&settings(), now, u32::MAX), Admits::IfAlone);
    assert!(pair.tick(now + settings().ramp));
    assert_eq!(pair.breaker.state(), State::Closed);
}

#[test]
fn a_run_while_recovering_opens_for_longer() {
    let mut pair = Pair::new(settings());
    let now = pair.half_open();
    let pass = pair.probe(ZERO, now);
    pair.settle(ZERO, pass, Outcome::Success, now);
    for _ in 0..4 {
        assert!(!pair.request(ONE, Outcome::Failure, now));
    }
    assert!(pair.request(ONE, Outcome::Failure, now));
    pair.trip(now);
    let State::Open { until } = pair.breaker.state() else { panic!("not open") };
    assert!(until.since(now) > Duration::from_secs(8));
}

#[test]
fn overrides_hold_until_released() {
    let mut pair = Pair::new(settings());
    assert!(pair.breaker.override_to(Override::ForceOpen, 2, at(0)));
    assert!(!pair.breaker.override_to(Override::ForceClosed, 1, at(0)), "older");
    pair.tell();
    assert_eq!(pair.views[0].admits(&settings(), at(0), 0), Admits::No);
    assert!(!pair.tick(at(1_000_000)));
    assert!(!pair.breaker.is_ejected());
    assert!(pair.breaker.override_to(Override::Release, 3, at(0)));
    assert!(!pair.breaker.is_ejected(), "an operator's does not count");
    assert!(pair.tick(at(0)), "its time has elapsed");
    assert_eq!(pair.breaker.state(), State::HalfOpen);

    assert!(pair.breaker.override_to(Override::ForceClosed, 4, at(0)));
    pair.tell();
    for _ in 0..100 {
        assert!(!pair.request(ZERO, Outcome::Failure, at(0)));
    }
    assert_eq!(pair.views[0].admits(&settings(), at(0), 0), Admits::Yes);
    let epoch = pair.breaker.epoch();
    assert!(pair.breaker.override_to(Override::Release, 5, at(0)));
    assert_eq!((pair.breaker.state(), pair.breaker.epoch()), (State::Closed, epoch.next()));
}

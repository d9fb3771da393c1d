//! The side that requests ask: what one shard has of a breaker, and what it has seen itself. Pure;
//! never allocates. `reconcile::replica` owns one for each endpoint.

use std::num::NonZeroU64;
use std::time::Duration;

use super::{Epoch, Outcome, Permit, Phase, ProbeResult, Report, Settings, Settlement};
use crate::reconcile::mutation::{self, Mutation};
use crate::time::Nanos;

/// Whether a balancer may choose an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Admits {
    /// Yes.
    Yes,
    /// Only if there is nothing else: it recovers, and has had its share.
    IfAlone,
    /// With a permit, which has to be asked for.
    WithPermit,
    /// No.
    No,
}

/// What a request takes along: under which epoch its outcome counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pass {
    /// The epoch in which it was admitted.
    pub epoch: Epoch,
    /// It is a probe: the serial of its permit. Never retried or hedged to its endpoint, not
    /// cancelled when its client leaves, ended at [`Permit::end`].
    pub probe: Option<NonZeroU64>,
}

/// What happened to the permit that a shard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PermitUse {
    /// Nobody used it yet.
    Unused,
    /// A probe is out.
    Sent,
}

/// One shard's view of one breaker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct View {
    phase: Phase,
    /// What was seen in this epoch, as the home gets to know it.
    report: Report,
    /// The newest ask: odd while it stands.
    ask: u32,
    permit: Option<(Permit, PermitUse)>,
    /// The newest serial that was accepted.
    serial: u64,
    /// How the newest permit ended; what the home gets to know.
    settled: Option<Settlement>,
}

impl View {
    /// What it knows the breaker to be.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The newest epoch that it knows.
    pub fn epoch(&self) -> Epoch {
        self.report.epoch
    }

    /// What was seen in this epoch.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The permit it holds, and what became of it.
    pub fn permit(&self) -> Option<(Permit, PermitUse)> {
        self.permit
    }

    /// The newest settlement.
    pub fn settled(&self) -> Option<Settlement> {
        self.settled
    }

    /// May a request go there? `dice`: 32 uniform bits, the same for one request's whole choice;
    /// they decide who belongs to the share that a recovering endpoint gets.
    #[inline]
    pub fn admits(&self, settings: &Settings, now: Nanos, dice: u32) -> Admits {
        match self.phase {
            Phase::ForcedClosed => Admits::Yes,
            Phase::Closed if !self.report.has_stopped() => Admits::Yes,
            Phase::Recovering(since) if !self.report.has_stopped() => {
                let ramp_ms = settings.ramp.as_millis().max(1) as u64;
                let elapsed_ms = (now.since(since).as_millis() as u64).min(ramp_ms);
                if u64::from(dice) < (elapsed_ms << 32) / ramp_ms {
                    Admits::Yes
                } else {
                    Admits::IfAlone
                }
            }
            Phase::HalfOpen => match self.permit {
                Some((permit, PermitUse::Unused))
                    if permit.epoch == self.epoch() && now < permit.use_by =>
                {
                    Admits::Yes
                }
                _ => Admits::WithPermit,
            },
            Phase::Closed | Phase::Recovering(_) | Phase::Open | Phase::ForcedOpen => Admits::No,
        }
    }

    /// Takes a request in: uses the permit where one is needed. Call it only if
    /// [`View::admits`] says yes, or if alone.
    #[inline]
    pub fn take(&mut self) -> Pass {
        let probe = match (&mut self.permit, self.phase) {
            (Some((permit, used @ PermitUse::Unused)), Phase::HalfOpen) => {
                *used = PermitUse::Sent;
                NonZeroU64::new(permit.serial)
            }
            _ => None,
        };
        Pass { epoch: self.report.epoch, probe }
    }

    /// Records how a request ended. `true`: its home should know now (a failure, or a settled
    /// probe). Successes can wait.
    #[inline]
    pub fn record(
        &mut self,
        settings: &Settings,
        pass: Pass,
        outcome: Outcome,
        latency: Duration,
        now: Nanos,
    ) -> bool {
        if let Some(serial) = pass.probe {
            // It was sent: whatever else it was, it was no success.
            let slow = settings.latency_max.is_some_and(|max| latency > max);
            let in_time = self.permit.is_some_and(|(permit, _)| now < permit.end);
            let result = if outcome == Outcome::Success && in_time && !slow {
                ProbeResult::Success
            } else {
                ProbeResult::Failure
            };
            return self.settle(serial.get(), result);
        }
        if pass.epoch != self.report.epoch && !mutation::is_on(Mutation::NoEpochCheck) {
            return false; // Late: it answers for an epoch that is over.
        }
        let report = &mut self.report;
        match outcome {
            Outcome::Neutral => false,
            Outcome::Success => {
                report.requests += 1;
                report.tail = 0;
                report.succeeded_at = now;
                report.slow += u64::from(settings.latency_max.is_some_and(|max| latency > max));
                false
            }
            Outcome::Failure => {
                report.requests += 1;
                report.failures += 1;
                if report.tail == 0 {
                    report.tail_since = now;
                }
                report.tail += 1;
                report.tail_at = now;
                let may_stop = matches!(self.phase, Phase::Closed | Phase::Recovering(_));
                if may_stop && report.tail >= settings.failures_in_a_row && !report.has_stopped() {
                    report.run += 1;
                }
                true
            }
        }
    }

    /// A permit was taken but nothing was sent: it goes back. (Whoever took no permit gives
    /// nothing back.) `true`: its home should know.
    pub fn give_back(&mut self, pass: Pass) -> bool {
        pass.probe.is_some_and(|serial| self.settle(serial.get(), ProbeResult::NotSent))
    }

    /// The home's newest word. `true`: it is news.
    pub fn apply(&mut self, epoch: Epoch, phase: Phase) -> bool {
        let is_old = epoch <= self.report.epoch && !mutation::is_on(Mutation::OldEpochApplied);
        if is_old || epoch == self.report.epoch {
            return false;
        }
        self.phase = phase;
        self.report = Report { epoch, ..Report::default() };
        self.ask = 0;
        self.return_unused();
        true
    }

    /// The home does not trip for this run. `true`: it is the one that we wait for.
    pub fn refuse(&mut self, epoch: Epoch, run: u32) -> bool {
        if epoch != self.report.epoch || run != self.report.run || !self.report.has_stopped() {
            return false;
        }
        self.report.refused = run;
        self.report.tail = 0;
        true
    }

    /// Whether a request that comes now would be the one that asks for a permit.
    #[inline]
    pub fn may_ask(&self) -> bool {
        self.phase == Phase::HalfOpen && self.ask.is_multiple_of(2) && self.permit.is_none()
    }

    /// A request wants a permit. `Some`: this number is to be told to the home.
    pub fn want_permit(&mut self) -> Option<u32> {
        if !self.may_ask() {
            return None;
        }
        self.ask += 1;
        Some(self.ask)
    }

    /// No request wants a permit any more. `Some`: this number is to be told to the home.
    pub fn withdraw(&mut self) -> Option<u32> {
        if self.ask.is_multiple_of(2) {
            return None;
        }
        self.ask += 1;
        Some(self.ask)
    }

    /// A permit arrives. `true`: a request may use it. If not, it was seen before, or goes back
    /// at once: see [`View::settled`].
    pub fn accept(&mut self, permit: Permit, now: Nanos) -> bool {
        if permit.serial <= self.serial && !mutation::is_on(Mutation::PermitAcceptedTwice) {
            return false;
        }
        self.serial = permit.serial;
        if permit.epoch == self.report.epoch && permit.ask == self.ask {
            self.ask += 1;
        }
        if permit.epoch != self.report.epoch || now >= permit.use_by {
            self.settled = Some(Settlement { serial: permit.serial, result: ProbeResult::NotSent });
            return false;
        }
        self.permit = Some((permit, PermitUse::Unused));
        true
    }

    /// What time alone changes. `true`: an unused permit goes back, which its home should know.
    pub fn tick(&mut self, now: Nanos) -> bool {
        now >= self.due() && self.return_unused()
    }

    /// When [`View::tick`] will have something to do.
    pub fn due(&self) -> Nanos {
        match self.permit {
            Some((permit, PermitUse::Unused)) => permit.use_by,
            _ => Nanos::NEVER,
        }
    }

    fn return_unused(&mut self) -> bool {
        match self.permit {
            Some((permit, PermitUse::Unused)) => self.settle(permit.serial, ProbeResult::NotSent),
            _ => false,
        }
    }

    fn settle(&mut self, serial: u64, result: ProbeResult) -> bool {
        debug_assert!(
            self.permit.is_some_and(|(permit, _)| permit.serial == serial)
                || mutation::is_on(Mutation::PermitAcceptedTwice)
        );
        self.permit = None;
        self.settled = Some(Settlement { serial, result });
        true
    }
}

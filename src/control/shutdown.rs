//! The orderly end: when the shards are told what. Pure; times come in, orders go out.
//!
//! ```text
//! Serving --begin--> Announced --drain_delay--> Closing --drain_timeout--> Cutting
//!                                                 |  all drained,            |  all drained,
//!                                                 v  once all had closed     v  or CUT_GRACE
//!                                               Over <-----------------------+
//! any --second interrupt--> Stopping --all drained, or STOP_GRACE--> Over
//! ```

use std::time::Duration;

use tokio::time::Instant;

use crate::shard::message::Drain;

/// The drain timeout after an interrupt from the keyboard.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(2);

/// What the shards have to cut off the rest and flush their logs.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// What the shards have to leave when told to stop at once.
const STOP_GRACE: Duration = Duration::from_millis(200);

/// As configured when the end begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShutdownSettings {
    /// Go on accepting for so long.
    pub drain_delay: Duration,
    /// Then finish what is running within this.
    pub drain_timeout: Duration,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Tell every shard.
    Drain(Drain),
    /// Tell every shard.
    StopNow,
    /// The process is to end.
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Announced { close_at: Instant },
    Closing { cut_at: Instant },
    Cutting { give_up_at: Instant },
    Stopping { give_up_at: Instant },
    Over,
}

pub(super) struct Shutdown {
    phase: Phase,
    /// How long the shards may take once their listeners are closed.
    drain_timeout: Duration,
    interrupted: bool,
    /// Whether each shard has said that its listeners are closed.
    closed: Vec<bool>,
    /// Whether each shard has said that it is done.
    drained: Vec<bool>,
    /// Of the phases entered, what the caller has not been told yet.
    untold: Option<Order>,
}

impl Shutdown {
    pub fn new(shards: usize) -> Shutdown {
        Shutdown {
            phase: Phase::Serving,
            drain_timeout: Duration::ZERO,
            interrupted: false,
            closed: vec![false; shards],
            drained: vec![false; shards],
            untold: None,
        }
    }

    /// The end was asked for, in whatever way.
    pub fn begun(&self) -> bool {
        self.phase != Phase::Serving
    }

    /// Begins to drain; once is enough.
    pub fn begin(&mut self, settings: ShutdownSettings, now: Instant) {
        if self.phase == Phase::Serving {
            self.drain_timeout = settings.drain_timeout;
            self.phase = Phase::Announced { close_at: now + settings.drain_delay };
            self.untold = Some(Order::Drain(Drain::Announce));
        }
    }

    /// The first one drains with a short timeout (and shortens a drain that runs), the second
    /// stops at once.
    pub fn interrupt(&mut self, settings: ShutdownSettings, now: Instant) {
        if std::mem::replace(&mut self.interrupted, true) {
            if !matches!(self.phase, Phase::Stopping { .. } | Phase::Over) {
                self.phase = Phase::Stopping { give_up_at: now + STOP_GRACE };
                self.untold = Some(Order::StopNow);
            }
            return;
        }
        self.begin(settings, now);
        self.drain_timeout = self.drain_timeout.min(INTERRUPT_TIMEOUT);
        if let Phase::Closing { cut_at } = &mut self.phase {
            *cut_at = (*cut_at).min(now + self.drain_timeout);
        }
    }

    /// A shard has said that its listeners are closed.
    pub fn closed(&mut self, shard: usize) {
        let Some(closed) = self.closed.get_mut(shard) else { return };
        let is_news = !std::mem::replace(closed, true);
        if is_news
            && matches!(self.phase, Phase::Closing { .. })
            && self.closed.iter().all(|closed| *closed)
        {
            self.untold = Some(Order::Drain(Drain::Finish));
        }
    }

    /// A shard has said that it is done.
    pub fn drained(&mut self, shard: usize) {
        if let Some(drained) = self.drained.get_mut(shard) {
            *drained = true;
        }
    }

    /// Every shard has said that it is done.
    pub fn all_drained(&self) -> bool {
        self.drained.iter().all(|drained| *drained)
    }

    /// What to do at this time; ask until there is nothing.
    pub fn next_order(&mut self, now: Instant) -> Option<Order> {
        if let Some(order) = self.untold.take() {
            return Some(order);
        }
        let done = self.begun() && self.all_drained();
        match self.phase {
            Phase::Serving => None,
            Phase::Over => Some(Order::Exit),
            _ if done => {
                self.phase = Phase::Over;
                Some(Order::Exit)
            }
            Phase::Announced { close_at } if close_at <= now => {
                self.phase = Phase::Closing { cut_at: now + self.drain_timeout };
                Some(Order::Drain(Drain::Close))
            }
            Phase::Closing { cut_at } if cut_at <= now => {
                self.phase = Phase::Cutting { give_up_at: now + CUT_GRACE };
                Some(Order::Drain(Drain::Cut))
            }
            Phase::Cutting { give_up_at } | Phase::Stopping { give_up_at } if give_up_at <= now => {
                self.phase = Phase::Over;
                Some(Order::Exit)
            }
            _ => None,
        }
    }

    /// When to ask again, if nothing else happens.
    pub fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Serving | Phase::Over => None,
            Phase::Announced { close_at: at }
            | Phase::Closing { cut_at: at }
            | Phase::Cutting { give_up_at: at }
            | Phase::Stopping { give_up_at: at } => Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: ShutdownSettings = ShutdownSettings {
        drain_delay: Duration::from_secs(5),
        drain_timeout: Duration::from_secs(30),
    };

    /// A shutdown and a clock that jumps from due to due.
    struct World {
        shutdown: Shutdown,
        start: Instant,
        now: Instant,
    }

    impl World {
        fn new() -> World {
            let start = Instant::now();
            World { shutdown: Shutdown::new(2), start, now: start }
        }

        /// All orders of this moment.
        fn orders(&mut self) -> Vec<Order> {
            let mut orders = Vec::new();
            while let Some(order) = self.shutdown.next_order(self.now) {
                orders.push(order);
                if order == Order::Exit {
                    break;
                }
            }
            orders
        }

        /// Jumps to the next due; returns the seconds since the start and the orders.
        fn jump(&mut self) -> (f64, Vec<Order>) {
            self.now = self.shutdown.due().expect("something is due");
            ((self.now - self.start).as_secs_f64(), self.orders())
        }
    }

    use Drain::{Announce, Close, Cut, Finish};
    use Order::{Drain as D, Exit, StopNow};

    #[test]
    fn nothing_happens_while_serving() {
        let mut world = World::new();
        assert_eq!(world.orders(), []);
        assert_eq!(world.shutdown.due(), None);
    }

    #[test]
    fn a_drain_that_nobody_answers_ends_all_the_same() {
        let mut world = World::new();
        world.shutdown.begin(SETTINGS, world.now);
        assert_eq!(world.orders(), [D(Announce)]);
        assert_eq!(world.orders(), []);
        assert_eq!(world.jump(), (5.0, vec![D(Close)]));
        assert_eq!(world.jump(), (35.0, vec![D(Cut)]));
        assert_eq!(world.jump(), (36.0, vec![Exit]));
        assert!(!world.shutdown.all_drained());
    }

    #[test]
    fn without_a_delay_listeners_close_at_once() {
        let mut world = World::new();
        let settings = ShutdownSettings { drain_delay: Duration::ZERO, ..SETTINGS };
        world.shutdown.begin(settings, world.now);
        assert_eq!(world.orders(), [D(Announce), D(Close)]);
    }

    #[test]
    fn when_all_shards_are_done_it_is_over() {
        let mut world = World::new();
        world.shutdown.begin(SETTINGS, world.now);
        world.orders();
        world.jump();
        world.shutdown.drained(0);
        world.shutdown.drained(0);
        assert_eq!(world.orders(), []);
        world.shutdown.drained(1);
        assert_eq!(world.orders(), [Exit]);
        assert!(world.shutdown.all_drained());
    }

    #[test]
    fn they_finish_when_no_shard_can_hand_anything_over() {
        let mut world = World::new();
        world.shutdown.begin(SETTINGS, world.now);
        world.orders();
        world.jump();
        world.shutdown.closed(1);
        world.shutdown.closed(1);
        assert_eq!(world.orders(), []);
        world.shutdown.closed(0);
        assert_eq!(world.orders(), [D(Finish)]);
        world.shutdown.closed(0);
        assert_eq!(world.orders(), []);
        assert_eq!(world.jump(), (35.0, vec![D(Cut)]));
    }

    /// What is cut off is not asked to finish.
    #[test]
    fn listeners_that_close_too_late_change_nothing() {
        let mut world = World::new();
        world.shutdown.begin(SETTINGS, world.now);
        world.orders();
        world.jump();
        world.shutdown.closed(0);
        assert_eq!(world.jump(), (35.0, vec![D(Cut)]));
        world.shutdown.closed(1);
        assert_eq!(world.orders(), []);
    }

    #[test]
    fn a_second_termination_changes_nothing() {
        let mut world = World::new();
        world.shutdown.begin(SETTINGS, world.now);
        world.orders();
        world.jump();
        let due = world.shutdown.due();
        world.shutdown.begin(SETTINGS, world.now + Duration::from_secs(3));
        assert_eq!((world.orders(), world.shutdown.due()), (vec![], due));
    }

    #[test]
    fn the_first_interrupt_drains_for_two_seconds() {
        let mut world = World::new();
        world.shutdown.interrupt(SETTINGS, world.now);
        assert_eq!(world.orders(), [D(Announce)]);
        assert_eq!(world.jump(), (5.0, vec![D(Close)]));
        assert_eq!(world.jump(), (7.0, vec![D(Cut)]));
    }

    #[test]
    fn an_interrupt_shortens_a_drain_but_never_extends_it() {
        let mut world = World::new();
        world.shutdown.begin(SETTINGS, world.now);
        world.orders();
        world.jump();
        world.shutdown.interrupt(SETTINGS, world.now);
        assert_eq!(world.jump(), (7.0, vec![D(Cut)]));

        let mut world = World::new();
        let short = ShutdownSettings { drain_timeout: Duration::from_secs(1), ..SETTINGS };
        world.shutdown.begin(short, world.now);
        world.orders();
        world.jump();
        world.shutdown.interrupt(SETTINGS, world.now);
        assert_eq!(world.jump(), (6.0, vec![D(Cut)]));

        let mut world = World::new();
        world.shutdown.interrupt(short, world.now);
        world.orders();
        world.jump();
        assert_eq!(world.jump(), (6.0, vec![D(Cut)]));
    }

    #[test]
    fn the_second_interrupt_stops_at_once() {
        let mut world = World::new();
        world.shutdown.interrupt(SETTINGS, world.now);
        world.shutdown.interrupt(SETTINGS, world.now);
        assert_eq!(world.orders(), [StopNow]);
        world.shutdown.interrupt(SETTINGS, world.now);
        assert_eq!(world.orders(), []);
        assert_eq!(world.jump(), (0.2, vec![Exit]));
    }
}

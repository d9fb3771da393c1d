//! What was asked for -> what every worker does. Pure, but for resolving names.
//!
//! Filled by `cli` from flags and a scenario; read by `worker`, which never changes it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::net::Driver;
use crate::schedule::{Arrivals, Part, Phase};
use crate::target::{Request, Target};

/// Without a duration or a count.
pub const DURATION: Duration = Duration::from_secs(10);

/// What to do, the same for every worker.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The requests.
    pub targets: Vec<Target>,
    /// The addresses they go to.
    pub lanes: Vec<Lane>,
    /// When.
    pub load: Load,
    /// Not recorded at first.
    pub warmup: Duration,
    /// Warm-up and all phases; `None`: until the count is reached.
    pub length: Option<Duration>,
    /// Requests in all, the warm-up's not among them.
    pub count: Option<u64>,
    /// For connecting, and from sending to the last byte.
    pub timeout: Duration,
    /// After the end, for what was due and has no answer yet.
    pub drain: Duration,
    /// Requests on a connection at once.
    pub pipeline: usize,
    /// Whether a connection carries more than one request.
    pub keep_alive: bool,
    /// For arrivals and the choice of targets.
    pub seed: u64,
    /// Before a due time, spin for so long instead of sleeping.
    pub spin: Duration,
    /// What the threads wait on.
    pub driver: Driver,
    /// Workers.
    pub threads: usize,
    /// To pin them to, in turn.
    pub cpus: Vec<usize>,
}

/// When requests are sent.
#[derive(Debug, Clone)]
pub enum Load {
    /// Each at its due time, whatever the target does. The warm-up is the first phase.
    Open {
        /// One after the other.
        phases: Vec<Phase>,
        /// How they are spread.
        arrivals: Arrivals,
    },
    /// Each when the one before it on the same connection was answered.
    Closed,
}

/// An address, and the targets on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lane {
    /// Where its connections go.
    pub address: SocketAddr,
    /// Indices of targets.
    pub targets: Vec<usize>,
    /// Of all requests, 0 to 1.
    pub share: f64,
    /// Over all workers.
    pub connections: usize,
}

impl Lane {
    /// How many connections worker `index` of `of` has here, and which part of the requests.
    pub fn part(&self, index: usize, of: usize, count: Option<u64>) -> (usize, Part) {
        let workers = of.min(self.connections);
        let connections = if index < workers {
            self.connections / workers + usize::from(index < self.connections % workers)
        } else {
            0
        };
        let part = Part { share: self.share, index: index as u64, of: workers as u64, count };
        (connections, part)
    }
}

/// What the user asked for, flags and scenario together.
#[derive(Debug, Clone)]
pub struct Settings {
    /// At least one.
    pub requests: Vec<Request>,
    /// For an open loop, without the warm-up; empty for a closed one.
    pub phases: Vec<Phase>,
    /// How an open loop's requests are spread.
    pub arrivals: Arrivals,
    /// Over all threads.
    pub connections: usize,
    /// At most; fewer where there are fewer connections.
    pub threads: usize,
    /// For a closed loop.
    pub duration: Option<Duration>,
    /// Requests in all, the warm-up's not among them.
    pub count: Option<u64>,
    /// See [`Plan`], as all of these.
    pub warmup: Duration,
    /// See [`Plan`].
    pub timeout: Duration,
    /// See [`Plan`].
    pub drain: Duration,
    /// See [`Plan`].
    pub pipeline: usize,
    /// See [`Plan`].
    pub keep_alive: bool,
    /// See [`Plan`].
    pub seed: u64,
    /// See [`Plan`].
    pub spin: Duration,
    /// See [`Plan`].
    pub driver: Driver,
    /// See [`Plan`].
    pub cpus: Vec<usize>,
}

impl Settings {
    /// Resolves the targets, spreads connections over addresses, and puts the warm-up in front.
    ///
    /// # Errors
    /// One line: a bad URL, a name that does not resolve, too few connections.
    pub fn plan(&self) -> Result<Plan, String> {
        let targets = self
            .requests
            .iter()
            .map(|request| Target::new(request, self.keep_alive))
            .collect::<Result<Vec<_>, _>>()?;
        let lanes = lanes(&targets, self.connections)?;
        let (load, planned) = match self.phases.first() {
            None => (Load::Closed, self.duration.map(|duration| self.warmup + duration)),
            Some(first) => {
                let mut phases = self.phases.clone();
                if self.warmup > Duration::ZERO {
                    phases.insert(0, Phase::hold(first.from, Some(self.warmup)));
                }
                let planned = planned(&self.phases, self.count).map(|length| self.warmup + length);
                (Load::Open { phases, arrivals: self.arrivals }, planned)
            }
        };
        Ok(Plan {
            targets,
            lanes,
            load,
            warmup: self.warmup,
            length: planned,
            count: self.count,
            timeout: self.timeout,
            drain: self.drain,
            pipeline: self.pipeline,
            keep_alive: self.keep_alive,
            seed: self.seed,
            spin: self.spin,
            driver: self.driver,
            threads: self.threads.clamp(1, self.connections),
            cpus: self.cpus.clone(),
        })
    }
}

/// How long the phases last, or the count does if that is shorter.
fn planned(phases: &[Phase], count: Option<u64>) -> Option<Duration> {
    let mut left = count.map_or(f64::INFINITY, |count| count as f64);
    let mut seconds = 0.0;
    for phase in phases {
        let length = phase.duration.map_or(f64::INFINITY, |duration| duration.as_secs_f64());
        let requests = match phase.duration {
            Some(_) => (phase.from + phase.to) / 2.0 * length,
            None if phase.from > 0.0 => f64::INFINITY,
            None => 0.0,
        };
        if requests < left {
            left -= requests;
            seconds += length;
            continue;
        }
        // Where within the phase the count is reached: the schedule's own formula.
        let slope = if length.is_finite() { (phase.to - phase.from) / length } else { 0.0 };
        let root = (phase.from * phase.from + 2.0 * slope * left).max(0.0).sqrt();
        return Duration::try_from_secs_f64(seconds + 2.0 * left / (phase.from + root)).ok();
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// One lane for each address. Connections go by share, and every address has at least one.
fn lanes(targets: &[Target], connections: usize) -> Result<Vec<Lane>, String> {
    let sum: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
    let mut lanes: Vec<Lane> = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        let share = f64::from(target.weight) / sum as f64;
        match lanes.iter_mut().find(|lane| lane.address == target.address) {
            Some(lane) => {
                lane.targets.push(index);
                lane.share += share;
            }
            None => {
                let address = target.address;
                lanes.push(Lane { address, targets: vec![index], share, connections: 0 });
            }
        }
    }
    if connections < lanes.len() {
        let addresses = lanes.len();
        return Err(format!("{connections} connections are too few for {addresses} addresses"));
    }
    for lane in &mut lanes {
        lane.connections = ((connections as f64 * lane.share) as usize).max(1);
    }
    // Rounding left some, or the minimum took too many.
    loop {
        let given: usize = lanes.iter().map(|lane| lane.connections).sum();
        let owed = |lane: &Lane| connections as f64 * lane.share - lane.connections as f64;
        let by_owed = |a: &&mut Lane, b: &&mut Lane| owed(a).total_cmp(&owed(b));
        match given.cmp(&connections) {
            std::cmp::Ordering::Equal => return Ok(lanes),
            std::cmp::Ordering::Less => {
                lanes.iter_mut().max_by(by_owed).expect("there is a lane").connections += 1;
            }
            std::cmp::Ordering::Greater => {
                let rich = lanes.iter_mut().filter(|lane| lane.connections > 1);
                rich.min_by(by_owed).expect("one has more than its minimum").connections -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(port: u16, weight: u32) -> Target {
        let request =
            Request { url: format!("http://127.0.0.1:{port}"), weight, ..Request::default() };
        Target::new(&request, true).unwrap()
    }

    #[test]
    fn connections_go_by_share() {
        let targets = [target(1, 90), target(2, 9), target(1, 0), target(3, 1)];
        for connections in [3, 4, 10, 64, 1_000] {
            let lanes = lanes(&targets, connections).unwrap();
            assert_eq!(lanes.len(), 3);
            assert_eq!(lanes[0].targets, [0, 2]);
            assert_eq!(lanes.iter().map(|lane| lane.connections).sum::<usize>(), connections);
            assert!(lanes.iter().all(|lane| lane.connections > 0));
            assert!((lanes.iter().map(|lane| lane.share).sum::<f64>() - 1.0).abs() < 1e-9);
        }
        assert!(lanes(&targets, 2).is_err());
    }

    #[test]
    fn the_end_is_where_the_schedule_ends() {
        let seconds = |n| Some(Duration::from_secs(n));
        let hold = [Phase::hold(100.0, None)];
        assert_eq!(planned(&hold, Some(250)), Some(Duration::from_millis(2_500)));
        assert_eq!(planned(&hold, None), None);
        let ramp =
            [Phase { from: 0.0, to: 100.0, duration: seconds(10) }, Phase::hold(100.0, seconds(5))];
        assert_eq!(planned(&ramp, None), seconds(15));
        assert_eq!(planned(&ramp, Some(125)), seconds(5));
        assert_eq!(planned(&ramp, Some(600)), seconds(11));
    }

    /// Every connection and every request belongs to exactly one worker.
    #[test]
    fn lanes_split_without_loss() {
        for connections in 1..20 {
            for of in 1..6 {
                let address = SocketAddr::from(([127, 0, 0, 1], 1));
                let lane = Lane { address, targets: vec![0], share: 1.0, connections };
                let parts: Vec<_> = (0..of).map(|index| lane.part(index, of, None)).collect();
                assert_eq!(parts.iter().map(|(here, _)| here).sum::<usize>(), connections);
                for (index, (here, part)) in parts.iter().enumerate() {
                    assert_eq!(*here > 0, (index as u64) < part.of);
                }
            }
        }
    }
}

//! The control thread: everything slow. Resolves names, makes plans and sends them to the shards,
//! reloads, serves the admin pages, keeps the time of an orderly end.
//!
//! `main` calls [`run`] once the shards' threads run, and gets back how to exit. It touches no
//! request: a stall here delays a reload, never an answer.
//!
//! ```text
//! signals ----------\                    /--> ToShard::{Plan, Drain, StopNow}
//! shards' messages --+--> one loop -----+---> access log: reopen
//! look-ups, reloads -+                   \--> Status, which the admin pages read
//! admin pages -------/                        and what they wait for
//! ```

pub mod admin;

mod breakers;

pub mod dns;

mod health;

mod inbox;

mod shutdown;

mod signals;

mod status;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::access_log::{self, AccessLogs};
use crate::config::{self, Config};
use crate::health::Health;
use crate::mailbox::{Inbox, Sender};
use crate::metrics::ShardCounters;
use crate::plan::{self, Plan};
use crate::reconcile::{Registry, Rollout, ShardId, Step, home_of};
use crate::shard::message::{FromShard, ToShard};
use crate::time::Nanos;

use admin::Pages;
use breakers::{Answer, Command, Overrides};
use dns::{Answers, DnsOptions, LookUps};
use health::{Checks, Found, say_panic};
use inbox::AsyncInbox;
use shutdown::{Order, Shutdown, ShutdownSettings};
use signals::Signal;
use status::Shared;

/// Messages that may wait for one shard; more are kept here and tried again.
pub const TO_SHARD_CAPACITY: usize = 16;

/// Messages that may wait for the control thread, from each shard.
pub const FROM_SHARD_CAPACITY: usize = 64;

/// How soon a message that found a shard's queue full is tried again.
const RETRY_SEND_AFTER: Duration = Duration::from_millis(20);

/// One shard, as the control thread holds it.
#[derive(Debug)]
pub struct ShardHandle {
    /// Its number, from 0, without gaps.
    pub id: usize,
    /// How to reach it.
    pub sender: Sender<ToShard>,
    /// What it counts.
    pub counters: Arc<ShardCounters>,
}

/// Changes the level of the process's own log, by the directives of `log.level`.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String>>;

/// What the control thread is made of.
pub struct ControlOptions {
    /// Checked; what the shards' threads were started by.
    pub config: Config,
    /// Where it was read from, and is read again; `None` if there is nothing to reload.
    pub source: Option<config::Source>,
    /// In the order of their numbers.
    pub shards: Vec<ShardHandle>,
    /// Where the shards answer.
    pub inbox: Inbox<FromShard>,
    /// From [`admin::bind`]; `None` serves no admin pages.
    pub admin: Option<std::net::TcpListener>,
    /// Stopped by the control thread when the shards have ended.
    pub access_logs: AccessLogs,
    /// Names and addresses of the listeners, for the log.
    pub listening: Vec<(String, std::net::SocketAddr)>,
    /// Called after a reload.
    pub set_log_level: Option<SetLogLevel>,
    /// How names are resolved.
    pub dns: DnsOptions,
}

/// How the process should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit status.
    pub code: u8,
    /// Every shard has said that it is done, so their threads can be joined. Otherwise do not
    /// wait for them.
    pub drained: bool,
}

/// Runs the control thread on the calling one, until the process is to end.
///
/// # Errors
/// Where the runtime, the signal handlers or the eventfd cannot be set up.
pub fn run(options: ControlOptions) -> std::io::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(async {
        let signals = signals::listen()?;
        serve(options, signals).await
    });
    // A look-up or a file that hangs does not hold up the end.
    runtime.shutdown_background();
    exit
}

/// The loop, with signals from wherever.
async fn serve(
    options: ControlOptions,
    mut signals: mpsc::Receiver<Signal>,
) -> std::io::Result<Exit> {
    let ControlOptions { inbox, admin, .. } = options;
    let mut inbox = AsyncInbox::new(inbox)?;
    let counters = options.shards.iter().map(|shard| shard.counters.clone()).collect();
    let shared = Shared::new(counters, options.access_logs.lines_lost());
    let (checks, mut found) = Checks::new(Nanos::now().0);
    let (commands, mut ordered) = mpsc::channel(breakers::COMMANDS_MAX);
    if let Some(listener) = admin {
        let override_timeout = breakers::OVERRIDE_TIMEOUT;
        let pages = Pages { shared: shared.clone(), commands, override_timeout };
        tokio::spawn(admin::serve(listener, pages)?);
    }
    let mut control = Control {
        config: Arc::new(options.config),
        source: options.source,
        rollout: Rollout::new(options.shards.len() as u16),
        plan: None,
        shutdown: Shutdown::new(options.shards.len()),
        shards: options.shards.into_iter().map(Outbox::new).collect(),
        access_logs: options.access_logs,
        listening: options.listening,
        set_log_level: options.set_log_level,
        dns: options.dns,
        answers: Answers::default(),
        generation: 0,
        registry: Registry::default(),
        job: None,
        reload_wanted: false,
        refresh_at: None,
        overrides: Overrides::default(),
        checks,
        shared,
    };
    control.begin(Job::FirstLookUp);
    while !control.obey(Instant::now()) {
        let due = control.due();
        tokio::select! {
            message = inbox.receive() => control.on_message(message?),
            Some(signal) = signals.recv() => control.on_signal(signal, Instant::now()),
            Some(found) = found.recv() => control.on_found(found),
            Some(command) = ordered.recv() => control.on_command(command),
            outcome = finished(&mut control.job) => control.on_outcome(outcome),
            () = until(due) => control.on_due(Instant::now()),
        }
    }
    let told = control.shards.iter().all(|shard| shard.waiting.is_empty());
    let drained = control.shutdown.all_drained() && told;
    control.access_logs.stop();
    Ok(Exit { code: 0, drained })
}

/// Waits for the job, for ever if there is none.
async fn finished(job: &mut Option<JoinHandle<Outcome>>) -> Outcome {
    match job {
        // A panic in a job ends the process; there is no other way for it to fail.
        Some(handle) => handle.await.unwrap_or(Outcome::Lost),
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What may take a while. One at a time.
enum Job {
    /// All names, before the first plan.
    FirstLookUp,
    /// All names again.
    Refresh,
    /// Read the file again, and look up what it names newly.
    Reload(config::Source),
}

/// How a job ended.
enum Outcome {
    LookedUp(LookUps),
    Reloaded(Result<Box<(Config, LookUps)>, String>),
    /// It was cancelled, which happens only at the end.
    Lost,
}

/// A shard, and the messages that its queue had no room for.
struct Outbox {
    handle: ShardHandle,
    waiting: VecDeque<ToShard>,
}

impl Outbox {
    fn new(handle: ShardHandle) -> Outbox {
        Outbox { handle, waiting: VecDeque::new() }
    }

    fn post(&mut self, message: ToShard) {
        self.waiting.push_back(message);
        self.push();
    }

    fn push(&mut self) {
        while let Some(message) = self.waiting.pop_front() {
            if let Err(message) = self.handle.sender.send(message) {
                self.waiting.push_front(message);
                return;
            }
        }
    }
}

/// The thread's state.
struct Control {
    config: Arc<Config>,
    source: Option<config::Source>,
    shards: Vec<Outbox>,
    access_logs: AccessLogs,
    listening: Vec<(String, std::net::SocketAddr)>,
    set_log_level: Option<SetLogLevel>,
    dns: DnsOptions,
    answers: Answers,
    /// Of the newest plan.
    generation: u64,
    /// Who has which number.
    registry: Registry,
    rollout: Rollout,
    /// The newest plan.
    plan: Option<Arc<Plan>>,
    shutdown: Shutdown,
    job: Option<JoinHandle<Outcome>>,
    /// A reload was asked for while a job ran.
    reload_wanted: bool,
    refresh_at: Option<Instant>,
    overrides: Overrides,
    checks: Checks,
    shared: Arc<Shared>,
}

impl Control {
    fn begin(&mut self, job: Job) {
        let dns = self.dns.clone();
        let names = host_names(&self.config);
        let config = self.config.clone();
        let known = self.answers.clone();
        self.job = Some(tokio::spawn(async move {
            match job {
                Job::FirstLookUp | Job::Refresh => {
                    Outcome::LookedUp(dns::look_up(&dns, names).await)
                }
                Job::Reload(source) => Outcome::Reloaded(reload(source, config, known, dns).await),
            }
        }));
    }

    fn on_message(&mut self, message: FromShard) {
        match message {
            FromShard::Ready { shard, driver, flags } => {
                self.shared.update(|status| {
                    if let Some(shard) = status.shards.get_mut(shard) {
                        shard.driver = driver;
                        shard.flags = flags;
                    }
                });
            }
            FromShard::PlanApplied { shard, generation } => {
                let was_live = self.shared.status().live();
                self.shared.update(|status| {
                    if let Some(shard) = status.shards.get_mut(shard) {
                        shard.plan_applied = shard.plan_applied.max(generation);
                    }
                });
                if !was_live && self.shared.status().live() {
                    // Behind the lines that say what the shards run on.
                    for (name, address) in std::mem::take(&mut self.listening) {
                        tracing::info!(listener = %name, %address, "listening");
                    }
                    tracing::info!(shards = self.shards.len(), "ready");
                }
                let step = self.rollout.activated(ShardId(shard as u16), generation);
                self.roll_out(step);
            }
            FromShard::PlanPrepared { shard, generation } => {
                let step = self.rollout.prepared(ShardId(shard as u16), generation);
                self.roll_out(step);
            }
            FromShard::OverrideApplied { endpoint, generation } => {
                self.overrides.applied(endpoint, generation);
            }
            FromShard::Closed { shard } => self.shutdown.closed(shard),
            FromShard::Drained { shard } => self.shutdown.drained(shard),
        }
    }

    fn on_signal(&mut self, signal: Signal, now: Instant) {
        tracing::info!(%signal, "signal");
        match signal {
            Signal::Hangup => self.want_reload(),
            Signal::ReopenLogs => self.access_logs.reopen(),
            Signal::Terminate => self.shutdown.begin(self.shutdown_settings(), now),
            Signal::Interrupt => self.shutdown.interrupt(self.shutdown_settings(), now),
        }
    }

    /// An operator overrides a breaker: its home is told, and tells the other shards.
    fn on_command(&mut self, command: Command) {
        // The plan that every shard has been sent, so that the home knows what is in it.
        let plan = self.shared.plan();
        let Some(breaker) = plan.as_ref().and_then(|plan| command.find(plan)) else {
            // Whoever asked may have given up.
            let _ = command.answer.send(Answer::Unknown);
            return;
        };
        let Command { wanted, answer, .. } = command;
        let generation = self.overrides.begin(breaker.id, answer);
        let plan::Breaker { cluster, name: endpoint, .. } = breaker;
        let (kind, wanted_verb) = (breaker.kind(), breakers::verb(wanted));
        tracing::info!(cluster, endpoint, kind, wanted = wanted_verb, generation, "override");
        let home = home_of(breaker.cluster_id, self.shards.len() as u16);
        let endpoint = breaker.id;
        let home = &mut self.shards[usize::from(home.0)];
        home.post(ToShard::Override { endpoint, wanted, generation });
    }

    /// Checks have found that an endpoint is down, or up: the shards read it at their next choice.
    fn on_found(&mut self, found: Found) {
        let Found { endpoint: id, up, why } = found;
        let Some(plan) = &self.plan else { return };
        for (cluster, health) in plan.clusters.iter().zip(&plan.health) {
            let Some(record) = health.of(id) else { continue };
            if cluster.health_check.is_none() {
                // It was on its way while a reload ended the check.
                continue;
            }
            let endpoint = cluster.endpoints.iter().find(|endpoint| endpoint.id == id);
            let address = endpoint.map(|endpoint| endpoint.address.to_string()).unwrap_or_default();
            let cluster = &cluster.name;
            let was_unchecked = record.state() == Health::Unchecked;
            record.set(if up { Health::Up } else { Health::Down }, Nanos::now());
            match up {
                true if was_unchecked => tracing::debug!(cluster, endpoint = address, "is up"),
                true => tracing::info!(cluster, endpoint = address, "is up again"),
                false => tracing::warn!(cluster, endpoint = address, why, "is down"),
            }
            say_panic(cluster, health.sum_up());
        }
    }

    fn shutdown_settings(&self) -> ShutdownSettings {
        ShutdownSettings {
            drain_delay: self.config.shutdown.drain_delay.0,
            drain_timeout: self.config.shutdown.drain_timeout.0,
        }
    }

    fn want_reload(&mut self) {
        if self.shutdown.begun() {
            tracing::warn!("not reloading: the process is ending");
        } else if self.job.is_some() {
            self.reload_wanted = true;
        } else if let Some(source) = self.source.clone() {
            self.begin(Job::Reload(source));
        } else {
            tracing::warn!("nothing to reload: the configuration is embedded");
        }
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        self.job = None;
        match outcome {
            Outcome::LookedUp(look_ups) => {
                let changed = self.learn(look_ups);
                if changed || self.generation == 0 {
                    self.send_plan();
                }
            }
            Outcome::Reloaded(Ok(new)) => {
                let (config, look_ups) = *new;
                for warning in &config.warnings {
                    tracing::warn!("{warning}");
                }
                self.config = Arc::new(config);
                self.learn(look_ups);
                self.answers.keep_only(&host_names(&self.config));
                self.send_plan();
                self.shared.update(|status| status.reload_succeeded());
                if let Some(set) = &self.set_log_level
                    && let Err(error) = set(&self.config.log.level.0)
                {
                    tracing::error!(error, "the log's level stays as it was");
                }
                tracing::info!(generation = self.generation, "configuration reloaded");
            }
            Outcome::Reloaded(Err(problems)) => {
                self.shared.update(|status| status.reload_failed());
                tracing::error!("not reloaded, everything stays as it was\n{problems}");
            }
            Outcome::Lost => {}
        }
        self.schedule_refresh();
        if std::mem::take(&mut self.reload_wanted) {
            self.want_reload();
        }
    }

    /// Takes over answers; `true` if any differs from what was known.
    fn learn(&mut self, look_ups: LookUps) -> bool {
        for (name, error) in &look_ups.failures {
            match self.answers.knows(name) {
                true => tracing::warn!(name, error, "not resolved, its last addresses stay"),
                false => tracing::error!(name, error, "not resolved, it has no address"),
            }
        }
        self.shared.update(|status| {
            status.dns_answers += look_ups.answers.len() as u64;
            status.dns_failures += look_ups.failures.len() as u64;
        });
        self.answers.learn(look_ups.answers)
    }

    fn schedule_refresh(&mut self) {
        let names = host_names(&self.config);
        self.refresh_at = (!names.is_empty()).then(|| {
            let all_known = names.iter().all(|name| self.answers.knows(name));
            Instant::now() + if all_known { self.dns.interval } else { self.dns.retry_interval }
        });
    }

    fn send_plan(&mut self) {
        if self.shutdown.begun() {
            return;
        }
        self.generation += 1;
        let mut resolve = |host: &str, port| self.answers.addresses(host, port);
        let before = self.plan.as_deref();
        let mut plan = config::compile_after(
            before,
            &self.config,
            self.generation,
            &mut self.registry,
            &mut resolve,
        );
        log_empty(before, &plan);
        if let Some(before) = before {
            for (cluster, begins) in plan.keep_records(before, Nanos::now()) {
                say_panic(&cluster, Some(begins));
            }
        }
        self.shared.update(|status| status.plan_newest = self.generation);
        self.checks.follow(&plan);
        self.plan = Some(Arc::new(plan));
        let step = self.rollout.submit(self.generation);
        self.roll_out(step);
    }

    /// Tells every shard the next step. The plan that is prepared is the newest one: the rollout
    /// skips those that waited behind another.
    fn roll_out(&mut self, step: Option<Step>) {
        match (step, &self.plan) {
            (Some(Step::Prepare(_)), Some(plan)) => {
                let plan = plan.clone();
                self.shared.publish(plan.clone());
                self.overrides.keep_only(&plan);
                self.post_all(|| ToShard::Prepare(plan.clone()));
            }
            (Some(Step::Activate(generation)), _) => {
                self.post_all(|| ToShard::Activate { generation });
            }
            _ => {}
        }
    }

    fn post_all(&mut self, message: impl Fn() -> ToShard) {
        for shard in &mut self.shards {
            shard.post(message());
        }
    }

    /// Passes on what the shutdown orders now; `true` when it is over.
    fn obey(&mut self, now: Instant) -> bool {
        while let Some(order) = self.shutdown.next_order(now) {
            match order {
                Order::Drain(step) => {
                    tracing::info!(?step, "draining");
                    self.shared.update(|status| status.draining = true);
                    self.post_all(|| ToShard::Drain(step));
                }
                Order::StopNow => {
                    tracing::info!("stopping at once");
                    self.shared.update(|status| status.draining = true);
                    for shard in &mut self.shards {
                        // What waits is of no use any more.
                        shard.waiting.clear();
                        shard.post(ToShard::StopNow);
                    }
                }
                Order::Exit => {
                    for shard in &mut self.shards {
                        shard.waiting.clear();
                        shard.post(ToShard::StopNow);
                    }
                    return true;
                }
            }
        }
        false
    }

    fn due(&self) -> Option<Instant> {
        let resend = self.shards.iter().any(|shard| !shard.waiting.is_empty());
        let resend_at = resend.then(|| Instant::now() + RETRY_SEND_AFTER);
        let refresh_at = self.refresh_at.filter(|_| self.job.is_none());
        [resend_at, refresh_at, self.shutdown.due()].into_iter().flatten().min()
    }

    fn on_due(&mut self, now: Instant) {
        for shard in &mut self.shards {
            shard.push();
        }
        if self.job.is_none() && self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_at = None;
            if !self.shutdown.begun() {
                self.begin(Job::Refresh);
            }
        }
    }
}

/// Says which clusters have lost all endpoints, and which have some again.
fn log_empty(before: Option<&Plan>, plan: &Plan) {
    for new in &plan.clusters {
        let cluster = &new.name;
        let old = before.and_then(|it| it.clusters.iter().find(|old| old.id == new.id));
        let kept_before = old.is_some_and(|old| old.keeps_endpoints);
        match (old.is_some_and(|old| old.endpoints.is_empty()), new.endpoints.len()) {
            (_, endpoints) if new.keeps_endpoints && !kept_before => {
                tracing::error!(cluster, endpoints, "no endpoint any more, the last ones stay");
            }
            (false, 0) if kept_before => {
                tracing::error!(cluster, "no endpoint, and the last ones are given up");
            }
            (false, 0) => tracing::error!(cluster, "no endpoint: its requests get 503"),
            (true, endpoints) if endpoints > 0 => {
                tracing::info!(cluster, endpoints, "has endpoints");
            }
            (_, endpoints) if kept_before && !new.keeps_endpoints => {
                tracing::info!(cluster, endpoints, "has endpoints of its own again");
            }
            _ => {}
        }
    }
}

/// The names to resolve, each once, whatever its ports.
fn host_names(config: &Config) -> Vec<String> {
    let mut names: Vec<_> = config::host_names(config).into_iter().map(|(name, _)| name).collect();
    names.dedup();
    names
}

/// Reads the configuration, compares, and looks up the names that are new.
///
/// # Errors
/// What to tell the operator: why everything stays as it was.
async fn reload(
    source: config::Source,
    old: Arc<Config>,
    known: Answers,
    dns: DnsOptions,
) -> Result<Box<(Config, LookUps)>, String> {
    let loaded = tokio::task::spawn_blocking(move || {
        let new = source.load().map_err(|errors| errors.to_string())?;
        let obstacles = config::reload_obstacles(&old, &new);
        if !obstacles.is_empty() {
            return Err(format!("this needs a restart:\n{}", obstacles.join("\n")));
        }
        for listener in &new.listeners {
            if let Some(log) = &listener.access_log {
                access_log::probe(&log.path)
                    .map_err(|error| format!("access log {}: {error}", log.path))?;
            }
        }
        Ok(new)
    });
    let new = loaded.await.map_err(|error| error.to_string())??;
    let mut names = host_names(&new);
    names.retain(|name| !known.knows(name));
    let look_ups = dns::look_up(&dns, names).await;
    Ok(Box::new((new, look_ups)))
}

#[cfg(test)]
mod tests;

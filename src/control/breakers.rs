//! Breakers for operators: the page that lists them, and overrides.
//!
//! ```text
//! POST /breakers/app/127.0.0.1:9000/force-open      the breaker of an endpoint, by its address
//! POST /breakers/app/routes/rest/force-open         the breaker of a route, by the route's name
//!
//! page -- Command --> control loop -- ToShard::Override --> home -- messages --> every shard
//!   ^                      |  ^                               |
//!   '------- Answer -------'  '-- FromShard::OverrideApplied -'  when all have applied it
//! ```
//!
//! The answer comes when every shard has it, and not before. An override is not kept here: the
//! home has it, for as long as its breaker is in the plan.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::admin::Pages;
use super::status::Shared;
use crate::breaker::Override;
use crate::plan::{self, Plan};
use crate::reconcile::{EndpointId, Role, home_of};

/// How long a page waits for every shard. They need some microseconds; a shard that takes longer
/// is stalled, and whoever asks should know.
pub(super) const OVERRIDE_TIMEOUT: Duration = Duration::from_secs(3);

/// Commands that may wait for the control loop.
pub(super) const COMMANDS_MAX: usize = 16;

/// Breakers that a 404 names.
const NAMES_MAX: usize = 100;

/// An override, as a page wants it.
pub(super) struct Command {
    pub cluster: String,
    pub role: Role,
    /// The address of an endpoint, or the name of a route.
    pub name: String,
    pub wanted: Override,
    pub answer: oneshot::Sender<Answer>,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Every shard has it.
    Applied,
    /// There is no such breaker, or not any more.
    Unknown,
    /// Another one of the same breaker came after it, and holds.
    Superseded,
}

impl Command {
    /// The breaker that is meant.
    pub fn find<'a>(&self, plan: &'a Plan) -> Option<&'a plan::Breaker> {
        plan.breakers.iter().find(|breaker| {
            breaker.role == self.role
                && breaker.cluster == self.cluster
                && breaker.name == self.name
        })
    }
}

/// Overrides on their way. The control loop's.
#[derive(Default)]
pub(super) struct Overrides {
    /// Counts them; only rises.
    generation: u64,
    waiting: Vec<(EndpointId, u64, oneshot::Sender<Answer>)>,
}

impl Overrides {
    /// One more sets out; gives its generation.
    pub fn begin(&mut self, endpoint: EndpointId, answer: oneshot::Sender<Answer>) -> u64 {
        // Pages that gave up.
        self.waiting.retain(|(_, _, answer)| !answer.is_closed());
        self.generation += 1;
        self.waiting.push((endpoint, self.generation, answer));
        self.generation
    }

    /// Every shard has this one, so those before it will never be.
    pub fn applied(&mut self, endpoint: EndpointId, generation: u64) {
        let is_over =
            |(id, begun, _): &(EndpointId, u64, _)| *id == endpoint && *begun <= generation;
        self.answer(is_over, |begun| match begun == generation {
            true => Answer::Applied,
            false => Answer::Superseded,
        });
    }

    /// Who is not in the plan will never have one.
    pub fn keep_only(&mut self, plan: &Plan) {
        self.answer(|(id, ..)| plan.breaker(*id).is_none(), |_| Answer::Unknown);
    }

    fn answer(
        &mut self,
        is_over: impl Fn(&(EndpointId, u64, oneshot::Sender<Answer>)) -> bool,
        say: impl Fn(u64) -> Answer,
    ) {
        for (_, generation, answer) in self.waiting.extract_if(.., |waiting| is_over(waiting)) {
            // Whoever asked may have given up.
            let _ = answer.send(say(generation));
        }
    }
}

/// An override, as its page and the log call it.
pub(super) fn verb(wanted: Override) -> &'static str {
    match wanted {
        Override::ForceOpen => "force-open",
        Override::ForceClosed => "force-closed",
        Override::Release => "auto",
    }
}

/// The pages of this module.
pub(super) fn pages() -> Router<Pages> {
    let paths = [
        ("/breakers/{cluster}/{breaker}", Role::Endpoint),
        ("/breakers/{cluster}/routes/{breaker}", Role::Route),
    ];
    let mut router = Router::new().route("/breakers", get(list));
    for wanted in [Override::ForceOpen, Override::ForceClosed, Override::Release] {
        for (path, role) in paths {
            let steer = move |State(pages): State<Pages>, Path((cluster, name))| {
                steer(pages, cluster, role, name, wanted)
            };
            router = router.route(&format!("{path}/{}", verb(wanted)), post(steer));
        }
    }
    router
}

/// One breaker, as the page tells it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    cluster: &'a str,
    /// An address, or the name of a route.
    endpoint: &'a str,
    kind: &'static str,
    state: &'static str,
    /// By an operator.
    forced: bool,
    epoch: u32,
    trips: u64,
    /// The shard that decides.
    home: u16,
    /// What its overrides are posted to, less `/force-open` and the like.
    path: String,
}

impl Row<'_> {
    fn new(breaker: &plan::Breaker, shards: usize) -> Row<'_> {
        let (state, epoch) = breaker.record.read();
        Row {
            cluster: &breaker.cluster,
            endpoint: &breaker.name,
            kind: breaker.kind(),
            state: state.name(),
            forced: state.is_forced(),
            epoch: epoch.0,
            trips: breaker.record.trips(),
            home: home_of(breaker.cluster_id, shards as u16).0,
            path: path_of(breaker),
        }
    }
}

fn path_of(breaker: &plan::Breaker) -> String {
    let kind = match breaker.role {
        Role::Endpoint => "",
        Role::Route => "routes/",
    };
    format!("/breakers/{}/{kind}{}", quoted(&breaker.cluster), quoted(&breaker.name))
}

/// As one segment of a path (RFC 3986, 3.3).
fn quoted(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' | b':' => segment.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => segment.push(byte.into()),
            // Writing to a String cannot fail.
            _ => drop(write!(segment, "%{byte:02X}")),
        }
    }
    segment
}

#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    format: Format,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Json,
    Text,
}

async fn list(
    State(shared): State<Arc<Shared>>,
    Query(Options { format }): Query<Options>,
) -> Response {
    let plan = shared.plan();
    let breakers = plan.iter().flat_map(|plan| &plan.breakers);
    let rows: Vec<_> = breakers.map(|breaker| Row::new(breaker, shared.shards())).collect();
    let fresh = [(header::CACHE_CONTROL, "no-store")];
    match format {
        Format::Json => (fresh, Json(serde_json::json!({ "breakers": rows }))).into_response(),
        Format::Text => (fresh, table(&rows)).into_response(),
    }
}

fn table(rows: &[Row<'_>]) -> String {
    let width = |name: &str, of: fn(&Row<'_>) -> usize| {
        rows.iter().map(of).max().unwrap_or_default().max(name.len())
    };
    let cluster = width("CLUSTER", |row| row.cluster.chars().count());
    let endpoint = width("ENDPOINT", |row| row.endpoint.chars().count());
    let mut text = format!(
        "{:cluster$}  {:endpoint$}  KIND      STATE          EPOCH  TRIPS  HOME\n",
        "CLUSTER", "ENDPOINT"
    );
    for row in rows {
        let Row { kind, state, epoch, trips, home, .. } = row;
        let _ = writeln!(
            text,
            "{:cluster$}  {:endpoint$}  {kind:8}  {state:13}  {epoch:5}  {trips:5}  {home:4}",
            row.cluster, row.endpoint,
        );
    }
    text
}

async fn steer(
    Pages { shared, commands, override_timeout }: Pages,
    cluster: String,
    role: Role,
    name: String,
    wanted: Override,
) -> Response {
    if shared.plan().is_none() {
        return say(StatusCode::SERVICE_UNAVAILABLE, "there is no plan yet");
    }
    let (answer, answered) = oneshot::channel();
    let command = Command { cluster: cluster.clone(), role, name: name.clone(), wanted, answer };
    let outcome = tokio::time::timeout(override_timeout, async {
        // It fails where the loop has ended, and so does waiting for its answer.
        let _ = commands.send(command).await;
        answered.await
    });
    match outcome.await {
        Ok(Ok(Answer::Applied)) => {}
        Ok(Ok(Answer::Unknown)) => return unknown(&shared, &cluster),
        Ok(Ok(Answer::Superseded)) => {
            return say(StatusCode::CONFLICT, "another override came after this one, and holds");
        }
        Ok(Err(_)) => return say(StatusCode::SERVICE_UNAVAILABLE, "the process is ending"),
        Err(_) => {
            return say(
                StatusCode::GATEWAY_TIMEOUT,
                "not every shard has confirmed it in time; it may still come into force",
            );
        }
    }
    let plan = shared.plan();
    let breaker = plan
        .iter()
        .flat_map(|plan| &plan.breakers)
        .find(|breaker| breaker.role == role && breaker.cluster == cluster && breaker.name == name);
    match breaker {
        Some(breaker) => Json(Row::new(breaker, shared.shards())).into_response(),
        // It left in this moment.
        None => unknown(&shared, &cluster),
    }
}

fn say(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}

/// Says which there are: of the cluster, or of all if there is no such cluster.
fn unknown(shared: &Shared, cluster: &str) -> Response {
    let plan = shared.plan();
    let all: Vec<_> = plan.iter().flat_map(|plan| &plan.breakers).collect();
    let of_cluster: Vec<_> =
        all.iter().filter(|breaker| breaker.cluster == cluster).copied().collect();
    let near = if of_cluster.is_empty() { all } else { of_cluster };
    let mut text = "no such breaker; there are:\n".to_owned();
    for breaker in near.iter().take(NAMES_MAX) {
        let _ = writeln!(text, "{}", path_of(breaker));
    }
    if near.len() > NAMES_MAX {
        let _ = writeln!(text, "and {} more: GET /breakers", near.len() - NAMES_MAX);
    }
    (StatusCode::NOT_FOUND, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::reconcile::Registry;

    /// Its breakers: 0 and 1 of endpoints, 2 of a route.
    fn plan(registry: &mut Registry, endpoints: &str) -> Arc<Plan> {
        let text = format!(
            "listeners: [{{address: '127.0.0.1:1'}}]\n\
             clusters: [{{name: a, endpoints: [{endpoints}]}}]\n\
             routes: [{{name: r/1, cluster: a, breaker: true}}]\n"
        );
        let config = config::parse(&text, config::Format::Yaml, "test").unwrap();
        Arc::new(config::compile(&config, 1, registry, &mut |_, _| Vec::new()))
    }

    fn answer(received: &mut oneshot::Receiver<Answer>) -> Option<Answer> {
        received.try_recv().ok()
    }

    #[test]
    fn an_override_is_answered_when_it_is_applied_and_not_before() {
        let mut overrides = Overrides::default();
        let [one, two] = [EndpointId(1), EndpointId(2)];
        let begin = |overrides: &mut Overrides, endpoint| {
            let (answer, answered) = oneshot::channel();
            (overrides.begin(endpoint, answer), answered)
        };
        let (first, mut first_answer) = begin(&mut overrides, one);
        let (other, mut other_answer) = begin(&mut overrides, two);
        let (second, mut second_answer) = begin(&mut overrides, one);
        let (third, mut third_answer) = begin(&mut overrides, one);
        assert_eq!([first, other, second, third], [1, 2, 3, 4]);

        overrides.applied(one, second);
        assert_eq!(answer(&mut first_answer), Some(Answer::Superseded));
        assert_eq!(answer(&mut second_answer), Some(Answer::Applied));
        assert_eq!((answer(&mut third_answer), answer(&mut other_answer)), (None, None));
        overrides.applied(two, other);
        assert_eq!(answer(&mut other_answer), Some(Answer::Applied));

        // Who gave up is forgotten, and generations go on.
        drop(third_answer);
        let (fourth, _answer) = begin(&mut overrides, two);
        assert_eq!((fourth, overrides.waiting.len()), (5, 1));
    }

    #[test]
    fn who_leaves_the_plan_is_answered() {
        let mut registry = Registry::default();
        let first = plan(&mut registry, "'127.0.0.1:1', '127.0.0.1:2'");
        let second = plan(&mut registry, "'127.0.0.1:2'");
        let mut overrides = Overrides::default();
        let mut begin = |index: usize| {
            let (answer, answered) = oneshot::channel();
            overrides.begin(first.breakers[index].id, answer);
            answered
        };
        let (mut gone, mut stays) = (begin(0), begin(1));
        overrides.keep_only(&second);
        assert_eq!((answer(&mut gone), answer(&mut stays)), (Some(Answer::Unknown), None));
    }

    #[test]
    fn paths_name_breakers_whatever_they_are_called() {
        let plan = plan(&mut Registry::default(), "'127.0.0.1:1', '[::1]:2'");
        let paths: Vec<_> = plan.breakers.iter().map(path_of).collect();
        assert_eq!(
            paths,
            ["/breakers/a/127.0.0.1:1", "/breakers/a/%5B::1%5D:2", "/breakers/a/routes/r%2F1"]
        );
    }

    #[test]
    fn the_table_is_aligned() {
        let plan = plan(&mut Registry::default(), "'127.0.0.1:1', '[::1]:2'");
        let rows: Vec<_> = plan.breakers.iter().map(|breaker| Row::new(breaker, 2)).collect();
        let home = home_of(plan.clusters[0].id, 2).0;
        assert_eq!(
            table(&rows),
            format!(
                "CLUSTER  ENDPOINT     KIND      STATE          EPOCH  TRIPS  HOME\n\
                 a        127.0.0.1:1  endpoint  closed             0      0     {home}\n\
                 a        [::1]:2      endpoint  closed             0      0     {home}\n\
                 a        r/1          route     closed             0      0     {home}\n"
            )
        );
    }
}

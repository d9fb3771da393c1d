//! The command line: flags in, one command run, an exit code out. Prints; decides nothing else.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Errors, Overrides, SHARDS_MAX, Source};

mod check;

mod completions;

pub mod demo;

mod explain;

mod print_config;

mod run;

mod schema;

mod sim;

mod version;

pub use run::Options;

/// The configuration cannot be used.
pub const EXIT_CONFIG: u8 = 1;

/// The command line cannot be understood; clap's.
pub const EXIT_USAGE: u8 = 2;

/// A shard panicked; EX_SOFTWARE of sysexits.h.
pub const EXIT_PANIC: u8 = 70;

/// An address cannot be bound; EX_TEMPFAIL of sysexits.h.
pub const EXIT_BIND: u8 = 75;

const AFTER_HELP: &str = "\
Examples:
  outrigger                             a demo: the proxy and three origins in one process
  outrigger check -c proxy.yaml         everything that is wrong, with file, line and column
  outrigger run -c proxy.yaml           the real thing
  outrigger run --config-yaml '{listeners: [{address: 127.0.0.1:8080}],
      clusters: [{name: app, endpoints: [127.0.0.1:9000]}]}'
  outrigger print-config -c proxy.yaml  with every default filled in
  outrigger explain -c proxy.yaml http://app.example/x    what would happen to this request
  outrigger schema > outrigger.json     for your editor

Signals:
  TERM, QUIT  drain: accept for drain_delay, finish what runs for at most drain_timeout, exit 0
  INT         the same, but for at most 2 s; a second one stops at once
  HUP         read the configuration again; a bad one is refused and the old one kept
  USR1        open the access logs again, after they were moved away

Exit codes:
  0 done, or drained   1 configuration error   2 usage error
  70 a shard panicked  75 an address cannot be bound

Every flag can be given in the environment: OUTRIGGER_CONFIG for --config, and so on.";

const EXPLAIN_HELP: &str = "\
Examples:
  outrigger explain -c proxy.yaml http://app.example/cart
  outrigger explain -c proxy.yaml -X POST -H 'x-user: ann' -H 'Content-Length: 5' localhost:8080/x
  outrigger explain -c proxy.yaml /cart                 the first listener, Host: localhost
  outrigger explain -c proxy.yaml --client 10.1.2.3 --admin off --format json /cart

Flags are curl's where curl has them. The path goes as it is written, as with curl's --path-as-is.
The request is sent nowhere, and names are not looked up: only the admin's own address is asked,
for the states of breakers and checks.

Exit codes: 0 explained, also where the request would be refused; 1 configuration error, or
nothing answers at --admin; 2 usage error.";

const CONFIG_HELP: &str = "\
A configuration can be as short as this:

  listeners:
    - address: 127.0.0.1:8080
  clusters:
    - name: app
      endpoints: [127.0.0.1:9000]

Values take ${NAME} and ${NAME:-default} from the environment. A file that ends in .toml is TOML.";

/// An HTTP proxy for services: one io_uring shard per CPU core, kept in agreement by messages.
///
/// Without a command it runs a demo on 127.0.0.1:8080.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy until a signal stops it
    #[command(after_help = CONFIG_HELP)]
    Run(RunArgs),
    /// Check a configuration: prints "configuration 'FILE' OK", or all that is wrong
    #[command(visible_alias = "validate", after_help = CONFIG_HELP)]
    Check(ConfigArgs),
    /// Tell what would happen to a request, and why
    ///
    /// Listener, route (and why not those before it), what is sent, cluster, endpoints with their
    /// states and weights, limits, retries, timeouts; or the reason to refuse it. By the code that
    /// serves; states are those of the running process, if its admin address answers.
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainArgs),
    /// Print a configuration as YAML, with every default filled in
    #[command(name = "print-config")]
    PrintConfig(ConfigArgs),
    /// Print the JSON Schema of the configuration
    Schema,
    /// Torture the protocol between the shards in a simulated world
    ///
    /// The real code, a virtual clock, messages that are lost, late, repeated and reordered, shards
    /// that stall, plans that change, endpoints that die. Exits 1 if anything that is promised does
    /// not hold, and prints the seed and the shortest history found.
    Sim(SimArgs),
    /// Print completions for a shell
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version {
        /// As JSON
        #[arg(long, env = "OUTRIGGER_JSON")]
        json: bool,
    },
}

/// Where the configuration is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct ConfigArgs {
    /// The configuration: YAML, or TOML if it ends in .toml
    #[arg(short, long, value_name = "FILE", env = "OUTRIGGER_CONFIG")]
    config: Option<PathBuf>,
    /// Configuration as text, laid over the file key by key
    #[arg(long, value_name = "TEXT", env = "OUTRIGGER_CONFIG_YAML")]
    config_yaml: Option<String>,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// So many shards, in place of shards.count and shards.cpus
    #[arg(long, value_name = "N", env = "OUTRIGGER_CONCURRENCY")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(SHARDS_MAX)))]
    concurrency: Option<u32>,
    /// off, error, warn, info, debug or trace; or for each module: info,outrigger::control=debug
    #[arg(long, value_name = "LEVEL", env = "OUTRIGGER_LOG_LEVEL")]
    #[arg(value_parser = log_level)]
    log_level: Option<crate::config::LogFilter>,
    /// Write the admin's address to this file, once it listens
    #[arg(long, value_name = "FILE", env = "OUTRIGGER_ADMIN_ADDRESS_PATH")]
    admin_address_path: Option<PathBuf>,
    /// Write the listeners' names and addresses to this file, once all shards listen
    #[arg(long, value_name = "FILE", env = "OUTRIGGER_LISTEN_ADDRESS_PATH")]
    listen_address_path: Option<PathBuf>,
    /// How long a drain may take, in seconds, in place of shutdown.drain_timeout
    #[arg(long, value_name = "SECONDS", env = "OUTRIGGER_DRAIN_TIME_S")]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=86_400))]
    drain_time_s: Option<u64>,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The method
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    #[arg(env = "OUTRIGGER_REQUEST")]
    request: String,
    /// A header, as 'name: value'; one flag for each
    #[arg(short = 'H', long, value_name = "HEADER", env = "OUTRIGGER_HEADER")]
    header: Vec<String>,
    /// The client's address: the other end of its connection
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", env = "OUTRIGGER_CLIENT")]
    client: IpAddr,
    /// The listener, by its name; else the one on the URL's port, else the first
    #[arg(long, value_name = "NAME", env = "OUTRIGGER_LISTENER")]
    listener: Option<String>,
    /// What an endpoint's name stands for; names are not looked up
    #[arg(long, value_name = "HOST:PORT:ADDRESS", env = "OUTRIGGER_RESOLVE")]
    resolve: Vec<crate::explain::Resolve>,
    /// The running process's admin address, or off; else the configuration's, if it answers
    #[arg(long, value_name = "ADDRESS", env = "OUTRIGGER_ADMIN", value_parser = admin_address)]
    admin: Option<crate::config::AdminAddress>,
    /// For people or for programs
    #[arg(long, value_enum, default_value_t = ExplainFormat::Text, env = "OUTRIGGER_FORMAT")]
    format: ExplainFormat,
    /// http://HOST[:PORT]/PATH[?QUERY]; or from the host on; or from the path on
    url: String,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ExplainFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, Args)]
struct SimArgs {
    /// The seed, or the first of them; the same seed gives the same history
    #[arg(long, value_name = "N", default_value_t = 0, env = "OUTRIGGER_SEED")]
    seed: u64,
    /// So many seeds
    #[arg(long, value_name = "N", default_value_t = 1, env = "OUTRIGGER_SEEDS")]
    seeds: u64,
    /// So many shards; else 1 to 5, by the seed
    #[arg(long, value_name = "N", env = "OUTRIGGER_SHARDS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(SHARDS_MAX)))]
    shards: Option<u16>,
    /// Steps of chaos for each seed, before the world heals
    #[arg(long, value_name = "N", default_value_t = 250, env = "OUTRIGGER_STEPS")]
    steps: u32,
    /// Threads, each with seeds of its own
    #[arg(long, value_name = "N", default_value_t = 1, env = "OUTRIGGER_THREADS")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
}

/// A log level; the second line of an error, its help, goes behind the first.
fn log_level(text: &str) -> Result<crate::config::LogFilter, String> {
    text.parse().map_err(|error: String| error.replace('\n', ": "))
}

/// An address of the admin's, the same way.
fn admin_address(text: &str) -> Result<crate::config::AdminAddress, String> {
    text.parse().map_err(|error: String| error.replace('\n', ": "))
}

impl ConfigArgs {
    fn source(self, overrides: Overrides) -> Source {
        Source { file: self.config, yaml: self.config_yaml, overrides }
    }
}

/// Runs what the command line asks for. Usage errors end the process with 2.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        None => demo::main(),
        Some(Command::Run(args)) => run::main(args),
        Some(Command::Check(args)) => check::main(args),
        Some(Command::Explain(args)) => explain::main(args),
        Some(Command::PrintConfig(args)) => print_config::main(args),
        Some(Command::Schema) => schema::main(),
        Some(Command::Sim(args)) => sim::main(args),
        Some(Command::Completions { shell }) => completions::main(shell),
        Some(Command::Version { json }) => version::main(json),
    }
}

/// What a configuration is called in messages.
fn name(source: &Source) -> String {
    match &source.file {
        Some(path) => path.display().to_string(),
        None => "--config-yaml".to_owned(),
    }
}

/// Loads, and prints what is wrong or doubtful to standard error.
fn load(source: &Source) -> Result<Config, ExitCode> {
    match source.load() {
        Ok(config) => {
            config.warnings.iter().for_each(|warning| eprintln!("{warning}"));
            Ok(config)
        }
        Err(errors) => {
            eprint!("{errors}");
            eprintln!("\nconfiguration '{}' has {}", name(source), count(&errors));
            Err(ExitCode::from(EXIT_CONFIG))
        }
    }
}

fn count(errors: &Errors) -> String {
    match errors.count() {
        1 => "1 error".to_owned(),
        count => format!("{count} errors"),
    }
}

/// Prints to standard output; a reader that left early (`| head`) is no error.
fn print(text: &str) -> ExitCode {
    use std::io::Write as _;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("cannot write: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// Every flag of every command has its OUTRIGGER_ variable, named after it.
    #[test]
    fn every_flag_has_its_variable() {
        for command in Cli::command().get_subcommands() {
            for flag in command.get_arguments().filter(|it| !it.is_positional()) {
                let Some(long) = flag.get_long().filter(|it| *it != "help") else { continue };
                let expected = format!("OUTRIGGER_{}", long.to_uppercase().replace('-', "_"));
                let variable = flag.get_env().map(|it| it.to_string_lossy().into_owned());
                assert_eq!(variable, Some(expected), "{} --{long}", command.get_name());
            }
        }
    }
}

//! The verbs and their flags: what was typed, before it is checked.
//!
//! A flag is a setting like any other: it becomes a [`Flag`] over file and environment.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use walpost::config::{ConfigError, Flag, Values};

mod check;
mod init;
mod log;
mod run;

pub(crate) use log::Log;

const DEFAULT_FILE: &str = "walpost.toml";

/// What a program says that cannot read the database it is given.
#[cfg(not(feature = "mysql"))]
const WITHOUT_MYSQL: &str =
    "this walpost was built without MySQL and MariaDB; build it with --features mysql";

const EXAMPLES: &str = "\
Examples:
  walpost init  --source postgres://postgres@db/shop --role walpost
  walpost check --source postgres://walpost@db/shop --sink kafka://broker:9092
  walpost run   --source postgres://walpost@db/shop --sink kafka://broker:9092

Settings come from walpost.toml (or --config), WALPOST_… variables over it, and flags over those:
source.slot in the file is WALPOST_SOURCE_SLOT in the environment and --slot as a flag.
Passwords belong into the environment or a file (WALPOST_SOURCE_URL, WALPOST_SOURCE_PASSWORD_FILE):
what stands in a flag, every user of the machine can see.

Exit codes: 0 clean, 1 definite error or failed check, 2 configuration.";

/// Relays committed outbox rows from the database's log to a broker, and lets the database forget
/// them only after the broker confirmed.
#[derive(Parser)]
#[command(name = "walpost", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: GlobalFlags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
#[command(next_help_heading = "General")]
struct GlobalFlags {
    /// Configuration file [default: walpost.toml, if there is one]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "WALPOST_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
    /// How log lines are written: human or json
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged: error, warn, info, debug, trace; or directives for each part, such as
    /// walpost=debug,lapin=info
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Sets any other key, for example --set relay.lanes=64
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Subcommand)]
enum Verb {
    /// Relay rows until stopped
    #[command(after_help = "\
Example:
  walpost run --source postgres://walpost@db/shop --sink kafka://broker:9092

An interrupt (SIGTERM, SIGINT) stops it cleanly; a second one at once.

A relay that finds the slot, the position or the database not where it left them stops, says which
rows are at risk, and prints the --accept-gap to go on with once they were looked after.")]
    Run(RunFlags),
    /// Create what the database needs: table, role, and the position to read from
    ///
    /// Creates what is missing and says what is there already; nothing is dropped or changed.
    #[command(after_help = "\
Examples:
  walpost init --source postgres://postgres@db/shop
  walpost init --source postgres://postgres@db/shop --role walpost   # + WALPOST_ROLE_PASSWORD
  walpost init --print | psql --set ON_ERROR_STOP=1 shop
  walpost init --source mysql://root@db/shop --role walpost          # + WALPOST_ROLE_PASSWORD

PostgreSQL: the publication comes before the slot, which cannot see one that was made after it.
MySQL, MariaDB: rows that the table has already are published by the first run, unless
--skip-existing leaves them out.")]
    Init(init::InitFlags),
    /// Check every precondition once, and say how to fix each failure
    #[command(after_help = "\
Example:
  walpost check --json | jq '.findings[] | select(.standing != \"ok\")'

Exits with 1 when anything failed.")]
    Check(check::CheckFlags),
    /// Print the effective, checked settings, where each comes from, and secrets as ***
    Config(RelayFlags),
}

/// Where rows come from.
#[derive(Args, Default)]
pub(crate) struct SourceFlags {
    /// Database: postgres://USER@HOST:PORT/DATABASE, mysql://… or mariadb://…
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// Replication slot (PostgreSQL) [default: walpost]
    #[arg(long)]
    slot: Option<String>,
    /// Publication (PostgreSQL) [default: walpost]
    #[arg(long)]
    publication: Option<String>,
    /// Outbox table [default: public.outbox; MySQL: outbox in the URL's database]
    #[arg(long)]
    table: Option<String>,
    /// Name of this relay for logs, metrics and the broker; MySQL: of its position [default: the
    /// slot; MySQL: walpost]
    #[arg(long)]
    name: Option<String>,
}

/// Where rows come from and go to.
#[derive(Args)]
pub(crate) struct RelayFlags {
    #[command(flatten)]
    source: SourceFlags,
    /// Broker: kafka://HOST:9092, amqp://HOST, nats://HOST:4222, stdout://
    #[arg(long, value_name = "URL")]
    sink: Option<String>,
}

#[derive(Args)]
struct RunFlags {
    #[command(flatten)]
    relay: RelayFlags,
    /// Go on although rows may be missing, once: the position that the error named
    #[arg(long, value_name = "POSITION")]
    accept_gap: Option<String>,
}

/// Does what was typed.
pub(crate) fn execute(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.verb {
        Verb::Run(flags) => {
            let values = values(&cli.global, flags.relay.settings())?;
            let mut settings = values.settings()?;
            run::accept_gap(&mut settings, flags.accept_gap.as_ref())?;
            log::start(&values, &settings.log)?;
            block_on(run::run(settings))
        }
        Verb::Init(flags) => {
            let values = values(&cli.global, flags.source.settings())?;
            log::start(&values, &values.log()?)?;
            block_on(init::init(&values, flags))
        }
        Verb::Check(flags) => {
            let values = values(&cli.global, flags.relay.settings())?;
            log::start(&values, &values.log()?)?;
            block_on(check::check(&values, flags))
        }
        Verb::Config(flags) => {
            let values = values(&cli.global, flags.settings())?;
            let settings = values.settings()?;
            log::filter(&values, &settings.log)?;
            // Some clients need a runtime to be made at all.
            block_on(async { Ok(walpost::sink::open(&settings.sink).map(drop)?) })?;
            print(&values.effective())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn values(global: &GlobalFlags, mut flags: Vec<Flag>) -> Result<Values, ConfigError> {
    flags.extend(flag("--log-format", "log.format", &global.log_format));
    flags.extend(flag("--log-level", "log.level", &global.log_level));
    for (key, value) in &global.set {
        let name = format!("--set {key}");
        flags.push(Flag { name, key: key.clone(), value: value.clone() });
    }
    let default = Path::new(DEFAULT_FILE);
    let file = global.config.as_deref().or_else(|| default.exists().then_some(default));
    // A variable that is not UTF-8 cannot be one of ours with a usable value; it is named as
    // unknown or refused by its value rather than skipped.
    let environment = std::env::vars_os().map(|(name, value)| {
        (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
    });
    Values::load(file, environment, &flags)
}

/// Runs a verb. A blocking call that is still under way (a write to a pipe that nobody reads, a name
/// look-up) is not waited for: it ends with the process.
fn block_on<T>(verb: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    let result = runtime.block_on(verb);
    runtime.shutdown_background();
    result
}

impl SourceFlags {
    fn settings(&self) -> Vec<Flag> {
        [
            flag("--source", "source.url", &self.source),
            flag("--slot", "source.slot", &self.slot),
            flag("--publication", "source.publication", &self.publication),
            flag("--table", "source.table", &self.table),
            flag("--name", "relay.name", &self.name),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl RelayFlags {
    fn settings(&self) -> Vec<Flag> {
        let mut flags = self.source.settings();
        flags.extend(flag("--sink", "sink.url", &self.sink));
        flags
    }
}

/// Writes to stdout. A reader that has seen enough (`walpost config | head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("could not write to stdout")
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn flag(name: &str, key: &str, value: &Option<String>) -> Option<Flag> {
    let value = value.clone()?;
    Some(Flag { name: name.into(), key: key.into(), value })
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

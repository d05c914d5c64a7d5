//! `walpost init`: creates what is missing, says what is there, drops and changes nothing.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use walpost::config::{OutboxSettings, SourceSettings, Values};
use walpost::source::{Finding, Standing};
use walpost::{Column, Columns, Role};

use super::{SourceFlags, print};

#[cfg(feature = "mysql")]
mod mysql;
mod postgres;
mod template;

/// What counting stops at: enough to decide, and quick on any table.
const ROWS_COUNTED_MAX: i64 = 1_000_000;

#[derive(Args, Default)]
pub(crate) struct InitFlags {
    #[command(flatten)]
    pub(super) source: SourceFlags,
    /// Print the SQL and connect nowhere
    #[arg(long)]
    print: bool,
    /// Also create this role (MySQL: user) for the relay; its password is taken from
    /// WALPOST_ROLE_PASSWORD. With --print it is in the printed SQL: for PostgreSQL as a SCRAM
    /// verifier, for MySQL in clear text
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
    /// Leave out rows that the table has already: they are never published
    #[arg(long)]
    skip_existing: bool,
    /// Leave out the table that remembers what was confirmed (PostgreSQL)
    #[arg(long)]
    no_memory: bool,
    /// Make the slot one that a standby takes over (PostgreSQL 17 and later)
    #[arg(long)]
    failover: bool,
}

/// Creates or prints what the database needs.
pub(crate) async fn init(values: &Values, flags: &InitFlags) -> anyhow::Result<ExitCode> {
    let outbox = values.outbox()?;
    let password = std::env::var("WALPOST_ROLE_PASSWORD").ok();
    let password = password.as_deref();
    let source = if flags.print { values.source_without_url()? } else { values.source()? };
    match source {
        SourceSettings::Postgres(settings) if flags.print => {
            postgres::print_script(&settings, &outbox, flags, password)?;
        }
        SourceSettings::Postgres(settings) => {
            postgres::create(settings, outbox, flags, password).await?;
        }
        #[cfg(feature = "mysql")]
        SourceSettings::MySql(settings) if flags.print => {
            mysql::print_script(&settings, &outbox, flags, password)?;
        }
        #[cfg(feature = "mysql")]
        SourceSettings::MySql(settings) => {
            mysql::create(settings, outbox, flags, password).await?;
        }
        #[cfg(not(feature = "mysql"))]
        SourceSettings::MySql(_) => bail!(super::WITHOUT_MYSQL),
    }
    Ok(ExitCode::SUCCESS)
}

/// One line of the report, at once: the slot may take a while.
fn say(line: &str) -> anyhow::Result<()> {
    print(&format!("{line}\n"))
}

/// Fails where a table would be made for a mapping: its layout is another program's, which makes it
/// by its own migrations.
fn refuse_mapped_table(outbox: &OutboxSettings, table: &str) -> anyhow::Result<()> {
    let own = Columns::debezium();
    let is_own = |column: &Column| {
        matches!(column.role, Role::Extra(_))
            || own.iter().any(|own| own.role == column.role && own.name == column.name)
    };
    let Some(foreign) = outbox.columns.iter().find(|column| !is_own(column)) else {
        return Ok(());
    };
    bail!(
        "there is no table {table}, and outbox.columns names another layout than walpost's own \
         (column {}), which walpost does not make\n  fix: let the program or library that owns the \
         table make it, then run init again; or run the statement that walpost init --print shows",
        foreign.name
    )
}

fn count(rows: i64) -> String {
    match rows {
        1 => "1 row".into(),
        ROWS_COUNTED_MAX => format!("at least {rows} rows"),
        _ => format!("{rows} rows"),
    }
}

/// Fails with every finding that stands as bad as `from` or worse.
fn refuse(findings: Vec<Finding>, from: Standing) -> anyhow::Result<()> {
    let bad = |finding: &Finding| match finding.standing {
        Standing::Ok => false,
        Standing::Warn => from == Standing::Warn,
        Standing::Fail => true,
    };
    let mut text = String::new();
    for finding in findings.iter().filter(|finding| bad(finding)) {
        let gap = if text.is_empty() { "" } else { "\n" };
        text.push_str(&format!("{gap}{}: {}", finding.name, finding.detail));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("\n  fix: {fix}"));
        }
    }
    if text.is_empty() { Ok(()) } else { bail!(text) }
}

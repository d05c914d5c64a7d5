//! `walpost check`: the doctor. Connects to both sides once, asks for every precondition, and
//! says how to fix what does not hold. Answers within seconds, also when nobody else does.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use walpost::config::{OutboxSettings, SourceSettings, Values};
use walpost::sink::{self, Sink};
use walpost::source::{Finding, Standing};
use walpost::{Failure, FailureKind};

use super::{RelayFlags, print};

#[cfg(feature = "mysql")]
mod mysql;
mod postgres;

/// How long either side may take for all its answers together.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct CheckFlags {
    #[command(flatten)]
    pub(super) relay: RelayFlags,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    findings: Vec<Finding>,
}

/// Asks for every precondition and prints how it stands; the exit code is 1 if one failed.
pub(crate) async fn check(values: &Values, flags: &CheckFlags) -> anyhow::Result<ExitCode> {
    let settings = values.settings()?;
    let sink = sink::open(&settings.sink)?;
    let prefix = settings.outbox.topic.split('{').next().unwrap_or_default();
    let mut findings = vec![Finding::ok("configuration", values.file().unwrap_or("no file"))];
    let (source, sink) = tokio::join!(
        check_source(&settings.source, &settings.outbox),
        check_sink(&*sink, settings.sink.url.masked_url(), prefix)
    );
    findings.extend(source);
    findings.extend(sink);
    let report = Report { ok: findings.iter().all(|one| one.standing != Standing::Fail), findings };
    let text = if flags.json {
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else {
        lines(&report)
    };
    print(&text)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn lines(report: &Report) -> String {
    // Wide enough for most names; a few longer ones push their detail aside.
    let names = report.findings.iter().map(|finding| finding.name.len());
    let width = names.filter(|length| *length <= 20).max().unwrap_or(0).max(14);
    let mut text = String::new();
    for finding in &report.findings {
        let standing = match finding.standing {
            Standing::Ok => "ok",
            Standing::Warn => "warn",
            Standing::Fail => "FAIL",
        };
        text.push_str(&format!("{standing:<5} {:<width$} {}\n", finding.name, finding.detail));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("      fix: {fix}\n"));
        }
    }
    text
}

async fn check_source(settings: &SourceSettings, outbox: &OutboxSettings) -> Vec<Finding> {
    let asking = async {
        match settings {
            SourceSettings::Postgres(settings) => postgres::ask(settings, outbox).await,
            #[cfg(feature = "mysql")]
            SourceSettings::MySql(settings) => mysql::ask(settings, outbox).await,
            #[cfg(not(feature = "mysql"))]
            SourceSettings::MySql(_) => Err(Failure::definite(super::WITHOUT_MYSQL)),
        }
    };
    let asking = tokio::time::timeout(ANSWER_TIMEOUT, asking);
    let failure = match asking.await {
        Ok(Ok(findings)) => return findings,
        Ok(Err(failure)) => failure,
        Err(_) => Failure::transient(format!("no answer within {ANSWER_TIMEOUT:?}")),
    };
    vec![unreachable("source", &settings.url().masked_url(), &failure)]
}

/// `prefix` is what the names of all destinations begin with.
async fn check_sink(sink: &dyn Sink, shown: String, prefix: &str) -> Vec<Finding> {
    let looking = async {
        let mut warnings = sink.probe().await?;
        warnings.extend(sink.examine(prefix).await?);
        Ok(warnings)
    };
    let probed = match tokio::time::timeout(ANSWER_TIMEOUT, looking).await {
        Ok(probed) => probed,
        Err(_) => Err(Failure::transient(format!("no answer within {ANSWER_TIMEOUT:?}"))),
    };
    let findings = match probed {
        Ok(warnings) => {
            let warnings = warnings.into_iter().map(|one| Finding::warn("sink", one, ""));
            std::iter::once(Finding::ok("sink", shown)).chain(warnings).collect()
        }
        Err(failure) => vec![unreachable("sink", &shown, &failure)],
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, sink.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => tracing::debug!(%failure, "could not close the sink"),
        Err(_) => tracing::debug!("the sink did not close in time"),
    }
    findings
}

fn unreachable(name: &'static str, url: &str, failure: &Failure) -> Finding {
    let fix = match failure.kind() {
        FailureKind::Transient if has_answered(failure) => {
            format!("it was reached and answered so: read the message; {name}.url leads there")
        }
        FailureKind::Transient => format!("start it, or correct host and port in {name}.url"),
        FailureKind::Denied => format!("correct user and password in {name}.url"),
        FailureKind::Definite => format!("correct [{name}] as the message says"),
    };
    Finding::fail(name, format!("{url}: {failure}"), fix)
}

/// Whether the other side said so itself: then it runs, and at this address.
fn has_answered(failure: &Failure) -> bool {
    #[cfg(feature = "mysql")]
    {
        use walpost::source::mysql::ConnectError;
        let cause = failure.cause();
        if let Some(mysql_async::Error::Server(_)) = cause.downcast_ref::<mysql_async::Error>() {
            return true;
        }
        if let Some(error) = cause.downcast_ref::<ConnectError>() {
            return error.server_error().is_some();
        }
    }
    let postgres = failure.cause().downcast_ref::<tokio_postgres::Error>();
    postgres.is_some_and(|error| error.as_db_error().is_some())
}

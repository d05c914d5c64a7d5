//! `walpost run`: the relay until it is stopped.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use walpost::config::{OnReject, Settings, SourceSettings};
#[cfg(feature = "mysql")]
use walpost::source::mysql::MySqlSource;
use walpost::source::postgres::{Lsn, PostgresSource};
use walpost::{Backoff, Budget, Encoder, RelayOptions};

use super::log;

/// Relays until a signal or a definite error.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let sink = walpost::sink::open(&settings.sink)?;
    let encoder = Encoder::new(&settings.outbox)?;
    let options = options(&settings);
    let budget = Budget::new(settings.relay.bytes_max);
    let stop = stop_signal()?;
    match settings.source {
        SourceSettings::Postgres(source) => {
            tracing::info!(
                version = env!("CARGO_PKG_VERSION"),
                slot = source.slot,
                publication = source.publication,
                table = %source.table,
                "walpost starts"
            );
            let source = PostgresSource::start(source, settings.outbox, budget.clone())?;
            walpost::run(source, sink, encoder, budget, options, stop).await?;
        }
        #[cfg(feature = "mysql")]
        SourceSettings::MySql(source) => {
            tracing::info!(
                version = env!("CARGO_PKG_VERSION"),
                name = source.name,
                server_id = source.server_id(),
                table = source.table.plain_mysql(),
                "walpost starts"
            );
            let source = MySqlSource::start(source, settings.outbox, budget.clone())?;
            walpost::run(source, sink, encoder, budget, options, stop).await?;
        }
        #[cfg(not(feature = "mysql"))]
        SourceSettings::MySql(_) => anyhow::bail!(super::WITHOUT_MYSQL),
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts the position of `--accept-gap` where the source looks for it.
pub(crate) fn accept_gap(settings: &mut Settings, position: Option<&String>) -> anyhow::Result<()> {
    let Some(position) = position else { return Ok(()) };
    match &mut settings.source {
        SourceSettings::Postgres(source) => {
            let parsed: Lsn = position.parse().context("--accept-gap")?;
            source.accept_gap = Some(parsed.to_string());
        }
        SourceSettings::MySql(_) => {
            anyhow::bail!("--accept-gap is not there yet for MySQL and MariaDB")
        }
    }
    Ok(())
}

fn options(settings: &Settings) -> RelayOptions {
    let relay = &settings.relay;
    match relay.on_reject {
        // The only one so far, and what the relay does.
        OnReject::Stop => {}
    }
    RelayOptions {
        lanes: relay.lanes,
        rows_max: relay.rows_max,
        order: relay.order,
        pipeline_keys: relay.pipeline_keys,
        topic_wait: relay.topic_wait,
        auth_wait: relay.auth_wait,
        drain_max: Duration::from_secs(relay.drain_seconds_max),
        backoff: Backoff { first: relay.retry_first, max: relay.retry_max },
        stall_warning: relay.stall_warning,
        summary_interval: relay.summary_interval,
    }
}

/// Becomes true at the first SIGTERM or SIGINT; the second one ends the process at once, as a
/// `kill -9` would: nothing is lost, some rows come again.
///
/// Watched by a thread with a runtime of its own, so that nothing that holds the relay's own thread
/// can keep the process alive.
fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime for signals")?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate()).context("could not watch for SIGTERM")?,
            signal(SignalKind::interrupt()).context("could not watch for SIGINT")?,
        )
    };
    let (sender, stop) = watch::channel(false);
    let watching = async move {
        for first in [true, false] {
            // Neither signal is before the other.
            tokio::select! {
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                sender.send_replace(true);
            } else {
                tracing::warn!("a second signal: leaving at once");
                log::flush();
                std::process::exit(1);
            }
        }
    };
    // Ends with the process.
    std::thread::Builder::new()
        .name("walpost-signals".to_owned())
        .spawn(move || runtime.block_on(watching))
        .context("could not start the thread for signals")?;
    Ok(stop)
}

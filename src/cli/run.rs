//! `walpost run`: the relay until it is stopped.

use std::process::ExitCode;

use anyhow::bail;
use walpost::config::Settings;

/// Relays until a signal or a definite error.
#[expect(clippy::unused_async, reason = "the relay that it will await is built beside it")]
pub(crate) async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    walpost::sink::open(&settings.sink)?;
    bail!("this build of walpost cannot relay yet: `run` is not connected to the relay")
}

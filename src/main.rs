//! The command line: what was typed becomes an exit code. 0 is clean, 1 a definite error or a
//! failed check, 2 a configuration that cannot be used.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use walpost::config::ConfigError;
use walpost::sink::OpenError;

fn main() -> ExitCode {
    // Writes what is logged also where a panic ends the process.
    let log = cli::Log;
    match cli::execute(&cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            log.last_words(&format!("{error:#}"));
            let configuration = error.is::<ConfigError>() || error.is::<OpenError>();
            ExitCode::from(if configuration { 2 } else { 1 })
        }
    }
}

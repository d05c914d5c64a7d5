//! The command line: what was typed becomes an exit code. 0 is clean, 1 a definite error or a
//! failed check, 2 a configuration that cannot be used.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use walpost::config::ConfigError;
use walpost::sink::OpenError;

fn main() -> ExitCode {
    match cli::execute(&cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("walpost: {error:#}");
            let configuration = error.is::<ConfigError>() || error.is::<OpenError>();
            ExitCode::from(if configuration { 2 } else { 1 })
        }
    }
}

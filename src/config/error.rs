//! What can be wrong with a configuration. No message ever holds the value of a secret.

use super::values::Origin;
use crate::secret::SecretError;

/// A configuration that cannot be used; nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file could not be read.
    #[error("could not read {what} {path}")]
    Unreadable {
        /// What the file is for.
        what: String,
        /// As it was given.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file of a secret could not be read.
    #[error("{key}")]
    Secret {
        /// The setting, which ends in `_file`.
        key: String,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// The file is not TOML.
    #[error("{file}:{line}: {problem}")]
    Syntax {
        /// Path of the file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// The parser's words, without the line's text, which may hold a secret.
        problem: String,
    },
    /// No setting has this name.
    #[error("{origin}: unknown {noun} {written}{}", did_you_mean(.nearest))]
    Unknown {
        /// Where it stands.
        origin: Origin,
        /// "key", "section" or "variable".
        noun: &'static str,
        /// As it was written.
        written: String,
        /// The right name that looks most like it.
        nearest: Option<String>,
    },
    /// A setting without a default was not given.
    #[error("{key} is missing; {remedy}")]
    Missing {
        /// The setting.
        key: String,
        /// How to give it.
        remedy: String,
    },
    /// A setting has a value that it cannot take.
    #[error("{key} ({origin}): {problem}")]
    Value {
        /// The setting.
        key: String,
        /// Where the value was written.
        origin: Origin,
        /// What is wrong with it, and what a right one looks like.
        problem: String,
    },
}

fn did_you_mean(name: &Option<String>) -> String {
    name.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

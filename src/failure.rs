//! What can go wrong at either edge, sorted by what helps: time, a credential, or a person.

use std::error::Error;
use std::fmt;

type Cause = Box<dyn Error + Send + Sync + 'static>;

/// What an error asks for. What is unproven is [`Transient`](FailureKind::Transient).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Heals by itself: retried for ever with capped backoff, visibly.
    Transient,
    /// A credential or a permission was refused. Definite at start; while running it is retried
    /// for `auth_wait`, since passwords rotate, and definite after that.
    Denied,
    /// Does not heal by itself: stop, say what a person should do, move no position.
    Definite,
}

/// An error of a source or a sink together with its [`FailureKind`].
///
/// The cause's own text names the object, and for a definite one the remedy.
#[derive(Debug)]
pub struct Failure {
    kind: FailureKind,
    cause: Cause,
}

impl Failure {
    /// Pairs a cause with its kind.
    pub fn new(kind: FailureKind, cause: impl Into<Cause>) -> Self {
        Self { kind, cause: cause.into() }
    }

    /// A failure that time heals.
    pub fn transient(cause: impl Into<Cause>) -> Self {
        Self::new(FailureKind::Transient, cause)
    }

    /// A refused credential or permission.
    pub fn denied(cause: impl Into<Cause>) -> Self {
        Self::new(FailureKind::Denied, cause)
    }

    /// A failure that only a person can heal.
    pub fn definite(cause: impl Into<Cause>) -> Self {
        Self::new(FailureKind::Definite, cause)
    }

    /// What went wrong, for whoever knows its type.
    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.cause
    }

    /// What it asks for.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }
}

impl fmt::Display for Failure {
    /// The whole chain of causes on one line, since it is logged once, where it is handled.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.cause.to_string();
        formatter.write_str(&said)?;
        let mut source = self.cause.source();
        while let Some(cause) = source {
            // Some libraries put the text of a cause into that of its effect too.
            let text = cause.to_string();
            if !said.contains(&text) {
                write!(formatter, ": {text}")?;
                said = text;
            }
            source = cause.source();
        }
        Ok(())
    }
}

impl Error for Failure {}

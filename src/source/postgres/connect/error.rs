//! Why no connection came about, whether it heals, and what a person can do.

use std::error::Error;
use std::fmt::Write;
use std::io;
use std::time::Duration;

use rustls::CertificateError;

use crate::failure::FailureKind;
use crate::secret::SecretError;
use crate::source::postgres::auth::AuthError;
use crate::source::postgres::conninfo::{ConnInfo, Host};
use crate::source::postgres::wire::{ServerError, WireError};
use crate::source::tls::CertificateFileError;

/// No connection. The text names the server as `host:port`, and the remedy where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name has no address (now).
    #[error("could not find the address of PostgreSQL host \"{host}\"")]
    Resolve {
        /// The name.
        host: String,
        /// From the resolver.
        #[source]
        cause: io::Error,
    },
    /// No socket, or it broke before TLS.
    #[error("could not connect to PostgreSQL at {server}")]
    Unreachable {
        /// `host:port`.
        server: String,
        /// From the system.
        #[source]
        cause: io::Error,
    },
    /// No login within `connect_timeout`.
    #[error("PostgreSQL at {server} did not log us in within {after:?}")]
    TimedOut {
        /// `host:port`.
        server: String,
        /// The limit.
        after: Duration,
    },
    /// The server has TLS turned off.
    #[error(
        "PostgreSQL at {server} offers no TLS, which sslmode asks for: set `ssl = on` in \
         postgresql.conf, or `sslmode=prefer`"
    )]
    TlsRefused {
        /// `host:port`.
        server: String,
    },
    /// Neither yes nor no.
    #[error("PostgreSQL at {server} did not answer whether it has TLS")]
    TlsUnanswered {
        /// `host:port`.
        server: String,
    },
    /// The handshake failed, most often for a certificate.
    #[error("TLS with PostgreSQL at {server} failed{remedy}")]
    Tls {
        /// `host:port`.
        server: String,
        /// Begins with `: `, or empty.
        remedy: &'static str,
        /// From the TLS library.
        #[source]
        cause: io::Error,
    },
    /// A certificate or key of ours.
    #[error(transparent)]
    CertificateFile(#[from] CertificateFileError),
    /// `password_file`, or the file of the connection string.
    #[error(transparent)]
    PasswordFile(#[from] SecretError),
    /// The server said no.
    #[error("PostgreSQL at {server} refused role \"{role}\": {cause}{remedy}")]
    Refused {
        /// `host:port`.
        server: String,
        /// Who asked.
        role: String,
        /// Begins with `; `, or empty.
        remedy: String,
        /// Whether the connection had TLS.
        used_tls: bool,
        /// The server's words; part of our own text, since the remedy comes after them.
        cause: Box<ServerError>,
    },
    /// The login ended on our side, or the connection broke in it.
    #[error("could not log in to PostgreSQL at {server} as \"{role}\"")]
    Login {
        /// `host:port`.
        server: String,
        /// Who asked.
        role: String,
        /// What happened.
        #[source]
        cause: AuthError,
    },
    /// `target_session_attrs` asks for another server.
    #[error("PostgreSQL at {server} is a standby or read-only")]
    NotPrimary {
        /// `host:port`.
        server: String,
    },
    /// A connection pooler that lets ordinary connections pass and this one not.
    #[error(
        "{server} lets ordinary connections pass and no replication connection ({message}): it is \
         a connection pooler such as PgBouncer. Set source.url to the PostgreSQL server behind it; \
         or, with PgBouncer 1.23 or later, set ignore_startup_parameters = \
         extra_float_digits,bytea_output in pgbouncer.ini"
    )]
    Pooler {
        /// `host:port/dbname`.
        server: String,
        /// Its own words.
        message: String,
    },
    /// Several addresses, none good.
    #[error("no PostgreSQL server could be used: {}", chains(.0))]
    Several(Vec<ConnectError>),
}

impl ConnectError {
    /// Whether it heals. What is unproven is transient: a server's certificate or `ssl` setting
    /// is mended on the server, and files rotate.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Resolve { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::TlsRefused { .. }
            | Self::TlsUnanswered { .. }
            | Self::Tls { .. }
            | Self::NotPrimary { .. } => FailureKind::Transient,
            Self::Pooler { .. } => FailureKind::Definite,
            Self::CertificateFile(_) | Self::PasswordFile(_) => FailureKind::Denied,
            Self::Refused { cause, .. } => kind_of(cause),
            Self::Login { cause, .. } => match cause {
                AuthError::PlainText | AuthError::Unsupported(_) => FailureKind::Definite,
                AuthError::PasswordMissing
                | AuthError::BindingMissing(_)
                | AuthError::Iterations { .. }
                | AuthError::Scram(_) => FailureKind::Denied,
                AuthError::Wire(cause) => cause.kind(),
            },
            // One host that may come back is enough.
            Self::Several(_) => FailureKind::Transient,
        }
    }

    /// The server's own error, where it gave one.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Refused { cause, .. } => Some(cause),
            Self::Several(errors) => errors.iter().find_map(Self::server_error),
            Self::Resolve { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::TlsRefused { .. }
            | Self::TlsUnanswered { .. }
            | Self::Tls { .. }
            | Self::CertificateFile(_)
            | Self::PasswordFile(_)
            | Self::Login { .. }
            | Self::Pooler { .. }
            | Self::NotPrimary { .. } => None,
        }
    }

    pub(super) fn of_handshake(host: &Host, cause: io::Error) -> Self {
        let certificate = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let remedy = match certificate {
            Some(rustls::Error::InvalidCertificate(certificate)) => remedy_for(certificate),
            _ => "",
        };
        Self::Tls { server: host.to_string(), remedy, cause }
    }

    pub(super) fn of_login(info: &ConnInfo, host: &Host, cause: AuthError) -> Self {
        let (server, role) = (host.to_string(), info.user.clone());
        match cause {
            AuthError::Wire(WireError::Server(cause)) => {
                let remedy = remedy_of_refusal(&cause, &role, &info.dbname);
                Self::Refused { server, role, remedy, used_tls: false, cause }
            }
            cause => Self::Login { server, role, cause },
        }
    }

    pub(super) fn with_tls(mut self, tls: bool) -> Self {
        if let Self::Refused { used_tls, .. } = &mut self {
            *used_tls = tls;
        }
        self
    }

    pub(super) fn of_all(mut failures: Vec<ConnectError>) -> Self {
        match failures.len() {
            1 => failures.remove(0),
            _ => Self::Several(failures),
        }
    }

    /// What libpq answers with the next host; a refused login ends the list.
    pub(super) fn leaves_other_hosts(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::TlsRefused { .. }
            | Self::TlsUnanswered { .. }
            | Self::Tls { .. }
            | Self::NotPrimary { .. } => true,
            // cannot_connect_now: starting up, shutting down or in recovery
            Self::Refused { cause, .. } => cause.code == "57P03",
            Self::Login { cause, .. } => {
                matches!(cause, AuthError::Wire(WireError::Io(_) | WireError::Closed))
            }
            Self::CertificateFile(_)
            | Self::PasswordFile(_)
            | Self::Pooler { .. }
            | Self::Several(_) => false,
        }
    }

    /// An error message of the server, or a request that only TLS makes safe to answer:
    /// `sslmode=allow` tries again with TLS.
    pub(super) fn is_of_plain(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Login { cause: AuthError::PlainText, .. })
    }

    /// A failure that may be TLS's doing: `sslmode=prefer` tries again without.
    pub(super) fn is_of_tls(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::Refused { used_tls: true, .. })
    }
}

/// By SQLSTATE, at login only.
fn kind_of(error: &ServerError) -> FailureKind {
    match error.code.as_str() {
        // invalid_authorization_specification, invalid_password, insufficient_privilege
        "28000" | "28P01" | "42501" => FailureKind::Denied,
        // invalid_catalog_name: no such database
        "3D000" => FailureKind::Definite,
        // Starting up, too many connections, connection exceptions, and all that is unproven.
        _ => FailureKind::Transient,
    }
}

/// `routine` tells reasons with one SQLSTATE apart: unlike the message it is never translated.
/// Server files: `utils/init/postinit.c`, `libpq/auth.c`; the names are the same in 13 to 18.
fn remedy_of_refusal(error: &ServerError, role: &str, database: &str) -> String {
    let routine = error.routine.as_deref().unwrap_or_default();
    let (role_name, database_name) = (quoted(role), quoted(database));
    match (error.code.as_str(), routine) {
        ("42501", "CheckMyDatabase") => {
            format!("; run: GRANT CONNECT ON DATABASE {database_name} TO {role_name}")
        }
        ("42501", _) => format!("; run: ALTER ROLE {role_name} REPLICATION"),
        ("28P01", _) => format!(
            "; check the password of role \"{role}\" (ALTER ROLE {role_name} PASSWORD '…'), and \
             that the role exists"
        ),
        ("28000", "ClientAuthentication") => format!(
            "; add a line for database \"{database}\" and role \"{role}\" to pg_hba.conf, such \
             as: hostssl {database_name} {role_name} <our address> scram-sha-256"
        ),
        ("28000", _) => format!(
            "; check that the role exists and may log in: CREATE ROLE {role_name} LOGIN \
             REPLICATION, or ALTER ROLE {role_name} LOGIN REPLICATION"
        ),
        ("3D000", _) => format!(
            "; name the database that holds the outbox in source.url, or run: CREATE DATABASE \
             {database_name}"
        ),
        ("53300", _) => {
            "; raise max_connections, or max_wal_senders for replication, or close other \
             connections"
                .to_owned()
        }
        _ => String::new(),
    }
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

fn remedy_for(certificate: &CertificateError) -> &'static str {
    match certificate {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ": use a host name that the server's certificate carries, or sslmode=verify-ca"
        }
        CertificateError::UnknownIssuer => {
            ": put the certificate of the server's authority into the sslrootcert file"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ": renew the server's certificate"
        }
        _ => "",
    }
}

fn chains(errors: &[ConnectError]) -> String {
    let mut text = String::new();
    for (index, error) in errors.iter().enumerate() {
        let separator = if index > 0 { "; " } else { "" };
        write!(text, "{separator}{error}").expect("a string takes all text");
        let mut source = error.source();
        while let Some(cause) = source {
            write!(text, ": {cause}").expect("a string takes all text");
            source = cause.source();
        }
    }
    text
}

//! Why no connection came about, whether it heals, and what a person can do.

use std::error::Error;
use std::fmt::Write;
use std::io;
use std::time::Duration;

use rustls::CertificateError;

use crate::failure::FailureKind;
use crate::secret::SecretError;
use crate::source::mysql::connection::WireError;
use crate::source::mysql::conninfo::{ConnInfo, Host};
use crate::source::mysql::login::LoginError;
use crate::source::mysql::wire::ServerError;
use crate::source::tls::CertificateFileError;

/// No connection. The text names the server as `host:port`, and the remedy where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name has no address (now).
    #[error("could not find the address of MySQL host \"{host}\"")]
    Resolve {
        /// The name.
        host: String,
        /// From the resolver.
        #[source]
        cause: io::Error,
    },
    /// No socket.
    #[error("could not connect to MySQL at {server}")]
    Unreachable {
        /// `host:port`, or the path of a socket.
        server: String,
        /// From the system.
        #[source]
        cause: io::Error,
    },
    /// No login within `connect-timeout`.
    #[error("MySQL at {server} did not log us in within {after:?}")]
    TimedOut {
        /// `host:port`, or the path of a socket.
        server: String,
        /// The limit.
        after: Duration,
    },
    /// The server has no TLS.
    #[error(
        "MySQL at {server} offers no TLS, which ssl-mode asks for: give the server `ssl_cert` and \
         `ssl_key`, or set ssl-mode=PREFERRED"
    )]
    TlsRefused {
        /// `host:port`.
        server: String,
    },
    /// Something came in clear where TLS should have begun.
    #[error("MySQL at {server} sent more than TLS begins with: somebody may stand in between")]
    Injected {
        /// `host:port`.
        server: String,
    },
    /// The handshake failed, most often for a certificate.
    #[error("TLS with MySQL at {server} failed{remedy}")]
    Tls {
        /// `host:port`.
        server: String,
        /// Begins with `: `, or empty.
        remedy: &'static str,
        /// Whether it was the certificate.
        is_certificate: bool,
        /// From the TLS library.
        #[source]
        cause: io::Error,
    },
    /// Nothing that both speak.
    #[error(
        "MySQL at {server} and walpost share no version or cipher of TLS ({cause}): walpost speaks \
         TLS 1.2 and 1.3 with ephemeral elliptic curves (ECDHE), which MySQL before 8.0.16 may not \
         have. Update the server or allow such ciphers there (ssl_cipher, tls_version); or reach \
         it by a Unix socket (?socket=/path) or a tunnel; or, on a network that you trust, set \
         ssl-mode=DISABLED"
    )]
    NoSharedCipher {
        /// `host:port`.
        server: String,
        /// In the TLS library's words.
        cause: rustls::Error,
    },
    /// A certificate or key of ours.
    #[error(transparent)]
    CertificateFile(#[from] CertificateFileError),
    /// `password-file`, or the file of the URL.
    #[error(transparent)]
    PasswordFile(#[from] SecretError),
    /// The server said no.
    #[error("MySQL at {server} refused user \"{user}\": {cause}{remedy}")]
    Refused {
        /// `host:port`, or the path of a socket.
        server: String,
        /// Who asked.
        user: String,
        /// Begins with `; `, or empty.
        remedy: String,
        /// The server's words; part of our own text, since the remedy comes after them.
        cause: Box<ServerError>,
    },
    /// The login ended on our side, or the connection broke in it.
    #[error("could not log in to MySQL at {server} as \"{user}\"")]
    Login {
        /// `host:port`, or the path of a socket.
        server: String,
        /// Who asked.
        user: String,
        /// What happened.
        #[source]
        cause: LoginError,
    },
    /// Several addresses, none good.
    #[error("no MySQL server could be used: {}", chains(.0))]
    Several(Vec<ConnectError>),
}

impl ConnectError {
    /// Whether it heals. Certificates count as credentials: definite at start, and patient while
    /// running, since they rotate.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Resolve { .. } | Self::Unreachable { .. } | Self::TimedOut { .. } => {
                FailureKind::Transient
            }
            Self::Tls { is_certificate: false, .. } => FailureKind::Transient,
            Self::Tls { is_certificate: true, .. }
            | Self::TlsRefused { .. }
            | Self::Injected { .. }
            | Self::NoSharedCipher { .. }
            | Self::CertificateFile(_)
            | Self::PasswordFile(_) => FailureKind::Denied,
            Self::Refused { cause, .. } => cause.kind(),
            Self::Login { cause, .. } => match cause {
                LoginError::PlainText | LoginError::Unsupported(_) | LoginError::TooOld(_) => {
                    FailureKind::Definite
                }
                LoginError::ServerKey | LoginError::WholePassword | LoginError::Unchecked => {
                    FailureKind::Denied
                }
                LoginError::Wire(cause) => cause.kind(),
                LoginError::Sql(_) => FailureKind::Transient,
            },
            // One host that may come back is enough; where none may, the first says why.
            Self::Several(errors) => {
                let mut kinds = errors.iter().map(Self::kind);
                match kinds.next() {
                    Some(first) if !kinds.any(|kind| kind == FailureKind::Transient) => first,
                    Some(_) | None => FailureKind::Transient,
                }
            }
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
            | Self::Injected { .. }
            | Self::Tls { .. }
            | Self::NoSharedCipher { .. }
            | Self::CertificateFile(_)
            | Self::PasswordFile(_)
            | Self::Login { .. } => None,
        }
    }

    pub(in crate::source::mysql) fn of_handshake(host: &Host, cause: io::Error) -> Self {
        let inner = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(cause) = inner.filter(|error| shares_nothing(error)) {
            return Self::NoSharedCipher { server: host.to_string(), cause: cause.clone() };
        }
        let (remedy, is_certificate) = match inner {
            Some(rustls::Error::InvalidCertificate(reason)) => (remedy_for(reason), true),
            Some(_) | None => ("", false),
        };
        Self::Tls { server: host.to_string(), remedy, is_certificate, cause }
    }

    pub(in crate::source::mysql) fn of_login(
        info: &ConnInfo,
        host: &Host,
        cause: LoginError,
    ) -> Self {
        let (server, user) = (host.to_string(), info.user.clone());
        match cause {
            LoginError::Wire(WireError::Server(cause)) => {
                let remedy = remedy_of_refusal(&cause, &user, info.database());
                Self::Refused { server, user, remedy, cause }
            }
            cause => Self::Login { server, user, cause },
        }
    }

    pub(in crate::source::mysql) fn of_all(mut failures: Vec<ConnectError>) -> Self {
        match failures.len() {
            1 => failures.remove(0),
            _ => Self::Several(failures),
        }
    }

    /// Whether the next host may do better; a refused login ends the list.
    pub(in crate::source::mysql) fn leaves_other_hosts(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::TlsRefused { .. }
            | Self::Injected { .. }
            | Self::NoSharedCipher { .. }
            | Self::Tls { .. } => true,
            // Too many connections, shutting down.
            Self::Refused { cause, .. } => cause.kind() == FailureKind::Transient,
            Self::Login { cause, .. } => {
                matches!(cause, LoginError::Wire(WireError::Io(_) | WireError::Closed))
            }
            Self::CertificateFile(_) | Self::PasswordFile(_) | Self::Several(_) => false,
        }
    }
}

/// Whether the two sides found nothing that both speak: it does not heal by itself.
fn shares_nothing(error: &rustls::Error) -> bool {
    use rustls::AlertDescription::{HandshakeFailure, InsufficientSecurity, ProtocolVersion};
    match error {
        rustls::Error::AlertReceived(alert) => {
            matches!(alert, HandshakeFailure | InsufficientSecurity | ProtocolVersion)
        }
        rustls::Error::PeerIncompatible(_) => true,
        _ => false,
    }
}

fn remedy_of_refusal(error: &ServerError, user: &str, database: Option<&str>) -> String {
    let account = format!("'{}'@'<our address>'", user.replace('\'', "''"));
    match error.code {
        1045 => format!(
            "; check the password of user \"{user}\", and that the account may log in from our \
             address: CREATE USER {account} IDENTIFIED BY '…'"
        ),
        // MariaDB's unix_socket, MySQL's auth_socket.
        1698 => format!(
            "; the account logs in by the name of a Unix user: use ?socket=/path, or give walpost \
             an account with a password: CREATE USER {account} IDENTIFIED BY '…'"
        ),
        1130 => format!("; no account may log in from our address: CREATE USER {account} …"),
        1044 => {
            let database = database.unwrap_or("<database>");
            format!("; run: GRANT SELECT ON `{database}`.* TO {account}")
        }
        1049 => "; name the database that holds the outbox in source.url".to_owned(),
        1040 | 1203 => {
            "; raise max_connections or max_user_connections, or close other connections".to_owned()
        }
        1129 => "; run: FLUSH HOSTS (or mysqladmin flush-hosts)".to_owned(),
        1820 | 1862 => {
            format!("; its password has expired: ALTER USER {account} IDENTIFIED BY '…'")
        }
        3118 | 4151 => format!("; run: ALTER USER {account} ACCOUNT UNLOCK"),
        _ => String::new(),
    }
}

fn remedy_for(certificate: &CertificateError) -> &'static str {
    match certificate {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ": use a host name that the server's certificate carries as subject alternative name \
             (those that MySQL makes for itself carry none)"
        }
        CertificateError::UnknownIssuer => {
            ": put the certificate of the server's authority into the ssl-ca file"
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

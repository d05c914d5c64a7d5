//! Where the database is and who asks: a connection string as libpq reads it, checked.
//!
//! Owns the keys, their defaults and the environment variables behind them. It opens nothing
//! but a password file, and knows no socket, TLS library or wire format.
//!
//! Source: PostgreSQL documentation, 34.1 "Database Connection Control Functions", 34.15
//! "Environment Variables", 34.16 "The Password File".

mod password;
mod settings;
mod text;

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use settings::Settings;

use crate::failure::Failure;
use crate::secret::{Secret, SecretError, SecretText};

/// Looks up one environment variable; a test gives its own.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A checked connection string. Its password never shows in `Debug` or `Display`.
///
/// `Display` is `host:port/dbname`, for logs.
#[derive(Clone)]
pub struct ConnInfo {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) dbname: String,
    pub(super) password: password::PasswordSource,
    /// The file that the connection string stands in.
    pub(super) url_file: Option<PathBuf>,
    /// For each address that is tried, from the first packet to the end of the login.
    pub(crate) connect_timeout: Duration,
    pub(crate) application_name: String,
    pub(crate) options: Option<String>,
    pub(crate) ssl_mode: SslMode,
    pub(crate) root_certificate: RootCertificate,
    /// Certificate and key of the client; both files are PEM.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) session: SessionAttributes,
    pub(crate) keepalive: Option<Keepalive>,
    /// `client_encoding=SQL_ASCII`: the stream brings text as its bytes are stored.
    pub(crate) takes_any_bytes: bool,
    /// How long what was sent may stay without the peer's TCP acknowledgement.
    pub(crate) tcp_user_timeout: Duration,
}

/// One place to try, in the order of the connection string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) place: Place,
    pub(crate) port: u16,
    /// The one address of a network name that is tried; `None` is each that it resolves to.
    pub(crate) address: Option<SocketAddr>,
}

/// A host name or address, or the folder of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Network(String),
    Folder(PathBuf),
}

/// `sslmode`, in libpq's words and with its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Whom the client believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootCertificate {
    /// No file was named, and the one in the home folder does not exist.
    None,
    /// Always checked against, whatever `sslmode` (so `require` acts as `verify-ca`).
    File(PathBuf),
    /// The certificates of the operating system; only with `verify-full`.
    System,
}

/// Whether a SCRAM login must be, may be or is not bound to the TLS session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// Which of several servers will do. The standby variants of libpq are refused: what an
/// acknowledged position means is decided on the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionAttributes {
    Any,
    ReadWrite,
    Primary,
}

/// TCP keepalive. The defaults are shorter than the system's, which notice after two hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) count: u32,
}

/// What is wrong with a connection string. Always definite; never shows a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnInfoError {
    /// A key that nobody knows.
    #[error("unknown connection key \"{key}\"{}", did_you_mean(.nearest))]
    UnknownKey {
        /// As it was written.
        key: String,
        /// The key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A key of libpq that this client does not follow.
    #[error("connection key \"{key}\" is not supported: {instead}")]
    UnsupportedKey {
        /// The key.
        key: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// A value outside its range.
    #[error("connection key \"{key}\" has an invalid value: it should be {expected}")]
    InvalidValue {
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// The text cannot be split into keys and values. The text itself is not shown, since a
    /// badly quoted password is the usual reason.
    #[error("connection string cannot be read at {part}: {problem}")]
    Syntax {
        /// The part of a URL, or which word.
        part: String,
        /// What is wrong there.
        problem: &'static str,
    },
    /// As many ports as hosts, or one, or none.
    #[error("{ports} ports were given for {hosts} hosts")]
    PortCount {
        /// Number of hosts.
        hosts: usize,
        /// Number of ports.
        ports: usize,
    },
    /// Neither `user` nor PGUSER nor the name of the system's user is known.
    #[error("no user was given: add `user=…` to the connection string, or set PGUSER")]
    NoUser,
    /// Two settings exclude each other.
    #[error("{0}")]
    Conflict(&'static str),
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest.map(|key| format!("; did you mean \"{key}\"?")).unwrap_or_default()
}

impl ConnInfo {
    /// Reads `postgres://` and `postgresql://` URLs, and `key=value` strings. What is missing
    /// comes from the environment variables of libpq, then from defaults.
    ///
    /// # Errors
    /// The text, an environment variable or a combination of settings is invalid. None heals.
    pub fn parse(text: &str) -> Result<Self, ConnInfoError> {
        Self::parse_in(text, &|name| std::env::var(name).ok())
    }

    /// [`ConnInfo::parse`] of a text that may stand in a file.
    ///
    /// # Errors
    /// Denied: the file cannot be read now. Definite: the text cannot be.
    pub fn of(url: &Secret) -> Result<Self, Failure> {
        let text = url.read().map_err(Failure::denied)?;
        let info = Self::parse(text.expose()).map_err(Failure::definite)?;
        Ok(Self { url_file: url.path().map(Path::to_owned), ..info })
    }

    /// The same, with user and password as they stand in the file now, for one login. Hosts,
    /// database and options stay as they were at the start.
    ///
    /// # Errors
    /// The file cannot be read, or holds no connection string.
    pub(crate) fn fresh(&self) -> Result<Cow<'_, Self>, SecretError> {
        let Some(path) = &self.url_file else { return Ok(Cow::Borrowed(self)) };
        let text = Secret::File(path.clone());
        let now = Self::parse(text.read()?.expose()).map_err(|e| SecretError::new(path, e))?;
        Ok(Cow::Owned(Self { user: now.user, password: now.password, ..self.clone() }))
    }

    /// [`ConnInfo::parse`] with a given environment.
    pub(super) fn parse_in(
        text: &str,
        environment: Environment<'_>,
    ) -> Result<Self, ConnInfoError> {
        let mut settings = Settings::default();
        for (key, value) in text::split(text)? {
            // JDBC's word, which libpq takes in URLs for the same reason.
            let (key, value) = match (key.as_str(), value.as_str()) {
                ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()),
                _ => (key, value),
            };
            settings.set(&key, value)?;
        }
        settings.add_environment(environment);
        settings.check(environment)
    }

    /// Role that logs in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Database that is connected to.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// The same, with one server to try and no other: what was asked of it must not be answered
    /// by its neighbour.
    pub(crate) fn only_at(&self, host: Host) -> Self {
        Self { hosts: vec![host], ..self.clone() }
    }

    /// Adds server settings for the session, as `-c name=value`, to `options`.
    pub fn add_options(&mut self, options: &str) {
        match &mut self.options {
            Some(present) => {
                present.push(' ');
                present.push_str(options);
            }
            None => self.options = Some(options.to_owned()),
        }
    }

    /// The password for one of the hosts: read again at each login, so that rotation works.
    ///
    /// # Errors
    /// `password_file` cannot be read. A missing `passfile` is no password, as in libpq.
    pub(crate) fn password(&self, host: &Host) -> Result<Option<SecretText>, SecretError> {
        self.password.read(host, &self.dbname, &self.user)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Network(name) if name.contains(':') => {
                write!(formatter, "[{name}]:{}", self.port)
            }
            Place::Network(name) => write!(formatter, "{name}:{}", self.port),
            Place::Folder(folder) => write!(formatter, "{}:{}", folder.display(), self.port),
        }
    }
}

impl fmt::Display for ConnInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.hosts.iter().enumerate() {
            if index > 0 {
                formatter.write_str(",")?;
            }
            write!(formatter, "{host}")?;
        }
        write!(formatter, "/{}", self.dbname)
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ConnInfo")
            .field("server", &self.to_string())
            .field("user", &self.user)
            .field("ssl_mode", &self.ssl_mode)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

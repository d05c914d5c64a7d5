//! Where the server is and who asks: a `mysql://` or `mariadb://` URL, checked.
//!
//! Owns the keys of its query and their defaults. It opens nothing but a password file, and knows
//! no socket, TLS library or packet.
//!
//! ```text
//! mysql://user[:password]@host[:port][,host[:port]…]/[database][?key=value[&…]]
//! ```
//!
//! A key may be written with `-` or `_`, in the words of MySQL's clients or in libpq's:
//!
//! | key | also | value |
//! |---|---|---|
//! | `ssl-mode` | `sslmode` | `DISABLED`, `PREFERRED`, `REQUIRED`, `VERIFY_IDENTITY`; libpq's `disable`, `prefer`, `require`, `verify-full` |
//! | `ssl-ca` | `sslrootcert` | PEM file, or `system` |
//! | `ssl-cert`, `ssl-key` | `sslcert`, `sslkey` | PEM files of our own certificate |
//! | `socket` | – | path of a Unix socket, instead of the hosts |
//! | `password-file` | – | read at each login |
//! | `connect-timeout` | – | seconds, for each address |
//! | `get-server-public-key` | – | `true`: without TLS the password may be encrypted for the RSA key that the server hands out |
//! | `enable-cleartext-plugin` | – | `true`: a server whose certificate is not checked may be given the password in clear, by TLS |
//!
//! Without `ssl-mode`, TLS is used where the server offers it, or with `ssl-ca` is required and
//! checked in full: whoever names an authority wants it believed.

mod text;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::Failure;
use crate::secret::{Secret, SecretError, SecretText};

const PORT_DEFAULT: u16 = 3306;
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Every key that is understood, as it is told, and libpq's name for it.
const KEYS: &[(&str, &str)] = &[
    ("connect-timeout", "connect-timeout"),
    ("enable-cleartext-plugin", "enable-cleartext-plugin"),
    ("get-server-public-key", "get-server-public-key"),
    ("password-file", "password-file"),
    ("socket", "socket"),
    ("ssl-ca", "sslrootcert"),
    ("ssl-cert", "sslcert"),
    ("ssl-key", "sslkey"),
    ("ssl-mode", "sslmode"),
];

/// A checked URL. Its password never shows in `Debug` or `Display`.
///
/// `Display` is `host:port/database`, for logs.
#[derive(Clone)]
pub struct ConnInfo {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) database: Option<String>,
    /// Text, or the whole of a file.
    password: Option<Secret>,
    /// The file that the URL stands in.
    url_file: Option<PathBuf>,
    /// For each address that is tried, from the first packet to the end of the login.
    pub(crate) connect_timeout: Duration,
    pub(crate) ssl_mode: SslMode,
    pub(crate) authorities: RootCertificate,
    /// Certificate and key of the client; both files are PEM.
    pub(crate) client_certificate: Option<(PathBuf, PathBuf)>,
    /// Whether the password may be encrypted for a key that nobody checked.
    pub(crate) trusts_server_key: bool,
    /// Whether it may go in clear by TLS to a server that nobody checked.
    pub(crate) trusts_cleartext: bool,
}

/// One place to try, in the order of the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Network { name: String, port: u16 },
    Socket(PathBuf),
}

/// Whether TLS is used, and what is checked. Modes that check only a part are refused: see
/// [`ConnInfoError::VerifyCa`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disabled,
    /// TLS where the server offers it; nothing is checked.
    Preferred,
    /// TLS; nothing is checked.
    Required,
    /// TLS; the chain of certificates and the host's name are checked.
    VerifyIdentity,
}

/// Whom the client believes with [`SslMode::VerifyIdentity`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootCertificate {
    System,
    File(PathBuf),
}

/// What is wrong with a URL. Always definite; never shows a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnInfoError {
    /// Another scheme, or none.
    #[error("a MySQL URL begins with mysql:// or mariadb://")]
    Scheme,
    /// A key that nobody knows.
    #[error("unknown connection key \"{key}\"{}", did_you_mean(.nearest))]
    UnknownKey {
        /// As it was written.
        key: String,
        /// The key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A key that was given twice, perhaps in both spellings.
    #[error("connection key \"{0}\" was given twice")]
    Twice(&'static str),
    /// A value outside its range.
    #[error("connection key \"{key}\" has an invalid value: it should be {expected}")]
    InvalidValue {
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// The text cannot be split. The text itself is not shown, since a password that is not
    /// percent-encoded is the usual reason.
    #[error("MySQL URL cannot be read at {part}: {problem}")]
    Syntax {
        /// The part of the URL.
        part: String,
        /// What is wrong there.
        problem: &'static str,
    },
    /// Nobody to log in as.
    #[error("no user was given: write mysql://USER@host/database")]
    NoUser,
    /// `VERIFY_CA`: mysql_async 0.37.1 cannot check a chain without the name (its issue #404), and
    /// a mode that only one of our two connections follows would be a promise half kept.
    #[error(
        "ssl-mode=VERIFY_CA is not supported: use VERIFY_IDENTITY, with a server certificate that \
         names the host as subject alternative name, or a Unix socket or tunnel"
    )]
    VerifyCa,
    /// Two settings exclude each other.
    #[error("{0}")]
    Conflict(&'static str),
}

fn did_you_mean(nearest: &Option<&'static str>) -> String {
    nearest.map(|key| format!("; did you mean \"{key}\"?")).unwrap_or_default()
}

impl ConnInfo {
    /// Reads a URL.
    ///
    /// # Errors
    /// The text or a combination of settings is invalid. None heals.
    pub fn parse(url: &str) -> Result<Self, ConnInfoError> {
        let text::Parts { user, password, hosts, database, query } = text::split(url)?;
        let mut settings = Settings::default();
        for (key, value) in query {
            settings.set(&key, value)?;
        }
        let (ssl_mode, authorities) = settings.tls()?;
        let hosts = match settings.value("socket") {
            Some(path) if path.starts_with('/') => vec![Host::Socket(path.into())],
            Some(_) => return Err(invalid("socket", "the path of a Unix socket, from / on")),
            None => hosts,
        };
        Ok(Self {
            hosts,
            user: user.filter(|user| !user.is_empty()).ok_or(ConnInfoError::NoUser)?,
            database: database.filter(|name| !name.is_empty()),
            password: settings.password(password)?,
            url_file: None,
            connect_timeout: settings.connect_timeout()?,
            ssl_mode,
            authorities,
            client_certificate: settings.client_certificate()?,
            trusts_server_key: settings.switch("get-server-public-key")?,
            trusts_cleartext: settings.switch("enable-cleartext-plugin")?,
        })
    }

    /// [`ConnInfo::parse`] of a URL that may stand in a file.
    ///
    /// # Errors
    /// Denied: the file cannot be read now. Definite: the URL cannot be.
    pub fn of(url: &Secret) -> Result<Self, Failure> {
        let text = url.read().map_err(Failure::denied)?;
        let info = Self::parse(text.expose()).map_err(Failure::definite)?;
        Ok(Self { url_file: url.path().map(Path::to_owned), ..info })
    }

    /// The same, with user and password as they stand in the file now, for one login. Hosts,
    /// database and options stay as they were at the start.
    ///
    /// # Errors
    /// The file cannot be read, or holds no URL.
    pub(crate) fn fresh(&self) -> Result<Cow<'_, Self>, SecretError> {
        let Some(path) = &self.url_file else { return Ok(Cow::Borrowed(self)) };
        let text = Secret::File(path.clone());
        let now = Self::parse(text.read()?.expose()).map_err(|e| SecretError::new(path, e))?;
        Ok(Cow::Owned(Self { user: now.user, password: now.password, ..self.clone() }))
    }

    /// User who logs in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Database that unqualified names belong to.
    pub fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    /// The same, for one of its hosts only: a second connection to the server of the first.
    pub(crate) fn only(&self, host: &Host) -> Self {
        Self { hosts: vec![host.clone()], ..self.clone() }
    }

    /// The password: read again at each login, so that rotation works.
    ///
    /// # Errors
    /// `password-file` cannot be read.
    pub(crate) fn password(&self) -> Result<Option<SecretText>, SecretError> {
        self.password.as_ref().map(|secret| secret.read().map(Cow::into_owned)).transpose()
    }

    /// Our own certificate and its key.
    pub(crate) fn client_certificate(&self) -> Option<(&Path, &Path)> {
        self.client_certificate.as_ref().map(|(file, key)| (file.as_path(), key.as_path()))
    }
}

/// Keys of the query, by their own names.
#[derive(Default)]
struct Settings(Vec<(&'static str, String)>);

impl Settings {
    fn set(&mut self, key: &str, value: String) -> Result<(), ConnInfoError> {
        let wanted = key.to_ascii_lowercase().replace('_', "-");
        let known = KEYS.iter().find(|(known, libpq)| *known == wanted || *libpq == wanted);
        let Some((known, _)) = known else {
            let nearest = nearest_key(&wanted);
            return Err(ConnInfoError::UnknownKey { key: key.to_owned(), nearest });
        };
        if self.0.iter().any(|(present, _)| present == known) {
            return Err(ConnInfoError::Twice(known));
        }
        self.0.push((known, value));
        Ok(())
    }

    /// An empty value stands for the default.
    fn value(&self, key: &str) -> Option<&str> {
        let value = self.0.iter().find(|(known, _)| *known == key).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    fn switch(&self, key: &'static str) -> Result<bool, ConnInfoError> {
        match self.value(key).map(str::to_ascii_lowercase).as_deref() {
            Some("true" | "1" | "on") => Ok(true),
            Some("false" | "0" | "off") | None => Ok(false),
            Some(_) => Err(invalid(key, "true or false")),
        }
    }

    fn tls(&self) -> Result<(SslMode, RootCertificate), ConnInfoError> {
        let authorities = match self.value("ssl-ca") {
            Some("system") | None => RootCertificate::System,
            Some(path) => RootCertificate::File(path.into()),
        };
        let named = self.value("ssl-ca").is_some();
        let Some(mode) = self.value("ssl-mode") else {
            let mode = if named { SslMode::VerifyIdentity } else { SslMode::Preferred };
            return Ok((mode, authorities));
        };
        let mode = match mode.to_ascii_lowercase().replace('_', "-").as_str() {
            "disabled" | "disable" => SslMode::Disabled,
            "preferred" | "prefer" => SslMode::Preferred,
            "required" | "require" => SslMode::Required,
            "verify-identity" | "verify-full" => SslMode::VerifyIdentity,
            "verify-ca" => return Err(ConnInfoError::VerifyCa),
            _ => {
                let expected = "DISABLED, PREFERRED, REQUIRED or VERIFY_IDENTITY";
                return Err(invalid("ssl-mode", expected));
            }
        };
        // MySQL's clients ignore the file, libpq checks it: whoever gave it expects a check.
        if named && mode != SslMode::VerifyIdentity {
            return Err(ConnInfoError::Conflict(
                "`ssl-ca` is checked only with ssl-mode=VERIFY_IDENTITY: set that, or leave \
                 `ssl-ca` out",
            ));
        }
        Ok((mode, authorities))
    }

    fn client_certificate(&self) -> Result<Option<(PathBuf, PathBuf)>, ConnInfoError> {
        match (self.value("ssl-cert"), self.value("ssl-key")) {
            (Some(certificate), Some(key)) => Ok(Some((certificate.into(), key.into()))),
            (None, None) => Ok(None),
            (Some(_), None) | (None, Some(_)) => Err(ConnInfoError::Conflict(
                "`ssl-cert` and `ssl-key` belong together: give both files or none",
            )),
        }
    }

    fn password(&self, given: Option<String>) -> Result<Option<Secret>, ConnInfoError> {
        match (self.value("password-file"), given) {
            (Some(_), Some(_)) => Err(ConnInfoError::Conflict(
                "a password and `password-file` were both given: keep one",
            )),
            (Some(file), None) => Ok(Some(Secret::File(file.into()))),
            (None, given) => Ok(given.map(Secret::new)),
        }
    }

    fn connect_timeout(&self) -> Result<Duration, ConnInfoError> {
        let Some(value) = self.value("connect-timeout") else {
            return Ok(CONNECT_TIMEOUT_DEFAULT);
        };
        match value.parse::<u16>() {
            Ok(0) | Err(_) => Err(invalid("connect-timeout", "whole seconds from 1 to 65535")),
            Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        }
    }
}

fn invalid(key: &'static str, expected: &'static str) -> ConnInfoError {
    ConnInfoError::InvalidValue { key, expected }
}

fn nearest_key(key: &str) -> Option<&'static str> {
    let distance = |known: &(&str, &str)| {
        let (ours, libpq) = known;
        strsim::damerau_levenshtein(ours, key).min(strsim::damerau_levenshtein(libpq, key))
    };
    let nearest = KEYS.iter().min_by_key(|known| distance(known))?;
    (distance(nearest) <= 3).then_some(nearest.0)
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network { name, port } if name.contains(':') => {
                write!(formatter, "[{name}]:{port}")
            }
            Self::Network { name, port } => write!(formatter, "{name}:{port}"),
            Self::Socket(path) => write!(formatter, "{}", path.display()),
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
        match &self.database {
            Some(database) => write!(formatter, "/{database}"),
            None => Ok(()),
        }
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

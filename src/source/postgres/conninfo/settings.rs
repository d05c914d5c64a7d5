//! The keys of a connection string, their defaults, and what their values may be.
//!
//! Owns the tables of keys. It does not know how a string is split or a password is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::password;
use super::{
    ChannelBinding, ConnInfo, ConnInfoError, Environment, Host, Keepalive, Place, RootCertificate,
    Secret, SessionAttributes, SslMode,
};

/// Every key that is understood, with the environment variable that stands in for it.
///
/// A key without a variable in libpq has an empty one here.
const KEYS: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("password_file", ""),
    ("passfile", "PGPASSFILE"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("application_name", "PGAPPNAME"),
    ("options", "PGOPTIONS"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
    ("client_encoding", ""),
    ("gssencmode", ""),
    ("sslcompression", ""),
];

/// Keys that libpq has and this client has not, with the reason that the error gives.
const KEYS_UNSUPPORTED: &[(&str, &str)] = &[
    ("hostaddr", "put the address into `host`"),
    ("service", "write its settings out"),
    ("servicefile", "write its settings out"),
    ("replication", "walpost sets it itself"),
    ("fallback_application_name", "use `application_name`"),
    ("passcmd", "use `password_file`"),
    ("sslpassword", "decrypt the key file, with mode 0600"),
    ("sslcrl", "revocation lists are not read"),
    ("sslcrldir", "revocation lists are not read"),
    ("sslcertmode", "a certificate is sent when `sslcert` names one"),
    ("sslsni", "the server name is always sent"),
    ("sslnegotiation", "TLS is always asked for first"),
    ("sslkeylogfile", "session keys are never written out"),
    ("ssl_min_protocol_version", "it is TLS 1.2"),
    ("ssl_max_protocol_version", "it is TLS 1.3"),
    ("requirepeer", "the peer of a Unix socket is not checked"),
    ("require_auth", "use `channel_binding=require`"),
    ("krbsrvname", "Kerberos is not built in"),
    ("gsslib", "Kerberos is not built in"),
    ("gssdelegation", "Kerberos is not built in"),
    ("load_balance_hosts", "hosts are tried in their order"),
    ("min_protocol_version", "it is 3.0"),
    ("max_protocol_version", "it is 3.0"),
];

const SQL_ASCII: &str = "sql_ascii";
const PORT_DEFAULT: u16 = 5432;
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Linux sends no keepalive probe while bytes of ours are unacknowledged, and a replication
/// connection always has some: this is what notices a dead peer then.
const TCP_USER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
const APPLICATION_NAME_DEFAULT: &str = "walpost";

/// What was given, by key, before it is checked.
#[derive(Default)]
pub(super) struct Settings(BTreeMap<&'static str, String>);

impl Settings {
    /// Later values replace earlier ones, as in libpq.
    pub(super) fn set(&mut self, key: &str, value: String) -> Result<(), ConnInfoError> {
        if let Some((known, _)) = KEYS.iter().find(|(known, _)| *known == key) {
            self.0.insert(known, value);
            return Ok(());
        }
        if let Some((key, instead)) = KEYS_UNSUPPORTED.iter().find(|(known, _)| *known == key) {
            return Err(ConnInfoError::UnsupportedKey { key, instead });
        }
        Err(ConnInfoError::UnknownKey { key: key.to_owned(), nearest: nearest_key(key) })
    }

    /// `password_file` is this client's own and replaces PGPASSWORD, not the other way round.
    pub(super) fn add_environment(&mut self, environment: Environment<'_>) {
        for (key, variable) in KEYS.iter().filter(|(_, variable)| !variable.is_empty()) {
            if *key == "password" && self.0.contains_key("password_file") {
                continue;
            }
            if !self.0.contains_key(key)
                && let Some(value) = environment(variable)
            {
                self.0.insert(key, value);
            }
        }
    }

    /// An empty value stands for the default, as in libpq.
    fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn check(&self, environment: Environment<'_>) -> Result<ConnInfo, ConnInfoError> {
        let home = environment("HOME").map(PathBuf::from);
        let user = self.value("user").map(str::to_owned);
        let user = user.or_else(|| environment("USER")).or_else(|| environment("LOGNAME"));
        let user = user.filter(|user| !user.is_empty()).ok_or(ConnInfoError::NoUser)?;
        let dbname = self.value("dbname").unwrap_or(&user).to_owned();
        let root_certificate = self.root_certificate(home.as_deref());
        self.check_fixed()?;
        Ok(ConnInfo {
            hosts: self.hosts()?,
            password: self.password(home.as_deref())?,
            url_file: None,
            connect_timeout: self.connect_timeout()?,
            application_name: self
                .value("application_name")
                .unwrap_or(APPLICATION_NAME_DEFAULT)
                .to_owned(),
            options: self.value("options").map(str::to_owned),
            ssl_mode: self.ssl_mode(&root_certificate)?,
            root_certificate,
            client_certificate: self.client_certificate(home.as_deref())?,
            channel_binding: self.channel_binding()?,
            session: self.session()?,
            keepalive: self.keepalive()?,
            takes_any_bytes: self
                .value("client_encoding")
                .is_some_and(|value| value.eq_ignore_ascii_case(SQL_ASCII)),
            tcp_user_timeout: self.tcp_user_timeout()?,
            user,
            dbname,
        })
    }

    /// Keys that often stand in a string and of which only one meaning is built in.
    fn check_fixed(&self) -> Result<(), ConnInfoError> {
        if let Some(value) = self.value("client_encoding")
            && !["utf8", "utf-8", "unicode", "auto", SQL_ASCII]
                .contains(&value.to_lowercase().as_str())
        {
            return Err(invalid("client_encoding", "UTF8, or SQL_ASCII for bytes as they are"));
        }
        if let Some(value) = self.value("gssencmode")
            && !["disable", "prefer"].contains(&value)
        {
            return Err(invalid("gssencmode", "disable or prefer: Kerberos is not built in"));
        }
        if let Some(value) = self.value("sslcompression")
            && value != "0"
        {
            return Err(invalid("sslcompression", "0"));
        }
        Ok(())
    }

    fn hosts(&self) -> Result<Vec<Host>, ConnInfoError> {
        let hosts: Vec<&str> = self.value("host").unwrap_or_default().split(',').collect();
        let ports: Vec<&str> = self.value("port").unwrap_or_default().split(',').collect();
        if ports.len() != 1 && ports.len() != hosts.len() {
            return Err(ConnInfoError::PortCount { hosts: hosts.len(), ports: ports.len() });
        }
        let mut checked = Vec::with_capacity(hosts.len());
        for (index, host) in hosts.into_iter().enumerate() {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or_default().trim();
            let port = match port {
                "" => PORT_DEFAULT,
                port => match port.parse() {
                    Ok(0) | Err(_) => return Err(invalid("port", "a number from 1 to 65535")),
                    Ok(port) => port,
                },
            };
            let place = match host {
                "" => Place::Folder(socket_folder_default()),
                folder if folder.starts_with('/') => Place::Folder(folder.into()),
                name if name.starts_with('@') => {
                    return Err(invalid("host", "a name, an address or a folder"));
                }
                name => Place::Network(name.to_owned()),
            };
            checked.push(Host { place, port, address: None });
        }
        Ok(checked)
    }

    fn password(&self, home: Option<&Path>) -> Result<password::PasswordSource, ConnInfoError> {
        if let Some(file) = self.value("password_file") {
            if self.value("password").is_some() {
                return Err(ConnInfoError::Conflict(
                    "`password` and `password_file` were both given: keep one",
                ));
            }
            return Ok(password::PasswordSource::Given(Secret::File(file.into())));
        }
        if let Some(password) = self.value("password") {
            return Ok(password::PasswordSource::Given(Secret::new(password)));
        }
        let file = self.value("passfile").map(PathBuf::from);
        let file = file.or_else(|| home.map(|home| home.join(".pgpass")));
        Ok(file.map_or(password::PasswordSource::None, password::PasswordSource::Passfile))
    }

    /// 0 or less waits for ever in libpq; no wait is endless here, so it means the default.
    fn connect_timeout(&self) -> Result<Duration, ConnInfoError> {
        match self.number("connect_timeout", "a whole number of seconds")? {
            Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds.unsigned_abs().into())),
            Some(_) | None => Ok(CONNECT_TIMEOUT_DEFAULT),
        }
    }

    fn root_certificate(&self, home: Option<&Path>) -> RootCertificate {
        match self.value("sslrootcert") {
            Some("system") => RootCertificate::System,
            Some(file) => RootCertificate::File(file.into()),
            None => match home.map(|home| home.join(".postgresql/root.crt")) {
                Some(file) if file.exists() => RootCertificate::File(file),
                Some(_) | None => RootCertificate::None,
            },
        }
    }

    fn ssl_mode(&self, root: &RootCertificate) -> Result<SslMode, ConnInfoError> {
        let system = *root == RootCertificate::System;
        let mode = match self.value("sslmode") {
            None if system => SslMode::VerifyFull,
            None => SslMode::Prefer,
            Some("disable") => SslMode::Disable,
            Some("allow") => SslMode::Allow,
            Some("prefer") => SslMode::Prefer,
            Some("require") => SslMode::Require,
            Some("verify-ca") => SslMode::VerifyCa,
            Some("verify-full") => SslMode::VerifyFull,
            Some(_) => {
                let modes = "disable, allow, prefer, require, verify-ca or verify-full";
                return Err(invalid("sslmode", modes));
            }
        };
        if system && mode != SslMode::VerifyFull {
            return Err(ConnInfoError::Conflict(
                "`sslrootcert=system` needs `sslmode=verify-full`: anyone can get a certificate \
                 from a public authority",
            ));
        }
        if *root == RootCertificate::None && matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull)
        {
            return Err(ConnInfoError::Conflict(
                "`sslmode=verify-ca` and `verify-full` need `sslrootcert`: name the file with the \
                 authority's certificate, or `system`",
            ));
        }
        Ok(mode)
    }

    fn client_certificate(
        &self,
        home: Option<&Path>,
    ) -> Result<Option<(PathBuf, PathBuf)>, ConnInfoError> {
        let in_home = |name: &str| {
            home.map(|home| home.join(".postgresql").join(name)).filter(|file| file.exists())
        };
        let given = |key: &str| self.value(key).map(PathBuf::from);
        let Some(certificate) = given("sslcert").or_else(|| in_home("postgresql.crt")) else {
            return Ok(None);
        };
        let Some(key) = given("sslkey").or_else(|| in_home("postgresql.key")) else {
            return Err(ConnInfoError::Conflict("`sslcert` needs `sslkey`, the file of its key"));
        };
        Ok(Some((certificate, key)))
    }

    fn channel_binding(&self) -> Result<ChannelBinding, ConnInfoError> {
        match self.value("channel_binding") {
            None | Some("prefer") => Ok(ChannelBinding::Prefer),
            Some("disable") => Ok(ChannelBinding::Disable),
            Some("require") => Ok(ChannelBinding::Require),
            Some(_) => Err(invalid("channel_binding", "disable, prefer or require")),
        }
    }

    fn session(&self) -> Result<SessionAttributes, ConnInfoError> {
        match self.value("target_session_attrs") {
            None | Some("any") => Ok(SessionAttributes::Any),
            Some("read-write") => Ok(SessionAttributes::ReadWrite),
            Some("primary") => Ok(SessionAttributes::Primary),
            Some(_) => Err(invalid("target_session_attrs", "any, read-write or primary")),
        }
    }

    fn keepalive(&self) -> Result<Option<Keepalive>, ConnInfoError> {
        if self.number("keepalives", "0 or 1")? == Some(0) {
            return Ok(None);
        }
        let positive = |key, default: u32| {
            let given = self.number(key, "a whole number, 0 for the default")?;
            Ok(given
                .and_then(|given| u32::try_from(given).ok())
                .filter(|n| *n > 0)
                .unwrap_or(default))
        };
        Ok(Some(Keepalive {
            idle: Duration::from_secs(positive("keepalives_idle", 30)?.into()),
            interval: Duration::from_secs(positive("keepalives_interval", 10)?.into()),
            count: positive("keepalives_count", 3)?,
        }))
    }

    /// 0 is the system's own limit in libpq, some fifteen minutes; here it is the default.
    fn tcp_user_timeout(&self) -> Result<Duration, ConnInfoError> {
        let expected = "a whole number of milliseconds, 0 for the default";
        let given = self.number("tcp_user_timeout", expected)?;
        let given = given.and_then(|given| u64::try_from(given).ok()).filter(|n| *n > 0);
        Ok(given.map_or(TCP_USER_TIMEOUT_DEFAULT, Duration::from_millis))
    }

    fn number(
        &self,
        key: &'static str,
        expected: &'static str,
    ) -> Result<Option<i32>, ConnInfoError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.trim().parse().map(Some).map_err(|_| invalid(key, expected))
    }
}

fn invalid(key: &'static str, expected: &'static str) -> ConnInfoError {
    ConnInfoError::InvalidValue { key, expected }
}

fn nearest_key(key: &str) -> Option<&'static str> {
    let distance = |known: &str| strsim::damerau_levenshtein(known, &key.to_lowercase());
    let (nearest, _) = KEYS.iter().min_by_key(|(known, _)| distance(known))?;
    (distance(nearest) <= 3).then_some(nearest)
}

/// libpq has one folder compiled in: distributions chose the first, the project's own default is
/// the second.
pub(super) fn socket_folder_default() -> PathBuf {
    let packaged = Path::new("/var/run/postgresql");
    if packaged.is_dir() { packaged.to_owned() } else { PathBuf::from("/tmp") }
}

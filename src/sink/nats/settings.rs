//! The NATS sink's URL and options: what was typed, checked before anything connects.
//!
//! Owns server addresses, credentials and TLS files. Secrets in files are read at each connect,
//! so that a rotated one is taken up. Knows no messages.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::header::HeaderName;
use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use crate::failure::Failure;
use crate::secret::Secret;
use crate::sink::{OpenError, SinkConfig, readable, secret_option};

const URL_EXAMPLE: &str = "nats://host:4222 or tls://user:password@host:4222,host2:4222";

/// Keys of `[sink]` beside `url`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// How long a batch waits for its last publish ack.
    #[serde(with = "crate::duration")]
    ack_timeout: Duration,
    /// How long one server may take for TCP, TLS and the handshake.
    #[serde(with = "crate::duration")]
    connect_timeout: Duration,
    user: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    /// User JWT and seed in one file, as `nsc` writes it.
    creds_file: Option<PathBuf>,
    /// A user's NKey seed.
    nkey_seed: Option<String>,
    nkey_seed_file: Option<PathBuf>,
    /// PEM; instead of the system's authorities.
    tls_ca_file: Option<PathBuf>,
    tls_cert_file: Option<PathBuf>,
    tls_key_file: Option<PathBuf>,
    /// Header for the message key; empty: none.
    key_header: String,
    /// What becomes of a row that a stream takes for another row's repeat.
    on_foreign_duplicate: OnForeignDuplicate,
}

/// What becomes of a row whose identity the stream knows from another row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnForeignDuplicate {
    /// Stored under a message id of its own, with a warning.
    Store,
    /// Rejected.
    Stop,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ack_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            user: None,
            password: None,
            password_file: None,
            token: None,
            token_file: None,
            creds_file: None,
            nkey_seed: None,
            nkey_seed_file: None,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            key_header: "walpost-key".to_owned(),
            on_foreign_duplicate: OnForeignDuplicate::Store,
        }
    }
}

/// How we say who we are.
#[derive(Clone)]
enum Credentials {
    None,
    Password { user: String, password: Secret },
    Token(Secret),
    CredsFile(Secret),
    NkeySeed(Secret),
}

/// Everything checked that can be without a server.
pub(super) struct Settings {
    pub(super) servers: Vec<ServerAddr>,
    pub(super) ack_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) key_header: Option<HeaderName>,
    pub(super) on_foreign_duplicate: OnForeignDuplicate,
    credentials: Credentials,
    /// What was typed, where the URL stands in a file that may hold other credentials later.
    typed: Option<SinkConfig>,
    tls_ca_file: Option<PathBuf>,
    tls_client: Option<(PathBuf, PathBuf)>,
    client_name: String,
}

impl Settings {
    /// # Errors
    /// What is wrong with the URL or an option; never repeats the URL.
    pub(super) fn parse(config: &SinkConfig) -> Result<Self, OpenError> {
        let mut options: Options = config.options()?;
        let (servers, credentials) = parse_url(config.url.read()?.expose(), &mut options)?;
        let tls_ca_file = readable("tls_ca_file", options.tls_ca_file)?;
        let tls_cert_file = readable("tls_cert_file", options.tls_cert_file)?;
        let tls_client = match (tls_cert_file, readable("tls_key_file", options.tls_key_file)?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err(option("\"tls_cert_file\" and \"tls_key_file\" go together"));
            }
        };
        let key_header = match options.key_header.as_str() {
            "" => None,
            name => Some(name.parse().map_err(|_| {
                option(&format!("\"key_header\" is \"{name}\", which is no header name"))
            })?),
        };
        for (key, timeout) in
            [("ack_timeout", options.ack_timeout), ("connect_timeout", options.connect_timeout)]
        {
            if timeout.is_zero() {
                return Err(option(&format!("\"{key}\" must be more than 0")));
            }
        }
        Ok(Self {
            servers,
            ack_timeout: options.ack_timeout,
            connect_timeout: options.connect_timeout,
            key_header,
            on_foreign_duplicate: options.on_foreign_duplicate,
            credentials,
            typed: config.url.path().map(|_| config.clone()),
            tls_ca_file,
            tls_client,
            client_name: config.client_name.clone(),
        })
    }

    /// The credentials, from the URL's file as it is now where it stands in one.
    fn credentials_now(&self) -> Result<Cow<'_, Credentials>, Failure> {
        let Some(typed) = &self.typed else { return Ok(Cow::Borrowed(&self.credentials)) };
        let url = text(&typed.url)?;
        let mut options = typed.options().map_err(Failure::denied)?;
        let (_, credentials) = parse_url(&url, &mut options).map_err(Failure::denied)?;
        Ok(Cow::Owned(credentials))
    }

    /// Options for one connection, with the secrets as they are now.
    pub(super) fn connect_options(&self) -> Result<ConnectOptions, Failure> {
        let mut options = ConnectOptions::new()
            .name(&self.client_name)
            .connection_timeout(self.connect_timeout)
            .request_timeout(Some(self.ack_timeout));
        options = match &*self.credentials_now()? {
            Credentials::None => options,
            Credentials::Password { user, password } => {
                options.user_and_password(user.clone(), text(password)?)
            }
            Credentials::Token(token) => options.token(text(token)?),
            Credentials::CredsFile(file) => options
                .credentials(&text(file)?)
                .map_err(|error| Failure::denied(format!("creds_file cannot be used: {error}")))?,
            Credentials::NkeySeed(seed) => options.nkey(text(seed)?.trim().to_owned()),
        };
        if let Some(authority) = &self.tls_ca_file {
            options = options.add_root_certificates(authority.clone()).require_tls(true);
        }
        if let Some((certificate, key)) = &self.tls_client {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }
}

/// A secret as it is now. One that cannot be read counts as refused: files are swapped while they
/// rotate.
fn text(secret: &Secret) -> Result<String, Failure> {
    secret.read().map(|text| text.expose().to_owned()).map_err(Failure::denied)
}

fn option(problem: &str) -> OpenError {
    OpenError::Option { problem: problem.to_owned() }
}

/// `scheme://[user:password@|token@]host[:port][,host[:port]]…`
fn parse_url(
    url: &str,
    options: &mut Options,
) -> Result<(Vec<ServerAddr>, Credentials), OpenError> {
    let wrong = |problem: &str| OpenError::Url {
        problem: format!("{problem}; a right one is {URL_EXAMPLE}"),
    };
    let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("has no \"://\""))?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (user_info, hosts) = match rest.rsplit_once('@') {
        Some((user_info, hosts)) => (Some(user_info), hosts),
        None => (None, rest),
    };
    if hosts.contains(['/', '?', '#']) {
        return Err(wrong("has a path or a query, which NATS does not know"));
    }
    let mut servers = Vec::new();
    for host in hosts.split(',') {
        let address = format!("{scheme}://{host}");
        let address: ServerAddr = address.parse().map_err(|_| wrong("has no usable host"))?;
        if address.host().is_empty() {
            return Err(wrong("has no host"));
        }
        servers.push(address);
    }
    let decode = |text: &str| {
        let text = percent_decode_str(text).decode_utf8();
        text.map(|text| text.into_owned()).map_err(|_| wrong("has credentials that are not UTF-8"))
    };
    if let Some(user_info) = user_info {
        match user_info.split_once(':') {
            Some((user, password)) => {
                set_once(&mut options.user, "user", decode(user)?)?;
                set_once(&mut options.password, "password", decode(password)?)?;
            }
            // A lone name is the user of a password that stands elsewhere, else it is a token.
            None if options.password.is_some() || options.password_file.is_some() => {
                set_once(&mut options.user, "user", decode(user_info)?)?;
            }
            None => set_once(&mut options.token, "token", decode(user_info)?)?,
        }
    }
    Ok((servers, credentials(options)?))
}

fn set_once(place: &mut Option<String>, key: &str, value: String) -> Result<(), OpenError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(option(&format!("\"{key}\" is in the URL too; give it once"))),
    }
}

fn credentials(options: &mut Options) -> Result<Credentials, OpenError> {
    let secret = |key, text: &mut Option<String>, file: &mut Option<PathBuf>| {
        secret_option(key, text.take(), file.take())
    };
    let password = secret("password", &mut options.password, &mut options.password_file)?;
    let token = secret("token", &mut options.token, &mut options.token_file)?;
    let seed = secret("nkey_seed", &mut options.nkey_seed, &mut options.nkey_seed_file)?;
    let creds = options.creds_file.take().map(Secret::file).transpose()?;
    let mut ways = Vec::new();
    match (options.user.take(), password) {
        (Some(user), Some(password)) => ways.push(Credentials::Password { user, password }),
        (None, None) => {}
        (Some(_), None) => return Err(option("\"user\" has no \"password\" or \"password_file\"")),
        (None, Some(_)) => return Err(option("a password has no \"user\"")),
    }
    ways.extend(token.map(Credentials::Token));
    ways.extend(creds.map(Credentials::CredsFile));
    ways.extend(seed.map(Credentials::NkeySeed));
    if ways.len() > 1 {
        return Err(option(
            "user, token, \"creds_file\" and \"nkey_seed\" exclude each other; give one",
        ));
    }
    Ok(ways.pop().unwrap_or(Credentials::None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str, options: &str) -> Result<Settings, String> {
        let config = SinkConfig {
            url: url.into(),
            options: options.parse().unwrap(),
            client_name: "walpost".to_owned(),
        };
        Settings::parse(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_may_name_several_servers_and_a_percent_encoded_password() {
        let settings = parse("nats://relay:p%40ss@one:4222,two:4223", "").unwrap();
        assert_eq!(settings.servers.len(), 2);
        assert_eq!((settings.servers[1].host(), settings.servers[1].port()), ("two", 4223));
        let Credentials::Password { user, password: Secret::Text(password) } =
            &settings.credentials
        else {
            panic!("a user and a password were given");
        };
        assert_eq!((user.as_str(), password.expose()), ("relay", "p@ss"));
    }

    #[test]
    fn a_lone_name_in_the_url_is_a_token_unless_a_password_is_given_elsewhere() {
        let settings = parse("nats://secret@host", "").unwrap();
        assert!(
            matches!(settings.credentials, Credentials::Token(Secret::Text(t)) if t.expose() == "secret")
        );
        let settings = parse("nats://relay@host", "password_file = '/proc/self/comm'").unwrap();
        assert!(
            matches!(settings.credentials, Credentials::Password { user, .. } if user == "relay")
        );
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_name_and_never_with_the_secret() {
        for (url, options, part) in [
            ("nats:host", "", "://"),
            ("nats://", "", "host"),
            ("nats://host/path", "", "path"),
            ("nats://u:s3cret@host", "token = 's3cret'", "exclude each other"),
            ("nats://u:s3cret@host", "password = 's3cret'", "give it once"),
            ("nats://host", "user = 'u'", "password"),
            ("nats://host", "password = 's3cret'", "user"),
            ("nats://host", "nkey_seed = 's3cret'\ntoken = 's3cret'", "exclude each other"),
            ("nats://host", "nkey_seed = 's3cret'\nnkey_seed_file = '/s'", "give one"),
            ("nats://host", "nkey_seed_file = '/nowhere'", "/nowhere"),
            ("nats://host", "creds_file = '/nowhere'", "/nowhere"),
            ("tls://host", "tls_ca_file = '/nowhere'", "tls_ca_file"),
            ("nats://host", "ack_timeout = '5'", "duration"),
            ("nats://host", "ack_timeout = '0s'", "more than 0"),
            ("nats://host", "ack_timeouts = '5s'", "ack_timeouts"),
            ("nats://host", "key_header = 'a b'", "key_header"),
            ("tls://host", "tls_cert_file = '/proc/self/comm'", "tls_key_file"),
        ] {
            let problem = parse(url, options).err().unwrap_or_else(|| panic!("{url} {options}"));
            assert!(problem.contains(part), "{url} {options}: {problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }
}

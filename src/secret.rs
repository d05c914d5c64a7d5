//! What must never be printed, and how it prints instead.
//!
//! Owns where a secret comes from: a text, or a file that is read again at each login.
//!
//! Masking errs towards hiding too much: a password may hold any character, also unescaped ones
//! that no URL parser accepts, so none is used here.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// What stands for a secret wherever one would be printed.
pub const MASK: &str = "***";

/// A text that is a secret or may hold one, such as a URL with a password; or the file that holds
/// it. A file is read by whoever logs in, at each login, so that a rotated secret is picked up.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The text itself.
    Text(SecretText),
    /// The file that holds it.
    File(PathBuf),
}

/// A secret that was read; prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

/// A secret's file that cannot be used now. Files are swapped while they rotate, so it may heal.
#[derive(Debug, thiserror::Error)]
#[error("could not use the secret in file \"{}\"", path.display())]
pub struct SecretError {
    path: PathBuf,
    #[source]
    cause: Box<dyn Error + Send + Sync>,
}

impl SecretError {
    /// The content of `path` is not what it should be; `cause` does not repeat it.
    pub(crate) fn new(path: &Path, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { path: path.to_owned(), cause: cause.into() }
    }
}

impl Secret {
    /// A secret that is given as text.
    pub fn new(text: impl Into<String>) -> Self {
        Self::Text(SecretText::new(text))
    }

    /// A secret in a file, which must be readable now already.
    ///
    /// # Errors
    /// It cannot be read, or is empty.
    pub fn file(path: impl Into<PathBuf>) -> Result<Self, SecretError> {
        let secret = Self::File(path.into());
        secret.read()?;
        Ok(secret)
    }

    /// The secret as it is now. Files are a few bytes, so reading one blocks no longer than a page
    /// fault would.
    ///
    /// # Errors
    /// Its file cannot be read, or is empty: somebody is writing it.
    pub fn read(&self) -> Result<Cow<'_, SecretText>, SecretError> {
        let path = match self {
            Self::Text(text) => return Ok(Cow::Borrowed(text)),
            Self::File(path) => path,
        };
        let text = fs::read_to_string(path).map_err(|error| SecretError::new(path, error))?;
        // Editors and `echo` end a file with a newline that is no part of the secret.
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() {
            return Err(SecretError::new(path, "the file is empty"));
        }
        Ok(Cow::Owned(SecretText::new(text)))
    }

    /// The file, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Text(_) => None,
            Self::File(path) => Some(path),
        }
    }

    /// A URL as it may be printed.
    pub fn masked_url(&self) -> String {
        match self.read() {
            Ok(url) => masked_url(url.expose()),
            Err(error) => error.to_string(),
        }
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl SecretText {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the connection that needs it. Never log or print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => text.fmt(formatter),
            Self::File(path) => write!(formatter, "{MASK} of {}", path.display()),
        }
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASK)
    }
}

/// Whether a key's value is a secret by the key's name.
pub(crate) fn is_secret(key: &str) -> bool {
    const WORDS: [&str; 12] = [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "jwt",
        "seed",
        "nkey",
        "api_key",
        "access_key",
        "private_key",
        "key.pem",
    ];
    let key = key.to_ascii_lowercase();
    // A path to a secret is not itself secret: `ca_file`, `key_file`, `credentials_file`.
    !key.ends_with("_file") && WORDS.iter().any(|word| key.contains(word))
}

/// A URL without its password, and without secrets in its query.
///
/// Everything between the scheme and the last `@` counts as credentials. Of those only a user
/// name before a colon is shown: where there is no colon, NATS reads the whole as a token.
pub fn masked_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // Not a URL: it may be a `key=value` list with a password, so nothing of it is shown.
        return if url.contains('=') || url.contains('@') { MASK.into() } else { url.into() };
    };
    // What holds one of these is no user name: the `@` then stood further on in the URL.
    let is_plain = |user: &str| !user.contains(['/', '?', '#', '@', ',', '=', '&']);
    let rest = match rest.rsplit_once('@') {
        None => rest.to_owned(),
        Some((credentials, host)) => match credentials.split_once(':') {
            Some((user, _)) if is_plain(user) => format!("{user}:{MASK}@{host}"),
            None if is_plain(credentials) && !matches!(scheme, "nats" | "tls") => {
                format!("{credentials}@{host}")
            }
            Some(_) | None => format!("{MASK}@{host}"),
        },
    };
    let Some((address, query)) = rest.split_once('?') else {
        return format!("{scheme}://{rest}");
    };
    let masked: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if is_secret(name) => format!("{name}={MASK}"),
            _ => pair.to_owned(),
        })
        .collect();
    format!("{scheme}://{address}?{}", masked.join("&"))
}

/// The value of one configuration key as it may be printed.
pub(crate) fn masked_value(key: &str, value: &toml::Value) -> toml::Value {
    match value {
        toml::Value::Table(table) => table
            .iter()
            .map(|(name, value)| (name.clone(), masked_value(name, value)))
            .collect::<toml::Table>()
            .into(),
        _ if is_secret(key) => MASK.into(),
        toml::Value::String(text) if text.contains("://") || key == "url" => {
            masked_url(text).into()
        }
        toml::Value::Array(values) => {
            values.iter().map(|value| masked_value(key, value)).collect::<Vec<_>>().into()
        }
        toml::Value::String(_)
        | toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_hidden_wherever_it_stands_in_a_url() {
        for (url, shown) in [
            ("postgres://u:hunter2@h/db", "postgres://u:***@h/db"),
            ("postgres://u:hunt@er/2?x#@h/db", "postgres://u:***@h/db"),
            (
                "postgres://u@h/db?password=hunter2&sslmode=require",
                "postgres://u@h/db?password=***&sslmode=require",
            ),
            ("nats://hunter2@h:4222", "nats://***@h:4222"),
            ("nats://a:hunter2@h1,nats://b:hunter2@h2", "nats://a:***@h2"),
            ("nats://hunter2@h1,nats://b:hunter2@h2", "nats://***@h2"),
            ("postgres://u@h/db?password=hunt@er2", "postgres://***@er2"),
            ("postgres://u@h/db?password=hunt:2@b", "postgres://***@b"),
            ("amqp://u:hunter2@h", "amqp://u:***@h"),
            ("kafka://h1:9092,h2:9092", "kafka://h1:9092,h2:9092"),
            ("host=h password=hunter2", "***"),
        ] {
            assert_eq!(masked_url(url), shown);
        }
    }

    #[test]
    fn a_secret_hides_in_debug_and_in_nested_options() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
        let options: toml::Table = toml::from_str(
            "properties = { \"sasl.password\" = \"hunter2\", \"client.id\" = \"me\" }\n\
             servers = [\"nats://u:hunter2@h\"]\nca_file = \"/ca\"",
        )
        .unwrap();
        let shown = masked_value("sink", &options.into()).to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("\"me\"") && shown.contains("\"/ca\""), "{shown}");
    }

    #[test]
    fn a_secret_in_a_file_is_read_again_each_time_and_never_as_nothing() {
        let path = std::env::temp_dir().join(format!("walpost-secret-{}", std::process::id()));
        assert!(Secret::file(&path).is_err(), "a missing file");
        fs::write(&path, "\n").unwrap();
        assert!(Secret::file(&path).is_err(), "an empty file");
        fs::write(&path, "hunter2\r\n").unwrap();
        let secret = Secret::file(&path).unwrap();
        assert_eq!(secret.read().unwrap().expose(), "hunter2");
        fs::write(&path, "hunter3").unwrap();
        assert_eq!(secret.read().unwrap().expose(), "hunter3");
        assert!(!format!("{secret:?} {:?}", secret.read()).contains("hunter"));
        fs::remove_file(&path).unwrap();
        let error = secret.read().unwrap_err();
        assert!(error.to_string().contains("walpost-secret-"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_password_shows_whatever_characters_it_has(password in ".*") {
            let shown = masked_url(&format!("postgres://u:{password}@h:5432/db"));
            assert_eq!(shown, "postgres://u:***@h:5432/db");
        }
    }
}

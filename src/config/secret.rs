//! What must never be printed, and how it prints instead.
//!
//! Masking errs towards hiding too much: a password may hold any character, also unescaped ones
//! that no URL parser accepts, so none is used here.

use std::fmt;

/// What stands for a secret wherever one would be printed.
pub const MASK: &str = "***";

/// A text that holds a secret or may hold one, such as a URL with a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
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
    // A path to a secret is none: `ca_file`, `key_file`, `credentials_file`.
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

    proptest::proptest! {
        #[test]
        fn no_password_shows_whatever_characters_it_has(password in ".*") {
            let shown = masked_url(&format!("postgres://u:{password}@h:5432/db"));
            assert_eq!(shown, "postgres://u:***@h:5432/db");
        }
    }
}

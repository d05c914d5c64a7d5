//! Splits a URL into its parts. Owns percent-encoding; does not know which keys exist.
//!
//! By hand, since the URL standard knows only one host.

use percent_encoding::percent_decode_str;

use super::{ConnInfoError, Host, PORT_DEFAULT};

/// Decoded, but not judged.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) hosts: Vec<Host>,
    pub(super) database: Option<String>,
    pub(super) query: Vec<(String, String)>,
}

pub(super) fn split(url: &str) -> Result<Parts, ConnInfoError> {
    let (scheme, rest) = url.split_once("://").ok_or(ConnInfoError::Scheme)?;
    if !["mysql", "mariadb"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(ConnInfoError::Scheme);
    }
    if rest.contains('#') {
        return Err(syntax("\"#\"", "write it as %23"));
    }
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = match before.split_once('/') {
        Some((authority, database)) => (authority, Some(decode(database, "database")?)),
        None => (before, None),
    };
    if database.as_ref().is_some_and(|_| before.matches('/').count() > 1) {
        return Err(syntax("database", "a \"/\" in a password or name is written as %2F"));
    }
    let (credentials, places) = match authority.rsplit_once('@') {
        Some((credentials, places)) => (Some(credentials), places),
        None => (None, authority),
    };
    if credentials.is_some_and(|credentials| credentials.contains('@')) {
        return Err(syntax("user or password", "a \"@\" there is written as %40"));
    }
    let (user, password) = match credentials.map(|both| both.split_once(':').unwrap_or((both, "")))
    {
        Some((user, "")) => (Some(decode(user, "user")?), None),
        Some((user, password)) => {
            (Some(decode(user, "user")?), Some(decode(password, "password")?))
        }
        None => (None, None),
    };
    let mut hosts = Vec::new();
    for place in places.split(',') {
        hosts.push(host(place)?);
    }
    let mut pairs = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let Some((key, value)) = parameter.split_once('=') else {
            return Err(syntax("a parameter", "it has no \"=\""));
        };
        pairs.push((decode(key, "a parameter")?, decode(value, "a parameter")?));
    }
    Ok(Parts { user, password, hosts, database, query: pairs })
}

/// `name`, `name:port`, `[address]` or `[address]:port`; nothing is the local machine.
fn host(place: &str) -> Result<Host, ConnInfoError> {
    let (name, port) = match place.strip_prefix('[') {
        Some(bracketed) => {
            let Some((address, after)) = bracketed.split_once(']') else {
                return Err(syntax("host", "an IPv6 address has no closing \"]\""));
            };
            match after.strip_prefix(':') {
                Some(port) => (address, port),
                None if after.is_empty() => (address, ""),
                None => {
                    return Err(syntax("host", "an IPv6 address is followed by something else"));
                }
            }
        }
        None => place.split_once(':').unwrap_or((place, "")),
    };
    let port = match port {
        "" => PORT_DEFAULT,
        port => match port.parse() {
            Ok(0) | Err(_) => return Err(syntax("port", "it is no number from 1 to 65535")),
            Ok(port) => port,
        },
    };
    let name = decode(name, "host")?;
    let name = if name.is_empty() { "localhost".to_owned() } else { name };
    Ok(Host::Network { name, port })
}

fn decode(text: &str, part: &str) -> Result<String, ConnInfoError> {
    for (index, _) in text.match_indices('%') {
        let digits = text.as_bytes().get(index + 1..index + 3);
        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(syntax(part, "\"%\" is not followed by two hexadecimal digits"));
        }
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| syntax(part, "a percent-encoded part is not UTF-8"))?;
    // A zero byte would end the value early in the login packet.
    if decoded.contains('\0') {
        return Err(syntax(part, "it contains a zero byte"));
    }
    Ok(decoded.into_owned())
}

fn syntax(part: &str, problem: &'static str) -> ConnInfoError {
    ConnInfoError::Syntax { part: part.to_owned(), problem }
}

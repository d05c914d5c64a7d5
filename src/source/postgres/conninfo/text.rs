//! Splits a connection string into keys and values: URLs and `key = value` words.
//!
//! Owns quoting and percent-encoding. It does not know which keys exist.
//!
//! ```text
//! postgresql://[user[:password]@][host][:port][,host[:port]…][/dbname][?key=value[&…]]
//! key = value   key='value with blanks, \' and \\'
//! ```

use percent_encoding::percent_decode_str;

use super::ConnInfoError;

type Pairs = Vec<(String, String)>;

/// Keys and values in the order of the text.
pub(super) fn split(text: &str) -> Result<Pairs, ConnInfoError> {
    for scheme in ["postgresql://", "postgres://"] {
        if let Some(rest) = text.strip_prefix(scheme) {
            return split_url(rest);
        }
    }
    split_words(text)
}

/// libpq's `conninfo_uri_parse_options`: the first `@` before any `/` ends the credentials, and
/// empty parts count as not given.
fn split_url(rest: &str) -> Result<Pairs, ConnInfoError> {
    let mut pairs = Pairs::new();
    let mut add = |key: &str, value: &str| -> Result<(), ConnInfoError> {
        if !value.is_empty() {
            pairs.push((key.to_owned(), decode(value, key)?));
        }
        Ok(())
    };

    let mut hosts = rest;
    let authority = rest.find('/').map_or(rest, |slash| rest.split_at(slash).0);
    if let Some((credentials, after)) = authority.split_once('@') {
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        add("user", user)?;
        add("password", password)?;
        hosts = rest.split_at(authority.len() - after.len()).1;
    }
    let (places, after) = match hosts.find(['/', '?']) {
        Some(end) => hosts.split_at(end),
        None => (hosts, ""),
    };
    let (path, query) = after.split_once('?').unwrap_or((after, ""));

    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for place in places.split(',') {
        let (name, port) = split_place(place)?;
        names.push(decode(name, "host")?);
        ports.push(decode(port, "port")?);
    }
    add("dbname", path.strip_prefix('/').unwrap_or(path))?;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let Some((key, value)) = parameter.split_once('=') else {
            return Err(syntax("a parameter", "it has no \"=\""));
        };
        if value.contains('=') {
            return Err(syntax("a parameter", "it has two \"=\"; write the second as %3D"));
        }
        let key = decode(key, "a parameter")?;
        let value = decode(value, "a parameter")?;
        pairs.push((key, value));
    }
    // In front, so that parameters win over them as they do in libpq.
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.insert(0, ("port".to_owned(), ports.join(",")));
    }
    if names.iter().any(|name| !name.is_empty()) {
        pairs.insert(0, ("host".to_owned(), names.join(",")));
    }
    Ok(pairs)
}

/// `name`, `name:port`, `[address]` or `[address]:port`.
fn split_place(place: &str) -> Result<(&str, &str), ConnInfoError> {
    let Some(bracketed) = place.strip_prefix('[') else {
        return Ok(place.split_once(':').unwrap_or((place, "")));
    };
    let Some((address, after)) = bracketed.split_once(']') else {
        return Err(syntax("host", "an IPv6 address has no closing \"]\""));
    };
    if address.is_empty() {
        return Err(syntax("host", "an IPv6 address is empty"));
    }
    match after.strip_prefix(':') {
        Some(port) => Ok((address, port)),
        None if after.is_empty() => Ok((address, after)),
        None => Err(syntax("host", "an IPv6 address is followed by something but a port")),
    }
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
    no_zero(&decoded, part)?;
    Ok(decoded.into_owned())
}

/// A zero byte would end the value early in the startup message.
fn no_zero(value: &str, part: &str) -> Result<(), ConnInfoError> {
    if value.contains('\0') {
        return Err(syntax(part, "a value contains a zero byte"));
    }
    Ok(())
}

/// libpq's `conninfo_parse`.
fn split_words(text: &str) -> Result<Pairs, ConnInfoError> {
    let mut pairs = Pairs::new();
    let mut rest = text.char_indices().peekable();
    loop {
        while rest.next_if(|(_, character)| character.is_ascii_whitespace()).is_some() {}
        let Some(&(start, _)) = rest.peek() else { return Ok(pairs) };
        let part = format!("byte {start}");
        let mut key = String::new();
        while let Some((_, character)) =
            rest.next_if(|(_, character)| *character != '=' && !character.is_ascii_whitespace())
        {
            key.push(character);
        }
        while rest.next_if(|(_, character)| character.is_ascii_whitespace()).is_some() {}
        if rest.next_if(|(_, character)| *character == '=').is_none() {
            return Err(syntax(
                &part,
                "a word is not followed by \"=\" (quote values with blanks)",
            ));
        }
        while rest.next_if(|(_, character)| character.is_ascii_whitespace()).is_some() {}
        let quoted = rest.next_if(|(_, character)| *character == '\'').is_some();
        let mut value = String::new();
        loop {
            match rest.next() {
                Some((_, '\\')) => value.extend(rest.next().map(|(_, character)| character)),
                Some((_, '\'')) if quoted => break,
                Some((_, blank)) if !quoted && blank.is_ascii_whitespace() => break,
                Some((_, character)) => value.push(character),
                None if quoted => return Err(syntax(&part, "a quoted value does not end")),
                None => break,
            }
        }
        no_zero(&value, &part)?;
        pairs.push((key, value));
    }
}

fn syntax(part: &str, problem: &'static str) -> ConnInfoError {
    ConnInfoError::Syntax { part: part.to_owned(), problem }
}

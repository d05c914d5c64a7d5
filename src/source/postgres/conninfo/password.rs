//! Where the password comes from: given, a file of its own, or libpq's password file.
//!
//! Owns the rules of `~/.pgpass`. Files are read at each login, never kept.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::settings::socket_folder_default;
use super::{Host, Place};
use crate::secret::{Secret, SecretError, SecretText};

/// Where to look at each login.
#[derive(Debug, Clone)]
pub(crate) enum PasswordSource {
    None,
    /// Text, or the whole of a file.
    Given(Secret),
    /// Lines of `host:port:database:user:password`.
    Passfile(PathBuf),
}

impl PasswordSource {
    /// Files are a few bytes, so reading them blocks no longer than a page fault would.
    pub(super) fn read(
        &self,
        host: &Host,
        dbname: &str,
        user: &str,
    ) -> Result<Option<SecretText>, SecretError> {
        match self {
            Self::None => Ok(None),
            Self::Given(secret) => Ok(Some(secret.read()?.into_owned())),
            Self::Passfile(path) => Ok(read_passfile(path, host, dbname, user)),
        }
    }
}

/// As libpq's `passwordFromFile`: a file that is missing, not plain, or open to others is no
/// password; the last two are said.
fn read_passfile(path: &Path, host: &Host, dbname: &str, user: &str) -> Option<SecretText> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_file() {
        tracing::warn!(path = %path.display(), "password file is ignored: it is no plain file");
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            "password file is ignored: others may read it; chmod 0600"
        );
        return None;
    }
    let text = fs::read_to_string(path)
        .inspect_err(|error| {
            tracing::warn!(path = %path.display(), %error, "password file is ignored");
        })
        .ok()?;
    find(&text, host, dbname, user)
}

/// The first line whose four fields match, `*` matching all.
pub(super) fn find(text: &str, host: &Host, dbname: &str, user: &str) -> Option<SecretText> {
    let name = match &host.place {
        Place::Network(name) => name.clone(),
        Place::Folder(folder) if *folder == socket_folder_default() => "localhost".to_owned(),
        Place::Folder(folder) => folder.to_string_lossy().into_owned(),
    };
    let wanted = [name.as_str(), &host.port.to_string(), dbname, user];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut rest = line;
        let mut matches = true;
        for wanted in wanted {
            let Some((field, after)) = split_field(rest) else {
                matches = false;
                break;
            };
            matches &= field == wanted || field == "*";
            rest = after;
        }
        if matches {
            // libpq takes the password up to the next bare colon.
            let password = split_field(rest).map_or_else(|| unescape(rest), |(field, _)| field);
            return Some(SecretText::new(password));
        }
    }
    None
}

/// Up to the next colon that no backslash hides, and what follows it.
fn split_field(text: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    for (index, character) in text.char_indices() {
        match character {
            ':' if !escaped => {
                let (field, after) = text.split_at(index);
                let after = after.strip_prefix(':')?;
                // A lone `*` is the wild card; an escaped one is not, but libpq does not tell
                // them apart either.
                return Some((unescape(field), after));
            }
            '\\' if !escaped => escaped = true,
            _ => escaped = false,
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    plain
}

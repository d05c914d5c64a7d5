//! What was written: file, environment and flags, one over the other, each value with the place
//! where it stands. Knows names and kinds of keys, not what their values mean.
//!
//! ```text
//!   walpost.toml  <  WALPOST_…  <  flags        source.slot ▶ ("orders", walpost.toml:3)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Value;
use toml::de::DeTable;

use super::error::ConfigError;
use super::keys::{self, Database, HEADERS_SECTION, KEYS, Kind, OTHER_VARIABLES, SECTIONS};
use super::size::parse_size;
use crate::duration;
use crate::secret::{Secret, is_secret, masked_value};

/// Where a value was written. Later variants win over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In the configuration file.
    File {
        /// Path of the file.
        file: String,
        /// Counted from 1.
        line: usize,
    },
    /// In the environment; the variable's name.
    Variable(String),
    /// On the command line; the flag's name.
    Flag(String),
}

impl Origin {
    /// The layer: of two places in one layer, none wins.
    fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::Variable(_) => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File { file, line } => write!(formatter, "{file}:{line}"),
            Self::Variable(name) | Self::Flag(name) => formatter.write_str(name),
        }
    }
}

/// One setting from the command line.
#[derive(Clone)]
pub struct Flag {
    /// As typed: `--slot`.
    pub name: String,
    /// The key that it sets: `source.slot`.
    pub key: String,
    /// Its value.
    pub value: String,
}

struct Entry {
    value: Value,
    origin: Origin,
    /// The file that holds the value, where it is a secret that was given as `<key>_file`. The
    /// value is then what stood there at the start, to be checked and no more: whoever logs in
    /// reads the file again.
    secret_file: Option<PathBuf>,
}

impl Entry {
    /// Key and value as they were written: of a secret in a file, the path of the file.
    fn as_written(&self, name: &str) -> (String, Value) {
        match &self.secret_file {
            Some(path) => {
                (format!("{name}_file"), Value::String(path.to_string_lossy().into_owned()))
            }
            None => (name.to_owned(), self.value.clone()),
        }
    }
}

/// All that was written, by dotted key. Every key is known; no value is checked yet.
pub struct Values {
    entries: BTreeMap<String, Entry>,
    file: Option<String>,
}

impl Values {
    /// Reads the file, puts the `WALPOST_…` variables of `environment` over it and `flags` over
    /// those, then looks whether the files that `*_file` keys name can be read.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML, and every key or variable that is not known.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: &[Flag],
    ) -> Result<Self, ConfigError> {
        let mut values = Self { entries: BTreeMap::new(), file: None };
        if let Some(path) = file {
            let shown = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
                what: "configuration".into(),
                path: shown.clone(),
                source,
            })?;
            values.read_file(&shown, &text)?;
            values.file = Some(shown);
        }
        let mut environment: Vec<_> =
            environment.into_iter().filter(|(name, _)| name.starts_with("WALPOST_")).collect();
        environment.sort();
        for (name, value) in environment {
            values.read_variable(name, value)?;
        }
        for flag in flags {
            let origin = Origin::Flag(flag.name.clone());
            if !is_known(&flag.key) {
                return Err(unknown_key(origin, &flag.key));
            }
            values.set(&flag.key, written(&flag.key, &flag.value), origin)?;
        }
        values.read_secret_files()?;
        Ok(values)
    }

    /// Path of the configuration file, where there is one.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    fn read_file(&mut self, file: &str, text: &str) -> Result<(), ConfigError> {
        let line_of = |offset: usize| 1 + text[..offset].matches('\n').count();
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            file: file.to_owned(),
            line: error.span().map_or(1, |span| line_of(span.start)),
            problem: error.message().trim().replace('\n', ", "),
        };
        let table: toml::Table = toml::from_str(text).map_err(syntax)?;
        let spans = DeTable::parse(text).map_err(syntax)?;
        let mut lines = HashMap::new();
        note_lines("", spans.get_ref(), &line_of, &mut lines);
        let origin = |key: &str| Origin::File {
            file: file.to_owned(),
            line: lines.get(key).copied().unwrap_or(1),
        };
        let mut flat = Vec::new();
        flatten("", table, &mut flat);
        for (key, value) in flat {
            if SECTIONS.contains(&key.as_str()) {
                // A section that is no table; or an empty one, which says nothing.
                if !value.is_table() {
                    let problem = format!("is a section; write it as [{key}]");
                    return Err(ConfigError::Value { origin: origin(&key), key, problem });
                }
            } else if !is_known(&key) {
                return Err(unknown_key(origin(&key), &key));
            } else {
                self.set(&key, value, origin(&key))?;
            }
        }
        Ok(())
    }

    fn read_variable(&mut self, name: String, value: String) -> Result<(), ConfigError> {
        if OTHER_VARIABLES.contains(&name.as_str()) || keys::is_service_link(&name, &value) {
            return Ok(());
        }
        let secret_file = |path: &str| format!("{path}_file");
        let key = match name.as_str() {
            "WALPOST_SOURCE" => Some("source.url".to_owned()),
            "WALPOST_SINK" => Some("sink.url".to_owned()),
            _ => KEYS
                .iter()
                .flat_map(|key| [key.path.to_owned(), secret_file(key.path)])
                .filter(|path| is_known(path))
                .find(|path| keys::variable(path) == name),
        };
        let key = key.or_else(|| {
            let option = name.strip_prefix("WALPOST_SINK_")?;
            (!option.is_empty()).then(|| format!("sink.{}", option.to_ascii_lowercase()))
        });
        let Some(key) = key else {
            let settings = KEYS.iter().map(|key| keys::variable(key.path));
            let others = OTHER_VARIABLES.iter().map(|name| (*name).to_owned());
            return Err(ConfigError::Unknown {
                origin: Origin::Variable("environment".into()),
                noun: "variable",
                nearest: keys::nearest(&name, settings.chain(others)),
                written: name,
            });
        };
        self.set(&key, written(&key, &value), Origin::Variable(name))
    }

    /// Puts a value over what is there. A secret and its file are one setting.
    fn set(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), ConfigError> {
        let other = match keys::secret_of_file(key) {
            Some(secret) => secret.to_owned(),
            None => format!("{key}_file"),
        };
        let twin = if keys::secret_of_file(&other).is_some() || keys::secret_of_file(key).is_some()
        {
            self.entries.remove(&other)
        } else {
            None
        };
        let same = twin.or_else(|| {
            let before = self.entries.remove(key)?;
            // `WALPOST_SINK` and `WALPOST_SINK_URL`: the same setting by two names.
            (before.origin != origin).then_some(before)
        });
        if let Some(before) = same.filter(|before| before.origin.rank() == origin.rank()) {
            let problem = format!("is also set by {}; keep one of the two", before.origin);
            return Err(ConfigError::Value { key: key.into(), origin, problem });
        }
        self.entries.insert(key.to_owned(), Entry { value, origin, secret_file: None });
        Ok(())
    }

    fn read_secret_files(&mut self) -> Result<(), ConfigError> {
        let files: Vec<String> = self
            .entries
            .keys()
            .filter(|key| keys::secret_of_file(key).is_some())
            .cloned()
            .collect();
        for key in files {
            let path = self.required_text(&key, "")?;
            let unusable = |source| ConfigError::Secret { key: key.clone(), source };
            let file = Secret::file(&path).map_err(unusable)?;
            let text = file.read().map_err(unusable)?.expose().to_owned();
            let secret = keys::secret_of_file(&key).unwrap_or(&key).to_owned();
            let Some(entry) = self.entries.remove(&key) else { continue };
            let secret_file = Some(PathBuf::from(path));
            self.entries.insert(secret, Entry { value: Value::String(text), secret_file, ..entry });
        }
        Ok(())
    }

    /// The kind of database that the source's URL names; without one, PostgreSQL.
    pub(crate) fn database(&self) -> Database {
        let url = self.entries.get("source.url").and_then(|entry| entry.value.as_str());
        let scheme = url.and_then(|url| url.split_once(':')).map(|(scheme, _)| scheme);
        match scheme {
            Some("mysql" | "mariadb") => Database::MySql,
            Some(_) | None => Database::Postgres,
        }
    }

    /// The first key that was written down, though a source of this kind does not have it.
    pub(crate) fn misplaced(&self) -> Option<&str> {
        let database = self.database();
        let misplaced =
            |key: &&String| keys::find(key).is_some() && keys::find_of(database, key).is_none();
        self.entries.keys().find(misplaced).map(String::as_str)
    }

    /// Where the value of `key` was written.
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.entries.get(key).map_or(Origin::Default, |entry| entry.origin.clone())
    }

    /// An error about the value of `key`.
    pub fn refuse(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::Value { key: key.into(), origin: self.origin(key), problem: problem.into() }
    }

    /// The value or its default, as text; `None` where there is neither.
    pub(crate) fn text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.entries.get(key).map(|entry| &entry.value) {
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => {
                Err(self.refuse(key, format!("must be text in quotes, not {}", other.type_str())))
            }
            None => {
                let known = keys::find_of(self.database(), key);
                Ok(known.and_then(|key| key.default).map(str::to_owned))
            }
        }
    }

    /// Whether there is a value or a default, of whatever type.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        let has_default =
            || keys::find_of(self.database(), key).is_some_and(|key| key.default.is_some());
        self.entries.contains_key(key) || has_default()
    }

    /// As [`Values::text`], for what must be there and not be empty.
    pub(crate) fn required_text(&self, key: &str, remedy: &str) -> Result<String, ConfigError> {
        match self.text(key)? {
            Some(text) if text.is_empty() => Err(self.refuse(key, "must not be empty")),
            Some(text) => Ok(text),
            None => Err(ConfigError::Missing { key: key.into(), remedy: remedy.into() }),
        }
    }

    /// A secret, as text or as the file that holds it; `None` where there is neither.
    pub(crate) fn secret(&self, key: &str) -> Result<Option<Secret>, ConfigError> {
        let file = self.entries.get(key).and_then(|entry| entry.secret_file.clone());
        match file {
            Some(path) => Ok(Some(Secret::File(path))),
            None => Ok(self.text(key)?.map(Secret::new)),
        }
    }

    /// As [`Values::secret`], for what must be there and not be empty.
    pub(crate) fn required_secret(&self, key: &str, remedy: &str) -> Result<Secret, ConfigError> {
        let text = self.required_text(key, remedy)?;
        Ok(self.secret(key)?.unwrap_or_else(|| Secret::new(text)))
    }

    /// A whole number within `range`.
    pub(crate) fn number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let number = match self.entries.get(key).map(|entry| &entry.value) {
            Some(Value::Integer(number)) => u64::try_from(*number).ok(),
            Some(Value::String(_)) | None => {
                self.text(key)?.and_then(|text| text.trim().parse().ok())
            }
            Some(_) => None,
        };
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.refuse(key, format!("must be a whole number from {low} to {high}"))
        })
    }

    /// `true` or `false`.
    pub(crate) fn switch(&self, key: &str) -> Result<bool, ConfigError> {
        let switch = match self.entries.get(key).map(|entry| &entry.value) {
            Some(Value::Boolean(switch)) => Some(*switch),
            Some(Value::String(_)) | None => {
                self.text(key)?.and_then(|text| text.trim().parse().ok())
            }
            Some(_) => None,
        };
        switch.ok_or_else(|| self.refuse(key, "must be true or false"))
    }

    /// A duration with its unit, at least `least`.
    pub(crate) fn duration(&self, key: &str, least: Duration) -> Result<Duration, ConfigError> {
        let text = match self.entries.get(key).map(|entry| &entry.value) {
            // `5` is refused by the parser too, which then says how to write it.
            Some(Value::Integer(number)) => number.to_string(),
            Some(_) | None => self.required_text(key, "")?,
        };
        let duration = duration::parse(&text).map_err(|problem| self.refuse(key, problem))?;
        if duration < least {
            return Err(self.refuse(key, format!("must be at least {least:?}")));
        }
        Ok(duration)
    }

    /// A number of bytes within `range`.
    pub(crate) fn size(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<usize, ConfigError> {
        let text = match self.entries.get(key).map(|entry| &entry.value) {
            Some(Value::Integer(number)) => number.to_string(),
            Some(_) | None => self.required_text(key, "")?,
        };
        let size = parse_size(&text).map_err(|problem| self.refuse(key, problem))?;
        let fits = range.contains(&size).then(|| usize::try_from(size).ok()).flatten();
        fits.ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.refuse(key, format!("must be from {low} to {high} bytes"))
        })
    }

    /// Keys and values of a section, without those that [`KEYS`] lists. A secret that was given as
    /// a file is the path of that file, under the key `…_file`.
    pub(crate) fn others(&self, section: &str) -> impl Iterator<Item = (String, Value)> {
        self.entries.iter().filter(|(key, _)| keys::find(key).is_none()).filter_map(
            move |(key, entry)| {
                let name = key.strip_prefix(section)?.strip_prefix('.')?;
                Some(entry.as_written(name))
            },
        )
    }

    /// All effective settings as TOML, secrets masked, each with the place that it comes from;
    /// without the keys of the other kind of database.
    pub fn effective(&self) -> String {
        let mut lines = Vec::new();
        let mut line = |section: &str, name: &str, value: &Value, origin: Origin| {
            let quoted =
                Value::Table([(name.to_owned(), masked_value(name, value))].into_iter().collect());
            // The text of a one-line table is `{ name = value }`, with the name quoted as needed.
            let text = quoted.to_string();
            let text = text.trim();
            let text = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
            let text = text.unwrap_or_default().trim();
            lines.push((section.to_owned(), format!("{text:<44} # {origin}")));
        };
        for key in KEYS.iter().filter(|key| key.is_of(self.database())) {
            let (section, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
            let default = key.default.map(|text| (name.to_owned(), as_toml(key.kind, text)));
            let written = self.entries.get(key.path).map(|entry| entry.as_written(name));
            if let Some((name, value)) = written.or(default) {
                line(section, &name, &value, self.origin(key.path));
            }
        }
        for section in ["sink", HEADERS_SECTION] {
            for (name, value) in self.others(section) {
                let written = format!("{section}.{name}");
                let key = keys::secret_of_file(&written).unwrap_or(&written);
                line(section, &name, &value, self.origin(key));
            }
        }
        let mut text = String::new();
        for section in SECTIONS {
            let mut of_section = lines.iter().filter(|(of, _)| of == section).peekable();
            if of_section.peek().is_some() {
                let gap = if text.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{section}]\n"));
            }
            for (_, line) in of_section {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

fn as_toml(kind: Kind, text: &str) -> Value {
    match kind {
        Kind::Number | Kind::Switch => scalar(text),
        Kind::Text | Kind::Secret | Kind::Duration | Kind::Size => Value::String(text.into()),
    }
}

/// A value from the environment or a flag. What does not look like its kind stays text, which is
/// then refused with the place where it stands. An option of a sink must have its type already,
/// except a secret, which may look like a number.
fn written(key: &str, text: &str) -> Value {
    match keys::find(key) {
        Some(known) => as_toml(known.kind, text),
        None if key.starts_with("sink.") && !is_secret(key) => scalar(text),
        None => Value::String(text.into()),
    }
}

fn scalar(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        return Value::Integer(number);
    }
    text.parse::<bool>().map_or_else(|_| Value::String(text.into()), Value::Boolean)
}

/// Whether `key` may be set: one of ours, a secret's file, or in a section of free keys.
fn is_known(key: &str) -> bool {
    let free =
        |section: &str| key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')).is_some();
    keys::find(key).is_some()
        || keys::secret_of_file(key).is_some()
        || free("sink")
        || free(HEADERS_SECTION)
}

fn unknown_key(origin: Origin, key: &str) -> ConfigError {
    let known = KEYS.iter().map(|key| key.path.to_owned());
    let (noun, nearest) = match key.split_once('.') {
        Some((section, _)) if SECTIONS.contains(&section) => ("key", keys::nearest(key, known)),
        Some((section, _)) => {
            ("section", keys::nearest(section, SECTIONS.iter().map(|name| (*name).to_owned())))
        }
        None => {
            // A key above the first section: look for its name alone.
            let by_name = KEYS.iter().find(|known| known.path.ends_with(&format!(".{key}")));
            let by_name = by_name.map(|known| known.path.to_owned());
            let sections = SECTIONS.iter().map(|name| (*name).to_owned());
            ("key", by_name.or_else(|| keys::nearest(key, sections.chain(known))))
        }
    };
    let written = match (noun, key.split_once('.')) {
        ("section", Some((section, _))) => format!("[{section}]"),
        _ => key.to_owned(),
    };
    ConfigError::Unknown { origin, noun, written, nearest }
}

/// Dotted keys and their values; tables are opened only where they are sections of ours.
fn flatten(prefix: &str, table: toml::Table, flat: &mut Vec<(String, Value)>) {
    for (name, value) in table {
        let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        let opens = prefix.is_empty() || SECTIONS.contains(&path.as_str());
        match value {
            Value::Table(inner) if opens && !inner.is_empty() => flatten(&path, inner, flat),
            value => flat.push((path, value)),
        }
    }
}

fn note_lines(
    prefix: &str,
    table: &DeTable<'_>,
    line_of: &impl Fn(usize) -> usize,
    lines: &mut HashMap<String, usize>,
) {
    for (name, value) in table.iter() {
        let path = match prefix {
            "" => name.get_ref().to_string(),
            _ => format!("{prefix}.{}", name.get_ref()),
        };
        if let Some(inner) = value.get_ref().as_table() {
            note_lines(&path, inner, line_of, lines);
        }
        lines.insert(path, line_of(name.span().start));
    }
}

//! In which order the rows of a first start are read, and where it goes on after an interruption.
//! Pure.
//!
//! Rows of a key should come in the order in which they were written. A table does not remember
//! that, so a column has to say it: one that the settings name, else a counter of the server's
//! (AUTO_INCREMENT), else `created_at`. The primary key follows: with it no two rows are equal, so
//! that a row's place can be written down and read on from.
//!
//! ```text
//!  ORDER BY created_at, id      after ("2026-11-30 …", "17"):
//!                               created_at > "2026-…" OR (created_at <=> "2026-…" AND id > "17")
//! ```

use crate::config::{OutboxSettings, quote_mysql_identifier};
use crate::outbox::Role;
use crate::source::mysql::inspect::{ColumnState, TableState};

/// How a column's value is written down, and compared with what was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Digits.
    Number,
    /// As the server prints it.
    Text,
    /// Hexadecimal digits.
    Bytes,
}

impl Form {
    /// `None` for what does not come back as it was, or is not compared as it is sorted (an ENUM is
    /// sorted by number and compared by name).
    fn of(column: &ColumnState) -> Option<Self> {
        match column.data_type.to_ascii_lowercase().as_str() {
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" => {
                Some(Self::Number)
            }
            "char" | "varchar" | "date" | "datetime" | "timestamp" | "time" | "uuid" | "inet4"
            | "inet6" => Some(Self::Text),
            "binary" | "varbinary" => Some(Self::Bytes),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    name: String,
    form: Option<Form>,
}

/// Why rows of a key may come in another order than they were written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Only `created_at` orders them: rows of one statement, or of one second, have the same.
    SameMoment,
    /// Nothing but the primary key does, which need not rise.
    KeyOnly,
    /// Nothing does.
    Nothing,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    parts: Vec<Part>,
    is_resumable: bool,
    doubt: Option<Doubt>,
}

/// The values of an order's columns in a row: NULL, or as [`Form`] says.
pub(crate) type Mark = Vec<Option<String>>;

impl Order {
    /// Decides by `named`, the column that the settings name, the table and its mapping.
    ///
    /// # Errors
    /// The table does not have the named column.
    pub(crate) fn of(
        table: &TableState,
        outbox: &OutboxSettings,
        named: Option<&str>,
    ) -> Result<Self, String> {
        let column = |name: &str| table.columns.iter().find(|column| column.name == name);
        let mapped = outbox.columns.iter().find(|column| column.role == Role::CreatedAt);
        let created_at = mapped.and_then(|mapped| column(&mapped.name));
        let counter = table.counter.as_deref().and_then(column);
        let (first, doubt) = match (named, counter, created_at) {
            (Some(name), _, _) => {
                let missing = || {
                    format!(
                        "it has no column \"{name}\", by which source.initial_order sorts the \
                         rows that are there at a first start"
                    )
                };
                (Some(column(name).ok_or_else(missing)?), None)
            }
            (None, Some(counter), _) => (Some(counter), None),
            (None, None, Some(created_at)) => (Some(created_at), Some(Doubt::SameMoment)),
            (None, None, None) if table.key.is_empty() => (None, Some(Doubt::Nothing)),
            (None, None, None) => (None, Some(Doubt::KeyOnly)),
        };
        let keys: Vec<&ColumnState> = table.key.iter().filter_map(|name| column(name)).collect();
        // A key that we may not read whole tells rows apart no more.
        let has_key = !keys.is_empty() && keys.len() == table.key.len();
        let mut parts: Vec<Part> = Vec::new();
        for column in first.into_iter().chain(keys) {
            if !parts.iter().any(|part| part.name == column.name) {
                parts.push(Part { name: column.name.clone(), form: Form::of(column) });
            }
        }
        let is_resumable = has_key && parts.iter().all(|part| part.form.is_some());
        Ok(Self { parts, is_resumable, doubt })
    }

    /// None, of a table that a test has no columns of.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { parts: Vec::new(), is_resumable: false, doubt: Some(Doubt::Nothing) }
    }

    /// Whether a row's place can be written down and read on from.
    pub(crate) fn is_resumable(&self) -> bool {
        self.is_resumable
    }

    /// Why rows of a key may come in another order than they were written in.
    pub(crate) fn doubt(&self) -> Option<Doubt> {
        self.doubt
    }

    /// For people: `created_at, id`.
    pub(crate) fn plain(&self) -> String {
        let names: Vec<&str> = self.parts.iter().map(|part| part.name.as_str()).collect();
        names.join(", ")
    }

    /// What to select beside a row so that its place is known; nothing where that is of no use.
    pub(crate) fn expressions(&self) -> Vec<String> {
        if !self.is_resumable {
            return Vec::new();
        }
        let expression = |part: &Part| {
            let name = quote_mysql_identifier(&part.name);
            match part.form {
                Some(Form::Bytes) => format!("HEX({name})"),
                Some(Form::Number | Form::Text) | None => name,
            }
        };
        self.parts.iter().map(expression).collect()
    }

    /// What goes behind the table's name: those rows that are behind `after`, in this order.
    pub(crate) fn clauses(&self, after: Option<&Mark>) -> String {
        let mut clauses = String::new();
        if let Some(condition) = after.and_then(|after| self.condition(after)) {
            clauses = format!(" WHERE {condition}");
        }
        let names: Vec<String> =
            self.parts.iter().map(|part| quote_mysql_identifier(&part.name)).collect();
        if !names.is_empty() {
            clauses += &format!(" ORDER BY {}", names.join(", "));
        }
        clauses
    }

    /// NULL comes first, as the servers sort it.
    fn condition(&self, after: &Mark) -> Option<String> {
        let mut any = Vec::new();
        let mut equal = String::new();
        for (part, value) in self.parts.iter().zip(after) {
            let name = quote_mysql_identifier(&part.name);
            let literal = match value {
                Some(value) => Some(literal(part.form?, value)?),
                None => None,
            };
            let greater = match &literal {
                Some(literal) => format!("{name} > {literal}"),
                None => format!("{name} IS NOT NULL"),
            };
            any.push(format!("({equal}{greater})"));
            equal += &format!("{name} <=> {} AND ", literal.as_deref().unwrap_or("NULL"));
        }
        (!any.is_empty()).then(|| any.join(" OR "))
    }

    /// A row's place as it is kept, with the names of the columns: under another order it means
    /// nothing.
    pub(crate) fn written(&self, mark: &Mark) -> Option<String> {
        let pairs: Vec<(&str, &Option<String>)> =
            self.parts.iter().map(|part| part.name.as_str()).zip(mark).collect();
        serde_json::to_string(&pairs).ok()
    }

    /// The place that was written; `None` where it was written under another order, or by
    /// something else: all is read then.
    pub(crate) fn read(&self, written: &str) -> Option<Mark> {
        let pairs: Vec<(String, Option<String>)> = serde_json::from_str(written).ok()?;
        let is_ours = self.is_resumable
            && pairs.len() == self.parts.len()
            && pairs.iter().zip(&self.parts).all(|((name, _), part)| *name == part.name);
        let mark: Mark = pairs.into_iter().map(|(_, value)| value).collect();
        (is_ours && self.condition(&mark).is_some()).then_some(mark)
    }
}

/// A value that was written down, for SQL; `None` for what no row has.
fn literal(form: Form, value: &str) -> Option<String> {
    match form {
        Form::Number => {
            let is_number = !value.is_empty()
                && value.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'));
            is_number.then(|| value.to_owned())
        }
        Form::Text => {
            use std::fmt::Write;
            let mut digits = String::with_capacity(2 * value.len());
            for byte in value.bytes() {
                write!(digits, "{byte:02x}").expect("a string takes all text");
            }
            // No mode changes what this means, and the column's collation compares it.
            Some(format!("_utf8mb4 X'{digits}'"))
        }
        Form::Bytes => {
            value.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| format!("X'{value}'"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::QualifiedName;
    use crate::outbox::Columns;

    fn table(columns: &[(&str, &str)], key: &[&str], counter: Option<&str>) -> TableState {
        let column = |(name, data_type): &(&str, &str)| ColumnState {
            name: (*name).into(),
            data_type: (*data_type).into(),
            type_text: (*data_type).into(),
            charset: None,
        };
        TableState {
            name: QualifiedName { schema: "app".into(), name: "outbox".into() },
            kind: "BASE TABLE".into(),
            engine: None,
            columns: columns.iter().map(column).collect(),
            key: key.iter().map(|name| (*name).to_owned()).collect(),
            counter: counter.map(str::to_owned),
        }
    }

    fn outbox() -> OutboxSettings {
        OutboxSettings {
            columns: Columns::debezium(),
            topic: "t".into(),
            extra_headers: Vec::new(),
            partition: None,
        }
    }

    const COLUMNS: &[(&str, &str)] =
        &[("id", "binary"), ("seq", "bigint"), ("payload", "json"), ("created_at", "datetime")];

    fn order(key: &[&str], counter: Option<&str>, named: Option<&str>) -> Order {
        Order::of(&table(COLUMNS, key, counter), &outbox(), named).unwrap()
    }

    #[test]
    fn a_named_column_comes_before_a_counter_and_that_before_created_at() {
        let cases = [
            (order(&["id"], Some("seq"), Some("created_at")), "created_at, id", None),
            (order(&["id"], Some("seq"), None), "seq, id", None),
            (order(&["seq"], Some("seq"), None), "seq", None),
            (order(&["id"], None, None), "created_at, id", Some(Doubt::SameMoment)),
        ];
        for (order, names, doubt) in cases {
            assert_eq!((order.plain().as_str(), order.doubt()), (names, doubt));
            assert!(order.is_resumable());
        }
        let bare = table(&COLUMNS[..3], &["id"], None);
        let only_key = Order::of(&bare, &outbox(), None).unwrap();
        assert_eq!((only_key.plain().as_str(), only_key.doubt()), ("id", Some(Doubt::KeyOnly)));
        let nothing = Order::of(&table(&COLUMNS[..3], &[], None), &outbox(), None).unwrap();
        assert_eq!((nothing.clauses(None).as_str(), nothing.doubt()), ("", Some(Doubt::Nothing)));
        let error = Order::of(&bare, &outbox(), Some("sequence")).unwrap_err();
        assert!(error.contains("\"sequence\"") && error.contains("source.initial_order"));
    }

    #[test]
    fn rows_behind_a_place_are_those_that_sort_behind_it() {
        let order = order(&["id"], None, None);
        let mark = vec![Some("2026-11-30 00:00:00".to_owned()), Some("0AFF".to_owned())];
        let moment = "_utf8mb4 X'323032362d31312d33302030303a30303a3030'";
        assert_eq!(
            order.clauses(Some(&mark)),
            format!(
                " WHERE (`created_at` > {moment}) OR (`created_at` <=> {moment} AND `id` > \
                 X'0AFF') ORDER BY `created_at`, `id`"
            )
        );
        let null = vec![None, Some("0AFF".to_owned())];
        assert!(order.clauses(Some(&null)).starts_with(
            " WHERE (`created_at` IS NOT NULL) OR (`created_at` <=> NULL AND `id` > X'0AFF')"
        ));
    }

    #[test]
    fn a_place_is_read_as_it_was_written_and_under_no_other_order() {
        let by_moment = order(&["id"], None, None);
        let mark = vec![None, Some("0AFF".to_owned())];
        let written = by_moment.written(&mark).unwrap();
        assert_eq!(by_moment.read(&written), Some(mark));
        assert_eq!(order(&["id"], Some("seq"), None).read(&written), None);
        for strange in ["", "[]", r#"[["created_at",null],["id","x'; DROP"]]"#] {
            assert_eq!(by_moment.read(strange), None, "{strange}");
        }
    }

    #[test]
    fn what_cannot_be_compared_as_it_is_sorted_is_read_from_its_beginning() {
        let enumerated = table(&[("id", "enum"), ("payload", "json")], &["id"], None);
        assert!(!Order::of(&enumerated, &outbox(), None).unwrap().is_resumable());
        // A key of which a column may not be read.
        assert!(!order(&["id", "tenant"], None, None).is_resumable());
        assert!(!order(&[], Some("seq"), None).is_resumable());
    }
}

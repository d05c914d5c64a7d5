//! Names in SQL: read from configuration, and written so that no name can end its quotes.
//! PostgreSQL quotes with `"`, MySQL and MariaDB with a backtick.

use std::fmt;

/// A table by schema and name, both spelt as in the catalog (nothing is folded to lower case).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QualifiedName {
    /// The schema.
    pub schema: String,
    /// The table in it.
    pub name: String,
}

impl QualifiedName {
    /// Reads `table` (in `public`) or `schema.table`; a part that holds a dot goes in double
    /// quotes, as in SQL.
    ///
    /// # Errors
    /// A sentence on what a table's name looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refused = || {
            format!("\"{text}\" is no table; write it as outbox, app.outbox or \"my.app\".outbox")
        };
        let parts = parts(text, '"').ok_or_else(refused)?;
        if parts.iter().any(|part| part.trim().is_empty() || part.len() > 63) {
            return Err(refused());
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), None, None) => Ok(Self { schema: "public".into(), name }),
            (Some(schema), Some(name), None) => Ok(Self { schema, name }),
            _ => Err(refused()),
        }
    }

    /// Reads `table` (in `database`) or `database.table`; a part that holds a dot goes in
    /// backticks, as in MySQL. `None` where neither names a database.
    ///
    /// # Errors
    /// A sentence on what a table's name looks like.
    pub fn parse_mysql(text: &str, database: Option<&str>) -> Result<Option<Self>, String> {
        let refused = || {
            format!("\"{text}\" is no table; write it as outbox, shop.outbox or `my.shop`.outbox")
        };
        let parts = parts(text, '`').ok_or_else(refused)?;
        // MySQL counts characters, and takes no name that ends in a space.
        let wrong = |part: &String| part.trim_end() != part || part.chars().count() > 64;
        if parts.iter().any(|part| part.is_empty() || wrong(part)) {
            return Err(refused());
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), None, None) => {
                Ok(database.map(|schema| Self { schema: schema.to_owned(), name }))
            }
            (Some(schema), Some(name), None) => Ok(Some(Self { schema, name })),
            _ => Err(refused()),
        }
    }

    /// `"schema"."name"`, for SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }

    /// `` `schema`.`name` ``, for MySQL's SQL.
    pub fn quoted_mysql(&self) -> String {
        format!("{}.{}", quote_mysql_identifier(&self.schema), quote_mysql_identifier(&self.name))
    }

    /// For people who read and paste MySQL's SQL: quoted only where it needs that.
    pub fn plain_mysql(&self) -> String {
        format!("{}.{}", plain_mysql_identifier(&self.schema), plain_mysql_identifier(&self.name))
    }
}

/// Splits at dots that stand outside quotes; `None` where a quote is not closed.
fn parts(text: &str, quote: char) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let part = parts.last_mut().expect("it starts with one part and only grows");
        match character {
            character if character == quote => {
                if quoted && characters.peek() == Some(&quote) {
                    characters.next();
                    part.push(quote);
                } else {
                    quoted = !quoted;
                }
            }
            '.' if !quoted => parts.push(String::new()),
            '\0' => return None,
            character => part.push(character),
        }
    }
    (!quoted).then_some(parts)
}

impl fmt::Display for QualifiedName {
    /// For people: quoted only where SQL needs it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", plain_identifier(&self.schema), plain_identifier(&self.name))
    }
}

/// An identifier in double quotes.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// An identifier for people to paste: quoted only where it is not plain lower case.
pub fn plain_identifier(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let starts_plain = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if starts_plain && name.bytes().all(plain) { name.into() } else { quote_identifier(name) }
}

/// A text literal. A backslash makes it an `E''` literal, which reads the same under every
/// `standard_conforming_strings`.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// An identifier of MySQL in backticks.
pub fn quote_mysql_identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// An identifier of MySQL for people to paste: quoted only where it is not plain ASCII.
pub fn plain_mysql_identifier(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let starts_plain = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if starts_plain && name.bytes().all(plain) { name.into() } else { quote_mysql_identifier(name) }
}

/// A text literal of MySQL, for a session without NO_BACKSLASH_ESCAPES: there a backslash means
/// something inside quotes. No literal can end its quotes in the other mode either.
pub fn quote_mysql_literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(schema: &str, name: &str) -> QualifiedName {
        QualifiedName { schema: schema.into(), name: name.into() }
    }

    #[test]
    fn a_table_is_read_with_and_without_schema_and_quotes() {
        assert_eq!(QualifiedName::parse("outbox"), Ok(name("public", "outbox")));
        assert_eq!(QualifiedName::parse("App.Outbox"), Ok(name("App", "Outbox")));
        assert_eq!(QualifiedName::parse("\"a.b\".\"c\"\"d\""), Ok(name("a.b", "c\"d")));
        for text in ["", ".", "a.", "a.b.c", "\"a", &"x".repeat(64)] {
            assert!(QualifiedName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_name_can_end_its_quotes() {
        assert_eq!(
            name("a", "b\"; DROP TABLE x; --").quoted(),
            "\"a\".\"b\"\"; DROP TABLE x; --\""
        );
        assert_eq!(quote_literal("it's \\ so"), "E'it''s \\\\ so'");
        assert_eq!(name("public", "Outbox").to_string(), "public.\"Outbox\"");
    }

    #[test]
    fn a_table_of_mysql_is_read_in_the_database_of_the_url_or_in_its_own() {
        let read = |text: &str| QualifiedName::parse_mysql(text, Some("shop"));
        assert_eq!(read("outbox"), Ok(Some(name("shop", "outbox"))));
        assert_eq!(read("App.Outbox"), Ok(Some(name("App", "Outbox"))));
        assert_eq!(read("`a.b`.`c``d`"), Ok(Some(name("a.b", "c`d"))));
        assert_eq!(read(&"ä".repeat(64)), Ok(Some(name("shop", &"ä".repeat(64)))));
        assert_eq!(QualifiedName::parse_mysql("outbox", None), Ok(None));
        for text in ["", ".", "a.", "a.b.c", "`a", "a ", &"x".repeat(65)] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_name_of_mysql_can_end_its_quotes() {
        let wild = name("a", "b`; DROP TABLE x; --");
        assert_eq!(wild.quoted_mysql(), "`a`.`b``; DROP TABLE x; --`");
        assert_eq!(name("shop", "Outbox").plain_mysql(), "shop.Outbox");
        assert_eq!(name("my-shop", "outbox").plain_mysql(), "`my-shop`.outbox");
        assert_eq!(quote_mysql_literal("it's \\ so"), "'it''s \\\\ so'");
    }
}

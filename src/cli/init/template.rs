//! SQL from a file with names put in, so that what `init` does can be read in `sql/`.
//!
//! Placeholders are psql's: `:"name"` becomes an identifier, `:'name'` a literal, each quoted
//! here as the database wants it. A line with a placeholder that has no value is left out: a
//! column that is not mapped, a role without a password.

use std::collections::HashMap;

use walpost::config::{
    quote_identifier, quote_literal, quote_mysql_identifier, quote_mysql_literal,
};

/// What stands for each placeholder.
pub(super) type Names = HashMap<&'static str, String>;

/// How names are quoted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dialect {
    Postgres,
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "there is no such source then"))]
    MySql,
}

impl Dialect {
    /// Puts names into placeholders, in one pass: what was put in is not looked at again.
    pub(super) fn fill(self, template: &str, names: &Names) -> String {
        let mut text = String::with_capacity(template.len() * 2);
        for line in template.lines() {
            if let Some(line) = self.fill_line(line, names) {
                if line.starts_with(')') && text.ends_with(",\n") {
                    // The list's last line was left out.
                    text.truncate(text.len() - 2);
                    text.push('\n');
                }
                text.push_str(&line);
                text.push('\n');
            }
        }
        text
    }

    fn fill_line(self, line: &str, names: &Names) -> Option<String> {
        let mut filled = String::new();
        let mut rest = line;
        while let Some(start) = rest.find([':']) {
            let (before, after) = rest.split_at(start);
            filled.push_str(before);
            let quote = after.chars().nth(1).filter(|quote| matches!(quote, '"' | '\''));
            let placeholder = quote.and_then(|quote| after.get(2..)?.split_once(quote));
            let Some((name, left)) = placeholder else {
                // A cast, or a colon in a comment.
                filled.push(':');
                rest = after.get(1..).unwrap_or_default();
                continue;
            };
            let value = names.get(name)?;
            filled.push_str(&match (self, quote) {
                (Self::Postgres, Some('"')) => quote_identifier(value),
                (Self::Postgres, _) => quote_literal(value),
                (Self::MySql, Some('"')) => quote_mysql_identifier(value),
                (Self::MySql, _) => quote_mysql_literal(value),
            });
            rest = left;
        }
        filled.push_str(rest);
        Some(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(dialect: Dialect, line: &str) -> Option<String> {
        let names = HashMap::from([("a", "it's :\"a\"".to_owned())]);
        dialect.fill_line(line, &names)
    }

    #[test]
    fn a_name_is_quoted_and_not_looked_at_again() {
        let postgres = |line| filled(Dialect::Postgres, line).unwrap();
        assert_eq!(postgres(":\"a\" x"), "\"it's :\"\"a\"\"\" x");
        assert_eq!(postgres("f(:'a'::text)"), "f('it''s :\"a\"'::text)");
        assert_eq!(postgres("-- so: this"), "-- so: this");
        let mysql = |line| filled(Dialect::MySql, line).unwrap();
        assert_eq!(mysql(":\"a\".x = :'a'"), "`it's :\"a\"`.x = 'it''s :\"a\"'");
    }

    #[test]
    fn a_line_whose_name_is_missing_is_left_out() {
        assert_eq!(filled(Dialect::Postgres, "    :\"b\" text,"), None);
        let names = HashMap::from([("a", "a".to_owned())]);
        let template = "(\n:\"a\" int,\n:\"b\" text\n);";
        assert_eq!(Dialect::Postgres.fill(template, &names), "(\n\"a\" int\n);\n");
    }
}

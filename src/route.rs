//! Row and rules to a topic. Pure: knows neither the source's kind nor async.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::outbox::{Columns, OutboxRow, Role};

/// Most topics whose names are kept for reuse. An outbox has tens; a template over an id column
/// makes a new one for every row, and must not fill the memory.
const TOPICS_KEPT_MAX: usize = 4096;

/// A template over columns, such as `outbox.event.{aggregatetype}`.
///
/// `{id}`, `{aggregatetype}`, `{aggregateid}` and `{type}` are the columns of those roles,
/// whatever they are called in the table; any other name is a further column of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Column { role: Role, name: String },
}

/// A template that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// `{` without `}`, or `}` without `{`.
    #[error("template \"{template}\" has an unmatched brace at character {at}")]
    UnmatchedBrace {
        /// As written.
        template: String,
        /// Character, from 1.
        at: usize,
    },
    /// `{}` names no column.
    #[error("template \"{template}\" has a placeholder without a column name")]
    NoColumn {
        /// As written.
        template: String,
    },
    /// Nothing in it.
    #[error("a template must not be empty")]
    Empty,
}

impl Template {
    /// Reads a template, and maps the further columns that it names.
    ///
    /// # Errors
    /// Unmatched braces, an empty placeholder, an empty template.
    pub fn parse(template: &str, columns: &mut Columns) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = template;
        let unmatched = |rest: &str| TemplateError::UnmatchedBrace {
            template: template.into(),
            at: template.len() - rest.len() + 1,
        };
        while let Some(brace) = rest.find(['{', '}']) {
            let (literal, from_brace) = rest.split_at(brace);
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.into()));
            }
            let inside = from_brace.strip_prefix('{').ok_or_else(|| unmatched(from_brace))?;
            let (name, after) = inside.split_once('}').ok_or_else(|| unmatched(from_brace))?;
            if name.is_empty() {
                return Err(TemplateError::NoColumn { template: template.into() });
            }
            let role = match name {
                "id" => Role::Id,
                "aggregatetype" => Role::AggregateType,
                "aggregateid" => Role::AggregateId,
                "type" => Role::EventType,
                other => Role::Extra(columns.extra(other)),
            };
            parts.push(Part::Column { role, name: name.into() });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.into()));
        }
        if parts.is_empty() {
            return Err(TemplateError::Empty);
        }
        Ok(Self { parts })
    }

    fn render(&self, row: &OutboxRow, text: &mut String) -> Result<(), RouteError> {
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Column { role, name } => {
                    let value = value(row, *role)
                        .ok_or_else(|| RouteError::Null { column: name.clone() })?;
                    text.push_str(utf8(value, name)?);
                }
            }
        }
        Ok(())
    }
}

/// A row that has no topic. Not a matter of time: the row is what it is.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RouteError {
    /// NULL where the template needs a value.
    #[error("column \"{column}\" is NULL, and the topic template needs it")]
    Null {
        /// As the template names it.
        column: String,
    },
    /// Possible in a database whose encoding is SQL_ASCII.
    #[error("column \"{column}\" is not UTF-8 text, and the topic needs it")]
    NotText {
        /// As the template names it.
        column: String,
    },
    /// An empty topic column, or a template of nothing but empty columns.
    #[error("the row's topic is empty")]
    Empty,
}

/// Gives each row its topic, and each topic one shared name.
#[derive(Debug)]
pub struct Router {
    template: Template,
    /// Names by themselves: a topic is one allocation, not one a row.
    topics: HashSet<Arc<str>>,
    scratch: String,
}

impl Router {
    /// A router for one template.
    pub fn new(template: Template) -> Self {
        Self { template, topics: HashSet::new(), scratch: String::new() }
    }

    /// The row's own topic column where it has one, else the template's.
    ///
    /// # Errors
    /// The row cannot have a topic; never heals.
    pub fn topic(&mut self, row: &OutboxRow) -> Result<Arc<str>, RouteError> {
        self.scratch.clear();
        match &row.topic {
            Some(topic) => self.scratch.push_str(utf8(topic, "topic")?),
            None => self.template.render(row, &mut self.scratch)?,
        }
        if self.scratch.is_empty() {
            return Err(RouteError::Empty);
        }
        if let Some(topic) = self.topics.get(self.scratch.as_str()) {
            return Ok(Arc::clone(topic));
        }
        if self.topics.len() >= TOPICS_KEPT_MAX {
            self.topics.clear();
        }
        let topic: Arc<str> = self.scratch.as_str().into();
        self.topics.insert(Arc::clone(&topic));
        Ok(topic)
    }
}

fn value(row: &OutboxRow, role: Role) -> Option<&Bytes> {
    match role {
        Role::Id => row.id.as_ref(),
        Role::AggregateType => row.aggregate_type.as_ref(),
        Role::AggregateId => row.aggregate_id.as_ref(),
        Role::EventType => row.event_type.as_ref(),
        Role::Payload => row.payload.as_ref(),
        Role::Headers => row.headers.as_ref(),
        Role::Topic => row.topic.as_ref(),
        Role::CreatedAt => None,
        Role::Extra(index) => row.extra.get(index)?.as_ref(),
    }
}

fn utf8<'a>(value: &'a Bytes, column: &str) -> Result<&'a str, RouteError> {
    std::str::from_utf8(value).map_err(|_| RouteError::NotText { column: column.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Fingerprint, LogId, RowIdentity};

    fn row(aggregate_type: Option<&'static str>) -> OutboxRow {
        let identity =
            RowIdentity { log: LogId(1), transaction: 1, ordinal: 0, fingerprint: Fingerprint(0) };
        let mut row = OutboxRow::new(identity, 0);
        row.aggregate_type = aggregate_type.map(|text| Bytes::from_static(text.as_bytes()));
        row
    }

    fn router(template: &str) -> Router {
        Router::new(Template::parse(template, &mut Columns::debezium()).unwrap())
    }

    #[test]
    fn the_default_template_makes_debeziums_topic_and_keeps_its_case() {
        let topic = router("outbox.event.{aggregatetype}").topic(&row(Some("Order"))).unwrap();
        assert_eq!(&*topic, "outbox.event.Order");
    }

    #[test]
    fn rows_of_one_topic_share_its_name() {
        let mut router = router("{aggregatetype}");
        let first = router.topic(&row(Some("a"))).unwrap();
        let second = router.topic(&row(Some("a"))).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn a_topic_column_wins_over_the_template() {
        let mut row = row(Some("Order"));
        row.topic = Some(Bytes::from_static(b"own"));
        assert_eq!(&*router("{aggregatetype}").topic(&row).unwrap(), "own");
    }

    #[test]
    fn a_null_that_the_template_needs_is_named() {
        let error = router("x.{aggregatetype}").topic(&row(None)).unwrap_err();
        assert_eq!(error, RouteError::Null { column: "aggregatetype".into() });
    }

    #[test]
    fn endless_topics_do_not_fill_the_memory() {
        let mut router = router("{id}");
        for number in 0..3 * TOPICS_KEPT_MAX {
            let mut row = row(None);
            row.id = Some(Bytes::from(number.to_string()));
            router.topic(&row).unwrap();
        }
        assert!(router.topics.len() <= TOPICS_KEPT_MAX);
    }

    #[test]
    fn further_columns_are_mapped_by_their_name() {
        let mut columns = Columns::debezium();
        let template = Template::parse("{tenant}.{aggregatetype}", &mut columns).unwrap();
        let mut row = row(Some("Order"));
        row.extra = vec![Some(Bytes::from_static(b"acme"))];
        assert_eq!(&*Router::new(template).topic(&row).unwrap(), "acme.Order");
        assert_eq!(columns.extra_count(), 1);
    }

    #[test]
    fn templates_that_cannot_be_read_say_where() {
        let parse = |text| Template::parse(text, &mut Columns::debezium()).unwrap_err();
        assert_eq!(parse(""), TemplateError::Empty);
        assert!(matches!(parse("a{}"), TemplateError::NoColumn { .. }));
        assert!(matches!(parse("a{b"), TemplateError::UnmatchedBrace { at: 2, .. }));
        assert!(matches!(parse("ab}"), TemplateError::UnmatchedBrace { at: 3, .. }));
    }
}

//! From what was written to checked settings, before anything starts.
//!
//! One TOML file, `WALPOST_…` environment over it, flags over that ([`Values`]), checked into
//! [`Settings`]: plain data that every other module takes its part of. Knows no sockets; the
//! options of a sink are checked by [`crate::sink::open`]. What a source needs is in `source.rs`
//! and in the file of its database.

use std::time::Duration;

mod error;
mod keys;
mod mysql;
mod name;
mod postgres;
mod size;
mod source;
mod values;

pub use error::ConfigError;
pub use mysql::{Initial, MySqlSettings, POSITION_TABLE, PositionPlace};
pub use name::{
    QualifiedName, plain_identifier, plain_mysql_identifier, quote_identifier, quote_literal,
    quote_mysql_identifier, quote_mysql_literal,
};
pub use postgres::{MEMORY_TABLE, PostgresSettings, ValueFormat};
pub use source::SourceSettings;
pub use values::{Flag, Origin, Values};

use crate::outbox::{Columns, OutOfRange, Role};
pub use crate::relay::Order;
use crate::route::Template;
pub use crate::secret::{MASK, Secret, SecretError, SecretText, masked_url};
use crate::sink::SinkConfig;

/// All settings of a relay.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[source]`.
    pub source: SourceSettings,
    /// `[outbox]`.
    pub outbox: OutboxSettings,
    /// `[sink]`; its options are not checked yet.
    pub sink: SinkConfig,
    /// `[relay]`.
    pub relay: RelaySettings,
    /// `[log]`.
    pub log: LogSettings,
}

/// `[outbox]`: which column is what, and where a row goes.
#[derive(Debug, Clone)]
pub struct OutboxSettings {
    /// All mapped columns, with those of `extra_headers` and `partition`.
    pub columns: Columns,
    /// Template over columns.
    pub topic: String,
    /// Columns that become headers.
    pub extra_headers: Vec<ExtraHeader>,
    /// Column that holds the partition: index into [`crate::OutboxRow::extra`].
    pub partition: Option<usize>,
}

/// A column that becomes a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraHeader {
    /// Name of the header.
    pub name: String,
    /// Index into [`crate::OutboxRow::extra`].
    pub extra: usize,
}

/// What happens to a message that the broker will never take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReject {
    /// The relay stops with a definite error; the position stays before the row.
    Stop,
}

/// `[relay]`: bounds, order and patience.
#[derive(Debug, Clone)]
pub struct RelaySettings {
    /// For logs, metrics and the broker's list of clients; MySQL keeps the position under it.
    pub name: String,
    /// Which rows keep their order.
    pub order: Order,
    /// Several messages of one key in a batch also where the broker may store a later one
    /// without an earlier one.
    pub pipeline_keys: bool,
    /// Batches in the air at most.
    pub lanes: usize,
    /// Rows from the oldest unsettled one on, at most.
    pub rows_max: usize,
    /// Bytes of rows held, at most; a single larger row passes alone.
    pub bytes_max: usize,
    /// What happens to a rejected message.
    pub on_reject: OnReject,
    /// How long a missing topic may stay missing.
    pub topic_wait: Duration,
    /// How long refused credentials are retried while running.
    pub auth_wait: Duration,
    /// How long a stop waits for what is in the air, in whole seconds.
    pub drain_seconds_max: u64,
    /// First pause of the backoff.
    pub retry_first: Duration,
    /// Longest pause of the backoff.
    pub retry_max: Duration,
    /// Age of the oldest unsettled row that is worth a warning.
    pub stall_warning: Duration,
    /// Between two summary lines in the log.
    pub summary_interval: Duration,
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// How a line is written.
    pub format: LogFormat,
    /// Level, or `tracing` filter directives.
    pub level: String,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

const HOW_SINK: &str = "give --sink with a URL such as kafka://HOST:9092, amqp://HOST or \
                        nats://HOST, WALPOST_SINK_URL, or url in [sink] of the configuration file";
const GIB: u64 = 1 << 30;
const ANY: Duration = Duration::ZERO;

impl Values {
    /// Checks everything.
    ///
    /// # Errors
    /// The first setting that is missing or has a value that it cannot take.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let source = self.source()?;
        let outbox = self.outbox()?;
        let relay = self.relay(&source)?;
        let sink = self.sink(&relay)?;
        Ok(Settings { source, outbox, sink, relay, log: self.log()? })
    }

    /// Checks `[outbox]` alone.
    ///
    /// # Errors
    /// As [`Values::settings`].
    pub fn outbox(&self) -> Result<OutboxSettings, ConfigError> {
        match self.required_text("outbox.preset", "")?.as_str() {
            "debezium" => {}
            preset @ ("outboxer" | "transactional-outbox" | "eventuate") => {
                let problem = format!("the preset \"{preset}\" is not yet built; use debezium");
                return Err(self.refuse("outbox.preset", problem));
            }
            other => {
                let problem = format!("there is no preset \"{other}\"; use debezium");
                return Err(self.refuse("outbox.preset", problem));
            }
        }
        let mut columns = Columns::debezium();
        for (name, role) in [
            ("id", Role::Id),
            ("aggregate_type", Role::AggregateType),
            ("aggregate_id", Role::AggregateId),
            ("type", Role::EventType),
            ("payload", Role::Payload),
            ("headers", Role::Headers),
            ("topic", Role::Topic),
            ("created_at", Role::CreatedAt),
        ] {
            let key = format!("outbox.columns.{name}");
            if self.origin(&key) == Origin::Default {
                // The preset knows which of its columns a table may lack.
                continue;
            }
            match self.text(&key)?.as_deref() {
                Some("") if role == Role::Payload => {
                    return Err(self.refuse(&key, "a message needs a payload column"));
                }
                Some("") | None => columns.unmap(role),
                Some(column) => columns.map(role, column),
            }
        }
        columns.set_created_at_out_of_range(self.created_at_out_of_range()?);
        let mut extra_headers = Vec::new();
        for (name, column) in self.others(keys::HEADERS_SECTION) {
            let key = format!("{}.{name}", keys::HEADERS_SECTION);
            let role = match &*name {
                crate::HEADER_ID => Some(Role::Id),
                crate::HEADER_TYPE => Some(Role::EventType),
                crate::HEADER_IDENTITY => {
                    return Err(self.refuse(&key, "walpost writes this header itself"));
                }
                _ => None,
            };
            if role.is_some_and(|role| columns.iter().any(|column| column.role == role)) {
                let problem = format!(
                    "walpost writes this header from the column of outbox.columns.{name}; set \
                     that key to the column, or to \"\" and leave this one"
                );
                return Err(self.refuse(&key, problem));
            }
            match column.as_str() {
                Some(column) if !column.is_empty() => {
                    extra_headers.push(ExtraHeader { name, extra: columns.extra(column) })
                }
                Some(_) | None => return Err(self.refuse(&key, "must be the name of a column")),
            }
        }
        let topic = self.required_text("outbox.topic", "")?;
        // Maps the further columns that the template names, for the source to read them.
        Template::parse(&topic, &mut columns)
            .map_err(|problem| self.refuse("outbox.topic", problem.to_string()))?;
        let partition = self.text("outbox.partition")?.filter(|column| !column.is_empty());
        Ok(OutboxSettings {
            topic,
            extra_headers,
            partition: partition.map(|column| columns.extra(&column)),
            columns,
        })
    }

    fn created_at_out_of_range(&self) -> Result<OutOfRange, ConfigError> {
        const KEY: &str = "outbox.created_at_out_of_range";
        match self.required_text(KEY, "")?.as_str() {
            "stop" => Ok(OutOfRange::Stop),
            "commit-time" => Ok(OutOfRange::CommitTime),
            _ => Err(self.refuse(KEY, "must be stop or commit-time")),
        }
    }

    fn sink(&self, relay: &RelaySettings) -> Result<SinkConfig, ConfigError> {
        Ok(SinkConfig {
            url: self.required_secret("sink.url", HOW_SINK)?,
            options: self.others("sink").collect(),
            client_name: relay.name.clone(),
        })
    }

    fn relay(&self, source: &SourceSettings) -> Result<RelaySettings, ConfigError> {
        let count = |key: &str, range| {
            self.number(key, range).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
        };
        let order = match self.required_text("relay.order", "")?.as_str() {
            "key" => Order::Key,
            "destination" => Order::Destination,
            "all" => Order::All,
            _ => return Err(self.refuse("relay.order", "must be key, destination or all")),
        };
        let on_reject = match self.required_text("relay.on_reject", "")?.as_str() {
            "stop" => OnReject::Stop,
            "park" => {
                return Err(self.refuse("relay.on_reject", "\"park\" is not yet built; use stop"));
            }
            _ => return Err(self.refuse("relay.on_reject", "must be stop")),
        };
        let retry_first = self.duration("relay.retry_first", Duration::from_millis(1))?;
        Ok(RelaySettings {
            name: match source {
                SourceSettings::Postgres(source) => {
                    self.text("relay.name")?.unwrap_or_else(|| source.slot.clone())
                }
                SourceSettings::MySql(source) => source.name.clone(),
            },
            order,
            pipeline_keys: self.switch("relay.pipeline_keys")?,
            lanes: count("relay.lanes", 1..=1024)?,
            rows_max: count("relay.rows_max", 1..=16_777_216)?,
            bytes_max: self.size("relay.bytes_max", 65_536..=64 * GIB)?,
            on_reject,
            topic_wait: self.duration("relay.topic_wait", ANY)?,
            auth_wait: self.duration("relay.auth_wait", ANY)?,
            drain_seconds_max: self.number("relay.drain_seconds_max", 0..=86_400)?,
            retry_first,
            retry_max: self.duration("relay.retry_max", retry_first)?,
            stall_warning: self.duration("relay.stall_warning", Duration::from_secs(1))?,
            summary_interval: self.duration("relay.summary_interval", Duration::from_secs(1))?,
        })
    }

    /// Checks `[log]` alone.
    ///
    /// # Errors
    /// As [`Values::settings`].
    pub fn log(&self) -> Result<LogSettings, ConfigError> {
        let format = match self.required_text("log.format", "")?.as_str() {
            "human" => LogFormat::Human,
            "json" => LogFormat::Json,
            _ => return Err(self.refuse("log.format", "must be human or json")),
        };
        Ok(LogSettings { format, level: self.required_text("log.level", "")? })
    }
}

#[cfg(test)]
mod tests;

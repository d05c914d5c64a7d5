//! Every key that walpost itself knows, with its kind and default: the one list that reading,
//! checking, printing and "did you mean" share.
//!
//! `[sink]` has further keys that only the sink knows, and `[outbox.extra_headers]` has keys that
//! the user chooses. Some keys of `[source]` belong to one kind of database; where both have a
//! key with a default of its own, it stands here twice.

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    /// A URL or password; `<key>_file` names a file that holds it.
    Secret,
    Number,
    Switch,
    Duration,
    Size,
}

/// A kind of database, by what its settings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    Postgres,
    /// MariaDB too.
    MySql,
}

impl Database {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::MySql => "MySQL or MariaDB",
        }
    }
}

/// A key by its dotted path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) path: &'static str,
    /// The only kind of database that has it; `None` is any.
    pub(crate) only: Option<Database>,
    pub(crate) kind: Kind,
    /// As it would be written in the environment; `None` where it must be given, or where its
    /// absence means something.
    pub(crate) default: Option<&'static str>,
}

const fn key(path: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { path, only: None, kind, default: Some(default) }
}

const fn open(path: &'static str, kind: Kind) -> Key {
    Key { path, only: None, kind, default: None }
}

const fn of_postgres(key: Key) -> Key {
    Key { only: Some(Database::Postgres), ..key }
}

const fn of_mysql(key: Key) -> Key {
    Key { only: Some(Database::MySql), ..key }
}

impl Key {
    /// Whether a source of this kind has it.
    pub(crate) fn is_of(&self, database: Database) -> bool {
        self.only.is_none_or(|only| only == database)
    }
}

pub(crate) const KEYS: &[Key] = &[
    open("source.url", Kind::Secret),
    open("source.password", Kind::Secret),
    of_postgres(key("source.slot", Kind::Text, "walpost")),
    of_postgres(key("source.publication", Kind::Text, "walpost")),
    of_postgres(key("source.table", Kind::Text, "public.outbox")),
    of_mysql(key("source.table", Kind::Text, "outbox")),
    key("source.ack_interval", Kind::Duration, "100ms"),
    key("source.row_bytes_max", Kind::Size, "64MiB"),
    of_postgres(key("source.let_go_after", Kind::Duration, "30s")),
    of_postgres(open("source.former_name", Kind::Text)),
    of_postgres(key("source.format", Kind::Text, "binary")),
    of_postgres(open("source.memory_file", Kind::Text)),
    of_mysql(open("source.server_id", Kind::Number)),
    of_mysql(key("source.position", Kind::Secret, "source")),
    of_mysql(key("source.initial", Kind::Text, "publish")),
    of_mysql(open("source.initial_order", Kind::Text)),
    of_mysql(key("source.lease", Kind::Duration, "10s")),
    of_mysql(key("source.heartbeat", Kind::Duration, "5s")),
    of_mysql(key("source.payload_bytes_max", Kind::Size, "256MiB")),
    of_mysql(key("source.held_bytes_max", Kind::Size, "64MiB")),
    of_mysql(open("source.skip_transactions", Kind::Text)),
    key("outbox.preset", Kind::Text, "debezium"),
    key("outbox.topic", Kind::Text, "outbox.event.{aggregatetype}"),
    open("outbox.partition", Kind::Text),
    key("outbox.columns.id", Kind::Text, "id"),
    key("outbox.columns.aggregate_type", Kind::Text, "aggregatetype"),
    key("outbox.columns.aggregate_id", Kind::Text, "aggregateid"),
    key("outbox.columns.type", Kind::Text, "type"),
    key("outbox.columns.payload", Kind::Text, "payload"),
    key("outbox.columns.headers", Kind::Text, "headers"),
    key("outbox.columns.topic", Kind::Text, "topic"),
    key("outbox.columns.created_at", Kind::Text, "created_at"),
    key("outbox.created_at_out_of_range", Kind::Text, "stop"),
    open("sink.url", Kind::Secret),
    open("relay.name", Kind::Text),
    key("relay.order", Kind::Text, "key"),
    key("relay.pipeline_keys", Kind::Switch, "false"),
    key("relay.lanes", Kind::Number, "32"),
    key("relay.rows_max", Kind::Number, "16384"),
    key("relay.bytes_max", Kind::Size, "16MiB"),
    key("relay.on_reject", Kind::Text, "stop"),
    key("relay.topic_wait", Kind::Duration, "60s"),
    key("relay.auth_wait", Kind::Duration, "5m"),
    key("relay.drain_seconds_max", Kind::Number, "20"),
    key("relay.retry_first", Kind::Duration, "100ms"),
    key("relay.retry_max", Kind::Duration, "10s"),
    key("relay.stall_warning", Kind::Duration, "30s"),
    key("relay.summary_interval", Kind::Duration, "60s"),
    key("log.format", Kind::Text, "human"),
    key("log.level", Kind::Text, "info"),
];

/// Variables with the prefix that are not settings: the file's own path, and what only `init`
/// reads.
pub(crate) const OTHER_VARIABLES: [&str; 2] = ["WALPOST_CONFIG", "WALPOST_ROLE_PASSWORD"];

pub(crate) const HEADERS_SECTION: &str = "outbox.extra_headers";

/// Sections, for "did you mean".
pub(crate) const SECTIONS: [&str; 7] =
    ["source", "outbox", "outbox.columns", HEADERS_SECTION, "sink", "relay", "log"];

/// The key of this path, of whichever database: twins are of one kind and differ in the default.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The key of this path as `database` has it.
pub(crate) fn find_of(database: Database, path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path && key.is_of(database))
}

/// The secret that `path` names a file of: `source.url_file` is the file of `source.url`. Of the
/// sink's own options only those whose stem is a secret; a `ca_file` stays a path.
pub(crate) fn secret_of_file(path: &str) -> Option<&str> {
    let stem = path.strip_suffix("_file")?;
    let known = find(stem).is_some_and(|key| key.kind == Kind::Secret);
    let of_sink = stem.strip_prefix("sink.").is_some_and(crate::secret::is_secret);
    (known || of_sink).then_some(stem)
}

/// `source.ack_interval` is `WALPOST_SOURCE_ACK_INTERVAL`.
pub(crate) fn variable(path: &str) -> String {
    format!("WALPOST_{}", path.replace('.', "_").to_ascii_uppercase())
}

/// Whether Kubernetes made this variable: beside a Service called `walpost` or `walpost-…` every
/// container gets `WALPOST_SERVICE_HOST`, `WALPOST_PORT=tcp://…`, `WALPOST_PORT_80_TCP_ADDR` and
/// more, and they must not keep walpost from starting.
pub(crate) fn is_service_link(name: &str, value: &str) -> bool {
    let is_address = || ["tcp://", "udp://", "sctp://"].iter().any(|is| value.starts_with(is));
    let is_port = |rest: &str| {
        rest.starts_with(|first: char| first.is_ascii_digit())
            && ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| rest.contains(protocol))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_address())
        || name.split_once("_PORT_").is_some_and(|(_, rest)| is_port(rest))
}

/// The candidate that is the fewest typing mistakes away, where a few are enough.
pub(crate) fn nearest(written: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let name = written.rsplit('.').next().unwrap_or(written);
    let mistakes_max = (name.len() / 3).clamp(1, 4);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(written, &candidate), candidate))
        .filter(|(mistakes, _)| *mistakes <= mistakes_max)
        .min_by_key(|(mistakes, _)| *mistakes)
        .map(|(_, candidate)| candidate)
}

//! The `[sink]` table and URL of Kafka, checked and turned into librdkafka's properties.
//!
//! Owns every property that the promises rest on, and refuses those that would break them. Knows
//! no connection. No error of it holds a password.

use std::collections::BTreeMap;
use std::path::Path;

use percent_encoding::percent_decode_str;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use serde::Deserialize;
use toml::Value;

use crate::sink::{OpenError, SinkConfig};

/// Keys of `[sink]`, and of the URL's query.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Options {
    compression: Option<String>,
    partitioner: Option<String>,
    message_max_bytes: Option<usize>,
    timestamp: Timestamp,
    tls: Option<bool>,
    ca_file: Option<String>,
    certificate_file: Option<String>,
    key_file: Option<String>,
    sasl_mechanism: Option<String>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<String>,
    properties: BTreeMap<String, Value>,
}

/// Which time a record carries; a topic of `message.timestamp.type = LogAppendTime` takes neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub(super) enum Timestamp {
    /// The row's: its `created_at`, or the time of its commit.
    #[default]
    Row,
    /// That of publishing.
    Now,
}

/// What the sink works with.
pub(super) struct Settings {
    pub(super) client: ClientConfig,
    pub(super) message_bytes_max: Option<usize>,
    pub(super) timestamp: Timestamp,
    /// Whether a batch is smaller on the wire than its messages are together.
    pub(super) compresses: bool,
    pub(super) warnings: Vec<String>,
}

const COMPRESSIONS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const PARTITIONERS: [&str; 7] = [
    "murmur2_random",
    "murmur2",
    "consistent_random",
    "consistent",
    "fnv1a_random",
    "fnv1a",
    "random",
];
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Raw properties that are not for the operator, and why. A trailing `*` stands for any ending.
const RESERVED: [(&str, &str); 30] = [
    ("acks", DURABILITY),
    ("request.required.acks", DURABILITY),
    ("enable.idempotence", DURABILITY),
    ("enable.gapless.guarantee", DURABILITY),
    ("message.timeout.ms", DURABILITY),
    ("delivery.timeout.ms", DURABILITY),
    ("retries", DURABILITY),
    ("message.send.max.retries", DURABILITY),
    ("max.in.flight*", DURABILITY),
    ("transactional.id", DURABILITY),
    ("transaction.timeout.ms", DURABILITY),
    ("queuing.strategy", DURABILITY),
    ("delivery.report.only.error", DURABILITY),
    ("allow.auto.create.topics", "whether topics are made is the broker's setting"),
    ("batch.size", "walpost sets it from the topic's max.message.bytes"),
    ("batch.num.messages", "walpost sets it itself"),
    ("message.max.bytes", "write message_max_bytes instead"),
    ("bootstrap.servers", "the brokers stand in the URL"),
    ("metadata.broker.list", "the brokers stand in the URL"),
    ("client.id", "it is the relay's name"),
    ("partitioner", "write partitioner in [sink] instead"),
    ("compression.codec", "write compression instead"),
    ("compression.type", "write compression instead"),
    ("security.protocol", "write tls and sasl_mechanism instead"),
    ("sasl.mechanism*", "write sasl_mechanism instead"),
    ("sasl.username", "write username instead"),
    ("sasl.password", "write password or password_file instead"),
    ("plugin.library.paths", "walpost loads no foreign code"),
    ("log.queue", "walpost reads the client's log itself"),
    ("enabled_events", "walpost reads the client's events itself"),
];
const DURABILITY: &str = "walpost's promises of no loss and of order rest on it";

impl Settings {
    /// Checks URL and options. Reads the password file; connects to nothing.
    ///
    /// # Errors
    /// The key or the part of the URL that is wrong, never a password.
    pub(super) fn read(config: &SinkConfig) -> Result<Self, OpenError> {
        let mut table = config.options.clone();
        let hosts = merge_url(config.url.read()?.expose(), &mut table)?;
        let options = typed(config, table)?;
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", hosts).set("client.id", &config.client_name);
        set_promises(&mut client);
        let compression = choice("compression", options.compression.as_deref(), &COMPRESSIONS)?;
        client.set("compression.codec", compression);
        let partitioner = choice("partitioner", options.partitioner.as_deref(), &PARTITIONERS)?;
        client.set("partitioner", partitioner);
        let warnings = set_security(&mut client, &options)?;
        set_properties(&mut client, &options.properties)?;
        if options.message_max_bytes.is_some_and(|bytes| bytes < 1000) {
            return Err(wrong("message_max_bytes", "must be at least 1000"));
        }
        // Checks the whole for contradictions, without a client.
        client.create_native_config().map_err(|error| match error {
            KafkaError::ClientConfig(_, description, key, _) => wrong(&key, &description),
            error => wrong("properties", &error.to_string()),
        })?;
        Ok(Self {
            client,
            message_bytes_max: options.message_max_bytes,
            timestamp: options.timestamp,
            compresses: compression != COMPRESSIONS[0],
            warnings,
        })
    }
}

/// The properties that the sink's contract rests on, and the ones that make it quick.
fn set_promises(client: &mut ClientConfig) {
    client
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("max.in.flight.requests.per.connection", "5")
        // A message that can never be stored stops the producer instead of leaving a gap that
        // later messages pass.
        .set("enable.gapless.guarantee", "true")
        // librdkafka retries in order for ever; giving up on one message would be that gap.
        .set("message.timeout.ms", "0")
        // A lane's batch is what gathered meanwhile; waiting for more only adds latency.
        .set("linger.ms", "0")
        // Sizes are checked against the topic's own limit before a message is enqueued.
        .set("message.max.bytes", "1000000000")
        // Above what all lanes together can have in the air.
        .set("queue.buffering.max.messages", "200000")
        // A broker that comes back is found within a second, not within ten.
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        // A connection that has gone silent is left after half a minute. A broker has to answer
        // before that, also where its followers are slow: then it says so, and is asked again.
        .set("request.timeout.ms", "20000")
        .set("socket.timeout.ms", "30000")
        .set("socket.nagle.disable", "true");
}

/// Splits `kafka://[user[:password]@]host:port,host:port[?key=value&…]`; several hosts are no
/// URL of RFC 3986, so this is done by hand. Adds the query and the credentials to the table.
fn merge_url(url: &str, table: &mut toml::Table) -> Result<String, OpenError> {
    let rest = url.strip_prefix("kafka://").ok_or_else(|| wrong_url("must begin with kafka://"))?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (credentials, hosts) = match rest.rsplit_once('@') {
        Some((credentials, hosts)) => (Some(credentials), hosts),
        None => (None, rest),
    };
    let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
    if hosts.split(',').any(|host| host.is_empty() || host.starts_with(':')) {
        return Err(wrong_url(
            "names no host, or an empty one; write kafka://host1:9092,host2:9092",
        ));
    }
    if hosts.contains('/') {
        return Err(wrong_url("has a path; topics come from the rows, not from the URL"));
    }
    if let Some(credentials) = credentials {
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        insert(table, "username", Value::String(decoded("user", user)?))?;
        if !password.is_empty() {
            insert(table, "password", Value::String(decoded("password", password)?))?;
        }
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decoded(key, value)?;
        let value = match key {
            "tls" => value.parse().map(Value::Boolean).unwrap_or(Value::String(value)),
            "message_max_bytes" => {
                value.parse().map(Value::Integer).unwrap_or(Value::String(value))
            }
            _ => Value::String(value),
        };
        insert(table, key, value)?;
    }
    Ok(hosts.to_owned())
}

fn decoded(part: &str, text: &str) -> Result<String, OpenError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| wrong_url(&format!("has a {part} that is not UTF-8")))
}

fn insert(table: &mut toml::Table, key: &str, value: Value) -> Result<(), OpenError> {
    match table.insert(key.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(wrong(key, "stands both in the URL and in the table; keep one")),
    }
}

/// The table as [`Options`]. Key by key first, so that an error names its key, and so that it
/// never quotes a password that is no string.
fn typed(config: &SinkConfig, table: toml::Table) -> Result<Options, OpenError> {
    let read = |options| SinkConfig { options, ..config.clone() }.options::<Options>();
    for (key, value) in &table {
        let alone = toml::Table::from_iter([(key.clone(), value.clone())]);
        if let Err(OpenError::Option { problem }) = read(alone) {
            let secret = key == "password" && !value.is_str();
            return Err(wrong(key, if secret { "must be a string" } else { &problem }));
        }
    }
    read(table)
}

/// The first of `choices` is the default.
fn choice<'a>(key: &str, value: Option<&str>, choices: &[&'a str]) -> Result<&'a str, OpenError> {
    let value = value.unwrap_or(choices[0]);
    let found = choices.iter().find(|choice| choice.eq_ignore_ascii_case(value));
    found.copied().ok_or_else(|| wrong(key, &format!("must be one of {}", choices.join(", "))))
}

/// Returns warnings about what is permitted but unwise.
fn set_security(client: &mut ClientConfig, options: &Options) -> Result<Vec<String>, OpenError> {
    let files = [
        ("ca_file", "ssl.ca.location", &options.ca_file),
        ("certificate_file", "ssl.certificate.location", &options.certificate_file),
        ("key_file", "ssl.key.location", &options.key_file),
    ];
    let mut tls = options.tls.unwrap_or(false);
    for (key, property, path) in files {
        let Some(path) = path else { continue };
        if options.tls == Some(false) {
            return Err(wrong(key, "is of no use with tls = false"));
        }
        tls = true;
        std::fs::File::open(Path::new(path))
            .map_err(|error| wrong(key, &format!("could not open {path}: {error}")))?;
        client.set(property, path);
    }
    if options.certificate_file.is_some() != options.key_file.is_some() {
        return Err(wrong("certificate_file", "and key_file go together"));
    }
    let password = match (&options.password, &options.password_file) {
        (Some(_), Some(_)) => return Err(wrong("password_file", "or password, not both")),
        (Some(password), None) => Some(password.clone()),
        (None, Some(path)) => {
            let read = std::fs::read_to_string(path);
            let text = read.map_err(|error| {
                wrong("password_file", &format!("could not read {path}: {error}"))
            })?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        (None, None) => None,
    };
    let protocol = match (&options.username, password) {
        (Some(username), Some(password)) => {
            let mechanism =
                choice("sasl_mechanism", options.sasl_mechanism.as_deref(), &MECHANISMS)?;
            client.set("sasl.mechanism", mechanism);
            client.set("sasl.username", username).set("sasl.password", password);
            if tls { "sasl_ssl" } else { "sasl_plaintext" }
        }
        (Some(_), None) => return Err(wrong("username", "needs a password or password_file")),
        (None, Some(_)) => return Err(wrong("password", "needs a username")),
        (None, None) if options.sasl_mechanism.is_some() => {
            return Err(wrong("sasl_mechanism", "needs a username and a password"));
        }
        (None, None) if tls => "ssl",
        (None, None) => "plaintext",
    };
    client.set("security.protocol", protocol);
    let clear = protocol == "sasl_plaintext" && client.get("sasl.mechanism") == Some("PLAIN");
    let warning = "the Kafka password travels in clear text; set tls = true, or use SCRAM-SHA-512";
    Ok(if clear { vec![warning.to_owned()] } else { Vec::new() })
}

fn set_properties(
    client: &mut ClientConfig,
    properties: &BTreeMap<String, Value>,
) -> Result<(), OpenError> {
    for (key, value) in properties {
        let named = format!("properties.{key}");
        for (reserved, reason) in RESERVED {
            let hit = match reserved.strip_suffix('*') {
                Some(start) => key.starts_with(start),
                None => key == reserved,
            };
            if hit {
                return Err(wrong(&named, &format!("cannot be set: {reason}")));
            }
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(flag) => flag.to_string(),
            Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
                return Err(wrong(&named, "must be a string, a number or a boolean"));
            }
        };
        client.set(key, text);
    }
    Ok(())
}

fn wrong(key: &str, problem: &str) -> OpenError {
    OpenError::Option { problem: format!("\"{key}\": {problem}") }
}

fn wrong_url(problem: &str) -> OpenError {
    OpenError::Url { problem: problem.to_owned() }
}

#[cfg(test)]
mod tests;

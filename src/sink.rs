//! The contract of a sink: a batch in, one verdict a message out, each as soon as it is known.
//!
//! A sink owns one client library, its limits, and how the broker's answers become verdicts. It
//! knows nothing of outbox rows, tickets or retry counts.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::message::Message;
use crate::secret::{Secret, SecretError};

#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "nats")]
pub mod nats;
pub mod null;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
#[cfg(test)]
pub(crate) mod scripted;
pub mod stdout;
mod verdicts;

pub use verdicts::Verdicts;
pub(crate) use verdicts::{News, Told};

/// What became of one message. No `Default`: silence is never delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The broker has it, as durably as the broker promises anything.
    Confirmed,
    /// Not known, or known not to be there: it goes again, in order. Only given when the earlier
    /// attempt can no longer land out of order: a timed-out send still sits in the client, so the
    /// connection or producer goes first.
    Unknown(Cow<'static, str>),
    /// Not stored: its topic, exchange, queue or stream does not exist, and may be made in a
    /// while. Retried for `topic_wait`, then as `Rejected`. Names the object.
    Absent(String),
    /// Not stored, and it never will be: too large, not authorised for this topic. Names the
    /// object, the limit and the remedy. A size that the broker judges for a whole batch is
    /// `Rejected` only after the message failed alone.
    Rejected(String),
}

/// Which messages a broker keeps in order by itself: of two that it orders, the later one is
/// stored only behind the earlier one, also where that one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// None: what fails stops nothing behind it. A batch holds one message of each order domain.
    Nothing,
    /// Those of one key, topic and explicit partition (Kafka: a partition is idempotent and
    /// gapless, and knows nothing of any other).
    KeyAndTopic,
    /// All that it takes: nothing is stored behind a message that failed.
    Whole,
}

impl Ordering {
    /// Whether it orders these two.
    pub fn includes(self, earlier: &Message, later: &Message) -> bool {
        match self {
            Ordering::Nothing => false,
            Ordering::KeyAndTopic => {
                earlier.key.is_some()
                    && earlier.key == later.key
                    && earlier.topic == later.topic
                    && earlier.partition == later.partition
            }
            Ordering::Whole => true,
        }
    }
}

/// What a sink can take at once, and which order it keeps by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most messages in one call of `deliver`.
    pub batch_messages_max: usize,
    /// Most bytes ([`Message::size_bytes`]) in one call; a single larger message goes alone.
    pub batch_bytes_max: usize,
    /// Most lanes that may call `deliver` side by side.
    pub lanes_max: usize,
    /// What the broker orders by. A batch holds several messages of one order domain only where
    /// it keeps them in order.
    pub ordering: Ordering,
    /// After so long a lane no longer waits for all verdicts of its batch before it sends the
    /// next one beside it: one slow destination holds up its own rows and no others. All batches
    /// of a lane together stay within the bounds of one. `None`: a lane has one batch in the air.
    pub stuck_after: Option<Duration>,
}

/// A broker.
///
/// A sink that needs one owner for its connection or producer keeps that task inside; lanes call
/// `deliver` side by side. Made without a connection: it connects at the first call, and again
/// after each loss of it.
pub trait Sink: Send + Sync {
    /// Limits, known without a connection.
    fn limits(&self) -> Limits;

    /// Connects and looks whether messages can be durable there. Answers within some seconds.
    /// Returns warnings for the operator, one sentence each (replication factor 1, memory
    /// stream).
    ///
    /// # Errors
    /// Transient: not reachable. Denied: credentials. Definite: cannot ever work as configured.
    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>>;

    /// Looks at the destinations whose names begin so, where it can, before a row goes there; for
    /// `walpost check`. Returns warnings as [`Sink::probe`] does.
    ///
    /// # Errors
    /// As [`Sink::probe`].
    fn examine<'a>(&'a self, _prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, Failure>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Publishes, and waits for the broker's confirm: one verdict a message, each given as soon as
    /// it is known. Ends by itself: a broker that answers nothing makes it `Unknown` in bounded
    /// time, unless the client library itself retries in order for ever (Kafka); then
    /// [`Verdicts::waiting`] gives the reason every few seconds.
    ///
    /// # Errors
    /// The sink as a whole does not work: as [`Verdict::Unknown`] for all messages without a
    /// verdict, and nothing else is delivered before the next attempt. Denied where credentials
    /// were refused.
    ///
    /// # Cancel safety
    /// A dropped call leaves its messages in an unknown state: they may land later.
    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>>;

    /// As [`Sink::deliver`], with the verdicts together at the end, in the order of the batch.
    ///
    /// # Errors
    /// As [`Sink::deliver`].
    fn deliver_all<'a>(
        &'a self,
        batch: &'a [Message],
    ) -> BoxFuture<'a, Result<Vec<Verdict>, Failure>> {
        Box::pin(async move {
            let news = News::default();
            let verdicts = news.verdicts();
            self.deliver(batch, &verdicts).await?;
            Ok(verdicts::in_order(&news, batch.len()))
        })
    }

    /// Whether the broker stores `later`, a message of the same batch, only behind `earlier`; more
    /// than [`Limits::ordering`] says where the sink knows more (a topic of one partition).
    fn keeps_order(&self, earlier: &Message, later: &Message) -> bool {
        self.limits().ordering.includes(earlier, later)
    }

    /// Lets go of the connection, after the last `deliver` has returned.
    ///
    /// # Errors
    /// Worth a line in the log; everything confirmed stays confirmed.
    fn close(&self) -> BoxFuture<'_, Result<(), Failure>>;
}

/// The `[sink]` table: a URL whose scheme chooses the sink, and that sink's own options.
#[derive(Clone)]
pub struct SinkConfig {
    /// Text or file; may carry a password. A sink connects to the hosts that it names at the
    /// start, with the user and password that it holds at each login.
    pub url: Secret,
    /// Every other key of the table; the sink checks them.
    pub options: toml::Table,
    /// The relay's name, for the broker's list of clients.
    pub client_name: String,
}

impl fmt::Debug for SinkConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SinkConfig").field("client_name", &self.client_name).finish()
    }
}

impl SinkConfig {
    /// The options as the sink's own type, which denies unknown fields.
    ///
    /// # Errors
    /// An unknown key or a value of the wrong type, named.
    pub fn options<T: DeserializeOwned>(&self) -> Result<T, OpenError> {
        let options = toml::Value::Table(self.options.clone());
        options.try_into().map_err(|error: toml::de::Error| OpenError::Option {
            problem: error.message().trim().to_owned(),
        })
    }
}

/// A secret of `[sink]` that was given as the option `key` or as the file `{key}_file`, which must
/// be readable.
///
/// # Errors
/// Both were given, or the file cannot be read.
pub(crate) fn secret_option(
    key: &str,
    text: Option<String>,
    file: Option<PathBuf>,
) -> Result<Option<Secret>, OpenError> {
    match (text, file) {
        (Some(_), Some(_)) => Err(OpenError::Option {
            problem: format!("\"{key}\" and \"{key}_file\" exclude each other; give one"),
        }),
        (Some(text), None) => Ok(Some(Secret::new(text))),
        (None, Some(file)) => Ok(Some(Secret::file(file)?)),
        (None, None) => Ok(None),
    }
}

/// A file that an option of `[sink]` names and that is read at each connect, such as a
/// certificate: it must be readable at the start already.
///
/// # Errors
/// It cannot be opened.
pub(crate) fn readable(key: &str, file: Option<PathBuf>) -> Result<Option<PathBuf>, OpenError> {
    if let Some(path) = &file {
        std::fs::File::open(path).map_err(|error| OpenError::Option {
            problem: format!("\"{key}\": could not open {}: {error}", path.display()),
        })?;
    }
    Ok(file)
}

/// The `[sink]` table cannot be used; a matter of configuration, before anything connects.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No sink has this scheme.
    #[error("no sink has the scheme \"{scheme}\"; there are {}", SCHEMES.join(", "))]
    UnknownScheme {
        /// As written, without the rest of the URL.
        scheme: String,
    },
    /// The sink exists, but this binary was built without it.
    #[error(
        "this walpost was built without the sink \"{scheme}\"; build it with --features {feature}"
    )]
    NotBuilt {
        /// Scheme of the URL.
        scheme: &'static str,
        /// Cargo feature to build with.
        feature: &'static str,
    },
    /// The URL lacks a part or has one too many. Never holds the URL itself.
    #[error("the sink's URL {problem}")]
    Url {
        /// What is wrong with it, with an example of a right one.
        problem: String,
    },
    /// A file with a secret that cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A key of `[sink]` that the sink does not know, or a value that it cannot use.
    #[error("in [sink]: {problem}")]
    Option {
        /// Names the key.
        problem: String,
    },
}

const SCHEMES: [&str; 7] = ["kafka", "amqp", "amqps", "nats", "tls", "stdout", "null"];

/// Makes the sink that the URL's scheme names, without connecting.
///
/// # Errors
/// What is wrong with the `[sink]` table.
pub fn open(config: &SinkConfig) -> Result<Arc<dyn Sink>, OpenError> {
    let url = config.url.read()?;
    let url = url.expose();
    let scheme = url.split(':').next().unwrap_or_default();
    if !url.contains("://") && !matches!(scheme, "stdout" | "null") {
        let problem = "needs a scheme, such as kafka://HOST:9092, amqp://HOST or nats://HOST";
        return Err(OpenError::Url { problem: problem.to_owned() });
    }
    match scheme {
        #[cfg(feature = "kafka")]
        "kafka" => Ok(Arc::new(kafka::KafkaSink::open(config)?)),
        #[cfg(not(feature = "kafka"))]
        "kafka" => Err(OpenError::NotBuilt { scheme: "kafka", feature: "kafka" }),
        #[cfg(feature = "rabbitmq")]
        "amqp" | "amqps" => Ok(Arc::new(rabbitmq::RabbitMqSink::open(config)?)),
        #[cfg(not(feature = "rabbitmq"))]
        "amqp" | "amqps" => Err(OpenError::NotBuilt { scheme: "amqp", feature: "rabbitmq" }),
        #[cfg(feature = "nats")]
        "nats" | "tls" => Ok(Arc::new(nats::NatsSink::open(config)?)),
        #[cfg(not(feature = "nats"))]
        "nats" | "tls" => Err(OpenError::NotBuilt { scheme: "nats", feature: "nats" }),
        "stdout" => Ok(Arc::new(stdout::StdoutSink::open(config)?)),
        "null" => Ok(Arc::new(null::NullSink::open(config)?)),
        other => Err(OpenError::UnknownScheme { scheme: other.to_owned() }),
    }
}

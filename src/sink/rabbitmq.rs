//! RabbitMQ over AMQP 0-9-1: publisher confirms, `mandatory`, persistent messages.
//!
//! Owns the options, the two calls of lanes and the task behind them; may not know rows or
//! tickets. Lanes make envelopes side by side; one task owns connection and channel.
//!
//! ```text
//! deliver ─▶ envelope ─▶ ┐                         ┌─▶ link       sure to be gone at its end
//! deliver ─▶ envelope ─▶ ├─▶ publisher ─▶ session ─┼─▶ confirms   returns and acks to verdicts
//! deliver ─▶ envelope ─▶ ┘                         └─▶ exchanges  is there such an exchange?
//! ```
//!
//! lapin logs a returned message with its payload (target `lapin::returned_messages`, level
//! warn): the daemon's log filter must leave that target out.

mod confirms;
mod envelope;
mod exchanges;
mod link;
mod publisher;
mod session;
mod target;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::envelope::{Envelopes, Template};
use self::link::Link;
use self::publisher::{Job, Publisher};
use self::target::{Login, Target};
use super::{
    Limits, OpenError, Ordering, Sink, SinkConfig, Verdict, Verdicts, readable, secret_option,
};
use crate::duration;
use crate::failure::{Failure, FailureKind};
use crate::message::Message;

/// Lanes that may call side by side, and so the batches that can wait for the publishing task.
const LANES_MAX: usize = 32;
/// How long [`Sink::close`] waits for the publishing task; a link needs 7 s to end at worst.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Keys of `[sink]` for `amqp://user:password@host:port/vhost` and `amqps://…`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    /// Exchange, a template over `{topic}` and `{key}`; empty is the default exchange, whose
    /// routing key is the name of a queue.
    exchange: String,
    /// Routing key, a template too.
    routing_key: String,
    /// Without a confirm for so long the connection is given up; `"30s"`.
    confirm_timeout: String,
    /// Who logs in, where the URL does not say it.
    user: Option<String>,
    password: Option<String>,
    /// Read at each login.
    password_file: Option<PathBuf>,
    /// Certificates (PEM) to trust beside those of the system; read at each connect.
    ca_file: Option<PathBuf>,
    /// Property `content_type`; empty leaves it out. The payload is untouched whatever it says.
    content_type: String,
    /// Heartbeat to agree on with the broker, whole seconds; `"20s"`, `"0"` for none.
    heartbeat: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            exchange: "{topic}".into(),
            routing_key: "{key}".into(),
            confirm_timeout: "30s".into(),
            user: None,
            password: None,
            password_file: None,
            ca_file: None,
            content_type: "application/json".into(),
            heartbeat: "20s".into(),
        }
    }
}

fn duration(key: &str, text: &str) -> Result<Duration, OpenError> {
    duration::parse(text)
        .map_err(|problem| OpenError::Option { problem: format!("{key}: {problem}") })
}

/// Sink for RabbitMQ queues behind exchanges.
pub struct RabbitMqSink {
    target: Arc<Target>,
    envelopes: Envelopes,
    confirm_timeout: Duration,
    /// Exchange that every message goes to, where the option names one.
    exchange_fixed: Option<String>,
    /// Started by the first call, since the sink is made before there is a runtime.
    publishing: Mutex<Option<Publishing>>,
}

struct Publishing {
    jobs: mpsc::Sender<Job>,
    task: JoinHandle<()>,
}

impl RabbitMqSink {
    /// Makes the sink from its `[sink]` table.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &SinkConfig) -> Result<Self, OpenError> {
        let options: Options = config.options()?;
        let exchange = Template::parse("exchange", &options.exchange)?;
        let routing_key = Template::parse("routing_key", &options.routing_key)?;
        let confirm_timeout = duration("confirm_timeout", &options.confirm_timeout)?;
        if confirm_timeout.is_zero() {
            let problem = "confirm_timeout: it must be longer than 0".to_owned();
            return Err(OpenError::Option { problem });
        }
        let heartbeat = duration("heartbeat", &options.heartbeat)?;
        let login = Login {
            user: options.user,
            password: secret_option("password", options.password, options.password_file)?,
        };
        let ca_file = readable("ca_file", options.ca_file)?;
        let target = Target::new(&config.url, login, heartbeat, ca_file, &config.client_name)?;
        let exchange_fixed = exchange.fixed().map(str::to_owned);
        let content_type = &options.content_type;
        Ok(Self {
            target: Arc::new(target),
            envelopes: Envelopes::new(exchange, routing_key, content_type, &config.client_name)?,
            confirm_timeout,
            exchange_fixed,
            publishing: Mutex::new(None),
        })
    }

    /// The way to the publishing task, which is started where there is none.
    fn jobs(&self) -> mpsc::Sender<Job> {
        let mut publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let publishing = publishing.get_or_insert_with(|| {
            let (jobs, receiver) = mpsc::channel(LANES_MAX);
            let publisher = Publisher::new(self.target.clone(), self.confirm_timeout, receiver);
            Publishing { jobs, task: tokio::spawn(publisher.run()) }
        });
        publishing.jobs.clone()
    }

    async fn publish(&self, batch: &[Message]) -> Result<Vec<Verdict>, Failure> {
        let mut verdicts = Vec::with_capacity(batch.len());
        let mut envelopes = Vec::with_capacity(batch.len());
        for message in batch {
            match self.envelopes.wrap(message) {
                Ok(envelope) => {
                    verdicts.push(None);
                    envelopes.push(envelope);
                }
                Err(reason) => verdicts.push(Some(Verdict::Rejected(reason))),
            }
        }
        let mut published = Vec::new();
        if !envelopes.is_empty() {
            let (reply, answer) = oneshot::channel();
            let gone = || Failure::definite("the task that publishes to RabbitMQ has ended");
            self.jobs().send(Job { envelopes, reply }).await.map_err(|_| gone())?;
            published = answer.await.map_err(|_| gone())??;
        }
        let mut published = published.into_iter();
        let settled = verdicts.into_iter().map(|verdict| {
            verdict.or_else(|| published.next()).expect("the task gives one verdict an envelope")
        });
        Ok(settled.collect())
    }

    async fn look(&self) -> Result<Vec<String>, Failure> {
        let link = Link::connect(&self.target).await?;
        let mut warnings = Vec::new();
        let mut unanswered = None;
        if let Some(exchange) = self.exchange_fixed.as_deref().filter(|name| !name.is_empty()) {
            let names = vec![exchange.to_owned()];
            let looking = exchanges::look(link.connection(), None, names);
            match tokio::time::timeout(link::CONNECT_TIMEOUT, looking).await {
                Ok(Ok(looked)) => warnings.extend(looked.missing.into_values()),
                Ok(Err(error)) => unanswered = Some(error.to_string()),
                Err(_) => unanswered = Some("no answer".to_owned()),
            }
        }
        link.end().await;
        match unanswered {
            None => Ok(warnings),
            Some(problem) => {
                Err(Failure::transient(format!("could not look for the exchange: {problem}")))
            }
        }
    }
}

impl Sink for RabbitMqSink {
    fn limits(&self) -> Limits {
        Limits {
            batch_messages_max: 256,
            batch_bytes_max: 1 << 20,
            lanes_max: LANES_MAX,
            // A nack or a return stops nothing that was published after it.
            ordering: Ordering::Nothing,
            stuck_after: None,
        }
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(self.look())
    }

    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let known = self.publish(batch).await?;
            verdicts.give_each(known.into_iter().enumerate());
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        let publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            let Some(Publishing { jobs, mut task }) = publishing else { return Ok(()) };
            // Without a sender the task settles what it has and lets go of its link.
            drop(jobs);
            match tokio::time::timeout(CLOSE_TIMEOUT, &mut task).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(Failure::new(FailureKind::Definite, error)),
                Err(_) => {
                    task.abort();
                    Err(Failure::transient("RabbitMQ did not let go of the connection in time"))
                }
            }
        })
    }
}

impl Drop for RabbitMqSink {
    fn drop(&mut self) {
        let publishing = self.publishing.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(publishing) = publishing.take() {
            publishing.task.abort();
        }
    }
}

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
mod management;
mod naming;
mod pauses;
mod publisher;
mod session;
mod target;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapin::uri::AMQPUri;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::envelope::{CopyHeaders, Envelope, Envelopes, Template};
use self::link::Link;
use self::management::{Concern, Management};
use self::naming::Naming;
use self::pauses::{Leave, Pauses, Route};
use self::publisher::{Job, Publisher, Reply};
use self::session::{Rules, STUCK_AFTER};
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
    /// Heartbeat to agree on with the broker, whole seconds; a connection that is silent for two
    /// of them is given up. `"20s"`; `"0"` leaves it to the broker.
    heartbeat: String,
    /// What becomes of a row's header `CC` or `BCC`.
    copy_headers: CopyHeaders,
    /// Longest pause between attempts that the broker refuses; `"30s"`.
    nack_pause_max: String,
    /// A row that was refused for so long is rejected; without it, never.
    nack_wait: Option<String>,
    /// Where the start and `check` ask about queues; `"http://host:15672"`.
    management_url: Option<String>,
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
            copy_headers: CopyHeaders::Reject,
            nack_pause_max: "30s".into(),
            nack_wait: None,
            management_url: None,
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
    rules: Arc<Rules>,
    /// Exchange that every message goes to, where the option names one.
    exchange_fixed: Option<String>,
    /// Likewise the routing key.
    routing_key_fixed: Option<String>,
    management: Option<Management>,
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
        let nack_pause_max = duration("nack_pause_max", &options.nack_pause_max)?;
        let nack_wait = options.nack_wait.as_deref();
        let nack_wait = nack_wait.map(|text| duration("nack_wait", text)).transpose()?;
        let heartbeat = duration("heartbeat", &options.heartbeat)?;
        let pauses = Mutex::new(Pauses::new(nack_pause_max, confirm_timeout, nack_wait));
        let naming = Naming::new(&exchange, &routing_key);
        let login = Login {
            user: options.user,
            password: secret_option("password", options.password, options.password_file)?,
        };
        let ca_file = readable("ca_file", options.ca_file)?;
        let target = Target::new(&config.url, login, heartbeat, ca_file, &config.client_name)?;
        let exchange_fixed = exchange.fixed().map(str::to_owned);
        let routing_key_fixed = routing_key.fixed().map(str::to_owned);
        let management = options.management_url.as_deref().map(Management::new).transpose()?;
        let content_type = &options.content_type;
        Ok(Self {
            target: Arc::new(target),
            envelopes: Envelopes::new(
                exchange,
                routing_key,
                content_type,
                &config.client_name,
                options.copy_headers,
            )?,
            rules: Arc::new(Rules { confirm_timeout, naming, pauses }),
            exchange_fixed,
            routing_key_fixed,
            management,
            publishing: Mutex::new(None),
        })
    }

    /// The way to the publishing task, which is started where there is none.
    fn jobs(&self) -> mpsc::Sender<Job> {
        let mut publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let publishing = publishing.get_or_insert_with(|| {
            let (jobs, receiver) = mpsc::channel(LANES_MAX);
            let publisher = Publisher::new(self.target.clone(), self.rules.clone(), receiver);
            Publishing { jobs, task: tokio::spawn(publisher.run()) }
        });
        publishing.jobs.clone()
    }

    async fn publish(&self, batch: &[Message], verdicts: &Verdicts) -> Result<(), Failure> {
        // Where the envelopes' messages stand in the batch.
        let mut numbers = Vec::with_capacity(batch.len());
        let mut envelopes = Vec::with_capacity(batch.len());
        for (number, message) in batch.iter().enumerate() {
            match self.envelopes.wrap(message) {
                Ok(envelope) => match self.held(&envelope) {
                    None => {
                        numbers.push(number);
                        envelopes.push(envelope);
                    }
                    Some(held) => verdicts.give(number, held),
                },
                Err(reason) => verdicts.give(number, Verdict::Rejected(reason)),
            }
        }
        if envelopes.is_empty() {
            return Ok(());
        }
        let (early, mut some) = mpsc::channel(1);
        let (all, mut answer) = oneshot::channel();
        let reply = Reply { early, all };
        let gone = || Failure::definite("the task that publishes to RabbitMQ has ended");
        self.jobs().send(Job { envelopes, reply }).await.map_err(|_| gone())?;
        let mut given = vec![false; numbers.len()];
        let published = loop {
            // Early ones first: they were said before. Both are cancel safe.
            tokio::select! { biased;
                Some(known) = some.recv() => {
                    for (index, verdict) in known {
                        given[index] = true;
                        verdicts.give(numbers[index], verdict);
                    }
                }
                published = &mut answer => break published.map_err(|_| gone())??,
            }
        };
        assert_eq!(published.len(), numbers.len(), "the task gives one verdict an envelope");
        let late = published.into_iter().enumerate().filter(|(index, _)| !given[*index]);
        verdicts.give_each(late.map(|(index, verdict)| (numbers[index], verdict)));
        Ok(())
    }

    /// The verdict of a message that is not sent now, since the broker refused its like.
    fn held(&self, envelope: &Envelope) -> Option<Verdict> {
        let (exchange, routing_key) = (envelope.exchange.as_str(), envelope.routing_key.as_str());
        let route = Route::new(exchange, routing_key);
        let leave = self.rules.pauses().leave(route, std::time::Instant::now());
        match leave {
            Leave::Go => None,
            Leave::Wait(left) => {
                let exchange = self.rules.naming.exchange(exchange, routing_key);
                Some(Verdict::Unknown(
                    format!("{exchange} refuses rows (nack); the next attempt is in {left:.0?}")
                        .into(),
                ))
            }
            Leave::Over(lasted) => {
                let exchange = self.rules.naming.exchange(exchange, routing_key);
                Some(Verdict::Rejected(format!(
                    "{exchange} has refused rows (nack) for {lasted:.0?}, longer than \
                     sink.nack_wait: a queue that is bound to it is full (x-overflow = \
                     reject-publish) or has no leader; empty it, or raise its limit"
                )))
            }
        }
    }

    async fn look(&self) -> Result<Vec<String>, Failure> {
        let link = Link::connect(&self.target).await?;
        let mut warnings = Vec::new();
        let mut unanswered = None;
        if let Some(exchange) = self.exchange_fixed.as_deref().filter(|name| !name.is_empty()) {
            let names = vec![exchange.to_owned()];
            let looking = exchanges::look(link.connection(), None, names);
            match tokio::time::timeout(link::CONNECT_TIMEOUT, looking).await {
                Ok(Ok(looked)) => {
                    let missing = looked.missing.into_iter();
                    warnings.extend(
                        missing.map(|name| {
                            format!("the exchange \"{name}\" does not exist; declare it")
                        }),
                    );
                }
                Ok(Err(error)) => unanswered = Some(error.to_string()),
                Err(_) => unanswered = Some("no answer".to_owned()),
            }
        }
        link.end().await;
        if let Some(management) = &self.management {
            let AMQPUri { authority, vhost, .. } = self.target.access()?.uri;
            let concern = match (self.exchange_fixed.as_deref(), self.routing_key_fixed.as_deref())
            {
                (Some(""), Some(queue)) => Concern::Queue(queue),
                (Some("") | None, _) => Concern::All,
                (Some(exchange), _) => Concern::Exchange(exchange),
            };
            warnings.extend(management.warnings(&authority.userinfo, &vhost, concern).await);
        }
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
            stuck_after: Some(STUCK_AFTER),
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
        Box::pin(self.publish(batch, verdicts))
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

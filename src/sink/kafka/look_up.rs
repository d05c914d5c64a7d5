//! Asks the cluster about topics: whether they exist, and how they are set.
//!
//! Each answer counts for itself: a topic that none came for holds up nobody else's rows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResourceResult, ResourceSpecifier};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::FromClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::oneshot;

use super::producer::{Generation, Producers};
use super::settings::TopicSettings;

/// Longest wait for the cluster's answer about topics.
const LOOK_UP_MAX: Duration = Duration::from_secs(10);
/// Longest wait for topics' settings: without them the broker judges what it is sent.
const DESCRIBE_MAX: Duration = Duration::from_secs(2);
/// So many topics at once are asked for by the list of all, which is one round trip.
const TOPICS_MANY: usize = 8;
/// How long a topic that is just being made holds up the look-up of others.
const BEING_MADE_MAX: Duration = Duration::from_millis(500);

/// The cluster's answer about one topic.
pub(super) enum Answer {
    Exists { partitions: usize, replicas_min: usize, settings: Result<TopicSettings, Untold> },
    Missing,
    Refused(RDKafkaErrorCode),
    None,
}

/// Why a topic's settings are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Untold {
    /// The right to read them is missing.
    Denied,
    Unanswered,
}

pub(super) type Answers = Vec<(Arc<str>, Answer)>;

/// Asks for metadata through the producer and for the settings through a client of its own, both
/// at once. The latter is made for each look-up: nobody would read its log between them.
pub(super) async fn ask(
    generation: Arc<Generation>,
    producers: &Producers,
    names: Vec<Arc<str>>,
) -> (Answers, Option<KafkaError>) {
    let config = producers.config();
    let runtime = tokio::runtime::Handle::current();
    let (reply, answers) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let admin: KafkaResult<AdminClient<_>> = AdminClient::from_config(&config);
        let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(DESCRIBE_MAX));
        // Sent here; awaited below, after the metadata.
        let settings =
            admin.as_ref().ok().map(|admin| admin.describe_configs(&resources, &options));
        let (mut found, error) = metadata(&generation, &names);
        let exists = |(_, answer): &(Arc<str>, Answer)| matches!(answer, Answer::Exists { .. });
        if let (true, Some(settings)) = (found.iter().any(exists), settings) {
            fill_settings(&mut found, runtime.block_on(settings));
        }
        // Nobody may be waiting any more; the cluster was asked in vain then.
        drop(reply.send((found, error)));
        // Its thread takes up to 100 ms to end, and nobody needs to wait for that.
        drop(admin);
    });
    answers.await.unwrap_or_else(|_| (Vec::new(), Some(KafkaError::Canceled)))
}

fn metadata(generation: &Generation, names: &[Arc<str>]) -> (Answers, Option<KafkaError>) {
    let deadline = Instant::now() + LOOK_UP_MAX;
    let Some(producer) = generation.live() else {
        let none = names.iter().map(|name| (Arc::clone(name), Answer::None));
        return (none.collect(), Some(KafkaError::Canceled));
    };
    let client = producer.client();
    let mut listed: HashMap<String, Answer> = HashMap::new();
    // Answers about each alone follow where the list is silent: it leaves out what we may not see.
    if names.len() > TOPICS_MANY
        && let Ok(all) = client.fetch_metadata(None, LOOK_UP_MAX / 2)
    {
        let topics = all.topics().iter().filter(|topic| topic.error().is_none());
        listed.extend(topics.map(|topic| (topic.name().to_owned(), exists(topic))));
    }
    let (mut answers, mut failed) = (Vec::with_capacity(names.len()), None);
    for name in names {
        let answer = match (listed.remove(&**name), &failed) {
            (Some(answer), _) => answer,
            // What was not answered for one is not answered for the next either.
            (None, Some(_)) => Answer::None,
            (None, None) => match topic_metadata(client, name, deadline) {
                Ok(answer) => answer,
                Err(error) => {
                    failed = Some(error);
                    Answer::None
                }
            },
        };
        answers.push((Arc::clone(name), answer));
    }
    (answers, failed)
}

fn exists(topic: &MetadataTopic) -> Answer {
    let replicas = topic.partitions().iter().map(|partition| partition.replicas().len());
    Answer::Exists {
        partitions: topic.partitions().len(),
        replicas_min: replicas.min().unwrap_or(0),
        settings: Err(Untold::Unanswered),
    }
}

fn topic_metadata<C: ClientContext>(
    client: &Client<C>,
    name: &str,
    deadline: Instant,
) -> KafkaResult<Answer> {
    let made_by = Instant::now() + BEING_MADE_MAX;
    loop {
        let wait = deadline.saturating_duration_since(Instant::now());
        let metadata = match client.fetch_metadata(Some(name), wait) {
            Err(KafkaError::Nul(_)) => return Ok(Answer::Refused(RDKafkaErrorCode::InvalidTopic)),
            metadata => metadata?,
        };
        let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else {
            return Ok(Answer::Missing);
        };
        return Ok(match topic.error().map(RDKafkaErrorCode::from) {
            None => exists(topic),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Answer::Missing
            }
            Some(
                code
                @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic),
            ) => Answer::Refused(code),
            // Just being made: its leader is not chosen yet.
            Some(_) if Instant::now() < made_by => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            Some(_) => Answer::None,
        });
    }
}

/// Where describing is not permitted or not supported, the settings stay unknown.
fn fill_settings(answers: &mut Answers, described: KafkaResult<Vec<ConfigResourceResult>>) {
    let described = match described {
        Ok(described) => described,
        Err(error) => {
            tracing::debug!(%error, "the cluster did not tell its topics' settings");
            return;
        }
    };
    // In the order of the questions. A refused one has no entries: rdkafka drops its error.
    for ((_, answer), resource) in answers.iter_mut().zip(described) {
        if let (Answer::Exists { settings, .. }, Ok(resource)) = (answer, resource) {
            *settings = match resource.entries.is_empty() {
                true => Err(Untold::Denied),
                false => Ok(TopicSettings::read(&resource)),
            };
        }
    }
}

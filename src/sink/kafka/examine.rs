//! What the cluster is asked before a row goes there: whether it answers, and how it is set.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::config::FromClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::metadata::Metadata;
use rdkafka::producer::Producer as _;

use super::KafkaSink;
use super::producer::Batching;
use super::settings::TopicSettings;
use crate::failure::Failure;

/// Longest wait for a broker's first answer.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// Longest wait for the settings of topics.
const SETTINGS_MAX: Duration = Duration::from_secs(4);
/// Topics that are looked at; more would be a long list for a person.
const TOPICS_MAX: usize = 50;

impl KafkaSink {
    /// Whether the cluster answers, with what is unwise about it.
    pub(super) async fn look(&self) -> Result<Vec<String>, Failure> {
        let metadata = self.metadata().await?;
        let mut warnings = self.warnings.clone();
        if metadata.brokers().len() == 1 {
            warnings.push(
                "the Kafka cluster has one broker: nothing is replicated, and a confirmed row is \
                 lost with its disk"
                    .to_owned(),
            );
        }
        Ok(warnings)
    }

    /// Warnings about the topics whose names begin so.
    pub(super) async fn topics_like(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        let metadata = self.metadata().await?;
        let ours = metadata
            .topics()
            .iter()
            .filter(|topic| topic.name().starts_with(prefix) && !topic.name().starts_with("__"));
        let topics: Vec<(String, usize)> = ours
            .take(TOPICS_MAX)
            .map(|topic| {
                let replicas = topic.partitions().iter().map(|one| one.replicas().len());
                (topic.name().to_owned(), replicas.min().unwrap_or(0))
            })
            .collect();
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        let described = self.settings(topics.iter().map(|(name, _)| name.clone()).collect()).await;
        let described =
            described.map_err(|error| self.failure("ask for topics' settings of", error))?;
        let mut warnings = Vec::new();
        let mut denied = Vec::new();
        for ((name, replicas), settings) in topics.iter().zip(described) {
            match settings {
                Some(settings) => warnings.extend(settings.warnings(name, *replicas)),
                None => denied.push(format!("\"{name}\"")),
            }
        }
        if let Some(first) = denied.first() {
            warnings.push(format!(
                "the settings of {} topics, such as {first}, cannot be read; grant DescribeConfigs \
                 on them to have their limits, retention and min.insync.replicas looked at",
                denied.len()
            ));
        }
        Ok(warnings)
    }

    async fn metadata(&self) -> Result<Metadata, Failure> {
        let batching = Batching::Bytes(1_000_000);
        let generation =
            self.producers.current(batching).map_err(|error| self.failure("make", error))?;
        let asking = tokio::task::spawn_blocking(move || {
            let Some(producer) = generation.live() else { return Err(KafkaError::Canceled) };
            producer.client().fetch_metadata(None, PROBE_MAX)
        });
        let answer = asking.await.unwrap_or(Err(KafkaError::Canceled));
        let metadata = match answer {
            Ok(metadata) => metadata,
            Err(error) => return Err(self.renewed("reach", error).await),
        };
        self.producers.health.answered();
        Ok(metadata)
    }

    /// In the order of the names; `None` where we may not read them.
    async fn settings(&self, names: Vec<String>) -> KafkaResult<Vec<Option<TopicSettings>>> {
        let admin: AdminClient<_> = AdminClient::from_config(&self.producers.config())?;
        let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(SETTINGS_MAX));
        let described = admin.describe_configs(&resources, &options).await?;
        let read = described.into_iter().map(|resource| {
            // rdkafka drops the error of a refused one, and leaves it without entries.
            resource.ok().filter(|one| !one.entries.is_empty()).map(|one| TopicSettings::read(&one))
        });
        Ok(read.collect())
    }
}

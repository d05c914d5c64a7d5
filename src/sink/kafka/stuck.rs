//! Why messages have no report yet, in words for the operator.
//!
//! librdkafka retries in order for ever and says little: a partition without a leader is no error
//! to it. So the cluster is asked about the topics that wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::Producer as _;

use super::producer::{Generation, Health};

/// Longest wait for the answer about one topic.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Topics that are asked about; the others are counted.
const TOPICS_MAX: usize = 3;

/// Rows that wait, by topic, and since when.
pub(super) struct Waiting {
    pub(super) topics: HashMap<Arc<str>, usize>,
    pub(super) since: Instant,
}

/// Asks the cluster what is the matter with those topics; blocks for some seconds at most.
pub(super) fn cause(generation: &Generation, health: &Health, waiting: &Waiting) -> String {
    let rows: usize = waiting.topics.values().sum();
    let mut topics: Vec<_> = waiting.topics.iter().collect();
    topics.sort_unstable_by_key(|(name, rows)| (usize::MAX - *rows, Arc::clone(name)));
    let mut causes = Vec::new();
    for (name, _) in topics.iter().take(TOPICS_MAX) {
        // Asked for each: the end of a producer waits for whoever uses it.
        let Some(producer) = generation.live() else { break };
        match producer.client().fetch_metadata(Some(name), ASK_MAX) {
            Ok(metadata) => {
                let topic = metadata.topics().iter().find(|topic| topic.name() == &***name);
                causes.extend(topic.and_then(faults));
            }
            Err(error) => {
                causes.push(format!("the Kafka cluster does not answer: {error}"));
                break;
            }
        }
    }
    causes.extend(health.complaint());
    if causes.is_empty() {
        causes.push("its leader has not answered".to_owned());
    }
    causes.dedup();
    let (name, _) = topics.first().expect("something waits");
    let more = match topics.len() {
        1 => String::new(),
        count => format!(" and {} other topics", count - 1),
    };
    let seconds = waiting.since.elapsed().as_secs();
    let causes = causes.join("; ");
    format!("{rows} rows for topic \"{name}\"{more} have waited {seconds} s: {causes}")
}

/// What is wrong with a topic's partitions.
fn faults(topic: &MetadataTopic) -> Option<String> {
    let partitions = topic.partitions().iter();
    let state = partitions.map(|partition| State {
        id: partition.id(),
        has_leader: partition.leader() >= 0,
        replicas: partition.replicas().len(),
        in_sync: partition.isr().len(),
    });
    told(topic.name(), &state.collect::<Vec<_>>())
}

struct State {
    id: i32,
    has_leader: bool,
    replicas: usize,
    in_sync: usize,
}

fn told(topic: &str, partitions: &[State]) -> Option<String> {
    let ids = |which: &dyn Fn(&State) -> bool| {
        let ids = partitions.iter().filter(|state| which(state)).map(|state| state.id.to_string());
        let ids: Vec<String> = ids.collect();
        match ids.len() {
            0 => None,
            1 => Some(format!("partition {}", ids[0])),
            count if count > 10 => Some(format!("{count} partitions")),
            _ => Some(format!("partitions {}", ids.join(", "))),
        }
    };
    let leaderless = ids(&|state| !state.has_leader)
        .map(|ids| format!("{ids} of topic \"{topic}\": no leader; start the brokers of it"));
    let behind = ids(&|state| state.has_leader && state.in_sync < state.replicas).map(|ids| {
        format!(
            "{ids} of topic \"{topic}\": fewer replicas in sync than there are, perhaps fewer than \
             min.insync.replicas; start their brokers"
        )
    });
    match (leaderless, behind) {
        (Some(leaderless), Some(behind)) => Some(format!("{leaderless}; {behind}")),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(id: i32, has_leader: bool, in_sync: usize) -> State {
        State { id, has_leader, replicas: 3, in_sync }
    }

    #[test]
    fn partitions_are_named_with_what_they_lack() {
        let sound = [state(0, true, 3), state(1, true, 3)];
        assert_eq!(told("orders", &sound), None);
        let faulty = [state(0, true, 3), state(1, false, 0), state(2, true, 1)];
        let text = told("orders", &faulty).unwrap();
        assert!(text.contains("partition 1 of topic \"orders\": no leader"), "{text}");
        assert!(text.contains("partition 2 of topic \"orders\": fewer replicas"), "{text}");
        let many: Vec<State> = (0..20).map(|id| state(id, false, 0)).collect();
        assert!(told("orders", &many).unwrap().starts_with("20 partitions"));
    }
}

//! From the broker's answer on a message to a verdict, with its remedy.

use std::borrow::Cow;

use rdkafka::types::RDKafkaErrorCode;

use super::producer::Batching;
use crate::sink::Verdict;

/// What an error code means for a message. Its producer is gone by now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// The topic is not there any more, or its settings are not what was known of them.
    Forget(Verdict),
    /// Said of a whole batch of messages, not only ours: on its own the guilty one shows.
    SingleOut(Verdict),
    /// It goes again, through the next producer.
    Retry(Verdict),
}

/// The verdict for a failed message.
pub(super) fn judge(topic: &str, code: RDKafkaErrorCode, batching: Batching) -> Judged {
    match code {
        RDKafkaErrorCode::UnknownTopicOrPartition
        | RDKafkaErrorCode::UnknownTopic
        | RDKafkaErrorCode::UnknownPartition => Judged::Forget(Verdict::Absent(format!(
            "topic \"{topic}\", or the partition that a row asks for, does not exist; make it"
        ))),
        RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic => {
            Judged::Forget(refused(topic, code))
        }
        RDKafkaErrorCode::MessageSizeTooLarge
        | RDKafkaErrorCode::InvalidMessageSize
        | RDKafkaErrorCode::MessageBatchTooLarge
        | RDKafkaErrorCode::InvalidTimestamp
        | RDKafkaErrorCode::InvalidRecord
        | RDKafkaErrorCode::InvalidDifferentRecord
        | RDKafkaErrorCode::PolicyViolation => match batching {
            Batching::Single => Judged::Forget(refused(topic, code)),
            Batching::Bytes(_) => Judged::SingleOut(unknown(format!(
                "topic \"{topic}\" refused a batch ({code}); its rows go one by one"
            ))),
        },
        // Purged, fenced, fatal, out of sequence.
        code => Judged::Retry(unknown(format!("the Kafka producer stopped: {code}"))),
    }
}

fn unknown(reason: String) -> Verdict {
    Verdict::Unknown(Cow::Owned(reason))
}

pub(super) fn absent(topic: &str) -> Verdict {
    Verdict::Absent(format!(
        "topic \"{topic}\" does not exist; make it, for example `kafka-topics.sh --create --topic \
         {topic}`"
    ))
}

pub(super) fn refused(topic: &str, code: RDKafkaErrorCode) -> Verdict {
    let remedy = match code {
        RDKafkaErrorCode::TopicAuthorizationFailed => "grant Write and Describe on it",
        RDKafkaErrorCode::InvalidTopic => {
            "a topic has 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-': change outbox.topic, or give \
             such rows a topic of their own by the column outbox.columns.topic"
        }
        RDKafkaErrorCode::InvalidTimestamp => {
            "its time, from outbox.columns.created_at or else the commit, is too far from the \
             broker's clock for message.timestamp.after.max.ms or message.timestamp.before.max.ms: \
             raise that setting of the topic, or set sink.timestamp = \"now\" to send the time of \
             publishing"
        }
        RDKafkaErrorCode::MessageSizeTooLarge
        | RDKafkaErrorCode::InvalidMessageSize
        | RDKafkaErrorCode::MessageBatchTooLarge => {
            "it is too large: raise max.message.bytes of the topic"
        }
        RDKafkaErrorCode::InvalidRecord | RDKafkaErrorCode::InvalidDifferentRecord => {
            "the record is not valid there; a compacted topic takes none without a key: give the row one \
             (outbox.columns.aggregate_id), or change the topic's cleanup.policy"
        }
        _ => "see the broker's log for the record's fault",
    };
    Verdict::Rejected(format!("topic \"{topic}\" refused it ({code}); {remedy}"))
}

pub(super) fn too_large(topic: &str, bytes: usize, limit_bytes: usize) -> Verdict {
    Verdict::Rejected(format!(
        "{bytes} bytes with key, headers and framing, but topic \"{topic}\" takes {limit_bytes}; \
         raise max.message.bytes of the topic (and message_max_bytes, where that is set)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: Batching = Batching::Bytes(1 << 20);

    #[test]
    fn what_is_said_of_a_batch_rejects_a_message_only_on_its_own() {
        for code in [
            RDKafkaErrorCode::MessageSizeTooLarge,
            RDKafkaErrorCode::InvalidTimestamp,
            RDKafkaErrorCode::InvalidRecord,
            RDKafkaErrorCode::InvalidDifferentRecord,
        ] {
            let together = judge("orders", code, BATCH);
            assert!(matches!(together, Judged::SingleOut(Verdict::Unknown(_))), "{together:?}");
            let alone = judge("orders", code, Batching::Single);
            assert!(matches!(alone, Judged::Forget(Verdict::Rejected(_))), "{alone:?}");
        }
    }

    #[test]
    fn a_refusal_names_topic_setting_and_the_way_out() {
        for (code, words) in [
            (RDKafkaErrorCode::InvalidTimestamp, ["created_at", "sink.timestamp"]),
            (RDKafkaErrorCode::InvalidTopic, ["outbox.topic", "outbox.columns.topic"]),
            (RDKafkaErrorCode::InvalidRecord, ["compacted", "key"]),
            (RDKafkaErrorCode::MessageSizeTooLarge, ["max.message.bytes", "orders"]),
        ] {
            let Verdict::Rejected(text) = refused("orders", code) else { panic!("{code}") };
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn every_failed_report_is_something_else_than_confirmed() {
        for code in [
            RDKafkaErrorCode::PurgeQueue,
            RDKafkaErrorCode::PurgeInflight,
            RDKafkaErrorCode::Fatal,
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::MessageTimedOut,
            RDKafkaErrorCode::NotEnoughReplicas,
            RDKafkaErrorCode::NotEnoughReplicasAfterAppend,
            RDKafkaErrorCode::OutOfOrderSequenceNumber,
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::MessageSizeTooLarge,
        ] {
            for batching in [BATCH, Batching::Single] {
                let (Judged::Forget(verdict) | Judged::SingleOut(verdict) | Judged::Retry(verdict)) =
                    judge("orders", code, batching);
                assert_ne!(verdict, Verdict::Confirmed, "{code}");
            }
        }
    }
}

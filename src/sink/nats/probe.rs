//! What an operator should know before trusting a NATS server: is there JetStream, and can its
//! streams lose what they acknowledged?

use std::time::Duration;

use async_nats::jetstream::context::AccountErrorKind;
use async_nats::jetstream::{self, ErrorCode};

use super::api::{Api, Silence, StreamConfig, StreamInfo};
use super::generation::Live;
use crate::failure::Failure;

/// Streams that are named one by one; more are only counted.
const STREAMS_NAMED_MAX: usize = 5;
/// Streams that are looked at.
const STREAMS_MAX: usize = 10_000;
/// Retries come within this at the latest, so a stream that remembers less may store twice.
const DUPLICATE_WINDOW_MIN: Duration = Duration::from_secs(120);
/// Limits below these drop what a consumer that is away for a while has not seen.
const MESSAGES_MIN: i64 = 100_000;
const BYTES_MIN: i64 = 64 << 20;
const AGE_MIN: Duration = Duration::from_secs(3600);

const NO_ANSWER: &str = "NATS did not answer about JetStream: this user may not ask (publish to \
     $JS.API.INFO), or no server of the cluster leads it now";

/// Warnings about what is stored where.
///
/// # Errors
/// Definite: no JetStream. Transient: no answer, or a cluster that has no leader now.
pub(super) async fn durability(live: &Live) -> Result<Vec<String>, Failure> {
    let context = jetstream::new(live.client.clone());
    let mut warnings = Vec::new();
    match context.query_account().await {
        Ok(_) => {}
        Err(error) => match error.kind() {
            AccountErrorKind::JetStreamUnavailable => return Err(unavailable(live)),
            AccountErrorKind::JetStream(error)
                if error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT =>
            {
                return Err(no_jetstream("for this account"));
            }
            // A user that may only publish is a good one: it need not see the API. Nor does a cluster
            // answer that leads nothing now; the deliveries will tell which of the two it is.
            AccountErrorKind::TimedOut => {
                warnings.push(NO_ANSWER.to_owned());
                return Ok(warnings);
            }
            _ => return Err(Failure::transient(error)),
        },
    }
    warnings.extend(of_streams(&Api::new(&live.client, &live.acks)).await);
    warnings.push(
        "NATS acknowledges before it syncs to disk: by default (sync_interval 2m) a power loss \
         may take the last two minutes of a stream with one replica; set `sync_interval: always` \
         or use three replicas"
            .to_owned(),
    );
    Ok(warnings)
}

/// Nobody answers for JetStream: this proves that there is none only where the server itself says
/// so and is alone.
fn unavailable(live: &Live) -> Failure {
    let info = live.client.server_info();
    match (info.jetstream, info.cluster) {
        (false, None) => no_jetstream("on the server"),
        (true, _) | (false, Some(_)) => {
            Failure::transient("no server of this NATS cluster answers for JetStream now")
        }
    }
}

fn no_jetstream(place: &str) -> Failure {
    Failure::definite(format!(
        "JetStream is not enabled {place}, so NATS would keep nothing; enable it (`nats-server \
         -js`, or `jetstream: enabled` in its configuration)"
    ))
}

/// One warning for each stream that deserves one, the worst first.
async fn of_streams(api: &Api<'_>) -> Vec<String> {
    let (mut severe, mut weak) = (Vec::new(), Vec::new());
    let mut warnings = Vec::new();
    let mut seen = 0;
    loop {
        let (streams, total) = match api.streams(seen).await {
            Ok(page) => page,
            Err(silence) => {
                let why = match silence {
                    Silence::Denied => "this user may not list them".to_owned(),
                    Silence::Away(why) => why,
                    Silence::Error { text, .. } => text,
                };
                warnings.push(format!("streams are not checked: {why}"));
                break;
            }
        };
        for info in streams.iter().filter(|info| takes_rows(&info.config)) {
            let name = &info.config.name;
            if let Some(problem) = keeps_nothing(info) {
                severe.push(format!("stream \"{name}\" {problem}"));
            } else if let Some(problem) = weakness(&info.config) {
                weak.push(format!("stream \"{name}\" {problem}"));
            }
        }
        seen += streams.len();
        if streams.is_empty() || seen >= total.min(STREAMS_MAX) {
            break;
        }
    }
    let mut named = severe;
    named.append(&mut weak);
    let unnamed = named.len().saturating_sub(STREAMS_NAMED_MAX);
    named.truncate(STREAMS_NAMED_MAX);
    if unnamed > 0 {
        named.push(format!("{unnamed} more streams have such weaknesses"));
    }
    named.append(&mut warnings);
    named
}

/// A mirror and a stream that only gathers others hear no subject.
fn takes_rows(config: &StreamConfig) -> bool {
    config.subjects.as_ref().is_some_and(|subjects| !subjects.is_empty())
}

/// Why no row that is published there is kept, or confirmed.
pub(super) fn keeps_nothing(info: &StreamInfo) -> Option<String> {
    let config = &info.config;
    let problem = if config.retention == "interest" && info.state.consumer_count == 0 {
        "keeps a message only while a consumer wants it (retention interest), and it has no \
         consumer: NATS confirms rows there and stores nothing. Make a consumer before rows come, \
         or use retention limits"
    } else if config.sealed {
        "is sealed: it takes no row, and cannot be opened; give its subjects to another stream"
    } else if config.allow_msg_counter {
        "holds counters (allow_msg_counter) and takes no row; give its subjects to another stream"
    } else if config.no_ack {
        "acknowledges nothing (no_ack), so no row can be confirmed there; switch that off"
    } else {
        return None;
    };
    Some(problem.to_owned())
}

/// How a row that is confirmed there can be lost, or come twice.
fn weakness(config: &StreamConfig) -> Option<String> {
    let mut parts = Vec::new();
    if config.storage == "memory" {
        parts.push("is kept in memory and lost with the server".to_owned());
    } else if config.num_replicas <= 1 {
        parts.push("has one replica, and is lost with that server's disk".to_owned());
    }
    if config.persist_mode.as_deref() == Some("async") {
        parts.push("confirms a row before it is written (persist_mode async)".to_owned());
    }
    match config.retention.as_str() {
        "interest" => parts.push(
            "keeps a row only while a consumer wants its subject (retention interest), and forgets \
             the ids of consumed rows when the server restarts"
                .to_owned(),
        ),
        "workqueue" => parts.push(
            "forgets the ids of consumed rows when the server restarts (retention workqueue), so a \
             repeat may then come twice"
                .to_owned(),
        ),
        _ => {}
    }
    if config.discard != "new" {
        let limits = [
            ("max_msgs", config.max_msgs, MESSAGES_MIN),
            ("max_bytes", config.max_bytes, BYTES_MIN),
            ("max_msgs_per_subject", config.max_msgs_per_subject, MESSAGES_MIN),
        ];
        for (name, limit, least) in limits {
            if limit > 0 && limit < least {
                parts.push(format!(
                    "drops its oldest rows, though confirmed, beyond {name} {limit} (discard old)"
                ));
            }
        }
    }
    let age = Duration::from_nanos(config.max_age);
    if !age.is_zero() && age < AGE_MIN {
        parts.push(format!("drops rows after {age:?} (max_age), read or not"));
    }
    if config.duplicate_window() < DUPLICATE_WINDOW_MIN {
        parts.push(format!(
            "forgets message ids after {:?} (duplicate_window), so a retry may be stored twice or \
             late",
            config.duplicate_window()
        ));
    }
    (!parts.is_empty()).then(|| parts.join("; it "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::nats::api::StreamState;

    fn sound() -> StreamConfig {
        StreamConfig {
            name: "S".into(),
            subjects: Some(vec!["s".into()]),
            retention: "limits".into(),
            storage: "file".into(),
            discard: "old".into(),
            num_replicas: 3,
            max_msgs: -1,
            max_bytes: -1,
            max_msgs_per_subject: -1,
            duplicate_window: 120_000_000_000,
            ..Default::default()
        }
    }

    #[test]
    fn a_sound_stream_gets_no_warning_and_each_weakness_its_own_words() {
        assert_eq!(weakness(&sound()), None);
        for (config, words) in [
            (StreamConfig { storage: "memory".into(), ..sound() }, "in memory"),
            (StreamConfig { num_replicas: 1, ..sound() }, "one replica"),
            (StreamConfig { max_msgs: 10, ..sound() }, "max_msgs 10"),
            (StreamConfig { max_bytes: 1000, ..sound() }, "max_bytes 1000"),
            (StreamConfig { max_msgs_per_subject: 1, ..sound() }, "max_msgs_per_subject 1"),
            (StreamConfig { max_age: 60_000_000_000, ..sound() }, "60s (max_age)"),
            (StreamConfig { duplicate_window: 1_000_000_000, ..sound() }, "duplicate_window"),
            (StreamConfig { retention: "workqueue".into(), ..sound() }, "workqueue"),
            (StreamConfig { retention: "interest".into(), ..sound() }, "interest"),
            (StreamConfig { persist_mode: Some("async".into()), ..sound() }, "persist_mode"),
        ] {
            let warning = weakness(&config).unwrap_or_default();
            assert!(warning.contains(words), "{words}: {warning}");
        }
        // What is refused is retried, so nothing is lost.
        assert_eq!(weakness(&StreamConfig { discard: "new".into(), max_msgs: 9, ..sound() }), None);
    }

    #[test]
    fn what_keeps_no_row_at_all_is_told_apart() {
        let keeps_nothing = |config, consumer_count| {
            keeps_nothing(&StreamInfo { config, state: StreamState { consumer_count } })
        };
        let interest = StreamConfig { retention: "interest".into(), ..sound() };
        assert!(keeps_nothing(interest.clone(), 0).is_some());
        assert_eq!(keeps_nothing(interest, 1), None);
        assert_eq!(keeps_nothing(sound(), 0), None);
        for config in [
            StreamConfig { sealed: true, ..sound() },
            StreamConfig { no_ack: true, ..sound() },
            StreamConfig { allow_msg_counter: true, ..sound() },
        ] {
            assert!(keeps_nothing(config, 1).is_some());
        }
        assert!(!takes_rows(&StreamConfig { subjects: None, ..sound() }));
    }
}

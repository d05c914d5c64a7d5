//! What RabbitMQ's management API says of queues: AMQP shows neither their limits nor what a
//! policy makes of them.
//!
//! Owns one small HTTP/1.0 client, for a few answers at a start and in `check`, and the judgement
//! of a queue, which is pure. Logs in as the sink does. Answers are bounded in size and time.

use std::collections::HashSet;
use std::time::Duration;

use lapin::uri::AMQPUserInfo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::sink::{OpenError, stdout};

/// For all answers together.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one answer: some thousand queues.
const BYTES_MAX: u64 = 16 << 20;
/// Queues that are named one by one.
const QUEUES_NAMED_MAX: usize = 5;

/// Where the management API is.
pub(super) struct Management {
    host: String,
    port: u16,
}

/// Which queues concern the sink.
pub(super) enum Concern<'a> {
    /// All of the vhost: the exchange is a template.
    All,
    /// Those that are bound to an exchange.
    Exchange(&'a str),
    /// One, by way of the default exchange.
    Queue(&'a str),
}

#[derive(Deserialize)]
struct Binding {
    destination: String,
    destination_type: String,
}

/// A queue as the API describes it. What is not there reads as its default.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Queue {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    durable: bool,
    auto_delete: bool,
    exclusive: bool,
    arguments: Value,
    effective_policy_definition: Value,
    members: Option<Vec<String>>,
}

impl Management {
    /// # Errors
    /// It is not `http://host[:port]`.
    pub(super) fn new(url: &str) -> Result<Self, OpenError> {
        let refused = |what: &str| OpenError::Option {
            problem: format!("management_url {what}; one looks like http://host:15672"),
        };
        let url = url::Url::parse(url).map_err(|_| refused("cannot be read"))?;
        if url.scheme() != "http" {
            return Err(refused("is not http://, the only scheme that is known so far"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("has a user: the login is that of sink.url"));
        }
        let host = url.host_str().ok_or_else(|| refused("has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: url.port().unwrap_or(15672) })
    }

    /// Warnings about the queues that take what the sink publishes.
    pub(super) async fn warnings(
        &self,
        login: &AMQPUserInfo,
        vhost: &str,
        concern: Concern<'_>,
    ) -> Vec<String> {
        let asking = self.ask(login, vhost, concern);
        let problem = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
            Ok(Ok(warnings)) => return warnings,
            Ok(Err(problem)) => problem,
            Err(_) => "no answer in time".to_owned(),
        };
        let Self { host, port } = self;
        vec![format!("the management API at {host}:{port} says nothing about queues: {problem}")]
    }

    async fn ask(
        &self,
        login: &AMQPUserInfo,
        vhost: &str,
        concern: Concern<'_>,
    ) -> Result<Vec<String>, String> {
        let mut warnings = Vec::new();
        let segment = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let concerned: Option<HashSet<String>> = match concern {
            Concern::All => None,
            Concern::Queue(name) => Some(HashSet::from([name.to_owned()])),
            Concern::Exchange(name) => {
                let path =
                    format!("exchanges/{}/{}/bindings/source", segment(vhost), segment(name));
                let bindings: Vec<Binding> = self.get(login, &path).await?;
                if bindings.is_empty() {
                    warnings.push(format!("nothing is bound to the exchange \"{name}\""));
                }
                let queues = bindings.into_iter().filter(|one| one.destination_type == "queue");
                Some(queues.map(|one| one.destination).collect())
            }
        };
        let path = format!("queues/{}", segment(vhost));
        let queues: Vec<Queue> = self.get(login, &path).await?;
        let mut unnamed = 0;
        for queue in &queues {
            if concerned.as_ref().is_some_and(|names| !names.contains(&queue.name)) {
                continue;
            }
            let parts = weaknesses(queue);
            if parts.is_empty() {
                continue;
            }
            if warnings.len() < QUEUES_NAMED_MAX {
                warnings.push(format!("queue \"{}\" {}", queue.name, parts.join("; it ")));
            } else {
                unnamed += 1;
            }
        }
        if unnamed > 0 {
            warnings.push(format!("{unnamed} more queues have such weaknesses"));
        }
        Ok(warnings)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        login: &AMQPUserInfo,
        path: &str,
    ) -> Result<T, String> {
        let words = |error: std::io::Error| error.to_string();
        let mut socket =
            TcpStream::connect((self.host.as_str(), self.port)).await.map_err(words)?;
        let login = stdout::base64(format!("{}:{}", login.username, login.password).as_bytes());
        let request = format!(
            "GET /api/{path} HTTP/1.0\r\nHost: {}\r\nAuthorization: Basic {login}\r\n\r\n",
            self.host
        );
        socket.write_all(request.as_bytes()).await.map_err(words)?;
        let mut answer = Vec::new();
        socket.take(BYTES_MAX).read_to_end(&mut answer).await.map_err(words)?;
        let unreadable = || "its answer could not be read".to_owned();
        let split = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let (head, body) = answer.split_at(split.ok_or_else(unreadable)?);
        let head = String::from_utf8_lossy(head);
        let status = head.split(' ').nth(1).unwrap_or_default();
        match status {
            "200" => serde_json::from_slice(body).map_err(|_| unreadable()),
            "401" => {
                Err("it refuses the login (401): the user needs the tag management".to_owned())
            }
            "404" => Err("there is no such vhost or exchange (404)".to_owned()),
            other => Err(format!("it answers with status {other}")),
        }
    }
}

/// How a row that was confirmed there can be lost.
fn weaknesses(queue: &Queue) -> Vec<String> {
    let mut parts = Vec::new();
    let argument = |name: &str| queue.arguments.get(format!("x-{name}"));
    let policy = |name: &str| queue.effective_policy_definition.get(name);
    let either = |name: &str| argument(name).or_else(|| policy(name));
    if !queue.durable {
        parts.push("is not durable, and is lost with the broker".to_owned());
    }
    if queue.exclusive || queue.auto_delete {
        parts.push("deletes itself with its consumer".to_owned());
    }
    let quorum = queue.kind == "quorum";
    // On a quorum queue the policy wins, on a classic one the argument (3.10 to 4.3).
    let overflow = if quorum {
        policy("overflow").or_else(|| argument("overflow"))
    } else {
        either("overflow")
    };
    let overflow = overflow.and_then(Value::as_str).unwrap_or("drop-head");
    for limit in ["max-length", "max-length-bytes"] {
        let Some(size) = either(limit) else { continue };
        let drops = match overflow {
            "reject-publish" => continue,
            "reject-publish-dlx" if !quorum => continue,
            "reject-publish-dlx" => "reject-publish-dlx, which a quorum queue does not know",
            _ => "drop-head",
        };
        let by = if queue.kind == "stream" { "retention of a stream" } else { drops };
        parts.push(format!(
            "drops its oldest rows, though confirmed, beyond {limit} {size} (overflow: {by}); set \
             overflow = reject-publish{}",
            if quorum { " by policy, which wins over the queue's own argument" } else { "" }
        ));
    }
    if let Some(age) = either("message-ttl") {
        parts.push(format!("drops rows after {age} ms (message-ttl), read or not"));
    }
    if let Some(age) = either("max-age") {
        parts.push(format!("drops rows after {age} (max-age), read or not"));
    }
    if let Some(age) = either("expires") {
        parts.push(format!("deletes itself after {age} ms without a consumer (expires)"));
    }
    if queue.members.as_ref().is_some_and(|members| members.len() == 1) {
        parts.push("has one member, and is lost with that node's disk".to_owned());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Vec<String> {
        weaknesses(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_queue_that_refuses_or_has_no_limit_gets_no_warning() {
        for json in [
            r#"{"name":"q","type":"quorum","durable":true,"members":["a","b","c"]}"#,
            r#"{"name":"q","type":"classic","durable":true,
                "arguments":{"x-max-length":9,"x-overflow":"reject-publish"},
                "effective_policy_definition":{"overflow":"drop-head"}}"#,
            r#"{"name":"q","type":"quorum","durable":true,"members":["a","b","c"],
                "arguments":{"x-max-length":9,"x-overflow":"drop-head"},
                "effective_policy_definition":{"overflow":"reject-publish"}}"#,
        ] {
            assert_eq!(of(json), Vec::<String>::new(), "{json}");
        }
    }

    #[test]
    fn each_way_to_lose_a_confirmed_row_is_named() {
        for (json, words) in [
            (r#"{"durable":true,"arguments":{"x-max-length":9}}"#, "max-length 9"),
            (
                r#"{"type":"quorum","durable":true,"arguments":
                    {"x-max-length":9,"x-overflow":"reject-publish"},
                    "effective_policy_definition":{"overflow":"drop-head"}}"#,
                "by policy",
            ),
            (
                r#"{"type":"quorum","durable":true,"arguments":
                    {"x-max-length":9,"x-overflow":"reject-publish-dlx"}}"#,
                "does not know",
            ),
            (
                r#"{"durable":true,"effective_policy_definition":{"max-length-bytes":9}}"#,
                "max-length-bytes 9",
            ),
            (r#"{"durable":true,"arguments":{"x-message-ttl":5}}"#, "message-ttl"),
            (r#"{"durable":true,"arguments":{"x-expires":5}}"#, "expires"),
            (r#"{"durable":true,"auto_delete":true}"#, "deletes itself"),
            (r#"{"type":"quorum","durable":true,"members":["a"]}"#, "one member"),
            (r#"{}"#, "not durable"),
        ] {
            let parts = of(json);
            assert!(parts.len() == 1 && parts[0].contains(words), "{json}: {parts:?}");
        }
    }

    #[test]
    fn a_url_that_cannot_be_used_is_refused_by_its_key() {
        for url in ["https://host", "http://u:s3cret@host", "host:15672", "http://"] {
            let error = Management::new(url).err().unwrap().to_string();
            assert!(error.contains("management_url") && !error.contains("s3cret"), "{error}");
        }
    }
}

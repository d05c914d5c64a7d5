//! The three brokers behind one face, for tests that each of them must pass.
//!
//! A test names an aggregate type; topic, exchange, queue or stream for it are made by `prepare`,
//! and `published` reads back everything that was ever stored for it.

use std::collections::HashMap;

use lapin::ExchangeKind;
use tokio::runtime::Runtime;

use super::checker::Published;
use super::kafka::Kafka;
use super::nats::Nats;
use super::proxy::Protocol;
use super::rabbitmq::RabbitMq;

/// Which broker a test runs against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Kafka,
    RabbitMq,
    Nats,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Kafka, Kind::RabbitMq, Kind::Nats];

    pub fn protocol(self) -> Protocol {
        match self {
            Kind::Kafka => Protocol::Kafka,
            Kind::RabbitMq => Protocol::Amqp,
            Kind::Nats => Protocol::Nats,
        }
    }
}

/// A broker of our own, which a test may kill.
pub struct Broker {
    server: Server,
    /// RabbitMQ's queues are read by taking: what was taken so far, by queue.
    taken: HashMap<String, Vec<Published>>,
    runtime: Runtime,
}

enum Server {
    Kafka(Box<Kafka>),
    RabbitMq(Box<RabbitMq>),
    Nats(Box<Nats>),
}

impl Broker {
    pub fn start(kind: Kind) -> Broker {
        let server = match kind {
            Kind::Kafka => Server::Kafka(Box::new(Kafka::start())),
            Kind::RabbitMq => Server::RabbitMq(Box::new(RabbitMq::start())),
            Kind::Nats => Server::Nats(Box::new(Nats::start())),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Broker { server, taken: HashMap::new(), runtime }
    }

    /// For `--sink`.
    pub fn url(&self) -> String {
        match &self.server {
            Server::Kafka(kafka) => kafka.url(),
            Server::RabbitMq(rabbitmq) => rabbitmq.url(),
            Server::Nats(nats) => nats.url(),
        }
    }

    /// Makes whatever rows of this aggregate type need: a topic of four partitions, an exchange
    /// bound to a quorum queue, or a stream on disk.
    pub fn prepare(&self, aggregate_type: &str) {
        let topic = topic(aggregate_type);
        match &self.server {
            Server::Kafka(kafka) => kafka.create_topic(&topic, 4, &[]),
            Server::RabbitMq(rabbitmq) => self.runtime.block_on(async {
                rabbitmq.declare_exchange(&topic, ExchangeKind::Topic).await;
                rabbitmq.declare_quorum_queue(aggregate_type, &[]).await;
                rabbitmq.bind(aggregate_type, &topic, "#").await;
            }),
            Server::Nats(nats) => {
                self.runtime.block_on(nats.create_stream(aggregate_type, &[&topic]));
            }
        }
    }

    /// Everything that was ever stored for this aggregate type, in the broker's order.
    pub fn published(&mut self, aggregate_type: &str) -> Vec<Published> {
        let topic = topic(aggregate_type);
        match &self.server {
            Server::Kafka(kafka) => {
                let records = kafka.read_back(&topic).into_iter();
                let published = records.map(|record| Published {
                    stream: format!("{topic}/{}", record.partition),
                    position: u64::try_from(record.offset).unwrap(),
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                });
                published.collect()
            }
            Server::RabbitMq(rabbitmq) => {
                let records = self.runtime.block_on(rabbitmq.read_back(aggregate_type));
                let taken = self.taken.entry(aggregate_type.to_owned()).or_default();
                for record in records {
                    taken.push(Published {
                        stream: aggregate_type.to_owned(),
                        position: taken.len() as u64,
                        key: Some(record.routing_key.into_bytes()),
                        value: Some(record.body),
                        headers: record.headers,
                    });
                }
                taken.clone()
            }
            Server::Nats(nats) => {
                let records = self.runtime.block_on(nats.read_back(aggregate_type));
                let published = records.into_iter().map(|record| {
                    let headers: Vec<(String, Vec<u8>)> = record
                        .headers
                        .iter()
                        .flat_map(|(name, values)| {
                            let pair = |value: &async_nats::HeaderValue| {
                                (name.to_string(), value.as_str().as_bytes().to_vec())
                            };
                            values.iter().map(pair).collect::<Vec<_>>()
                        })
                        .collect();
                    let key = headers.iter().find(|(name, _)| name == "walpost-key");
                    Published {
                        stream: aggregate_type.to_owned(),
                        position: record.sequence,
                        key: key.map(|(_, value)| value.clone()),
                        value: Some(record.payload.to_vec()),
                        headers,
                    }
                });
                published.collect()
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        match &mut self.server {
            Server::Kafka(kafka) => kafka.kill(),
            Server::RabbitMq(rabbitmq) => rabbitmq.kill(),
            Server::Nats(nats) => nats.kill(),
        }
    }

    /// Starts it again on the same data and port.
    pub fn restart(&mut self) {
        match &mut self.server {
            Server::Kafka(kafka) => kafka.restart(),
            Server::RabbitMq(rabbitmq) => rabbitmq.restart(),
            Server::Nats(nats) => nats.restart(),
        }
    }

    /// SIGSTOP: nothing is confirmed, and no connection breaks.
    pub fn freeze(&self) {
        match &self.server {
            Server::Kafka(kafka) => kafka.freeze(),
            Server::RabbitMq(rabbitmq) => rabbitmq.freeze(),
            Server::Nats(nats) => nats.freeze(),
        }
    }

    /// Goes on after [`Broker::freeze`].
    pub fn thaw(&self) {
        match &self.server {
            Server::Kafka(kafka) => kafka.thaw(),
            Server::RabbitMq(rabbitmq) => rabbitmq.thaw(),
            Server::Nats(nats) => nats.thaw(),
        }
    }
}

/// Where walpost's default template puts rows of this type.
pub fn topic(aggregate_type: &str) -> String {
    format!("outbox.event.{aggregate_type}")
}

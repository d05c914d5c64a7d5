//! The three brokers behind one face, for tests that each of them must pass.
//!
//! A test names an aggregate type; topic, exchange, queue or stream for it are made by `prepare`,
//! and `published` reads back everything that was ever stored for it.

use std::collections::HashMap;
use std::net::SocketAddr;

use lapin::ExchangeKind;
use tokio::runtime::Runtime;

use super::checker::{Mark, Published, mark};
use super::kafka::Kafka;
use super::nats::Nats;
use super::proxy::{Protocol, Proxy};
use super::rabbitmq::RabbitMq;

/// Of a Kafka topic.
const PARTITIONS: i32 = 4;

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
    /// What was read so far, by aggregate type. RabbitMQ's queues are read by taking, so there it
    /// is nowhere else.
    read: HashMap<String, Vec<Published>>,
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
        Broker::of(server)
    }

    /// A broker and a proxy before it, with the URL that leads through the proxy.
    pub fn start_behind_proxy(kind: Kind) -> (Broker, Proxy, String) {
        // Kafka must know the proxy's address before it starts; the target is not used yet.
        let proxy = Proxy::start_with(SocketAddr::from(([127, 0, 0, 1], 9)), kind.protocol());
        let server = match kind {
            Kind::Kafka => Server::Kafka(Box::new(Kafka::start_behind(proxy.addr()))),
            Kind::RabbitMq => Server::RabbitMq(Box::new(RabbitMq::start())),
            Kind::Nats => Server::Nats(Box::new(Nats::start())),
        };
        let port = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (target, url) = match &server {
            Server::Kafka(kafka) => (kafka.behind(), format!("kafka://{}", proxy.addr())),
            Server::RabbitMq(rabbitmq) => {
                (port(rabbitmq.port()), format!("amqp://guest:guest@{}/%2f", proxy.addr()))
            }
            Server::Nats(nats) => (port(nats.port()), format!("nats://{}", proxy.addr())),
        };
        proxy.set_target(target);
        (Broker::of(server), proxy, url)
    }

    fn of(server: Server) -> Broker {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Broker { server, read: HashMap::new(), runtime }
    }

    /// For what only Kafka has.
    pub fn kafka(&self) -> &Kafka {
        let Server::Kafka(kafka) = &self.server else { panic!("it is no Kafka") };
        kafka
    }

    /// For what only RabbitMQ has.
    pub fn rabbitmq(&self) -> &RabbitMq {
        let Server::RabbitMq(rabbitmq) = &self.server else { panic!("it is no RabbitMQ") };
        rabbitmq
    }

    /// For what only NATS has.
    pub fn nats(&self) -> &Nats {
        let Server::Nats(nats) = &self.server else { panic!("it is no NATS") };
        nats
    }

    /// Runs a future on the broker's runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn kind(&self) -> Kind {
        match &self.server {
            Server::Kafka(_) => Kind::Kafka,
            Server::RabbitMq(_) => Kind::RabbitMq,
            Server::Nats(_) => Kind::Nats,
        }
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
            Server::Kafka(kafka) => kafka.create_topic(&topic, PARTITIONS, &[]),
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
        match &self.server {
            Server::Kafka(_) | Server::Nats(_) => self.stored(aggregate_type, &Mark::new()),
            Server::RabbitMq(_) => self.read_on(aggregate_type).to_vec(),
        }
    }

    /// As [`Broker::published`], reading only what is new since the last such call.
    pub fn read_on(&mut self, aggregate_type: &str) -> &[Published] {
        let read = self.read.remove(aggregate_type).unwrap_or_default();
        let stored = self.stored(aggregate_type, &mark(&read));
        let all = self.read.entry(aggregate_type.to_owned()).or_insert(read);
        all.extend(stored);
        all
    }

    /// What is stored from a mark on. Out of a queue it is taken.
    fn stored(&self, aggregate_type: &str, from: &Mark) -> Vec<Published> {
        let topic = topic(aggregate_type);
        match &self.server {
            Server::Kafka(kafka) => {
                let stream = |partition: i32| format!("{topic}/{partition}");
                let next = |partition| Some(i64::try_from(*from.get(&stream(partition))?).unwrap());
                let from = (0..PARTITIONS).filter_map(|id| Some((id, next(id)?))).collect();
                let records = kafka.read_from(&topic, &from).into_iter();
                let published = records.map(|record| Published {
                    stream: stream(record.partition),
                    position: u64::try_from(record.offset).unwrap(),
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                });
                published.collect()
            }
            Server::RabbitMq(rabbitmq) => {
                let records = self.runtime.block_on(rabbitmq.read_back(aggregate_type));
                let first = from.get(aggregate_type).copied().unwrap_or(0);
                let published =
                    records.into_iter().zip(first..).map(|(record, position)| Published {
                        stream: aggregate_type.to_owned(),
                        position,
                        key: Some(record.routing_key.into_bytes()),
                        value: Some(record.body),
                        headers: record.headers,
                    });
                published.collect()
            }
            Server::Nats(nats) => {
                let first = from.get(aggregate_type).copied().unwrap_or(1);
                let records = self.runtime.block_on(nats.read_from(aggregate_type, first));
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

    /// A clean end.
    pub fn stop(&mut self) {
        match &mut self.server {
            Server::Kafka(kafka) => kafka.stop(),
            Server::RabbitMq(rabbitmq) => rabbitmq.stop(),
            Server::Nats(nats) => nats.stop(),
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

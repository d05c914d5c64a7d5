//! Where rows go: a broker of its own, emptied between runs, that says how many rows it holds.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::runtime::Runtime;

use crate::support::broker::topic;
use crate::support::kafka::Kafka;
use crate::support::nats::Nats;
use crate::support::rabbitmq::RabbitMq;

/// The aggregate type of all rows.
const AGGREGATE: &str = "Order";

pub struct Target {
    broker: Broker,
    runtime: Runtime,
}

enum Broker {
    Null,
    Kafka(Box<Kafka>),
    Nats(Box<Nats>),
    RabbitMq(Box<RabbitMq>),
}

impl Target {
    pub fn null() -> Target {
        Target::new(Broker::Null)
    }

    pub fn kafka() -> Target {
        Target::new(Broker::Kafka(Box::new(Kafka::start_at_full_speed())))
    }

    pub fn nats() -> Target {
        Target::new(Broker::Nats(Box::new(Nats::start())))
    }

    pub fn rabbitmq() -> Target {
        Target::new(Broker::RabbitMq(Box::new(RabbitMq::start())))
    }

    fn new(broker: Broker) -> Target {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let target = Target { broker, runtime: runtime.expect("a runtime can be made") };
        target.create();
        target
    }

    pub fn name(&self) -> &'static str {
        match &self.broker {
            Broker::Null => "null",
            Broker::Kafka(_) => "Kafka, acks=all",
            Broker::Nats(_) => "NATS JetStream, file",
            Broker::RabbitMq(_) => "RabbitMQ, quorum queue",
        }
    }

    /// For `--sink`.
    pub fn url(&self) -> String {
        match &self.broker {
            Broker::Null => "null://".to_owned(),
            Broker::Kafka(kafka) => kafka.url(),
            Broker::Nats(nats) => nats.url(),
            Broker::RabbitMq(rabbitmq) => rabbitmq.url(),
        }
    }

    /// Process id.
    pub fn id(&self) -> Option<u32> {
        match &self.broker {
            Broker::Null => None,
            Broker::Kafka(kafka) => Some(kafka.id()),
            Broker::Nats(nats) => Some(nats.id()),
            Broker::RabbitMq(rabbitmq) => Some(rabbitmq.id()),
        }
    }

    fn create(&self) {
        let topic = topic(AGGREGATE);
        match &self.broker {
            Broker::Null => {}
            Broker::Kafka(kafka) => kafka.create_topic(&topic, 4, &[]),
            Broker::Nats(nats) => {
                self.runtime.block_on(nats.create_stream(AGGREGATE, &[&topic]));
            }
            Broker::RabbitMq(rabbitmq) => self.runtime.block_on(async {
                rabbitmq.declare_exchange(&topic, lapin::ExchangeKind::Topic).await;
                rabbitmq.declare_quorum_queue(AGGREGATE, &[]).await;
                rabbitmq.bind(AGGREGATE, &topic, "#").await;
            }),
        }
    }

    /// Forgets all rows, and the ids by which a broker would know them again.
    pub fn empty(&self) {
        match &self.broker {
            Broker::Null => return,
            Broker::Kafka(kafka) => {
                kafka.delete_topic(&topic(AGGREGATE));
                // Deleted a moment after it was said so.
                std::thread::sleep(std::time::Duration::from_millis(500));
            }
            Broker::Nats(nats) => self.runtime.block_on(async {
                let deleted = nats.jetstream().await.delete_stream(AGGREGATE).await;
                deleted.expect("the stream can be deleted");
            }),
            Broker::RabbitMq(rabbitmq) => self.runtime.block_on(rabbitmq.delete_queue(AGGREGATE)),
        }
        self.create();
    }

    /// How many rows it holds; `None` where it keeps none.
    pub fn count(&self) -> Option<u64> {
        match &self.broker {
            Broker::Null => None,
            Broker::Kafka(kafka) => Some(kafka.count(&topic(AGGREGATE))),
            Broker::Nats(nats) => self.runtime.block_on(async {
                let stream = nats.jetstream().await.get_stream(AGGREGATE).await;
                let info = stream.expect("the stream is there").cached_info().clone();
                Some(info.state.messages)
            }),
            Broker::RabbitMq(rabbitmq) => self.runtime.block_on(async {
                let connection = rabbitmq.connect().await;
                let channel = connection.create_channel().await.expect("a channel opens");
                let options = QueueDeclareOptions { passive: true, ..Default::default() };
                let queue = channel.queue_declare(AGGREGATE.into(), options, FieldTable::default());
                Some(u64::from(queue.await.expect("the queue is there").message_count()))
            }),
        }
    }

    /// Kills the broker, or starts it again; for one that can be.
    pub fn kill(&mut self) {
        match &mut self.broker {
            Broker::Null => {}
            Broker::Kafka(kafka) => kafka.kill(),
            Broker::Nats(nats) => nats.kill(),
            Broker::RabbitMq(rabbitmq) => rabbitmq.kill(),
        }
    }

    pub fn restart(&mut self) {
        match &mut self.broker {
            Broker::Null => {}
            Broker::Kafka(kafka) => kafka.restart(),
            Broker::Nats(nats) => nats.restart(),
            Broker::RabbitMq(rabbitmq) => rabbitmq.restart(),
        }
    }

    pub fn as_kafka(&self) -> Option<&Kafka> {
        match &self.broker {
            Broker::Kafka(kafka) => Some(kafka),
            Broker::Null | Broker::Nats(_) | Broker::RabbitMq(_) => None,
        }
    }

    pub fn as_nats(&self) -> Option<&Nats> {
        match &self.broker {
            Broker::Nats(nats) => Some(nats),
            Broker::Null | Broker::Kafka(_) | Broker::RabbitMq(_) => None,
        }
    }
}

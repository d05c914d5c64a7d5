//! A RabbitMQ 3.10 of Debian's package, with a private node, data folder, cookie and epmd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use nix::sys::signal::Signal;

use super::process::{Process, eventually, free_port, scratch};

const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// `max_message_size` of the broker: small, so that a test can exceed it.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// A running broker. Ends with the value; its folder stays for the logs.
pub struct RabbitMq {
    folder: PathBuf,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
    server: Option<Process>,
    // Dropped after the server, which registers there.
    _epmd: Process,
}

/// A message as it was read back.
#[derive(Debug, Clone)]
pub struct Record {
    pub body: Vec<u8>,
    /// In the table's order, which is by name.
    pub headers: Vec<(String, Vec<u8>)>,
    pub message_id: String,
    pub exchange: String,
    pub routing_key: String,
    pub properties: BasicProperties,
}

impl RabbitMq {
    /// Starts a broker with an empty data folder; a few seconds.
    pub fn start() -> RabbitMq {
        RabbitMq::start_with("[].", "")
    }

    /// As [`RabbitMq::start`], with the management API on the port that comes back.
    pub fn start_with_management() -> (RabbitMq, u16) {
        let port = free_port();
        let broker = RabbitMq::start_with(
            "[rabbitmq_management].",
            &format!("management.tcp.ip=127.0.0.1\nmanagement.tcp.port={port}\n"),
        );
        (broker, port)
    }

    fn start_with(plugins: &str, more: &str) -> RabbitMq {
        let program = Path::new(PROGRAMS).join("rabbitmq-server");
        assert!(program.exists(), "no RabbitMQ; run `apt-get install rabbitmq-server`");
        let folder = scratch("rabbitmq");
        let [port, dist_port, epmd_port] = [free_port(), free_port(), free_port()];
        fs::write(folder.join("enabled_plugins"), format!("{plugins}\n")).unwrap();
        let configuration = format!(
            "listeners.tcp.1=127.0.0.1:{port}\ndisk_free_limit.absolute=50MB\n\
             max_message_size={MESSAGE_BYTES_MAX}\n{more}"
        );
        fs::write(folder.join("rabbitmq.conf"), configuration).unwrap();
        let mut command = Command::new("epmd");
        command.args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"]);
        let epmd = Process::spawn(command, Some("rabbitmq"), &folder.join("epmd.log"));
        let mut broker = RabbitMq { folder, port, dist_port, epmd_port, server: None, _epmd: epmd };
        broker.restart();
        broker
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(Path::new(PROGRAMS).join(program));
        command
            .env("HOME", &self.folder)
            .env("LC_ALL", "C.UTF-8")
            // The script then becomes the server, where else it would be its parent, and the
            // server would outlive a killed test.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_NODENAME", format!("walpost{}@localhost", self.port))
            .env("RABBITMQ_MNESIA_BASE", self.folder.join("data"))
            .env("RABBITMQ_LOG_BASE", self.folder.join("log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.folder.join("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", self.folder.join("rabbitmq.conf"))
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 2:2 -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            );
        command
    }

    /// Starts the server again on the data that is there, and waits until it answers.
    ///
    /// A quorum queue survives `kill -9` only when the broker has had the time to write down that
    /// there is one: its directory of queues is saved a while after a declaration (3.10.8; seen:
    /// the queue comes back empty and without a leader). [`RabbitMq::stop`] writes it at once.
    pub fn restart(&mut self) {
        drop(self.server.take());
        let log = self.folder.join("server.log");
        let command = self.command("rabbitmq-server");
        let server = self.server.insert(Process::spawn(command, Some("rabbitmq"), &log));
        let port = self.port;
        let up = eventually(Duration::from_secs(60), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() || !server.is_running()
        });
        if !up || !server.is_running() {
            server.give_up("RabbitMQ did not come up");
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill();
        }
    }

    /// An orderly end, the data flushed.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.signal(Signal::SIGTERM);
            let ended = server.wait(Duration::from_secs(30));
            assert!(ended.is_some(), "RabbitMQ ends on SIGTERM");
        }
    }

    /// Process id of the running broker.
    pub fn id(&self) -> u32 {
        self.server.as_ref().expect("the broker runs").id()
    }

    /// Stands still; see [`Process::freeze`].
    pub fn freeze(&self) {
        self.server.as_ref().expect("the broker runs").freeze();
    }

    /// Goes on.
    pub fn thaw(&self) {
        self.server.as_ref().expect("the broker runs").thaw();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// `rabbitmqctl` with these arguments; about a second.
    pub fn control(&self, arguments: &[&str]) -> String {
        let mut command = self.command("rabbitmqctl");
        command.args(arguments);
        let log = self.folder.join(format!("control-{}.log", free_port()));
        let mut control = Process::spawn(command, Some("rabbitmq"), &log);
        let status = control.wait(Duration::from_secs(30));
        assert!(status.is_some_and(|s| s.success()), "{arguments:?}: {}", control.log());
        control.log()
    }

    /// A connection for the test itself.
    pub async fn connect(&self) -> Connection {
        Connection::connect(&self.url(), ConnectionProperties::default()).await.unwrap()
    }

    async fn channel(&self) -> (Connection, Channel) {
        let connection = self.connect().await;
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    pub async fn declare_quorum_queue(&self, name: &str, arguments: &[(&str, AMQPValue)]) {
        self.declare_queue(name, "quorum", arguments).await;
    }

    pub async fn declare_classic_queue(&self, name: &str, arguments: &[(&str, AMQPValue)]) {
        self.declare_queue(name, "classic", arguments).await;
    }

    async fn declare_queue(&self, name: &str, kind: &str, arguments: &[(&str, AMQPValue)]) {
        let (_connection, channel) = self.channel().await;
        let mut table = FieldTable::default();
        table.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.into(), options, table).await.unwrap();
    }

    pub async fn delete_queue(&self, name: &str) {
        let (_connection, channel) = self.channel().await;
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    pub async fn declare_exchange(&self, name: &str, kind: ExchangeKind) {
        let (_connection, channel) = self.channel().await;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await.unwrap();
    }

    pub async fn delete_exchange(&self, name: &str) {
        let (_connection, channel) = self.channel().await;
        channel.exchange_delete(name.into(), Default::default()).await.unwrap();
    }

    pub async fn bind(&self, queue: &str, exchange: &str, routing_key: &str) {
        let (_connection, channel) = self.channel().await;
        channel
            .queue_bind(
                queue.into(),
                exchange.into(),
                routing_key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }

    /// Messages that wait in a queue.
    pub async fn waiting(&self, queue: &str) -> usize {
        let (_connection, channel) = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        declared.unwrap().message_count() as usize
    }

    /// Takes everything out of a queue, until it is empty.
    pub async fn read_back(&self, queue: &str) -> Vec<Record> {
        let (_connection, channel) = self.channel().await;
        let mut records = Vec::new();
        let mut last = None;
        let waiting = self.waiting(queue).await;
        // A consumer is many times quicker than one request a message.
        if waiting > 0 {
            let (queue, table) = (queue.into(), FieldTable::default());
            let options = BasicConsumeOptions::default();
            let mut consumer =
                channel.basic_consume(queue, "read-back".into(), options, table).await.unwrap();
            while records.len() < waiting {
                let next = tokio::time::timeout(Duration::from_secs(20), consumer.next()).await;
                let delivery = next.expect("a queue gives what it holds").unwrap().unwrap();
                // A quorum queue hands out 2000 messages and then waits for their acks.
                if records.len() % 500 == 499 {
                    delivery.acker.ack(BasicAckOptions { multiple: true }).await.unwrap();
                    last = None;
                } else {
                    last = Some(delivery.acker.clone());
                }
                records.push(record(delivery));
            }
            channel.basic_cancel("read-back".into(), Default::default()).await.unwrap();
            // What came in the meantime was delivered before the cancellation.
            while let Some(delivery) = consumer.next().await {
                let delivery = delivery.unwrap();
                last = Some(delivery.acker.clone());
                records.push(record(delivery));
            }
        }
        while let Some(message) =
            channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap()
        {
            last = Some(message.delivery.acker.clone());
            records.push(record(message.delivery));
        }
        if let Some(last) = last {
            last.ack(BasicAckOptions { multiple: true }).await.unwrap();
        }
        // Else the next reader might find what this one has taken.
        channel.close(200, "done".into()).await.unwrap();
        records
    }
}

fn record(delivery: Delivery) -> Record {
    let properties = delivery.properties;
    let headers = properties.headers().clone().unwrap_or_default();
    // A quorum queue adds the number `x-delivery-count`.
    let headers = headers.inner().iter().filter_map(|(name, value)| match value {
        AMQPValue::LongString(value) => Some((name.as_str().to_owned(), value.as_bytes().to_vec())),
        _ => None,
    });
    Record {
        headers: headers.collect(),
        message_id: properties.message_id().as_ref().unwrap().as_str().to_owned(),
        exchange: delivery.exchange.as_str().to_owned(),
        routing_key: delivery.routing_key.as_str().to_owned(),
        body: delivery.data,
        properties,
    }
}

//! One Apache Kafka broker (KRaft) of its own for a test: data folder, ports, end.
//!
//! Listeners: a plain one, whose user ANONYMOUS may do everything, and one with SASL/PLAIN, whose
//! user `relay` (password `secret`) may do nothing until it is granted something.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::process::{Process, eventually, free_port, scratch, tool};

const START_MAX: Duration = Duration::from_secs(60);

/// A broker; killed when dropped.
pub struct Kafka {
    process: Option<Process>,
    folder: PathBuf,
    port: u16,
    sasl_port: u16,
    behind_port: u16,
    /// Of the cluster, whoever has it.
    controller: u16,
    java_options: &'static [&'static str],
}

/// Started for seconds: the quick compiler and the simple collector are the faster ones.
const QUICK_START: &[&str] =
    &["-Xmx512m", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];

/// As in production: a broker whose speed is measured.
const FULL_SPEED: &[&str] = &["-Xms1g", "-Xmx1g"];

/// A record as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
    pub timestamp: Option<i64>,
}

impl Kafka {
    /// Formats a data folder and starts a broker; returns when it answers.
    pub fn start() -> Kafka {
        Kafka::start_with("")
    }

    /// As [`Kafka::start`], with further lines for `server.properties`.
    pub fn start_with(properties: &str) -> Kafka {
        Kafka::launch(properties, None, QUICK_START)
    }

    /// As [`Kafka::start`], for measuring how fast it is.
    pub fn start_at_full_speed() -> Kafka {
        Kafka::launch("", None, FULL_SPEED)
    }

    /// As [`Kafka::start`], with one more listener, [`Kafka::behind`], that advertises the address
    /// of a proxy: clients leave the address that they were given for the advertised one.
    pub fn start_behind(proxy: SocketAddr) -> Kafka {
        Kafka::launch("", Some(proxy), QUICK_START)
    }

    /// One more broker of the same cluster, number 2.
    pub fn start_beside(&self) -> Kafka {
        Kafka::launch_node(2, self.controller, "", None, QUICK_START)
    }

    fn launch(
        properties: &str,
        proxy: Option<SocketAddr>,
        java_options: &'static [&'static str],
    ) -> Kafka {
        Kafka::launch_node(1, free_port(), properties, proxy, java_options)
    }

    /// The first node is the controller too.
    fn launch_node(
        node: u8,
        controller: u16,
        properties: &str,
        proxy: Option<SocketAddr>,
        java_options: &'static [&'static str],
    ) -> Kafka {
        let folder = scratch("kafka");
        let (port, sasl_port) = (free_port(), free_port());
        let (roles, quorum) = match node {
            1 => ("broker,controller", format!(",CONTROLLER://127.0.0.1:{controller}")),
            _ => ("broker", String::new()),
        };
        let behind_port = free_port();
        let (behind, advertised) = match proxy {
            Some(proxy) => {
                (format!("BEHIND://127.0.0.1:{behind_port},"), format!(",BEHIND://{proxy}"))
            }
            None => Default::default(),
        };
        let text = format!(
            "process.roles={roles}\n\
             node.id={node}\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners={behind}PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl_port}{quorum}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{sasl_port}{advertised}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT,BEHIND:PLAINTEXT\n\
             sasl.enabled.mechanisms=PLAIN\n\
             listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_relay=\"secret\";\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\n\
             log.dirs={}\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             log.cleaner.enable=false\n\
             {properties}\n",
            folder.join("data").display()
        );
        fs::write(folder.join("server.properties"), text).expect("the scratch folder is ours");
        let process = None;
        let mut kafka =
            Kafka { process, folder, port, sasl_port, behind_port, controller, java_options };
        let mut format = kafka.java("kafka.tools.StorageTool");
        // Any 16 bytes in URL-safe base64 will do, and cost no JVM.
        format.args(["format", "-t", "d2FscG9zdC1jb250cmFjdA", "-c"]);
        format.arg(kafka.folder.join("server.properties"));
        let mut format = Process::spawn(format, None, &kafka.folder.join("format.log"));
        if !format.wait(START_MAX).is_some_and(|status| status.success()) {
            format.give_up("Kafka's storage could not be formatted");
        }
        kafka.restart();
        kafka
    }

    /// `kill -9`; connections break, the log stays.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Stands still; see [`Process::freeze`].
    pub fn freeze(&self) {
        self.process.as_ref().expect("the broker runs").freeze();
    }

    /// Goes on.
    pub fn thaw(&self) {
        self.process.as_ref().expect("the broker runs").thaw();
    }

    /// A clean shutdown.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::SIGTERM);
            if process.wait(START_MAX).is_none() {
                process.give_up("Kafka did not stop");
            }
        }
    }

    /// Starts it again on the same ports and data, after [`Kafka::kill`] or [`Kafka::stop`].
    pub fn restart(&mut self) {
        assert!(self.process.is_none(), "the broker still runs");
        let mut command = self.java("kafka.Kafka");
        command.arg(self.folder.join("server.properties"));
        let mut process = Process::spawn(command, None, &self.folder.join("broker.log"));
        let address = ("127.0.0.1", self.port);
        let up =
            eventually(START_MAX, || !process.is_running() || TcpStream::connect(address).is_ok());
        if !up || !process.is_running() || !self.answers() {
            process.give_up("Kafka did not come up");
        }
        self.process = Some(process);
    }

    /// Process id of the running broker.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the broker runs").id()
    }

    /// How many records a topic holds.
    pub fn count(&self, topic: &str) -> u64 {
        let consumer = self.consumer();
        let metadata = consumer.fetch_metadata(Some(topic), START_MAX).expect("the broker answers");
        let partitions = metadata.topics()[0].partitions().iter();
        let counts = partitions.map(|partition| {
            let marks = consumer.fetch_watermarks(topic, partition.id(), START_MAX);
            let (low, high) = marks.expect("a partition has a leader");
            u64::try_from(high - low).expect("a log ends after its start")
        });
        counts.sum()
    }

    /// Where the proxy of [`Kafka::start_behind`] forwards to.
    pub fn behind(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.behind_port))
    }

    /// `host:port` of the plain listener.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The sink's URL of the plain listener.
    pub fn url(&self) -> String {
        format!("kafka://{}", self.bootstrap())
    }

    /// The sink's URL of the listener with SASL/PLAIN.
    pub fn sasl_url(&self, user: &str, password: &str) -> String {
        format!("kafka://{user}:{password}@127.0.0.1:{}", self.sasl_port)
    }

    /// Makes a topic of one partition whose only replica is on that broker of the cluster.
    pub fn create_topic_on(&self, name: &str, node: i32) {
        self.create(NewTopic::new(name, 1, TopicReplication::Variable(&[&[node]])));
    }

    /// Makes a topic and waits until it has leaders.
    pub fn create_topic(&self, name: &str, partitions: i32, configs: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in configs {
            topic = topic.set(key, value);
        }
        self.create(topic);
    }

    fn create(&self, topic: NewTopic<'_>) {
        let (name, partitions) = (topic.name, topic.num_partitions);
        let results = self.administrate(async |admin, options| {
            admin.create_topics([&topic], options).await.expect("the broker answers")
        });
        for result in results {
            result.expect("the topic can be made");
        }
        let consumer = self.consumer();
        let led = eventually(START_MAX, || {
            let metadata = consumer.fetch_metadata(Some(name), START_MAX);
            metadata.is_ok_and(|metadata| {
                let partitions_led = metadata.topics().iter().flat_map(|topic| topic.partitions());
                partitions_led.filter(|partition| partition.leader() >= 0).count()
                    == partitions as usize
            })
        });
        assert!(led, "topic {name} has no leaders");
    }

    /// Deletes a topic.
    pub fn delete_topic(&self, name: &str) {
        let results = self.administrate(async |admin, options| {
            admin.delete_topics(&[name], options).await.expect("the broker answers")
        });
        for result in results {
            result.expect("the topic can be deleted");
        }
    }

    /// Changes a topic's configuration with Kafka's own tool, or its access lists: `class` and
    /// arguments after `--bootstrap-server`.
    pub fn tool(&self, class: &str, arguments: &[&str]) {
        let mut command = self.java(class);
        command.args(["--bootstrap-server", &self.bootstrap()]).args(arguments);
        let mut process = Process::spawn(command, None, &self.folder.join("tool.log"));
        if !process.wait(START_MAX).is_some_and(|status| status.success()) {
            process.give_up(&format!("{class} failed"));
        }
    }

    /// Lets a user write to a topic, and nothing more; brokers hear of it a moment later. By hand:
    /// neither rdkafka nor the installed jars can do it.
    ///
    /// Protocol: CreateAcls v1, <https://kafka.apache.org/protocol#The_Messages_CreateAcls>.
    pub fn grant_write(&self, user: &str, topic: &str) {
        const CREATE_ACLS: u16 = 30;
        const VERSION: u16 = 1;
        const TOPIC: u8 = 2;
        const LITERAL: u8 = 3;
        const WRITE: u8 = 4;
        const ALLOW: u8 = 3;
        let text = |text: &str| {
            let length = u16::try_from(text.len()).expect("a name is short");
            [&length.to_be_bytes()[..], text.as_bytes()].concat()
        };
        let mut request = [CREATE_ACLS.to_be_bytes(), VERSION.to_be_bytes()].concat();
        // Correlation, client and the number of entries.
        request.extend(7_u32.to_be_bytes());
        request.extend(text("walpost-test"));
        request.extend(1_u32.to_be_bytes());
        request.push(TOPIC);
        request.extend(text(topic));
        request.push(LITERAL);
        request.extend(text(&format!("User:{user}")));
        request.extend(text("*"));
        request.extend([WRITE, ALLOW]);
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the broker listens");
        stream.set_read_timeout(Some(START_MAX)).expect("a timeout can be set");
        let length = u32::try_from(request.len()).expect("a request is short");
        stream.write_all(&length.to_be_bytes()).expect("the broker reads");
        stream.write_all(&request).expect("the broker reads");
        let mut answer = [0; 18];
        // Length, correlation, throttle time, number of results, error code.
        stream.read_exact(&mut answer).expect("the broker answers");
        assert_eq!(answer[16..], [0, 0], "the right was not granted: {answer:?}");
    }

    /// All records of a topic to the end of every partition, by partition and offset.
    pub fn read_back(&self, topic: &str) -> Vec<Record> {
        self.read_from(topic, &HashMap::new())
    }

    /// As [`Kafka::read_back`], from an offset of each partition on.
    pub fn read_from(&self, topic: &str, from: &HashMap<i32, i64>) -> Vec<Record> {
        let consumer = self.consumer();
        let metadata = consumer.fetch_metadata(Some(topic), START_MAX).expect("the broker answers");
        let mut assignment = TopicPartitionList::new();
        let mut ends = Vec::new();
        for partition in metadata.topics()[0].partitions() {
            let id = partition.id();
            let mut marks = None;
            // A broker that has just come back leads its partitions a moment later.
            let led = eventually(START_MAX, || {
                marks = consumer.fetch_watermarks(topic, id, START_MAX).ok();
                marks.is_some()
            });
            assert!(led, "partition {id} of {topic} has no leader");
            let (low, high) = marks.expect("looked");
            let low = from.get(&id).map_or(low, |from| low.max(*from));
            if high > low {
                assignment.add_partition_offset(topic, id, Offset::Offset(low)).expect("it exists");
                ends.push((id, high));
            }
        }
        consumer.assign(&assignment).expect("an assignment is only noted");
        let mut records: Vec<Record> = Vec::new();
        while !ends.is_empty() {
            let message = consumer.poll(START_MAX).expect("records come").expect("without errors");
            records.push(Record {
                partition: message.partition(),
                offset: message.offset(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: message.headers().map_or_else(Vec::new, |headers| {
                    let own = |value: Option<&[u8]>| value.unwrap_or_default().to_vec();
                    headers
                        .iter()
                        .map(|header| (header.key.to_owned(), own(header.value)))
                        .collect()
                }),
                timestamp: message.timestamp().to_millis(),
            });
            ends.retain(|(id, high)| (message.partition(), message.offset() + 1) != (*id, *high));
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    fn java(&self, class: &str) -> Command {
        let jars = tool("kafka/lib", "kafka").join("*");
        let mut command = Command::new("java");
        command
            .args(self.java_options)
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .arg("-cp")
            .arg(jars)
            .arg(class);
        command
    }

    fn answers(&self) -> bool {
        let mut config = self.client();
        config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "100");
        let producer: BaseProducer = config.create().expect("the configuration is right");
        let asked = producer.client().fetch_metadata(None, START_MAX);
        asked.is_ok_and(|metadata| !metadata.brokers().is_empty())
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap());
        config
    }

    fn consumer(&self) -> BaseConsumer {
        let mut config = self.client();
        config.set("group.id", "read-back").set("enable.auto.commit", "false");
        config.set("fetch.wait.max.ms", "10");
        config.create().expect("the configuration is right")
    }

    /// On a thread of its own, since the caller may be inside a runtime.
    fn administrate<T: Send>(
        &self,
        task: impl AsyncFnOnce(&AdminClient<DefaultClientContext>, &AdminOptions) -> T + Send,
    ) -> T {
        let admin: AdminClient<_> = self.client().create().expect("the configuration is right");
        let options =
            AdminOptions::new().operation_timeout(Some(START_MAX)).request_timeout(Some(START_MAX));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                runtime.expect("a runtime can be made").block_on(task(&admin, &options))
            });
            thread.join().expect("the broker does as told")
        })
    }
}

//! From `exec` to the first row in a consumer's hand, next to the same of a bare Kafka client.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::Program;
use crate::backlog::{payload, relay, server};
use crate::support::broker::topic;
use crate::support::kafka::Kafka;
use crate::support::postgres::Client;
use crate::support::process::{Process, scratch};
use crate::support::slot::{create_outbox, create_publication_and_slot};
use crate::table::{Report, Spread};
use crate::target::Target;

const PARTITIONS: i32 = 4;
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Starts each program `starts` times with one row waiting.
pub fn measure(programs: &[Program], starts: usize, report: &mut Report) {
    let server = server();
    let client = server.client();
    create_outbox(&client, "outbox");
    create_publication_and_slot(&client, "outbox", "p", "start");
    let target = Target::kafka();
    let kafka = target.as_kafka().expect("it is one");
    let consumer = consumer(kafka);
    let note = format!(
        "One row waits; milliseconds from exec to the record in an independent consumer's hand. \
         Median of {starts} (min–max)."
    );
    report.table("Start-up into Kafka", &note, &["", "ms"]);
    let myself = std::env::current_exe().expect("a program has a file");
    let bare = |idempotence: &str| {
        let mut command = Command::new(&myself);
        command.args(["--client", &kafka.bootstrap(), "--idempotence", idempotence]);
        command
    };
    let row = |name: &str, command: &dyn Fn() -> Command| {
        let times = (0..=starts).map(|_| first_record(command(), &consumer));
        // The first start reads the program from the disk.
        let times: Vec<f64> = times.collect();
        [name.to_owned(), Spread::of(times.into_iter().skip(1)).show(1e-3, 0)]
    };
    report.row(&row("bare rdkafka client, acks=all", &|| bare("false")));
    // Waits for its producer id, which librdkafka first asks for before it is connected.
    report.row(&row("bare rdkafka client, idempotent", &|| bare("true")));
    for program in programs {
        let command = || {
            insert_row(&client, 0);
            relay(program, &server.url(), &target.url(), "start")
        };
        report.row(&row(&program.name(), &command));
    }
}

/// One row in a transaction of its own.
pub fn insert_row(client: &Client, number: u64) {
    client.run(&format!(
        "INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', 'order-{}', 'OrderPlaced', {})",
        number % 1000,
        payload(&number.to_string())
    ));
}

/// A consumer of what comes from now on.
pub fn consumer(kafka: &Kafka) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.bootstrap()).set("group.id", "bench");
    config.set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().expect("the configuration is right");
    let topic = topic("Order");
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let marks = consumer.fetch_watermarks(&topic, partition, WAIT_MAX);
        let (_, end) = marks.expect("the broker answers");
        let added = assignment.add_partition_offset(&topic, partition, Offset::Offset(end));
        added.expect("it exists");
    }
    consumer.assign(&assignment).expect("an assignment is only noted");
    // Its first fetches are on their way when nothing has come for a moment.
    drop(consumer.poll(Duration::from_millis(500)));
    consumer
}

/// Seconds from the start of a program to its record.
fn first_record(command: Command, consumer: &BaseConsumer) -> f64 {
    let log: PathBuf = scratch("run").join("log");
    let start = Instant::now();
    let mut process = Process::spawn(command, None, &log);
    let record = consumer.poll(WAIT_MAX).unwrap_or_else(|| process.give_up("no record came"));
    record.expect("a record without an error");
    let seconds = start.elapsed().as_secs_f64();
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(process.wait(WAIT_MAX).is_some(), "it does not stop");
    seconds
}

/// The bare client: one record, its confirm, the end.
pub fn client(bootstrap: &str, idempotence: bool) {
    let mut config = producer_config(bootstrap);
    config.set("enable.idempotence", idempotence.to_string());
    let producer: BaseProducer = config.create().expect("the configuration is right");
    let topic = topic("Order");
    producer.send(BaseRecord::to(&topic).key("order-1").payload("{}")).expect("there is room");
    producer.flush(WAIT_MAX).expect("the broker confirms");
}

/// As walpost's own producer promises.
pub fn producer_config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("acks", "all");
    config.set("enable.idempotence", "true").set("linger.ms", "0");
    config
}

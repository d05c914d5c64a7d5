//! From a commit's answer to the message in an independent consumer's hand, at a steady rate of
//! one-row transactions, next to a trivial client that produces after its own commit.
//!
//! The writer keeps its schedule whatever happens: a late commit counts from the moment of its
//! answer, and the next ones follow at once. Times are of one clock of one machine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};

use crate::Program;
use crate::backlog::{payload, relay, server};
use crate::start_up::{consumer, producer_config};
use crate::support::broker::topic;
use crate::support::nats::Nats;
use crate::support::postgres::{Client, Postgres};
use crate::support::process::{Process, scratch};
use crate::support::slot::{create_outbox, create_publication_and_slot, drop_slot};
use crate::table::{Report, quantile};
use crate::target::Target;

const ROWS_PER_SECOND: u64 = 1000;
/// Connections that write: one alone would wait for the disk.
const WRITERS: u64 = 4;
/// What comes first is not counted: connections open, the broker's compiler warms up.
const WARM_UP: Duration = Duration::from_secs(5);
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A row's number and when something happened to it.
type Event = (u64, Instant);

/// Who brings rows to the broker.
enum Bringer<'a> {
    Relay(&'a Program),
    Trivial,
}

/// Measures each program, and the floor below it, into Kafka and NATS.
pub fn measure(programs: &[Program], seconds: u64, report: &mut Report) {
    let note = format!(
        "{ROWS_PER_SECOND} rows/s, one row a transaction, {WRITERS} connections, {seconds} s \
         after a warm-up; milliseconds from the commit's answer to an independent consumer."
    );
    let columns = ["", "p50", "p99", "p99.9", "max", "its CPU, % of a core", "rows"];
    for target in [Target::kafka, Target::nats] {
        let target = target();
        let title = format!("Latency into {}", target.name());
        report.table(&title, &note, &columns);
        report.row(&run(&Bringer::Trivial, &target, seconds));
        for program in programs {
            report.row(&run(&Bringer::Relay(program), &target, seconds));
        }
    }
}

fn run(bringer: &Bringer<'_>, target: &Target, seconds: u64) -> [String; 7] {
    let server = server();
    let client = server.client();
    create_outbox(&client, "outbox");
    create_publication_and_slot(&client, "outbox", "p", "latency");
    let (name, process) = match bringer {
        Bringer::Trivial => ("produce after commit".to_owned(), None),
        Bringer::Relay(program) => {
            let log = scratch("run").join("log");
            let command = relay(program, &server.url(), &target.url(), "latency");
            (program.name(), Some(Process::spawn(command, None, &log)))
        }
    };
    let rows = (seconds + WARM_UP.as_secs()) * ROWS_PER_SECOND;
    let skip = WARM_UP.as_secs() * ROWS_PER_SECOND;
    let done = AtomicBool::new(false);
    let started = Instant::now();
    let (committed, arrived) = std::thread::scope(|scope| {
        // The consumer is there before anything is written.
        let (ready, is_ready) = mpsc::sync_channel(1);
        let done = &done;
        let consuming = scope.spawn(move || match (target.as_kafka(), target.as_nats()) {
            (Some(kafka), _) => {
                let consumer = consumer(kafka);
                ready.send(()).expect("somebody waits");
                consume_kafka(&consumer, rows, done)
            }
            (None, Some(nats)) => consume_nats(nats, rows, &ready),
            (None, None) => unreachable!("latency is measured with Kafka and NATS"),
        });
        is_ready.recv_timeout(WAIT_MAX).expect("the consumer starts");
        let produce = matches!(bringer, Bringer::Trivial);
        let committed = write(&server, rows, target, produce);
        let arrived = consuming.join().expect("the consumer does not panic");
        done.store(true, Ordering::Relaxed);
        (committed, arrived)
    });
    let elapsed = started.elapsed().as_secs_f64();
    let cpu = process.as_ref().and_then(|process| crate::support::relay::cpu_seconds(process.id()));
    if let Some(mut process) = process {
        process.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(process.wait(WAIT_MAX).is_some(), "it does not stop: {}", process.log());
    }
    drop_slot(&client, "latency");
    let mut at: Vec<Option<Instant>> = vec![None; rows as usize];
    for (number, instant) in arrived {
        at[number as usize].get_or_insert(instant);
    }
    let latency = |(number, committed): &Event| {
        let arrived = at[*number as usize].expect("every row arrives");
        // A consumer can be quicker than the writer's own answer.
        arrived.saturating_duration_since(*committed).as_secs_f64() * 1e3
    };
    let counted = committed.iter().filter(|(number, _)| *number >= skip);
    let mut latencies: Vec<f64> = counted.map(latency).collect();
    latencies.sort_by(f64::total_cmp);
    let show = |part| format!("{:.2}", quantile(&latencies, part));
    let cpu = cpu.map_or("–".to_owned(), |cpu| format!("{:.1}", 100.0 * cpu / elapsed));
    [name, show(0.5), show(0.99), show(0.999), show(1.0), cpu, latencies.len().to_string()]
}

/// Writes rows on schedule; says when each commit was answered.
fn write(server: &Postgres, rows: u64, target: &Target, produce: bool) -> Vec<Event> {
    let begin = Instant::now() + Duration::from_millis(100);
    let producer = produce.then(|| Trivial::new(target));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (client, producer) = (server.client(), producer.as_ref());
                scope.spawn(move || {
                    let numbers = (writer..rows).step_by(WRITERS as usize);
                    numbers
                        .map(|number| {
                            let due =
                                begin + Duration::from_micros(number * 1_000_000 / ROWS_PER_SECOND);
                            std::thread::sleep(due.saturating_duration_since(Instant::now()));
                            insert(&client, number);
                            let committed = Instant::now();
                            if let Some(producer) = producer {
                                producer.produce(number);
                            }
                            (number, committed)
                        })
                        .collect::<Vec<Event>>()
                })
            })
            .collect();
        let joined = writers.into_iter().map(|writer| writer.join().expect("writers write"));
        joined.flatten().collect()
    })
}

/// The number is the payload's and the key's: it is what a consumer knows a row by.
fn insert(client: &Client, number: u64) {
    client.run(&format!(
        "INSERT INTO outbox VALUES (gen_random_uuid(), 'Order', '{number}', 'OrderPlaced', {})",
        payload(&number.to_string())
    ));
}

/// The client that a developer would write first, with all its faults.
enum Trivial {
    Kafka(ThreadedProducer<DefaultProducerContext>),
    Nats(Box<async_nats::jetstream::Context>, tokio::runtime::Runtime),
}

impl Trivial {
    fn new(target: &Target) -> Trivial {
        match (target.as_kafka(), target.as_nats()) {
            (Some(kafka), _) => {
                let created = producer_config(&kafka.bootstrap()).create();
                Trivial::Kafka(created.expect("the configuration is right"))
            }
            (None, Some(nats)) => {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .expect("a runtime can be made");
                let context = runtime.block_on(nats.jetstream());
                Trivial::Nats(Box::new(context), runtime)
            }
            (None, None) => unreachable!("latency is measured with Kafka and NATS"),
        }
    }

    fn produce(&self, number: u64) {
        let (topic, key) = (topic("Order"), number.to_string());
        let payload = "x".repeat(200);
        match self {
            Trivial::Kafka(producer) => {
                let record = BaseRecord::to(&topic).key(&key).payload(&payload);
                producer.send(record).map_err(|(error, _)| error).expect("there is room");
            }
            Trivial::Nats(context, runtime) => {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("walpost-key", key.as_str());
                let publish = context.publish_with_headers(topic, headers, payload.into());
                // As with Kafka, the confirm is not waited for before the next commit.
                drop(runtime.block_on(publish).expect("it is sent"));
            }
        }
    }
}

fn consume_kafka(consumer: &BaseConsumer, rows: u64, done: &AtomicBool) -> Vec<Event> {
    let mut events = Vec::with_capacity(rows as usize);
    while events.len() < rows as usize && !done.load(Ordering::Relaxed) {
        let Some(record) = consumer.poll(WAIT_MAX) else { break };
        let arrived = Instant::now();
        let record = record.expect("a record without an error");
        let key = std::str::from_utf8(record.key().expect("a key")).expect("digits");
        events.push((key.parse().expect("a number"), arrived));
    }
    events
}

fn consume_nats(nats: &Nats, rows: u64, ready: &mpsc::SyncSender<()>) -> Vec<Event> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(async {
        let stream = nats.jetstream().await.get_stream("Order").await.expect("it is there");
        let config = async_nats::jetstream::consumer::push::OrderedConfig {
            deliver_subject: "bench.deliver".into(),
            deliver_policy: async_nats::jetstream::consumer::DeliverPolicy::New,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.expect("a consumer can be made");
        let mut messages = consumer.messages().await.expect("it delivers");
        ready.send(()).expect("somebody waits");
        let mut events = Vec::with_capacity(rows as usize);
        while events.len() < rows as usize {
            let Ok(message) = tokio::time::timeout(WAIT_MAX, messages.next()).await else { break };
            let message = message.expect("the stream goes on").expect("without an error");
            let arrived = Instant::now();
            let headers = message.headers.as_ref().expect("it has headers");
            let key = headers.get("walpost-key").expect("it has a key");
            events.push((key.as_str().parse().expect("a number"), arrived));
        }
        events
    })
}

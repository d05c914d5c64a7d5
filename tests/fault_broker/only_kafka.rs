//! What only Kafka has: topics and partitions that are each in a state of their own.

use super::*;
use crate::support::broker::topic;
use crate::support::kafka::Kafka;

/// Rows of one key, numbered in their payload.
fn insert(outbox: &Outbox, aggregate_type: &str, key: &str, numbers: std::ops::Range<u32>) {
    outbox.client.run(&format!(
        "INSERT INTO outbox SELECT gen_random_uuid(), '{aggregate_type}', '{key}', 'Made', \
         jsonb_build_object('n', n) FROM generate_series({}, {}) AS n",
        numbers.start,
        numbers.end - 1
    ));
}

fn says(relay: &Relay, words: &[&str]) -> bool {
    eventually(PATIENCE, || {
        let log = relay.log();
        log.lines().any(|line| words.iter().all(|word| line.contains(word)))
    })
}

#[test]
fn rows_of_a_key_keep_their_order_when_its_topic_changes() {
    // given rows of one key that go to two topics in turn, of which one does not exist
    let outbox = Outbox::fresh("across");
    let (late, there) = (format!("{}_late", outbox.name), format!("{}_there", outbox.name));
    shared(Kind::Kafka).prepare(&there);
    for (aggregate_type, number) in [(&late, 1), (&there, 2), (&late, 3), (&there, 4)] {
        insert(&outbox, aggregate_type, "wanderer", number..number + 1);
    }
    insert(&outbox, &there, "settler", 5..6);
    let url = shared(Kind::Kafka).url();
    let count = |aggregate_type: &str| shared(Kind::Kafka).kafka().count(&topic(aggregate_type));
    // when the relay meets them
    let mut relay = outbox.relay(&url).started();
    assert!(says(&relay, &["does not exist", &topic(&late)]), "{}", relay.log());
    assert!(eventually(PATIENCE, || count(&there) > 0), "{}", relay.log());
    // then the later ones of its key wait, in the other topic too, and another key does not
    let published = shared(Kind::Kafka).published(&there);
    assert_eq!(published.len(), 1);
    assert_eq!(published[0].key.as_deref(), Some(&b"settler"[..]));
    // when it is made
    shared(Kind::Kafka).prepare(&late);
    // then all arrive
    outbox.finish(&mut relay);
    assert_eq!((count(&late), count(&there)), (2, 3));
}

#[test]
fn a_topic_whose_only_replica_is_down_holds_up_its_own_rows_and_no_others() {
    // given a topic on each of two brokers
    let outbox = Outbox::fresh("replica");
    let (up, down) = (format!("{}_up", outbox.name), format!("{}_down", outbox.name));
    let first = Kafka::start();
    let mut second = first.start_beside();
    first.create_topic_on(&topic(&up), 1);
    first.create_topic_on(&topic(&down), 2);
    for aggregate_type in [&up, &down] {
        insert(&outbox, aggregate_type, aggregate_type, 0..10);
    }
    let mut relay = outbox.relay(&first.url()).started();
    assert!(outbox.drains(PATIENCE), "{}", relay.log());
    // when one is down, and rows go to both
    second.kill();
    let confirmed = outbox.confirmed();
    for step in 0..20 {
        for aggregate_type in [&down, &up] {
            // Keys of their own: a key that goes to both would wait in both.
            insert(&outbox, aggregate_type, &format!("{aggregate_type}-{step}"), 0..10);
        }
    }
    // then those of the other topic arrive, and the log names the one that waits
    let arrived = eventually(PATIENCE, || first.count(&topic(&up)) == 210);
    assert!(arrived, "{} of 210\n{}", first.count(&topic(&up)), relay.log());
    assert!(says(&relay, &["does not confirm some rows", &topic(&down)]), "{}", relay.log());
    // and the position is before it
    assert!(outbox.confirmed() < end_of_log(&outbox.client));
    assert!(confirmed <= outbox.confirmed());
    insert(&outbox, &up, "later", 0..10);
    let later = eventually(PATIENCE, || first.count(&topic(&up)) == 220);
    assert!(later, "{}", relay.log());
    // when it is back
    second.restart();
    // then nothing is missing, and nothing came twice
    outbox.finish(&mut relay);
    assert_eq!((first.count(&topic(&up)), first.count(&topic(&down))), (220, 210));
}

#[test]
fn a_frozen_broker_is_named_within_ten_seconds_and_costs_nothing() {
    let outbox = Outbox::fresh("frozen");
    let kafka = Kafka::start();
    kafka.create_topic(&topic(&outbox.name), 1, &[]);
    insert(&outbox, &outbox.name, "key", 0..10);
    let mut relay = outbox.relay(&kafka.url()).started();
    assert!(outbox.drains(PATIENCE), "{}", relay.log());
    // when it stands still, connections and all
    kafka.freeze();
    insert(&outbox, &outbox.name, "key", 10..20);
    // then the log says who waits for what
    let words = ["rows for topic", &topic(&outbox.name), "have waited"];
    let named = says(&relay, &words);
    kafka.thaw();
    assert!(named, "{}", relay.log());
    // when it goes on
    outbox.finish(&mut relay);
    assert_eq!(kafka.count(&topic(&outbox.name)), 20);
}

#[test]
fn a_topic_that_is_deleted_and_made_again_under_a_relay_gets_what_came_meanwhile() {
    let outbox = Outbox::fresh("recreated");
    let kafka = Kafka::start();
    let topic = topic(&outbox.name);
    kafka.create_topic(&topic, 4, &[]);
    insert(&outbox, &outbox.name, "key", 0..10);
    let mut relay = outbox.relay(&kafka.url()).started();
    assert!(outbox.drains(PATIENCE), "{}", relay.log());
    // when it is deleted while rows come
    kafka.delete_topic(&topic);
    insert(&outbox, &outbox.name, "key", 10..20);
    assert!(says(&relay, &["does not exist", &topic]), "{}", relay.log());
    // and made again, with fewer partitions
    kafka.create_topic(&topic, 1, &[]);
    insert(&outbox, &outbox.name, "key", 20..30);
    // then those rows are there, in order
    outbox.finish(&mut relay);
    let values: Vec<u64> = kafka
        .read_back(&topic)
        .iter()
        .map(|record| {
            let value: serde_json::Value =
                serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
            value["n"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(values, (10..30).collect::<Vec<u64>>(), "{}", relay.log());
}

#[test]
fn rows_that_are_older_than_their_topic_keeps_them_are_warned_of() {
    // given rows of two days ago, and a topic that keeps an hour
    let outbox = Outbox::fresh("aged");
    outbox
        .client
        .run("ALTER TABLE outbox ADD COLUMN created_at timestamptz NOT NULL DEFAULT now()");
    let kept = topic(&outbox.name);
    shared(Kind::Kafka).kafka().create_topic(&kept, 1, &[("retention.ms", "3600000")]);
    outbox.client.run(&format!(
        "INSERT INTO outbox SELECT gen_random_uuid(), '{}', 'key', 'Made', '{{}}', \
         now() - interval '2 days' FROM generate_series(1, 3)",
        outbox.name
    ));
    let url = shared(Kind::Kafka).url();
    // when they are published, then the log says that they will not stay
    let mut relay = outbox.relay(&url).started();
    let words = ["rows are older than the 1 h", &kept, "rows=3", "sink.timestamp"];
    assert!(says(&relay, &words), "{}", relay.log());
    outbox.finish(&mut relay);
    // and with the time of publishing there is nothing to say
    outbox.client.run(&format!(
        "INSERT INTO outbox SELECT gen_random_uuid(), '{}', 'key', 'Made', '{{}}', \
         now() - interval '2 days'",
        outbox.name
    ));
    let before = count(&relay.log(), "rows are older");
    let mut relay = outbox.relay(&url).args(&["--set", "sink.timestamp=now"]).started();
    outbox.finish(&mut relay);
    assert_eq!(count(&relay.log(), "rows are older"), 0, "{before} before");
    let records = shared(Kind::Kafka).kafka().read_back(&kept);
    let day = 86_400_000;
    let ages: Vec<i64> = records
        .iter()
        .map(|record| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_millis() as i64 - record.timestamp.unwrap()
        })
        .collect();
    assert_eq!(ages.iter().filter(|age| **age < day).count(), 1, "{ages:?}");
}

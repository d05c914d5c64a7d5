//! What two looks say about the time between them.

use super::*;
use crate::config::{QualifiedName, Secret};
use crate::outbox::Columns;

fn subject() -> Subject {
    Subject {
        settings: PostgresSettings {
            url: Secret::new("postgres://walpost@localhost/app"),
            slot: "walpost".into(),
            publication: "walpost".into(),
            table: QualifiedName { schema: "public".into(), name: "outbox".into() },
            memory_file: None,
            accept_gap: None,
            ack_interval: std::time::Duration::from_secs(1),
            row_bytes_max: 1 << 20,
            let_go_after: std::time::Duration::from_secs(1),
            former_name: None,
            format: crate::config::ValueFormat::Binary,
        },
        outbox: OutboxSettings {
            columns: Columns::debezium(),
            topic: "{aggregatetype}".into(),
            extra_headers: Vec::new(),
            partition: None,
        },
    }
}

fn member(oid: u32, version: u32) -> MemberLook {
    MemberLook { version: version.to_string(), content: format!("{{\"oid\": {oid}}}") }
}

/// A table of oid 10, made by transaction 100, which is in its publication since 101.
fn catalog() -> Catalog {
    Catalog {
        table: Some(TableLook {
            oid: 10,
            version: "100".into(),
            shape: "rpf id:2950".into(),
            leaves: Vec::new(),
            leaf_kinds: String::new(),
        }),
        publication: Some(PublicationLook {
            oid: 20,
            version: "101".into(),
            for_all_tables: false,
            content: "insert".into(),
        }),
        members: vec![member(30, 101)],
        slot: Some("pgoutput".into()),
        idle_slot_seconds: None,
    }
}

fn gap(before: &Catalog, now: &Catalog) -> Option<String> {
    subject().gap(before, now).map(|gap| gap.what)
}

#[test]
fn what_was_kept_all_along_hides_nothing() {
    let before = catalog();
    let mut now = before.clone();
    assert_eq!(gap(&before, &now), None);
    // a column, a partition, a second membership by the schema, an operation that is sent in vain
    now.table.as_mut().unwrap().shape.push_str(" topic:25");
    now.table.as_mut().unwrap().leaves.push(11);
    now.members.push(member(31, 200));
    now.publication.as_mut().unwrap().version = "201".into();
    now.publication.as_mut().unwrap().content = "insert, update".into();
    assert_eq!(gap(&before, &now), None);
}

#[test]
fn a_table_that_left_its_publication_between_two_looks_is_a_gap() {
    let before = catalog();
    let mut now = before.clone();
    now.members = vec![member(32, 200)];
    let what = gap(&before, &now).unwrap();
    assert!(what.contains("left publication walpost and joined it again"), "{what}");
}

#[test]
fn a_publication_that_was_made_again_or_changed_back_is_a_gap() {
    let before = catalog();
    let mut now = before.clone();
    now.publication.as_mut().unwrap().version = "200".into();
    assert!(gap(&before, &now).unwrap().contains("changed and changed back"));
    now.publication.as_mut().unwrap().oid = 21;
    assert!(gap(&before, &now).unwrap().contains("dropped and made again"));
}

#[test]
fn a_table_that_was_made_again_is_followed_only_where_it_never_was_outside() {
    let before = catalog();
    let mut now = before.clone();
    let table = now.table.as_mut().unwrap();
    (table.oid, table.version) = (11, "200".into());
    // added by a later transaction
    now.members = vec![member(33, 201)];
    assert!(gap(&before, &now).unwrap().contains("was made again"));
    // by the same one
    now.members = vec![member(33, 200)];
    assert_eq!(gap(&before, &now), None);
    // in a schema that is published, before and after
    let mut before = before;
    before.members = vec![member(34, 50)];
    now.members = vec![member(34, 50)];
    assert_eq!(gap(&before, &now), None);
    // or with all tables
    (before.members, now.members) = (Vec::new(), Vec::new());
    for catalog in [&mut before, &mut now] {
        catalog.publication.as_mut().unwrap().for_all_tables = true;
    }
    assert_eq!(gap(&before, &now), None);
}

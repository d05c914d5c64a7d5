//! The plain way of a row from each version of PostgreSQL. What speaks the protocol differs little
//! between them; what a version lacks (13: binary values) or words otherwise shows here.

use crate::support::broker::Kind;
use crate::support::postgres::{Client, Postgres, Version};
use crate::support::process::eventually;
use crate::support::stage::{PATIENCE, Stage, empty_outbox, quick_relay};

fn relays(version: Version) {
    // given a server of this version, and a relay
    let server = Postgres::start(version);
    let stage = Stage::set(&server, Kind::Nats, "version");
    let relay = stage.relay(&server).started();
    // when writers commit and roll back
    let mut workload = stage.workload(&server);
    workload.rows_per_connection = Some(500);
    let ledger = workload.start().finish();
    // then everything that was committed is there, once, in order, byte for byte
    stage.finish(&server, relay, &ledger);
}

#[test]
fn committed_rows_of_version_19_arrive() {
    if !Version::V19.is_left_out() {
        relays(Version::V19);
    }
}

#[test]
fn committed_rows_of_version_18_arrive() {
    relays(Version::V18);
}

#[test]
fn committed_rows_of_version_17_arrive() {
    relays(Version::V17);
}

#[test]
fn committed_rows_of_version_16_arrive() {
    relays(Version::V16);
}

#[test]
fn committed_rows_of_version_14_arrive() {
    relays(Version::V14);
}

#[test]
fn committed_rows_of_version_13_arrive() {
    relays(Version::V13);
}

#[test]
fn what_version_19_remarks_at_a_login_is_logged() {
    if Version::V19.is_left_out() {
        return;
    }
    // given a role whose password expires tomorrow
    let server = Postgres::start(Version::V19);
    let name = empty_outbox(&server, "remark");
    let access = server.data().join("pg_hba.conf");
    let rest = std::fs::read_to_string(&access).unwrap();
    let first = "host all asked 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(&access, format!("{first}{rest}")).unwrap();
    let client = server.client();
    client.run("CREATE ROLE asked SUPERUSER LOGIN REPLICATION PASSWORD 'right'");
    client.run(
        "DO $$ BEGIN EXECUTE format('ALTER ROLE asked VALID UNTIL %L', now() + '1 day'); END $$",
    );
    server.reload();
    let wrong = server.url_for(&name).replace("postgres@", "asked:wrong@");
    assert!(eventually(PATIENCE, || Client::connect(&wrong).is_err()), "pg_hba.conf is not read");
    // when a relay logs in with it
    let url = server.url_for(&name).replace("postgres@", "asked:right@");
    let mut relay = quick_relay(&url, "null://", &name).started();
    // then the server's words are in its log
    let said = || relay.log().contains("PostgreSQL says at login: ");
    assert!(eventually(PATIENCE, said), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
}

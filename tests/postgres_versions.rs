//! The plain way of a row from each version of PostgreSQL. What speaks the protocol differs little
//! between them; what a version lacks (13: binary values) or words otherwise shows here.

use crate::support::broker::Kind;
use crate::support::postgres::{Postgres, Version};
use crate::support::stage::Stage;

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

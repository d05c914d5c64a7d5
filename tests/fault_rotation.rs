//! A secret in a file that rotates while rows pass: the server takes the new one first, the file
//! follows, and the relay, refused in between, reads the file again at its next login.
//!
//! Kafka's is in `sink_kafka.rs`.

use std::fs;
use std::path::PathBuf;

use crate::support::broker::Kind;
use crate::support::checker::Judge;
use crate::support::database::Server;
use crate::support::mysql::{MySql, Version};
use crate::support::postgres::{Postgres, Version as PostgresVersion};
use crate::support::process::{eventually, scratch};
use crate::support::proxy::Ending;
use crate::support::relay::Relay;
use crate::support::stage::{AGGREGATE_TYPE, PATIENCE, Stage};

/// A file with one secret in it.
struct SecretFile(PathBuf);

impl SecretFile {
    fn of(secret: &str) -> SecretFile {
        let file = SecretFile(scratch("rotation").join("secret"));
        file.write(secret);
        file
    }

    fn write(&self, secret: &str) {
        fs::write(&self.0, format!("{secret}\n")).unwrap();
    }

    /// As a setting of the relay.
    fn of_key(&self, key: &str) -> String {
        format!("{key}={}", self.0.display())
    }
}

/// Under load: `rotate` on the server's side, which ends the relay's connections and refuses its
/// secret; then the file follows. Every row arrives, and nothing of a secret is in the log.
fn rotates<S: Server>(
    server: &S,
    stage: Stage,
    mut relay: Relay,
    rotate: impl FnOnce(&Stage),
    follow: impl FnOnce(),
) {
    relay.start();
    let writing = stage.workload(server).start();
    stage.await_rows(1, &relay);
    rotate(&stage);
    let refused = || relay.log().contains("retry");
    assert!(eventually(PATIENCE, refused), "{}", relay.log());
    follow();
    stage.await_rows(200, &relay);
    let ledger = writing.stop();
    assert!(stage.drains(server), "{}", relay.log());
    assert!(relay.terminate().success(), "{}", relay.log());
    for secret in ["s3cret", "SUAA"] {
        assert!(!relay.log().contains(secret), "{}", relay.log());
    }
    let mut stage = stage;
    Judge::new(&ledger, stage.broker.published(AGGREGATE_TYPE)).judge().assert_clean();
}

/// A server that asks two roles for passwords, and trusts everybody else.
fn asking_postgres() -> Postgres {
    let server = Postgres::start(PostgresVersion::V15);
    let rules = "host all rotating,rotated 127.0.0.1/32 scram-sha-256\n\
                 host all all 127.0.0.1/32 trust\n";
    fs::write(server.data().join("pg_hba.conf"), rules).unwrap();
    server.reload();
    let client = server.client();
    client.run("CREATE ROLE rotating SUPERUSER LOGIN REPLICATION PASSWORD 's3cret-1'");
    client.run("CREATE ROLE rotated SUPERUSER LOGIN REPLICATION PASSWORD 's3cret-2'");
    server
}

#[test]
fn a_password_of_postgres_that_rotates_in_its_file_is_picked_up() {
    let server = asking_postgres();
    let stage = Stage::set(&server, Kind::Nats, "rotating");
    let file = SecretFile::of("s3cret-1");
    let password = file.of_key("source.password_file");
    let relay = stage.relay_as(&server, "rotating").args(&["--set", &password]);
    let rotate = |stage: &Stage| {
        server.client().run("ALTER ROLE rotating PASSWORD 's3cret-2'");
        stage.to_database.cut_all(Ending::Reset);
    };
    rotates(&server, stage, relay, rotate, || file.write("s3cret-2"));
}

#[test]
fn a_url_of_postgres_that_rotates_in_its_file_may_name_another_user() {
    let server = asking_postgres();
    let stage = Stage::set(&server, Kind::Nats, "rotating_url");
    let url = |user: &str| {
        let (address, name) = (stage.to_database.addr(), &stage.name);
        format!("postgres://{user}@{address}/{name}")
    };
    let second = url("rotated:s3cret-2");
    let file = SecretFile::of(&url("rotating:s3cret-1"));
    let relay = stage.relay_by_environment("WALPOST_SOURCE_URL_FILE", &file.0);
    let rotate = |stage: &Stage| {
        server.client().run("ALTER ROLE rotating NOLOGIN");
        stage.to_database.cut_all(Ending::Reset);
    };
    rotates(&server, stage, relay, rotate, || file.write(&second));
}

fn of_mysql(server: &MySql) {
    let stage = Stage::set(server, Kind::Nats, "rotating");
    let user = stage.name.clone();
    let client = server.client();
    client.run(&format!("CREATE USER {user}@'%' IDENTIFIED BY 's3cret-1'"));
    client.run(&format!("GRANT ALL ON *.* TO {user}@'%'"));
    let file = SecretFile::of("s3cret-1");
    let password = file.of_key("source.password_file");
    let relay = stage.relay_as(server, &user).args(&["--set", &password]);
    let rotate = |stage: &Stage| {
        client.run(&format!("ALTER USER {user}@'%' IDENTIFIED BY 's3cret-2'"));
        stage.to_database.cut_all(Ending::Reset);
    };
    rotates(server, stage, relay, rotate, || file.write("s3cret-2"));
}

#[test]
fn a_password_of_mysql_that_rotates_in_its_file_is_picked_up() {
    if !Version::MySql97.is_left_out() {
        of_mysql(MySql::shared(Version::MySql97));
    }
}

#[test]
fn a_password_of_mariadb_that_rotates_in_its_file_is_picked_up() {
    if !Version::MariaDb1011.is_left_out() {
        of_mysql(MySql::shared(Version::MariaDb1011));
    }
}

#[test]
fn a_password_of_rabbitmq_that_rotates_in_its_file_is_picked_up() {
    let server = Postgres::shared();
    let stage = Stage::set(server, Kind::RabbitMq, "rotating_rabbitmq");
    let control = |arguments: &[&str]| stage.broker.rabbitmq().control(arguments);
    control(&["add_user", "rotating", "s3cret-1"]);
    control(&["set_permissions", "rotating", ".*", ".*", ".*"]);
    let file = SecretFile::of("s3cret-1");
    let sink = format!("amqp://rotating@{}/%2f", stage.to_broker.addr());
    let password = file.of_key("sink.password_file");
    let relay = stage.relay_into(server, &sink).args(&["--set", &password]);
    let rotate = |stage: &Stage| {
        stage.broker.rabbitmq().control(&["change_password", "rotating", "s3cret-2"]);
        stage.to_broker.cut_all(Ending::Reset);
    };
    rotates(server, stage, relay, rotate, || file.write("s3cret-2"));
}

/// Lets the test in without a login, and the relay as `user`.
fn authorization(user: &str) -> String {
    format!(
        "authorization {{ users: [ {{ user: test, password: test }}, {user} ] }}\n\
         no_auth_user: test\n"
    )
}

/// A stage whose relay logs in to NATS; `rotate` changes the server's mind.
fn of_nats(prefix: &str, users: [&str; 2], user: &str, key: &str, secrets: [&str; 2]) {
    let server = Postgres::shared();
    let mut stage = Stage::set(server, Kind::Nats, prefix);
    stage.broker.nats().configure(&authorization(users[0]));
    // A running server takes another user, but no `no_auth_user`.
    stage.broker.stop();
    stage.broker.restart();
    let file = SecretFile::of(secrets[0]);
    let sink = format!("nats://{user}{}", stage.to_broker.addr());
    let secret = file.of_key(key);
    let relay = stage.relay_into(server, &sink).args(&["--set", &secret]);
    let rotate = |stage: &Stage| stage.broker.nats().configure(&authorization(users[1]));
    rotates(server, stage, relay, rotate, || file.write(secrets[1]));
}

#[test]
fn a_password_of_nats_that_rotates_in_its_file_is_picked_up() {
    let users =
        ["{ user: relay, password: \"s3cret-1\" }", "{ user: relay, password: \"s3cret-2\" }"];
    let secrets = ["s3cret-1", "s3cret-2"];
    of_nats("rotating_nats", users, "relay@", "sink.password_file", secrets);
}

/// Made of 32 bytes of 1 and of 2.
#[test]
fn a_seed_of_nats_that_rotates_in_its_file_is_picked_up() {
    let users = [
        "{ nkey: UCFIRY65OQE7DFP5KLNS2PF2LVZMUZYJX4OZIEQ36N2IQANUB5XVZ45L }",
        "{ nkey: UCATS5YOVB6ROX2WUNKGNQ2MP3GMXDMKSG2O4N5CLX3A6W4PZGZZJPJO }",
    ];
    let seeds = [
        "SUAACAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAN7EY",
        "SUAAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAT6EE",
    ];
    of_nats("rotating_seed", users, "", "sink.nkey_seed_file", seeds);
}

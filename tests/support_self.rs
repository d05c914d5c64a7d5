//! The test support's own tests: servers that crash, a proxy that cuts, writers and the judge.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::checker::{Judge, Kind, Published, mark};
use crate::support::frames::{Direction, Event, Protocol};
use crate::support::ledger::Outcome;
use crate::support::mysql::{self, MySql};
use crate::support::postgres::{Client, Postgres, Version};
use crate::support::process::{Process, eventually, scratch};
use crate::support::proxy::{Action, Ending, Point, Proxy};
use crate::support::relay::{Relay, cpu_seconds, peak_rss_bytes};
use crate::support::slot::{
    create_outbox, create_publication_and_slot, create_slot, drop_slot, end_of_log, parse_lsn,
    slot_state, wait_drained, wait_inactive,
};
use crate::support::writer::{Shape, Workload, Writing};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A proxied connection: the proxy, the client's end and the server's end.
fn proxied() -> (Proxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap());
    let client = TcpStream::connect(proxy.addr()).unwrap();
    let (server, _) = listener.accept().unwrap();
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    }
    // The server may accept before the proxy has noted the connection.
    assert!(eventually(TIMEOUT, || proxy.open() == 1));
    (proxy, client, server)
}

#[test]
fn a_cut_strikes_after_exactly_so_many_bytes() {
    // given
    let (proxy, mut client, mut server) = proxied();
    proxy.cut_after_bytes(Direction::ToClient, 137, Ending::Fin);
    // when: the bytes come in several pieces
    for _ in 0..10 {
        // The connection may be cut by then.
        if server.write_all(&[7; 100]).is_err() {
            break;
        }
    }
    // then
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), 137);
    assert_eq!(proxy.forwarded(Direction::ToClient), 137);
    assert!(eventually(TIMEOUT, || proxy.open() == 0));
}

#[test]
fn a_reset_reaches_both_sides_as_a_reset() {
    let (proxy, mut client, mut server) = proxied();
    proxy.cut_all(Ending::Reset);
    for socket in [&mut client, &mut server] {
        let error = socket.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn an_end_of_stream_is_passed_on_and_the_other_direction_lives() {
    let (_proxy, mut client, mut server) = proxied();
    client.write_all(b"last words").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut heard = String::new();
    server.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "last words");
    server.write_all(b"answer").unwrap();
    drop(server);
    heard.clear();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "answer");
}

#[test]
fn a_blackhole_holds_bytes_back_until_it_is_resumed() {
    // given
    let (proxy, mut client, mut server) = proxied();
    proxy.blackhole(Direction::ToClient);
    // when
    server.write_all(b"held").unwrap();
    client.write_all(b"passes").unwrap();
    // then: the other direction goes on, this one is silent and open
    let mut heard = [0; 6];
    server.read_exact(&mut heard).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(client.read(&mut heard).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(proxy.forwarded(Direction::ToClient), 0);
    // and resumes whole
    proxy.resume();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut held = [0; 4];
    client.read_exact(&mut held).unwrap();
    assert_eq!(&held, b"held");
}

#[test]
fn swallowed_bytes_are_gone_and_counted() {
    let (proxy, mut client, mut server) = proxied();
    proxy.swallow(Direction::ToServer);
    client.write_all(b"lost").unwrap();
    assert!(eventually(TIMEOUT, || proxy.swallowed(Direction::ToServer) == 4));
    proxy.resume();
    client.write_all(b"kept").unwrap();
    let mut heard = [0; 4];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"kept");
}

#[test]
fn delay_and_throttle_take_at_least_their_time() {
    let (proxy, mut client, mut server) = proxied();
    proxy.delay(Direction::ToServer, Duration::from_millis(80));
    let begun = Instant::now();
    client.write_all(b"late").unwrap();
    server.read_exact(&mut [0; 4]).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(80));
    proxy.resume();
    proxy.throttle(Direction::ToServer, 10_000);
    let begun = Instant::now();
    client.write_all(&[0; 2_000]).unwrap();
    server.read_exact(&mut [0; 2_000]).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(150));
}

#[test]
fn refused_connections_end_and_open_ones_stay() {
    let (proxy, mut client, mut server) = proxied();
    proxy.refuse();
    let mut refused = TcpStream::connect(proxy.addr()).unwrap();
    refused.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(refused.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    client.write_all(b"on").unwrap();
    server.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(proxy.accepted(), 2);
}

#[test]
fn a_predicate_over_bytes_runs_an_action_before_they_pass() {
    let (proxy, mut client, mut server) = proxied();
    let trigger = proxy.when_bytes(
        Direction::ToServer,
        |bytes| bytes.ends_with(b"fatal"),
        Point::Before,
        Action::Cut(Ending::Fin),
    );
    client.write_all(b"fine ").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    assert!(!trigger.fired());
    client.write_all(b"fatal").unwrap();
    assert!(trigger.wait(TIMEOUT));
    assert_eq!(server.read(&mut [0; 10]).unwrap(), 0);
}

/// Runs `pg_recvlogical` on a slot until its connection ends; returns what it received.
fn receive(proxy: &Proxy, database: &str, slot: &str, options: &[&str]) -> Vec<u8> {
    let output = scratch("receive");
    let file = output.join("changes");
    let mut command = Command::new(Version::V15.programs().join("pg_recvlogical"));
    command.args(["-h", "127.0.0.1", "-U", "postgres", "--no-loop", "--start", "-F", "0"]);
    command.args(["-p", &proxy.addr().port().to_string(), "-d", database, "-S", slot]);
    command.arg("-f").arg(&file).args(options);
    let mut process = Process::spawn(command, None, &output.join("log"));
    if process.wait(TIMEOUT).is_none() {
        process.give_up("pg_recvlogical did not end");
    }
    std::fs::read(file).unwrap()
}

#[test]
fn a_cut_after_the_kth_xlogdata_delivers_exactly_k() {
    // given: five transactions of three messages each
    let server = Postgres::shared();
    let database = server.fresh_database("frames");
    let client = server.client_for(&database);
    client.run("CREATE TABLE numbers (number int)");
    create_slot(&client, &database, "test_decoding");
    for number in 0..5 {
        client.run(&format!("INSERT INTO numbers VALUES ({number})"));
    }
    for (count, point, expected) in
        [(5, Point::After, 5), (5, Point::Before, 4), (1, Point::Inside, 0)]
    {
        // when
        let proxy = Proxy::start_with(server.address(), Protocol::Postgres);
        let trigger = proxy.when(Event::XLogData, count, point, Action::Cut(Ending::Fin));
        let slot = format!("{database}_{count}_{point:?}").to_lowercase();
        client.run(&format!("SELECT pg_copy_logical_replication_slot('{database}', '{slot}')"));
        let received = receive(&proxy, &database, &slot, &[]);
        drop_slot(&client, &slot);
        // then
        assert!(trigger.fired());
        let received = String::from_utf8(received).unwrap();
        assert_eq!(received.lines().count(), expected, "{point:?}: {received}");
    }
    drop_slot(&client, &database);
}

#[test]
fn pgoutput_inserts_commits_and_feedback_are_counted() {
    // given
    let server = Postgres::shared();
    let database = server.fresh_database("pgoutput");
    let client = server.client_for(&database);
    create_outbox(&client, "outbox");
    create_publication_and_slot(&client, "outbox", "p", &database);
    let insert = "INSERT INTO outbox SELECT gen_random_uuid(), 'order', n::text, 't', '{}' \
                  FROM generate_series(1, 3) AS n";
    client.run(insert);
    client.run(insert);
    let proxy = Proxy::start_with(server.address(), Protocol::Postgres);
    let trigger = proxy.when(Event::Commit, 2, Point::After, Action::Cut(Ending::Fin));
    // when
    let options = ["-o", "proto_version=1", "-o", "publication_names=p"];
    receive(&proxy, &database, &database, &options);
    // then: B R I I I C and B I I I C
    assert!(trigger.fired());
    assert_eq!((proxy.seen(Event::Insert), proxy.seen(Event::Commit)), (6, 2));
    assert_eq!(proxy.seen(Event::XLogData), 11);
    // and a status update is told from other messages to the server: the client starts with one
    let proxy = Proxy::start_with(server.address(), Protocol::Postgres);
    let trigger = proxy.when(Event::Feedback, 1, Point::After, Action::Cut(Ending::Fin));
    assert!(wait_inactive(&client, &database, TIMEOUT));
    receive(&proxy, &database, &database, &options);
    assert!(trigger.fired());
    drop_slot(&client, &database);
}

#[test]
fn committed_rows_outlive_every_way_to_stop_a_server() {
    // given
    let mut server = Postgres::start(Version::V15);
    let client = server.client();
    client.run("CREATE TABLE numbers (number int); INSERT INTO numbers VALUES (1)");
    let open = server.client();
    open.run("BEGIN; INSERT INTO numbers VALUES (2)");
    for stop in [Postgres::kill, Postgres::stop_immediate, Postgres::stop_fast] {
        // when
        stop(&mut server);
        assert!(Client::connect(&server.url()).is_err());
        server.restart();
        // then
        let client = server.client();
        assert_eq!(client.number("SELECT sum(number) FROM numbers"), 1);
    }
    assert!(client.try_rows("SELECT 1").is_err(), "an old connection cannot live on");
    assert!(server.log().contains("was not properly shut down"));
}

#[test]
fn every_version_starts_with_logical_decoding() {
    use Version::{V13, V14, V15, V16, V17, V18};
    for (version, major) in [(V13, 13), (V14, 14), (V15, 15), (V16, 16), (V17, 17), (V18, 18)] {
        let server = Postgres::start(version);
        let client = server.client();
        assert_eq!(client.number("SHOW server_version_num") / 10_000, major);
        create_slot(&client, "s", "pgoutput");
    }
}

/// Everything that a `test_decoding` slot holds, as a broker with one partition would: inserts
/// in commit order, those of deleted rows too.
fn decoded(client: &Client, slot: &str) -> Vec<Published> {
    let sql = format!("SELECT data FROM pg_logical_slot_peek_changes('{slot}', NULL, NULL)");
    let rows = client.rows(&sql).into_iter().filter_map(|row| row.into_iter().next()?);
    let inserts = rows.filter(|data| data.starts_with("table public.outbox: INSERT:"));
    let column = |data: &str, before: &str, after: &str| {
        let start = data.find(before).unwrap() + before.len();
        let end = if after.is_empty() {
            data.len() - 1
        } else {
            start + data[start..].find(after).unwrap()
        };
        data[start..end].replace("''", "'").into_bytes()
    };
    inserts
        .enumerate()
        .map(|(position, data)| Published {
            stream: "slot".to_owned(),
            position: position as u64,
            key: Some(column(&data, "aggregateid[character varying]:'", "' type[")),
            value: Some(column(&data, "payload[jsonb]:'", "")),
            headers: vec![
                ("id".to_owned(), column(&data, " id[uuid]:'", "' aggregatetype[")),
                ("type".to_owned(), column(&data, " type[character varying]:'", "' payload[")),
            ],
        })
        .collect()
}

#[test]
fn what_the_writers_wrote_is_what_the_log_holds_and_the_judge_misses_no_row() {
    // given: a whole mix, interleaved with long transactions
    let server = Postgres::start(Version::V15);
    let client = server.client();
    create_outbox(&client, "outbox");
    create_slot(&client, "reader", "test_decoding");
    let writing = Workload {
        connections: 3,
        rows_per_second: None,
        rows_per_connection: Some(300),
        big_every: 100,
        big_bytes: 100_000,
        long_transactions: Some(Duration::from_millis(200)),
        ..Workload::new(&server.url(), "outbox")
    }
    .start();
    assert!(eventually(TIMEOUT, || writing.ledger().committed() > 600));
    // when
    let ledger = writing.stop();
    let messages = decoded(&client, "reader");
    // then: nothing stands against the log itself
    let report = Judge::new(&ledger, messages.clone())
        .confirmed(end_of_log(&client), &messages)
        .duplicates_max(0)
        .judge();
    report.assert_clean();
    assert!(report.rolled_back > 0 && report.sampled_rows == report.committed, "{report}");
    // and a row taken away is missed, by the sample too
    let mut fewer = messages.clone();
    fewer.remove(fewer.len() / 2);
    let report = Judge::new(&ledger, fewer.clone()).confirmed(end_of_log(&client), &fewer).judge();
    assert_eq!((report.count(Kind::Loss), report.count(Kind::ConfirmedUnpublished)), (1, 1));
    // and a replay counts as duplicates of its restart
    let mut replayed = messages.clone();
    let restart = mark(&messages);
    replayed.extend(messages.iter().take(7).map(|message| Published {
        position: message.position + messages.len() as u64,
        ..message.clone()
    }));
    let report = Judge::new(&ledger, replayed).restart(restart).judge();
    report.assert_clean();
    assert_eq!(report.duplicates_after_restart, [7]);
}

#[test]
fn writers_know_their_outcomes_through_crashes_of_the_server() {
    // given
    let mut server = Postgres::start(Version::V15);
    let client = server.client();
    create_outbox(&client, "outbox");
    create_slot(&client, "reader", "test_decoding");
    let workload = Workload {
        connections: 4,
        rows_per_second: None,
        ..Workload::new(&server.url(), "outbox")
    };
    let writing: Writing = workload.start();
    // when: the server dies in the middle of work, again and again
    for crash in [Postgres::kill, Postgres::stop_immediate, Postgres::kill] {
        let before = writing.ledger().committed();
        assert!(eventually(TIMEOUT, || writing.ledger().committed() > before + 50));
        crash(&mut server);
        server.restart();
    }
    let ledger = writing.stop();
    // then: the log holds what the ledger says, no more and no less
    let messages = decoded(&server.client(), "reader");
    Judge::new(&ledger, messages).duplicates_max(0).judge().assert_clean();
}

#[test]
fn an_unanswered_commit_is_settled_by_the_server() {
    // given: the answer to COMMIT never arrives
    let server = Postgres::shared();
    let database = server.fresh_database("unknown");
    let client = server.client_for(&database);
    create_outbox(&client, "outbox");
    let proxy = Proxy::start_with(server.address(), Protocol::Postgres);
    let cut = proxy.when_bytes(
        Direction::ToClient,
        |bytes| bytes.windows(7).any(|window| window == b"COMMIT\0"),
        Point::Before,
        Action::Cut(Ending::Reset),
    );
    // when
    let writing = Workload {
        connections: 1,
        rows_per_second: None,
        rows_per_connection: Some(20),
        mix: vec![(Shape::OneRow, 1)],
        ..Workload::new(&server.url_at(proxy.addr(), &database), "outbox")
    }
    .start();
    let ledger = writing.finish();
    // then: the row counts as committed, with a bound
    assert!(cut.fired());
    let rows = ledger.rows();
    assert!(matches!(rows[0].1, Outcome::Committed { position_max } if position_max < u64::MAX));
    assert_eq!(client.number("SELECT count(*) FROM outbox"), ledger.committed() as i64);
}

#[test]
fn a_slot_is_drained_once_it_confirmed_the_end_of_the_log() {
    let server = Postgres::shared();
    let database = server.fresh_database("drained");
    let client = server.client_for(&database);
    create_slot(&client, &database, "pgoutput");
    client.run("CREATE TABLE numbers (number int)");
    let end = end_of_log(&client);
    assert!(!wait_drained(&client, &database, end, Duration::from_millis(50)));
    client.run(&format!(
        "SELECT pg_replication_slot_advance('{database}', '{:X}/{:X}')",
        end >> 32,
        end & 0xffff_ffff
    ));
    assert!(wait_drained(&client, &database, end, TIMEOUT));
    let state = slot_state(&client, &database).unwrap();
    assert!(state.confirmed_flush_lsn >= end && state.active_pid.is_none());
    assert_eq!(state.wal_status.as_deref(), Some("reserved"));
    assert_eq!(parse_lsn("16/B374D848"), 0x16_B374_D848);
    drop_slot(&client, &database);
    assert_eq!(slot_state(&client, &database), None);
}

#[test]
fn memory_and_cpu_of_a_process_can_be_read() {
    let id = std::process::id();
    assert!(peak_rss_bytes(id).unwrap() > 1 << 20);
    assert!(cpu_seconds(id).is_some());
    assert_eq!(peak_rss_bytes(u32::MAX), None);
}

#[test]
fn a_relay_that_left_can_be_started_again() {
    // given: an argument that nobody knows, so that it leaves at once
    let mut relay = Relay::new("postgres://127.0.0.1:1/none", "null:").args(&["--no-such-flag"]);
    for starts in 1..=2 {
        // when
        relay.start();
        relay.wait_exit();
        // then
        assert!(!relay.is_running());
        assert_eq!(relay.starts(), starts);
    }
}

#[test]
fn a_killed_mysql_or_mariadb_keeps_what_it_acknowledged_and_its_name() {
    for version in mysql::Version::present() {
        // given
        let mut server = MySql::start(version);
        let database = server.fresh_database("killed");
        let client = server.client_for(&database);
        client.run("CREATE TABLE t (n INT PRIMARY KEY, b BLOB); INSERT INTO t VALUES (1, 'x')");
        let name = if version.is_mariadb() { "@@server_id" } else { "@@server_uuid" };
        let name = |client: &mysql::Client| client.value(&format!("SELECT {name}"));
        let before = name(&client);
        // when
        server.kill();
        assert!(client.try_rows("SELECT 1").is_err(), "{version:?}: it still answers");
        server.restart();
        // then
        let client = server.client_for(&database);
        assert_eq!(client.rows("SELECT n, b FROM t"), [[Some("1".into()), Some("x".into())]]);
        assert_eq!(name(&client), before);
        assert_eq!(client.value("SELECT @@binlog_format").as_deref(), Some("ROW"));
        // and it stands still and goes on when told to, and stops when asked
        server.freeze();
        server.thaw();
        assert_eq!(client.number("SELECT COUNT(*) FROM t"), 1);
        server.restart();
        assert_eq!(server.client_for(&database).number("SELECT COUNT(*) FROM t"), 1);
    }
}

#[test]
fn each_mysql_has_a_name_of_its_own_though_their_data_is_a_copy() {
    if mysql::Version::MySql97.is_left_out() {
        return;
    }
    let options = [mysql::GTIDS_OFF, &["--innodb-lock-wait-timeout=7"]].concat();
    let server = MySql::start_with(mysql::Version::MySql97, &options);
    let other = server.client();
    let shared = MySql::shared(mysql::Version::MySql97).client();
    for name in ["@@server_uuid", "@@server_id"] {
        let name = format!("SELECT {name}");
        assert_ne!(shared.value(&name), other.value(&name));
    }
    assert_eq!(shared.value("SELECT @@gtid_mode").as_deref(), Some("ON"));
    assert_eq!(other.value("SELECT @@gtid_mode").as_deref(), Some("OFF"));
    assert_eq!(other.number("SELECT @@innodb_lock_wait_timeout"), 7);
}

//! Every way to connect and log in, against real PostgreSQL servers: one with TLS by an
//! authority, one without TLS, one with a self-signed certificate that has only a Common Name,
//! one with a certificate of version 1.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use walpost::FailureKind;
use walpost::source::postgres::{
    ConnInfo, ConnectError, Connection, Purpose, connect, connect_sql,
};

use crate::support::process::{Process, eventually, free_port, scratch};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Everything that the servers need, made once by the user who runs them.
const MAKE_FILES: &str = r#"set -e
authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -sha256 \
    -subj "/CN=$1" -keyout "$1.key" -out "$1.crt"
}
signed() { # name, authority, common name, alternative names
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 \
    -subj "/CN=$3" -keyout "$1.key" -out "$1.csr"
  printf 'subjectAltName=%s\n' "$4" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 2 -sha256 \
    -extfile "$1.ext" -out "$1.crt"
}
authority root
mkdir forged
(cd forged && authority root)
authority other
signed server root ignored "DNS:localhost,IP:127.0.0.1"
signed client root cert_user "DNS:cert_user"
openssl req -newkey rsa:2048 -nodes -sha256 -subj "/CN=localhost" -keyout v1.key -out v1.csr
openssl x509 -req -in v1.csr -CA root.crt -CAkey root.key -CAcreateserial -days 2 -out v1.crt
openssl x509 -in v1.crt -noout -text | grep 'Version: 1'
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -sha384 -subj "/CN=localhost" \
  -keyout self.key -out self.crt
chmod 0600 ./*.key
cp client.key open.key
chmod 0644 open.key
"$BIN/initdb" -D tls -U postgres -A trust --locale=C --encoding=UTF8 --no-sync
cat > tls/pg_hba.conf <<'END'
local all password_user              password
local all all                        trust
host  all trust_user    127.0.0.0/8  trust
host  all read_only     127.0.0.0/8  trust
host  all full          127.0.0.0/8  trust
host  all no_replica    127.0.0.0/8  trust
host  all no_login      127.0.0.0/8  trust
host  all password_user 127.0.0.0/8  password
host  all md5_user      127.0.0.0/8  md5
host  all scram_user    127.0.0.0/8  scram-sha-256
host  all rotating      127.0.0.0/8  scram-sha-256
host  all many_rounds   127.0.0.0/8  scram-sha-256
host  all endless       127.0.0.0/8  scram-sha-256
hostssl   all tls_only   127.0.0.0/8 scram-sha-256
hostnossl all plain_only 127.0.0.0/8 scram-sha-256
hostssl   all cert_user  127.0.0.0/8 cert
END
cat >> tls/postgresql.conf <<'END'
listen_addresses = '127.0.0.1,127.0.0.2'
wal_level = logical
fsync = off
max_connections = 60
END
cat > roles.sql <<'END'
CREATE ROLE trust_user LOGIN REPLICATION;
CREATE ROLE read_only LOGIN;
ALTER ROLE read_only SET default_transaction_read_only = on;
CREATE ROLE "full" LOGIN CONNECTION LIMIT 0;
CREATE ROLE no_replica LOGIN;
CREATE ROLE no_login NOLOGIN;
CREATE ROLE cert_user LOGIN REPLICATION;
CREATE ROLE password_user LOGIN PASSWORD 'right';
CREATE ROLE scram_user LOGIN REPLICATION PASSWORD 'right';
CREATE ROLE rotating LOGIN PASSWORD 'first';
CREATE ROLE many_rounds LOGIN PASSWORD 'SCRAM-SHA-256$250000:MDEyMzQ1Njc4OWFiY2RlZg==$u9zLBwF9CGcxo1RRkITed9G+o2DPMPw5h+e8r6vVJKk=:Qt4t+IBLcUYCo9BjkrLNQgvuRU7Kv/J4OCnNwjSnPi0=';
CREATE ROLE endless LOGIN PASSWORD 'SCRAM-SHA-256$2000001:MDEyMzQ1Njc4OWFiY2RlZg==$ZEVxNBCIwRGxcdrVvamctmdFlibwAMNrjH2ln0Cp0Dk=:NQHCqEsWOA/lSmXRwEl1zwkbfirAayamSp+hvlJVwhI=';
CREATE ROLE tls_only LOGIN PASSWORD 'right';
CREATE ROLE plain_only LOGIN PASSWORD 'right';
SET password_encryption = 'md5';
CREATE ROLE md5_user LOGIN PASSWORD 'right';
END
"$BIN/postgres" --single -D tls postgres < roles.sql
cp -r tls plain
cp -r tls self
cp -r tls v1
"#;

/// The servers' folders and ports; the processes end with the test binary.
struct Servers {
    folder: PathBuf,
    tls: u16,
    plain: u16,
    self_signed: u16,
    version_1: u16,
    _processes: Vec<Process>,
}

fn servers() -> &'static Servers {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let folder = scratch("connect");
        let mut script = Command::new("sh");
        script.args(["-c", MAKE_FILES]).env("BIN", BIN).current_dir(&folder);
        let mut script = Process::spawn(script, Some("postgres"), &folder.join("make.log"));
        match script.wait(Duration::from_secs(60)) {
            Some(status) if status.success() => {}
            _ => script.give_up("certificates, data folder or roles could not be made"),
        }
        let mut processes = Vec::new();
        let mut start = |name: &str, certificate: Option<&str>| {
            let (process, port) = start_server(&folder, name, certificate);
            processes.push(process);
            port
        };
        let tls = start("tls", Some("server"));
        let plain = start("plain", None);
        let self_signed = start("self", Some("self"));
        let version_1 = start("v1", Some("v1"));
        Servers { folder, tls, plain, self_signed, version_1, _processes: processes }
    })
}

fn start_server(folder: &Path, name: &str, certificate: Option<&str>) -> (Process, u16) {
    let port = free_port();
    let mut command = Command::new(format!("{BIN}/postgres"));
    command.arg("-D").arg(folder.join(name));
    command.arg("-p").arg(port.to_string()).current_dir(folder);
    command.arg("-c").arg(format!("unix_socket_directories={}", folder.display()));
    if let Some(certificate) = certificate {
        for (setting, file) in [
            ("ssl_cert_file", format!("{certificate}.crt")),
            ("ssl_key_file", format!("{certificate}.key")),
            ("ssl_ca_file", "root.crt".to_owned()),
        ] {
            command.arg("-c").arg(format!("{setting}={}", folder.join(file).display()));
        }
        command.args(["-c", "ssl=on"]);
    }
    let mut process =
        Process::spawn(command, Some("postgres"), &folder.join(format!("{name}.log")));
    let ready = || {
        let mut probe = Command::new(format!("{BIN}/pg_isready"));
        probe.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
        probe.status().is_ok_and(|status| status.success())
    };
    if !eventually(Duration::from_secs(30), ready) {
        process.give_up("PostgreSQL did not start");
    }
    (process, port)
}

fn info(host: &str, port: u16, user: &str, more: &str) -> ConnInfo {
    let home = "passfile=/nonexistent";
    let text = format!("host={host} port={port} user={user} dbname=postgres {home} {more}");
    ConnInfo::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Runs one login on the server with TLS: what the server says of it, or the error.
async fn login(port: u16, host: &str, user: &str, more: &str) -> Result<bool, ConnectError> {
    let mut connection = connect(&info(host, port, user, more), Purpose::Sql).await?;
    let query = "SELECT ssl, current_user FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let rows = connection.simple_query(query).await.expect("a login can ask");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0][1].as_deref(), Some(user));
    let encrypted = rows[0][0].as_deref() == Some("t");
    assert_eq!(encrypted, connection.stream().is_tls());
    connection.close().await.expect("a good connection closes");
    Ok(encrypted)
}

/// What libpq itself makes of the same connection string; `None` when it is refused.
fn libpq(port: u16, host: &str, user: &str, more: &str) -> Option<bool> {
    let mut psql = Command::new(format!("{BIN}/psql"));
    psql.arg("-XAt").arg("-c").arg("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
    psql.arg(format!("host={host} port={port} user={user} dbname=postgres {more}"));
    psql.env("HOME", "/nonexistent").env("PGPASSFILE", "/nonexistent").arg("-w");
    let output = psql.output().expect("psql starts");
    match String::from_utf8_lossy(&output.stdout).trim() {
        "t" => Some(true),
        "f" => Some(false),
        _ => None,
    }
}

fn shown(error: &ConnectError) -> String {
    walpost::Failure::new(error.kind(), format!("{error:?} {error}")).to_string()
}

#[tokio::test]
async fn every_sslmode_does_what_libpq_says_with_and_without_tls() {
    let servers = servers();
    let file = |name: &str| servers.folder.join(name).display().to_string();
    let (right, wrong) =
        (format!("sslrootcert={}", file("root.crt")), format!("sslrootcert={}", file("other.crt")));
    let forged = format!("sslrootcert={}", file("forged/root.crt"));
    let (named, other) = ("localhost", "127.0.0.2");
    // given: mode, root, host; then: encrypted, not encrypted, or refused, by each server
    const TLS: Option<bool> = Some(true);
    const PLAIN: Option<bool> = Some(false);
    const NO: Option<bool> = None;
    for (mode, root, host, with_tls, without_tls) in [
        ("disable", "", named, PLAIN, PLAIN),
        ("allow", "", named, PLAIN, PLAIN),
        ("prefer", "", named, TLS, PLAIN),
        ("prefer", wrong.as_str(), named, PLAIN, PLAIN),
        ("prefer", right.as_str(), other, TLS, PLAIN),
        ("require", "", named, TLS, NO),
        ("require", "", other, TLS, NO),
        ("require", right.as_str(), named, TLS, NO),
        ("require", right.as_str(), other, TLS, NO),
        ("require", wrong.as_str(), named, NO, NO),
        ("verify-ca", right.as_str(), named, TLS, NO),
        ("verify-ca", right.as_str(), other, TLS, NO),
        ("verify-ca", wrong.as_str(), named, NO, NO),
        ("verify-full", right.as_str(), named, TLS, NO),
        ("verify-full", right.as_str(), "127.0.0.1", TLS, NO),
        ("verify-full", right.as_str(), other, NO, NO),
        ("verify-full", wrong.as_str(), named, NO, NO),
        ("verify-ca", forged.as_str(), named, NO, NO),
    ] {
        for (port, expected) in [(servers.tls, with_tls), (servers.plain, without_tls)] {
            // when
            let more = format!("sslmode={mode} {root} password=right");
            let outcome = login(port, host, "scram_user", &more).await;
            // then
            let case = format!("{more} to {host}, TLS: {}", port == servers.tls);
            assert_eq!(libpq(port, host, "scram_user", &more), expected, "libpq: {case}");
            match (outcome, expected) {
                (Ok(encrypted), Some(expected)) => assert_eq!(encrypted, expected, "{case}"),
                (Err(error), None) => {
                    assert_eq!(error.kind(), FailureKind::Transient, "{case}: {}", shown(&error));
                }
                (Ok(_), None) => panic!("{case}: was let in"),
                (Err(error), Some(_)) => panic!("{case}: {}", shown(&error)),
            }
        }
    }
}

/// As PostgreSQL 16 stores them with `scram_iterations`; older servers read them too.
#[tokio::test]
async fn scram_is_computed_up_to_a_limit_that_is_named() {
    let servers = servers();
    let more = "sslmode=prefer connect_timeout=60 password=";
    // given a password of 250,000 iterations, and one of more than walpost computes
    let right = login(servers.tls, "127.0.0.1", "many_rounds", &format!("{more}right")).await;
    assert!(right.unwrap());
    let wrong = login(servers.tls, "127.0.0.1", "many_rounds", &format!("{more}wrong")).await;
    assert_eq!(wrong.unwrap_err().kind(), FailureKind::Denied);
    let error = login(servers.tls, "127.0.0.1", "endless", &format!("{more}right")).await;
    // then the limit is named, and nobody is accused
    let error = error.unwrap_err();
    let text = walpost::Failure::new(error.kind(), error).to_string();
    assert!(text.contains("2000001 iterations") && text.contains("at most 2000000"), "{text}");
    assert!(text.contains("scram_iterations"), "{text}");
}

#[tokio::test]
async fn a_certificate_problem_names_its_remedy() {
    let servers = servers();
    for (root, host, remedy) in
        [("other.crt", "localhost", "sslrootcert"), ("root.crt", "127.0.0.2", "sslmode=verify-ca")]
    {
        let root = servers.folder.join(root).display().to_string();
        let more = format!("sslmode=verify-full sslrootcert={root} password=right");
        let error = login(servers.tls, host, "scram_user", &more).await.unwrap_err();
        assert!(error.to_string().contains(remedy), "{}", shown(&error));
    }
    let error = login(servers.tls, "127.0.0.1", "scram_user", "sslmode=require sslrootcert=/no")
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::CertificateFile(_)), "{}", shown(&error));
}

#[tokio::test]
async fn prefer_and_allow_change_sides_when_the_server_refuses_the_login() {
    let servers = servers();
    let user = |user: &'static str, mode: &str| {
        let more = format!("sslmode={mode} password=right");
        async move { login(servers.tls, "127.0.0.1", user, &more).await }
    };
    assert!(!user("plain_only", "prefer").await.unwrap());
    assert!(user("tls_only", "allow").await.unwrap());
    assert!(user("password_user", "allow").await.unwrap(), "clear text needs TLS");
    for (role, mode) in [("plain_only", "require"), ("tls_only", "disable")] {
        let error = user(role, mode).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Denied);
        assert!(error.to_string().contains("pg_hba.conf"), "{}", shown(&error));
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_root_and_its_common_name_counts() {
    let servers = servers();
    let root = format!("sslrootcert={}", servers.folder.join("self.crt").display());
    // channel binding over SHA-384, since the certificate is signed with it
    let more = format!("sslmode=verify-full {root} password=right channel_binding=require");
    assert!(login(servers.self_signed, "localhost", "scram_user", &more).await.unwrap());
    assert!(login(servers.self_signed, "127.0.0.1", "scram_user", &more).await.is_err());
    let root = format!("sslrootcert={}", servers.folder.join("root.crt").display());
    let more = format!("sslmode=verify-ca {root} password=right");
    assert!(login(servers.self_signed, "localhost", "scram_user", &more).await.is_err());
}

#[tokio::test]
async fn a_certificate_of_version_1_is_judged_by_the_same_rules() {
    let servers = servers();
    for (mode, root, host, good) in [
        ("require", None, "127.0.0.1", true),
        ("verify-ca", Some("root.crt"), "127.0.0.1", true),
        ("verify-ca", Some("other.crt"), "localhost", false),
        // it was not signed by this one, although that has the same name as its subject
        ("verify-ca", Some("self.crt"), "localhost", false),
        // same name as the right authority, another key
        ("verify-ca", Some("forged/root.crt"), "localhost", false),
        ("verify-full", Some("root.crt"), "localhost", true),
        ("verify-full", Some("root.crt"), "127.0.0.1", false),
    ] {
        let root = root.map(|root| format!("sslrootcert={}", servers.folder.join(root).display()));
        let more = format!("sslmode={mode} {} password=right", root.unwrap_or_default());
        let outcome = login(servers.version_1, host, "scram_user", &more).await;
        let of_libpq = libpq(servers.version_1, host, "scram_user", &more);
        assert_eq!(of_libpq.is_some(), good, "libpq: {more} to {host}");
        match outcome {
            Ok(_) => assert!(good, "{more} to {host}: was let in"),
            Err(error) => assert!(!good, "{more} to {host}: {}", shown(&error)),
        }
    }
}

#[tokio::test]
async fn each_authentication_lets_the_right_password_in_and_no_other() {
    let servers = servers();
    for (port, mode) in
        [(servers.tls, "require"), (servers.tls, "disable"), (servers.plain, "prefer")]
    {
        for user in ["trust_user", "password_user", "md5_user", "scram_user"] {
            let more = |password: &str| format!("sslmode={mode} {password}");
            let case = format!("{user}, {mode}");
            // when the password is right
            let outcome = login(port, "127.0.0.1", user, &more("password=right")).await;
            // then it is let in, unless the password would have been readable on the way
            if user == "password_user" && mode != "require" {
                let error = outcome.expect_err(&case);
                assert_eq!(error.kind(), FailureKind::Definite, "{}", shown(&error));
                assert!(shown(&error).contains("PlainText"), "{}", shown(&error));
                continue;
            }
            outcome.unwrap_or_else(|error| panic!("{case}: {}", shown(&error)));
            // when it is wrong, or none is given
            for password in ["password=wrong", ""] {
                let outcome = login(port, "127.0.0.1", user, &more(password)).await;
                if user == "trust_user" {
                    outcome.expect("trust asks for no password");
                    continue;
                }
                // then it is refused
                let error = outcome.expect_err(&case);
                assert_eq!(error.kind(), FailureKind::Denied, "{case}: {}", shown(&error));
                if !password.is_empty() {
                    assert_eq!(error.server_error().unwrap().code, "28P01");
                    assert!(error.to_string().contains(user), "{error}");
                    assert!(!shown(&error).contains("wrong"), "{}", shown(&error));
                }
            }
        }
    }
}

#[tokio::test]
async fn channel_binding_is_used_over_tls_and_missed_elsewhere() {
    let servers = servers();
    let folder = servers.folder.display().to_string();
    let bound = |mode: &str| format!("sslmode={mode} channel_binding=require password=right");
    for purpose in [Purpose::Sql, Purpose::Replication] {
        let info = info("127.0.0.1", servers.tls, "scram_user", &bound("require"));
        connect(&info, purpose).await.expect("both sides can");
    }
    for (host, user, mode) in [
        ("127.0.0.1", "scram_user", "disable"),
        ("127.0.0.1", "md5_user", "require"),
        ("127.0.0.1", "password_user", "require"),
        ("127.0.0.1", "trust_user", "require"),
        (folder.as_str(), "scram_user", "require"),
    ] {
        let error = login(servers.tls, host, user, &bound(mode)).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Denied, "{user}: {}", shown(&error));
        assert!(shown(&error).contains("BindingMissing"), "{user}: {}", shown(&error));
    }
    // the server, too, sees that it was left out, and lets it be
    let more = "sslmode=require channel_binding=disable password=right";
    assert!(login(servers.tls, "127.0.0.1", "scram_user", more).await.unwrap());
}

#[tokio::test]
async fn a_client_certificate_logs_in_and_its_key_must_be_private() {
    let servers = servers();
    let more = |key: &str| {
        let folder = servers.folder.display();
        format!("sslmode=require sslcert={folder}/client.crt sslkey={folder}/{key}")
    };
    assert!(login(servers.tls, "127.0.0.1", "cert_user", &more("client.key")).await.unwrap());
    let error = login(servers.tls, "127.0.0.1", "cert_user", &more("open.key")).await.unwrap_err();
    assert!(matches!(error, ConnectError::CertificateFile(_)), "{}", shown(&error));
    let error = login(servers.tls, "127.0.0.1", "cert_user", "sslmode=require").await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied, "{}", shown(&error));
}

#[tokio::test]
async fn a_unix_socket_needs_no_tls_and_may_carry_a_password() {
    let servers = servers();
    let folder = servers.folder.display().to_string();
    for more in ["sslmode=require", "sslmode=disable"] {
        assert!(!login(servers.tls, &folder, "scram_user", more).await.unwrap());
    }
    assert!(!login(servers.tls, &folder, "password_user", "password=right").await.unwrap());
    let error = login(1, &folder, "scram_user", "").await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{}", shown(&error));
}

#[tokio::test]
async fn refusals_say_who_and_what_to_run() {
    let servers = servers();
    let port = servers.tls;
    let replication = |user: &str| info("127.0.0.1", port, user, "");
    let error = connect(&replication("no_replica"), Purpose::Replication).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert!(error.to_string().contains("ALTER ROLE \"no_replica\" REPLICATION"), "{error}");
    assert_eq!(error.server_error().unwrap().code, "42501");

    let error = connect(&replication("no_login"), Purpose::Sql).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert!(error.to_string().contains("ALTER ROLE \"no_login\" LOGIN"), "{error}");

    let error = connect(&replication("full"), Purpose::Sql).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Transient);
    assert_eq!(error.server_error().unwrap().code, "53300");

    let text = format!("postgres://trust_user@127.0.0.1:{port}/nowhere?passfile=/nonexistent");
    let error = connect(&ConnInfo::parse(&text).unwrap(), Purpose::Sql).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Definite);
    assert!(error.to_string().contains("CREATE DATABASE \"nowhere\""), "{error}");
}

#[tokio::test]
async fn hosts_are_tried_in_order_until_one_will_do() {
    let servers = servers();
    let (dead, live) = (free_port(), servers.tls);
    // given a host that refuses, one that does not exist, one that is starting up, and a good one
    let starting =
        answer_with(b"E\0\0\0\x28SFATAL\0VFATAL\0C57P03\0Mstarting up\0\0\0\0\0\0").await;
    let text = format!(
        "host=127.0.0.1,walpost.invalid,127.0.0.1,127.0.0.1 port={dead},5432,{starting},{live} \
         user=trust_user dbname=postgres sslmode=disable"
    );
    // when, then
    let connection = connect(&ConnInfo::parse(&text).unwrap(), Purpose::Sql).await.unwrap();
    assert!(connection.parameter("server_version").unwrap().starts_with("15"));
    // given only bad ones
    let text = text.replace(&format!(",{live}"), "").replacen(",127.0.0.1", "", 1);
    let error = connect(&ConnInfo::parse(&text).unwrap(), Purpose::Sql).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Transient, "{}", shown(&error));
    for part in [&format!("127.0.0.1:{dead}"), "walpost.invalid", "57P03"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // given one that is only read from
    let read_only = info("127.0.0.1", live, "read_only", "target_session_attrs=read-write");
    let error = connect(&read_only, Purpose::Sql).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotPrimary { .. }), "{}", shown(&error));
    let primary = info("127.0.0.1", live, "read_only", "target_session_attrs=primary");
    connect(&primary, Purpose::Sql).await.expect("it is the primary");
}

/// A peer that gives one answer to whoever connects first.
async fn answer_with(answer: &'static [u8]) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut startup = [0; 1024];
            if stream.read(&mut startup).await.is_ok_and(|length| length > 0) {
                drop(stream.write_all(answer).await);
                drop(stream.read(&mut startup).await);
            }
        }
    });
    port
}

#[tokio::test]
async fn a_peer_that_is_no_postgres_ends_in_an_error() {
    for (answer, part) in [
        (&b"R\0\0\0\x03"[..], "TooShort"),
        (&b"R\x10\0\0\0"[..], "TooLong"),
        (&b"HTTP/1.1 400 Bad Request\r\n"[..], "TooLong"),
        (&b"R\0\0\0\x08\0\0\0\x63"[..], "Unsupported"),
        (&b"R\0\0\0\x05\0"[..], "Malformed"),
        // AuthenticationSASL, then AuthenticationOk without the server's proof
        (&b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0R\0\0\0\x08\0\0\0\0"[..], "Scram"),
        (&b""[..], "TimedOut"),
    ] {
        let port = answer_with(answer).await;
        let more = "sslmode=disable password=right connect_timeout=1";
        let outcome = connect(&info("127.0.0.1", port, "anybody", more), Purpose::Sql).await;
        let error = outcome.expect_err("a stranger");
        assert!(shown(&error).contains(part), "{}", shown(&error));
    }
}

#[tokio::test]
async fn a_stranger_who_asks_for_the_password_in_clear_does_not_get_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stranger = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = vec![0; 1024];
        let length = stream.read(&mut heard).await.unwrap();
        heard.truncate(length);
        stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    });
    let info = info("127.0.0.1", port, "anybody", "sslmode=disable password=topsecret");
    connect_sql(&info).await.expect_err("clear text without TLS");
    let heard = String::from_utf8_lossy(&stranger.await.unwrap()).into_owned();
    assert!(heard.contains("anybody") && !heard.contains("topsecret"), "{heard}");
}

#[tokio::test]
async fn a_rotated_password_file_is_read_at_the_next_connect() {
    let servers = servers();
    let file = servers.folder.join("rotating");
    let info = info(
        "127.0.0.1",
        servers.tls,
        "rotating",
        &format!("password_file={} sslmode=require", file.display()),
    );
    fs::write(&file, "first\n").unwrap();
    connect(&info, Purpose::Sql).await.expect("the first password");
    // when the role's password changes, then the file
    let admin = self::info(&servers.folder.display().to_string(), servers.tls, "postgres", "");
    let mut admin = connect(&admin, Purpose::Sql).await.unwrap();
    admin.simple_query("ALTER ROLE rotating PASSWORD 'second'").await.unwrap();
    let error = connect(&info, Purpose::Sql).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    fs::write(&file, "second\n").unwrap();
    connect(&info, Purpose::Sql).await.expect("the second password");
}

async fn replication(host: &str, mode: &str) -> Connection {
    let more = format!("sslmode={mode} password=right options='-c wal_sender_timeout=7777'");
    let info = info(host, servers().tls, "scram_user", &more);
    connect(&info, Purpose::Replication).await.unwrap()
}

#[tokio::test]
async fn a_replication_connection_answers_queries_and_streams() {
    let servers = servers();
    let folder = servers.folder.display().to_string();
    for (host, mode, has_mark) in
        [("127.0.0.1", "require", true), ("127.0.0.1", "disable", true), (&folder, "prefer", false)]
    {
        // given
        let mut connection = replication(host, mode).await;
        let system = connection.simple_query("IDENTIFY_SYSTEM").await.unwrap();
        assert_eq!(system[0].len(), 4);
        assert_eq!(system[0][3].as_deref(), Some("postgres"));
        let rows = connection.simple_query("SELECT 1, NULL, ''; SELECT 'two'").await.unwrap();
        assert_eq!(rows, [vec![Some("1".into()), None, Some("".into())], vec![Some("two".into())]]);
        for (setting, value) in
            [("wal_sender_timeout", "7777ms"), ("TimeZone", "UTC"), ("client_encoding", "UTF8")]
        {
            let rows = connection.simple_query(&format!("SHOW {setting}")).await.unwrap();
            assert_eq!(rows[0][0].as_deref(), Some(value), "{setting}");
        }
        // an error leaves it usable
        for wrong in ["SELECT wrong", "START_REPLICATION SLOT none LOGICAL 0/0"] {
            let error = connection.start_copy_both(wrong).await.unwrap_err();
            assert_eq!(error.server().unwrap().severity, "ERROR");
        }
        let slot = format!("connect_{mode}");
        let create = format!("CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL test_decoding");
        connection.simple_query(&create).await.unwrap();
        // when
        let start = format!("START_REPLICATION SLOT {slot} LOGICAL 0/0");
        connection.start_copy_both(&start).await.unwrap();
        let (mut stream, mut buffer) = connection.into_parts();
        assert_eq!(stream.set_receive_low_water(1).unwrap(), has_mark);
        let mut ping = b"d\0\0\0\x26r".to_vec();
        ping.extend_from_slice(&[0; 32]);
        ping.push(1);
        stream.write_all(&ping).await.unwrap();
        stream.flush().await.unwrap();
        // then a keepalive answers: CopyData of 18 bytes, 'k'
        while buffer.len() < 6 {
            assert_ne!(stream.read_buf(&mut buffer).await.unwrap(), 0);
        }
        assert_eq!(&buffer[..6], b"d\0\0\0\x16k");
    }
}

#[tokio::test]
async fn the_receive_mark_holds_a_reader_back() {
    let mut connection = replication("127.0.0.1", "disable").await;
    let mark = connection.stream().set_receive_low_water(16 * 1024).unwrap();
    assert!(mark, "TCP has it");
    // given an answer of some 80 bytes: below the mark, so it does not wake us
    let query = connection.simple_query("IDENTIFY_SYSTEM");
    let waited = tokio::time::timeout(Duration::from_millis(300), query).await;
    assert!(waited.is_err(), "the mark was ignored");
}

#[tokio::test]
async fn sql_goes_the_same_way_with_the_same_protection() {
    let servers = servers();
    let root = servers.folder.join("root.crt").display().to_string();
    let more = format!(
        "sslmode=verify-full sslrootcert={root} channel_binding=require password=right \
         application_name='my relay'"
    );
    let mut client =
        connect_sql(&info("localhost", servers.tls, "scram_user", &more)).await.unwrap();
    let query = "SELECT ssl, $1::int4 + 1, current_setting('application_name'), repeat('x', 300000)
                 FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = client.query_one(query, &[&41_i32]).await.unwrap();
    assert!(row.get::<_, bool>(0));
    assert_eq!(row.get::<_, i32>(1), 42);
    assert_eq!(row.get::<_, &str>(2), "my relay");
    assert_eq!(row.get::<_, &str>(3).len(), 300_000);
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("SELECT 1").await.unwrap();
    transaction.commit().await.unwrap();
    client.close().await.unwrap();

    let error = connect_sql(&info("localhost", servers.tls, "scram_user", "password=wrong"))
        .await
        .unwrap_err();
    assert_eq!(error.server_error().unwrap().code, "28P01");
}

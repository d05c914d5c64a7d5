//! Every way to connect and log in, against real servers: MySQL and MariaDB, each with TLS by an
//! authority and without; and the first packets of a stream of the binlog.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use walpost::source::mysql::{
    BinlogStream, ConnInfo, ConnectError, Connection, DumpError, Flavor, Sent, StreamLimits,
    StreamSettings, connect, sql_connect,
};
use walpost::{Budget, FailureKind};

use crate::support::mysql::{MySql, Version};
use crate::support::process::{Process, free_port, scratch};

/// Certificates, made once by the user who runs the servers.
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
authority other
signed server root ignored "DNS:localhost,IP:127.0.0.1"
signed client root walpost "DNS:walpost"
chmod 0600 ./*.key
"#;

/// A password that has to be decoded, and would show where it must not.
const PASSWORD: &str = "p@ss/wörd";
const ENCODED: &str = "p%40ss%2Fw%C3%B6rd";

struct Servers {
    folder: PathBuf,
    /// With TLS.
    mysql: Option<MySql>,
    mariadb: Option<MySql>,
    /// Without.
    plain_mysql: Option<MySql>,
}

fn servers() -> &'static Servers {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let folder = scratch("mysql-connect");
        let mut script = Command::new("sh");
        script.args(["-c", MAKE_FILES]).current_dir(&folder);
        let mut script = Process::spawn(script, Some("mysql"), &folder.join("make.log"));
        match script.wait(Duration::from_secs(60)) {
            Some(status) if status.success() => {}
            _ => script.give_up("certificates could not be made"),
        }
        let option = |name: &str, file: &str| format!("--{name}={}/{file}", folder.display());
        let (ca, certificate, key) = (
            option("ssl-ca", "root.crt"),
            option("ssl-cert", "server.crt"),
            option("ssl-key", "server.key"),
        );
        let tls = [ca.as_str(), &certificate, &key];
        let start = |version: Version, options: &[&str]| {
            (!version.is_left_out()).then(|| MySql::start_with(version, options))
        };
        let mysql = start(Version::MySql97, &tls);
        let plain_mysql = start(Version::MySql97, &["--tls-version="]);
        let ed25519 = [&tls[..], &["--plugin-load-add=auth_ed25519"]].concat();
        let mariadb = start(Version::MariaDb1011, &ed25519);
        for server in [&mysql, &plain_mysql, &mariadb].into_iter().flatten() {
            make_users(server);
        }
        Servers { folder, mysql, mariadb, plain_mysql }
    })
}

fn make_users(server: &MySql) {
    let client = server.client();
    client.run("CREATE DATABASE shop");
    client.run(&format!("CREATE USER plain@'%' IDENTIFIED BY '{PASSWORD}'"));
    client.run("CREATE USER nopass@'%' IDENTIFIED BY ''");
    client.run("CREATE USER no_replica@'%' IDENTIFIED BY ''");
    client.run("GRANT REPLICATION SLAVE ON *.* TO plain@'%'");
    client.run("GRANT ALL ON shop.* TO plain@'%'");
    client.run("GRANT ALL ON shop.* TO nopass@'%'");
    client.run("CREATE USER certified@'%' IDENTIFIED BY '' REQUIRE X509");
    if server.version().is_mariadb() {
        client.run(&format!(
            "CREATE USER signing@'%' IDENTIFIED VIA ed25519 USING PASSWORD('{PASSWORD}')"
        ));
        client.run("CREATE USER unix_only@localhost IDENTIFIED VIA unix_socket");
        client.run("CREATE USER unix_only@'%' IDENTIFIED VIA unix_socket");
    }
}

fn url(server: &MySql, host: &str, user: &str, more: &str) -> String {
    format!("mysql://{user}@{host}:{}/?{more}", server.port())
}

fn info(url: &str) -> ConnInfo {
    ConnInfo::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Logs in on both of our ways; says whether it is encrypted. They must agree.
async fn login(url: &str) -> Result<bool, ConnectError> {
    let info = info(url);
    let cipher = "SHOW SESSION STATUS LIKE 'Ssl_cipher'";
    let stream = match connect(&info).await {
        Ok(mut connection) => {
            let rows = connection.query(cipher).await.expect("a login can ask");
            let encrypted = rows[0][1].as_deref() != Some("");
            assert_eq!(encrypted, connection.socket().is_tls());
            connection.close().await.expect("a good connection closes");
            Ok(encrypted)
        }
        Err(error) => Err(error),
    };
    let sql = match sql_connect(&info).await {
        Ok(mut conn) => {
            let row: (String, String) = conn.query_first(cipher).await.unwrap().expect("a row");
            conn.disconnect().await.expect("a good connection closes");
            Ok(!row.1.is_empty())
        }
        Err(error) => Err(error),
    };
    match (&stream, &sql) {
        (Ok(first), Ok(second)) => assert_eq!(first, second, "{url}"),
        (Err(first), Err(second)) => {
            assert_eq!(first.kind(), second.kind(), "{url}: {} {}", shown(first), shown(second));
            for error in [first, second] {
                assert!(!shown(error).contains(PASSWORD), "{}", shown(error));
            }
        }
        (Ok(_), Err(error)) => panic!("{url}: only SQL failed: {}", shown(error)),
        (Err(error), Ok(_)) => panic!("{url}: only the stream failed: {}", shown(error)),
    }
    stream
}

fn shown(error: &ConnectError) -> String {
    walpost::Failure::new(error.kind(), format!("{error:?} {error}")).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mode_of_tls_checks_what_it_says_with_and_without_tls() {
    let servers = servers();
    let file = |name: &str| servers.folder.join(name).display().to_string();
    let (right, wrong) = (file("root.crt"), file("other.crt"));
    const TLS: Option<bool> = Some(true);
    const PLAIN: Option<bool> = Some(false);
    // given: mode, authority, host; then: encrypted, not encrypted, or refused
    let verify = format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={right}");
    let stranger = format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={wrong}");
    let system = "sslmode=verify-full".to_owned();
    let implied = format!("ssl-ca={right}");
    let cases = [
        ("ssl-mode=DISABLED", "localhost", PLAIN, PLAIN),
        ("", "localhost", TLS, PLAIN),
        ("ssl-mode=PREFERRED", "127.0.0.1", TLS, PLAIN),
        ("ssl-mode=REQUIRED", "127.0.0.1", TLS, None),
        (verify.as_str(), "localhost", TLS, None),
        (&verify, "127.0.0.1", TLS, None),
        (&implied, "localhost", TLS, None),
        (&verify, "127.0.0.1.nip.invalid", None, None),
        (&stranger, "localhost", None, None),
        (&system, "localhost", None, None),
    ];
    let plain_mariadb =
        (!Version::MariaDb1011.is_left_out()).then(|| MySql::shared(Version::MariaDb1011));
    for (server, has_tls) in [
        (servers.mysql.as_ref(), true),
        (servers.mariadb.as_ref(), true),
        (servers.plain_mysql.as_ref(), false),
        (plain_mariadb, false),
    ] {
        let Some(server) = server else { continue };
        for (more, host, with, without) in &cases {
            let url = url(server, host, "root", more);
            let expected = if has_tls { with } else { without };
            match login(&url).await {
                Ok(encrypted) => assert_eq!(Some(encrypted), *expected, "{url}"),
                Err(error) => assert_eq!(None, *expected, "{url}: {}", shown(&error)),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_does_not_fit_is_refused_by_its_reason() {
    let servers = servers();
    let Some(server) = &servers.mysql else { return };
    let file = |name: &str| servers.folder.join(name).display().to_string();
    // given an authority that did not sign it
    let more = format!("ssl-ca={}", file("other.crt"));
    let error = login(&url(server, "localhost", "root", &more)).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert!(error.to_string().contains("ssl-ca file"), "{error}");
    // given a name that it does not carry: MySQL's own certificates carry none
    let own = MySql::start(Version::MySql97);
    let more = format!("ssl-ca={}/ca.pem", own.data().display());
    let copy = servers.folder.join("own-ca.pem");
    fs::copy(own.data().join("ca.pem"), &copy).unwrap();
    let copied = format!("ssl-ca={}", copy.display());
    let error = login(&url(&own, "localhost", "root", &copied)).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied, "{more}");
    assert!(error.to_string().contains("subject alternative name"), "{}", shown(&error));
    // given a server without TLS
    if let Some(plain) = &servers.plain_mysql {
        let error = login(&url(plain, "localhost", "root", "ssl-mode=REQUIRED")).await.unwrap_err();
        assert!(matches!(error, ConnectError::TlsRefused { .. }), "{}", shown(&error));
        assert!(error.to_string().contains("ssl_cert"), "{error}");
    }
    // given files that are none
    for more in ["ssl-ca=/nonexistent", "ssl-mode=REQUIRED&ssl-cert=/nonexistent&ssl-key=/x"] {
        let error = connect(&info(&url(server, "localhost", "root", more))).await.unwrap_err();
        assert!(matches!(error, ConnectError::CertificateFile(_)), "{}", shown(&error));
        assert_eq!(error.kind(), FailureKind::Denied);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_logs_in() {
    let servers = servers();
    let folder = servers.folder.display();
    let certificate = format!("&ssl-cert={folder}/client.crt&ssl-key={folder}/client.key");
    for server in [&servers.mysql, &servers.mariadb].into_iter().flatten() {
        let with =
            url(server, "localhost", "certified", &format!("ssl-mode=REQUIRED{certificate}"));
        assert!(login(&with).await.unwrap());
        let without = url(server, "localhost", "certified", "ssl-mode=REQUIRED");
        let error = login(&without).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Denied, "{}", shown(&error));
    }
}

/// Logs in as each user on each way, with the right password, a wrong one and none.
async fn check_passwords(server: &MySql, user: &str, prepare: impl Fn()) {
    let socket = format!("socket={}", server.socket().display());
    let in_clear = "ssl-mode=DISABLED&get-server-public-key=true";
    for more in [in_clear, "ssl-mode=REQUIRED", socket.as_str()] {
        let case = format!("{:?} {user} {more}", server.version());
        let with = |password: &str| url(server, "127.0.0.1", &format!("{user}{password}"), more);
        prepare();
        // The second time the server may remember it.
        for _ in 0..2 {
            let outcome = login(&with(&format!(":{ENCODED}"))).await;
            let encrypted = outcome.unwrap_or_else(|error| panic!("{case}: {}", shown(&error)));
            assert_eq!(encrypted, more == "ssl-mode=REQUIRED", "{case}");
        }
        for password in [":wrong", ""] {
            let error = login(&with(password)).await.expect_err(&case);
            assert_eq!(error.kind(), FailureKind::Denied, "{case}: {}", shown(&error));
            assert_eq!(error.server_error().expect("the server's").code, 1045, "{case}");
            let text = error.to_string();
            assert!(text.contains(user) && text.contains("check the password"), "{text}");
            assert!(!shown(&error).contains("wrong\""), "{}", shown(&error));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sha2_lets_the_right_password_in_by_all_ways_at_first_use_and_later() {
    let Some(server) = &servers().mysql else { return };
    // The server forgets which passwords it has seen: the whole password goes, by TLS, the
    // socket, or its RSA key.
    let client = server.client();
    check_passwords(server, "plain", || client.run("FLUSH PRIVILEGES")).await;
    for more in ["ssl-mode=DISABLED", "ssl-mode=REQUIRED"] {
        login(&url(server, "127.0.0.1", "nopass", more)).await.expect("an empty password is one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sha2_needs_no_tls_on_the_server_for_the_first_use() {
    let Some(server) = &servers().plain_mysql else { return };
    server.client().run("FLUSH PRIVILEGES");
    let user = format!("plain:{ENCODED}");
    // Without a word from the user, nothing is encrypted for a key of whoever answers.
    let bare = url(server, "127.0.0.1", &user, "");
    let error = login(&bare).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert!(error_chain(&error).contains("get-server-public-key=true"), "{}", shown(&error));
    let url = url(server, "127.0.0.1", &user, "get-server-public-key=true");
    let mut connection = connect(&info(&url)).await.expect("by the server's RSA key");
    assert_eq!(connection.query("SELECT 1").await.unwrap(), [[Some("1".into())]]);
    // The server has seen the password now, and a proof of it is enough.
    login(&bare).await.expect("a proof by its hash");
}

/// As an operator reads it.
fn error_chain(error: &ConnectError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_hands_out_a_key_does_not_get_the_password() {
    for mysql_async in [false, true] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stranger = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&greeting()).await.unwrap();
            let mut heard = vec![0; 1024];
            let length = stream.read(&mut heard).await.unwrap();
            heard.truncate(length);
            stream.write_all(&packet(2, b"\x01\x04")).await.unwrap();
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).await.unwrap();
            asked
        });
        let url = format!("mysql://anybody:topsecret@127.0.0.1:{port}/?ssl-mode=DISABLED");
        let error = match mysql_async {
            true => sql_connect(&info(&url)).await.map(|_| ()).unwrap_err(),
            false => connect(&info(&url)).await.map(|_| ()).unwrap_err(),
        };
        assert!(shown(&error).contains("WholePassword"), "{}", shown(&error));
        assert_eq!(stranger.await.unwrap(), b"", "it was asked for its key");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_tls_is_of_another_age_is_named_with_the_ways_out() {
    if Version::MySql8015.is_left_out() {
        return;
    }
    let server = MySql::start(Version::MySql8015);
    let error = login(&url(&server, "127.0.0.1", "root", "")).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    let text = error_chain(&error);
    assert!(text.contains("share no version or cipher"), "{text}");
    assert!(text.contains("ssl-mode=DISABLED") && text.contains("socket="), "{text}");
    login(&url(&server, "127.0.0.1", "root", "ssl-mode=DISABLED")).await.expect("in clear");
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_logs_in_by_native_password_and_by_signature() {
    let Some(server) = &servers().mariadb else { return };
    check_passwords(server, "plain", || {}).await;
    check_passwords(server, "signing", || {}).await;
    login(&url(server, "127.0.0.1", "nopass", "")).await.expect("an empty password is one");
    // An account that the Unix user decides is told apart from a wrong password.
    let socket = format!("socket={}", server.socket().display());
    let error = login(&url(server, "x", "unix_only", &socket)).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Denied);
    assert_eq!(error.server_error().unwrap().code, 1698, "{}", shown(&error));
    assert!(error.to_string().contains("Unix user"), "{error}");
}

/// The library that speaks SQL fails one of 256 such logins, by what the server wants signed.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_of_whatever_the_server_wants_signed_logs_in() {
    const LOGINS: u32 = 1_000;
    let Some(server) = &servers().mariadb else { return };
    let user = format!("signing:{ENCODED}");
    let info = info(&url(server, "127.0.0.1", &user, "ssl-mode=DISABLED"));
    for login in 0..LOGINS {
        let conn = sql_connect(&info).await;
        let conn = conn.unwrap_or_else(|error| panic!("login {login}: {}", shown(&error)));
        conn.disconnect().await.expect("a good connection closes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_who_and_what_to_do() {
    for version in Version::present() {
        // Of its own, since it will be full.
        let server = &MySql::start(version);
        let client = server.client();
        client.run("CREATE USER nopass@'%' IDENTIFIED BY ''");
        let nowhere = format!("mysql://root@127.0.0.1:{}/nowhere", server.port());
        let error = login(&nowhere).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Definite);
        assert_eq!(error.server_error().unwrap().code, 1049);
        let foreign = format!("mysql://nopass@127.0.0.1:{}/mysql", server.port());
        let error = login(&foreign).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Denied);
        assert!(error.to_string().contains("GRANT"), "{error}");

        client.run("SET GLOBAL max_connections = 10");
        // One more is let in for whoever may kill the others, so the account must not be root.
        let url = url(server, "127.0.0.1", "nopass", "");
        let mut held = Vec::new();
        let error = loop {
            match connect(&info(&url)).await {
                Ok(connection) => held.push(connection),
                Err(error) => break error,
            }
            assert!(held.len() < 50, "no limit");
        };
        let second = sql_connect(&info(&url)).await.unwrap_err();
        for error in [error, second] {
            assert_eq!(error.kind(), FailureKind::Transient, "{}", shown(&error));
            assert_eq!(error.server_error().unwrap().code, 1040, "{}", shown(&error));
            assert!(error.to_string().contains("max_connections"), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_tried_in_order_until_one_will_do_and_a_second_connection_finds_it() {
    for version in Version::present() {
        let server = MySql::shared(version);
        let (dead, live) = (free_port(), server.port());
        let text = format!(
            "mariadb://root@127.0.0.1:{dead},walpost.invalid,127.0.0.1:{live}/?connect_timeout=5"
        );
        let connection = connect(&info(&text)).await.unwrap();
        assert_eq!(connection.server().to_string(), format!("127.0.0.1:{live}"));
        let flavor = if version.is_mariadb() { Flavor::MariaDb } else { Flavor::MySql };
        assert_eq!(connection.greeting().flavor(), flavor);
        let mut sql = sql_connect(connection.server()).await.unwrap();
        let port: u16 = sql.query_first("SELECT @@port").await.unwrap().unwrap();
        assert_eq!(port, live);
        sql_connect(&info(&text)).await.unwrap();
        // given only bad ones
        let text = text.replace(&format!(",127.0.0.1:{live}"), "");
        let error = connect(&info(&text)).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Transient, "{}", shown(&error));
        for part in [&format!("127.0.0.1:{dead}"), "walpost.invalid"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_answer_with_rows_counts_and_errors_and_go_on() {
    for version in Version::present() {
        let server = MySql::shared(version);
        let database = server.fresh_database("statements");
        let mut connection = connect(&info(&server.url_for(&database))).await.unwrap();
        let rows = connection.query("SELECT 1, NULL, '', 'é', REPEAT('x', 300000)").await.unwrap();
        let long = "x".repeat(300_000);
        let row = [Some("1"), None, Some(""), Some("é"), Some(long.as_str())];
        assert_eq!(rows[0].iter().map(Option::as_deref).collect::<Vec<_>>(), row);
        assert!(connection.query("SELECT 1 FROM DUAL WHERE FALSE").await.unwrap().is_empty());
        connection.execute("CREATE TABLE t (n INT PRIMARY KEY, v INT)").await.unwrap();
        assert_eq!(connection.execute("INSERT INTO t VALUES (1, 1), (2, 2)").await.unwrap(), 2);
        // Found, though not changed.
        assert_eq!(connection.execute("UPDATE t SET v = 1 WHERE n = 1").await.unwrap(), 1);
        assert_eq!(connection.execute("UPDATE t SET v = 1 WHERE n = 9").await.unwrap(), 0);
        let mut sql = sql_connect(connection.server()).await.unwrap();
        sql.query_drop("UPDATE t SET v = 1 WHERE n = 1").await.unwrap();
        assert_eq!(sql.affected_rows(), 1);
        // An error leaves it usable; several statements at once are one.
        for wrong in ["SELECT wrong", "SELECT 1; SELECT 2"] {
            let error = connection.query(wrong).await.unwrap_err();
            assert!(error.server().is_some(), "{error:?}");
        }
        connection.ping().await.unwrap();
        // A file of ours is never sent.
        let error = connection.query("LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE t").await;
        assert!(error.is_err());
        connection.close().await.unwrap();
    }
}

/// A peer that says one thing to whoever connects, and closes after the first answer.
async fn answer_with(answer: Vec<u8>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(stream.write_all(&answer).await);
            drop(stream.read(&mut [0; 1024]).await);
        }
    });
    port
}

fn greeting() -> Vec<u8> {
    let mut payload = b"\x0a9.7.4\0\x08\0\0\0abcdefgh\0\xff\xff\xff\x02\0\xff\xdf\x15".to_vec();
    payload.extend_from_slice(&[0; 10]);
    payload.extend_from_slice(b"ijklmnopqrst\0caching_sha2_password\0");
    packet(0, &payload)
}

fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
    [&[length[0], length[1], length[2], sequence], payload].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_no_mysql_ends_in_an_error() {
    let with = |packets: &[Vec<u8>]| [&[greeting()], packets].concat().concat();
    for (answer, part) in [
        (with(&[packet(2, b"\x01\x04")]), "WholePassword"),
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), "OutOfOrder"),
        (b"\xff\xff\xff\0".to_vec(), "TooLarge"),
        (packet(0, b""), "Malformed"),
        (packet(0, b"\x0a9.7.4\0\x08"), "Malformed"),
        (packet(0, b"\x093.23\0"), "TooOld"),
        (packet(0, b"\xff\x10\x04Too many connections"), "1040"),
        (with(&[packet(2, b"\xfeparsec\0abc\0")]), "Unsupported"),
        (with(&[packet(2, b"\xfe")]), "Unsupported"),
        (with(&[packet(2, b"\xfecaching_sha2_password\0short\0")]), "Malformed"),
        (with(&[packet(2, b"\x01\x05")]), "Unexpected"),
        (with(&[packet(2, b"\x01\x04"), packet(4, b"\x01no key")]), "ServerKey&"),
        (with(&[packet(2, b"\x01\x04"), packet(4, b"\0")]), "Unexpected&"),
        (with(&[packet(3, b"\0\0\0")]), "OutOfOrder"),
        (Vec::new(), "TimedOut"),
    ] {
        let port = answer_with(answer).await;
        // With the mark, whatever key it hands out is used.
        let more = match part.strip_suffix('&') {
            Some(_) => "ssl-mode=DISABLED&connect_timeout=1&get-server-public-key=true",
            None => "ssl-mode=DISABLED&connect_timeout=1",
        };
        let part = part.trim_end_matches('&');
        let url = format!("mysql://anybody:{ENCODED}@127.0.0.1:{port}/?{more}");
        let error = connect(&info(&url)).await.expect_err(part);
        assert!(shown(&error).contains(part), "{part}: {}", shown(&error));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_in_clear_before_tls_is_not_taken_for_what_came_encrypted() {
    let port = answer_with([greeting(), packet(2, b"\0\0\0\x02\0\0\0")].concat()).await;
    let url = format!("mysql://u@127.0.0.1:{port}/?ssl-mode=REQUIRED&connect_timeout=1");
    let error = connect(&info(&url)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Injected { .. }), "{}", shown(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_asks_for_the_password_in_clear_does_not_get_it() {
    for mysql_async in [false, true] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stranger = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&greeting()).await.unwrap();
            let mut heard = vec![0; 1024];
            let length = stream.read(&mut heard).await.unwrap();
            heard.truncate(length);
            stream.write_all(&packet(2, b"\xfemysql_clear_password\0")).await.unwrap();
            stream.read_to_end(&mut heard).await.unwrap();
            heard
        });
        let url = format!("mysql://anybody:topsecret@127.0.0.1:{port}/?ssl-mode=DISABLED");
        let error = if mysql_async {
            sql_connect(&info(&url)).await.map(|_| ()).unwrap_err()
        } else {
            connect(&info(&url)).await.map(|_| ()).unwrap_err()
        };
        assert!(shown(&error).contains("PlainText"), "{}", shown(&error));
        assert_eq!(error.kind(), FailureKind::Definite);
        let heard = String::from_utf8_lossy(&stranger.await.unwrap()).into_owned();
        assert!(heard.contains("anybody") && !heard.contains("topsecret"), "{heard}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_file_is_read_at_the_next_connect() {
    let Some(server) = &servers().mariadb else { return };
    let client = server.client();
    client.run("CREATE USER rotating@'%' IDENTIFIED BY 'first'");
    let file = servers().folder.join("rotating");
    let url = url(server, "127.0.0.1", "rotating", &format!("password_file={}", file.display()));
    fs::write(&file, "first\n").unwrap();
    login(&url).await.expect("the first password");
    // when the account's password changes, then the file
    client.run("ALTER USER rotating@'%' IDENTIFIED BY 'second'");
    assert_eq!(login(&url).await.unwrap_err().kind(), FailureKind::Denied);
    fs::write(&file, "second\n").unwrap();
    login(&url).await.expect("the second password");
}

const FORMAT_DESCRIPTION: u8 = 15;
const HEARTBEATS: [u8; 2] = [27, 41];
const WRITE_ROWS: [u8; 2] = [23, 30];
const SETTINGS: StreamSettings = StreamSettings {
    heartbeat: Duration::from_millis(200),
    write_timeout: Duration::from_secs(600),
};

fn limits() -> StreamLimits {
    StreamLimits { packet_bytes_max: 64 << 20, budget: Budget::new(1 << 30) }
}

async fn replica(server: &MySql, user: &str) -> Connection {
    let mut connection = connect(&info(&url(server, "127.0.0.1", user, ""))).await.unwrap();
    connection.prepare_stream(SETTINGS).await.unwrap();
    connection
}

/// Types and lengths of the events up to the first one that `last` holds for.
async fn events(stream: &mut BinlogStream, last: impl Fn(u8, usize) -> bool) -> Vec<(u8, usize)> {
    let mut found = Vec::new();
    let reading = async {
        loop {
            while let Some(packets) = stream.take().unwrap() {
                for payload in packets {
                    let Sent::Event(event) = Sent::of(payload).unwrap() else {
                        panic!("the end after {found:?}");
                    };
                    // timestamp u32, type u8, server u32, length u32 …
                    let length = u32::from_le_bytes(event[9..13].try_into().unwrap()) as usize;
                    assert_eq!(length, event.len(), "an event is not whole");
                    found.push((event[4], length));
                    if last(event[4], length) {
                        return;
                    }
                }
            }
            assert_ne!(stream.read().await.unwrap(), 0, "closed after {found:?}");
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), reading).await;
    assert!(waited.is_ok(), "no such event after {found:?}");
    found
}

/// File and end of the binlog.
fn end_of_log(server: &MySql) -> (String, u64) {
    let statement = if server.version().is_mariadb() { "MASTER" } else { "BINARY LOG" };
    let rows = server.client().rows(&format!("SHOW {statement} STATUS"));
    (rows[0][0].clone().unwrap(), rows[0][1].clone().unwrap().parse().unwrap())
}

/// `GTID_SUBTRACT`-free encoding of all that one server executed: `uuid:1-n`.
fn encoded_executed(server: &MySql) -> Vec<u8> {
    let executed = server.client().value("SELECT @@GLOBAL.gtid_executed").unwrap();
    let (uuid, interval) = executed.split_once(':').expect("one source");
    let last: u64 = interval.rsplit('-').next().unwrap().parse().unwrap();
    let uuid = uuid::Uuid::parse_str(uuid).unwrap();
    let mut set = 1_u64.to_le_bytes().to_vec();
    set.extend_from_slice(uuid.as_bytes());
    for number in [1, 1, last + 1] {
        set.extend_from_slice(&u64::to_le_bytes(number));
    }
    set
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_where_it_is_told_and_holds_events_of_20_megabytes() {
    for version in Version::present() {
        let server = MySql::start(version);
        let database = server.fresh_database("stream");
        let client = server.client_for(&database);
        client.run("CREATE TABLE t (n INT PRIMARY KEY, b LONGBLOB)");
        client.run(
            "CREATE USER relay@'%' IDENTIFIED BY ''; GRANT REPLICATION SLAVE ON *.* TO relay@'%'",
        );
        let (file, position) = end_of_log(&server);
        let gtids = if version.is_mariadb() {
            client.value("SELECT @@GLOBAL.gtid_binlog_pos").unwrap().into_bytes()
        } else {
            encoded_executed(&server)
        };
        // given a row behind that point, and one of 20 MB
        client.run(
            "INSERT INTO t VALUES (1, 'small'); INSERT INTO t VALUES (2, REPEAT('x', 20000000))",
        );
        let is_large = |kind: u8, length: usize| WRITE_ROWS.contains(&kind) && length > 20_000_000;
        for by_gtid in [false, true] {
            let mut connection = replica(&server, "relay").await;
            connection.register_replica(77, "walpost").await.unwrap();
            // when
            let mut stream = match (by_gtid, version.is_mariadb()) {
                (false, _) => connection.dump_file(77, &file, position, limits()).await,
                (true, false) => connection.dump_gtid(77, &gtids, limits()).await,
                (true, true) => {
                    let position = std::str::from_utf8(&gtids).unwrap();
                    connection.dump_mariadb(77, position, limits()).await
                }
            }
            .unwrap();
            let found = events(&mut stream, is_large).await;
            // then
            let case = format!("{version:?}, by GTID: {by_gtid}: {found:?}");
            let count =
                |kinds: &[u8]| found.iter().filter(|(kind, _)| kinds.contains(kind)).count();
            assert!(count(&[FORMAT_DESCRIPTION]) >= 1, "{case}");
            assert_eq!(count(&WRITE_ROWS), 2, "{case}");
            // and in silence the server is heard all the same
            events(&mut stream, |kind, _| HEARTBEATS.contains(&kind)).await;
        }
        // from the very beginning
        let connection = replica(&server, "root").await;
        let mut stream = if version.is_mariadb() {
            connection.dump_mariadb(78, "", limits()).await.unwrap()
        } else {
            connection.dump_gtid(78, &0_u64.to_le_bytes(), limits()).await.unwrap()
        };
        events(&mut stream, is_large).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_above_the_bound_ends_the_stream_with_an_error() {
    let Some(version) = Version::present().next() else { return };
    let server = MySql::shared(version);
    let database = server.fresh_database("bound");
    let client = server.client_for(&database);
    client.run("CREATE TABLE t (b LONGBLOB)");
    let (file, position) = end_of_log(server);
    client.run("INSERT INTO t VALUES (REPEAT('x', 2000000))");
    let connection = replica(server, "root").await;
    let limits = StreamLimits { packet_bytes_max: 1 << 20, budget: Budget::new(1 << 30) };
    let mut stream = connection.dump_file(79, &file, position, limits).await.unwrap();
    let error = loop {
        match stream.take() {
            Ok(Some(packets)) => drop(packets),
            Ok(None) => assert_ne!(stream.read().await.unwrap(), 0),
            Err(error) => break error,
        }
    };
    assert!(format!("{error:?}").contains("TooLarge"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_begin_says_why() {
    for version in Version::present() {
        let server = MySql::shared(version);
        // beyond what the command can say
        let connection = replica(server, "root").await;
        let outcome = connection.dump_file(80, "binlog.000001", 1 << 32, limits()).await;
        let Err(error @ DumpError::PositionTooFar { .. }) = outcome else { panic!("{version:?}") };
        assert!(error.to_string().contains("binlog.000001:4294967296"), "{error}");
        assert_eq!(error.kind(), FailureKind::Definite);
        // a position that is a statement
        let connection = replica(server, "root").await;
        let outcome = connection.dump_mariadb(80, "0-1-1', @x = '", limits()).await;
        assert!(matches!(outcome, Err(DumpError::GtidPosition(_))), "{version:?}");
        // a file that is gone
        let connection = replica(server, "root").await;
        let mut stream = connection.dump_file(81, "binlog.999999", 4, limits()).await.unwrap();
        let error = loop {
            if let Some(packets) = stream.take().unwrap() {
                let outcome: Result<Vec<_>, _> = packets.map(Sent::of).collect();
                if let Err(error) = outcome {
                    break error;
                }
            }
            assert_ne!(stream.read().await.unwrap(), 0);
        };
        assert_eq!(error.server().expect("the server's").code, 1236, "{version:?}");
        assert_eq!(error.kind(), FailureKind::Definite);
    }
    // and an account that may not
    for server in [&servers().mysql, &servers().mariadb].into_iter().flatten() {
        let mut connection = replica(server, "no_replica").await;
        let error = connection.register_replica(82, "walpost").await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Denied, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_ends_the_stream_at_once() {
    for version in Version::present() {
        let mut server = MySql::start(version);
        let (file, _) = end_of_log(&server);
        let connection = replica(&server, "root").await;
        let mut stream = connection.dump_file(83, &file, 4, limits()).await.unwrap();
        events(&mut stream, |kind, _| kind == FORMAT_DESCRIPTION).await;
        server.kill();
        let ended = async {
            // A reset is as good an end as none.
            while stream.read().await.is_ok_and(|read| read > 0) {}
        };
        tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the end is seen");
    }
}

use proptest::prelude::*;

use super::settings::socket_folder_default;
use super::*;

fn parse(text: &str) -> ConnInfo {
    try_parse(text, &[]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn try_parse(text: &str, environment: &[(&str, &str)]) -> Result<ConnInfo, ConnInfoError> {
    ConnInfo::parse_in(text, &|name| {
        let given = environment.iter().find(|(known, _)| *known == name);
        let given = given.map(|(_, value)| (*value).to_owned());
        given.or_else(|| (name == "USER").then(|| "system-user".to_owned()))
    })
}

fn given_password(info: &ConnInfo) -> Option<&[u8]> {
    match &info.password {
        password::PasswordSource::Given(Secret::Text(text)) => Some(text.expose().as_bytes()),
        password::PasswordSource::Given(Secret::File(_))
        | password::PasswordSource::None
        | password::PasswordSource::Passfile(_) => None,
    }
}

#[test]
fn the_examples_of_the_libpq_manual_are_read_as_it_says() {
    let folder = socket_folder_default().display().to_string();
    let default = format!("{folder}:5432");
    for (text, shown, user, password) in [
        ("host=localhost port=5432 dbname=mydb connect_timeout=10", "localhost:5432/mydb", "", ""),
        ("postgresql://", &format!("{default}/system-user"), "", ""),
        ("postgresql://localhost", "localhost:5432/system-user", "", ""),
        ("postgresql://localhost:5433", "localhost:5433/system-user", "", ""),
        ("postgresql://localhost/mydb", "localhost:5432/mydb", "", ""),
        ("postgresql://user@localhost", "localhost:5432/user", "user", ""),
        ("postgresql://user:secret@localhost", "localhost:5432/user", "user", "secret"),
        (
            "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
            "localhost:5432/otherdb",
            "other",
            "",
        ),
        (
            "postgresql://host1:123,host2:456/somedb?application_name=myapp",
            "host1:123,host2:456/somedb",
            "",
            "",
        ),
        (
            "postgresql://user@localhost:5433/mydb?options=-c%20synchronous_commit%3Doff",
            "localhost:5433/mydb",
            "user",
            "",
        ),
        ("postgresql:///mydb?host=localhost&port=5433", "localhost:5433/mydb", "", ""),
        ("postgresql://[2001:db8::1234]/database", "[2001:db8::1234]:5432/database", "", ""),
        (
            "postgresql:///dbname?host=/var/lib/postgresql",
            "/var/lib/postgresql:5432/dbname",
            "",
            "",
        ),
        (
            "postgresql://%2Fvar%2Flib%2Fpostgresql/dbname",
            "/var/lib/postgresql:5432/dbname",
            "",
            "",
        ),
        ("postgres://u:p%40%3A%2F@[::1]:99,h2/d", "[::1]:99,h2:5432/d", "u", "p@:/"),
        ("postgres://h?user=u&password=a%26b&ssl=true", "h:5432/u", "u", "a&b"),
        ("host=a,b port=7 dbname=d", "a:7,b:7/d", "", ""),
        ("host=a,,c port=1,2,3 dbname=d", &format!("a:1,{folder}:2,c:3/d"), "", ""),
        (
            "host = h  dbname = 'my db' user=o\\'hara password='\\'x\\\\ '",
            "h:5432/my db",
            "o'hara",
            "'x\\ ",
        ),
        ("host=first host=second dbname=''", "second:5432/system-user", "", ""),
        ("", &format!("{default}/system-user"), "", ""),
    ] {
        let info = parse(text);
        assert_eq!(info.to_string(), shown, "{text}");
        assert_eq!(info.user, if user.is_empty() { "system-user" } else { user }, "{text}");
        let password = (!password.is_empty()).then_some(password.as_bytes());
        assert_eq!(given_password(&info), password, "{text}");
    }
    let options = parse("postgres://h/d?options=-c%20synchronous_commit%3Doff").options;
    assert_eq!(options.as_deref(), Some("-c synchronous_commit=off"));
    assert_eq!(parse("postgres://h?ssl=true").ssl_mode, SslMode::Require);
}

#[test]
fn what_cannot_be_read_is_refused_without_showing_it() {
    for text in [
        "host",
        "host=a secret",
        "password='secret",
        "postgres://u:secret%4@h/d",
        "postgres://u:secret%zz@h/d",
        "postgres://u:secret%00@h/d",
        "postgres://u:secret%ff@h/d",
        "postgres://u:secret@[::1/d",
        "postgres://u:secret@[::1]x/d",
        "postgres://u:secret@h/d?sslmode",
        "postgres://u:secret@h/d?options=a=b",
        "host=a port=0 password=secret",
        "host=a port=65536 password=secret",
        "host=a,b port=1,2,3",
        "host=a sslmode=verify",
        "host=a sslmode=verify-full",
        "host=a sslrootcert=system sslmode=require",
        "host=a sslcert=/c password=secret",
        "host=a channel_binding=maybe",
        "host=a target_session_attrs=standby",
        "host=a connect_timeout=soon",
        "host=a gssencmode=require",
        "host=a client_encoding=latin1",
        "host=a password=secret password_file=/x",
        "host=a sslcrl=/x",
    ] {
        let error = try_parse(text, &[]).expect_err(text).to_string();
        assert!(!error.contains("secret"), "{text}: {error}");
    }
    assert_eq!(ConnInfo::parse_in("host=a", &|_| None).unwrap_err(), ConnInfoError::NoUser);
}

#[test]
fn an_unknown_key_names_the_nearest_one() {
    let error = try_parse("hosst=a", &[]).unwrap_err();
    assert_eq!(error.to_string(), "unknown connection key \"hosst\"; did you mean \"host\"?");
    let error = try_parse("postgres://h/d?ssl_mode=require", &[]).unwrap_err();
    assert!(error.to_string().ends_with("did you mean \"sslmode\"?"), "{error}");
    let error = try_parse("wibblewobble=1", &[]).unwrap_err();
    assert_eq!(error.to_string(), "unknown connection key \"wibblewobble\"");
}

#[test]
fn the_environment_fills_in_what_is_missing() {
    let environment = [
        ("PGHOST", "envhost"),
        ("PGPORT", "7777"),
        ("PGUSER", "envuser"),
        ("PGDATABASE", "envdb"),
        ("PGPASSWORD", "envpassword"),
        ("PGSSLMODE", "require"),
        ("PGAPPNAME", "envapp"),
        ("PGCONNECT_TIMEOUT", "3"),
    ];
    let info = try_parse("", &environment).unwrap();
    assert_eq!(info.to_string(), "envhost:7777/envdb");
    assert_eq!((info.user.as_str(), info.application_name.as_str()), ("envuser", "envapp"));
    assert_eq!(given_password(&info), Some(&b"envpassword"[..]));
    assert_eq!((info.ssl_mode, info.connect_timeout.as_secs()), (SslMode::Require, 3));
    let info = try_parse("host=h dbname=d password_file=/x sslmode=disable", &environment).unwrap();
    assert_eq!((info.to_string().as_str(), info.ssl_mode), ("h:7777/d", SslMode::Disable));
    assert_eq!(given_password(&info), None);
}

#[test]
fn debug_and_display_never_show_the_password() {
    let info = parse("postgres://user:secret@host/db");
    assert_eq!(info.to_string(), "host:5432/db");
    assert!(!format!("{info:?} {:?}", info.password).contains("secret"));
}

#[test]
fn a_system_root_means_verify_full() {
    assert_eq!(parse("host=h sslrootcert=system").ssl_mode, SslMode::VerifyFull);
}

#[test]
fn the_password_file_is_matched_line_by_line() {
    let text = "# comment\n\
                db:5432:orders:ann:first\n\
                db:*:*:bob:with\\:colon and \\\\\n\
                localhost:5432:*:eve:socket\n\
                *:*:*:*:any\n";
    let find = |text: &str, host: &str, dbname: &str, user: &str| {
        let place = match host.strip_prefix('/') {
            Some(_) => Place::Folder(host.into()),
            None => Place::Network(host.to_owned()),
        };
        let secret = password::find(text, &Host { place, port: 5432, address: None }, dbname, user);
        secret.map(|secret| secret.expose().to_owned())
    };
    let folder = socket_folder_default().display().to_string();
    assert_eq!(find(text, "db", "orders", "ann").as_deref(), Some("first"));
    assert_eq!(find(text, "db", "other", "bob").as_deref(), Some("with:colon and \\"));
    assert_eq!(find(text, &folder, "x", "eve").as_deref(), Some("socket"));
    assert_eq!(find(text, "/elsewhere", "x", "eve").as_deref(), Some("any"));
    assert_eq!(find("db:5432:orders:ann", "db", "orders", "ann"), None);
}

#[test]
fn a_password_file_is_read_at_each_login_and_must_be_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("walpost-conninfo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (own, shared) = (folder.join("own"), folder.join("pgpass"));
    // given a file of our own, rotated between two logins
    let info = parse(&format!("host=h user=u password_file={}", own.display()));
    let password = |info: &ConnInfo| info.password(&info.hosts[0]);
    assert!(password(&info).is_err(), "a missing file is an error");
    for secret in ["old", "new"] {
        std::fs::write(&own, format!("{secret}\n")).unwrap();
        assert_eq!(password(&info).unwrap().unwrap().expose(), secret);
    }
    // given a libpq password file that others may read, then not
    let info = parse(&format!("host=h user=u passfile={}", shared.display()));
    assert!(password(&info).unwrap().is_none(), "a missing file is no password");
    std::fs::write(&shared, "*:*:*:u:secret\n").unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(password(&info).unwrap().is_none());
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(password(&info).unwrap().unwrap().expose(), "secret");
    std::fs::remove_dir_all(&folder).unwrap();
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn encoded(value: &str) -> String {
    percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string()
}

proptest! {
    #[test]
    fn both_forms_give_back_what_was_written(
        user in "[^\0]{1,12}",
        password in "[^\0]{1,12}",
        dbname in "[^\0]{1,12}",
        host in "[a-z][a-z0-9.-]{0,12}",
        port in 1..=u16::MAX,
    ) {
        let words = format!(
            "user={} password = {} dbname={} host={host} port={port}",
            quoted(&user), quoted(&password), quoted(&dbname),
        );
        let url = format!(
            "postgres://{}:{}@{host}:{port}/{}",
            encoded(&user), encoded(&password), encoded(&dbname),
        );
        for text in [words, url] {
            let info = parse(&text);
            prop_assert_eq!(&info.user, &user);
            prop_assert_eq!(given_password(&info), Some(password.as_bytes()));
            prop_assert_eq!(&info.dbname, &dbname);
            let expected = Host { place: Place::Network(host.clone()), port, address: None };
            prop_assert_eq!(&info.hosts, &vec![expected]);
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
        drop(try_parse(&text, &[]));
        drop(try_parse(&format!("postgres://{text}"), &[]));
    }
}

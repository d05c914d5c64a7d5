use super::*;

fn parse(url: &str) -> ConnInfo {
    ConnInfo::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
}

fn password(info: &ConnInfo) -> Option<String> {
    info.password().unwrap().map(|secret| secret.expose().to_owned())
}

#[test]
fn every_part_of_a_url_is_read_and_decoded() {
    let info = parse(
        "mysql://re%40lay:p%2Fw%3A%C3%A9@db1:3307,[::1]:3308,db2/shop?connect_timeout=3\
         &ssl-mode=VERIFY_IDENTITY&ssl-ca=/etc/ca.pem&ssl_cert=/c&sslkey=/k",
    );
    assert_eq!(info.user(), "re@lay");
    assert_eq!(password(&info).as_deref(), Some("p/w:é"));
    assert_eq!(info.database(), Some("shop"));
    assert_eq!(info.to_string(), "db1:3307,[::1]:3308,db2:3306/shop");
    assert_eq!(info.connect_timeout, Duration::from_secs(3));
    assert_eq!(info.ssl_mode, SslMode::VerifyIdentity);
    assert_eq!(info.authorities, RootCertificate::File("/etc/ca.pem".into()));
    assert_eq!(info.client_certificate(), Some((Path::new("/c"), Path::new("/k"))));
    assert_eq!(info.only(&info.hosts[2]).to_string(), "db2:3306/shop");
}

#[test]
fn what_is_missing_has_a_default() {
    let info = parse("mariadb://u@/");
    assert_eq!(info.to_string(), "localhost:3306");
    assert_eq!((password(&info), info.database()), (None, None));
    assert_eq!(info.ssl_mode, SslMode::Preferred);
    assert_eq!(info.connect_timeout, CONNECT_TIMEOUT_DEFAULT);
    assert_eq!(parse("mysql://u:@h").database(), None);
    assert_eq!(parse("mysql://u@h/d?ssl-ca=/ca.pem").ssl_mode, SslMode::VerifyIdentity);
    let system = parse("mysql://u@h/d?sslmode=verify-full&sslrootcert=system");
    assert_eq!(system.authorities, RootCertificate::System);
}

#[test]
fn both_vocabularies_of_tls_mean_the_same() {
    for (mysql, libpq, mode) in [
        ("DISABLED", "disable", SslMode::Disabled),
        ("PREFERRED", "prefer", SslMode::Preferred),
        ("required", "require", SslMode::Required),
        ("VERIFY_IDENTITY", "verify-full", SslMode::VerifyIdentity),
    ] {
        assert_eq!(parse(&format!("mysql://u@h/d?ssl-mode={mysql}")).ssl_mode, mode);
        assert_eq!(parse(&format!("mysql://u@h/d?sslmode={libpq}")).ssl_mode, mode);
    }
}

#[test]
fn a_socket_takes_the_place_of_the_hosts() {
    let info = parse("mysql://u@h:1/d?socket=/run/mysqld/mysqld.sock");
    assert_eq!(info.to_string(), "/run/mysqld/mysqld.sock/d");
    assert!(ConnInfo::parse("mysql://u@h/d?socket=mysqld.sock").is_err());
}

#[test]
fn a_password_never_shows_and_its_file_is_read_at_each_login() {
    let secret = "s3cret";
    let info = parse(&format!("mysql://u:{secret}@h/d"));
    assert!(!format!("{info:?} {info}").contains(secret));
    for url in [
        format!("mysql://u:{secret}%@h"),
        format!("mysql://u:{secret}%FF@h"),
        format!("mysql://u:{secret}@x@h"),
        format!("mysql://u:{secret}/@h"),
        format!("mysql://u:{secret}#@h"),
        format!("mysql://u:{secret}@h?password_file=/x"),
        format!("postgres://u:{secret}@h"),
    ] {
        let error = ConnInfo::parse(&url).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret), "{error:?}");
    }
    let error = parse("mysql://u@h?password_file=/nonexistent").password().unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

#[test]
fn mistakes_are_named_with_the_way_out() {
    for (url, part) in [
        ("mysql://u@h?ssl-mod=REQUIRED", "did you mean \"ssl-mode\""),
        ("mysql://u@h?pool_min=1", "unknown connection key \"pool_min\""),
        ("mysql://u@h?ssl-mode=REQUIRED&sslmode=disable", "given twice"),
        ("mysql://u@h?ssl-mode=VERIFY_CA", "use VERIFY_IDENTITY"),
        ("mysql://u@h?sslmode=verify-ca", "use VERIFY_IDENTITY"),
        ("mysql://u@h?ssl-mode=on", "DISABLED, PREFERRED"),
        ("mysql://u@h?ssl-mode=REQUIRED&ssl-ca=/x", "VERIFY_IDENTITY"),
        ("mysql://u@h?ssl-cert=/x", "give both"),
        ("mysql://u@h?connect_timeout=0", "from 1"),
        ("mysql://u@h?connect_timeout", "no \"=\""),
        ("mysql://h", "no user"),
        ("mysql://:p@h", "no user"),
        ("mysql://u@h:70000", "port"),
        ("mysql://u@[::1", "closing"),
        ("mysql://u@[::1]x", "followed"),
        ("mysql://u@h/d%00", "zero byte"),
        ("http://u@h", "mysql://"),
        ("mysql:u@h", "mysql://"),
    ] {
        let error = ConnInfo::parse(url).expect_err(url).to_string();
        assert!(error.contains(part), "{url}: {error}");
    }
}

use super::*;

fn read(url: &str, options: &str) -> Result<Settings, String> {
    let options = options.parse::<toml::Table>().expect("the test's table is TOML");
    let config = SinkConfig { url: url.into(), options, client_name: "walpost-test".into() };
    Settings::read(&config).map_err(|error| error.to_string())
}

fn refusal(url: &str, options: &str) -> String {
    read(url, options).err().expect("this table is wrong")
}

#[test]
fn a_url_names_several_brokers_credentials_and_options() {
    let url = "kafka://relay:p%40ss@one:9092,two:9093?compression=lz4&tls=true";
    let settings = read(url, "message_max_bytes = 5000").unwrap();
    let property = |key| settings.client.get(key);
    assert_eq!(property("bootstrap.servers"), Some("one:9092,two:9093"));
    assert_eq!(property("sasl.username"), Some("relay"));
    assert_eq!(property("sasl.password"), Some("p@ss"));
    assert_eq!(property("sasl.mechanism"), Some("PLAIN"));
    assert_eq!(property("security.protocol"), Some("sasl_ssl"));
    assert_eq!(property("compression.codec"), Some("lz4"));
    assert_eq!(property("partitioner"), Some("murmur2_random"));
    assert_eq!(property("client.id"), Some("walpost-test"));
    assert_eq!(settings.message_bytes_max, Some(5000));
    assert!(settings.warnings.is_empty());
}

#[test]
fn a_property_that_would_break_a_promise_is_refused_by_name() {
    for key in ["acks", "enable.idempotence", "message.timeout.ms", "max.in.flight"] {
        let text = refusal("kafka://one", &format!("properties.\"{key}\" = 1"));
        assert!(text.contains(key) && text.contains("promises"), "{text}");
    }
    assert!(read("kafka://one", "properties.\"linger.ms\" = 2.5").is_ok());
}

#[test]
fn what_is_wrong_is_named_by_its_key() {
    for (options, named) in [
        ("compresion = 'lz4'", "compresion"),
        ("compression = 'brotli'", "compression"),
        ("tls = 'yes'", "tls"),
        ("ca_file = '/nowhere/ca.pem'", "ca_file"),
        ("username = 'relay'", "username"),
        ("sasl_mechanism = 'GSSAPI'", "sasl_mechanism"),
        ("properties.'linger.ms' = 'soon'", "linger.ms"),
        ("properties.'no.such' = 1", "no.such"),
        ("message_max_bytes = -1", "message_max_bytes"),
    ] {
        let text = refusal("kafka://one", options);
        assert!(text.contains(named), "{options}: {text}");
    }
    for url in ["kafka://", "kafka://one,,two", "kafka://:9092", "kafka://one/topic"] {
        assert!(refusal(url, "").contains("URL"), "{url}");
    }
    assert!(refusal("kafka://one?compression=lz4", "compression = 'lz4'").contains("both"));
}

#[test]
fn no_error_holds_a_password() {
    for (url, options) in [
        ("kafka://one", "password = 4711"),
        ("kafka://relay:4711@one?tls=maybe", ""),
        ("kafka://relay:4711@", ""),
        ("kafka://relay:4711@one", "password_file = '/nowhere'"),
        ("kafka://relay:4711@one", "properties.acks = 1"),
        ("kafka://relay:4711@one", "password = 'x'"),
        ("kafka://relay:4711@one", "properties.'linger.ms' = 'soon'"),
    ] {
        let text = refusal(url, options);
        assert!(!text.contains("4711"), "{text}");
    }
}

#[test]
fn what_the_promises_rest_on_is_set() {
    let settings = read("kafka://one", "").unwrap();
    for (key, value) in [
        ("acks", "all"),
        ("enable.idempotence", "true"),
        ("enable.gapless.guarantee", "true"),
        ("message.timeout.ms", "0"),
    ] {
        assert_eq!(settings.client.get(key), Some(value), "{key}");
    }
}

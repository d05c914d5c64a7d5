use super::*;

/// A configuration file in a private folder that goes with it.
struct File(std::path::PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("walpost-unit-{}-{}", std::process::id(), name));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("walpost.toml"), text).unwrap();
        Self(folder.join("walpost.toml"))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(self.0.parent().unwrap()));
    }
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn flag(name: &str, key: &str, value: &str) -> Flag {
    Flag { name: name.into(), key: key.into(), value: value.into() }
}

const URLS: [(&str, &str); 2] =
    [("WALPOST_SOURCE", "postgres://u@h/db"), ("WALPOST_SINK", "stdout://")];

fn postgres(settings: &Settings) -> &PostgresSettings {
    match &settings.source {
        SourceSettings::Postgres(source) => source,
        SourceSettings::MySql(_) => panic!("it is a PostgreSQL source"),
    }
}

fn settings_with(more: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let environment = [URLS.as_slice(), more].concat();
    Values::load(None, variables(&environment), &[])?.settings()
}

fn problem_with(name: &str, value: &str) -> String {
    settings_with(&[(name, value)]).unwrap_err().to_string()
}

/// The error's text of a file, with the folder left out.
fn problem_of_file(name: &str, text: &str) -> String {
    let file = File::new(name, text);
    let loaded = Values::load(Some(&file.0), variables(&URLS), &[]);
    let error = match loaded {
        Err(error) => error,
        Ok(values) => values.settings().unwrap_err(),
    };
    error.to_string().replace(&format!("{}/", file.0.parent().unwrap().display()), "")
}

#[test]
fn two_urls_are_enough() {
    let settings = settings_with(&[]).unwrap();

    let source = postgres(&settings);
    assert_eq!(source.url.read().unwrap().expose(), "postgres://u@h/db");
    assert_eq!(source.slot, "walpost");
    assert_eq!(source.publication, "walpost");
    assert_eq!(source.table.to_string(), "public.outbox");
    assert_eq!(source.ack_interval, Duration::from_millis(100));
    assert_eq!(source.row_bytes_max, 64 << 20);
    assert_eq!(source.let_go_after, Duration::from_secs(30));
    assert_eq!(settings.outbox.columns, Columns::debezium());
    assert_eq!(settings.outbox.topic, "outbox.event.{aggregatetype}");
    assert_eq!(settings.sink.url, Secret::from("stdout://"));
    assert_eq!(settings.relay.name, "walpost");
    assert_eq!(settings.relay.order, Order::Key);
    assert_eq!((settings.relay.lanes, settings.relay.rows_max), (32, 16_384));
    assert_eq!(settings.relay.bytes_max, 16 << 20);
    assert_eq!(settings.relay.topic_wait, Duration::from_secs(60));
    assert_eq!(settings.relay.auth_wait, Duration::from_secs(300));
    assert_eq!(settings.relay.drain_seconds_max, 20);
    assert_eq!(settings.relay.retry_first, Duration::from_millis(100));
    assert_eq!(settings.relay.retry_max, Duration::from_secs(10));
    assert_eq!(settings.relay.stall_warning, Duration::from_secs(30));
    assert_eq!(settings.relay.summary_interval, Duration::from_secs(60));
    assert_eq!(settings.log.format, LogFormat::Human);
    assert_eq!(settings.log.level, "info");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = File::new(
        "layers",
        "[source]\nslot = \"file\"\npublication = \"file\"\ntable = \"file\"\n\
         [relay]\nlanes = 4\n",
    );
    let environment = [
        URLS.as_slice(),
        &[("WALPOST_SOURCE_SLOT", "environment"), ("WALPOST_SOURCE_PUBLICATION", "environment")],
    ]
    .concat();
    let flags = [flag("--slot", "source.slot", "flag")];

    let settings =
        Values::load(Some(&file.0), variables(&environment), &flags).unwrap().settings().unwrap();

    let source = postgres(&settings);
    assert_eq!(source.slot, "flag");
    assert_eq!(source.publication, "environment");
    assert_eq!(source.table.to_string(), "public.file");
    assert_eq!(settings.relay.lanes, 4);
    assert_eq!(settings.relay.name, "flag", "the name follows the slot");
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_right_one() {
    assert_eq!(
        problem_of_file("key", "[source]\n\nslto = \"x\"\n"),
        "walpost.toml:3: unknown key source.slto; did you mean source.slot?"
    );
    assert_eq!(
        problem_of_file("section", "[sourc]\nslot = \"x\"\n"),
        "walpost.toml:2: unknown section [sourc]; did you mean source?"
    );
    assert_eq!(
        problem_of_file("above", "lanes = 3\n"),
        "walpost.toml:1: unknown key lanes; did you mean relay.lanes?"
    );
    assert_eq!(
        problem_of_file("column", "[outbox.columns]\naggregatetype = \"x\"\n"),
        "walpost.toml:2: unknown key outbox.columns.aggregatetype; did you mean \
         outbox.columns.aggregate_type?"
    );
    assert_eq!(
        problem_of_file("far", "[relay]\nqwertz = 1\n"),
        "walpost.toml:2: unknown key relay.qwertz"
    );
    assert_eq!(
        problem_of_file("deep", "[source.slot]\nname = 1\n"),
        "source.slot (walpost.toml:1): must be text in quotes, not table"
    );
}

#[test]
fn an_unknown_variable_is_an_error() {
    assert_eq!(
        problem_with("WALPOST_SOURCE_SLTO", "x"),
        "environment: unknown variable WALPOST_SOURCE_SLTO; did you mean WALPOST_SOURCE_SLOT?"
    );
    assert_eq!(
        problem_with("WALPOST_RELAY_LANESX", "x"),
        "environment: unknown variable WALPOST_RELAY_LANESX; did you mean WALPOST_RELAY_LANES?"
    );
}

#[test]
fn variables_that_kubernetes_adds_for_a_service_are_left_alone() {
    settings_with(&[
        ("WALPOST_SERVICE_HOST", "10.0.0.1"),
        ("WALPOST_SERVICE_PORT", "80"),
        ("WALPOST_SINK_SERVICE_PORT_HTTP", "80"),
        ("WALPOST_PORT", "tcp://10.0.0.1:80"),
        ("WALPOST_PORT_80_TCP_ADDR", "10.0.0.1"),
    ])
    .map(|settings| assert!(settings.sink.options.is_empty()))
    .unwrap();
    let problem = problem_with("WALPOST_PORT", "80");
    assert!(problem.starts_with("environment: unknown variable WALPOST_PORT"), "{problem}");
}

#[test]
fn an_unknown_flag_key_is_an_error() {
    let flags = [flag("--set", "relay.lane", "3")];
    let error = Values::load(None, [], &flags).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "--set: unknown key relay.lane; did you mean relay.lanes?");
}

#[test]
fn a_file_that_is_no_toml_is_named_with_its_line_but_not_with_its_text() {
    let problem = problem_of_file("syntax", "[source]\nurl = \"postgres://u:hunter2@h\n");
    assert!(problem.starts_with("walpost.toml:2: "), "{problem}");
    assert!(!problem.contains("hunter2"), "{problem}");
    assert_eq!(
        problem_of_file("scalar", "source = 3\n"),
        "source (walpost.toml:1): is a section; write it as [source]"
    );
}

#[test]
fn a_missing_url_says_how_to_give_it() {
    let problem = Values::load(None, [], &[]).unwrap().settings().unwrap_err().to_string();
    assert!(problem.starts_with("source.url is missing; give --source postgres://"), "{problem}");

    let source = variables(&URLS[..1]);
    let problem = Values::load(None, source, &[]).unwrap().settings().unwrap_err().to_string();
    assert!(problem.starts_with("sink.url is missing; give --sink with a URL"), "{problem}");
}

#[test]
fn each_value_that_a_setting_cannot_take_is_explained() {
    for (name, value, expected) in [
        (
            "SOURCE_SLOT",
            "Orders",
            "a slot's name is 1 to 63 of the characters a-z, 0-9 and _; \
          \"Orders\" has 'O'",
        ),
        ("SOURCE_SLOT", "", "must not be empty"),
        (
            "SOURCE_TABLE",
            "a.b.c",
            "\"a.b.c\" is no table; write it as outbox, app.outbox or \
          \"my.app\".outbox",
        ),
        ("SOURCE_ACK_INTERVAL", "5", "\"5\" is no duration; write it as 200ms, 5s, 1m or 2h"),
        ("SOURCE_ACK_INTERVAL", "0", "must be at least 1ms"),
        ("SOURCE_ROW_BYTES_MAX", "2GiB", "must be from 1024 to 1073741824 bytes"),
        ("RELAY_LANES", "0", "must be a whole number from 1 to 1024"),
        ("RELAY_LANES", "many", "must be a whole number from 1 to 1024"),
        (
            "RELAY_BYTES_MAX",
            "16 mib",
            "\"16 mib\" is no size; write it as 65536, 64KiB, 16MiB or \
          1GB",
        ),
        ("RELAY_PIPELINE_KEYS", "yes", "must be true or false"),
        ("RELAY_ORDER", "none", "must be key, destination or all"),
        ("RELAY_ON_REJECT", "park", "\"park\" is not yet built; use stop"),
        ("RELAY_RETRY_MAX", "50ms", "must be at least 100ms"),
        ("OUTBOX_PRESET", "eventuate", "the preset \"eventuate\" is not yet built; use debezium"),
        ("OUTBOX_COLUMNS_PAYLOAD", "", "a message needs a payload column"),
        ("LOG_FORMAT", "xml", "must be human or json"),
    ] {
        let variable = format!("WALPOST_{name}");
        let problem = problem_with(&variable, value);
        let (place, problem) = problem.split_once(": ").unwrap();
        assert_eq!(problem, expected);
        assert!(place.ends_with(&format!(" ({variable})")), "{place}");
    }
    let long = problem_with("WALPOST_SOURCE_SLOT", &"x".repeat(64));
    assert!(long.ends_with("; this one has 64"), "{long}");
    let file = "[relay]\nlanes = true\n";
    assert_eq!(
        problem_of_file("kind", file),
        "relay.lanes (walpost.toml:2): must be a whole number from 1 to 1024"
    );
}

#[test]
fn columns_can_be_renamed_left_out_and_added() {
    let file = File::new(
        "columns",
        "[outbox.columns]\nid = \"event_id\"\ntopic = \"\"\n\
         [outbox]\npartition = \"shard\"\ntopic = \"{type}\"\n\
         [outbox.extra_headers]\ntenant = \"tenant_id\"\nagain = \"tenant_id\"\n",
    );
    let settings = Values::load(Some(&file.0), variables(&URLS), &[]).unwrap().settings().unwrap();
    let outbox = settings.outbox;

    let name = |role| {
        outbox.columns.iter().find(|column| column.role == role).map(|column| column.name.as_str())
    };
    assert_eq!(name(Role::Id), Some("event_id"));
    assert_eq!(name(Role::Topic), None);
    assert_eq!(name(Role::Headers), Some("headers"));
    assert_eq!(outbox.extra_headers.len(), 2);
    assert!(outbox.extra_headers.iter().all(|header| header.extra == 0));
    assert_eq!(name(Role::Extra(0)), Some("tenant_id"));
    assert_eq!(outbox.partition, Some(1));
    assert_eq!(name(Role::Extra(1)), Some("shard"));
    assert_eq!(outbox.topic, "{type}");

    let reserved = problem_of_file("reserved", "[outbox.extra_headers]\nid = \"x\"\n");
    assert_eq!(
        reserved,
        "outbox.extra_headers.id (walpost.toml:2): walpost writes this header from the column of \
         outbox.columns.id; set that key to the column, or to \"\" and leave this one"
    );
    let ours = problem_of_file("ours", "[outbox.extra_headers]\nwalpost-identity = \"x\"\n");
    assert!(ours.ends_with("walpost writes this header itself"), "{ours}");
    let text = "[outbox.columns]\nid = \"\"\n[outbox.extra_headers]\nid = \"x\"\n";
    let file = File::new("unmapped", text);
    Values::load(Some(&file.0), variables(&URLS), &[]).unwrap().settings().unwrap();
}

#[test]
fn options_of_a_sink_pass_through_with_their_types() {
    let settings = settings_with(&[
        ("WALPOST_SINK_LINGER", "5"),
        ("WALPOST_SINK_PASSWORD", "12345"),
        ("WALPOST_SINK_CA_FILE", "/ca.pem"),
    ])
    .unwrap();

    let options = &settings.sink.options;
    assert_eq!(options.get("linger"), Some(&toml::Value::Integer(5)));
    assert_eq!(options.get("password"), Some(&toml::Value::String("12345".into())));
    assert_eq!(options.get("ca_file"), Some(&toml::Value::String("/ca.pem".into())));
    assert!(!options.contains_key("url"));
}

#[test]
fn a_secret_can_come_from_a_file() {
    let secret = File::new("secret", "hunt@r/2\n");
    let path = secret.0.to_str().unwrap();

    // Whoever logs in reads it, each time: settings know the path.
    let settings = settings_with(&[("WALPOST_SOURCE_PASSWORD_FILE", path)]).unwrap();
    let url = settings.source.url().read().unwrap().expose().to_owned();
    let (before, named) = url.split_once("?password_file=").unwrap();
    assert_eq!(before, "postgres://u@h/db");
    assert_eq!(percent_encoding::percent_decode_str(named).decode_utf8().unwrap(), path);

    for option in ["password", "token", "nkey_seed", "sasl_password"] {
        let variable = format!("WALPOST_SINK_{}_FILE", option.to_ascii_uppercase());
        let settings = settings_with(&[(&variable, path)]).unwrap();
        let options = &settings.sink.options;
        assert_eq!(options.get(&format!("{option}_file")).unwrap().as_str(), Some(path));
        assert!(!options.contains_key(option));
    }

    let url = File::new("url", "postgres://u:hunter2@h/db\n");
    let path = url.0.to_str().unwrap();
    let environment = variables(&[("WALPOST_SOURCE_URL_FILE", path), URLS[1]]);
    let values = Values::load(None, environment, &[]).unwrap();
    let settings = values.settings().unwrap();
    assert_eq!(settings.source.url(), &Secret::File(path.into()));
    let shown = values.effective();
    assert!(shown.contains(&format!("url_file = \"{path}\"")), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let url = File::new("sink-url", "nats://u:hunter2@h\n");
    let path = url.0.to_str().unwrap();
    let environment = variables(&[("WALPOST_SINK_URL_FILE", path), URLS[0]]);
    let settings = Values::load(None, environment, &[]).unwrap().settings().unwrap();
    assert_eq!(settings.sink.url, Secret::File(path.into()));

    for variable in ["WALPOST_SOURCE_PASSWORD_FILE", "WALPOST_SINK_TOKEN_FILE"] {
        let key = variable.strip_prefix("WALPOST_").unwrap().to_ascii_lowercase();
        let problem = problem_with(variable, "/nowhere");
        assert_eq!(problem, key.replacen('_', ".", 1));
    }
}

#[test]
fn a_setting_given_twice_in_one_layer_is_an_error() {
    assert_eq!(
        problem_with("WALPOST_SOURCE_URL", "postgres://other"),
        "source.url (WALPOST_SOURCE_URL): is also set by WALPOST_SOURCE; keep one of the two"
    );
    assert_eq!(
        problem_with("WALPOST_SOURCE_URL_FILE", "/x"),
        "source.url_file (WALPOST_SOURCE_URL_FILE): is also set by WALPOST_SOURCE; keep one of \
         the two"
    );
}

#[test]
fn a_password_appears_neither_in_the_output_nor_in_debug_nor_in_an_error() {
    let environment = variables(&[
        ("WALPOST_SOURCE_URL", "postgres://u@h/db"),
        ("WALPOST_SOURCE_PASSWORD", "hunter2"),
        ("WALPOST_SINK_URL", "amqp://u:hunter2@h"),
        ("WALPOST_SINK_PASSWORD", "hunter2"),
        ("WALPOST_SINK_EXCHANGE", "orders"),
    ]);
    let values = Values::load(None, environment, &[]).unwrap();
    let settings = values.settings().unwrap();

    assert!(
        settings.source.url().read().unwrap().expose().contains("hunter2"),
        "it is there to be hidden"
    );
    let shown = values.effective();
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("url = \"amqp://u:***@h\""), "{shown}");
    assert!(shown.contains("exchange = \"orders\""), "{shown}");
    assert!(!format!("{settings:?}").contains("hunter2"));

    let wrong = variables(&[("WALPOST_SOURCE", "oracle://u:hunter2@h")]);
    let problem = Values::load(None, wrong, &[]).unwrap().settings().unwrap_err().to_string();
    assert!(problem.contains("must be a URL") && !problem.contains("hunter2"), "{problem}");
}

#[test]
fn the_effective_settings_can_be_read_again() {
    let file = File::new(
        "first",
        "[outbox.extra_headers]\n\"x-tenant\" = \"tenant\"\n[relay]\nlanes = 3\n\
         [sink]\nproperties = { \"a.b\" = 1 }\n",
    );
    let values = Values::load(Some(&file.0), variables(&URLS), &[]).unwrap();
    let shown = values.effective();
    let again = File::new("again", &shown);

    let values = Values::load(Some(&again.0), [], &[]).unwrap();

    let strip = |text: String| {
        text.lines()
            .map(|line| line.split(" # ").next().unwrap().trim().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(strip(values.effective()), strip(shown.clone()));
    assert!(shown.contains("lanes = 3"), "{shown}");
    assert!(shown.contains("walpost.toml:4"), "{shown}");
    assert!(shown.contains("# default"), "{shown}");
    assert!(values.settings().is_ok());
}

#[test]
fn a_column_that_only_the_topic_names_is_read_from_the_table() {
    let settings = settings_with(&[("WALPOST_OUTBOX_TOPIC", "{tenant}.{aggregatetype}")]).unwrap();

    let extra = settings.outbox.columns.iter().find(|column| column.name == "tenant");
    assert_eq!(extra.map(|column| column.role), Some(Role::Extra(0)));
    assert_eq!(
        problem_with("WALPOST_OUTBOX_TOPIC", "a.{b"),
        "outbox.topic (WALPOST_OUTBOX_TOPIC): template \"a.{b\" has an unmatched brace at \
         character 3"
    );
}

mod mysql;

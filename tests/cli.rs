//! The command line as a user runs it: `init`, `check` and `config` against a real PostgreSQL 15, and
//! in `mysql` against MySQL and MariaDB.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::process::{Process, eventually, free_port, scratch};

const BIN: &str = "/usr/lib/postgresql/15/bin";

mod check;
mod init;
mod mysql;

/// A private PostgreSQL.
struct Server {
    process: Process,
    port: u16,
}

impl Server {
    fn start(settings: &[&str]) -> Server {
        Server::of(Path::new(BIN), settings)
    }

    /// Of another version, by its folder of programs.
    fn of(bin: &Path, settings: &[&str]) -> Server {
        assert!(bin.exists(), "{} is missing; run `scripts/setup postgres`", bin.display());
        let folder = scratch("cli-postgres");
        let (data, log) = (folder.join("data"), folder.join("log"));
        let mut initdb = Command::new(bin.join("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--pgdata"]).arg(&data);
        let mut initdb = Process::spawn(initdb, Some("postgres"), &log);
        let done = initdb.wait(Duration::from_secs(120));
        if !done.is_some_and(|status| status.success()) {
            initdb.give_up("initdb failed");
        }
        let port = free_port();
        let mut postgres = Command::new(bin.join("postgres"));
        postgres.arg("-D").arg(&data).args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        postgres.args(["-c", &format!("port={port}"), "-c", "unix_socket_directories="]);
        postgres.args(["-c", "max_replication_slots=40"]);
        for setting in settings {
            postgres.args(["-c", setting]);
        }
        let mut server = Server { process: Process::spawn(postgres, Some("postgres"), &log), port };
        let up = eventually(Duration::from_secs(60), || {
            server.psql("postgres", "SELECT 1", &[]).status.success()
        });
        if !up {
            server.process.give_up("PostgreSQL did not come up");
        }
        server
    }

    /// The server that most tests share, each with a database of its own.
    fn shared() -> &'static Server {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| Server::start(&["wal_level=logical"]))
    }

    fn psql(&self, database: &str, input: &str, arguments: &[&str]) -> Output {
        let mut psql = Command::new(format!("{BIN}/psql"));
        psql.args(["-h", "127.0.0.1", "-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1"]);
        psql.args(["-p", &self.port.to_string(), "-d", database, "-f", "-"]).args(arguments);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = psql.spawn().unwrap();
        // Fails where it could not connect and has ended, which its status tells.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        child.wait_with_output().unwrap()
    }

    fn sql(&self, database: &str, sql: &str) -> String {
        let output = self.psql(database, sql, &[]);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A new database, which gives its name to the slot too.
    fn database(&self) -> Case<'_> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("case_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        Case { server: self, name }
    }

    fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }
}

struct Case<'a> {
    server: &'a Server,
    name: String,
}

impl Case<'_> {
    fn sql(&self, sql: &str) -> String {
        self.server.sql(&self.name, sql)
    }

    /// A psql whose session stays open until its input is dropped; takes the application's name.
    fn session(&self, application: &str) -> (Child, ChildStdin) {
        let mut psql = Command::new(format!("{BIN}/psql"));
        psql.args(["-h", "127.0.0.1", "-U", "postgres", "-XAtq", "-d", &self.name]);
        psql.args(["-p", &self.server.port.to_string()]).env("PGAPPNAME", application);
        psql.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut session = psql.spawn().unwrap();
        let input = session.stdin.take().unwrap();
        (session, input)
    }

    fn walpost_as(&self, user: &str, arguments: &[&str]) -> Run {
        let url = self.server.url(user, &self.name);
        walpost(arguments, &[("WALPOST_SOURCE", &url), ("WALPOST_SOURCE_SLOT", &self.name)])
    }

    fn walpost(&self, arguments: &[&str]) -> Run {
        self.walpost_as("postgres", arguments)
    }

    fn check(&self, arguments: &[&str]) -> Run {
        self.walpost(&[&["check", "--sink", "null://"], arguments].concat())
    }

    /// Creates everything by `init`, for a test that then breaks one thing.
    fn ready(self) -> Self {
        self.walpost(&["init"]).exits(0);
        self
    }
}

/// What one run of the binary gave.
pub struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Run {
    #[track_caller]
    pub fn exits(self, code: i32) -> Run {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn says(self, part: &str) -> Run {
        let all = format!("{}{}", self.stdout, self.stderr);
        assert!(all.contains(part), "{part:?} is not in:\n{all}");
        self
    }
}

fn walpost_in(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walpost"));
    let ours = std::env::vars().filter(|(name, _)| name.starts_with("WALPOST_"));
    for (name, _) in ours {
        command.env_remove(name);
    }
    let output = command
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn walpost(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    static EMPTY: OnceLock<PathBuf> = OnceLock::new();
    walpost_in(EMPTY.get_or_init(|| scratch("cli-empty")), arguments, variables)
}

#[test]
fn without_a_verb_the_help_is_shown() {
    walpost(&[], &[]).exits(2).says("Usage: walpost").says("Examples:").says("init");
}

#[test]
fn config_prints_effective_settings_without_their_secrets() {
    let folder = scratch("cli-config");
    std::fs::write(
        folder.join("walpost.toml"),
        "[source]\nslot = \"orders\"\n[sink]\nurl = \"null://u:hunter2@h\"\n",
    )
    .unwrap();
    let variables = [("WALPOST_SOURCE", "postgres://u:hunter2@h/db"), ("WALPOST_RELAY_LANES", "8")];

    let run = walpost_in(&folder, &["config", "--table", "app.outbox"], &variables).exits(0);

    assert!(!run.stdout.contains("hunter2") && !run.stderr.contains("hunter2"), "{}", run.stdout);
    for (setting, origin) in [
        ("url = \"postgres://u:***@h/db\"", "# WALPOST_SOURCE"),
        ("slot = \"orders\"", "# walpost.toml:2"),
        ("table = \"app.outbox\"", "# --table"),
        ("publication = \"walpost\"", "# default"),
        ("lanes = 8", "# WALPOST_RELAY_LANES"),
    ] {
        let line = run.stdout.lines().find(|line| line.starts_with(setting));
        assert!(line.is_some_and(|line| line.ends_with(origin)), "{setting}: {}", run.stdout);
    }
}

#[test]
fn a_configuration_that_cannot_be_used_exits_with_2() {
    let source = ("WALPOST_SOURCE", "postgres://u@h/db");
    walpost(&["config"], &[source, ("WALPOST_SINK_URL", "null://"), ("WALPOST_SLOT", "x")])
        .exits(2)
        .says("walpost: environment: unknown variable WALPOST_SLOT");
    walpost(&["run", "--slot", "Orders"], &[source])
        .exits(2)
        .says("source.slot (--slot): a slot's name is 1 to 63 of the characters a-z, 0-9 and _");
    walpost(&["config", "--sink", "null://", "--set", "sink.color=red"], &[source])
        .exits(2)
        .says("the null sink has no option \"color\"");
    walpost(&["config", "--sink", "smtp://h"], &[source]).exits(2).says("no sink has the scheme");
    walpost(&["config", "--config", "none.toml"], &[source])
        .exits(2)
        .says("could not read configuration none.toml");
    walpost(&["config", "--log-level", "a=b=c", "--sink", "null://"], &[source])
        .exits(2)
        .says("log.level (--log-level): \"a=b=c\" is not a log level");
}

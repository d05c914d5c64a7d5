//! Private MySQL and MariaDB servers, and a blocking client that any test can use.
//!
//! Owns data folders, start, stop and crash of a server. Knows nothing of outboxes or positions.
//! Servers write binlog and tables through to disk at each commit: what they acknowledged
//! survives their own crash, which is what the fault tests are about.
//!
//! A data folder takes seconds to make and is copied in a tenth of one, so each test binary makes
//! one of each version and copies it.

mod client;

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

pub use client::Client;

use super::process::{Process, free_port, scratch, tool};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Options that switch MySQL's GTIDs off, for [`MySql::start_with`]. MariaDB has them always.
pub const GTIDS_OFF: &[&str] = &["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"];

/// Names the parts of `scripts/setup` whose servers a run does without, separated by commas.
const WITHOUT: &str = "WALPOST_TEST_WITHOUT";

/// A server and its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    MySql97,
    MariaDb1011,
    MariaDb118,
    MySql80,
    MySql8015,
    MariaDb114,
}

/// How many versions there are.
const VERSIONS: usize = 6;

impl Version {
    /// Those whose behaviour differs enough that whatever is done to one is done to each; the
    /// others have tests of their own.
    pub const ALL: [Version; 3] = [Version::MySql97, Version::MariaDb1011, Version::MariaDb118];

    /// Those of them that this run does not do without.
    pub fn present() -> impl Iterator<Item = Version> {
        Version::ALL.into_iter().filter(|version| !version.is_left_out())
    }

    /// Whether somebody said that this run does without it, because Debian's suites cannot be
    /// installed today. A test then says so in its output and ends. Only what was named is left
    /// out; a server that is missing without being named is a failure.
    pub fn is_left_out(self) -> bool {
        let named = std::env::var(WITHOUT).unwrap_or_default();
        let left_out = named.split(',').any(|part| part.trim() == self.part());
        if left_out {
            // Not by `eprintln`, which a test that passes keeps to itself.
            writeln!(std::io::stderr(), "LEFT OUT: {self:?}, by {WITHOUT}={named}")
                .expect("somebody listens");
        }
        left_out
    }

    pub fn is_mariadb(self) -> bool {
        match self {
            Version::MySql97 | Version::MySql80 | Version::MySql8015 => false,
            Version::MariaDb1011 | Version::MariaDb114 | Version::MariaDb118 => true,
        }
    }

    /// Less to write and copy than MySQL's default of 100 MB.
    fn redo_log(self) -> &'static str {
        match self {
            // From 8.0.30 on it has one size; before, two files.
            Version::MySql8015 => "--innodb-log-file-size=16M",
            _ => "--innodb-redo-log-capacity=32M",
        }
    }

    /// Its part of `scripts/setup`.
    fn part(self) -> &'static str {
        match self {
            Version::MySql97 => "mysql",
            Version::MySql80 => "mysql80",
            Version::MySql8015 => "mysql8015",
            Version::MariaDb1011 => "mariadb",
            Version::MariaDb114 => "mariadb114",
            Version::MariaDb118 => "mariadb118",
        }
    }

    fn programs(self) -> Programs {
        let unpacked = |folder: &str, server: &str, share: &str| {
            let root = tool(&format!("{folder}/root"), self.part());
            let libraries = root.join("usr/lib/x86_64-linux-gnu");
            Programs {
                loader: Some((libraries.join("ld-linux-x86-64.so.2"), libraries)),
                server: root.join("usr/sbin").join(server),
                base: root.join("usr"),
                share: root.join("usr/share").join(share),
                plugins: root.join("usr/lib/mysql/plugin"),
            }
        };
        // As its makers pack it: everything below one folder, on this system's C library.
        let packed = |server: &str| {
            let base = tool(&format!("{}/root", self.part()), self.part());
            Programs {
                loader: None,
                server: base.join("bin").join(server),
                share: base.join("share"),
                plugins: base.join("lib/plugin"),
                base,
            }
        };
        match self {
            Version::MySql97 => unpacked("mysql97", "mysqld", "mysql"),
            Version::MySql80 | Version::MySql8015 => packed("mysqld"),
            Version::MariaDb114 => packed("mariadbd"),
            Version::MariaDb118 => unpacked("mariadb118", "mariadbd", "mariadb"),
            Version::MariaDb1011 => {
                let server = PathBuf::from("/usr/sbin/mariadbd");
                assert!(server.exists(), "MariaDB is missing; run `scripts/setup mariadb`");
                Programs {
                    loader: None,
                    server,
                    base: "/usr".into(),
                    share: "/usr/share/mysql".into(),
                    plugins: "/usr/lib/mysql/plugin".into(),
                }
            }
        }
    }

    /// A data folder that no server runs on: made once, to be copied.
    fn template(self) -> &'static Path {
        static TEMPLATES: [OnceLock<PathBuf>; VERSIONS] = [const { OnceLock::new() }; VERSIONS];
        TEMPLATES[self as usize].get_or_init(|| self.make_data_folder())
    }

    fn make_data_folder(self) -> PathBuf {
        let folder = scratch(&format!("{}-template", self.part()));
        let (programs, data) = (self.programs(), folder.join("data"));
        let sql = folder.join("first.sql");
        let mut command = if self.is_mariadb() {
            // What `mariadb-install-db` does, which cannot start an unpacked server.
            make_own(&data);
            fs::write(&sql, programs.mariadb_first_sql()).expect("the folder is ours");
            let mut shell = Command::new("sh");
            shell.args(["-c", "sql=$1; shift; exec \"$@\" <\"$sql\"", "sh"]).arg(&sql);
            let server = programs.command(&data);
            shell.arg(server.get_program()).args(server.get_args());
            shell.args(["--bootstrap", "--log-warnings=0", "--max-allowed-packet=8M"]);
            shell
        } else {
            let root = "CREATE USER 'root'@'127.0.0.1';
                        GRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
                        GRANT PROXY ON ''@'' TO 'root'@'127.0.0.1' WITH GRANT OPTION;";
            let lines: Vec<&str> = root.lines().map(str::trim).collect();
            fs::write(&sql, lines.join("\n")).expect("the folder is ours");
            let mut server = programs.command(&data);
            server.args(["--initialize-insecure", "--disable-log-bin", self.redo_log()]);
            server.arg(format!("--init-file={}", sql.display()));
            server
        };
        environment(&mut command, &folder);
        let mut process = Process::spawn(command, Some(USER), &folder.join("first.log"));
        if !process.wait(START_TIMEOUT).is_some_and(|status| status.success()) {
            process.give_up(&format!("no data folder for {self:?}"));
        }
        // Each server makes its own UUID.
        drop(fs::remove_file(data.join("auto.cnf")));
        data
    }
}

/// Both databases refuse to run as root.
const USER: &str = "mysql";

/// Where a server's parts are.
struct Programs {
    /// The loader and libraries of an unpacked root.
    loader: Option<(PathBuf, PathBuf)>,
    server: PathBuf,
    base: PathBuf,
    share: PathBuf,
    plugins: PathBuf,
}

impl Programs {
    /// A program of this installation.
    fn start(&self, program: &Path) -> Command {
        match &self.loader {
            Some((loader, libraries)) => {
                let mut command = Command::new(loader);
                command.arg("--library-path").arg(libraries).arg(program);
                command
            }
            None => Command::new(program),
        }
    }

    fn command(&self, data: &Path) -> Command {
        let mut command = self.start(&self.server);
        command.arg("--no-defaults");
        command.arg(format!("--basedir={}", self.base.display()));
        command.arg(format!("--lc-messages-dir={}", self.share.display()));
        command.arg(format!("--character-sets-dir={}/charsets", self.share.display()));
        if self.plugins.exists() {
            command.arg(format!("--plugin-dir={}", self.plugins.display()));
        }
        command.arg(format!("--datadir={}", data.display()));
        // The kernel's asynchronous requests are few, and shared by all servers of the machine.
        command.args(["--innodb-buffer-pool-size=64M", "--innodb-use-native-aio=OFF"]);
        command
    }

    /// The scripts that make MariaDB's own tables; 11.8 has other names for them.
    fn mariadb_first_sql(&self) -> String {
        let mut sql = String::from("create database mysql;\nuse mysql;\n");
        sql.push_str("SET @auth_root_socket=NULL;\n");
        for script in ["system_tables", "performance_tables", "system_tables_data"] {
            let file = ["mariadb", "mysql"]
                .map(|prefix| self.share.join(format!("{prefix}_{script}.sql")))
                .into_iter()
                .find(|file| file.exists())
                .expect("MariaDB ships its scripts");
            sql.push_str(&fs::read_to_string(file).expect("a script is readable"));
        }
        sql.push_str("\nDELETE FROM global_priv WHERE User = '';\n");
        sql
    }
}

/// Copies a data folder that no server runs on into `folder`.
fn copy_data(from: &Path, folder: &Path) {
    let mut copy = Command::new("cp");
    copy.args(["-r", "--reflink=auto"]).arg(from).arg(folder.join("data"));
    let mut copy = Process::spawn(copy, Some(USER), &folder.join("copy.log"));
    if !copy.wait(START_TIMEOUT).is_some_and(|status| status.success()) {
        copy.give_up("a data folder could not be copied");
    }
}

/// A server with a data folder of its own. Ends when dropped.
pub struct MySql {
    version: Version,
    folder: PathBuf,
    port: u16,
    server_id: u32,
    options: Vec<String>,
    process: Option<Process>,
}

impl MySql {
    /// Copies a data folder and starts a server on it: one to three seconds. Row format, full row
    /// metadata, GTIDs; `root` has no password, over TCP and the socket.
    pub fn start(version: Version) -> MySql {
        MySql::start_with(version, &[])
    }

    /// As [`MySql::start`], with further options of the command line, which win.
    pub fn start_with(version: Version, options: &[&str]) -> MySql {
        static SERVERS: AtomicU32 = AtomicU32::new(1);
        let folder = scratch(version.part());
        copy_data(version.template(), &folder);
        let mut server = MySql {
            version,
            folder,
            port: free_port(),
            server_id: SERVERS.fetch_add(1, Ordering::Relaxed),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            process: None,
        };
        server.start_again();
        server.await_ready();
        server
    }

    /// A second server, with an address of its own, on a copy of this stopped one's data folder:
    /// with its UUID and its server id.
    pub fn copy_of_stopped(&self) -> MySql {
        assert!(self.process.is_none(), "only a stopped server's data folder can be copied");
        let folder = scratch(self.version.part());
        copy_data(&self.data(), &folder);
        let (version, server_id) = (self.version, self.server_id);
        let options = self.options.clone();
        let mut server =
            MySql { version, folder, port: free_port(), server_id, options, process: None };
        server.start_again();
        server.await_ready();
        server
    }

    /// One server a version for all tests that do not disturb it: each takes a database of its
    /// own ([`MySql::fresh_database`]), but all write into one binlog.
    pub fn shared(version: Version) -> &'static MySql {
        static SHARED: [OnceLock<MySql>; VERSIONS] = [const { OnceLock::new() }; VERSIONS];
        SHARED[version as usize].get_or_init(|| MySql::start(version))
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// `@@server_id`.
    pub fn server_id(&self) -> u32 {
        self.server_id
    }

    /// The data folder, where the binlog is and MySQL's own certificates are.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("s.sock")
    }

    /// Port on 127.0.0.1; the same for the server's whole life, restarts included.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Address for a proxy to forward to.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// URL for `root`, without a database.
    pub fn url(&self) -> String {
        self.url_for("")
    }

    /// URL of a database for `root`.
    pub fn url_for(&self, database: &str) -> String {
        self.url_at(self.address(), database)
    }

    /// URL of a database by way of a proxy at `address`.
    pub fn url_at(&self, address: SocketAddr, database: &str) -> String {
        format!("mysql://root@{address}/{database}")
    }

    /// A connection to no database.
    pub fn client(&self) -> Client {
        Client::connect(&self.url()).expect("the server accepts connections")
    }

    /// A connection to a database.
    pub fn client_for(&self, database: &str) -> Client {
        Client::connect(&self.url_for(database)).expect("the server accepts connections")
    }

    pub fn create_database(&self, name: &str) {
        self.client().run(&format!("CREATE DATABASE `{name}`"));
    }

    /// Makes a database with a name that no other test of this run has.
    pub fn fresh_database(&self, prefix: &str) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{prefix}_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.create_database(&name);
        name
    }

    /// Clean shutdown.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("only a running server can be stopped");
        process.signal(Signal::SIGTERM);
        if process.wait(START_TIMEOUT).is_none() {
            process.give_up("the server did not stop");
        }
    }

    /// `kill -9`, as when memory runs out.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Stands still with its sockets open, until [`MySql::thaw`].
    pub fn freeze(&self) {
        self.process.as_ref().expect("the server runs").freeze();
    }

    pub fn thaw(&self) {
        self.process.as_ref().expect("the server runs").thaw();
    }

    /// Starts the stopped or killed server again on the same data and port; stops it first when
    /// it still runs. Returns when it accepts connections.
    pub fn restart(&mut self) {
        if self.process.is_some() {
            self.stop();
        }
        self.start_again();
        self.await_ready();
    }

    /// As [`MySql::restart`] with other options than it was started with.
    pub fn restart_with(&mut self, options: &[&str]) {
        self.options = options.iter().map(|option| (*option).to_owned()).collect();
        self.restart();
    }

    /// As [`MySql::restart`] of a stopped server, but does not wait until it is ready.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "the server runs already");
        // After kill -9 these name a process that may be somebody else by now.
        for left in ["s.sock", "s.sock.lock", "server.pid"] {
            drop(fs::remove_file(self.folder.join(left)));
        }
        let mut command = self.version.programs().command(&self.data());
        let folder = self.folder.display();
        command.arg(format!("--port={}", self.port)).arg("--bind-address=127.0.0.1");
        command.arg(format!("--socket={folder}/s.sock"));
        command.arg(format!("--pid-file={folder}/server.pid")).arg(format!("--tmpdir={folder}"));
        command.arg(format!("--server-id={}", self.server_id)).arg("--skip-name-resolve");
        command.args(["--log-bin=binlog", "--binlog-format=ROW", "--binlog-row-metadata=FULL"]);
        command.args(["--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1"]);
        command.args(["--performance-schema=OFF", "--max-connections=200"]);
        command.args(["--max-allowed-packet=256M", "--default-time-zone=+00:00"]);
        if self.version.is_mariadb() {
            command.arg("--gtid-strict-mode=ON");
        } else {
            command.args(["--gtid-mode=ON", "--enforce-gtid-consistency=ON"]);
            command.args(["--mysqlx=OFF", "--secure-file-priv=NULL", self.version.redo_log()]);
        }
        command.args(&self.options);
        environment(&mut command, &self.folder);
        self.process = Some(Process::spawn(command, Some(USER), &self.log_path()));
    }

    /// Process id of the running server.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    /// What the server's own reader of a binlog is called.
    pub fn binlog_reader_name(&self) -> &'static str {
        if self.version.is_mariadb() { "mariadb-binlog" } else { "mysqlbinlog" }
    }

    /// That reader, for these files of this server as they are, over TCP and in the clear, to
    /// files of the same names behind `prefix`. It ends with the last of them.
    pub fn binlog_reader(&self, files: &[String], prefix: &str) -> Command {
        let programs = self.version.programs();
        let mut command =
            programs.start(&programs.base.join("bin").join(self.binlog_reader_name()));
        command.args(["--no-defaults", "--read-from-remote-server", "--raw", "--protocol=TCP"]);
        command.args(["--host=127.0.0.1", "--user=root"]).arg(format!("--port={}", self.port));
        command.arg(if self.version.is_mariadb() { "--skip-ssl" } else { "--ssl-mode=DISABLED" });
        command.arg(format!("--result-file={prefix}")).args(files);
        command
    }

    /// Waits until the server accepts connections: crash recovery may take a while.
    pub fn await_ready(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(error) = Client::connect(&self.url()) {
            let process = self.process.as_mut().expect("the server was started");
            if !process.is_running() || Instant::now() > deadline {
                process.give_up(&format!("{:?} did not start ({error})", self.version));
            }
            std::thread::sleep(Duration::from_millis(20));
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

impl Drop for MySql {
    fn drop(&mut self) {
        self.kill();
        // A hundred megabytes each; who looks for a reason wants the log, which stays.
        if !std::thread::panicking() {
            drop(fs::remove_dir_all(self.data()));
        }
    }
}

/// A folder that the server's user may write.
fn make_own(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(folder).expect("the parent is ours");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("it is our own");
}

fn environment(command: &mut Command, folder: &Path) {
    command.env("LC_ALL", "C").env("HOME", folder).env("TZ", "UTC").current_dir(folder);
}

/// Text as an SQL literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

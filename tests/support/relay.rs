//! The relay under test, as its users run it: the built binary in a process of its own.
//!
//! Knows the command line and nothing of the inside.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::process::{Process, scratch};

/// Longer than any `drain_seconds_max` of a test.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A relay that can be started, killed and started again with the same arguments and log.
pub struct Relay {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    process: Option<Process>,
    peak_rss_bytes_ended: u64,
    starts: usize,
}

impl Relay {
    /// `walpost run` from a source to a sink. Slot and publication default to `walpost`, as in
    /// the program.
    pub fn new(source: &str, sink: &str) -> Relay {
        Relay::without_source(sink).args(&["--source", source])
    }

    /// `walpost run` whose source stands elsewhere, such as in the environment.
    pub fn without_source(sink: &str) -> Relay {
        Relay {
            arguments: ["run", "--sink", sink].map(str::to_owned).into(),
            environment: Vec::new(),
            log: scratch("relay").join("relay.log"),
            process: None,
            peak_rss_bytes_ended: 0,
            starts: 0,
        }
    }

    pub fn slot(self, name: &str) -> Relay {
        self.args(&["--slot", name])
    }

    pub fn publication(self, name: &str) -> Relay {
        self.args(&["--publication", name])
    }

    pub fn table(self, name: &str) -> Relay {
        self.args(&["--table", name])
    }

    /// Further arguments, as on the command line.
    pub fn args(mut self, arguments: &[&str]) -> Relay {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// An environment variable, such as `WALPOST_…`. Those of the test run's own environment
    /// are not passed on.
    pub fn env(mut self, name: &str, value: &str) -> Relay {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it; does not wait for anything. Panics when it runs already.
    pub fn start(&mut self) {
        assert!(!self.is_running(), "the relay runs already");
        self.note_peak();
        let mut command = program();
        command.args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::spawn(command, None, &self.log));
        self.starts += 1;
    }

    /// [`Relay::start`] for the end of a builder chain.
    pub fn started(mut self) -> Relay {
        self.start();
        self
    }

    /// How often it was started.
    pub fn starts(&self) -> usize {
        self.starts
    }

    /// Process id of the running relay.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("the relay was started").id()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Sends a signal, such as SIGSTOP and SIGCONT.
    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("the relay was started").signal(signal);
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.note_peak();
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM, then its exit status. Panics with the log when it does not leave.
    pub fn terminate(&mut self) -> ExitStatus {
        self.note_peak();
        self.signal(Signal::SIGTERM);
        self.wait_exit()
    }

    /// Waits until it leaves by itself. Panics with the log when it does not.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("the relay was started");
        let Some(status) = process.wait(EXIT_TIMEOUT) else {
            process.give_up("the relay did not exit");
        };
        self.process = None;
        status
    }

    /// What all its runs logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Largest resident memory of any of its runs (VmHWM). A run that ended by itself counts up
    /// to the last look at it: call this, or `terminate`, before it ends.
    pub fn peak_rss_bytes(&mut self) -> u64 {
        self.note_peak();
        self.peak_rss_bytes_ended
    }

    /// CPU time of the current run, user and system, in seconds; 0.01 s fine.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.id()).expect("the relay runs")
    }

    fn note_peak(&mut self) {
        let now = self.process.as_ref().and_then(|process| peak_rss_bytes(process.id()));
        self.peak_rss_bytes_ended = self.peak_rss_bytes_ended.max(now.unwrap_or(0));
    }
}

/// The program under test: the tests' own build, or another one of the same tree, such as the
/// release one for the long runs. Without the variables of the test run's environment.
pub fn program() -> Command {
    let other = std::env::var_os("WALPOST_TEST_PROGRAM");
    let mut command = Command::new(other.unwrap_or(env!("CARGO_BIN_EXE_walpost").into()));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WALPOST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Peak resident memory of a process (VmHWM); `None` when it is gone or a zombie.
pub fn peak_rss_bytes(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// CPU time of a process in seconds; `None` when it is gone.
pub fn cpu_seconds(id: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    // Fields 14 and 15 of the file; the first here is field 3. Linux shows them to programs in
    // hundredths of a second whatever the kernel's tick (proc(5), USER_HZ).
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}

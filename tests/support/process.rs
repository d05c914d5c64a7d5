//! Server processes that end with the test run, whatever way it ends.
//!
//! Every child runs in a process group of its own and is killed with it when its [`Process`] is
//! dropped. Should the test binary itself be killed, the kernel ends the children: they are
//! started with `setpriv --pdeathsig KILL` from one thread that lives as long as the binary
//! (the signal follows the *thread* that forked).

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

type Request = (Command, mpsc::SyncSender<std::io::Result<Child>>);

/// The thread that forks all children; it never ends.
fn spawner() -> mpsc::SyncSender<Request> {
    static SPAWNER: OnceLock<mpsc::SyncSender<Request>> = OnceLock::new();
    SPAWNER
        .get_or_init(|| {
            let (sender, receiver) = mpsc::sync_channel::<Request>(16);
            std::thread::spawn(move || {
                while let Ok((mut command, reply)) = receiver.recv() {
                    reply.send(command.spawn()).expect("the caller waits for its child");
                }
            });
            sender
        })
        .clone()
}

/// A private folder under the system's temporary one, readable by other users (PostgreSQL and
/// RabbitMQ do not run as root). Kept after the run for reading logs; older runs' are removed.
pub fn scratch(name: &str) -> PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let root = ROOT.get_or_init(|| {
        let parent = std::env::temp_dir();
        for entry in fs::read_dir(&parent).expect("the temporary folder is readable").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix("walpost-test-") else { continue };
            if !Path::new("/proc").join(pid).exists() {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
        let root = parent.join(format!("walpost-test-{}", std::process::id()));
        open_to_all(&root);
        root
    });
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = root.join(format!("{name}-{number}"));
    open_to_all(&folder);
    folder
}

fn open_to_all(folder: &Path) {
    fs::create_dir_all(folder).expect("a scratch folder can be made");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("it is our own");
}

/// A port on 127.0.0.1 that was free a moment ago, and that this binary gives out only once.
/// Below the ephemeral range, so that no outgoing connection takes it in between.
pub fn free_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 97;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + ((start + step) % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A running child and its process group.
pub struct Process {
    child: Child,
    /// Once it was waited for, its number may be somebody else's.
    ended: Option<ExitStatus>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to `log`. `user` drops root's rights first, for
    /// servers that refuse to run as root; ignored when the test does not run as root.
    pub fn spawn(command: Command, user: Option<&str>, log: &Path) -> Process {
        let output = File::options().create(true).append(true).open(log).expect("log opens");
        let errors = output.try_clone().expect("a file handle can be cloned");
        Process::spawn_with(command, user, log, Stdio::from(output), Stdio::from(errors))
    }

    /// As [`Process::spawn`], with the given stdout and stderr.
    pub fn spawn_with(
        command: Command,
        user: Option<&str>,
        log: &Path,
        stdout: Stdio,
        stderr: Stdio,
    ) -> Process {
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig", "KILL"]);
        if let Some(user) = user.filter(|_| nix::unistd::geteuid().is_root()) {
            wrapped.arg(format!("--reuid={user}")).arg(format!("--regid={user}"));
            wrapped.arg("--clear-groups");
        }
        wrapped.arg("--").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        wrapped.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
        let name = command.get_program().to_string_lossy().into_owned();
        let (reply, answer) = mpsc::sync_channel(1);
        spawner().send((wrapped, reply)).expect("the spawner lives as long as the binary");
        let child = answer
            .recv()
            .expect("the spawner answers")
            .unwrap_or_else(|error| panic!("could not start {name}: {error}"));
        Process { child, ended: None, log: log.to_owned() }
    }

    /// Process id; also the id of its group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child's stdout, where it was piped.
    pub fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_some() {
            return;
        }
        // A group that is already gone needs no signal.
        killpg(Pid::from_raw(self.child.id() as i32), signal).ok();
    }

    /// `kill -9` of the whole group, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let status = self.child.wait().expect("a child can be waited for");
        self.ended.get_or_insert(status);
    }

    /// SIGSTOP: it stands still, with its sockets open and what arrives waiting in them.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        // The signal reaches each thread in its own time.
        let tasks = format!("/proc/{}/task", self.id());
        let frozen = eventually(Duration::from_secs(10), || {
            fs::read_dir(&tasks).expect("it runs").flatten().all(|task| {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
            })
        });
        assert!(frozen, "a process did not stop on SIGSTOP");
    }

    /// Goes on after [`Process::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be asked");
        }
        self.ended
    }

    /// Waits for its end, at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_wait() {
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Panics with the log's end, for a server that did not come up.
    pub fn give_up(&mut self, what: &str) -> ! {
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(40).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        panic!("{what}; the end of its log:\n{}", tail.join("\n"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tries `probe` until it holds or `timeout` is over; says whether it held.
pub fn eventually(timeout: Duration, mut probe: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if probe() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The project's folder of installed tools; `scripts/setup` fills it.
pub fn tool(path: &str, part: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".walpost").join(path);
    assert!(path.exists(), "{} is missing; run `scripts/setup {part}`", path.display());
    path
}

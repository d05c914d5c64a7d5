//! The way of a log line to stderr, which never holds the relay up: a full disk, a reader that has
//! ended or one that does not read costs lines, and nothing else.
//!
//! ```text
//!  tracing, last words ──▶ lines, at most LINES_MAX ──▶ thread ──▶ stderr
//! ```

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use walpost::config::{ConfigError, LogFormat, LogSettings, Values};

/// Lines that may wait for stderr; what comes beyond them is lost, and counted.
const LINES_MAX: usize = 1024;
/// How long the end of the process waits for them.
const FLUSH_MAX: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Everything before it was written, or is lost.
    Flush(SyncSender<()>),
}

/// Lines that were lost since the last one that was written.
static LOST: AtomicU64 = AtomicU64::new(0);

/// The way to the thread, which is started by the first line and ends with the process; `None`
/// where no thread could be started.
fn lines() -> Option<&'static SyncSender<Item>> {
    static LINES: OnceLock<Option<SyncSender<Item>>> = OnceLock::new();
    let start = || {
        let (sender, receiver) = sync_channel(LINES_MAX);
        let thread = std::thread::Builder::new().name("walpost-log".to_owned());
        thread.spawn(move || write_all(&receiver)).ok().map(|_| sender)
    };
    LINES.get_or_init(start).as_ref()
}

fn write_all(items: &Receiver<Item>) {
    while let Ok(item) = items.recv() {
        match item {
            Item::Line(line) => {
                let lost = LOST.swap(0, Ordering::Relaxed);
                if let Err(lines) = write(&line, lost) {
                    LOST.fetch_add(lines, Ordering::Relaxed);
                }
            }
            // Whoever asked may have gone on.
            Item::Flush(done) => {
                done.try_send(()).ok();
            }
        }
    }
}

/// # Errors
/// How many lines are lost now.
fn write(line: &[u8], lost: u64) -> Result<(), u64> {
    let mut stderr = io::stderr().lock();
    if lost > 0 {
        let notice = format!("walpost: {lost} log lines were lost, since stderr took none\n");
        stderr.write_all(notice.as_bytes()).map_err(|_| lost + 1)?;
    }
    stderr.write_all(line).map_err(|_| 1_u64)
}

/// Never waits.
fn put(line: &[u8]) {
    let is_lost = match lines() {
        Some(lines) => match lines.try_send(Item::Line(line.to_owned())) {
            Ok(()) => false,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => true,
        },
        None => true,
    };
    if is_lost {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits, for [`FLUSH_MAX`] at most, until what was logged is written.
pub(super) fn flush() {
    let (done, written) = sync_channel(1);
    if lines().is_some_and(|lines| lines.try_send(Item::Flush(done)).is_ok()) {
        // Late is lost: nobody reads stderr.
        written.recv_timeout(FLUSH_MAX).ok();
    }
}

/// The log of the process: its end is the last moment in which lines are written.
pub(crate) struct Log;

impl Log {
    /// What the program ends with.
    pub(crate) fn last_words(&self, words: &str) {
        put(format!("walpost: {words}\n").as_bytes());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        flush();
    }
}

/// What `tracing` writes one line to, as a whole.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Log lines go to stderr; stdout is for what a verb prints.
///
/// # Errors
/// `log.level` is not valid.
pub(super) fn start(values: &Values, settings: &LogSettings) -> Result<(), ConfigError> {
    let filter = filter(values, settings)?;
    // What cannot be written is counted by the writer; the library would say so on stderr, and
    // panic where that fails too.
    let lines = tracing_subscriber::fmt()
        .with_writer(|| Line)
        .with_env_filter(filter)
        .log_internal_errors(false);
    match settings.format {
        LogFormat::Human => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}

/// What the clients of the brokers log with payloads, keys or credentials in it, at one level or
/// another: none of that has a place in a log, whatever the level.
const SILENT: [&str; 7] = [
    // Returned messages, whole; frames; and the broker's texts, of which one repeats routing keys.
    "lapin::returned_messages=off",
    "lapin::frames=off",
    "lapin::internal_rpc=off",
    "lapin::channel=off",
    "lapin::channels=off",
    // What the client says at a login, and what JetStream answers.
    "async_nats::connection=off",
    "async_nats::jetstream::context=off",
];

/// What `log.level` lets through.
///
/// # Errors
/// It is not valid.
pub(super) fn filter(values: &Values, settings: &LogSettings) -> Result<EnvFilter, ConfigError> {
    let level = &settings.level;
    // A level is about walpost. Its client libraries then speak only of what is wrong, and those of
    // the brokers not at all: they log as errors what our own lines tell better. Whoever wants
    // more of them writes directives.
    let directives = match level.to_ascii_lowercase().as_str() {
        "off" | "error" => format!("{level},lapin=off,async_nats=off"),
        "warn" | "info" | "debug" | "trace" => {
            format!("warn,walpost={level},lapin=off,async_nats=off")
        }
        _ => level.clone(),
    };
    let filter = EnvFilter::try_new(directives).map_err(|error| {
        values.refuse("log.level", format!("\"{level}\" is not a log level: {error}"))
    })?;
    let own = SILENT.iter().map(|silent| silent.parse().expect("a directive of our own"));
    Ok(own.fold(filter, EnvFilter::add_directive))
}

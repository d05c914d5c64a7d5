//! A source's hold of its reader, which is a thread with a runtime of its own.
//!
//! ```text
//!  Source::next ◀── batches, or an error ──┐
//!  Source::next ─── connect, after it ────▶│ reader
//!  Source::close ── close ◀── how it went ─┘
//! ```

use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Change;
use crate::failure::Failure;

/// Batches between reader and relay. Few: each may be as large as a read, or as a row.
const BATCHES_MAX: usize = 2;

/// Longest wait for the reader's own tries to close, and a little.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a source asks of its reader.
pub(crate) enum Command<E> {
    /// Connect, after an error was taken.
    Connect,
    /// See the last acknowledgement arrive where it is kept, close, and say how that went.
    Close(oneshot::Sender<Result<(), E>>),
}

/// What was decoded at once, or why the session is over.
pub(crate) type Batch<P, E> = Result<Vec<Change<P>>, E>;

/// The reader's ends.
pub(super) struct ReaderEnds<P, E> {
    pub(super) commands: mpsc::Receiver<Command<E>>,
    pub(super) batches: mpsc::Sender<Batch<P, E>>,
}

/// See the module.
pub(super) struct ReaderHandle<P, E> {
    commands: mpsc::Sender<Command<E>>,
    batches: mpsc::Receiver<Batch<P, E>>,
    /// Whether the last batch was an error, after which the reader waits to be told.
    failed: bool,
    /// What is said of a reader that ended without a word: a bug.
    gone: fn() -> E,
}

impl<P, E: Into<Failure>> ReaderHandle<P, E> {
    /// `gone` is what is said where the reader's ends are dropped before a close.
    pub(super) fn new(gone: fn() -> E) -> (Self, ReaderEnds<P, E>) {
        let (commands, command_receiver) = mpsc::channel(4);
        let (batch_sender, batches) = mpsc::channel(BATCHES_MAX);
        let ends = ReaderEnds { commands: command_receiver, batches: batch_sender };
        (Self { commands, batches, failed: false, gone }, ends)
    }

    /// The next batch, by way of a new connection when the last one failed.
    ///
    /// # Errors
    /// The reader's.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Vec<Change<P>>, Failure> {
        if self.failed {
            // Never full: an error is answered by one command, and taken before the next.
            drop(self.commands.try_send(Command::Connect));
            self.failed = false;
        }
        match self.batches.recv().await {
            Some(Ok(batch)) => Ok(batch),
            Some(Err(error)) => {
                self.failed = true;
                Err(error.into())
            }
            None => Err((self.gone)().into()),
        }
    }

    /// Lets the reader close. What is `late` is the last acknowledgement, in a sentence.
    ///
    /// # Errors
    /// The reader's, or it did not end in time.
    pub(super) async fn close(self, late: &'static str) -> Result<(), Failure> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Close(reply)).await.is_err() {
            return Err((self.gone)().into());
        }
        match tokio::time::timeout(CLOSE_TIMEOUT, answer).await {
            Ok(Ok(result)) => result.map_err(E::into),
            Ok(Err(_)) => Err((self.gone)().into()),
            Err(_) => Err(Failure::transient(late)),
        }
    }
}

/// Runs a reader in a thread of its own, until it ends by itself.
///
/// # Errors
/// No runtime or no thread can be made.
pub(super) fn spawn<F: Future<Output = ()>>(
    reader: impl FnOnce() -> F + Send + 'static,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::definite)?;
    std::thread::Builder::new()
        .name("walpost-reader".into())
        .spawn(move || runtime.block_on(reader()))
        .map_err(Failure::definite)?;
    Ok(())
}

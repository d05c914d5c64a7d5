//! The contract of a source: committed rows in commit order, and a position to acknowledge.
//!
//! A source owns its socket, slot or server id, wire decoding and feedback timer. It knows
//! nothing of topics, batches, sinks or delivery retries.

use std::fmt::Display;
use std::future::Future;

use crate::failure::Failure;
use crate::fence::Fence;
use crate::outbox::OutboxRow;

#[cfg(any(feature = "mysql", feature = "postgres"))]
mod calendar;
mod finding;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod handle;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod memory_file;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod pace;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod paced;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod scientific;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod socket;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod tls;

pub use finding::{Finding, Standing};
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub use memory_file::MemoryFileError;

/// What a source yields, in commit order. Only committed transactions appear.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "rows are the rule; a box is an allocation a row")]
pub enum Change<P> {
    /// A row with its identity; more rows of the same transaction may follow.
    Row(OutboxRow),
    /// Every row since the last `Commit` belongs to it; a restart resumes after it at `P`.
    Commit(P),
    /// Keepalive or foreign transaction: nothing of ours up to `P`. Never inside an open
    /// transaction.
    Idle(P),
}

/// A database log, read as outbox rows.
///
/// **A reconnect is not a restart.** A source outlives its connections: after an error the next
/// call of [`next`](Source::next) connects again, resumes at the last acknowledged position and
/// leaves out every row that it has already yielded. So no row is yielded twice in the life of a
/// source, and what waits for its confirm is not sent again.
pub trait Source: Send {
    /// A point in the log to resume at. GTID sets are only partially ordered, hence no `Ord`.
    type Position: Clone + Display + Send + Sync + 'static;

    /// Appends all that one socket read decoded. Keepalives are answered meanwhile, also while
    /// nobody calls this.
    ///
    /// # Errors
    /// The connection is gone. After a transient error the next call connects again, at once: the
    /// caller waits between the calls. A definite one comes again.
    ///
    /// # Cancel safety
    /// Cancel safe: a dropped call loses nothing and interrupts no attempt to connect.
    fn next(
        &mut self,
        changes: &mut Vec<Change<Self::Position>>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Everything up to `position` is durable downstream. Never blocks; the database hears of it
    /// within `ack_interval`, or after the next connect.
    fn acknowledge(&mut self, position: Self::Position);

    /// How many bytes of log the acknowledged position is behind the end that the database last
    /// told of, where the source knows.
    fn behind_bytes(&self) -> Option<u64>;

    /// Whether rows may be delivered, asked before each delivery. A source whose server does not
    /// keep a second reader away holds a lease instead, and its fence is up only while that is
    /// surely held. It goes on renewing it until it is closed, also after an error, since what
    /// was read is still delivered then; and it lowers the fence for good before it gives the
    /// lease back.
    fn fence(&self) -> Fence {
        Fence::open()
    }

    /// Sends the last acknowledgement, sees it arrive, and closes.
    ///
    /// # Errors
    /// The database could not be told in time: rows since its last known position come again.
    fn close(self) -> impl Future<Output = Result<(), Failure>> + Send;
}

//! Where a position in the binlog is kept, and who may move it.
//!
//! A binlog server remembers nobody's place and lets everybody read. So the position stands in a
//! table of the source's server (or of another one, or in a local file), and beside it a lease:
//! its epoch rises with each taker, and every write names the epoch that it was given. A relay
//! that lost its lease without knowing it therefore moves no position, whatever it still sends.
//!
//! | file | noun |
//! |---|---|
//! | `table` | a row of `walpost_position`, on whichever server |
//! | `file` | a local file, for a single relay |
//! | `keeper` | when the position is written and the lease renewed, and the fence that follows |
//! | `error` | what can go wrong, and what helps |

mod error;
mod file;
mod keeper;
mod table;

use std::future::Future;
use std::time::Duration;

pub use error::StoreError;
pub(crate) use file::FileStore;
pub(crate) use keeper::{Keeper, Keeping, Progress, Steps};
pub(crate) use table::{Lent, Open, TableStore};

use super::gtid::Flavor;

/// A place in the binlog: everything before it is confirmed by the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredPosition {
    pub(crate) flavor: Flavor,
    /// The server that the position was read from.
    pub(crate) server_uuid: String,
    /// Text of a GTID set; empty where the server has no GTIDs, and before its first transaction.
    pub(crate) gtids: String,
    /// Binlog file.
    pub(crate) file: String,
    /// Offset in the file at which a transaction ends.
    pub(crate) position: u64,
    /// Whether rows that the outbox had at the first start are still to be confirmed: until then
    /// each start reads on in the table, and the binlog from this same place.
    pub(crate) initial_pending: bool,
    /// Behind which row of the table, where some of them are confirmed already; see `initial`.
    pub(crate) initial_after: Option<String>,
}

/// What an attempt to take the lease came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It is ours, under this epoch.
    Held { epoch: u64 },
    /// Somebody else has it.
    Busy(Busy),
}

/// Who stands in the way of a lease.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Busy {
    /// As that relay calls itself.
    pub(crate) holder: String,
    /// Until the lease runs out by itself; `None` where only its holder's end frees it.
    pub(crate) left: Option<Duration>,
}

/// A place where one relay's position is kept.
///
/// Every method waits for a bounded time. None of them is told twice: what was written and not
/// answered may be written again.
///
/// # Cancel safety
/// A dropped call leaves the store usable; what it asked for may have happened or not.
pub(crate) trait Backend: Send + 'static {
    /// Takes the lease if it is free. Once it is ours it lasts `lease` from the moment of the
    /// call, as each [`save`](Backend::save) and [`renew`](Backend::renew) makes it last again.
    fn acquire(
        &mut self,
        holder: &str,
        lease: Duration,
    ) -> impl Future<Output = Result<Attempt, StoreError>> + Send;

    /// The position, where one was ever saved. Under the lease it cannot change.
    fn load(&mut self) -> impl Future<Output = Result<Option<StoredPosition>, StoreError>> + Send;

    /// Writes a position and extends the lease, both or neither.
    fn save(
        &mut self,
        position: &StoredPosition,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Extends the lease.
    fn renew(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives the lease back; nothing can be saved after it.
    fn release(&mut self) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// One of the places, as the settings choose.
#[expect(clippy::large_enum_variant, reason = "there is one of them in a process")]
pub(crate) enum Store {
    Table(TableStore),
    File(FileStore),
}

impl Backend for Store {
    async fn acquire(&mut self, holder: &str, lease: Duration) -> Result<Attempt, StoreError> {
        match self {
            Self::Table(store) => store.acquire(holder, lease).await,
            Self::File(store) => store.acquire(holder, lease).await,
        }
    }

    async fn load(&mut self) -> Result<Option<StoredPosition>, StoreError> {
        match self {
            Self::Table(store) => store.load().await,
            Self::File(store) => store.load().await,
        }
    }

    async fn save(&mut self, position: &StoredPosition) -> Result<(), StoreError> {
        match self {
            Self::Table(store) => store.save(position).await,
            Self::File(store) => store.save(position).await,
        }
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Table(store) => store.renew().await,
            Self::File(store) => store.renew().await,
        }
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Table(store) => store.release().await,
            Self::File(store) => store.release().await,
        }
    }
}

/// A flavor as it is stored.
fn flavor_word(flavor: Flavor) -> &'static str {
    match flavor {
        Flavor::MySql => "mysql",
        Flavor::MariaDb => "mariadb",
    }
}

fn flavor_of(word: &str) -> Option<Flavor> {
    [Flavor::MySql, Flavor::MariaDb].into_iter().find(|flavor| flavor_word(*flavor) == word)
}

/// What this process is called where others are told who holds a lease.
pub(crate) fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.ok().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    match host.trim() {
        "" => format!("process {}", std::process::id()),
        host => format!("process {} on {host}", std::process::id()),
    }
}

/// Tells this store from every other one, also from one in a process of the same number on a
/// machine of the same name: containers are alike.
pub(super) fn nonce() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The one source of the system's randomness in the standard library.
    std::hash::RandomState::new().build_hasher().finish()
}

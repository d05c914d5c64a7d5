//! The binlog of MySQL and MariaDB as a source, GTID first.
//!
//! | file | noun |
//! |---|---|
//! | `conninfo`, `connect`, `login`, `connection`, `wire` | a connection that is logged in |
//! | `dump`, `intake` | a stream of the binlog: packets, each one event |
//! | `sql` | ordinary SQL, by `mysql_async` |
//! | `inspect`, `precondition` | what the server says about itself, and whether that will do |
//! | `gtid` | transactions by name, and sets of them: pure |
//! | `event`, `payload`, `statement`, `decoder` | bytes to transactions: pure |
//! | `cursor`, `table_map`, `layout`, `value` | bytes to rows: pure |
//! | `charset`, `decimal`, `float`, `jsonb`, `temporal` | one kind of value each, to text: pure |
//! | `here` | which of the URL's hosts all connections lead to |
//! | `snapshot`, `initial` | the rows from before a first start |
//! | `store` | where the position is kept, and who may move it |
//! | `cluster` | which set of MariaDB servers it is |
//! | `session`, `reader`, `resume` | the thread that reads, and what a new connection repeats |
//!
//! MySQL sends the binlog over a connection of its own protocol; `mysql_common` knows its packets
//! and authentication. The crate's own stream is not used: it inflates a compressed transaction
//! whole, swallows one that does not inflate, and parses before the checksum was compared.

mod charset;
mod cluster;
mod connect;
mod connection;
mod conninfo;
mod cursor;
mod decimal;
pub(crate) mod decoder;
mod dump;
mod error;
mod event;
mod float;
mod gtid;
mod here;
mod initial;
pub mod inspect;
mod intake;
mod jsonb;
mod layout;
mod login;
mod payload;
pub mod precondition;
mod reader;
mod resume;
mod session;
mod skim;
pub mod snapshot;
mod sql;
mod statement;
mod store;
mod table_map;
mod temporal;
mod value;
mod watch;
mod wire;

use std::sync::Arc;

pub use super::socket::Socket;
pub use super::tls::CertificateFileError;
pub use cluster::known_cluster;
pub use connect::{ConnectError, connect};
pub use connection::{Connection, Greeting, WireError};
pub use conninfo::{ConnInfo, ConnInfoError};
pub use decoder::{DecodeError, Undecodable};
pub use dump::{BinlogStream, DumpError, Sent, StreamLimits, StreamSettings};
pub use error::MySqlError;
pub use gtid::{Flavor, Gtid, GtidSet, ParseGtidError};
pub use intake::Packets;
pub use layout::{LayoutError, RowError};
pub use login::LoginError;
pub use resume::MySqlPosition;
pub use sql::sql_connect;
pub use store::StoreError;
pub use wire::{PacketError, Row, ServerError};

use super::handle::{ReaderEnds, ReaderHandle};
use super::{Change, Source, handle};
use crate::budget::Budget;
use crate::config::{MySqlSettings, OutboxSettings, PositionPlace};
use crate::failure::Failure;
use crate::fence::Fence;
use here::Here;
use reader::{Holding, Reader, Shared};
use store::{FileStore, Keeper, Open, Store, TableStore};

/// A binlog, read as outbox rows, with a position of its own.
///
/// Begins to take its position and to connect when it is made; the thread that reads ends when
/// this is closed or dropped.
pub struct MySqlSource {
    shared: Arc<Shared>,
    reader: ReaderHandle<MySqlPosition, MySqlError>,
    fence: Fence,
}

impl MySqlSource {
    /// Starts to read. What is read counts against `budget` until its last slice is dropped.
    ///
    /// # Errors
    /// A URL cannot be read, or no thread can be started.
    pub fn start(
        settings: MySqlSettings,
        outbox: OutboxSettings,
        budget: Budget,
    ) -> Result<Self, Failure> {
        let info = ConnInfo::of(&settings.url)?;
        let shared = Arc::new(Shared::default());
        let (handle, ReaderEnds { commands, batches }) =
            ReaderHandle::new(|| MySqlError::ReaderGone);
        let fence = Fence::down();
        let here = Here::default();
        let keeper = Keeper::new(
            open_store(&settings, &info, &here)?,
            store::holder(),
            settings.lease,
            settings.ack_interval,
            fence.clone(),
        );
        let reader = Reader {
            info,
            settings,
            outbox,
            budget,
            shared: Arc::clone(&shared),
            commands,
            batches,
            fence: fence.clone(),
            wait: None,
            stored: None,
            here,
            locks_refused: 0,
            initial_open: false,
            holding: Holding::NotYet(Box::new(keeper)),
        };
        handle::spawn(move || reader.run())?;
        Ok(Self { shared, reader: handle, fence })
    }
}

/// Where the position is kept; connects to nothing yet.
fn open_store(settings: &MySqlSettings, info: &ConnInfo, here: &Here) -> Result<Store, Failure> {
    let (info, here, table) = match &settings.position {
        PositionPlace::File(path) => {
            return Ok(Store::File(FileStore::new(path, &settings.name)));
        }
        PositionPlace::Source { table } => (info.clone(), here.clone(), table),
        PositionPlace::Server { url, table } => (ConnInfo::of(url)?, Here::default(), table),
    };
    let moves = here.moves();
    let open: Open = Box::new(move || {
        let (info, here) = (info.clone(), here.clone());
        Box::pin(async move { here.connect(&info).await })
    });
    let store = TableStore::new(open, &table.schema, &table.name, &settings.name);
    Ok(Store::Table(store.following(moves)))
}

impl Source for MySqlSource {
    type Position = MySqlPosition;

    async fn next(&mut self, changes: &mut Vec<Change<MySqlPosition>>) -> Result<(), Failure> {
        changes.append(&mut self.reader.next().await?);
        Ok(())
    }

    fn acknowledge(&mut self, position: MySqlPosition) {
        self.shared.acknowledge(&position);
    }

    fn behind_bytes(&self) -> Option<u64> {
        self.shared.behind_bytes()
    }

    fn fence(&self) -> Fence {
        self.fence.clone()
    }

    async fn close(self) -> Result<(), Failure> {
        self.reader.close("the last position could not be written in time").await
    }
}

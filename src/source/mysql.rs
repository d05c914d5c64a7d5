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
//! | `table_map`, `layout`, `value`, `jsonb`, `decimal`, `temporal` | bytes to rows: pure |
//! | `snapshot` | the outbox and the binlog at one moment, for a first start |
//! | `store` | where the position is kept, and who may move it |
//! | `session`, `reader`, `resume` | the thread that reads, and what a new connection repeats |
//!
//! MySQL sends the binlog over a connection of its own protocol; `mysql_common` knows its packets
//! and authentication. The crate's own stream is not used: it inflates a compressed transaction
//! whole, swallows one that does not inflate, and parses before the checksum was compared.

mod connect;
mod connection;
mod conninfo;
mod decimal;
mod decoder;
mod dump;
mod event;
mod gtid;
pub mod inspect;
mod intake;
mod jsonb;
mod layout;
mod login;
mod payload;
pub mod precondition;
pub mod snapshot;
mod sql;
mod statement;
mod store;
mod table_map;
mod temporal;
mod value;
mod wire;

pub use super::socket::Socket;
pub use super::tls::CertificateFileError;
pub use connect::{ConnectError, connect};
pub use connection::{Connection, Greeting, WireError};
pub use conninfo::{ConnInfo, ConnInfoError, PasswordError};
pub use dump::{BinlogStream, DumpError, Sent, StreamLimits, StreamSettings};
pub use gtid::{Flavor, Gtid, GtidSet, ParseGtidError};
pub use intake::Packets;
pub use login::LoginError;
pub use sql::sql_connect;
pub use wire::{PacketError, Row, ServerError};

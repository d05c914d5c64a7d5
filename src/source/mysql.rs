//! The binlog of MySQL and MariaDB as a source, GTID first.
//!
//! | file | noun |
//! |---|---|
//! | `conninfo`, `wire`, `login` | a connection that is logged in and may ask for the binlog |
//! | `sql` | ordinary SQL, by `mysql_async` |
//! | `inspect`, `precondition` | what the server says about itself, and whether that will do |
//! | `gtid` | transactions by name, and sets of them: pure |
//! | `event`, `payload`, `statement`, `decoder` | bytes to transactions: pure |
//! | `cursor`, `table_map`, `layout`, `value` | bytes to rows: pure |
//! | `charset`, `decimal`, `float`, `jsonb`, `temporal` | one kind of value each, to text: pure |
//! | `store` | where the position is kept, and who may move it |
//! | `session`, `reader`, `intake`, `resume` | the thread that reads, and what a new connection repeats |
//!
//! MySQL sends the binlog over a connection of its own protocol; `mysql_common` knows its packets
//! and authentication. The crate's own stream is not used: it inflates a compressed transaction
//! whole, swallows one that does not inflate, and parses before the checksum was compared.

mod charset;
mod conninfo;
mod cursor;
mod decimal;
pub(crate) mod decoder;
mod event;
mod float;
mod gtid;
pub mod inspect;
mod jsonb;
mod layout;
mod login;
mod payload;
pub mod precondition;
mod sql;
mod statement;
mod store;
mod table_map;
mod temporal;
mod value;
mod wire;

pub use gtid::{Flavor, Gtid, GtidSet, ParseGtidError};
pub use layout::{LayoutError, RowError};

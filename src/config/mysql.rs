//! `[source]` of a MySQL or MariaDB database.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::{ConfigError, GIB, QualifiedName, Secret, Values};

/// Name of the table that keeps positions.
pub const POSITION_TABLE: &str = "walpost_position";

const NAME_DEFAULT: &str = "walpost";

/// The lower half belongs to people, who count from 1.
const SERVER_ID_DERIVED_MIN: u32 = 1 << 31;

/// A MySQL or MariaDB database and what is read of it.
#[derive(Debug, Clone)]
pub struct MySqlSettings {
    /// `mysql://…` or `mariadb://…` with the password in it, where one was given.
    pub url: Secret,
    /// Name of the relay: the key of its position. Two relays of one name share one position, and
    /// only one of them works at a time.
    pub name: String,
    /// `server_id` among the server's replicas, where one was written down; see
    /// [`MySqlSettings::server_id()`].
    pub server_id: Option<u32>,
    /// The outbox table; its schema is what MySQL calls a database.
    pub table: QualifiedName,
    /// Where the position is kept.
    pub position: PositionPlace,
    /// What a first start does with rows that the table already has.
    pub initial: Initial,
    /// The column by which a first start sorts those rows, where one was written down.
    pub initial_order: Option<String>,
    /// How long a relay that fell silent keeps its position from the next one.
    pub lease: Duration,
    /// How soon the position is written after a confirm.
    pub ack_interval: Duration,
    /// How often the server speaks when it has nothing to send.
    pub heartbeat: Duration,
    /// Largest row in bytes; a larger one is a definite error.
    pub row_bytes_max: usize,
    /// Largest compressed transaction in bytes, as it is sent: it arrives as one piece. A larger
    /// one is a definite error.
    pub payload_bytes_max: usize,
    /// Bytes of outbox rows that may wait in memory for the end of their transaction, where
    /// something behind them may take them back.
    pub held_bytes_max: usize,
    /// Transactions of which no row is read: a GTID, or a file and where it begins there.
    pub skip_transactions: Vec<String>,
}

/// Where the position is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PositionPlace {
    /// In the source's server, beside the outbox table.
    Source {
        /// The table of positions.
        table: QualifiedName,
    },
    /// In another server, for a source that cannot be written to.
    Server {
        /// `mysql://…` or `mariadb://…` with its password.
        url: Secret,
        /// The table of positions.
        table: QualifiedName,
    },
    /// In a local file, for a source that cannot be written to and a single relay.
    File(PathBuf),
}

/// What a first start does with rows that the table already has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initial {
    /// Publishes them, then what the binlog brings after them.
    Publish,
    /// Leaves them out: only what is written from then on is published.
    Skip,
}

impl MySqlSettings {
    /// The number that this relay has among the server's replicas: the one that was written down,
    /// else one from 2^31 on that follows from the relay's name and its table. Two relays that may
    /// work at the same time thus differ, and a standby has the number of whom it relieves.
    pub fn server_id(&self) -> u32 {
        // FNV-1a: the same in every version of walpost, unlike the standard library's hash.
        let parts = [&self.name, &self.table.schema, &self.table.name];
        let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([0]));
        let hash = bytes
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        self.server_id.unwrap_or(hash | SERVER_ID_DERIVED_MIN)
    }
}

impl Values {
    /// All but the URL, of which only the database's name is needed.
    pub(super) fn mysql(&self) -> Result<MySqlSettings, ConfigError> {
        let table = self.mysql_table()?;
        Ok(MySqlSettings {
            url: Secret::new(""),
            name: self.mysql_name()?,
            server_id: self.mysql_server_id()?,
            position: self.position(&table)?,
            table,
            initial: match self.required_text("source.initial", "")?.as_str() {
                "publish" => Initial::Publish,
                "skip" => Initial::Skip,
                _ => return Err(self.refuse("source.initial", "must be publish or skip")),
            },
            initial_order: self.text("source.initial_order")?.filter(|name| !name.is_empty()),
            // Renewed several times in its length, by a server that may be busy.
            lease: self.duration("source.lease", Duration::from_secs(2))?,
            ack_interval: self.duration("source.ack_interval", Duration::from_millis(1))?,
            heartbeat: self.duration("source.heartbeat", Duration::from_millis(100))?,
            // The largest packet that the servers can be set to is 1 GiB.
            row_bytes_max: self.size("source.row_bytes_max", 1024..=GIB)?,
            payload_bytes_max: self.size("source.payload_bytes_max", 1024..=GIB)?,
            held_bytes_max: self.size("source.held_bytes_max", 1024..=GIB)?,
            skip_transactions: self.skip_transactions()?,
        })
    }

    fn skip_transactions(&self) -> Result<Vec<String>, ConfigError> {
        let text = self.text("source.skip_transactions")?.unwrap_or_default();
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        Ok(names.map(str::to_owned).collect())
    }

    fn mysql_table(&self) -> Result<QualifiedName, ConfigError> {
        let written = self.required_text("source.table", "")?;
        let database = database_of(&self.written_url()?);
        let table = QualifiedName::parse_mysql(&written, database.as_deref())
            .map_err(|problem| self.refuse("source.table", problem))?;
        table.ok_or_else(|| {
            let problem = "needs the database that holds the outbox: mysql://USER@HOST/DATABASE";
            self.refuse("source.url", problem)
        })
    }

    fn mysql_name(&self) -> Result<String, ConfigError> {
        let name = self.text("relay.name")?.unwrap_or_else(|| NAME_DEFAULT.to_owned());
        let allowed = |byte: u8| byte.is_ascii_graphic();
        if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
            // Spaces and accents are equal to others in the collations of some servers.
            let problem = "names the position of a MySQL source: 1 to 64 visible ASCII characters";
            return Err(self.refuse("relay.name", problem));
        }
        Ok(name)
    }

    fn mysql_server_id(&self) -> Result<Option<u32>, ConfigError> {
        if !self.is_given("source.server_id") {
            return Ok(None);
        }
        let number = self.number("source.server_id", 1..=u32::MAX.into())?;
        Ok(u32::try_from(number).ok())
    }

    fn position(&self, outbox: &QualifiedName) -> Result<PositionPlace, ConfigError> {
        const HOW: &str = "must be source, mysql://USER@HOST/DATABASE of a server that takes \
                           writes, or file:/PATH";
        let refuse = |problem: &str| self.refuse("source.position", problem);
        let written = self.required_text("source.position", "")?;
        let table = |schema| QualifiedName { schema, name: POSITION_TABLE.to_owned() };
        if written == "source" {
            return Ok(PositionPlace::Source { table: table(outbox.schema.clone()) });
        }
        if let Some(path) = written.strip_prefix("file:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            // A relative one would depend on the folder in which walpost happens to be started.
            if !path.starts_with('/') || path.ends_with('/') {
                return Err(refuse("must be file: and the whole path of a file, from / on"));
            }
            return Ok(PositionPlace::File(PathBuf::from(path)));
        }
        if !written.starts_with("mysql://") && !written.starts_with("mariadb://") {
            return Err(refuse(HOW));
        }
        let database = database_of(&written);
        let database = database.ok_or_else(|| {
            refuse("needs a database for the table of positions: mysql://USER@HOST/DATABASE")
        })?;
        let url = self.required_secret("source.position", HOW)?;
        Ok(PositionPlace::Server { url, table: table(database) })
    }
}

/// The database that a URL names. Reads no more of it than that: it may hold a password with any
/// characters.
fn database_of(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let address = rest.split(['?', '#']).next().unwrap_or(rest);
    let host = address.rsplit_once('@').map_or(address, |(_, host)| host);
    let (_, database) = host.split_once('/')?;
    let database = percent_decode_str(database).decode_utf8().ok()?;
    (!database.is_empty()).then(|| database.into_owned())
}

//! A row of `walpost_position`, in the source's server or in another one.
//!
//! Every change is one statement that commits by itself: a relay that is stopped in the midst of
//! its work holds no lock on the row. All times are the server's, so that two relays whose clocks
//! differ agree on who holds the lease.
//!
//! ```text
//!  taking:   read ─▶ free? ─▶ UPDATE … epoch + 1 WHERE epoch = (what was read) and still free
//!  holding:  UPDATE … WHERE epoch = (ours) AND holder = (ours): no row changed means it is lost
//! ```
//!
//! A relay with nothing to write would write all the same, only to renew. So beside the row its
//! session holds a lock of the server's (`GET_LOCK`), which lives as long as the session, and the
//! server ends a session that is silent for as long as a lease. With it a renewal is a question
//! ("is the lock still mine?"), the row is written once a minute, and its lease lasts over that.
//! Another relay takes over when the row's lease is over, as ever; or when it saw the lock free and
//! the row unchanged for as long as a lease is without the lock: whoever held it knows by then that
//! it may not deliver. Where the server has no such locks (Galera), the row is written each time.
//!
//! The holder is part of each condition, and has a random part: whoever removes the row and lets
//! it be made again starts the epochs anew, and both relays would have the first.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{Conn, Params, Row, Value};
use tokio::time::Instant;

use super::{Attempt, Backend, Busy, StoreError, StoredPosition, flavor_of, flavor_word, nonce};
use crate::failure::Failure;

/// Opens a connection for ordinary statements.
pub(crate) type Open = Box<dyn Fn() -> BoxFuture<'static, Result<Conn, Failure>> + Send + Sync>;

/// Longest wait for a connection with its login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for a statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Tries of a statement that the server gave up for the sake of another one.
const TRIES: u32 = 3;

/// How long a holder of the lock may leave the row as it is.
const WRITE_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// ER_DUP_ENTRY
const DUPLICATE: u16 = 1062;
/// ER_LOCK_WAIT_TIMEOUT, ER_LOCK_DEADLOCK, ER_CHECKREAD (MariaDB from 11.6 on)
const GIVEN_UP: [u16; 3] = [1205, 1213, 1020];

/// Beside what every session of ours sets. A statement waits on the server for a lock for
/// less time than here for the statement: one that nobody waits for any more must not be executed
/// later, behind a newer one.
const SESSION: [&str; 2] = [
    "SET SESSION innodb_lock_wait_timeout = 1, lock_wait_timeout = 1",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE",
];

/// Characters of a holder's own name in its column, which holds 255 with the random part.
const HOLDER_CHARACTERS_MAX: usize = 200;

/// See the module.
pub(crate) struct TableStore {
    open: Open,
    /// Quoted, with its database.
    table: String,
    /// Of the relay: the key of its row.
    name: String,
    statements: Statements,
    nonce: u64,
    lease: Duration,
    held: Option<Held>,
    lock: Lock,
    /// What was seen of a holder whose lock is free, and since when.
    watched: Option<(Standing, Instant)>,
    /// When the row was last written with a lease that lasts for [`WRITE_AT_LEAST_EVERY`].
    written_at: Option<Instant>,
    connection: Option<Conn>,
    /// Rises when the source has gone over to another server: the position goes with it.
    moves: Option<Arc<AtomicU64>>,
    /// Its value when the connection was opened.
    moves_seen: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    epoch: u64,
    holder: String,
}

/// The lock that says that its holder's session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    /// The server was not asked, or our session is a new one.
    Unknown,
    Ours,
    /// The server has no such locks.
    Unsupported,
}

/// The lease as it stands in the row.
#[derive(Debug, Clone)]
struct Standing {
    epoch: u64,
    holder: String,
    /// Microseconds until it runs out; not positive when it has.
    left_micros: i64,
    /// When that is, as the row says it.
    until: String,
}

impl Standing {
    /// Whether nobody wrote meanwhile.
    fn is_unchanged(&self, before: &Self) -> bool {
        (self.epoch, &self.holder, &self.until) == (before.epoch, &before.holder, &before.until)
    }
}

/// Every statement, with the table's name in it.
struct Statements {
    standing: String,
    insert: String,
    take: String,
    take_over: String,
    load: String,
    save: String,
    renew: String,
    release: String,
}

impl Statements {
    fn new(table: &str) -> Self {
        // A condition of every write by the holder.
        let ours = "WHERE name = ? AND epoch = ? AND holder = ?";
        // At least until now + lease. An earlier end, of a statement that was late, takes nothing
        // back; an end that is far off, since the server's clock was set back, does not stay.
        let extend = "lease_until = LEAST(\
                      GREATEST(lease_until, UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND), \
                      UTC_TIMESTAMP(6) + INTERVAL 2 * ? MICROSECOND)";
        Self {
            standing: format!(
                "SELECT epoch, holder, TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), lease_until), \
                 CAST(lease_until AS CHAR) FROM {table} WHERE name = ?"
            ),
            insert: format!(
                "INSERT INTO {table} (name, holder, epoch, lease_until) \
                 VALUES (?, ?, 1, UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND)"
            ),
            take: format!(
                "UPDATE {table} SET epoch = epoch + 1, holder = ?, \
                 lease_until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
                 WHERE name = ? AND epoch = ? AND lease_until <= UTC_TIMESTAMP(6)"
            ),
            take_over: format!(
                "UPDATE {table} SET epoch = epoch + 1, holder = ?, \
                 lease_until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND \
                 WHERE name = ? AND epoch = ? AND holder = ? AND lease_until = ?"
            ),
            load: format!(
                "SELECT flavor, server_uuid, gtid_set, file, position, initial_pending, \
                 initial_after FROM {table} {ours}"
            ),
            save: format!(
                "UPDATE {table} SET flavor = ?, server_uuid = ?, gtid_set = ?, file = ?, \
                 position = ?, initial_pending = ?, initial_after = ?, updated_at = UTC_TIMESTAMP(6), {extend} {ours}"
            ),
            renew: format!("UPDATE {table} SET {extend} {ours}"),
            release: format!(
                "UPDATE {table} SET holder = '', lease_until = UTC_TIMESTAMP(6) {ours}"
            ),
        }
    }
}

impl TableStore {
    /// Connects at the first use, by `open`, and again whenever the connection is lost.
    pub(crate) fn new(open: Open, database: &str, table: &str, name: &str) -> Self {
        let table = format!("{}.{}", quoted(database), quoted(table));
        Self {
            open,
            statements: Statements::new(&table),
            table,
            name: name.to_owned(),
            nonce: nonce(),
            lease: Duration::ZERO,
            held: None,
            lock: Lock::Unknown,
            watched: None,
            written_at: None,
            connection: None,
            moves: None,
            moves_seen: 0,
        }
    }

    /// Connects again, by `open`, whenever `moves` has risen.
    pub(crate) fn following(self, moves: Arc<AtomicU64>) -> Self {
        Self { moves: Some(moves), ..self }
    }

    /// Runs one statement; answers its rows and how many it changed.
    async fn run(&mut self, sql: &str, params: Vec<Value>) -> Result<(Vec<Row>, u64), StoreError> {
        for _ in 1..TRIES {
            match self.run_once(sql, params.clone()).await {
                Err(error) if server_code(&error).is_some_and(|code| GIVEN_UP.contains(&code)) => {}
                outcome => return outcome,
            }
        }
        self.run_once(sql, params).await
    }

    async fn run_once(
        &mut self,
        sql: &str,
        params: Vec<Value>,
    ) -> Result<(Vec<Row>, u64), StoreError> {
        // Out of its place while it is in use: a call that is dropped leaves no connection behind
        // with half an answer in it.
        let moves = self.moves.as_ref().map_or(0, |moves| moves.load(Ordering::Relaxed));
        let kept = self.connection.take().map(|connection| Lent(Some(connection)));
        let mut lent = match kept.filter(|_| moves == self.moves_seen) {
            Some(lent) => lent,
            None => self.connect().await?,
        };
        self.moves_seen = moves;
        let connection = lent.0.as_mut().expect("it is lent until here");
        let statement = async {
            let rows: Vec<Row> = connection.exec(sql, Params::from(params)).await?;
            Ok((rows, connection.affected_rows()))
        };
        let outcome = self.timed(STATEMENT_TIMEOUT, statement).await;
        if outcome.is_ok() || outcome.as_ref().is_err_and(|e| server_code(e).is_some()) {
            self.connection = lent.0.take();
        }
        outcome
    }

    async fn connect(&mut self) -> Result<Lent, StoreError> {
        if self.lock == Lock::Ours {
            self.lock = Lock::Unknown;
        }
        self.written_at = None;
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, (self.open)()).await;
        let connection = match opened {
            Ok(opened) => opened.map_err(StoreError::Connect)?,
            Err(_) => return Err(self.silent(CONNECT_TIMEOUT)),
        };
        let mut lent = Lent(Some(connection));
        let connection = lent.0.as_mut().expect("it was just put there");
        for sql in SESSION {
            self.timed(STATEMENT_TIMEOUT, connection.query_drop(sql)).await?;
        }
        if self.lock != Lock::Unsupported {
            // The lock of a relay that fell silent must not outlive its lease.
            let seconds = self.lease.as_secs_f64().ceil().max(1.0);
            let sql = format!("SET SESSION wait_timeout = {seconds}");
            self.timed(STATEMENT_TIMEOUT, connection.query_drop(sql)).await?;
        }
        Ok(lent)
    }

    async fn timed<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, mysql_async::Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome.map_err(|error| StoreError::statement(&self.table, error)),
            Err(_) => Err(self.silent(limit)),
        }
    }

    fn silent(&self, after: Duration) -> StoreError {
        StoreError::Silent { table: self.table.clone(), after }
    }

    async fn standing(&mut self) -> Result<Option<Standing>, StoreError> {
        let sql = self.statements.standing.clone();
        let (rows, _) = self.run(&sql, vec![self.name.as_str().into()]).await?;
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let (epoch, holder, left_micros, until) = self.read(row)?;
        Ok(Some(Standing { epoch, holder, left_micros, until }))
    }

    /// Asks a question about the lock; `None` where the server has none.
    async fn ask_lock(&mut self, question: &str) -> Result<Option<bool>, StoreError> {
        let name = lock_name(&self.table, &self.name);
        let sql = format!("SELECT {question}");
        match self.run(&sql, vec![name.into()]).await {
            Ok((rows, _)) => {
                let answer: Option<i64> =
                    rows.first().and_then(|row| row.get_opt(0)?.ok()).flatten();
                Ok(Some(answer == Some(1)))
            }
            Err(StoreError::Server { cause: mysql_async::Error::Server(_), .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the lock where this session does not have it. The row must be written then: whoever
    /// saw it free has to see that somebody lives.
    async fn lock(&mut self) -> Result<(), StoreError> {
        if self.lock != Lock::Unknown {
            return Ok(());
        }
        match self.ask_lock("GET_LOCK(?, 0)").await? {
            Some(true) => {
                self.written_at = None;
                self.lock = Lock::Ours;
            }
            Some(false) => return Err(self.contended().await?),
            None => self.lock = Lock::Unsupported,
        }
        Ok(())
    }

    /// Whoever has the lock has taken over, or is about to.
    async fn contended(&mut self) -> Result<StoreError, StoreError> {
        let held = self.held()?;
        Ok(match self.standing().await? {
            Some(row) if row.epoch == held.epoch && row.holder == held.holder => {
                StoreError::Contended { name: self.name.clone(), place: self.table.clone() }
            }
            standing => self.lost(&held, standing),
        })
    }

    /// Whether a holder whose lease lasts is dead all the same: its lock is free, and it has not
    /// written for as long as it may deliver.
    async fn is_dead(&mut self, standing: &Standing) -> Result<bool, StoreError> {
        if self.lock == Lock::Unsupported {
            return Ok(false);
        }
        match self.ask_lock("IS_FREE_LOCK(?)").await? {
            Some(true) => {}
            Some(false) => {
                self.watched = None;
                return Ok(false);
            }
            None => {
                self.lock = Lock::Unsupported;
                return Ok(false);
            }
        }
        let now = Instant::now();
        match &self.watched {
            Some((before, since)) if standing.is_unchanged(before) => {
                Ok(now - *since >= self.lease)
            }
            Some(_) | None => {
                self.watched = Some((standing.clone(), now));
                Ok(false)
            }
        }
    }

    fn read<T: FromRow>(&self, row: Row) -> Result<T, StoreError> {
        T::from_row_opt(row).map_err(|error| StoreError::Layout {
            table: self.table.clone(),
            problem: error.to_string(),
        })
    }

    /// Runs a write of the holder's, whose last conditions are name, epoch and holder.
    async fn write_as(
        &mut self,
        held: &Held,
        sql: &str,
        mut params: Vec<Value>,
    ) -> Result<(), StoreError> {
        params.extend(self.ours(held));
        let (_, changed) = self.run(sql, params).await?;
        if changed > 0 {
            return Ok(());
        }
        // It is lost, or the row had these very values: some servers count only what differs. An
        // epoch that is not ours never becomes ours again, so a later look tells which.
        match self.standing().await? {
            Some(row) if row.epoch == held.epoch && row.holder == held.holder => Ok(()),
            standing => Err(self.lost(held, standing)),
        }
    }

    fn ours(&self, held: &Held) -> [Value; 3] {
        [self.name.as_str().into(), held.epoch.into(), held.holder.as_str().into()]
    }

    fn lost(&self, held: &Held, standing: Option<Standing>) -> StoreError {
        let (name, place) = (self.name.clone(), self.table.clone());
        match standing {
            None => StoreError::Gone { name, place },
            Some(Standing { epoch: found, holder, .. }) => {
                let taker = if holder.is_empty() { "nobody".to_owned() } else { holder };
                StoreError::Lost { name, place, taker, epoch: held.epoch, found }
            }
        }
    }

    /// The row was written, by the session that has the lock.
    fn wrote(&mut self, sent: Instant) {
        self.written_at = (self.lock == Lock::Ours).then_some(sent);
    }

    fn held(&self) -> Result<Held, StoreError> {
        self.held.clone().ok_or_else(|| StoreError::NotHeld {
            name: self.name.clone(),
            place: self.table.clone(),
        })
    }

    /// How long a write makes the lease last.
    fn lease_micros(&self) -> Value {
        let lease = match self.lock {
            Lock::Ours => WRITE_AT_LEAST_EVERY + 2 * self.lease,
            Lock::Unknown | Lock::Unsupported => self.lease,
        };
        u64::try_from(lease.as_micros()).unwrap_or(u64::MAX).into()
    }

    /// Makes the row, with the lease in it; `None` when another relay was quicker.
    async fn insert(&mut self, holder: &str) -> Result<Option<u64>, StoreError> {
        let sql = self.statements.insert.clone();
        let params = vec![self.name.as_str().into(), holder.into(), self.lease_micros()];
        match self.run(&sql, params).await {
            Ok(_) => Ok(Some(1)),
            Err(error) if server_code(&error) == Some(DUPLICATE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the lease that was seen free; `None` when another relay was quicker.
    async fn take(&mut self, holder: &str, epoch: u64) -> Result<Option<u64>, StoreError> {
        let sql = self.statements.take.clone();
        let lease = self.lease_micros();
        let params = vec![holder.into(), lease, self.name.as_str().into(), epoch.into()];
        let (_, changed) = self.run(&sql, params).await?;
        Ok((changed > 0).then_some(epoch + 1))
    }

    /// Takes the lease of a holder that is dead; `None` when it is not, or another relay was
    /// quicker.
    async fn take_over(
        &mut self,
        holder: &str,
        standing: Standing,
    ) -> Result<Option<u64>, StoreError> {
        if self.ask_lock("GET_LOCK(?, 0)").await? != Some(true) {
            self.watched = None;
            return Ok(None);
        }
        self.lock = Lock::Ours;
        let sql = self.statements.take_over.clone();
        let params = vec![
            holder.into(),
            self.lease_micros(),
            self.name.as_str().into(),
            standing.epoch.into(),
            standing.holder.into(),
            standing.until.into(),
        ];
        let (_, changed) = self.run(&sql, params).await?;
        self.watched = None;
        if changed == 0 {
            self.unlock().await?;
            return Ok(None);
        }
        Ok(Some(standing.epoch + 1))
    }

    async fn unlock(&mut self) -> Result<(), StoreError> {
        if self.lock == Lock::Ours {
            self.lock = Lock::Unknown;
            self.ask_lock("RELEASE_LOCK(?)").await?;
        }
        Ok(())
    }
}

/// Of the relay's row, within the 64 characters that a lock's name may have.
fn lock_name(table: &str, name: &str) -> String {
    // FNV-1a: the same in every version of walpost.
    let bytes = table.bytes().chain([0]).chain(name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("walpost_position {hash:016x}")
}

impl Backend for TableStore {
    async fn acquire(&mut self, holder: &str, lease: Duration) -> Result<Attempt, StoreError> {
        self.lease = lease;
        let named: String = holder.chars().take(HOLDER_CHARACTERS_MAX).collect();
        let holder = format!("{named} {:016x}", self.nonce);
        loop {
            let taken = match self.standing().await? {
                None => self.insert(&holder).await?,
                // Ours already: the answer to an attempt before was lost.
                Some(Standing { epoch, holder: by, .. }) if by == holder => {
                    self.held = Some(Held { epoch, holder });
                    self.renew().await?;
                    return Ok(Attempt::Held { epoch });
                }
                Some(standing) if standing.left_micros > 0 => {
                    let left = Some(Duration::from_micros(standing.left_micros.unsigned_abs()));
                    let by = standing.holder.clone();
                    match self.is_dead(&standing).await? {
                        true => self.take_over(&holder, standing).await?,
                        false => return Ok(Attempt::Busy(Busy { holder: by, left })),
                    }
                }
                Some(Standing { epoch, .. }) => self.take(&holder, epoch).await?,
            };
            if let Some(epoch) = taken {
                self.held = Some(Held { epoch, holder });
                self.written_at = None;
                return Ok(Attempt::Held { epoch });
            }
            // Another relay was quicker, and has it for as long as its lease: the next look ends
            // this.
        }
    }

    async fn load(&mut self) -> Result<Option<StoredPosition>, StoreError> {
        let held = self.held()?;
        let sql = self.statements.load.clone();
        let (rows, _) = self.run(&sql, self.ours(&held).into()).await?;
        let Some(row) = rows.into_iter().next() else {
            let standing = self.standing().await?;
            return Err(self.lost(&held, standing));
        };
        let columns: PositionColumns = self.read(row)?;
        stored_position(columns)
            .map_err(|problem| StoreError::Layout { table: self.table.clone(), problem })
    }

    async fn save(&mut self, position: &StoredPosition) -> Result<(), StoreError> {
        let held = self.held()?;
        self.lock().await?;
        let sent = Instant::now();
        let sql = self.statements.save.clone();
        let params = vec![
            flavor_word(position.flavor).into(),
            position.server_uuid.as_str().into(),
            position.gtids.as_str().into(),
            position.file.as_str().into(),
            position.position.into(),
            position.initial_pending.into(),
            position.initial_after.as_deref().into(),
            self.lease_micros(),
            self.lease_micros(),
        ];
        self.write_as(&held, &sql, params).await?;
        self.wrote(sent);
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        let held = self.held()?;
        self.lock().await?;
        if self.written_at.is_some_and(|at| at.elapsed() < WRITE_AT_LEAST_EVERY)
            && self.ask_lock("IS_USED_LOCK(?) = CONNECTION_ID()").await? == Some(true)
        {
            return Ok(());
        }
        // The answer may have come from a new session.
        self.lock().await?;
        let sent = Instant::now();
        let sql = self.statements.renew.clone();
        let params = vec![self.lease_micros(), self.lease_micros()];
        self.write_as(&held, &sql, params).await?;
        self.wrote(sent);
        Ok(())
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        let held = self.held()?;
        let sql = self.statements.release.clone();
        let (_, changed) = self.run(&sql, self.ours(&held).into()).await?;
        if changed == 0 {
            match self.standing().await? {
                // Given back already: the answer to an attempt before was lost.
                Some(row) if row.epoch == held.epoch && row.holder.is_empty() => {}
                standing => return Err(self.lost(&held, standing)),
            }
        }
        self.held = None;
        self.unlock().await
    }
}

type PositionColumns = (
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<u64>,
    bool,
    Option<String>,
);

/// All of it or nothing.
fn stored_position(columns: PositionColumns) -> Result<Option<StoredPosition>, String> {
    match columns {
        (None, None, None, None, None, _, _) => Ok(None),
        (
            Some(flavor),
            Some(server_uuid),
            Some(gtids),
            Some(file),
            Some(position),
            initial_pending,
            initial_after,
        ) => {
            let flavor = flavor_of(&flavor)
                .ok_or_else(|| format!("a row's flavor is \"{flavor}\", not mysql or mariadb"))?;
            Ok(Some(StoredPosition {
                flavor,
                server_uuid,
                gtids,
                file,
                position,
                initial_pending,
                initial_after,
            }))
        }
        _ => Err("a row has some columns of a position and lacks others".to_owned()),
    }
}

fn server_code(error: &StoreError) -> Option<u16> {
    match error {
        StoreError::Server { cause: mysql_async::Error::Server(error), .. } => Some(error.code),
        _ => None,
    }
}

/// A name as an identifier, whatever it holds.
fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A connection in use. What is dropped with it is half an answer, or none.
pub(crate) struct Lent(pub(crate) Option<Conn>);

impl Drop for Lent {
    /// Closes the socket at once. The driver's own way is to read the answer to its end first, in
    /// a task that a server that is stuck never lets end; it does so only inside of a runtime.
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            let close = std::thread::Builder::new().name("walpost-close".into());
            drop(close.spawn(move || drop(connection)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::mysql::gtid::Flavor;

    /// The row is fenced by its conditions alone, so a statement without them is a lost fence. The
    /// servers' own answers to them are looked at by the tests that start servers.
    #[test]
    fn every_write_of_a_holder_names_its_epoch_and_itself() {
        let statements = Statements::new("`shop`.`walpost_position`");
        let Statements { standing: _, insert: _, take, take_over, load, save, renew, release } =
            statements;
        let unchanged = " WHERE name = ? AND epoch = ? AND holder = ? AND lease_until = ?";
        assert!(take_over.ends_with(unchanged) && take_over.contains("epoch = epoch + 1"));
        for sql in [&load, &save, &renew, &release] {
            assert!(sql.ends_with(" WHERE name = ? AND epoch = ? AND holder = ?"), "{sql}");
        }
        let free = " WHERE name = ? AND epoch = ? AND lease_until <= UTC_TIMESTAMP(6)";
        assert!(take.ends_with(free) && take.contains("epoch = epoch + 1"), "{take}");
        for sql in [&save, &renew] {
            assert!(sql.contains("lease_until = LEAST(GREATEST(lease_until, "), "{sql}");
        }
    }

    #[test]
    fn a_name_cannot_end_its_quotes() {
        assert_eq!(quoted("a`; DROP TABLE b; -- "), "`a``; DROP TABLE b; -- `");
    }

    #[test]
    fn a_position_is_whole_or_absent() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(stored_position((None, None, None, None, None, false, None)), Ok(None));
        let whole =
            (text("mariadb"), text("u"), text("0-1-7"), text("bin.1"), Some(4), true, text("[]"));
        let position = stored_position(whole.clone()).unwrap().unwrap();
        assert_eq!((position.flavor, position.gtids.as_str()), (Flavor::MariaDb, "0-1-7"));
        assert!(position.initial_pending && position.initial_after.is_some());
        let other = (text("postgres"), whole.1, whole.2, whole.3, whole.4, false, None);
        assert!(stored_position(other).is_err());
        assert!(stored_position((text("mysql"), None, None, None, None, false, None)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_given_up_and_said_so() {
        let open: Open = Box::new(|| Box::pin(std::future::pending()));
        let mut store = TableStore::new(open, "shop", "walpost_position", "orders");
        let error = store.acquire("here", Duration::from_secs(10)).await.unwrap_err();
        assert!(matches!(error, StoreError::Silent { .. }), "{error}");
        assert!(error.to_string().contains("`shop`.`walpost_position`"), "{error}");
    }

    #[tokio::test]
    async fn nothing_is_written_without_a_lease() {
        let open: Open = Box::new(|| unreachable!("no connection is needed to refuse this"));
        let mut store = TableStore::new(open, "shop", "walpost_position", "orders");
        let position = StoredPosition {
            flavor: Flavor::MySql,
            server_uuid: String::new(),
            gtids: String::new(),
            file: String::new(),
            position: 4,
            initial_pending: false,
            initial_after: None,
        };
        assert!(matches!(store.save(&position).await, Err(StoreError::NotHeld { .. })));
        assert!(matches!(store.renew().await, Err(StoreError::NotHeld { .. })));
        assert!(matches!(store.release().await, Err(StoreError::NotHeld { .. })));
    }
}

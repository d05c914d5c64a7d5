//! The rows that the outbox has at a first start, read from the table as the binlog would bring
//! them: the same text for the same value.
//!
//! Owns the statement and how its answers become rows. What makes the table and the binlog fit
//! together is in `snapshot.rs`.

use std::time::{SystemTime, UNIX_EPOCH};

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Value};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::decoder::{Decoded, TransactionEnd};
use super::dump::WRITE_TIMEOUT;
use super::error::MySqlError;
use super::inspect::{ColumnState, TableState};
use super::resume::Place;
use super::store::Lent;
use crate::budget::Budget;
use crate::config::{OutboxSettings, QualifiedName, quote_mysql_identifier};
use crate::identity::{Fingerprint, LogId, RowIdentity};
use crate::outbox::{OutOfRange, OutboxRow, Role};

/// Rows that wait between the connection and the relay, of whatever size.
const ROWS_WAITING_MAX: usize = 8;

/// Bytes of rows that go over at once, or a row that is larger.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Tells these rows from those of any transaction.
const TAG: &str = "walpost-initial";

/// How an answer's column is told as the binlog's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Text and bytes as they are.
    Plain,
    /// 16 bytes.
    Uuid,
    /// `2024-02-29 10:34:56.789`, UTC.
    Moment,
    /// Microseconds since 1970.
    Micros,
}

/// A row, or the end of all: a task that only stops has not read everything.
type Answer = Result<Option<Vec<Value>>, mysql_async::Error>;

/// See the module.
pub(crate) struct Initial {
    rows: mpsc::Receiver<Answer>,
    /// One task, which reads; it ends with this.
    _task: JoinSet<()>,
    roles: Vec<(Role, Form)>,
    extras: usize,
    table: QualifiedName,
    log: LogId,
    micros: i64,
    ordinal: u32,
    /// Whether a date that is none stands for the commit time.
    may_lack_moment: bool,
    place: Place,
    /// Counts the values.
    budget: Budget,
}

impl Initial {
    /// Begins to read on a connection that has a snapshot open at `place`.
    ///
    /// # Errors
    /// A column whose value the two ways would tell differently.
    pub(crate) fn start(
        reader: Conn,
        table: &TableState,
        outbox: &OutboxSettings,
        server_uuid: u128,
        place: Place,
        budget: Budget,
    ) -> Result<Self, MySqlError> {
        let mut roles = Vec::new();
        let mut expressions = Vec::new();
        let mut order = String::new();
        for mapped in outbox.columns.iter() {
            let Some(column) = table.columns.iter().find(|column| column.name == mapped.name)
            else {
                continue;
            };
            let (expression, form) = expression(mapped.role, column).map_err(|problem| {
                MySqlError::InitialRow { table: table.name.plain_mysql(), problem }
            })?;
            if mapped.role == Role::CreatedAt {
                order = format!(" ORDER BY {}", quote_mysql_identifier(&column.name));
            }
            expressions.push(expression);
            roles.push((mapped.role, form));
        }
        // In the order in which they were written, as far as the table tells it.
        let statement =
            format!("SELECT {} FROM {}{order}", expressions.join(", "), table.name.quoted_mysql());
        let (sender, rows) = mpsc::channel(ROWS_WAITING_MAX);
        let mut task = JoinSet::new();
        task.spawn(read(reader, statement, sender));
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            rows,
            _task: task,
            roles,
            extras: outbox.columns.extra_count(),
            may_lack_moment: outbox.columns.created_at_out_of_range() == OutOfRange::CommitTime,
            table: table.name.clone(),
            log: LogId::mysql(server_uuid, Some(TAG)),
            micros: i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            ordinal: 0,
            place,
            budget,
        })
    }

    /// Appends up to `most` rows, or fewer that are large, and after the last one the end; says
    /// whether more will come.
    ///
    /// # Errors
    /// The connection broke, or a value cannot be understood.
    ///
    /// # Cancel safety
    /// Cancel safe: what was appended stays.
    pub(crate) async fn read(
        &mut self,
        most: usize,
        decoded: &mut Vec<Decoded>,
    ) -> Result<bool, MySqlError> {
        let mut bytes = 0;
        while decoded.len() < most && bytes < BATCH_BYTES_MAX {
            let Some(values) = self.rows.recv().await.ok_or(MySqlError::ReaderGone)?? else {
                decoded.push(Decoded::End(TransactionEnd {
                    gtid: None,
                    file: self.place.file.clone(),
                    position: self.place.position,
                    rows: self.ordinal,
                    own: false,
                }));
                return Ok(false);
            };
            let (row, row_bytes) = self.row(values)?;
            bytes += row_bytes;
            decoded.push(Decoded::Row(row));
            if self.rows.is_empty() {
                // Who waits for these need not wait for those.
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// A row, and how many bytes it holds.
    fn row(&mut self, values: Vec<Value>) -> Result<(OutboxRow, usize), MySqlError> {
        let transaction = u64::try_from(self.micros).unwrap_or(0);
        let identity = RowIdentity {
            log: self.log,
            transaction,
            ordinal: self.ordinal,
            fingerprint: Fingerprint(0),
        };
        self.ordinal += 1;
        let mut row = OutboxRow::new(identity, self.micros);
        row.extra = vec![None; self.extras];
        let mut row_bytes = 0;
        for ((role, form), value) in self.roles.iter().zip(values) {
            let bytes = match value {
                Value::NULL => None,
                Value::Bytes(bytes) => Some(bytes),
                other => Some(other.as_sql(true).into_bytes()),
            };
            let told = bytes.map(|bytes| form.tell(bytes)).transpose();
            let problem = |problem: String| MySqlError::InitialRow {
                table: self.table.plain_mysql(),
                problem,
            };
            let told = told.map_err(|error| problem(format!("{role:?} {error}")))?;
            match (form, told) {
                (Form::Micros, Some(text)) => {
                    let micros = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
                    let error = || {
                        problem(
                            "created_at holds a value that is not a date of the calendar (a zero \
                             date?): set outbox.created_at_out_of_range = \"commit-time\" to use \
                             the time of the first start"
                                .into(),
                        )
                    };
                    row.created_at_micros = match micros {
                        None if self.may_lack_moment => None,
                        micros => Some(micros.ok_or_else(error)?),
                    };
                }
                (_, told) => {
                    row_bytes += told.as_ref().map_or(0, Vec::len);
                    row.set(*role, told.map(|told| self.budget.hold(told)));
                }
            }
        }
        Ok((row, row_bytes))
    }
}

/// What to select for a column, so that the answer is the binlog's text or leads to it.
fn expression(role: Role, column: &ColumnState) -> Result<(String, Form), String> {
    let name = quote_mysql_identifier(&column.name);
    if role == Role::CreatedAt {
        // A date that is none must not pass for NULL.
        let micros = format!("TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', {name})");
        let expression = format!("IF({name} IS NULL, NULL, IFNULL({micros}, 'none'))");
        return Ok((expression, Form::Micros));
    }
    match column.data_type.to_ascii_lowercase().as_str() {
        "datetime" | "timestamp" => Ok((name, Form::Moment)),
        "bit" => Ok((format!("{name} + 0"), Form::Plain)),
        "binary" if role == Role::Id && column.type_text.eq_ignore_ascii_case("binary(16)") => {
            Ok((name, Form::Uuid))
        }
        // SELECT prints six digits of it.
        "float" => Err(format!(
            "column {name} is a float, which SELECT and the binlog tell differently; use double \
             or decimal, or source.initial = \"skip\""
        )),
        _ => Ok((name, Form::Plain)),
    }
}

impl Form {
    fn tell(self, bytes: Vec<u8>) -> Result<Vec<u8>, &'static str> {
        match self {
            Self::Plain | Self::Micros => Ok(bytes),
            Self::Uuid => {
                let bytes: [u8; 16] = bytes.try_into().map_err(|_| "is not 16 bytes long")?;
                Ok(uuid::Uuid::from_bytes(bytes).to_string().into_bytes())
            }
            Self::Moment => {
                let mut text = bytes;
                *text.get_mut(10).ok_or("is no date with a time")? = b'T';
                text.push(b'Z');
                Ok(text)
            }
        }
    }
}

/// Reads to the end of the answer, or until nobody listens.
async fn read(reader: Conn, statement: String, rows: mpsc::Sender<Answer>) {
    // However this ends, nobody waits for the rest of the answer.
    let mut reader = Lent(Some(reader));
    let Some(connection) = &mut reader.0 else { return };
    let outcome = async {
        // The server waits for us as long as we may wait for a broker: where it hangs up, all
        // begins anew.
        let patience = WRITE_TIMEOUT.as_secs();
        connection.query_drop(format!("SET SESSION net_write_timeout = {patience}")).await?;
        let mut answer = connection.query_iter(statement).await?;
        while let Some(row) = answer.next().await? {
            if rows.send(Ok(Some(row.unwrap()))).await.is_err() {
                return Ok(());
            }
        }
        // As below.
        drop(rows.send(Ok(None)).await);
        Ok(())
    };
    if let Err(error) = outcome.await {
        // Who no longer listens has no use for it.
        drop(rows.send(Err(error)).await);
    }
}

#[cfg(test)]
impl Initial {
    /// Rows that a test gives, of nothing but a payload.
    pub(crate) fn scripted(payloads: Vec<Vec<u8>>, budget: Budget) -> Self {
        use super::gtid::{Flavor, GtidSet};
        let (sender, rows) = mpsc::channel(payloads.len() + 1);
        for payload in payloads {
            sender.try_send(Ok(Some(vec![Value::Bytes(payload)]))).expect("it has room");
        }
        sender.try_send(Ok(None)).expect("it has room");
        Initial {
            rows,
            _task: JoinSet::new(),
            roles: vec![(Role::Payload, Form::Plain)],
            may_lack_moment: false,
            extras: 0,
            table: QualifiedName { schema: "app".into(), name: "outbox".into() },
            log: LogId::mysql(7, Some(TAG)),
            micros: 1,
            ordinal: 0,
            place: Place { gtids: GtidSet::empty(Flavor::MySql), file: "".into(), position: 4 },
            budget,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(data_type: &str, type_text: &str) -> ColumnState {
        ColumnState {
            name: "c`".into(),
            data_type: data_type.into(),
            type_text: type_text.into(),
            charset: None,
        }
    }

    #[tokio::test]
    async fn rows_count_against_the_budget_and_large_ones_go_over_one_by_one() {
        const LARGE: usize = 3 << 20;
        // given rows that wait, each of them larger than what goes over at once
        let budget = Budget::new(1 << 20);
        let mut initial = Initial::scripted(vec![vec![b'x'; LARGE]; 3], budget.clone());
        // when they are read
        let mut decoded = Vec::new();
        for _ in 0..3 {
            assert!(initial.read(2_048, &mut decoded).await.unwrap());
            // then each comes alone, and counts as long as it is there
            assert_eq!(decoded.len(), 1);
            assert_eq!(budget.held_bytes(), LARGE);
            decoded.clear();
            assert_eq!(budget.held_bytes(), 0);
        }
        assert!(!initial.read(2_048, &mut decoded).await.unwrap());
        assert!(matches!(&decoded[..], [Decoded::End(TransactionEnd { rows: 3, .. })]));
    }

    #[test]
    fn each_type_is_asked_for_so_that_it_reads_as_in_the_binlog() {
        let plain = |data_type: &str| expression(Role::Payload, &column(data_type, data_type));
        assert_eq!(plain("json"), Ok(("`c```".into(), Form::Plain)));
        assert_eq!(plain("bit"), Ok(("`c``` + 0".into(), Form::Plain)));
        assert_eq!(plain("datetime"), Ok(("`c```".into(), Form::Moment)));
        assert!(plain("float").is_err_and(|problem| problem.contains("`c```")));
        let id = expression(Role::Id, &column("binary", "binary(16)"));
        assert_eq!(id.map(|(_, form)| form), Ok(Form::Uuid));
    }

    #[test]
    fn answers_become_the_text_of_the_binlog() {
        let moment = Form::Moment.tell(b"2024-02-29 10:34:56.789".to_vec()).unwrap();
        assert_eq!(&moment[..], b"2024-02-29T10:34:56.789Z");
        assert!(Form::Moment.tell(b"2024".to_vec()).is_err());
        let uuid = Form::Uuid.tell((0..16).collect()).unwrap();
        assert_eq!(&uuid[..], b"00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert!(Form::Uuid.tell(vec![0; 15]).is_err());
    }
}

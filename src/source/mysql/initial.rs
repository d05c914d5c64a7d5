//! The rows that the outbox has at a first start, read from the table as the binlog would bring
//! them: the same text for the same value.
//!
//! Owns the statement and how its answers become rows. What makes the table and the binlog fit
//! together is in `snapshot.rs`, the order of the rows in `initial/order.rs`.
//!
//! After each batch stands an end, as if it were a transaction: once the rows before it are
//! confirmed, the mark that came with it is kept, and a first start that is interrupted reads on
//! from there.

mod order;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Value};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::decoder::{Decoded, TransactionEnd};
use super::dump::WRITE_TIMEOUT;
use super::error::MySqlError;
use super::float;
use super::inspect::{ColumnState, TableState};
use super::resume::Place;
use super::store::Lent;
use crate::budget::Budget;
use crate::config::{OutboxSettings, QualifiedName, quote_mysql_identifier};
use crate::identity::{Fingerprint, LogId, OutboxId, RowIdentity};
use crate::outbox::{OutOfRange, OutboxRow, Role};
use crate::source::calendar::{civil_from_days, days_from_civil};
use order::Mark;
pub(crate) use order::{Doubt, Order};

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
    /// A float as a double: SELECT prints six digits of a float.
    Single,
    /// Microseconds since 1970.
    Micros,
}

/// A row, or the end of all: a task that only stops has not read everything.
type Answer = Result<Option<Vec<Value>>, MySqlError>;

/// How long the first row is waited for: the server may have to sort the whole table.
const SORT_MAX: Duration = Duration::from_secs(3_600);

/// What a first start reads, and how.
pub(crate) struct Reading<'a> {
    pub(crate) table: &'a TableState,
    pub(crate) outbox: &'a OutboxSettings,
    pub(crate) order: Order,
    /// Where an earlier one came to, as [`Step::after`] said.
    pub(crate) after: Option<String>,
    pub(crate) server_uuid: u128,
    /// Where the binlog goes on.
    pub(crate) place: Place,
    /// How long a server that has begun to send rows may be silent.
    pub(crate) silence_max: Duration,
    pub(crate) budget: Budget,
}

/// What one call of [`Initial::read`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// More will come. Behind the rows of this call stands an end, and this is where they end,
    /// where that can be written down.
    More { after: Option<String> },
    /// These were the last ones.
    Done,
}

/// See the module.
pub(crate) struct Initial {
    rows: mpsc::Receiver<Answer>,
    /// One task, which reads; it ends with this.
    _task: JoinSet<()>,
    roles: Vec<(Role, Form)>,
    extras: usize,
    table: QualifiedName,
    log: LogId,
    /// Of this first start: the same each time that it is begun again.
    fingerprint: Fingerprint,
    micros: i64,
    ordinal: u32,
    /// Whether a date that is none stands for the commit time.
    may_lack_moment: bool,
    place: Place,
    order: Order,
    /// Rows since the last end.
    rows_open: u32,
    /// Place of the last row.
    mark: Option<Mark>,
    /// Counts the values.
    budget: Budget,
}

impl Initial {
    /// Begins to read on a connection that has a snapshot open at `place`.
    ///
    /// # Errors
    /// A column whose value the two ways would tell differently.
    pub(crate) fn start(reader: Conn, reading: Reading<'_>) -> Result<Self, MySqlError> {
        let Reading { table, outbox, order, after, server_uuid, place, silence_max, budget } =
            reading;
        let mut roles = Vec::new();
        let mut expressions = Vec::new();
        for mapped in outbox.columns.iter() {
            let Some(column) = table.columns.iter().find(|column| column.name == mapped.name)
            else {
                continue;
            };
            let (expression, form) = expression(mapped.role, column).map_err(|problem| {
                MySqlError::InitialRow { table: table.name.plain_mysql(), problem }
            })?;
            expressions.push(expression);
            roles.push((mapped.role, form));
        }
        expressions.extend(order.expressions());
        let after = after.and_then(|written| order.read(&written));
        let statement = format!(
            "SELECT {} FROM {}{}",
            expressions.join(", "),
            table.name.quoted_mysql(),
            order.clauses(after.as_ref())
        );
        let (sender, rows) = mpsc::channel(ROWS_WAITING_MAX);
        let mut task = JoinSet::new();
        task.spawn(read(reader, statement, silence_max, sender));
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            rows,
            _task: task,
            roles,
            extras: outbox.columns.extra_count(),
            may_lack_moment: outbox.columns.created_at_out_of_range() == OutOfRange::CommitTime,
            table: table.name.clone(),
            log: LogId::mysql(server_uuid, Some(TAG)),
            fingerprint: fingerprint(&table.name, &place),
            micros: i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            ordinal: 0,
            place,
            order,
            rows_open: 0,
            mark: None,
            budget,
        })
    }

    /// Appends up to `most` rows, or fewer that are large, and an end where one can stand: always
    /// after the last one.
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
    ) -> Result<Step, MySqlError> {
        let mut bytes = 0;
        while decoded.len() < most && bytes < BATCH_BYTES_MAX {
            let Some(values) = self.rows.recv().await.ok_or(MySqlError::ReaderGone)?? else {
                decoded.push(self.end());
                return Ok(Step::Done);
            };
            let (row, row_bytes) = self.row(values)?;
            bytes += row_bytes;
            self.rows_open += 1;
            decoded.push(Decoded::Row(row));
            if self.rows.is_empty() {
                // Who waits for these need not wait for those.
                break;
            }
        }
        let after = self.mark.take().and_then(|mark| self.order.written(&mark));
        if after.is_some() {
            decoded.push(self.end());
        }
        Ok(Step::More { after })
    }

    fn end(&mut self) -> Decoded {
        Decoded::End(TransactionEnd {
            gtid: None,
            file: self.place.file.clone(),
            position: self.place.position,
            rows: std::mem::take(&mut self.rows_open),
            own: false,
        })
    }

    /// A row, and how many bytes it holds.
    fn row(&mut self, mut values: Vec<Value>) -> Result<(OutboxRow, usize), MySqlError> {
        let key = values.split_off(values.len().min(self.roles.len()));
        self.mark = self.order.is_resumable().then(|| key.into_iter().map(text_of).collect());
        let identity = self.identity(&values);
        self.ordinal = self.ordinal.saturating_add(1);
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

    /// Of the place where the first start began, the row's key and its values: all that is the same
    /// when it is read again. Without a key it is also the row's number, which changes where a row
    /// before it was deleted meanwhile: two equal rows must never be taken for one.
    fn identity(&self, values: &[Value]) -> RowIdentity {
        let mut fingerprint = self.fingerprint;
        for part in self.mark.iter().flatten() {
            fingerprint = with_part(fingerprint, part.as_deref().map(str::as_bytes));
        }
        for value in values {
            let text = match value {
                Value::NULL => None,
                Value::Bytes(bytes) => Some(bytes.clone()),
                other => Some(other.as_sql(true).into_bytes()),
            };
            fingerprint = with_part(fingerprint, text.as_deref());
        }
        let ordinal = if self.mark.is_some() { 0 } else { self.ordinal };
        RowIdentity { log: self.log, transaction: self.place.position, ordinal, fingerprint }
    }
}

fn fingerprint(table: &QualifiedName, place: &Place) -> Fingerprint {
    let outbox = OutboxId::new(&table.schema, &table.name);
    Fingerprint::new(outbox, 0).with_row(place.to_string().as_bytes())
}

fn with_part(fingerprint: Fingerprint, part: Option<&[u8]>) -> Fingerprint {
    match part {
        None => fingerprint.with_row(b"NULL").with_row(b""),
        Some(bytes) => fingerprint.with_row(bytes),
    }
}

/// A value of the order's columns; the protocol sends all values as text.
fn text_of(value: Value) -> Option<String> {
    match value {
        Value::NULL => None,
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        other => Some(other.as_sql(true)),
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
        "float" => Ok((format!("{name} + 0e0"), Form::Single)),
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
                let text = String::from_utf8(bytes).map_err(|_| "is not a date with a time")?;
                let (date, clock) = text.split_once(' ').ok_or("is not a date with a time")?;
                if !is_of_calendar(date) {
                    return Ok(text.into_bytes());
                }
                let clock = match clock.contains('.') {
                    true => clock.trim_end_matches('0').trim_end_matches('.'),
                    false => clock,
                };
                Ok(format!("{date}T{clock}Z").into_bytes())
            }
            Self::Single => {
                let text = std::str::from_utf8(&bytes).map_err(|_| "is not a number")?;
                let number: f64 = text.parse().map_err(|_| "is not a number")?;
                let mut printed = BytesMut::new();
                #[expect(clippy::cast_possible_truncation, reason = "it was a float before")]
                float::print_single(number as f32, &mut printed).map_err(|_| "is not finite")?;
                Ok(printed.to_vec())
            }
        }
    }
}

/// Whether `2024-02-29` is a day that there was; `0000-00-00` and `2024-02-31` are stored too.
fn is_of_calendar(date: &str) -> bool {
    let mut parts = date.split('-').map(str::parse::<i64>);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day))) =
        (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    year > 0
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && civil_from_days(days_from_civil(year, month, day)) == (year, month, day)
}

/// Reads to the end of the answer, or until nobody listens.
async fn read(reader: Conn, statement: String, silence_max: Duration, rows: mpsc::Sender<Answer>) {
    // However this ends, nobody waits for the rest of the answer.
    let mut reader = Lent(Some(reader));
    let Some(connection) = &mut reader.0 else { return };
    let outcome = async {
        // The server waits for us as long as we may wait for a broker: where it hangs up, all
        // begins anew.
        let patience = WRITE_TIMEOUT.as_secs();
        let patience = format!("SET SESSION net_write_timeout = {patience}");
        within(silence_max, connection.query_drop(patience)).await?;
        let mut answer = within(SORT_MAX, connection.query_iter(statement)).await?;
        let mut limit = SORT_MAX;
        while let Some(row) = within(limit, answer.next()).await? {
            limit = silence_max;
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

/// An answer, or that there was none for so long.
async fn within<T>(
    after: Duration,
    answer: impl Future<Output = Result<T, mysql_async::Error>>,
) -> Result<T, MySqlError> {
    match tokio::time::timeout(after, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(MySqlError::TableSilent { after }),
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
            fingerprint: Fingerprint(0),
            micros: 1,
            ordinal: 0,
            place: Place { gtids: GtidSet::empty(Flavor::MySql), file: "".into(), position: 4 },
            order: Order::none(),
            rows_open: 0,
            mark: None,
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
            let step = initial.read(2_048, &mut decoded).await.unwrap();
            assert_eq!(step, Step::More { after: None });
            // then each comes alone, and counts as long as it is there
            assert_eq!(decoded.len(), 1);
            assert_eq!(budget.held_bytes(), LARGE);
            decoded.clear();
            assert_eq!(budget.held_bytes(), 0);
        }
        assert_eq!(initial.read(2_048, &mut decoded).await.unwrap(), Step::Done);
        assert!(matches!(&decoded[..], [Decoded::End(TransactionEnd { rows: 3, .. })]));
    }

    #[test]
    fn each_type_is_asked_for_so_that_it_reads_as_in_the_binlog() {
        let plain = |data_type: &str| expression(Role::Payload, &column(data_type, data_type));
        assert_eq!(plain("json"), Ok(("`c```".into(), Form::Plain)));
        assert_eq!(plain("bit"), Ok(("`c``` + 0".into(), Form::Plain)));
        assert_eq!(plain("datetime"), Ok(("`c```".into(), Form::Moment)));
        assert_eq!(plain("float"), Ok(("`c``` + 0e0".into(), Form::Single)));
        let id = expression(Role::Id, &column("binary", "binary(16)"));
        assert_eq!(id.map(|(_, form)| form), Ok(Form::Uuid));
    }

    #[test]
    fn answers_become_the_text_of_the_binlog() {
        for (answer, expected) in [
            ("2024-02-29 10:34:56.789", "2024-02-29T10:34:56.789Z"),
            ("2024-02-29 10:34:56.780", "2024-02-29T10:34:56.78Z"),
            ("2024-02-29 10:34:00.000", "2024-02-29T10:34:00Z"),
            ("2024-02-29 10:34:50", "2024-02-29T10:34:50Z"),
            // As SELECT prints it.
            ("0000-00-00 00:00:00.000", "0000-00-00 00:00:00.000"),
            ("2023-02-29 10:34:56", "2023-02-29 10:34:56"),
        ] {
            assert_eq!(Form::Moment.tell(answer.into()).unwrap(), expected.as_bytes());
        }
        assert!(Form::Moment.tell(b"2024".to_vec()).is_err());
        let single = Form::Single.tell(b"0.10000000149011612".to_vec()).unwrap();
        assert_eq!(&single[..], b"0.1");
        let uuid = Form::Uuid.tell((0..16).collect()).unwrap();
        assert_eq!(&uuid[..], b"00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert!(Form::Uuid.tell(vec![0; 15]).is_err());
    }
}

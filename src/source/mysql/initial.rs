//! The rows that the outbox has at a first start, read from the table as the binlog would bring
//! them: the same text for the same value.
//!
//! Owns the statement and how its answers become rows. What makes the table and the binlog fit
//! together is in `snapshot.rs`.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Value};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::decoder::{Decoded, TransactionEnd};
use super::error::MySqlError;
use super::inspect::{ColumnState, TableState};
use super::resume::Place;
use crate::config::{OutboxSettings, QualifiedName, quote_mysql_identifier};
use crate::identity::{LogId, RowIdentity};
use crate::outbox::{OutboxRow, Role};

/// Rows that wait between the connection and the relay.
const ROWS_WAITING_MAX: usize = 64;

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
    place: Place,
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
            table: table.name.clone(),
            log: LogId::mysql(server_uuid, Some(TAG)),
            micros: i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            ordinal: 0,
            place,
        })
    }

    /// Appends up to `most` rows, and after the last one the end; says whether more will come.
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
        while decoded.len() < most {
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
            let row = self.row(values)?;
            decoded.push(Decoded::Row(row));
            if self.rows.is_empty() {
                // Who waits for these need not wait for those.
                return Ok(true);
            }
        }
        Ok(true)
    }

    fn row(&mut self, values: Vec<Value>) -> Result<OutboxRow, MySqlError> {
        let transaction = u64::try_from(self.micros).unwrap_or(0);
        let identity = RowIdentity { log: self.log, transaction, ordinal: self.ordinal };
        self.ordinal += 1;
        let mut row = OutboxRow::new(identity, self.micros);
        row.extra = vec![None; self.extras];
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
                    let error = || problem("created_at holds no date of the calendar".into());
                    row.created_at_micros = Some(micros.ok_or_else(error)?);
                }
                (_, told) => row.set(*role, told),
            }
        }
        Ok(row)
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
    fn tell(self, bytes: Vec<u8>) -> Result<Bytes, &'static str> {
        match self {
            Self::Plain | Self::Micros => Ok(bytes.into()),
            Self::Uuid => {
                let bytes: [u8; 16] = bytes.try_into().map_err(|_| "is not 16 bytes long")?;
                Ok(uuid::Uuid::from_bytes(bytes).to_string().into())
            }
            Self::Moment => {
                let mut text = bytes;
                *text.get_mut(10).ok_or("is no date with a time")? = b'T';
                text.push(b'Z');
                Ok(text.into())
            }
        }
    }
}

/// Reads to the end of the answer, or until nobody listens.
async fn read(mut reader: Conn, statement: String, rows: mpsc::Sender<Answer>) {
    let outcome = async {
        let mut answer = reader.query_iter(statement).await?;
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

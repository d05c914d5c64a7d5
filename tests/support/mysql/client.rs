//! A blocking connection for tests: SQL as text, values as text.

use std::sync::Arc;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder, Row, Value};
use tokio::sync::Mutex;

use super::super::blocking::wait_for;

/// One session of a server. Closed without goodbye when dropped, as by a client that went away.
pub struct Client {
    session: Arc<Mutex<Conn>>,
}

impl Client {
    /// # Errors
    /// As mysql_async: unreachable, starting up, no such database.
    pub fn connect(url: &str) -> Result<Client, mysql_async::Error> {
        let options = Opts::from_url(url).map_err(mysql_async::Error::Url)?;
        // By default it would ask the server for its socket and change over to that.
        let options = OptsBuilder::from_opts(options).prefer_socket(false);
        let conn = wait_for(async move { Conn::new(options).await })?;
        Ok(Client { session: Arc::new(Mutex::new(conn)) })
    }

    /// Runs statements and returns the rows of all of them. Bytes that are no UTF-8 are shown as
    /// such: ask for `HEX(…)`.
    ///
    /// # Errors
    /// That of the first statement that failed, or of the connection.
    pub fn try_rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, mysql_async::Error> {
        let (session, sql) = (Arc::clone(&self.session), sql.to_owned());
        wait_for(async move {
            let mut session = session.lock().await;
            let mut result = session.query_iter(sql).await?;
            let mut rows = Vec::new();
            while !result.is_empty() {
                let set: Vec<Row> = result.collect().await?;
                rows.extend(
                    set.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()),
                );
            }
            Ok(rows)
        })
    }

    /// Rows of statements that must succeed.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.try_rows(sql).unwrap_or_else(|error| {
            let shown: String = sql.chars().take(200).collect();
            panic!("{shown}: {error:?}")
        })
    }

    /// Runs statements that must succeed.
    pub fn run(&self, sql: &str) {
        self.rows(sql);
    }

    /// The first value of the first row; `None` for NULL and for no row.
    pub fn value(&self, sql: &str) -> Option<String> {
        self.rows(sql).into_iter().next()?.into_iter().next()?
    }

    /// A whole number; panics for NULL and for no row.
    pub fn number(&self, sql: &str) -> i64 {
        self.value(sql).expect("a row").parse().expect("a whole number")
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::NULL => None,
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        other => Some(other.as_sql(true)),
    }
}

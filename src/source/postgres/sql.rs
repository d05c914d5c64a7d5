//! An ordinary SQL client over the same sockets, TLS and login as the replication connection.
//!
//! `tokio-postgres` would log in by itself, by other rules (a password in clear text over any
//! connection, no channel binding over a foreign stream). So the login is done here, and the
//! library is shown a recording of it: its startup message is swallowed, and answered by
//! AuthenticationOk and the settings that the server really sent.

use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, NoTls};

use super::auth::AuthError;
use super::connect::{ConnectError, PgStream, Purpose, connect};
use super::conninfo::ConnInfo;
use super::wire::WireError;

/// A client, and the task of its connection, which ends with it.
#[derive(Debug)]
pub struct SqlClient {
    client: Client,
    /// One task; dropping the set ends it.
    connection: JoinSet<Result<(), tokio_postgres::Error>>,
}

impl SqlClient {
    /// Says goodbye to the server and waits for the connection's end: as long as the socket
    /// takes, so the caller sets the time limit.
    ///
    /// # Errors
    /// The connection had failed before.
    pub async fn close(mut self) -> Result<(), tokio_postgres::Error> {
        // The task ends when nobody can ask any more.
        drop(self.client);
        match self.connection.join_next().await {
            Some(Ok(outcome)) => outcome,
            // A panic was printed where it happened, and there is nothing left to close.
            Some(Err(_)) | None => Ok(()),
        }
    }
}

impl Deref for SqlClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for SqlClient {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Connects for ordinary statements.
///
/// # Errors
/// As [`connect`].
///
/// # Cancel safety
/// Cancel safe in that nothing is kept: a dropped call closes its socket.
pub async fn connect_sql(info: &ConnInfo) -> Result<SqlClient, ConnectError> {
    let (stream, replay) = connect(info, Purpose::Sql).await?.into_greeting();
    let mut config = tokio_postgres::Config::new();
    config.user(info.user()).dbname(info.dbname()).ssl_mode(SslMode::Disable);
    let stream = LoggedIn { stream, replay };
    let (client, connection) =
        Box::pin(config.connect_raw(stream, NoTls)).await.map_err(|error| ConnectError::Login {
            server: info.to_string(),
            role: info.user().to_owned(),
            cause: AuthError::Wire(WireError::Io(io::Error::other(error))),
        })?;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    Ok(SqlClient { client, connection: tasks })
}

/// A stream whose login is over; the library meets it again as a recording.
struct LoggedIn {
    stream: PgStream,
    /// What the library has not read yet. Until it has read all of it, it only writes its
    /// startup message, which goes nowhere.
    replay: BytesMut,
}

impl AsyncRead for LoggedIn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = buffer.remaining().min(self.replay.len());
        buffer.put_slice(self.replay.split_to(length).chunk());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LoggedIn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replay.is_empty() {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

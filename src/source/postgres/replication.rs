//! The replication connection, and who stands in its way. Knows no slot and no stream.

use std::time::Duration;

use super::connect::{ConnectError, Purpose, connect};
use super::conninfo::ConnInfo;
use super::error::PostgresError;
use super::session::within;
use super::sql::connect_sql;
use super::wire::Connection;
use crate::config::Secret;
use crate::failure::Failure;

/// A person waits for the answer.
const PROBE_CONNECT_MAX: Duration = Duration::from_secs(5);

/// Connects for replication.
///
/// A connection pooler that refuses it says so with the SQLSTATE that it has for everything, an
/// outage of the server behind it included. What tells them apart is whether it lets an ordinary
/// connection pass.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_replication(info: &ConnInfo) -> Result<Connection, ConnectError> {
    let error = match connect(info, Purpose::Replication).await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    // protocol_violation
    let refusal = error.server_error().filter(|refusal| refusal.code == "08P01");
    match refusal.map(|refusal| refusal.message.clone()) {
        Some(message) if connect_sql(info).await.is_ok() => {
            Err(ConnectError::Pooler { server: info.to_string(), message })
        }
        Some(_) | None => Err(error),
    }
}

/// Opens a replication connection as a source does, asks one thing, and closes it.
///
/// # Errors
/// As the source's own connect.
pub async fn probe_replication(url: &Secret) -> Result<(), Failure> {
    let mut info = ConnInfo::of(url)?;
    info.connect_timeout = info.connect_timeout.min(PROBE_CONNECT_MAX);
    let asking = async {
        let mut connection = connect_replication(&info).await?;
        connection.simple_query("IDENTIFY_SYSTEM").await.map_err(PostgresError::Wire)?;
        connection.close().await.map_err(PostgresError::Wire)
    };
    Ok(within("its system", asking).await?)
}

//! Which set of MariaDB servers a log belongs to.
//!
//! MySQL's servers have a UUID each, and their GTIDs carry it. MariaDB's GTIDs carry a server id
//! that a person chose, and most chose 1. So walpost makes a UUID at its first start and keeps it
//! with the position, in the column that has the server's UUID on MySQL: replicas and promoted
//! servers have it by replication, and relays that share a table of positions share it.

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use uuid::Uuid;

use super::gtid::Flavor;
use super::inspect::ServerState;
use super::store::nonce;
use crate::config::{MySqlSettings, PositionPlace};

/// The UUID that the rows of a session have in their identities; `kept` is the one that came with
/// the position, empty where none was kept yet.
///
/// # Errors
/// The server's.
pub(super) async fn uuid(
    sql: &mut Conn,
    settings: &MySqlSettings,
    server: &ServerState,
    kept: &str,
) -> Result<String, mysql_async::Error> {
    match server.flavor {
        Flavor::MySql => Ok(server.server_uuid.clone().unwrap_or_default()),
        Flavor::MariaDb if !kept.is_empty() => Ok(kept.to_owned()),
        Flavor::MariaDb => {
            let others = match &settings.position {
                PositionPlace::Source { table } => {
                    let table = table.quoted_mysql();
                    sql.query_first(known_cluster(&table)).await?
                }
                PositionPlace::Server { .. } | PositionPlace::File(_) => None,
            };
            let made = || Uuid::from_u64_pair(nonce(), nonce()).to_string();
            Ok(others.unwrap_or_else(made))
        }
    }
}

/// Asks for the UUID that relays of this table of positions have already.
pub fn known_cluster(quoted_table: &str) -> String {
    format!(
        "SELECT server_uuid FROM {quoted_table} WHERE flavor = 'mariadb' AND server_uuid <> '' \
         ORDER BY name LIMIT 1"
    )
}

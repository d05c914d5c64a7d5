//! Whether an exchange exists, asked on a channel of its own.
//!
//! A publish to a missing exchange closes its channel, and with it every message in flight. So
//! each name is looked up before its first use, where a 404 closes only the asking channel.

use std::collections::HashSet;
use std::sync::Arc;

use lapin::options::ExchangeDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

/// AMQP 0-9-1 § 1.2, reply code `not-found`.
pub(super) const NOT_FOUND: u16 = 404;
/// Reply code `access-refused`.
pub(super) const ACCESS_REFUSED: u16 = 403;

/// The code of an error that the broker sent.
pub(super) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// What was found out, and the asking channel if it is still open.
pub(super) struct Looked {
    pub(super) channel: Option<Channel>,
    pub(super) present: Vec<String>,
    pub(super) missing: HashSet<String>,
}

/// Asks for each name with a passive declare, which makes nothing.
///
/// # Errors
/// The connection is lost; anything about one exchange is part of the answer.
pub(super) async fn look(
    connection: Arc<Connection>,
    mut channel: Option<Channel>,
    names: Vec<String>,
) -> Result<Looked, lapin::Error> {
    let mut present = Vec::new();
    let mut missing = HashSet::new();
    for name in names {
        let asking = match channel.take() {
            Some(channel) => channel,
            None => connection.create_channel().await?,
        };
        let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
        // The kind does not matter to a passive declare. The name came from a short string.
        let short: ShortString = name.as_str().into();
        let kind = ExchangeKind::Direct;
        match asking.exchange_declare(short, kind, options, FieldTable::default()).await {
            Ok(()) => {
                channel = Some(asking);
                present.push(name);
            }
            Err(error) if reply_code(&error) == Some(NOT_FOUND) => {
                missing.insert(name);
            }
            // Not ours to see, but perhaps to write to: publishing will tell.
            Err(error) if error.is_amqp_soft_error() => present.push(name),
            Err(error) => return Err(error),
        }
    }
    Ok(Looked { channel, present, missing })
}

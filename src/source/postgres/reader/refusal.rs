//! What the server refuses to send, and what helps: values as text, or a person.
//!
//! A row that the server cannot put on the wire stops the stream at the same place each time. An
//! error that comes twice there is no outage.

use super::Reader;
use crate::config::ValueFormat;
use crate::source::postgres::decoder::DecodeError;
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::relation::RelationError;
use crate::source::postgres::wire::{ServerError, WireError};

/// A server's error, and where in the stream it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: String,
    received: Lsn,
    /// The open transaction, and how many rows of it had come.
    place: Option<(Lsn, u32)>,
}

impl Reader {
    /// Whether a failure is over once values come as text; then they do from here on.
    pub(super) fn turns_to_text(&mut self, error: &PostgresError) -> bool {
        let helps = match error {
            PostgresError::Decode {
                source: DecodeError::Relation(RelationError::DroppedType { .. }),
                ..
            } => true,
            // undefined_function: a type without a send function
            PostgresError::Wire(WireError::Server(error)) => error.code == "42883",
            _ => false,
        };
        if !helps || self.format == ValueFormat::Text {
            return false;
        }
        tracing::warn!(
            slot = self.settings.slot,
            "values are read in their text form from here on, which takes more time: {}",
            crate::failure::Failure::transient(error.to_string())
        );
        self.format = ValueFormat::Text;
        true
    }

    /// An error about data that comes a second time at the same place comes for ever.
    pub(super) fn judge_refusal(&mut self, error: PostgresError) -> PostgresError {
        let PostgresError::Wire(WireError::Server(server)) = &error else { return error };
        if !is_about_data(&server.code) {
            return error;
        }
        let place = self.decoder.place();
        let refusal = Refusal { code: server.code.clone(), received: self.received, place };
        if self.refused.as_ref() != Some(&refusal) {
            self.refused = Some(refusal);
            return error;
        }
        let table = self.decoder.only_table().map(|table| format!(" of table {table}"));
        let place = match place {
            Some((commit, rows)) => {
                format!(" (row {} of the transaction that committed at {commit})", rows + 1)
            }
            None => format!(" (behind {})", self.received),
        };
        PostgresError::Unsendable {
            slot: self.settings.slot.clone(),
            place: format!("{}{place}", table.unwrap_or_default()),
            remedy: self.remedy(server),
            error: server.clone(),
        }
    }

    fn remedy(&self, error: &ServerError) -> String {
        match (error.code.as_str(), self.format) {
            // character_not_in_repertoire, untranslatable_character
            ("22021" | "22P05", _) => "; it holds bytes that are not valid in the database's \
                 encoding, or has none in UTF-8: add client_encoding=SQL_ASCII to source.url, which \
                 takes all bytes as they are"
                .to_owned(),
            (_, ValueFormat::Binary) => {
                "; source.format = \"text\" reads values in another form".to_owned()
            }
            (_, ValueFormat::Text) => "; the server's log may say more".to_owned(),
        }
    }
}

/// Classes of SQLSTATE that speak of what is stored, and not of the server's state: data exception,
/// syntax error or access rule violation, program limit exceeded.
fn is_about_data(code: &str) -> bool {
    // insufficient_privilege is a person's to grant; undefined_object was named before.
    ["22", "42", "54"].iter().any(|class| code.starts_with(class)) && code != "42501"
}

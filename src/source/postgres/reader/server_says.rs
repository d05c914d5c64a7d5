//! What the server says inside a stream: why it ends, and warnings, which may be all that tells of
//! rows that are left out.

use super::Reader;
use crate::source::postgres::error::PostgresError;
use crate::source::postgres::wire::{ServerError, WireError};

impl Reader {
    /// The server's reason for ending the stream.
    pub(super) fn server_error(&self, error: ServerError) -> PostgresError {
        // By the server's function, since the text is translated (`lc_messages`).
        let routine = error.routine.as_deref().unwrap_or_default();
        let asks_publication = ["get_publication_oid", "GetPublicationByName"].contains(&routine);
        if error.code == "42704" && asks_publication {
            return self.publication_error(&error);
        }
        PostgresError::Wire(WireError::Server(Box::new(error)))
    }

    /// PostgreSQL 18 skips rows silently where the publication is missing, and says so in a
    /// warning alone (pgoutput.c, `LoadPublications`), which no other warning of a walsender
    /// shares its code with. Its text is translated, so it says nothing.
    pub(super) fn notice(&self, notice: &ServerError) -> Result<(), PostgresError> {
        if notice.code == "55000" {
            return Err(self.publication_error(notice));
        }
        let (code, text) = (&notice.code, &notice.message);
        tracing::warn!(%code, "the server says: {text}");
        Ok(())
    }

    fn publication_error(&self, error: &ServerError) -> PostgresError {
        PostgresError::Publication {
            publication: self.settings.publication.clone(),
            slot: self.settings.slot.clone(),
            message: error.message.clone(),
            acknowledged: self.acknowledged(),
        }
    }
}

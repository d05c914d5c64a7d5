//! A sink that keeps nothing, for measuring everything before the broker. Never a destination:
//! what it confirms is gone.

use futures_util::future::BoxFuture;

use super::{Limits, OpenError, Ordering, Sink, SinkConfig, Verdicts};
use crate::failure::Failure;
use crate::message::Message;

/// Confirms everything at once and stores nothing.
pub struct NullSink;

impl NullSink {
    /// Makes the sink from its `[sink]` table, which must hold no options.
    ///
    /// # Errors
    /// An option: there are none.
    pub fn open(config: &SinkConfig) -> Result<Self, OpenError> {
        match config.options.keys().next() {
            None => Ok(Self),
            Some(key) => {
                Err(OpenError::Option { problem: format!("the null sink has no option \"{key}\"") })
            }
        }
    }
}

impl Sink for NullSink {
    fn limits(&self) -> Limits {
        Limits {
            batch_messages_max: 1000,
            batch_bytes_max: 1 << 20,
            lanes_max: 32,
            ordering: Ordering::Whole,
            stuck_after: None,
        }
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        let warning = "the null sink keeps nothing: every row that it confirms is lost";
        Box::pin(async move { Ok(vec![warning.to_owned()]) })
    }

    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        verdicts.confirm(0..batch.len());
        Box::pin(async { Ok(()) })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }
}

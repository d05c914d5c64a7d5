//! NATS JetStream: not built yet.

use futures_util::future::BoxFuture;

use super::{Limits, OpenError, Sink, SinkConfig, Verdict};
use crate::failure::Failure;
use crate::message::Message;

/// Sink for NATS JetStream.
pub struct NatsSink;

impl NatsSink {
    /// Makes the sink from its `[sink]` table.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(_config: &SinkConfig) -> Result<Self, OpenError> {
        Ok(Self)
    }
}

impl Sink for NatsSink {
    fn limits(&self) -> Limits {
        Limits { batch_messages_max: 1, batch_bytes_max: 1, lanes_max: 1, keeps_key_order: false }
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(async { Err(Failure::definite("not built yet")) })
    }

    fn deliver<'a>(&'a self, _: &'a [Message]) -> BoxFuture<'a, Result<Vec<Verdict>, Failure>> {
        Box::pin(async { Err(Failure::definite("not built yet")) })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }
}

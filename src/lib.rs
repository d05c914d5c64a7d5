//! walpost: a change-data-capture relay for the transactional outbox.

mod failure;
mod identity;
mod message;
mod outbox;
pub mod sink;
pub mod source;

pub use failure::{Failure, FailureKind};
pub use identity::{IdentityText, LogId, RowIdentity};
pub use message::{HEADER_ID, HEADER_IDENTITY, HEADER_TYPE, Header, Message};
pub use outbox::{Column, Columns, OutboxRow, Role};

/// What benchmarks and fuzz targets reach into. No part of the library's contract.
#[cfg(feature = "postgres")]
#[doc(hidden)]
pub mod bench {
    pub use crate::source::postgres::decoder::{DecodeError, Decoder, IgnoredCounts};
    pub use crate::source::postgres::frame::{Frame, Keepalive, XLogData};
    pub use crate::source::postgres::lsn::{Lsn, ParseLsnError};
    pub use crate::source::postgres::moment::MomentError;
    pub use crate::source::postgres::number::NumericError;
    pub use crate::source::postgres::pgoutput::MalformedError;
    pub use crate::source::postgres::relation::{RelationError, TYPE_KINDS_QUERY, TypeKinds};
    pub use crate::source::postgres::value::{SESSION_PARAMETERS, ValueError};
}

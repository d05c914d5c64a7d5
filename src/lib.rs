//! walpost: a change-data-capture relay for the transactional outbox.

mod duration;
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

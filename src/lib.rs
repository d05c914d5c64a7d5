//! walpost: a change-data-capture relay for the transactional outbox.

mod budget;
pub mod config;
mod duration;
mod encode;
mod failure;
mod identity;
mod lane;
mod ledger;
mod message;
mod outbox;
mod relay;
mod route;
pub mod sink;
pub mod source;

pub use budget::Budget;
pub use encode::{EncodeError, EncodeProblem, Encoder};
pub use failure::{Failure, FailureKind};
pub use identity::{IdentityText, LogId, RowIdentity};
pub use lane::Backoff;
pub use ledger::{Ledger, Ticket};
pub use message::{HEADER_ID, HEADER_IDENTITY, HEADER_TYPE, Header, Message};
pub use outbox::{Column, Columns, OutboxRow, Role};
pub use relay::{Order, RelayError, RelayOptions, Summary, run};
pub use route::{RouteError, Router, Template, TemplateError};

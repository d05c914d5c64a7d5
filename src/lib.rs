//! A change-data-capture relay for the transactional outbox.
//!
//! > A committed outbox row is read from the database's log, sent, and confirmed by the broker;
//! > only then does the database hear that it may forget it.
//!
//! ```text
//!  source                    relay: the one loop                          lanes
//!  socket ▶ decode ─▶ Row ▶ ledger ▶ route ▶ encode ─▶ lane[hash(key)] ▶ batch ▶ sink.deliver
//!    ▲                                                                                │
//!    └── acknowledge ◀── ledger.advance ◀── ledger.settle ◀───── one Verdict each ◀────┘
//! ```
//!
//! Start reading at [`run`], which is that loop; [`Ledger`] decides how far may be acknowledged;
//! [`source::Source`] and [`sink::Sink`] are the two edges, each with its contract. The `walpost`
//! program is a thin shell around [`config`] and `run`.

mod budget;
pub mod config;
mod duration;
mod encode;
mod failure;
mod fence;
mod identity;
mod lane;
mod ledger;
mod message;
mod outbox;
mod relay;
mod route;
mod secret;
pub mod sink;
pub mod source;

pub use budget::Budget;
pub use encode::{EncodeError, EncodeProblem, Encoder};
pub use failure::{Failure, FailureKind};
pub use fence::Fence;
pub use identity::{Fingerprint, IdentityText, LogId, OutboxId, RowIdentity};
pub use lane::Backoff;
pub use ledger::{Ledger, Ticket};
pub use message::{HEADER_ID, HEADER_IDENTITY, HEADER_TYPE, Header, Message};
pub use outbox::{Column, Columns, OutOfRange, OutboxRow, Role};
pub use relay::{Order, RelayError, RelayOptions, Summary, run};
pub use route::{RouteError, Router, Template, TemplateError};

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

/// The same of the binlog.
#[cfg(feature = "mysql")]
#[doc(hidden)]
pub mod bench_mysql {
    pub use crate::source::mysql::decoder::{
        DecodeError, Decoded, Decoder, DecoderSettings, IgnoredCounts, TransactionEnd,
    };
}

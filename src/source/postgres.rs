//! PostgreSQL logical replication as a source.

mod auth;
mod connect;
mod conninfo;
mod sql;
mod tls;
mod wire;

pub use auth::AuthError;
pub use connect::{ConnectError, PgStream, Purpose, connect};
pub use conninfo::{ConnInfo, ConnInfoError, PasswordError};
pub use sql::{SqlClient, connect_sql};
pub use tls::CertificateFileError;
pub use wire::{Connection, FrameError, Row, ServerError, WireError};

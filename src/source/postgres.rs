//! PostgreSQL logical replication as a source.

pub mod inspect;
pub mod precondition;

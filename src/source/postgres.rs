//! PostgreSQL logical replication as a source.

pub(crate) mod decoder;
pub(crate) mod frame;
pub(crate) mod lsn;
pub(crate) mod moment;
pub(crate) mod number;
pub(crate) mod pgoutput;
pub(crate) mod relation;
pub(crate) mod value;

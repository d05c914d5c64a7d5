//! Real servers, a proxy that breaks connections, and the judge of what came out.

pub mod kafka;
pub mod process;
pub mod sample;

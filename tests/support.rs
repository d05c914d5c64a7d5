//! Real servers, a proxy that breaks connections, and the judge of what came out.

pub mod process;
pub mod rabbitmq;
pub mod sample;

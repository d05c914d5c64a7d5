//! The one integration binary: real servers, started by `support`, ended with it.
#![allow(unreachable_pub, missing_docs, reason = "a test binary exports nothing")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod sink_rabbitmq;
mod support;

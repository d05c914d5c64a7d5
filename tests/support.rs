//! Real servers, a proxy that breaks connections, and the judge of what came out.
#![allow(dead_code, reason = "not every helper is used by the tests that are there today")]

mod binlog_frames;
pub mod blocking;
pub mod broker;
pub mod checker;
#[allow(unused_imports, reason = "a benchmark runs no tests of its own")]
mod checker_tests;
pub mod database;
pub mod frames;
pub mod kafka;
pub mod ledger;
pub mod log;
pub mod mysql;
pub mod nats;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod rabbitmq;
pub mod relay;
pub mod sample;
pub mod slot;
pub mod stage;
mod tunnel;
pub mod writer;

//! The one integration binary: real servers, started by `support`, ended with it.
#![allow(unreachable_pub, missing_docs, reason = "a test binary exports nothing")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]

mod cli;
mod docs;
mod end_to_end;
mod fault_binlog;
mod fault_broker;
mod fault_catalog;
mod fault_connection;
mod fault_database;
mod fault_idle;
mod fault_kill;
mod fault_long_transaction;
mod fault_memory;
mod fault_output;
mod fault_refusal;
mod fault_rotation;
mod fault_standby;
mod fault_stop;
mod fault_terminate;
mod identity;
mod mysql_connect;
mod mysql_gtid;
mod mysql_versions;
mod postgres_connect;
mod postgres_link;
mod postgres_rows;
mod postgres_versions;
mod remembered;
mod sink_kafka;
mod sink_nats;
mod sink_rabbitmq;
mod sink_stdout;
mod source_postgres;
mod support;
mod support_binlog;
mod support_self;

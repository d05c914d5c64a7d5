//! The one server that the source is connected to, of the hosts that its URL names.
//!
//! A session has several connections, and in a failover two hosts may both answer: offsets of one
//! mean nothing on the other, and a position that is kept on one moves nothing on the other. So the
//! stream's connection is made first, to whichever host will do, and all others lead there too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mysql_async::Conn;

use super::conninfo::ConnInfo;
use super::sql::sql_connect;
use crate::failure::{Failure, FailureKind};

/// See the module. Clones are of one and the same.
#[derive(Clone, Default)]
pub(crate) struct Here {
    server: Arc<Mutex<Option<ConnInfo>>>,
    moves: Arc<AtomicU64>,
}

impl Here {
    /// From now on it is this one.
    pub(crate) fn set(&self, server: &ConnInfo) {
        let mut here = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if here.as_ref().is_some_and(|here| here.hosts != server.hosts) {
            self.moves.fetch_add(1, Ordering::Relaxed);
        }
        *here = Some(server.clone());
    }

    /// Rises whenever it becomes another one.
    pub(crate) fn moves(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.moves)
    }

    /// Connects for ordinary statements; while it cannot be reached, to whichever host of `info`
    /// will do.
    pub(crate) async fn connect(&self, info: &ConnInfo) -> Result<Conn, Failure> {
        let here = self.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(here) = here.filter(|here| here.hosts != info.hosts) {
            match sql_connect(&here).await {
                Err(error) if error.kind() == FailureKind::Transient => {}
                outcome => return outcome.map_err(failed),
            }
        }
        sql_connect(info).await.map_err(failed)
    }
}

fn failed(error: super::connect::ConnectError) -> Failure {
    Failure::new(error.kind(), error)
}

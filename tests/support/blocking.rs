//! Futures of database clients, waited for by tests that are not async.

use std::sync::{OnceLock, mpsc};
use std::time::Duration;

/// No statement of a test takes longer; a hang becomes a failure with a name.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// One runtime for all blocking clients of the test binary.
pub fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("test-clients")
            .enable_all()
            .build()
            .expect("a runtime can be built")
    })
}

/// Runs a future on the clients' runtime and waits for it. Unlike `block_on`, it works inside
/// an async test too (of a multi-threaded runtime).
pub fn wait_for<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (sender, receiver) = mpsc::sync_channel(1);
    let task = runtime().spawn(async move {
        // Fails only when the waiting test has panicked.
        drop(sender.send(future.await));
    });
    receiver.recv_timeout(STATEMENT_TIMEOUT).unwrap_or_else(|error| {
        task.abort();
        panic!("a statement did not end within {STATEMENT_TIMEOUT:?}: {error}")
    })
}

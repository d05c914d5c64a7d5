//! What the library logs, for tests of it without the program.

use std::io::Write;
use std::sync::{Arc, Mutex};

/// Lines of the log that this thread writes until the guard is dropped.
pub fn captured() -> (tracing::subscriber::DefaultGuard, impl Fn() -> String) {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    (guard, move || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap())
}

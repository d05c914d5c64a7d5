//! The bytes that are really held: every buffer that rows were read into, until the last slice of
//! it is gone.
//!
//! A row is a slice, and a slice pins the whole buffer it was read into: one row that waits keeps
//! its neighbours' bytes alive after they have been delivered. So what is counted is buffers, from
//! their making to their drop, and not rows. Knows nothing of rows, sources or time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// A bound on the bytes of all buffers that a source has handed out and that still live.
///
/// Clones share one count. The bound is for admission: a buffer that exists is never refused, so
/// the count may pass it by what was being read when it was reached.
#[derive(Debug, Clone)]
pub struct Budget {
    held: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Budget {
    /// A budget of `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { held: Arc::new(AtomicUsize::new(0)), bytes_max }
    }

    /// Makes `buffer` shareable and counts its capacity until its last slice is dropped.
    pub fn hold(&self, buffer: Vec<u8>) -> Bytes {
        let capacity = buffer.capacity();
        self.held.fetch_add(capacity, Ordering::Relaxed);
        Bytes::from_owner(Held { buffer, capacity, held: Arc::clone(&self.held) })
    }

    /// Bytes held now.
    pub fn held_bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The bound.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Whether nothing more should be read.
    pub fn is_full(&self) -> bool {
        self.held_bytes() >= self.bytes_max
    }
}

/// A buffer that gives its bytes back when its last slice goes.
struct Held {
    buffer: Vec<u8>,
    capacity: usize,
    held: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.fetch_sub(self.capacity, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_small_slice_keeps_its_whole_buffer_counted() {
        // given a buffer of which only one small slice lives on
        let budget = Budget::new(1000);
        let buffer = budget.hold(vec![0; 1000]);
        let slice = buffer.slice(3..7);
        drop(buffer);
        // then the whole of it counts
        assert_eq!(budget.held_bytes(), 1000);
        assert!(budget.is_full());
        // and nothing of it once the slice is gone
        drop(slice);
        assert_eq!(budget.held_bytes(), 0);
        assert!(!budget.is_full());
    }
}

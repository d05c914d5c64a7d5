//! A socket that is read as eagerly as it is worth: see [`Pace`].

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::pace::{LARGE_READ_BYTES, PATIENCE, Pace};
use super::socket::Socket;

/// How long large reads are gathered on a socket that cannot do it by itself.
const GATHER: Duration = Duration::from_micros(300);

/// See the module. Belongs to a thread that does nothing but read.
pub(crate) struct PacedSocket {
    socket: Socket,
    pace: Pace,
}

impl PacedSocket {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { socket, pace: Pace::new(Instant::now().into_std()) }
    }

    /// The socket itself, to write to or to read the last of.
    pub(crate) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Appends one read to `buffer`; 0 is the end of the stream.
    ///
    /// # Cancel safety
    /// Cancel safe: what was read is in the buffer.
    pub(crate) async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        if self.pace.is_large() {
            let read = self.socket.read_buf(buffer);
            if let Ok(read) = tokio::time::timeout(PATIENCE, read).await {
                return self.count(read?);
            }
            self.pace.waited(Instant::now().into_std());
            self.socket.set_receive_low_water(1)?;
        }
        let read = self.socket.read_buf(buffer).await?;
        self.count(read)
    }

    fn count(&mut self, read: usize) -> io::Result<usize> {
        let begins = self.pace.count(read, Instant::now().into_std());
        if !self.pace.is_large() {
            return Ok(read);
        }
        let supported = !begins || self.socket.set_receive_low_water(LARGE_READ_BYTES as u32)?;
        if !supported || (self.socket.is_unix() && read < LARGE_READ_BYTES / 2) {
            // This thread has nothing else to do, and a runtime's timer is too coarse.
            std::thread::sleep(GATHER);
        }
        Ok(read)
    }
}

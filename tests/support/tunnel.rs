//! One connection through the proxy: two sockets, and the ways in which they end.
//!
//! Knows nothing of faults and triggers; see `proxy`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::frames::{Direction, Framer, Protocol};

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Both sides read all that was forwarded, then the end of the stream.
    Fin,
    /// Both sides get `connection reset`; what they had not read yet may be lost.
    Reset,
}

pub(super) struct Connection {
    pub(super) id: u64,
    client: TcpStream,
    server: TcpStream,
    pub(super) framer: Mutex<Framer>,
    ended: AtomicBool,
    frozen: AtomicBool,
}

/// What a reading thread hands to its forwarding one.
pub(super) enum Piece {
    Bytes(Instant, Vec<u8>),
    End(Ending),
}

impl Connection {
    pub(super) fn new(
        id: u64,
        client: TcpStream,
        server: TcpStream,
        protocol: Protocol,
    ) -> Connection {
        for socket in [&client, &server] {
            socket.set_nodelay(true).expect("a TCP socket");
            // A writer looks up now and then: its peer may not read while a test cuts.
            socket.set_write_timeout(Some(Duration::from_millis(50))).expect("a TCP socket");
        }
        let framer = Mutex::new(Framer::new(protocol));
        let (ended, frozen) = (AtomicBool::new(false), AtomicBool::new(false));
        Connection { id, client, server, framer, ended, frozen }
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn read(&self, direction: Direction, pieces: &mpsc::SyncSender<Piece>) {
        let mut from = match direction {
            Direction::ToServer => &self.client,
            Direction::ToClient => &self.server,
        };
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let piece = match from.read(&mut buffer) {
                Ok(0) => Piece::End(Ending::Fin),
                Ok(count) => Piece::Bytes(Instant::now(), buffer[..count].to_vec()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => Piece::End(Ending::Reset),
            };
            let last = matches!(piece, Piece::End(_));
            if pieces.send(piece).is_err() || last {
                return;
            }
        }
    }

    fn to(&self, direction: Direction) -> &TcpStream {
        match direction {
            Direction::ToServer => &self.server,
            Direction::ToClient => &self.client,
        }
    }

    /// Writes all; false when the connection ended.
    pub(super) fn write(&self, direction: Direction, mut bytes: &[u8]) -> bool {
        let mut to = self.to(direction);
        while !bytes.is_empty() && !self.has_ended() {
            match to.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => self.end(Ending::Reset),
            }
        }
        !self.has_ended()
    }

    /// One side has ended its stream, or is gone.
    pub(super) fn end_direction(&self, direction: Direction, ending: Ending) {
        match ending {
            // Fails when that side is gone already.
            Ending::Fin => self.to(direction).shutdown(Shutdown::Write).unwrap_or(()),
            Ending::Reset => self.end(Ending::Reset),
        }
    }

    /// Ends the connection for both sides. Its threads leave, and the last one closes it.
    pub(super) fn end(&self, ending: Ending) {
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        for socket in [&self.client, &self.server] {
            let how = match ending {
                Ending::Fin => Shutdown::Both,
                Ending::Reset => {
                    reset_on_close(socket);
                    // Wakes our readers and puts nothing on the wire.
                    Shutdown::Read
                }
            };
            // Fails when that side is gone already.
            socket.shutdown(how).unwrap_or(());
        }
    }
}

/// Makes the socket's close, whenever it comes, a reset.
pub(super) fn reset_on_close(socket: &TcpStream) {
    let linger = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
    linger.expect("a TCP socket");
}

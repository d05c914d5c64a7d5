//! Stands between the library for ordinary SQL and a server in the clear, until the login is over.
//!
//! `caching_sha2_password` may ask for the whole password. Over a connection without TLS the library
//! then encrypts it for whatever RSA key the other side hands out, and cannot be told not to: whoever
//! stands in between would have it. So its connection leads through here, and where the whole
//! password is asked for, the login ends.
//!
//! ```text
//!  library ── 127.0.0.1 ──▶ guard ──────▶ server       after the login: bytes, as they come
//!                            ▲ 01 04 (the whole password, please): refused
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::source::mysql::connect::set_options;

/// A login's packets are shorter.
const PACKET_BYTES_MAX: usize = 64 << 10;

/// The server asks for the whole password.
const FULL: [u8; 2] = [0x01, 0x04];
const OK: u8 = 0x00;
const ERR: u8 = 0xff;

/// What the library is answered instead: an error packet of the server's form.
const REFUSAL: &[u8] =
    b"\xff\x0d\x08#HY000the password is not sent to a server that nobody checked";

/// One connection; see the module.
pub(super) struct Guard {
    /// Where the library connects.
    pub(super) address: SocketAddr,
    refused: Arc<AtomicBool>,
}

impl Guard {
    /// Waits for the library, to connect it to a server. The task ends with either of the two.
    ///
    /// # Errors
    /// No port of this machine is free.
    pub(super) async fn open(name: String, port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let refused = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&refused);
        // On its own, since it lives as long as the connection: its ends are the two sockets'.
        drop(tokio::spawn(async move {
            // An error closes both sides, and the library sees that.
            drop(pass(listener, (name, port), &told).await);
        }));
        Ok(Self { address, refused })
    }

    /// Whether the whole password was asked for.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.load(Ordering::SeqCst)
    }
}

async fn pass(
    listener: TcpListener,
    server: (String, u16),
    refused: &AtomicBool,
) -> io::Result<()> {
    let (mut library, _) = listener.accept().await?;
    drop(listener);
    let mut server = TcpStream::connect(server).await?;
    set_options(&server)?;
    library.set_nodelay(true)?;
    // The two speak by turns until the server says that the login is over.
    let mut greeted = false;
    loop {
        let packet = read(&mut server).await?;
        let payload = packet.get(4..).unwrap_or_default();
        if payload.starts_with(&FULL) {
            refused.store(true, Ordering::SeqCst);
            let sequence = packet.get(3).copied().unwrap_or_default();
            let length = u8::try_from(REFUSAL.len()).unwrap_or_default();
            library.write_all(&[&[length, 0, 0, sequence], REFUSAL].concat()).await?;
            return library.shutdown().await;
        }
        library.write_all(&packet).await?;
        match payload.first() {
            Some(&(OK | ERR)) if greeted => break,
            Some(&ERR) => break,
            // More data without a question: the next packet is the server's too.
            Some(&0x01) if payload.get(1) == Some(&0x03) => {}
            Some(_) | None => {
                let answer = read(&mut library).await?;
                server.write_all(&answer).await?;
            }
        }
        greeted = true;
    }
    tokio::io::copy_bidirectional(&mut library, &mut server).await.map(drop)
}

/// One packet with its header.
async fn read(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; 4];
    socket.read_exact(&mut packet).await?;
    let length = match packet[..] {
        [low, middle, high, _] => {
            usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16
        }
        _ => 0,
    };
    if length > PACKET_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    packet.resize(4 + length, 0);
    socket.read_exact(&mut packet[4..]).await?;
    Ok(packet)
}

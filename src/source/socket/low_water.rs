//! SO_RCVLOWAT: how many bytes must have arrived before a reader is woken.
//!
//! The only `unsafe` of the crate: neither socket2, nix nor rustix wraps this option.
#![expect(unsafe_code, reason = "no kept crate wraps SO_RCVLOWAT")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets the mark. The kernel caps it at half of the receive buffer.
pub(super) fn set(socket: &impl AsFd, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("an int has 4 bytes");
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the option takes an int,
    // and pointer and length are those of a local one, which the call only reads.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const value).cast(),
            length,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

//! What the server says is wrong.

use std::fmt;

use super::reply::{ERR, Reader};
use crate::failure::FailureKind;

/// An ERR packet.
///
/// ```text
/// 0xff │ code u16 │ [ '#' │ state 5 ] │ message
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// The server's number for it: what to match.
    pub code: u16,
    /// SQLSTATE; empty in an error before the login, which has none.
    pub state: String,
    /// In the server's language; may quote values.
    pub message: String,
}

impl ServerError {
    /// Reads a payload that begins with 0xff. Lenient: what is cut off is left out, since half a
    /// reason is better than none.
    pub fn parse(payload: &[u8]) -> Self {
        let mut reader = Reader(payload.strip_prefix(&[ERR]).unwrap_or(payload));
        let code = reader.u16().unwrap_or_default();
        let (state, message) = match reader.0.split_first_chunk::<6>() {
            Some(([b'#', state @ ..], message)) => (state.as_slice(), message),
            Some(_) | None => (&[][..], reader.0),
        };
        Self {
            code,
            state: String::from_utf8_lossy(state).into_owned(),
            message: String::from_utf8_lossy(message).into_owned(),
        }
    }

    /// Whether it heals, by its code.
    ///
    /// | code | meaning |
    /// |---|---|
    /// | 1044, 1045, 1698 | access denied to database, user |
    /// | 1130 | host may not connect |
    /// | 1142, 1143, 1227, 1370 | a privilege is missing |
    /// | 1820, 1862, 3118, 4151 | password expired, account locked |
    /// | 1049, 1102 | no such database |
    /// | 1236 | binlog cannot be read: purged, ahead of the server, too large, a second reader |
    ///
    /// All else may heal: 1040 and 1203 too many connections, 1053 shutdown, 1129 host blocked,
    /// 1205 and 1213 locks, 1290 read-only, 2013 and its like, and what is unproven.
    pub fn kind(&self) -> FailureKind {
        match self.code {
            1044 | 1045 | 1130 | 1142 | 1143 | 1227 | 1370 | 1698 | 1820 | 1862 | 3118 | 4151 => {
                FailureKind::Denied
            }
            1049 | 1102 | 1236 => FailureKind::Definite,
            _ => FailureKind::Transient,
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (error {}", self.message, self.code)?;
        if !self.state.is_empty() {
            write!(formatter, ", SQLSTATE {}", self.state)?;
        }
        formatter.write_str(")")
    }
}

impl std::error::Error for ServerError {}

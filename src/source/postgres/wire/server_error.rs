//! What the server says is wrong: ErrorResponse and NoticeResponse, field by field.
//!
//! Source: PostgreSQL documentation, 55.8 "Error and Notice Message Fields".

use std::fmt;

/// An ErrorResponse or NoticeResponse.
///
/// `Display` leaves `detail` and `context` out: they may quote values of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// ERROR, FATAL, PANIC, WARNING, …: never localised.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// Localised by the server's `lc_messages`: match `code` and `routine`, not this.
    pub message: String,
    /// More about the problem; may quote values of rows.
    pub detail: Option<String>,
    /// What to do, in the server's words.
    pub hint: Option<String>,
    /// Characters into the query, from 1.
    pub position: Option<u32>,
    /// Call stack of the server's functions.
    pub context: Option<String>,
    /// Name of the server's C function that raised it.
    pub routine: Option<String>,
}

impl ServerError {
    /// Reads the body (without header) of an ErrorResponse or NoticeResponse. Lenient: a field
    /// that is cut off is left out, since half a reason is better than none.
    ///
    /// ```text
    /// { field u8 │ text, zero byte }* │ zero byte
    /// ```
    pub fn parse(body: &[u8]) -> Self {
        let mut error = Self::default();
        for field in body.split(|byte| *byte == 0) {
            let Some((kind, text)) = field.split_first() else { continue };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                // The localised severity, for servers before 9.6, which do not send `V`.
                b'S' if error.severity.is_empty() => error.severity = text,
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'P' => error.position = text.parse().ok(),
                b'W' => error.context = Some(text),
                b'R' => error.routine = Some(text),
                // Names of schema objects and places in the server's source; newer servers may
                // add fields and ask clients to skip them.
                _ => {}
            }
        }
        error
    }

    /// Whether the server closes the connection after it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {} (SQLSTATE {})", self.severity, self.message, self.code)?;
        if let Some(hint) = &self.hint {
            write!(formatter, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

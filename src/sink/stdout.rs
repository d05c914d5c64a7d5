//! stdout: one JSON object a line (NDJSON), for pipes and for looking.
//!
//! Owns that format. Confirmed means that the system took the bytes, no more. A line:
//!
//! ```text
//! {"topic":…,"key":…,"id":…,"type":…,"headers":[["name","value"],…],"timestamp":"…Z",
//!  "identity":"…","value":…}
//! ```
//!
//! `value` is the payload's own JSON where it is JSON, else text; bytes that are not UTF-8 are
//! `{"base64":"…"}` wherever they stand; what a row has not is `null`.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Limits, OpenError, Ordering, Sink, SinkConfig, Verdicts};
use crate::failure::Failure;
use crate::message::Message;

/// Sink for stdout.
pub struct StdoutSink {
    output: Arc<Mutex<Output>>,
}

/// Where lines go, and whether the last one may have been cut.
struct Output {
    writer: Box<dyn Write + Send>,
    torn: bool,
}

impl StdoutSink {
    /// Makes the sink from its `[sink]` table: the URL `stdout:` and no options.
    ///
    /// # Errors
    /// An option, or more of a URL: there is nothing to choose.
    pub fn open(config: &SinkConfig) -> Result<Self, OpenError> {
        if !matches!(config.url.read()?.expose(), "stdout" | "stdout:" | "stdout://") {
            let problem = "has more than \"stdout:\"; there is nothing to choose".to_owned();
            return Err(OpenError::Url { problem });
        }
        if let Some(key) = config.options.keys().next() {
            let problem = format!("the stdout sink has no option \"{key}\"");
            return Err(OpenError::Option { problem });
        }
        Ok(Self::writing_to(Box::new(io::stdout())))
    }

    fn writing_to(writer: Box<dyn Write + Send>) -> Self {
        Self { output: Arc::new(Mutex::new(Output { writer, torn: false })) }
    }

    async fn deliver_batch(&self, batch: &[Message], verdicts: &Verdicts) -> Result<(), Failure> {
        let mut lines = Vec::with_capacity(batch.len() * 256);
        for message in batch {
            serde_json::to_writer(&mut lines, &Line::of(message))
                .map_err(|error| Failure::definite(format!("could not write JSON: {error}")))?;
            lines.push(b'\n');
        }
        let output = Arc::clone(&self.output);
        // A reader that does not read blocks the write for as long as it likes: not on a thread
        // that others need.
        let written = tokio::task::spawn_blocking(move || {
            output.lock().expect("a writer that panicked has ended the relay").write(&lines)
        });
        match written.await {
            Ok(Ok(())) => {
                verdicts.confirm(0..batch.len());
                Ok(())
            }
            Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => {
                Err(Failure::definite("stdout was closed: whoever read it has ended"))
            }
            Ok(Err(error)) => Err(Failure::transient(format!("could not write stdout: {error}"))),
            Err(error) => Err(Failure::definite(format!("could not write stdout: {error}"))),
        }
    }
}

impl Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        // A disk that was full may have taken half a line; the next one must not continue it.
        if std::mem::replace(&mut self.torn, true) {
            self.writer.write_all(b"\n")?;
        }
        self.writer.write_all(lines)?;
        self.writer.flush()?;
        self.torn = false;
        Ok(())
    }
}

#[derive(Serialize)]
struct Line<'a> {
    topic: &'a str,
    key: Option<Text<'a>>,
    id: Option<Text<'a>>,
    #[serde(rename = "type")]
    event_type: Option<Text<'a>>,
    headers: Vec<(&'a str, Text<'a>)>,
    timestamp: String,
    identity: String,
    value: Option<Value<'a>>,
}

impl<'a> Line<'a> {
    fn of(message: &'a Message) -> Self {
        let text = |bytes: &'a Option<Bytes>| bytes.as_ref().map(|bytes| Text(bytes));
        let header = |header: &'a crate::message::Header| (&*header.name, Text(&header.value));
        Self {
            topic: &message.topic,
            key: text(&message.key),
            id: text(&message.id),
            event_type: text(&message.event_type),
            headers: message.headers.iter().map(header).collect(),
            timestamp: rfc3339(message.timestamp_micros),
            identity: message.identity.to_string(),
            value: message.value.as_ref().map(|bytes| Value(bytes)),
        }
    }
}

/// A string, or `{"base64":…}` where the bytes are no UTF-8.
struct Text<'a>(&'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &base64(self.0))?;
                map.end()
            }
        }
    }
}

/// JSON as it is, else as [`Text`].
struct Value<'a>(&'a [u8]);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Ok(json) = serde_json::from_slice::<&RawValue>(self.0) else {
            return Text(self.0).serialize(serializer);
        };
        if !json.get().contains(['\n', '\r']) {
            return json.serialize(serializer);
        }
        // In valid JSON a bare line break only stands between tokens, so a blank says the same
        // and the line stays one line.
        let flat = json.get().replace(['\n', '\r'], " ");
        let flat = RawValue::from_string(flat).map_err(serde::ser::Error::custom)?;
        flat.serialize(serializer)
    }
}

/// Microseconds since 1970 as RFC 3339 in UTC, always with six digits of a second.
fn rfc3339(micros: i64) -> String {
    let (seconds, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, seconds) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date by 400-year eras that start in March: Howard Hinnant, "chrono-Compatible
    // Low-Level Date Algorithms", civil_from_days.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let leap = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// RFC 4648, section 4, with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let six = (bits >> (18 - 6 * place)) as usize & 63;
            text.push(if place > chunk.len() { '=' } else { char::from(ALPHABET[six]) });
        }
    }
    text
}

impl Sink for StdoutSink {
    fn limits(&self) -> Limits {
        Limits {
            batch_messages_max: 1000,
            batch_bytes_max: 1 << 20,
            lanes_max: 1,
            ordering: Ordering::Whole,
            stuck_after: None,
        }
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        let mut warnings = vec!["stdout confirms what was written, not what was read".to_owned()];
        // Rust opens it in place of a closed stdout, and what is written there is gone.
        if std::fs::read_link("/proc/self/fd/1").is_ok_and(|path| path.as_os_str() == "/dev/null") {
            warnings.push("stdout is /dev/null: every row that it confirms is lost".to_owned());
        }
        Box::pin(async move { Ok(warnings) })
    }

    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.deliver_batch(batch, verdicts))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests;

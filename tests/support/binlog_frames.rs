//! The packets of MySQL and MariaDB, and the rows of one outbox among the binlog's events.
//!
//! Pure, and a decoder of its own: what it counts must not follow from what walpost decodes.
//! Reads uncompressed events with a checksum; of a compressed transaction it counts no rows.

use std::collections::HashMap;

use super::frames::{Direction, Event};

/// The table whose rows count.
const TABLE: &[u8] = b"outbox";
/// A longer payload goes on in the next packet.
const PAYLOAD_MAX: usize = 0xff_ffff;

/// Follows one connection from its first byte.
pub(super) struct BinlogFramer {
    database: &'static str,
    /// The client has not answered the server's greeting yet.
    opening: bool,
    encrypted: bool,
    /// The server sends events and nothing else.
    dumping: bool,
    /// The last packet to the client was full: this one goes on with it.
    continues: bool,
    /// Columns of the outbox by table id.
    columns: HashMap<[u8; 6], Vec<Column>>,
    /// Rows of the outbox passed in the open transaction.
    has_rows: bool,
}

/// How long a value is.
#[derive(Debug, Clone, Copy)]
enum Column {
    Fixed(usize),
    /// The value's length stands before it, in so many bytes.
    Prefixed(usize),
}

impl BinlogFramer {
    pub(super) fn new(database: &'static str) -> BinlogFramer {
        BinlogFramer {
            database,
            opening: true,
            encrypted: false,
            dumping: false,
            continues: false,
            columns: HashMap::new(),
            has_rows: false,
        }
    }

    /// `length u24, sequence u8, payload`.
    pub(super) fn next(
        &mut self,
        direction: Direction,
        bytes: &[u8],
    ) -> Option<(usize, Vec<Event>)> {
        if self.encrypted {
            return Some((bytes.len(), Vec::new()));
        }
        let length = little(bytes, 0, 3)?;
        let frame = bytes.get(..4 + length)?;
        let payload = &frame[4..];
        let mut events = Vec::new();
        match direction {
            Direction::ToServer => self.command(payload, &mut events),
            Direction::ToClient => {
                let continues = std::mem::replace(&mut self.continues, length == PAYLOAD_MAX);
                // Events come behind a zero; what comes else is an error or the end.
                if self.dumping && !continues && payload.first() == Some(&0) {
                    self.event(&payload[1..], length == PAYLOAD_MAX, &mut events);
                }
            }
        }
        Some((frame.len(), events))
    }

    fn command(&mut self, payload: &[u8], events: &mut Vec<Event>) {
        const CLIENT_SSL: usize = 0x800;
        const QUERY: u8 = 0x03;
        const BINLOG_DUMP: u8 = 0x12;
        const EXECUTE: u8 = 0x17;
        const BINLOG_DUMP_GTID: u8 = 0x1e;
        if self.opening {
            // Only an encryption request is that short.
            let asks = little(payload, 0, 4).is_some_and(|flags| flags & CLIENT_SSL != 0);
            self.encrypted = asks && payload.len() == 32;
            self.opening = false;
            return;
        }
        match payload.first() {
            Some(&(BINLOG_DUMP | BINLOG_DUMP_GTID)) => self.dumping = true,
            Some(&(QUERY | EXECUTE)) if is_position_write(payload) => events.push(Event::Feedback),
            _ => {}
        }
    }

    /// `time u32, type u8, server u32, size u32, next u32, flags u16, body, checksum u32`.
    fn event(&mut self, event: &[u8], is_cut: bool, events: &mut Vec<Event>) {
        const XID: u8 = 16;
        const TABLE_MAP: u8 = 19;
        const WRITE_ROWS: [u8; 2] = [23, 30];
        const HEARTBEAT: [u8; 2] = [27, 41];
        const GTID: [u8; 4] = [33, 34, 42, 162];
        let (Some(&kind), Some(body)) = (event.get(4), event.get(19..)) else { return };
        if HEARTBEAT.contains(&kind) {
            events.push(Event::Keepalive);
            return;
        }
        events.push(Event::XLogData);
        // A row that needs several packets is one row; its checksum is in the last of them.
        let body = if is_cut { body } else { &body[..body.len().saturating_sub(4)] };
        if GTID.contains(&kind) {
            self.has_rows = false;
        } else if kind == TABLE_MAP {
            self.table_map(body);
        } else if WRITE_ROWS.contains(&kind) {
            let id: Option<[u8; 6]> = body.get(..6).and_then(|id| id.try_into().ok());
            if let Some(columns) = id.and_then(|id| self.columns.get(&id)) {
                let rows = if is_cut { 1 } else { rows(body, kind == 30, columns).unwrap_or(1) };
                events.extend(std::iter::repeat_n(Event::Insert, rows));
                self.has_rows = true;
            }
        } else if kind == XID && self.has_rows {
            self.has_rows = false;
            events.push(Event::Commit);
        }
    }

    /// `table id u48, flags u16, length u8, database, 0, length u8, table, 0, count, types,
    /// length of the metadata, metadata, …`.
    fn table_map(&mut self, body: &[u8]) {
        let read = || -> Option<([u8; 6], Option<Vec<Column>>)> {
            let id = body.get(..6)?.try_into().ok()?;
            let (database, at) = text(body, 8)?;
            let (table, at) = text(body, at)?;
            if database != self.database.as_bytes() || table != TABLE {
                return Some((id, None));
            }
            let (count, at) = packed(body, at)?;
            let types = body.get(at..at + count)?;
            let (_, mut at) = packed(body, at + count)?;
            let mut columns = Vec::new();
            for kind in types {
                let (column, next) = column(*kind, body, at)?;
                columns.push(column);
                at = next;
            }
            Some((id, Some(columns)))
        };
        match read() {
            Some((id, Some(columns))) => drop(self.columns.insert(id, columns)),
            // The number may be of another table now.
            Some((id, None)) => drop(self.columns.remove(&id)),
            None => {}
        }
    }
}

/// `table id u48, flags u16, [length u16 with itself, extra,] count, columns, rows`; a row is
/// its NULLs and its values.
fn rows(body: &[u8], is_second: bool, columns: &[Column]) -> Option<usize> {
    let at = if is_second { 8 + little(body, 8, 2)? } else { 8 };
    let (count, at) = packed(body, at)?;
    let bitmap = count.div_ceil(8);
    let mut at = at + bitmap;
    let mut rows = 0;
    while at < body.len() {
        let nulls = body.get(at..at + bitmap)?;
        at += bitmap;
        for (index, column) in columns.iter().enumerate() {
            if nulls.get(index / 8)? >> (index % 8) & 1 == 1 {
                continue;
            }
            at += match column {
                Column::Fixed(length) => *length,
                Column::Prefixed(bytes) => bytes + little(body, at, *bytes)?,
            };
        }
        rows += 1;
    }
    (at == body.len()).then_some(rows)
}

/// How long values of this type are, and where the next column's metadata begins.
fn column(kind: u8, body: &[u8], at: usize) -> Option<(Column, usize)> {
    const STRING: u8 = 254;
    Some(match kind {
        // TINY, SHORT, INT24, LONG, LONGLONG.
        1 => (Column::Fixed(1), at),
        2 => (Column::Fixed(2), at),
        9 => (Column::Fixed(3), at),
        3 => (Column::Fixed(4), at),
        8 => (Column::Fixed(8), at),
        // VARCHAR: the longest that it may be.
        15 => (Column::Prefixed(if little(body, at, 2)? > 255 { 2 } else { 1 }), at + 2),
        // BLOB and JSON: bytes of the length.
        252 | 245 => (Column::Prefixed(little(body, at, 1)?), at + 1),
        // CHAR and BINARY of up to 255 bytes; ENUM and SET.
        STRING if body.get(at) == Some(&STRING) => (Column::Prefixed(1), at + 2),
        STRING => (Column::Fixed(little(body, at + 1, 1)?), at + 2),
        // FLOAT, DOUBLE and GEOMETRY.
        4 | 5 => (Column::Fixed(little(body, at, 1)?), at + 1),
        255 => (Column::Prefixed(little(body, at, 1)?), at + 1),
        // BIT: whole bytes and what is left.
        16 => (Column::Fixed(little(body, at + 1, 1)? + usize::from(*body.get(at)? > 0)), at + 2),
        // DECIMAL: nine digits in four bytes, on each side of the point.
        246 => {
            let (digits, scale) = (little(body, at, 1)?, little(body, at + 1, 1)?);
            let side = |digits: usize| digits / 9 * 4 + (digits % 9).div_ceil(2);
            (Column::Fixed(side(digits - scale) + side(scale)), at + 2)
        }
        // TIMESTAMP2 and DATETIME2: digits of a second.
        17 => (Column::Fixed(4 + little(body, at, 1)?.div_ceil(2)), at + 1),
        18 => (Column::Fixed(5 + little(body, at, 1)?.div_ceil(2)), at + 1),
        _ => return None,
    })
}

/// Whether the relay tells its position: it writes so in no other table.
fn is_position_write(payload: &[u8]) -> bool {
    // Prepared statements carry no text; only the position's are executed with a set of GTIDs.
    payload[0] == 0x17 || payload.windows(16).any(|window| window == b"walpost_position")
}

/// `length u8, text, 0`.
fn text(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = at + 1 + little(bytes, at, 1)?;
    Some((bytes.get(at + 1..end)?, end + 1))
}

/// A length-encoded number.
fn packed(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    Some(match *bytes.get(at)? {
        0xfc => (little(bytes, at + 1, 2)?, at + 3),
        0xfd => (little(bytes, at + 1, 3)?, at + 4),
        0xfe => (little(bytes, at + 1, 8)?, at + 9),
        small => (usize::from(small), at + 1),
    })
}

fn little(bytes: &[u8], at: usize, count: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + count)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [&length[..3], &[sequence], payload].concat()
    }

    fn event(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut header = [0; 19];
        header[4] = kind;
        packet(1, &[&[0], &header[..], body, b"-CRC"].concat())
    }

    fn table_map(database: &str, columns: &[u8], metadata: &[u8]) -> Vec<u8> {
        let name = |name: &str| [&[name.len() as u8], name.as_bytes(), &[0]].concat();
        let body = [
            &[7, 0, 0, 0, 0, 0, 1, 0][..],
            &name(database),
            &name("outbox"),
            &[columns.len() as u8],
            columns,
            &[metadata.len() as u8],
            metadata,
            &[0],
        ];
        event(19, &body.concat())
    }

    fn events(framer: &mut BinlogFramer, direction: Direction, bytes: &[u8]) -> Vec<Event> {
        let (mut found, mut buffer) = (Vec::new(), Vec::new());
        for &byte in bytes {
            buffer.push(byte);
            if let Some((length, events)) = framer.next(direction, &buffer) {
                assert_eq!(length, buffer.len(), "a frame ended late");
                found.extend(events);
                buffer.clear();
            }
        }
        assert!(buffer.is_empty(), "a frame did not end");
        found
    }

    /// One that has logged in and asked for the binlog.
    fn dumping() -> BinlogFramer {
        let mut framer = BinlogFramer::new("shop");
        events(&mut framer, Direction::ToClient, &packet(0, b"greeting"));
        events(&mut framer, Direction::ToServer, &packet(1, &[0; 60]));
        events(&mut framer, Direction::ToClient, &packet(2, &[0, 0, 0, 2, 0, 0, 0]));
        events(&mut framer, Direction::ToServer, &packet(0, &[0x1e, 0, 0]));
        framer
    }

    #[test]
    fn rows_of_the_outbox_are_counted_and_those_of_others_are_not() {
        let mut framer = dumping();
        let columns = [254, 15, 245];
        let metadata = [254, 16, 0xfc, 3, 4];
        let row = [&[0][..], &[1, 9], &[2, 0, b'a', b'b'], &[1, 0, 0, 0, b'j']].concat();
        let rows = [&[7, 0, 0, 0, 0, 0, 1, 0][..], &[2, 0], &[3, 7], &row, &row].concat();
        let down = [
            event(33, b""),
            table_map("shop", &columns, &metadata),
            event(30, &rows),
            event(16, b"8 bytes."),
            event(33, b""),
            table_map("other", &columns, &metadata),
            event(30, &rows),
            event(16, b"8 bytes."),
            event(27, b""),
        ];
        let found = events(&mut framer, Direction::ToClient, &down.concat());
        let count = |event| found.iter().filter(|found| **found == event).count();
        assert_eq!((count(Event::Insert), count(Event::Commit)), (2, 1));
        assert_eq!((count(Event::XLogData), count(Event::Keepalive)), (8, 1));
    }

    #[test]
    fn a_null_takes_no_bytes_of_a_row() {
        let columns = [Column::Fixed(8), Column::Prefixed(2)];
        let row = [&[0b10][..], &[0; 8], &[0b01], &[1, 0, b'x']].concat();
        let body = [&[7, 0, 0, 0, 0, 0, 1, 0][..], &[2, 3], &row].concat();
        assert_eq!(rows(&body, false, &columns), Some(2));
    }

    #[test]
    fn a_position_that_is_written_is_feedback() {
        let mut framer = dumping();
        let sql = b"\x03UPDATE `walpost_position` SET x = 1";
        assert_eq!(events(&mut framer, Direction::ToServer, &packet(0, sql)), [Event::Feedback]);
        assert_eq!(events(&mut framer, Direction::ToServer, &packet(0, b"\x03SELECT 1")), []);
    }

    #[test]
    fn an_encrypted_connection_turns_opaque() {
        let mut framer = BinlogFramer::new("shop");
        events(&mut framer, Direction::ToClient, &packet(0, b"greeting"));
        let mut request = [0; 32];
        request[1] = 0x08;
        events(&mut framer, Direction::ToServer, &packet(1, &request));
        assert_eq!(framer.next(Direction::ToServer, b"\x16\x03\x01"), Some((3, Vec::new())));
    }
}

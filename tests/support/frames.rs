//! Where the frames of a connection end, and which of them matter to a fault test.
//!
//! Pure: bytes in, frame lengths and events out. Reads just enough of each protocol; what it
//! cannot follow (TLS) it passes as opaque bytes.

use std::collections::HashSet;

use super::binlog_frames::BinlogFramer;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What a proxy's connections speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Anything; a frame is what one read brought.
    Opaque,
    Postgres,
    /// MySQL and MariaDB; rows and commits are those of this database's `outbox`.
    MySql {
        database: &'static str,
    },
    Kafka,
    Amqp,
    Nats,
}

/// A frame worth counting. One frame may be several events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// PostgreSQL to client: CopyData `w`, one pgoutput message each. MySQL: a binlog event.
    XLogData,
    /// An XLogData that holds an Insert. MySQL: a row, of which an event may hold several.
    Insert,
    /// An XLogData that holds a Commit. MySQL: of a transaction with such rows.
    Commit,
    /// PostgreSQL to client: CopyData `k`. MySQL: a heartbeat.
    Keepalive,
    /// Client to PostgreSQL: CopyData `r`, the standby status update. To MySQL: a statement on
    /// `walpost_position`.
    Feedback,
    /// Client to broker: Kafka Produce request, AMQP basic.publish, NATS PUB or HPUB outside
    /// the `$JS.` subjects.
    Publish,
    /// Broker to client: Kafka Produce response, AMQP basic.ack, JetStream publish ack without
    /// an error.
    Confirm,
}

/// Follows both directions of one connection from its first byte.
pub struct Framer {
    protocol: Protocol,
    /// PostgreSQL: the next client packet has no tag yet. AMQP: the protocol header is due.
    opening: bool,
    /// PostgreSQL: the server's next byte answers an encryption request.
    answer_due: bool,
    /// Kafka: correlation ids of unanswered Produce requests.
    produces: HashSet<[u8; 4]>,
    binlog: Option<BinlogFramer>,
}

impl Framer {
    pub fn new(protocol: Protocol) -> Framer {
        let binlog = match protocol {
            Protocol::MySql { database } => Some(BinlogFramer::new(database)),
            _ => None,
        };
        Framer { protocol, opening: true, answer_due: false, produces: HashSet::new(), binlog }
    }

    /// Length of the first frame of `bytes`, which start at a frame's border, and its events;
    /// `None` while it is incomplete.
    pub fn next(&mut self, direction: Direction, bytes: &[u8]) -> Option<(usize, Vec<Event>)> {
        if bytes.is_empty() {
            return None;
        }
        if let Some(binlog) = &mut self.binlog {
            return binlog.next(direction, bytes);
        }
        match self.protocol {
            Protocol::Opaque | Protocol::MySql { .. } => Some((bytes.len(), Vec::new())),
            Protocol::Postgres => self.postgres(direction, bytes),
            Protocol::Kafka => self.kafka(direction, bytes),
            Protocol::Amqp => self.amqp(direction, bytes),
            Protocol::Nats => nats(direction, bytes),
        }
    }

    /// `tag u8, length u32 (with itself), body`; the startup packet lacks the tag.
    fn postgres(&mut self, direction: Direction, bytes: &[u8]) -> Option<(usize, Vec<Event>)> {
        const SSL_REQUEST: u32 = 80_877_103;
        const GSS_REQUEST: u32 = 80_877_104;
        if direction == Direction::ToServer && self.opening {
            let frame = whole(bytes, number(bytes, 0)?)?;
            let request = matches!(number(frame, 4)? as u32, SSL_REQUEST | GSS_REQUEST);
            self.opening = request;
            self.answer_due = request;
            return Some((frame.len(), Vec::new()));
        }
        if direction == Direction::ToClient && self.answer_due {
            self.answer_due = false;
            if bytes[0] != b'N' {
                self.protocol = Protocol::Opaque;
            }
            return Some((1, Vec::new()));
        }
        let frame = whole(bytes, 1 + number(bytes, 1)?)?;
        let mut events = Vec::new();
        if frame[0] == b'd' {
            match (direction, frame.get(5)) {
                (Direction::ToServer, Some(b'r')) => events.push(Event::Feedback),
                (Direction::ToClient, Some(b'k')) => events.push(Event::Keepalive),
                (Direction::ToClient, Some(b'w')) => {
                    events.push(Event::XLogData);
                    // 'w', start, end and time come before the plugin's message.
                    match frame.get(5 + 25) {
                        Some(b'I') => events.push(Event::Insert),
                        Some(b'C') => events.push(Event::Commit),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Some((frame.len(), events))
    }

    /// `length u32 (without itself), [api key u16, version u16,] correlation id u32, …`
    fn kafka(&mut self, direction: Direction, bytes: &[u8]) -> Option<(usize, Vec<Event>)> {
        let frame = whole(bytes, 4 + number(bytes, 0)?)?;
        let correlation = |at: usize| -> Option<[u8; 4]> { frame.get(at..at + 4)?.try_into().ok() };
        let mut events = Vec::new();
        match direction {
            Direction::ToServer if frame.get(4..6) == Some(&[0, 0]) => {
                self.produces.extend(correlation(8));
                events.push(Event::Publish);
            }
            Direction::ToServer => {}
            Direction::ToClient => {
                if correlation(4).is_some_and(|id| self.produces.remove(&id)) {
                    events.push(Event::Confirm);
                }
            }
        }
        Some((frame.len(), events))
    }

    /// `type u8, channel u16, size u32, payload, 0xCE`; a method's payload starts with
    /// `class u16, method u16`.
    fn amqp(&mut self, direction: Direction, bytes: &[u8]) -> Option<(usize, Vec<Event>)> {
        // The client's opening, and the server's refusal of it: `AMQP` and four bytes.
        if bytes[0] == b'A' {
            return whole(bytes, 8).map(|header| (header.len(), Vec::new()));
        }
        let frame = whole(bytes, 8 + number(bytes, 3)?)?;
        let mut events = Vec::new();
        if frame[0] == 1 {
            match (direction, frame.get(7..11)) {
                (Direction::ToServer, Some([0, 60, 0, 40])) => events.push(Event::Publish),
                (Direction::ToClient, Some([0, 60, 0, 80])) => events.push(Event::Confirm),
                _ => {}
            }
        }
        Some((frame.len(), events))
    }
}

/// Lines; PUB, HPUB, MSG and HMSG end with the payload's size, and the payload follows.
fn nats(direction: Direction, bytes: &[u8]) -> Option<(usize, Vec<Event>)> {
    let line_end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let line = String::from_utf8_lossy(&bytes[..line_end]).into_owned();
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let verb = words.first().copied().unwrap_or_default().to_ascii_uppercase();
    if !matches!(verb.as_str(), "PUB" | "HPUB" | "MSG" | "HMSG") {
        return Some((line_end + 2, Vec::new()));
    }
    let size = |word: Option<&&str>| word.and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
    let total = size(words.last());
    let headers = if verb.starts_with('H') { size(words.iter().rev().nth(1)) } else { 0 };
    let start = line_end + 2;
    let frame = whole(bytes, start + total + 2)?;
    let body = frame.get(start + headers..start + total).unwrap_or_default();
    let subject = words.get(1).copied().unwrap_or_default();
    let mut events = Vec::new();
    match direction {
        Direction::ToServer if !subject.starts_with("$JS.") => events.push(Event::Publish),
        Direction::ToServer => {}
        Direction::ToClient => {
            // Answers of the JetStream API begin with their type, refusals with an error.
            if body.starts_with(b"{\"stream\":") {
                events.push(Event::Confirm);
            }
        }
    }
    Some((frame.len(), events))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(four) as usize)
}

fn whole(bytes: &[u8], length: usize) -> Option<&[u8]> {
    bytes.get(..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events of a whole stream, fed a byte at a time: no frame is known before its end.
    fn events(framer: &mut Framer, direction: Direction, bytes: &[u8]) -> Vec<Event> {
        let (mut found, mut buffer) = (Vec::new(), Vec::new());
        for &byte in bytes {
            buffer.push(byte);
            if let Some((length, events)) = framer.next(direction, &buffer) {
                assert_eq!(length, buffer.len(), "a frame ended late");
                found.extend(events);
                buffer.clear();
            }
        }
        assert!(buffer.is_empty(), "a frame did not end: {buffer:?}");
        found
    }

    fn copy_data(body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [b"d", length.as_slice(), body].concat()
    }

    #[test]
    fn postgres_rows_and_feedback_are_seen_after_a_refused_encryption() {
        let mut framer = Framer::new(Protocol::Postgres);
        let ssl = [&8u32.to_be_bytes()[..], &80_877_103u32.to_be_bytes()].concat();
        let startup = [&9u32.to_be_bytes()[..], &196_608u32.to_be_bytes(), &[0]].concat();
        assert_eq!(events(&mut framer, Direction::ToServer, &ssl), []);
        assert_eq!(events(&mut framer, Direction::ToClient, b"N"), []);
        assert_eq!(events(&mut framer, Direction::ToServer, &startup), []);
        let row = copy_data(&[&[b'w'; 25][..], b"I..."].concat());
        let commit = copy_data(&[&[b'w'; 25][..], b"C..."].concat());
        let down = [row, commit, copy_data(b"k...")].concat();
        assert_eq!(
            events(&mut framer, Direction::ToClient, &down),
            [Event::XLogData, Event::Insert, Event::XLogData, Event::Commit, Event::Keepalive]
        );
        let up = copy_data(b"r...");
        assert_eq!(events(&mut framer, Direction::ToServer, &up), [Event::Feedback]);
    }

    #[test]
    fn an_accepted_encryption_turns_opaque() {
        let mut framer = Framer::new(Protocol::Postgres);
        let ssl = [&8u32.to_be_bytes()[..], &80_877_103u32.to_be_bytes()].concat();
        events(&mut framer, Direction::ToServer, &ssl);
        events(&mut framer, Direction::ToClient, b"S");
        assert_eq!(framer.next(Direction::ToServer, b"\x16\x03\x01"), Some((3, Vec::new())));
    }

    #[test]
    fn kafka_confirms_are_answers_to_produce_requests() {
        let mut framer = Framer::new(Protocol::Kafka);
        let request = |api: u8, id: u8| [0, 0, 0, 9, 0, api, 0, 9, 0, 0, 0, id, 7];
        let answer = |id: u8| [0, 0, 0, 5, 0, 0, 0, id, 7];
        let up = [request(3, 1), request(0, 2)].concat();
        assert_eq!(events(&mut framer, Direction::ToServer, &up), [Event::Publish]);
        let down = [answer(1), answer(2), answer(2)].concat();
        assert_eq!(events(&mut framer, Direction::ToClient, &down), [Event::Confirm]);
    }

    #[test]
    fn amqp_publishes_and_acks_are_told_from_other_methods() {
        let mut framer = Framer::new(Protocol::Amqp);
        let method = |class: u8, id: u8| [1, 0, 1, 0, 0, 0, 4, 0, class, 0, id, 0xCE];
        let up = [&b"AMQP\0\0\x09\x01"[..], &method(10, 11), &method(60, 40)].concat();
        assert_eq!(events(&mut framer, Direction::ToServer, &up), [Event::Publish]);
        let down = [method(10, 10), method(60, 80), method(60, 120)].concat();
        assert_eq!(events(&mut framer, Direction::ToClient, &down), [Event::Confirm]);
    }

    #[test]
    fn nats_confirms_are_publish_acks_without_an_error() {
        let mut framer = Framer::new(Protocol::Nats);
        let up = b"CONNECT {}\r\nPUB $JS.API.INFO _INBOX.1 0\r\n\r\n\
                   HPUB orders.1 _INBOX.2 12 14\r\nNATS/1.0\r\n\r\nhi\r\n";
        assert_eq!(events(&mut framer, Direction::ToServer, up), [Event::Publish]);
        let down = b"INFO {}\r\nMSG _INBOX.1 1 14\r\n{\"type\":\"io.n\"\r\n\
                     MSG _INBOX.2 1 23\r\n{\"stream\":\"S\", \"seq\":1}\r\n\
                     MSG _INBOX.3 1 12\r\n{\"error\":{}}\r\nPING\r\n";
        assert_eq!(events(&mut framer, Direction::ToClient, down), [Event::Confirm]);
    }
}

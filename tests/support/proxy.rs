//! A TCP proxy that breaks connections where a test says so.
//!
//! Each connection has two threads a direction: one reads, one forwards. With a protocol, bytes
//! are forwarded in whole frames, so that a fault can strike before, inside or after exactly the
//! k-th frame of a kind. Runs on std threads: no runtime of a test can starve it.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use super::frames::{Direction, Event, Protocol};
pub use super::tunnel::Ending;
use super::tunnel::{Connection, Piece, reset_on_close};

/// Where in the frame (or chunk) that sets it off a trigger strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Nothing of the frame was forwarded.
    Before,
    /// The first half of it was.
    Inside,
    /// All of it was, and nothing later.
    After,
}

/// What a trigger does.
pub enum Action {
    /// Ends the connection that set it off.
    Cut(Ending),
    /// As [`Proxy::blackhole`].
    Blackhole(Direction),
    /// As [`Proxy::swallow`].
    Swallow(Direction),
    /// Anything else, such as killing a process. The frame waits until it returns.
    Run(Box<dyn FnOnce() + Send>),
}

/// Tells whether a trigger has struck; its action is done by then.
#[derive(Clone, Default)]
pub struct Trigger(Arc<(Mutex<bool>, Condvar)>);

impl Trigger {
    pub fn fired(&self) -> bool {
        *self.0.0.lock().expect("nobody panics with it")
    }

    /// Waits for it; says whether it struck within `timeout`.
    pub fn wait(&self, timeout: Duration) -> bool {
        let fired = self.0.0.lock().expect("nobody panics with it");
        let waited = self.0.1.wait_timeout_while(fired, timeout, |fired| !*fired);
        *waited.expect("nobody panics with it").0
    }

    fn fire(&self) {
        *self.0.0.lock().expect("nobody panics with it") = true;
        self.0.1.notify_all();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    Blackhole,
    Swallow,
}

/// Faults and counters of one direction, over all connections.
struct Link {
    mode: Mode,
    delay: Duration,
    bytes_per_second: Option<u64>,
    cut: Option<(u64, Ending)>,
    forwarded: u64,
    swallowed: u64,
}

type Predicate = Box<dyn FnMut(&[u8]) -> bool + Send>;

enum Condition {
    /// This many more events of the kind.
    Count(Event, u64),
    /// Over the bytes of a connection in a direction since the trigger was set.
    Bytes(Direction, HashMap<u64, Vec<u8>>, Predicate),
}

struct Armed {
    condition: Condition,
    point: Point,
    action: Action,
    trigger: Trigger,
}

struct State {
    target: SocketAddr,
    refusing: bool,
    stopping: bool,
    links: HashMap<Direction, Link>,
    armed: Vec<Armed>,
    connections: Vec<Weak<Connection>>,
    accepted: u64,
    seen: HashMap<Event, u64>,
}

impl State {
    fn link(&mut self, direction: Direction) -> &mut Link {
        self.links.get_mut(&direction).expect("both directions are there")
    }
}

struct Shared {
    protocol: Protocol,
    state: Mutex<State>,
    changed: Condvar,
}

/// A proxy on a port of 127.0.0.1.
///
/// Kafka's clients leave the address that they were given for the one that the broker advertises:
/// start the proxy first, with any target, let the broker advertise [`Proxy::addr`], then
/// [`Proxy::set_target`].
///
/// Ends with its connections when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Forwards bytes as they come.
    pub fn start(target: SocketAddr) -> Proxy {
        Proxy::start_with(target, Protocol::Opaque)
    }

    /// Forwards whole frames of a protocol and knows their events.
    pub fn start_with(target: SocketAddr, protocol: Protocol) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let link = || Link {
            mode: Mode::Forward,
            delay: Duration::ZERO,
            bytes_per_second: None,
            cut: None,
            forwarded: 0,
            swallowed: 0,
        };
        let state = State {
            target,
            refusing: false,
            stopping: false,
            links: [(Direction::ToServer, link()), (Direction::ToClient, link())].into(),
            armed: Vec::new(),
            connections: Vec::new(),
            accepted: 0,
            seen: HashMap::new(),
        };
        let shared =
            Arc::new(Shared { protocol, state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        let acceptor = Some(std::thread::spawn(move || accepting.accept(&listener)));
        Proxy { shared, address, acceptor }
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Sends new connections elsewhere: a failover, a wrong server.
    pub fn set_target(&self, target: SocketAddr) {
        self.shared.lock().target = target;
    }

    /// Undoes blackhole, swallowing, delay, throttle, a pending cut and refusal. What a
    /// blackhole held back is forwarded now.
    pub fn resume(&self) {
        let mut state = self.shared.lock();
        state.refusing = false;
        for link in state.links.values_mut() {
            link.mode = Mode::Forward;
            link.delay = Duration::ZERO;
            link.bytes_per_second = None;
            link.cut = None;
        }
        for connection in state.connections.iter().filter_map(Weak::upgrade) {
            connection.freeze(false);
        }
        self.shared.changed.notify_all();
    }

    /// Cuts the connection that carries the `count`-th byte from now in this direction, after
    /// that byte and once; in the middle of whatever frame. 0 strikes before the next byte.
    pub fn cut_after_bytes(&self, direction: Direction, count: u64, ending: Ending) {
        self.change(direction, |link| link.cut = Some((count, ending)));
    }

    /// Forwards nothing and keeps sockets open, ends of stream included, until resumed.
    pub fn blackhole(&self, direction: Direction) {
        self.change(direction, |link| link.mode = Mode::Blackhole);
    }

    /// Forwards nothing more on the connections that are open now, in either direction, and keeps
    /// their sockets open, until resumed; new ones pass. A peer that fell silent.
    pub fn freeze_open(&self) {
        let connections = self.shared.lock().connections.clone();
        for connection in connections.iter().filter_map(Weak::upgrade) {
            connection.freeze(true);
        }
    }

    /// Reads and discards, until resumed. Cut the connections before that: their streams lack
    /// bytes.
    pub fn swallow(&self, direction: Direction) {
        self.change(direction, |link| link.mode = Mode::Swallow);
    }

    /// Adds a delay to everything; throughput stays.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.change(direction, |link| link.delay = delay);
    }

    /// Limits the rate of each connection.
    pub fn throttle(&self, direction: Direction, bytes_per_second: u64) {
        self.change(direction, |link| link.bytes_per_second = Some(bytes_per_second));
    }

    /// Ends all connections that [`Proxy::open`] counts; one that is being made stays.
    pub fn cut_all(&self, ending: Ending) {
        let connections = self.shared.lock().connections.clone();
        for connection in connections.iter().filter_map(Weak::upgrade) {
            connection.end(ending);
        }
        self.shared.changed.notify_all();
    }

    /// Resets new connections at once, until resumed; open ones stay.
    pub fn refuse(&self) {
        self.shared.lock().refusing = true;
    }

    /// At the `count`-th event from now, over all connections: strikes once.
    pub fn when(&self, event: Event, count: u64, point: Point, action: Action) -> Trigger {
        assert!(count > 0, "the first event is number 1");
        assert!(self.shared.protocol != Protocol::Opaque, "opaque bytes have no events");
        self.arm(Condition::Count(event, count), point, action)
    }

    /// When `predicate` holds over the bytes that one connection carried in this direction since
    /// now, including the frame (or chunk) that is about to be forwarded: strikes once.
    pub fn when_bytes(
        &self,
        direction: Direction,
        predicate: impl FnMut(&[u8]) -> bool + Send + 'static,
        point: Point,
        action: Action,
    ) -> Trigger {
        let condition = Condition::Bytes(direction, HashMap::new(), Box::new(predicate));
        self.arm(condition, point, action)
    }

    fn arm(&self, condition: Condition, point: Point, action: Action) -> Trigger {
        let trigger = Trigger::default();
        let armed = Armed { condition, point, action, trigger: trigger.clone() };
        self.shared.lock().armed.push(armed);
        trigger
    }

    /// Bytes forwarded in a direction so far.
    pub fn forwarded(&self, direction: Direction) -> u64 {
        self.shared.lock().link(direction).forwarded
    }

    /// Bytes discarded in a direction so far.
    pub fn swallowed(&self, direction: Direction) -> u64 {
        self.shared.lock().link(direction).swallowed
    }

    /// Connections accepted so far, refused ones included.
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        let state = self.shared.lock();
        state.connections.iter().filter(|connection| connection.strong_count() > 0).count()
    }

    /// Events seen so far, whether they were forwarded or not.
    pub fn seen(&self, event: Event) -> u64 {
        self.shared.lock().seen.get(&event).copied().unwrap_or(0)
    }

    fn change(&self, direction: Direction, change: impl FnOnce(&mut Link)) {
        change(self.shared.lock().link(direction));
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.cut_all(Ending::Reset);
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor does not panic");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the proxy's state")
    }

    fn accept(self: Arc<Shared>, listener: &TcpListener) {
        loop {
            let Ok((client, _)) = listener.accept() else { continue };
            let (target, refusing, id) = {
                let mut state = self.lock();
                if state.stopping {
                    return;
                }
                state.accepted += 1;
                (state.target, state.refusing, state.accepted)
            };
            let server = TcpStream::connect_timeout(&target, Duration::from_secs(5));
            let Some(server) = server.ok().filter(|_| !refusing) else {
                reset_on_close(&client);
                continue;
            };
            self.serve(id, client, server);
        }
    }

    fn serve(self: &Arc<Shared>, id: u64, client: TcpStream, server: TcpStream) {
        let connection = Arc::new(Connection::new(id, client, server, self.protocol));
        {
            let mut state = self.lock();
            state.connections.retain(|connection| connection.strong_count() > 0);
            state.connections.push(Arc::downgrade(&connection));
            if state.stopping {
                connection.end(Ending::Reset);
            }
        }
        for direction in [Direction::ToServer, Direction::ToClient] {
            let (sender, receiver) = mpsc::sync_channel(64);
            let reading = Arc::clone(&connection);
            std::thread::spawn(move || reading.read(direction, &sender));
            let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
            std::thread::spawn(move || shared.pump(&connection, direction, &receiver));
        }
    }

    /// Forwards what was read in one direction until it or the connection ends.
    fn pump(&self, connection: &Connection, direction: Direction, pieces: &mpsc::Receiver<Piece>) {
        let mut buffer = Vec::new();
        while let Ok(piece) = pieces.recv() {
            match piece {
                Piece::Bytes(at, bytes) => {
                    if !self.wait_delay(connection, direction, at) {
                        return;
                    }
                    buffer.extend_from_slice(&bytes);
                }
                Piece::End(ending) => {
                    // A frame that its sender never finished goes as far as it came.
                    if self.forward(connection, direction, &buffer) {
                        connection.end_direction(direction, ending);
                    }
                    return;
                }
            }
            let mut start = 0;
            loop {
                let next = {
                    let mut framer = connection.framer.lock().expect("a framer does not panic");
                    framer.next(direction, &buffer[start..])
                };
                let Some((length, events)) = next else { break };
                if !self.pass(connection, direction, &buffer[start..start + length], &events) {
                    return;
                }
                start += length;
            }
            buffer.drain(..start);
        }
    }

    /// Forwards a frame with the triggers that it sets off; false when the connection ended.
    fn pass(
        &self,
        connection: &Connection,
        direction: Direction,
        frame: &[u8],
        events: &[Event],
    ) -> bool {
        let struck = self.strike(connection.id, direction, frame, events);
        let half = frame.len() / 2;
        let parts = [(Point::Before, 0..half), (Point::Inside, half..frame.len())];
        let mut struck = struck.into_iter().peekable();
        for (point, part) in parts {
            while let Some(armed) = struck.next_if(|armed| armed.point == point) {
                self.act(connection, armed);
            }
            if !self.forward(connection, direction, &frame[part]) {
                // Later triggers of this frame were set off all the same.
                struck.for_each(|armed| self.act(connection, armed));
                return false;
            }
        }
        struck.for_each(|armed| self.act(connection, armed));
        !connection.has_ended()
    }

    /// Takes out the triggers that this frame sets off, in the order of their points.
    fn strike(&self, id: u64, direction: Direction, frame: &[u8], events: &[Event]) -> Vec<Armed> {
        let mut state = self.lock();
        for &event in events {
            *state.seen.entry(event).or_default() += 1;
        }
        let mut struck: Vec<Armed> = state
            .armed
            .extract_if(.., |armed| match &mut armed.condition {
                Condition::Count(event, left) => {
                    let count = events.iter().filter(|seen| *seen == event).count() as u64;
                    *left = left.saturating_sub(count);
                    *left == 0
                }
                Condition::Bytes(wanted, carried, predicate) => {
                    *wanted == direction && {
                        let bytes = carried.entry(id).or_default();
                        bytes.extend_from_slice(frame);
                        predicate(bytes)
                    }
                }
            })
            .collect();
        struck.sort_by_key(|armed| armed.point as u8);
        struck
    }

    fn act(&self, connection: &Connection, armed: Armed) {
        match armed.action {
            Action::Cut(ending) => connection.end(ending),
            Action::Blackhole(direction) => self.lock().link(direction).mode = Mode::Blackhole,
            Action::Swallow(direction) => self.lock().link(direction).mode = Mode::Swallow,
            Action::Run(run) => run(),
        }
        self.changed.notify_all();
        armed.trigger.fire();
    }

    /// Waits until bytes that were read at `at` are due; false when the connection ended.
    fn wait_delay(&self, connection: &Connection, direction: Direction, at: Instant) -> bool {
        let mut state = self.lock();
        loop {
            if connection.has_ended() {
                return false;
            }
            let due = at + state.link(direction).delay;
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self.changed.wait_timeout(state, left).expect("nobody panics with it").0;
        }
    }

    /// Forwards bytes as the link's faults allow; false when the connection ended.
    fn forward(&self, connection: &Connection, direction: Direction, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut state = self.lock();
            while (state.link(direction).mode == Mode::Blackhole || connection.is_frozen())
                && !connection.has_ended()
            {
                // The time bound is for an end that the peer caused: nobody notifies then.
                let wait = Duration::from_millis(50);
                state = self.changed.wait_timeout(state, wait).expect("nobody panics with it").0;
            }
            if connection.has_ended() {
                return false;
            }
            let link = state.link(direction);
            if link.mode == Mode::Swallow {
                link.swallowed += rest.len() as u64;
                return true;
            }
            let rate = link.bytes_per_second;
            let piece = rate.map_or(rest.len() as u64, |rate| (rate / 50).max(1));
            let left = link.cut.map_or(u64::MAX, |(left, _)| left);
            let count = piece.min(left).min(rest.len() as u64);
            let cut = link.cut.take_if(|(left, _)| *left == count);
            if let Some((left, _)) = &mut link.cut {
                *left -= count;
            }
            link.forwarded += count;
            drop(state);
            let (now, later) = rest.split_at(count as usize);
            if !connection.write(direction, now) {
                return false;
            }
            rest = later;
            if let Some((_, ending)) = cut {
                connection.end(ending);
                return false;
            }
            if let Some(rate) = rate {
                std::thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
            }
        }
        // Our own reset reads like an end of stream; it must not be passed on as one.
        !connection.has_ended()
    }
}

//! A real nats-server with JetStream, and what its streams hold.

use std::io::Read;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use nix::sys::signal::Signal;

use super::process::{Process, eventually, free_port, scratch, tool};

/// A server on 127.0.0.1 with a store of its own.
pub struct Nats {
    process: Process,
    port: u16,
    folder: PathBuf,
    login: &'static str,
}

/// A message as a stream holds it.
#[derive(Debug, Clone)]
pub struct Record {
    pub subject: String,
    pub sequence: u64,
    pub headers: HeaderMap,
    pub payload: Bytes,
    /// Microseconds since 1970.
    pub time_micros: i64,
}

impl Nats {
    /// Starts a server that lets anybody in.
    pub fn start() -> Nats {
        Nats::start_with("", "")
    }

    /// Starts a server with more configuration; `login` is `user:password@` or `token@` of one
    /// who may do everything.
    pub fn start_with(configuration: &str, login: &'static str) -> Nats {
        let folder = scratch("nats");
        std::fs::write(folder.join("nats.conf"), configuration).unwrap();
        let port = free_port();
        let process = Nats::spawn(&folder, port);
        let mut nats = Nats { process, port, folder, login };
        nats.wait_until_ready();
        nats
    }

    /// Puts another configuration in the place of the one it has, without a restart: connections
    /// that it does not let in any more are closed.
    pub fn configure(&self, configuration: &str) {
        std::fs::write(self.folder.join("nats.conf"), configuration).unwrap();
        self.process.signal(Signal::SIGHUP);
    }

    /// Three servers of one cluster, whose JetStream has a leader or soon will.
    pub fn start_cluster() -> [Nats; 3] {
        let ports = [free_port(), free_port(), free_port()];
        let routes = ports.map(|port| format!("nats://127.0.0.1:{port}")).join(", ");
        std::array::from_fn(|index| {
            let port = ports[index];
            Nats::start_with(
                &format!(
                    "server_name: n{index}\ncluster {{ name: c, listen: \"127.0.0.1:{port}\", \
                     routes: [{routes}] }}\n"
                ),
                "",
            )
        })
    }

    fn spawn(folder: &std::path::Path, port: u16) -> Process {
        let mut command = Command::new(tool("venv/bin/nats-server", "nats"));
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]);
        command.arg(folder.join("store")).arg("-c").arg(folder.join("nats.conf"));
        Process::spawn(command, None, &folder.join("nats.log"))
    }

    fn wait_until_ready(&mut self) {
        let port = self.port;
        let ready = eventually(Duration::from_secs(20), || {
            let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else { return false };
            let mut start = [0; 4];
            socket.read_exact(&mut start).is_ok() && &start == b"INFO"
        });
        if !ready {
            self.process.give_up("nats-server did not come up");
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again with the same store and port, after [`Nats::kill`] or [`Nats::stop`].
    pub fn restart(&mut self) {
        self.process = Nats::spawn(&self.folder, self.port);
        self.wait_until_ready();
    }

    /// Ends it cleanly.
    pub fn stop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        let ended = self.process.wait(Duration::from_secs(20));
        assert!(ended.is_some(), "nats-server did not end on SIGTERM");
    }

    /// Stands still, with its sockets open and what arrives waiting in them.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// Goes on after [`Nats::freeze`].
    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// Process id of the running server.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// For the sink; with the login of one who may do everything.
    pub fn url(&self) -> String {
        format!("nats://{}127.0.0.1:{}", self.login, self.port)
    }

    /// A client of the test's own.
    pub async fn jetstream(&self) -> jetstream::Context {
        let login = self.login.trim_end_matches('@').to_owned();
        let options = match login.split_once(':') {
            Some((user, password)) => {
                async_nats::ConnectOptions::with_user_and_password(user.into(), password.into())
            }
            None if login.is_empty() => async_nats::ConnectOptions::new(),
            None => async_nats::ConnectOptions::with_token(login),
        };
        let address = format!("nats://127.0.0.1:{}", self.port);
        jetstream::new(options.connect(address).await.unwrap())
    }

    /// Makes a file stream for `subjects`.
    pub async fn create_stream(&self, name: &str, subjects: &[&str]) {
        self.create_stream_with(stream::Config {
            name: name.to_owned(),
            subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
            ..Default::default()
        })
        .await;
    }

    pub async fn create_stream_with(&self, config: stream::Config) {
        self.jetstream().await.create_stream(config).await.unwrap();
    }

    /// Changes the configuration of a stream.
    pub async fn update_stream(&self, config: stream::Config) {
        self.jetstream().await.update_stream(config).await.unwrap();
    }

    /// All messages of a stream, in its order, up to the last one of now.
    pub async fn read_back(&self, name: &str) -> Vec<Record> {
        self.read_from(name, 1).await
    }

    /// As [`Nats::read_back`], from a sequence number on.
    pub async fn read_from(&self, name: &str, from: u64) -> Vec<Record> {
        use futures_util::StreamExt;
        let stream = self.jetstream().await.get_stream(name).await.unwrap();
        let state = stream.cached_info().state.clone();
        let mut records = Vec::new();
        if state.messages == 0 || state.last_sequence < from {
            return records;
        }
        let config = jetstream::consumer::pull::OrderedConfig {
            deliver_policy: jetstream::consumer::DeliverPolicy::ByStartSequence {
                start_sequence: from,
            },
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut messages = consumer.messages().await.unwrap();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), messages.next()).await;
            let message = next.expect("a stream gives what it holds").unwrap().unwrap();
            let info = message.info().unwrap();
            let (sequence, time) = (info.stream_sequence, info.published);
            records.push(Record {
                subject: message.subject.to_string(),
                sequence,
                headers: message.headers.clone().unwrap_or_default(),
                payload: message.payload.clone(),
                time_micros: time.unix_timestamp_nanos() as i64 / 1000,
            });
            if sequence >= state.last_sequence {
                return records;
            }
        }
    }
}

//! From a checked connection string to a connection that is logged in.
//!
//! Owns which host is tried when, TCP and Unix sockets, and when TLS is asked for or given up.
//! It knows no certificate rules (`tls.rs`), passwords (`auth.rs`) or frames (`wire.rs`).
//!
//! | sslmode | first | then, on a new socket |
//! |---|---|---|
//! | disable | plain | – |
//! | allow | plain | TLS, when the server refused the login or wants the password in clear |
//! | prefer | TLS; plain on the same socket when the server has none | plain, when the handshake failed or the server refused the login |
//! | require, verify-ca, verify-full | TLS | – |
//!
//! A Unix socket never uses TLS, whatever `sslmode`. Source: PostgreSQL documentation, 34.1.2
//! and 34.19.3; libpq's `PQconnectPoll`.

mod error;

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

pub use crate::source::socket::Socket as PgStream;
pub use error::ConnectError;

use super::auth::{AuthError, Protection, authenticate};
use super::conninfo::{ConnInfo, Host, Place, SessionAttributes, SslMode};
use super::tls;
use super::value::SESSION_PARAMETERS;
use super::wire::Connection;

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Ordinary statements.
    Sql,
    /// `replication=database`: replication commands, and statements by the simple protocol.
    /// Times come as ISO text in UTC, whatever the role's settings.
    Replication,
}

/// One socket to try.
#[derive(Debug, Clone)]
enum Target {
    Tcp { name: String, address: SocketAddr },
    Unix(PathBuf),
}

/// Connects to the first host that will do and logs in.
///
/// As in libpq the next address or host is tried when one cannot be reached, is starting up, or
/// is not what `target_session_attrs` asks for; not after a refused login. Each socket has
/// `connect_timeout`, from its first packet to the end of the login.
///
/// # Errors
/// See [`ConnectError::kind`] for which ones heal.
///
/// # Cancel safety
/// Cancel safe in that nothing is kept: a dropped call closes its socket.
pub async fn connect(info: &ConnInfo, purpose: Purpose) -> Result<Connection, ConnectError> {
    let info = &*info.fresh()?;
    let mut failures = Vec::new();
    for host in &info.hosts {
        let targets = match resolve(info, host).await {
            Ok(targets) => targets,
            Err(error) => {
                failures.push(error);
                continue;
            }
        };
        for target in targets {
            let attempt = Attempt { info, host, target, purpose };
            let outcome = Box::pin(attempt.run()).await;
            match outcome {
                Ok(connection) => return Ok(connection.led_to(attempt.target.pinned(host))),
                Err(error) if error.leaves_other_hosts() => failures.push(error),
                Err(error) => return Err(error),
            }
        }
    }
    Err(ConnectError::of_all(failures))
}

impl Target {
    /// The host that this target belongs to, with this one address.
    fn pinned(self, host: &Host) -> Host {
        match self {
            Target::Tcp { address, .. } => Host { address: Some(address), ..host.clone() },
            Target::Unix(_) => host.clone(),
        }
    }
}

async fn resolve(info: &ConnInfo, host: &Host) -> Result<Vec<Target>, ConnectError> {
    let name = match &host.place {
        Place::Folder(folder) => {
            return Ok(vec![Target::Unix(folder.join(format!(".s.PGSQL.{}", host.port)))]);
        }
        Place::Network(name) => name,
    };
    if let Some(address) = host.address {
        return Ok(vec![Target::Tcp { name: name.clone(), address }]);
    }
    let lookup = tokio::net::lookup_host((name.as_str(), host.port));
    let found = match tokio::time::timeout(info.connect_timeout, lookup).await {
        Ok(found) => found,
        Err(elapsed) => Err(elapsed.into()),
    };
    let addresses = found.map_err(|cause| ConnectError::Resolve { host: name.clone(), cause })?;
    Ok(addresses.map(|address| Target::Tcp { name: name.clone(), address }).collect())
}

/// One target, with the retries that `sslmode` allows on it.
struct Attempt<'a> {
    info: &'a ConnInfo,
    host: &'a Host,
    target: Target,
    purpose: Purpose,
}

/// How the next socket begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    Plain,
    /// TLS, or plain when the server has none.
    TlsIfOffered,
    Tls,
}

impl Attempt<'_> {
    async fn run(&self) -> Result<Connection, ConnectError> {
        let connection = match (&self.target, self.info.ssl_mode) {
            (Target::Unix(_), _) | (Target::Tcp { .. }, SslMode::Disable) => {
                self.open(Opening::Plain).await
            }
            (Target::Tcp { .. }, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => {
                self.open(Opening::Tls).await
            }
            (Target::Tcp { .. }, SslMode::Allow) => match self.open(Opening::Plain).await {
                Err(first) if first.is_of_plain() => {
                    self.open(Opening::Tls).await.map_err(|_| first)
                }
                outcome => outcome,
            },
            (Target::Tcp { .. }, SslMode::Prefer) => match self.open(Opening::TlsIfOffered).await {
                // The first reason is told: the second is mostly that TLS is missing.
                Err(first) if first.is_of_tls() => {
                    self.open(Opening::Plain).await.map_err(|_| first)
                }
                outcome => outcome,
            },
        }?;
        self.check_session(connection).await
    }

    /// One socket, from connect to login, within `connect_timeout`.
    async fn open(&self, opening: Opening) -> Result<Connection, ConnectError> {
        let after = self.info.connect_timeout;
        let login = async {
            let stream = self.open_stream(opening).await?;
            let used_tls = stream.is_tls();
            self.log_in(stream).await.map_err(|error| error.with_tls(used_tls))
        };
        match tokio::time::timeout(after, Box::pin(login)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ConnectError::TimedOut { server: self.host.to_string(), after }),
        }
    }

    async fn open_stream(&self, opening: Opening) -> Result<PgStream, ConnectError> {
        let (name, address) = match &self.target {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| self.unreachable(e))?;
                return Ok(PgStream::Unix(stream));
            }
            Target::Tcp { name, address } => (name, address),
        };
        let mut stream = TcpStream::connect(address).await.map_err(|e| self.unreachable(e))?;
        set_options(&stream, self.info).map_err(|e| self.unreachable(e))?;
        if opening == Opening::Plain {
            return Ok(PgStream::Tcp(stream));
        }
        let config = tls::client_config(self.info)?;
        if !self.ask_for_tls(&mut stream).await? {
            return match opening {
                Opening::TlsIfOffered => Ok(PgStream::Tcp(stream)),
                Opening::Tls | Opening::Plain => {
                    Err(ConnectError::TlsRefused { server: self.host.to_string() })
                }
            };
        }
        let stream = crate::source::tls::handshake(stream, name, config)
            .await
            .map_err(|cause| ConnectError::of_handshake(self.host, cause))?;
        Ok(PgStream::Tls(Box::new(stream)))
    }

    /// SSLRequest is answered by one byte. Exactly one is read: whatever a stranger put after it
    /// must reach the TLS library and fail there (CVE-2021-23222).
    async fn ask_for_tls(&self, stream: &mut TcpStream) -> Result<bool, ConnectError> {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        stream.write_all(&request).await.map_err(|e| self.unreachable(e))?;
        match stream.read_u8().await.map_err(|e| self.unreachable(e))? {
            b'S' => Ok(true),
            b'N' => Ok(false),
            // An error message of a server that could not start a backend; anyone could have
            // written it, so its text is not shown (CVE-2024-10977).
            _ => Err(ConnectError::TlsUnanswered { server: self.host.to_string() }),
        }
    }

    async fn log_in(&self, stream: PgStream) -> Result<Connection, ConnectError> {
        let info = self.info;
        let mut parameters = vec![
            ("user", info.user.as_str()),
            ("database", info.dbname.as_str()),
            ("application_name", info.application_name.as_str()),
        ];
        if let Some(options) = &info.options {
            parameters.push(("options", options));
        }
        match self.purpose {
            Purpose::Sql => parameters.push(("client_encoding", "UTF8")),
            Purpose::Replication => {
                parameters.push(("replication", "database"));
                parameters.extend(SESSION_PARAMETERS);
                if info.takes_any_bytes {
                    parameters.retain(|(name, _)| *name != "client_encoding");
                    parameters.push(("client_encoding", "SQL_ASCII"));
                }
            }
        }
        let protection = Protection {
            is_private: stream.is_tls() || matches!(stream, PgStream::Unix(_)),
            is_tls: stream.is_tls(),
            end_point: tls::server_end_point(&stream),
            binding: info.channel_binding,
        };
        let password = info.password(self.host)?;
        let failed = |cause: AuthError| ConnectError::of_login(info, self.host, cause);
        let mut connection =
            Connection::start(stream, &parameters).await.map_err(|e| failed(e.into()))?;
        authenticate(&mut connection, &info.user, password.as_ref(), protection)
            .await
            .map_err(failed)?;
        // Once a session: the stream's login, and not that of each question.
        let says_warnings = self.purpose == Purpose::Replication;
        connection.become_ready(says_warnings).await.map_err(|e| failed(e.into()))?;
        Ok(connection)
    }

    /// Servers from 14 on report both settings at login; older ones are asked.
    async fn check_session(&self, mut connection: Connection) -> Result<Connection, ConnectError> {
        let (setting, question) = match self.info.session {
            SessionAttributes::Any => return Ok(connection),
            SessionAttributes::Primary => ("in_hot_standby", "SELECT pg_is_in_recovery()"),
            SessionAttributes::ReadWrite => {
                ("default_transaction_read_only", "SHOW transaction_read_only")
            }
        };
        let is_standby = connection.parameter("in_hot_standby") == Some("on");
        let unfit = match connection.parameter(setting) {
            Some(value) => value == "on" || is_standby,
            None => {
                let failed = |cause| ConnectError::of_login(self.info, self.host, cause);
                let answer = tokio::time::timeout(
                    self.info.connect_timeout,
                    connection.simple_query(question),
                );
                let rows = match answer.await {
                    Ok(rows) => rows.map_err(|e| failed(e.into()))?,
                    Err(_) => {
                        let (server, after) = (self.host.to_string(), self.info.connect_timeout);
                        return Err(ConnectError::TimedOut { server, after });
                    }
                };
                let value = rows.first().and_then(|row| row.first()).and_then(Option::as_deref);
                !matches!(value, Some("f" | "off"))
            }
        };
        if unfit {
            return Err(ConnectError::NotPrimary { server: self.host.to_string() });
        }
        Ok(connection)
    }

    fn unreachable(&self, cause: std::io::Error) -> ConnectError {
        ConnectError::Unreachable { server: self.host.to_string(), cause }
    }
}

/// Small status updates must not wait for one another, and a dead peer must be noticed: keepalive
/// does it while nothing is on the way to it, the user timeout while something is.
fn set_options(stream: &TcpStream, info: &ConnInfo) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(info.tcp_user_timeout))?;
    let Some(keepalive) = info.keepalive else { return Ok(()) };
    let options = socket2::TcpKeepalive::new()
        .with_time(keepalive.idle)
        .with_interval(keepalive.interval)
        .with_retries(keepalive.count);
    socket2::SockRef::from(stream).set_tcp_keepalive(&options)
}

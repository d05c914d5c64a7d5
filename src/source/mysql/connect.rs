//! From a checked URL to a connection that is logged in.
//!
//! Owns which host is tried when, TCP and Unix sockets, and when TLS is asked for. It knows no
//! certificate rules (`source/tls.rs`), proofs (`login.rs`) or packets (`wire.rs`).
//!
//! | ssl-mode | TLS |
//! |---|---|
//! | DISABLED | never |
//! | PREFERRED | where the server offers it; a handshake that fails is an error |
//! | REQUIRED | always; whose certificate it is does not matter |
//! | VERIFY_IDENTITY | always, with a certificate for this host from a known authority |
//!
//! A Unix socket never uses TLS, whatever `ssl-mode`.

mod error;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

pub use error::ConnectError;

use super::connection::Connection;
use super::conninfo::{ConnInfo, Host, RootCertificate, SslMode};
use super::login::{Handshake, Login, LoginError, greet, log_in};
use crate::source::socket::Socket;
use crate::source::tls::{self, Authorities, TlsOptions};

/// A peer that is gone without a word is noticed after a minute, not after the system's two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;

/// One socket to try.
#[derive(Debug, Clone)]
enum Target {
    Tcp { name: String, address: SocketAddr },
    Unix(PathBuf),
}

/// Connects to the first host that will do and logs in.
///
/// The next address or host is tried when one cannot be reached, not after a refused login. Each
/// socket has `connect-timeout`, from its first packet to the end of the login.
///
/// # Errors
/// See [`ConnectError::kind`] for which ones heal.
///
/// # Cancel safety
/// Cancel safe in that nothing is kept: a dropped call closes its socket.
pub async fn connect(info: &ConnInfo) -> Result<Connection, ConnectError> {
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
            let attempt = Attempt { info, host, target };
            match Box::pin(attempt.run()).await {
                Ok(connection) => return Ok(connection),
                Err(error) if error.leaves_other_hosts() => failures.push(error),
                Err(error) => return Err(error),
            }
        }
    }
    Err(ConnectError::of_all(failures))
}

async fn resolve(info: &ConnInfo, host: &Host) -> Result<Vec<Target>, ConnectError> {
    let (name, port) = match host {
        Host::Socket(path) => return Ok(vec![Target::Unix(path.clone())]),
        Host::Network { name, port } => (name, *port),
    };
    let lookup = tokio::net::lookup_host((name.as_str(), port));
    let found = match tokio::time::timeout(info.connect_timeout, lookup).await {
        Ok(found) => found,
        Err(elapsed) => Err(elapsed.into()),
    };
    let addresses = found.map_err(|cause| ConnectError::Resolve { host: name.clone(), cause })?;
    Ok(addresses.map(|address| Target::Tcp { name: name.clone(), address }).collect())
}

/// One target.
struct Attempt<'a> {
    info: &'a ConnInfo,
    host: &'a Host,
    target: Target,
}

impl Attempt<'_> {
    /// One socket, from connect to login, within `connect-timeout`.
    async fn run(&self) -> Result<Connection, ConnectError> {
        let after = self.info.connect_timeout;
        match tokio::time::timeout(after, Box::pin(self.open())).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ConnectError::TimedOut { server: self.host.to_string(), after }),
        }
    }

    async fn open(&self) -> Result<Connection, ConnectError> {
        let info = self.info;
        let failed = |cause: LoginError| ConnectError::of_login(info, self.host, cause);
        let mut connection = Connection::new(self.open_socket().await?);
        let handshake = greet(&mut connection).await.map_err(failed)?;
        let wants_tls = match (&self.target, info.ssl_mode) {
            (Target::Unix(_), _) | (Target::Tcp { .. }, SslMode::Disabled) => false,
            (Target::Tcp { .. }, SslMode::Preferred) => handshake.offers_tls(),
            (Target::Tcp { .. }, SslMode::Required | SslMode::VerifyIdentity) => {
                if !handshake.offers_tls() {
                    return Err(ConnectError::TlsRefused { server: self.host.to_string() });
                }
                true
            }
        };
        if wants_tls {
            connection = self.begin_tls(connection, &handshake).await?;
        }
        let password = info.password()?;
        let login = Login {
            user: &info.user,
            password: password.as_ref(),
            database: info.database.as_deref(),
            tls: wants_tls,
            is_private: wants_tls || matches!(self.target, Target::Unix(_)),
            may_be_clear: may_be_clear(info, matches!(self.target, Target::Unix(_))),
            may_use_key: info.trusts_server_key,
        };
        log_in(&mut connection, &handshake, login).await.map_err(failed)?;
        connection.set_server(info.only(self.host));
        Ok(connection)
    }

    async fn open_socket(&self) -> Result<Socket, ConnectError> {
        let unreachable =
            |cause: io::Error| ConnectError::Unreachable { server: self.host.to_string(), cause };
        match &self.target {
            Target::Unix(path) => {
                Ok(Socket::Unix(UnixStream::connect(path).await.map_err(unreachable)?))
            }
            Target::Tcp { address, .. } => {
                let stream = TcpStream::connect(address).await.map_err(unreachable)?;
                set_options(&stream).map_err(unreachable)?;
                Ok(Socket::Tcp(stream))
            }
        }
    }

    /// Asks for TLS, which the server has offered, and makes it.
    async fn begin_tls(
        &self,
        mut connection: Connection,
        handshake: &Handshake,
    ) -> Result<Connection, ConnectError> {
        let config = tls::client_config(tls_options(self.info))?;
        let failed = |cause: LoginError| ConnectError::of_login(self.info, self.host, cause);
        let request = handshake.head(self.info.database.as_deref(), true);
        connection.send(&request).await.map_err(|error| failed(error.into()))?;
        let greeting = connection.greeting().clone();
        let (Target::Tcp { name, .. }, Some((Socket::Tcp(stream), sequence))) =
            (&self.target, connection.into_bare_socket())
        else {
            return Err(ConnectError::Injected { server: self.host.to_string() });
        };
        let stream = tls::handshake(stream, name, config)
            .await
            .map_err(|cause| ConnectError::of_handshake(self.host, cause))?;
        Ok(Connection::resume(Socket::Tls(Box::new(stream)), sequence, greeting))
    }
}

/// Whether the password may go in clear where nobody listens.
pub(super) fn may_be_clear(info: &ConnInfo, is_socket: bool) -> bool {
    is_socket || info.ssl_mode == SslMode::VerifyIdentity || info.trusts_cleartext
}

/// What `ssl-mode` means for certificates.
pub(super) fn tls_options(info: &ConnInfo) -> TlsOptions<'_> {
    let verified = match info.ssl_mode {
        SslMode::VerifyIdentity => true,
        SslMode::Disabled | SslMode::Preferred | SslMode::Required => false,
    };
    TlsOptions {
        authorities: match &info.authorities {
            _ if !verified => Authorities::Any,
            RootCertificate::File(path) => Authorities::File(path),
            RootCertificate::System => Authorities::System,
        },
        check_name: verified,
        client_certificate: info.client_certificate(),
    }
}

/// Small commands must not wait for one another, and a dead peer must be noticed.
pub(super) fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let options = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_COUNT);
    socket2::SockRef::from(stream).set_tcp_keepalive(&options)
}

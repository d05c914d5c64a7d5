//! A connection to the broker with its publishing channel, and how to be sure that it is gone.
//!
//! Owns TLS, the socket and the client library's thread; knows nothing of messages.
//!
//! `Unknown` may only be given when the earlier attempt can no longer land, and the client
//! library keeps what it has not written: a publish given up on still arrives once the broker
//! reads again. So a link ends in three steps: ask the broker to close (it answers after all that
//! came before); else cut the socket so that unsent bytes are discarded; then join the thread.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use socket2::{SockRef, Socket};
use tokio::time::timeout;

use super::exchanges::{ACCESS_REFUSED, reply_code};
use super::target::{Access, Target};
use crate::failure::Failure;

/// From the first packet to an open channel.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the broker to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// For the library's thread to end once its socket is dead.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Reply code `not-allowed`: no such vhost, or no access to it.
const NOT_ALLOWED: u16 = 530;

/// An open connection with a channel in confirm mode.
pub(super) struct Link {
    connection: Arc<Connection>,
    channel: Channel,
    /// A second handle of the library's socket, to cut it.
    socket: Arc<Mutex<Option<Socket>>>,
}

impl Link {
    /// Connects, within [`CONNECT_TIMEOUT`].
    ///
    /// # Errors
    /// Transient, or denied where user, password or vhost were refused.
    pub(super) async fn connect(target: &Target) -> Result<Self, Failure> {
        let socket = Arc::new(Mutex::new(None));
        let access = target.access()?;
        let user = access.uri.authority.userinfo.username.clone();
        let refused = match timeout(CONNECT_TIMEOUT, open(access, target, socket.clone())).await {
            Ok(Ok((connection, channel))) => {
                return Ok(Self { connection: Arc::new(connection), channel, socket });
            }
            Ok(Err(error)) => failure(target, &user, &error),
            Err(_) => Failure::transient(format!(
                "{} did not answer within {} seconds",
                target.place(),
                CONNECT_TIMEOUT.as_secs()
            )),
        };
        cut(&socket);
        Err(refused)
    }

    /// The channel; only one task may publish on it, or confirms are swapped.
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// For further channels and for events; all clones are gone before [`Link::end`].
    pub(super) fn connection(&self) -> Arc<Connection> {
        self.connection.clone()
    }

    /// Whether connection and channel still stand, as far as is known here.
    pub(super) fn is_open(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Largest frame that was agreed on.
    pub(super) fn frame_bytes_max(&self) -> usize {
        match self.connection.configuration().frame_max() {
            0 => usize::MAX,
            bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }

    /// Ends the connection; afterwards nothing of it is sent any more. At most
    /// [`CLOSE_TIMEOUT`] + [`JOIN_TIMEOUT`].
    pub(super) async fn end(self) {
        let Self { connection, channel, socket } = self;
        // Either is fine: a connection that is already lost cannot be closed.
        let closed = timeout(CLOSE_TIMEOUT, connection.close(200, "OK".into())).await;
        tracing::debug!(clean = matches!(closed, Ok(Ok(()))), "RabbitMQ connection closed");
        cut(&socket);
        drop(channel);
        let Ok(connection) = Arc::try_unwrap(connection) else { return };
        let joining = tokio::task::spawn_blocking(move || connection.run());
        if timeout(JOIN_TIMEOUT, joining).await.is_err() {
            tracing::warn!("the RabbitMQ client's thread outlives its closed socket");
        }
    }
}

async fn open(
    access: Access,
    target: &Target,
    socket: Arc<Mutex<Option<Socket>>>,
) -> Result<(Connection, Channel), lapin::Error> {
    let properties = ConnectionProperties::default()
        .with_connection_name(target.client_name().into())
        .with_client_property("product".into(), "walpost".into());
    let runtime = lapin::runtime::default_runtime()?;
    let Access { uri, certificates } = access;
    let connection = Connection::connector(
        uri,
        runtime,
        async move |uri: AMQPUri, runtime| {
            let AMQPAuthority { host, port, .. } = &uri.authority;
            let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
            let addresses: Vec<SocketAddr> = found.collect();
            let stream = AsyncTcpStream::connect(&runtime, addresses.as_slice()).await?;
            if let AsyncTcpStream::Plain(plain) = &stream {
                let second = SockRef::from(plain.get_ref()).try_clone()?;
                *socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(second);
            }
            if uri.scheme == AMQPScheme::AMQP {
                return Ok(stream);
            }
            let tls = OwnedTLSConfig { identity: None, cert_chain: certificates.clone() };
            Ok(stream.into_tls(host, tls.as_ref()).await?)
        },
        properties,
    )
    .await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

fn failure(target: &Target, user: &str, error: &lapin::Error) -> Failure {
    let place = target.place();
    match reply_code(error) {
        Some(ACCESS_REFUSED) => Failure::denied(format!(
            "{place} refused the login of user \"{user}\": {error}; check the user and password"
        )),
        Some(NOT_ALLOWED) => Failure::denied(format!(
            "{place} is not open to user \"{user}\": {error}; make the vhost, or let the user in \
             with rabbitmqctl set_permissions"
        )),
        _ => Failure::transient(format!("could not connect to {place}: {error}")),
    }
}

/// Makes the socket dead at once: what the kernel has not sent yet is discarded with it.
fn cut(socket: &Mutex<Option<Socket>>) {
    let Some(socket) = socket.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    // Both fail only on a socket that is dead already.
    drop(socket.set_linger(Some(Duration::ZERO)));
    drop(socket.shutdown(std::net::Shutdown::Both));
}

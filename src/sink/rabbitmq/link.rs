//! A connection to the broker with its publishing channel, and how to be sure that it is gone.
//!
//! Owns URL, TLS, the socket and the client library's thread; knows nothing of messages.
//!
//! `Unknown` may only be given when the earlier attempt can no longer land, and the client
//! library keeps what it has not written: a publish given up on still arrives once the broker
//! reads again. So a link ends in three steps: ask the broker to close (it answers after all that
//! came before); else cut the socket so that unsent bytes are discarded; then join the thread.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties};
use percent_encoding::percent_decode_str;
use socket2::{SockRef, Socket};
use tokio::time::timeout;

use super::exchanges::{ACCESS_REFUSED, reply_code};
use crate::failure::Failure;
use crate::sink::OpenError;

/// From the first packet to an open channel.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the broker to answer a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// For the library's thread to end once its socket is dead.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Reply code `not-allowed`: no such vhost, or no access to it.
const NOT_ALLOWED: u16 = 530;

/// Where to connect, and as whom. Never printed: it holds the password.
pub(super) struct Target {
    uri: AMQPUri,
    certificates: Option<String>,
    client_name: String,
}

impl Target {
    /// Reads the URL, here and not with the library, which takes an IPv6 address for localhost.
    pub(super) fn new(
        url: &str,
        heartbeat: Duration,
        ca_file: Option<&Path>,
        client_name: &str,
    ) -> Result<Self, OpenError> {
        let refused = |what: &str| OpenError::Url {
            problem: format!("{what}; one looks like amqp://user:password@host:5672/vhost"),
        };
        let url = url::Url::parse(url).map_err(|_| refused("cannot be read"))?;
        let scheme = match url.scheme() {
            "amqp" => AMQPScheme::AMQP,
            "amqps" => AMQPScheme::AMQPS,
            _ => return Err(refused("is neither amqp:// nor amqps://")),
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| refused("has no host"))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("takes no parameters: set options in [sink] instead"));
        }
        let decode = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8();
            decoded
                .map(|text| text.into_owned())
                .map_err(|_| refused("has a part that is no UTF-8"))
        };
        let userinfo = match (url.username(), url.password()) {
            ("", None) => AMQPUserInfo { username: "guest".into(), password: "guest".into() },
            (user, password) => AMQPUserInfo {
                username: decode(user)?,
                password: decode(password.unwrap_or_default())?,
            },
        };
        let vhost = match url.path().strip_prefix('/').unwrap_or_default() {
            "" => "/".to_owned(),
            vhost => decode(vhost)?,
        };
        let port = url.port().unwrap_or_else(|| scheme.default_port());
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let seconds = u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX);
        let query = AMQPQueryString { heartbeat: Some(seconds), ..Default::default() };
        let certificates = match ca_file {
            None => None,
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                let path = path.display();
                OpenError::Option { problem: format!("ca_file: could not read {path}: {error}") }
            })?),
        };
        let authority = AMQPAuthority { userinfo, host, port };
        let client_name = client_name.to_owned();
        let uri = AMQPUri { scheme, authority, vhost, query };
        Ok(Self { uri, certificates, client_name })
    }

    fn place(&self) -> String {
        let AMQPUri { authority, vhost, .. } = &self.uri;
        format!("RabbitMQ at {}:{}, vhost \"{vhost}\"", authority.host, authority.port)
    }
}

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
        let refused = match timeout(CONNECT_TIMEOUT, open(target, socket.clone())).await {
            Ok(Ok((connection, channel))) => {
                return Ok(Self { connection: Arc::new(connection), channel, socket });
            }
            Ok(Err(error)) => failure(target, &error),
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
    target: &Target,
    socket: Arc<Mutex<Option<Socket>>>,
) -> Result<(Connection, Channel), lapin::Error> {
    let properties = ConnectionProperties::default()
        .with_connection_name(target.client_name.as_str().into())
        .with_client_property("product".into(), "walpost".into());
    let runtime = lapin::runtime::default_runtime()?;
    let certificates = target.certificates.clone();
    let connection = Connection::connector(
        target.uri.clone(),
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

fn failure(target: &Target, error: &lapin::Error) -> Failure {
    let place = target.place();
    let user = &target.uri.authority.userinfo.username;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<AMQPUri, OpenError> {
        Target::new(url, Duration::from_secs(20), None, "test").map(|target| target.uri)
    }

    #[test]
    fn a_url_gives_user_host_and_vhost() {
        let uri = target("amqps://us%40er:p%2Fw@broker.example/my%2Fhost").unwrap();
        assert_eq!(uri.authority.userinfo.username, "us@er");
        assert_eq!(uri.authority.userinfo.password, "p/w");
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("broker.example", 5671));
        assert_eq!(uri.vhost, "my/host");
        assert_eq!(target("amqp://broker").unwrap().vhost, "/");
        assert_eq!(target("amqp://broker/").unwrap().vhost, "/");
    }

    #[test]
    fn an_ipv6_address_is_not_taken_for_localhost() {
        assert_eq!(target("amqp://[::1]:5673").unwrap().authority.host, "::1");
    }

    #[test]
    fn a_wrong_url_is_refused_without_being_repeated() {
        for url in ["amqp://", "amqp:secret", "amqp://u:secret@host/?heartbeat=5", "amqp://:x:y"] {
            let error = target(url).unwrap_err().to_string();
            assert!(error.contains("amqp://user:password@host:5672/vhost"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}

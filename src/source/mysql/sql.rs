//! Ordinary SQL by `mysql_async`, with the same hosts, TLS and password as the stream's
//! connection.
//!
//! Owns how our choices are told to that library. What it cannot do as we do it, it is not asked
//! for: a mode of TLS that checks only the chain is refused where the URL is read.

mod guard;

use std::io::ErrorKind;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{ClientIdentity, Conn, DriverError, IoError, OptsBuilder, SslOpts};
use rustls::RootCertStore;

use super::connect::{ConnectError, may_be_clear, tls_options};
use super::connection::WireError;
use super::conninfo::{ConnInfo, Host, SslMode};
use super::login::LoginError;
use super::wire::ServerError;
use crate::source::tls::{self, CertificateFileError};
use guard::Guard;

/// Statements that are kept prepared; ours are few, and the rest take memory on the server.
const STATEMENTS_MAX: usize = 16;

/// How long nothing is heard before the other side is asked whether it lives. An answer may take
/// its time; a host that is gone never gives it.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// ER_ACCESS_DENIED_ERROR
const ACCESS_DENIED: u16 = 1045;

/// What the server, the account or its defaults may have otherwise. Values are read as the binlog
/// has them: moments in UTC, text in UTF-8, no padding, invalid dates as they are. A backslash and
/// a quote mean what they mean in our statements, and a lax mode cuts nothing that they write. No
/// limit of the server's ends a long answer, and no statement waits for a lock for longer than
/// anybody waits for it.
///
/// The comments are statements of one kind of server each: MySQL reads what stands behind `!80000`,
/// MariaDB what stands behind `M!`.
const SESSION: &str = "SET SESSION time_zone = '+00:00', sql_mode = 'TRADITIONAL', \
     character_set_client = utf8mb4, character_set_connection = utf8mb4, \
     character_set_results = utf8mb4, autocommit = 1, completion_type = 0, \
     sql_select_limit = 18446744073709551615, sql_big_selects = 1, sql_safe_updates = 0, \
     sql_auto_is_null = 0, max_sort_length = 12288, wait_timeout = 28800, \
     net_write_timeout = 3600, lock_wait_timeout = 5, innodb_lock_wait_timeout = 5 \
     /*!80000 , max_execution_time = 0 */ \
     /*M!100601 , max_statement_time = 0, idle_transaction_timeout = 0, \
     idle_readonly_transaction_timeout = 0, idle_write_transaction_timeout = 0 */";

/// Connects for ordinary statements to the first host that will do.
///
/// A statement that changes rows counts those that it found, not only those that it changed
/// (`CLIENT_FOUND_ROWS`): whether a row was ours to write must not depend on what was written.
///
/// # Errors
/// As [`connect`](super::connect::connect).
///
/// # Cancel safety
/// Cancel safe in that nothing is kept: a dropped call closes its socket.
pub async fn sql_connect(info: &ConnInfo) -> Result<Conn, ConnectError> {
    use_our_provider();
    let info = &*info.fresh()?;
    let mut failures = Vec::new();
    for host in &info.hosts {
        match Box::pin(connect_to(info, host)).await {
            Ok(conn) => return Ok(conn),
            Err(error) if error.leaves_other_hosts() => failures.push(error),
            Err(error) => return Err(error),
        }
    }
    Err(ConnectError::of_all(failures))
}

async fn connect_to(info: &ConnInfo, host: &Host) -> Result<Conn, ConnectError> {
    let is_socket = matches!(host, Host::Socket(_));
    let wants_tls = !is_socket && info.ssl_mode != SslMode::Disabled;
    let first = log_in(info, host, wants_tls).await;
    match (first, info.ssl_mode) {
        (Err(ConnectError::TlsRefused { .. }), SslMode::Preferred) => {
            log_in(info, host, false).await
        }
        (outcome, _) => outcome,
    }
}

/// A refusal is asked for once more: `mysql_common` (0.37.3) cuts a zero off the end of the 32
/// random bytes that MariaDB's ed25519 wants signed, so one login of 256 is refused for nothing.
async fn log_in(info: &ConnInfo, host: &Host, tls: bool) -> Result<Conn, ConnectError> {
    match try_log_in(info, host, tls).await {
        Err(ConnectError::Refused { cause, .. }) if cause.code == ACCESS_DENIED => {
            try_log_in(info, host, tls).await
        }
        outcome => outcome,
    }
}

async fn try_log_in(info: &ConnInfo, host: &Host, tls: bool) -> Result<Conn, ConnectError> {
    let password = info.password()?;
    let is_socket = matches!(host, Host::Socket(_));
    // An empty password is never asked for.
    let has_password = password.as_ref().is_some_and(|password| !password.expose().is_empty());
    let guard = match host {
        Host::Network { name, port } if !tls && has_password && !info.trusts_server_key => {
            let guard = Guard::open(name.clone(), *port).await;
            let server = host.to_string();
            Some(guard.map_err(|cause| ConnectError::Unreachable { server, cause })?)
        }
        Host::Network { .. } | Host::Socket(_) => None,
    };
    let mut options = OptsBuilder::default()
        .user(Some(info.user.clone()))
        .pass(password.map(|password| password.expose().to_owned()))
        .db_name(info.database.clone())
        // Left alone it would look for a socket of the server's and change over to that.
        .prefer_socket(false)
        .client_found_rows(true)
        .tcp_keepalive(Some(KEEPALIVE))
        .enable_cleartext_plugin((tls || is_socket) && may_be_clear(info, is_socket))
        .stmt_cache_size(STATEMENTS_MAX);
    options = match host {
        Host::Network { name, port } => match &guard {
            Some(guard) => {
                let (ip, port) = (guard.address.ip().to_string(), guard.address.port());
                options.ip_or_hostname(ip).tcp_port(port)
            }
            None => options.ip_or_hostname(name.clone()).tcp_port(*port),
        },
        Host::Socket(path) => options.socket(Some(path.to_string_lossy().into_owned())),
    };
    if tls {
        options = options.ssl_opts(ssl_options(info)?);
    }
    let after = info.connect_timeout;
    let opening = async {
        let mut conn = Conn::new(options).await?;
        conn.query_drop(SESSION).await?;
        Ok(conn)
    };
    match tokio::time::timeout(after, opening).await {
        Ok(Ok(conn)) => Ok(conn),
        Ok(Err(_)) if guard.is_some_and(|guard| guard.has_refused()) => {
            Err(ConnectError::of_login(info, host, LoginError::WholePassword))
        }
        Ok(Err(error)) => Err(of_library(info, host, error, tls)),
        Err(_) => Err(ConnectError::TimedOut { server: host.to_string(), after }),
    }
}

fn ssl_options(info: &ConnInfo) -> Result<SslOpts, CertificateFileError> {
    let options = tls_options(info);
    let identity = options.client_certificate.map(|(certificate, key)| {
        ClientIdentity::new(certificate.to_owned().into(), key.to_owned().into())
    });
    let ssl = SslOpts::default().with_client_identity(identity);
    let Some(certificates) = tls::certificates(options.authorities)? else {
        // Encrypted, and no more: that is what the mode says.
        return Ok(ssl
            .with_danger_accept_invalid_certs(true)
            .with_danger_skip_domain_validation(true));
    };
    // One that cannot be read would fail the whole, and a system has some.
    let usable = certificates.into_iter().filter(|certificate| {
        RootCertStore::empty().add_parsable_certificates([certificate.clone()]).0 == 1
    });
    let roots = usable.map(|certificate| certificate.to_vec().into()).collect();
    Ok(ssl.with_root_certs(roots).with_disable_built_in_roots(true))
}

/// The library asks rustls for the provider of the process, and rustls panics where several are
/// built in and none was chosen. A choice of the embedding program stands.
fn use_our_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else was faster: as good.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    }
}

fn of_library(info: &ConnInfo, host: &Host, error: mysql_async::Error, tls: bool) -> ConnectError {
    use mysql_async::Error;
    match error {
        Error::Server(error) => {
            let (code, state, message) = (error.code, error.state, error.message);
            let cause = WireError::Server(Box::new(ServerError { code, state, message }));
            ConnectError::of_login(info, host, cause.into())
        }
        Error::Driver(DriverError::NoClientSslFlagFromServer) => {
            ConnectError::TlsRefused { server: host.to_string() }
        }
        Error::Driver(DriverError::UnknownAuthPlugin { name }) => {
            ConnectError::of_login(info, host, LoginError::Unsupported(name))
        }
        Error::Driver(DriverError::CleartextPluginDisabled) => {
            let cause = if tls { LoginError::Unchecked } else { LoginError::PlainText };
            ConnectError::of_login(info, host, cause)
        }
        Error::Io(IoError::Io(cause)) if is_of_tls(&cause) => {
            ConnectError::of_handshake(host, cause)
        }
        Error::Io(IoError::Io(cause)) => {
            let cause = match cause.kind() {
                ErrorKind::UnexpectedEof => std::io::Error::new(cause.kind(), CLOSED),
                _ => cause,
            };
            ConnectError::Unreachable { server: host.to_string(), cause }
        }
        error @ (Error::Driver(_)
        | Error::Io(IoError::Tls(_))
        | Error::Other(_)
        | Error::Url(_)) => ConnectError::of_login(info, host, LoginError::Sql(Box::new(error))),
    }
}

const CLOSED: &str = "the server closed the connection";

/// An error of the library once and in plain words: its own text comes with its cause, which says
/// the same again, and with an address of the TLS library's documentation.
pub(super) fn plain(error: &mysql_async::Error) -> String {
    use mysql_async::Error;
    match error {
        Error::Server(error) => format!("{} (error {})", error.message, error.code),
        Error::Io(IoError::Io(cause)) if cause.kind() == ErrorKind::UnexpectedEof => CLOSED.into(),
        Error::Io(IoError::Io(cause)) => cause.to_string(),
        Error::Driver(DriverError::ConnectionClosed) => CLOSED.into(),
        error => error.to_string(),
    }
}

/// A handshake's error comes wrapped in one of the socket's.
fn is_of_tls(cause: &std::io::Error) -> bool {
    cause.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

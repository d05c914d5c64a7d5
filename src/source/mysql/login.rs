//! Proves to the server who we are.
//!
//! Owns the handshake's packets, and which proof may be sent over which connection. It does not
//! know hosts or sockets.
//!
//! ```text
//! server: greeting (nonce, plugin)          client: [TLS request ▸ TLS] response (user, proof)
//! server: OK │ error │ other plugin, nonce  client: proof
//! ```
//!
//! | plugin | proof | servers |
//! |---|---|---|
//! | `caching_sha2_password` | SHA-256 over the nonce; at first use since the server's start the password itself, by TLS, a Unix socket, or, where that was allowed, the server's RSA key | MySQL 8.0 to 9.7 |
//! | `mysql_native_password` | SHA-1 over the nonce | MySQL to 8.4, MariaDB |
//! | `client_ed25519` | a signature of the nonce | MariaDB |
//! | `mysql_clear_password` | the password itself (PAM, LDAP), by a Unix socket, or by TLS with a certificate that was checked or where that was allowed | both |
//!
//! The RSA key comes over the same connection as everything else, so it protects from those who
//! listen, not from those who stand in between; and any server can ask for the clear password. As
//! with MySQL's own clients, both have to be asked for (`get-server-public-key`,
//! `enable-cleartext-plugin`).
//!
//! Source: MySQL internals documentation, "Connection Phase"; MariaDB's "Connection".
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

mod plugin;

use mysql_common::constants::CapabilityFlags;

use super::connection::{Connection, Greeting, WireError, unexpected};
use super::wire::{EOF, OK, Reader};
use crate::secret::SecretText;
use plugin::Plugin;

/// The only version of the handshake that is left.
const PROTOCOL_VERSION: u8 = 10;
/// utf8mb4_general_ci, which all servers know: names and values come as UTF-8.
const COLLATION: u8 = 45;
/// What we say we would take; the server cuts nothing by it.
const PACKET_BYTES_MAX: u32 = 1 << 30;
/// More data for the same plugin.
const MORE: u8 = 0x01;
/// A server may offer an account's plugins one after the other.
const SWITCHES_MAX: usize = 4;
/// Messages of one login; the longest has seven.
const MESSAGES_MAX: usize = 16;

/// Why a login did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// A password would have gone over the network for all to read.
    #[error(
        "the server asks for the password in clear text over a connection without TLS: set \
         ssl-mode=VERIFY_IDENTITY"
    )]
    PlainText,
    /// The whole password is wanted over a connection that anybody may have taken over.
    #[error(
        "the server asks for the whole password, as caching_sha2_password does at an account's \
         first login since the server's start, and this connection has no TLS: whoever stands in \
         between could have it. Use TLS (ssl-mode=VERIFY_IDENTITY, or REQUIRED), or a Unix socket \
         (?socket=/path); on a network that you trust, such as localhost, add \
         get-server-public-key=true to the URL"
    )]
    WholePassword,
    /// The clear password is wanted by a server that nobody checked.
    #[error(
        "the server asks for the password in clear text, and its certificate was not checked: set \
         ssl-mode=VERIFY_IDENTITY; on a network that you trust, add enable-cleartext-plugin=true \
         to the URL"
    )]
    Unchecked,
    /// No plugin that is built in.
    #[error(
        "the server asks for the authentication plugin \"{0}\", which is not built in: give the \
         account caching_sha2_password (MySQL), or mysql_native_password or ed25519 (MariaDB); or \
         look at the user in the URL: a server also answers so for one that it does not have"
    )]
    Unsupported(String),
    /// The handshake of another age.
    #[error("the server's protocol is too old: {0}")]
    TooOld(&'static str),
    /// An RSA key that is none, or too small for the password.
    #[error("the server's RSA key cannot encrypt the password: set ssl-mode=REQUIRED")]
    ServerKey,
    /// The connection failed, or the server refused.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The client for ordinary SQL could not log in.
    #[error(transparent)]
    Sql(#[from] Box<mysql_async::Error>),
}

/// What a login answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handshake {
    pub(super) greeting: Greeting,
    capabilities: CapabilityFlags,
    nonce: Vec<u8>,
    plugin: String,
}

impl Handshake {
    pub(super) fn offers_tls(&self) -> bool {
        self.capabilities.contains(CapabilityFlags::CLIENT_SSL)
    }

    /// ```text
    /// version u8 │ server version, 0 │ session u32 │ nonce 8 │ 0 │ capabilities u16 │ collation
    /// u8 │ status u16 │ capabilities u16 │ length of nonce u8 │ 10 reserved │ nonce │ plugin, 0
    /// ```
    fn parse(payload: &[u8]) -> Result<Self, LoginError> {
        let mut reader = Reader(payload);
        if reader.u8() != Some(PROTOCOL_VERSION) {
            return Err(LoginError::TooOld("it has another handshake"));
        }
        Self::parse_body(reader).ok_or(WireError::Malformed("greeting"))?
    }

    fn parse_body(mut reader: Reader<'_>) -> Option<Result<Self, LoginError>> {
        let version = String::from_utf8_lossy(reader.text()).into_owned();
        let greeting = Greeting { version, session: reader.u32()? };
        let mut nonce = reader.array::<8>()?.to_vec();
        reader.u8()?;
        let low = reader.u16()?;
        reader.array::<3>()?;
        let high = reader.u16()?;
        let bits = u32::from(low) | u32::from(high) << 16;
        let capabilities = CapabilityFlags::from_bits_retain(bits);
        for (needed, what) in [
            (CapabilityFlags::CLIENT_PROTOCOL_41, "it has no protocol 4.1"),
            (CapabilityFlags::CLIENT_SECURE_CONNECTION, "it has no secure authentication"),
            (CapabilityFlags::CLIENT_PLUGIN_AUTH, "it has no authentication plugins"),
        ] {
            if !capabilities.contains(needed) {
                return Some(Err(LoginError::TooOld(what)));
            }
        }
        let length = usize::from(reader.u8()?);
        reader.array::<10>()?;
        nonce.extend_from_slice(reader.bytes(length.saturating_sub(8).max(13))?);
        trim_nonce(&mut nonce);
        let plugin = String::from_utf8_lossy(reader.text()).into_owned();
        Some(Ok(Self { greeting, capabilities, nonce, plugin }))
    }

    /// What we ask for, of what the server has.
    fn wanted(&self, database: Option<&str>, tls: bool) -> CapabilityFlags {
        let mut wanted = CapabilityFlags::CLIENT_LONG_PASSWORD
            | CapabilityFlags::CLIENT_FOUND_ROWS
            | CapabilityFlags::CLIENT_LONG_FLAG
            | CapabilityFlags::CLIENT_PROTOCOL_41
            | CapabilityFlags::CLIENT_TRANSACTIONS
            | CapabilityFlags::CLIENT_SECURE_CONNECTION
            | CapabilityFlags::CLIENT_PLUGIN_AUTH
            | CapabilityFlags::CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA
            | CapabilityFlags::CLIENT_CONNECT_ATTRS;
        wanted.set(CapabilityFlags::CLIENT_CONNECT_WITH_DB, database.is_some());
        wanted.set(CapabilityFlags::CLIENT_SSL, tls);
        // MariaDB leaves this one out to say that it is no MySQL; it takes it from us all the same.
        wanted & (self.capabilities | CapabilityFlags::CLIENT_LONG_PASSWORD)
    }

    /// The beginning of a response, and all of a request for TLS.
    ///
    /// ```text
    /// capabilities u32 │ largest packet u32 │ collation u8 │ 23 zero
    /// ```
    pub(super) fn head(&self, database: Option<&str>, tls: bool) -> Vec<u8> {
        let mut head = self.wanted(database, tls).bits().to_le_bytes().to_vec();
        head.extend_from_slice(&PACKET_BYTES_MAX.to_le_bytes());
        head.push(COLLATION);
        head.resize(32, 0);
        head
    }
}

/// What a login is made with.
pub(super) struct Login<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a SecretText>,
    pub(super) database: Option<&'a str>,
    pub(super) tls: bool,
    /// TLS, or a socket of this machine: nobody listens.
    pub(super) is_private: bool,
    /// Nobody stands in between, or that was declared to be no matter: the password may be sent in
    /// clear, where also `is_private`.
    pub(super) may_be_clear: bool,
    /// As `may_be_clear`, encrypted for a key of the server's.
    pub(super) may_use_key: bool,
}

/// Reads the server's greeting; it comes unasked.
///
/// # Cancel safety
/// Cancel safe.
pub(super) async fn greet(connection: &mut Connection) -> Result<Handshake, LoginError> {
    let payload = connection.receive().await?;
    let handshake = Handshake::parse(&payload)?;
    connection.greeting = handshake.greeting.clone();
    Ok(handshake)
}

/// Answers the greeting, and what is asked then, up to the server's OK.
///
/// # Cancel safety
/// Not cancel safe; drop the connection.
pub(super) async fn log_in(
    connection: &mut Connection,
    handshake: &Handshake,
    login: Login<'_>,
) -> Result<(), LoginError> {
    let password = login.password.map(|secret| secret.expose().as_bytes()).unwrap_or_default();
    // What the server would rather have; where we cannot, it will ask for the account's own.
    let mut plugin = match Plugin::named(&handshake.plugin) {
        Some(first @ (Plugin::CachingSha2 | Plugin::Native)) => first,
        Some(Plugin::Ed25519 | Plugin::Clear) | None => Plugin::Native,
    };
    let mut nonce = handshake.nonce.clone();
    let proof = plugin.proof(password, &nonce, &login)?;
    connection.send(&response(handshake, &login, plugin, &proof)).await?;
    let mut switches = 0;
    for _ in 0..MESSAGES_MAX {
        let payload = connection.receive().await?;
        match payload.first() {
            Some(&OK) => {
                connection.become_ready();
                return Ok(());
            }
            Some(&EOF) if switches < SWITCHES_MAX => {
                switches += 1;
                (plugin, nonce) = switched(&payload)?;
                let proof = plugin.proof(password, &nonce, &login)?;
                connection.send(&proof).await?;
            }
            Some(&MORE) if plugin == Plugin::CachingSha2 => match payload.get(1) {
                Some(&plugin::FAST_OK) => {}
                Some(&plugin::FULL) if login.is_private => {
                    connection.send(&plugin::clear(password)).await?;
                }
                Some(&plugin::FULL) if !login.may_use_key => return Err(LoginError::WholePassword),
                Some(&plugin::FULL) => {
                    connection.send(&[plugin::KEY_REQUEST]).await?;
                    let answer = connection.receive().await?;
                    let Some(key) = answer.strip_prefix(&[MORE]) else {
                        return Err(unexpected(&answer, "a request for its RSA key").into());
                    };
                    connection.send(&plugin::encrypt(password, &nonce, key)?).await?;
                }
                Some(_) | None => return Err(unexpected(&payload, "a proof").into()),
            },
            Some(_) | None => return Err(unexpected(&payload, "a proof").into()),
        }
    }
    Err(WireError::Malformed("login that does not end").into())
}

/// ```text
/// head │ user, 0 │ proof lenenc │ [ database, 0 ] │ plugin, 0 │ attributes lenenc
/// ```
fn response(handshake: &Handshake, login: &Login<'_>, plugin: Plugin, proof: &[u8]) -> Vec<u8> {
    let mut out = handshake.head(login.database, login.tls);
    let wanted = handshake.wanted(login.database, login.tls);
    put_text(login.user, &mut out);
    // A proof is shorter than 251 bytes but for a clear password, which no greeting asks for; its
    // length is one byte with and without `PLUGIN_AUTH_LENENC_CLIENT_DATA`.
    put_short(proof, &mut out);
    if let Some(database) = login.database {
        put_text(database, &mut out);
    }
    put_text(plugin.name(), &mut out);
    if wanted.contains(CapabilityFlags::CLIENT_CONNECT_ATTRS) {
        let mut attributes = Vec::new();
        for (key, value) in [
            ("program_name", "walpost"),
            ("_client_name", "walpost"),
            ("_client_version", env!("CARGO_PKG_VERSION")),
        ] {
            put_short(key.as_bytes(), &mut attributes);
            put_short(value.as_bytes(), &mut attributes);
        }
        put_short(&attributes, &mut out);
    }
    out
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn put_short(bytes: &[u8], out: &mut Vec<u8>) {
    let length = u8::try_from(bytes.len()).ok().filter(|length| *length < 251);
    out.push(length.expect("proofs and attributes of ours are short"));
    out.extend_from_slice(bytes);
}

/// ```text
/// 0xfe │ plugin, 0 │ nonce, 0
/// ```
fn switched(payload: &[u8]) -> Result<(Plugin, Vec<u8>), LoginError> {
    let mut reader = Reader(payload.get(1..).unwrap_or_default());
    if reader.0.is_empty() {
        return Err(LoginError::Unsupported("mysql_old_password".to_owned()));
    }
    let name = String::from_utf8_lossy(reader.text()).into_owned();
    let mut nonce = reader.0.to_vec();
    trim_nonce(&mut nonce);
    match Plugin::named(&name) {
        Some(plugin) => Ok((plugin, nonce)),
        None => Err(LoginError::Unsupported(name)),
    }
}

/// A zero byte ends it, which is no part of it.
fn trim_nonce(nonce: &mut Vec<u8>) {
    if nonce.last() == Some(&0) {
        nonce.pop();
    }
}

#[cfg(test)]
mod tests;

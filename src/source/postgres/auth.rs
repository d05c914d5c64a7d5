//! Proves to the server who we are, and by SCRAM the server to us.
//!
//! Owns the authentication requests and what may be sent over which connection. It does not know
//! hosts or sockets.
//!
//! Source: PostgreSQL documentation, 55.2.1 "Start-up", 55.3 "SASL Authentication"; RFC 5802,
//! RFC 7677; libpq's `fe-auth.c`. Servers 10 to 18.

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::message::frontend;

use super::conninfo::ChannelBinding;
use super::scram::{Binding, ITERATIONS_MAX, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, Scram, ScramError};
use super::wire::{self, Connection, WireError};
use crate::secret::SecretText;

const OK: u32 = 0;
const CLEARTEXT_PASSWORD: u32 = 3;
const MD5_PASSWORD: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// Why a login did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The server asked, and none was given.
    #[error(
        "the server asks for a password and none was given: add `password_file=…` to the \
         connection string, or set PGPASSWORD"
    )]
    PasswordMissing,
    /// A password would have gone over the network for all to read.
    #[error(
        "the server asks for the password in clear text over a connection without TLS: set \
         `sslmode=verify-full`, or change the method in pg_hba.conf to scram-sha-256"
    )]
    PlainText,
    /// `channel_binding=require`, and the server or the connection cannot.
    #[error(
        "channel_binding=require, but {0}: it needs TLS, a role whose password is stored by \
         scram-sha-256, and the method scram-sha-256 in pg_hba.conf"
    )]
    BindingMissing(&'static str),
    /// Kerberos, GSSAPI, SSPI, or a SASL mechanism that is not SCRAM-SHA-256.
    #[error(
        "the server asks for an authentication method that is not built in ({0}): allow \
         scram-sha-256 or cert in pg_hba.conf"
    )]
    Unsupported(String),
    /// The exchange failed on our side; at its end, this means that the server does not know
    /// the password, and may be somebody else.
    #[error("the server's SCRAM answer is wrong: it may not be the server that it claims to be")]
    Scram(#[source] ScramError),
    /// More work than a server that has proven nothing may ask for.
    #[error(
        "the server asks for {iterations} iterations of SCRAM, and walpost computes at most \
         {ITERATIONS_MAX}: lower scram_iterations on the server, then set the role's password again"
    )]
    Iterations {
        /// What it asked for.
        iterations: u32,
    },
    /// The connection failed, or the server refused.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// What protects the login.
pub(crate) struct Protection {
    /// TLS, or a socket of this machine.
    pub(crate) is_private: bool,
    pub(crate) is_tls: bool,
    /// The server certificate's hash, for channel binding; see `tls::server_end_point`.
    pub(crate) end_point: Option<Vec<u8>>,
    pub(crate) binding: ChannelBinding,
}

/// Answers the server's requests up to AuthenticationOk.
///
/// # Cancel safety
/// Not cancel safe; drop the connection.
pub(crate) async fn authenticate(
    connection: &mut Connection,
    user: &str,
    password: Option<&SecretText>,
    protection: Protection,
) -> Result<(), AuthError> {
    let binding = protection.binding;
    let (request, mut body) = receive(connection).await?;
    match request {
        SASL => {
            let bound = scram(connection, body, password, protection).await?;
            require_binding(binding, bound, "the server does not offer SCRAM-SHA-256-PLUS")?;
        }
        OK => return require_binding(binding, false, "the server asks for no password"),
        CLEARTEXT_PASSWORD => {
            require_binding(binding, false, "the server asks for the password in clear text")?;
            if !protection.is_private {
                return Err(AuthError::PlainText);
            }
            let password = password.ok_or(AuthError::PasswordMissing)?;
            send_password(connection, password.expose().as_bytes()).await?;
        }
        MD5_PASSWORD => {
            require_binding(binding, false, "the server asks for an md5 password")?;
            let password = password.ok_or(AuthError::PasswordMissing)?;
            let malformed = WireError::Malformed("AuthenticationMD5Password");
            let mut salt = [0; 4];
            body.try_copy_to_slice(&mut salt).map_err(|_| malformed)?;
            let hash = md5_hash(user.as_bytes(), password.expose().as_bytes(), salt);
            send_password(connection, hash.as_bytes()).await?;
        }
        other => return Err(AuthError::Unsupported(method_name(other))),
    }
    match receive(connection).await? {
        (OK, _) => Ok(()),
        (other, _) => Err(AuthError::Unsupported(method_name(other))),
    }
}

fn require_binding(
    binding: ChannelBinding,
    bound: bool,
    reason: &'static str,
) -> Result<(), AuthError> {
    match binding {
        ChannelBinding::Require if !bound => Err(AuthError::BindingMissing(reason)),
        ChannelBinding::Require | ChannelBinding::Prefer | ChannelBinding::Disable => Ok(()),
    }
}

/// Runs SCRAM; says whether the login is bound to the TLS session.
async fn scram(
    connection: &mut Connection,
    mechanisms: Bytes,
    password: Option<&SecretText>,
    protection: Protection,
) -> Result<bool, AuthError> {
    let offered: Vec<&[u8]> =
        mechanisms.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    let offers = |mechanism: &str| offered.contains(&mechanism.as_bytes());
    let (binding, mechanism) =
        choose(offers(SCRAM_SHA_256), offers(SCRAM_SHA_256_PLUS), &protection)
            .ok_or_else(|| AuthError::Unsupported("SASL without SCRAM-SHA-256".to_owned()))?;
    let bound = mechanism == SCRAM_SHA_256_PLUS;
    // Before the first message, so that nothing is proven to a server that cannot be bound.
    require_binding(protection.binding, bound, "the server does not offer SCRAM-SHA-256-PLUS")?;
    let password = password.ok_or(AuthError::PasswordMissing)?;

    let exchange = Scram::new(binding);
    let mut message = BytesMut::new();
    frontend::sasl_initial_response(mechanism, exchange.first_message().as_bytes(), &mut message)
        .map_err(WireError::Io)?;
    connection.send(&message).await?;

    let challenge = expect(connection, SASL_CONTINUE).await?;
    let challenge = exchange.challenged(&challenge).map_err(AuthError::Scram)?;
    let iterations = challenge.iterations();
    if iterations > ITERATIONS_MAX {
        return Err(AuthError::Iterations { iterations });
    }
    // Elsewhere: this thread may have a stream to keep alive.
    let password = password.expose().as_bytes().to_vec();
    let computed = tokio::task::spawn_blocking(move || {
        let salted = challenge.salted_password(&password);
        challenge.answer(&salted)
    });
    let (answer, proof) = computed.await.map_err(|error| WireError::Io(error.into()))?;
    message.clear();
    frontend::sasl_response(answer.as_bytes(), &mut message).map_err(WireError::Io)?;
    connection.send(&message).await?;

    // A server that skips this message has not proven that it knows the password.
    let signature = expect(connection, SASL_FINAL).await?;
    proof.check(&signature).map_err(AuthError::Scram)?;
    Ok(bound)
}

/// Mechanism and the first byte of the exchange (`p`, `y` or `n`), as libpq's
/// `pg_SASL_init`. `y` ("I could, you cannot") lets the server notice that somebody in between
/// took PLUS off its list.
fn choose(scram: bool, plus: bool, protection: &Protection) -> Option<(Binding, &'static str)> {
    let end_point = match protection.binding {
        ChannelBinding::Disable => None,
        ChannelBinding::Prefer | ChannelBinding::Require => protection.end_point.clone(),
    };
    match (end_point, plus && protection.is_tls, scram) {
        (Some(hash), true, _) => Some((Binding::EndPoint(hash), SCRAM_SHA_256_PLUS)),
        (Some(_), false, true) => Some((Binding::Unrequested, SCRAM_SHA_256)),
        (None, _, true) => Some((Binding::Unsupported, SCRAM_SHA_256)),
        (Some(_) | None, _, false) => None,
    }
}

async fn expect(connection: &mut Connection, wanted: u32) -> Result<Bytes, AuthError> {
    match receive(connection).await? {
        (request, body) if request == wanted => Ok(body),
        _ => Err(AuthError::Scram(ScramError::Step)),
    }
}

/// The next authentication request: its code, and the rest of its body.
async fn receive(connection: &mut Connection) -> Result<(u32, Bytes), AuthError> {
    let (tag, mut body) = connection.receive().await?;
    if tag != wire::AUTHENTICATION {
        return Err(WireError::Unexpected { tag, after: "the startup message" }.into());
    }
    let request = body.try_get_u32().map_err(|_| WireError::Malformed("Authentication"))?;
    Ok((request, body))
}

async fn send_password(connection: &mut Connection, password: &[u8]) -> Result<(), AuthError> {
    let mut message = BytesMut::new();
    frontend::password_message(password, &mut message).map_err(WireError::Io)?;
    connection.send(&message).await?;
    Ok(())
}

fn method_name(request: u32) -> String {
    match request {
        2 => "Kerberos V5".to_owned(),
        7 | 8 => "GSSAPI".to_owned(),
        9 => "SSPI".to_owned(),
        SASL => "SASL once more".to_owned(),
        other => format!("request {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protection(end_point: Option<Vec<u8>>, binding: ChannelBinding) -> Protection {
        Protection { is_private: true, is_tls: end_point.is_some(), end_point, binding }
    }

    fn first_message(scram: bool, plus: bool, protection: &Protection) -> Option<(String, &str)> {
        let (binding, mechanism) = choose(scram, plus, protection)?;
        let message = Scram::new(binding).first_message();
        Some((message.split_once('=').unwrap().0.to_owned(), mechanism))
    }

    #[test]
    fn channel_binding_is_used_where_both_sides_can() {
        use ChannelBinding::{Disable, Prefer};
        let hash = || Some(vec![7; 32]);
        let bound = protection(hash(), Prefer);
        assert_eq!(first_message(true, true, &bound), Some(("p".into(), SCRAM_SHA_256_PLUS)));
        // the server cannot: say that we could, so that a removed offer is noticed
        assert_eq!(first_message(true, false, &bound), Some(("y,,n".into(), SCRAM_SHA_256)));
        let refused = protection(hash(), Disable);
        assert_eq!(first_message(true, true, &refused), Some(("n,,n".into(), SCRAM_SHA_256)));
        let plain = protection(None, Prefer);
        assert_eq!(first_message(true, false, &plain), Some(("n,,n".into(), SCRAM_SHA_256)));
        assert_eq!(first_message(false, false, &plain), None);
    }
}

//! The proofs of each authentication plugin. Pure.

use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use mysql_common::scramble::{create_response_for_ed25519, scramble_native, scramble_sha256};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;

use super::{Login, LoginError};
use crate::source::mysql::connection::WireError;

/// `caching_sha2_password`: the proof was enough.
pub(super) const FAST_OK: u8 = 3;
/// `caching_sha2_password`: the server has no memory of this password and wants it whole.
pub(super) const FULL: u8 = 4;
/// Asks for the server's RSA key.
pub(super) const KEY_REQUEST: u8 = 2;

/// Bytes of a nonce for SHA-1 and SHA-256.
const NONCE_BYTES: usize = 20;
/// Bytes of a nonce for a signature.
const ED25519_NONCE_BYTES: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plugin {
    CachingSha2,
    Native,
    Ed25519,
    Clear,
}

impl Plugin {
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "caching_sha2_password" => Some(Self::CachingSha2),
            "mysql_native_password" => Some(Self::Native),
            "client_ed25519" => Some(Self::Ed25519),
            "mysql_clear_password" => Some(Self::Clear),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::CachingSha2 => "caching_sha2_password",
            Self::Native => "mysql_native_password",
            Self::Ed25519 => "client_ed25519",
            Self::Clear => "mysql_clear_password",
        }
    }

    /// Empty for an empty password, which needs no proof.
    pub(super) fn proof(
        self,
        password: &[u8],
        nonce: &[u8],
        login: &Login<'_>,
    ) -> Result<Vec<u8>, LoginError> {
        let sized = |bytes: usize| {
            nonce.get(..bytes).ok_or(LoginError::Wire(WireError::Malformed("nonce of a login")))
        };
        match self {
            Self::CachingSha2 => Ok(scramble_sha256(sized(NONCE_BYTES)?, password)
                .map(Vec::from)
                .unwrap_or_default()),
            Self::Native => Ok(scramble_native(sized(NONCE_BYTES)?, password)
                .map(Vec::from)
                .unwrap_or_default()),
            Self::Ed25519 => {
                let nonce = sized(ED25519_NONCE_BYTES)?;
                Ok(create_response_for_ed25519(password, nonce).to_vec())
            }
            Self::Clear if !login.is_private => Err(LoginError::PlainText),
            Self::Clear if !login.may_be_clear => Err(LoginError::Unchecked),
            Self::Clear => Ok(clear(password)),
        }
    }
}

/// The password itself, ended by a zero byte.
pub(super) fn clear(password: &[u8]) -> Vec<u8> {
    let mut clear = password.to_vec();
    clear.push(0);
    clear
}

/// The password, mixed with the nonce so that it cannot be sent again, for the holder of `key`, a
/// PEM of the server's.
pub(super) fn encrypt(password: &[u8], nonce: &[u8], key: &[u8]) -> Result<Vec<u8>, LoginError> {
    // An empty nonce would leave the password as it is.
    if nonce.len() < NONCE_BYTES {
        return Err(WireError::Malformed("nonce of a login").into());
    }
    let mut mixed = clear(password);
    for (byte, nonce) in mixed.iter_mut().zip(nonce.iter().cycle()) {
        *byte ^= nonce;
    }
    let key = SubjectPublicKeyInfoDer::from_pem_slice(key).map_err(|_| LoginError::ServerKey)?;
    let key = PublicEncryptingKey::from_der(key.as_ref()).map_err(|_| LoginError::ServerKey)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| LoginError::ServerKey)?;
    let mut out = vec![0; key.ciphertext_size()];
    let written = key
        .encrypt(&OAEP_SHA1_MGF1SHA1, &mixed, &mut out, None)
        .map_err(|_| LoginError::ServerKey)?
        .len();
    out.truncate(written);
    Ok(out)
}

//! SCRAM-SHA-256 as a client: what is sent, and what the server's answers must be. Pure but for
//! its randomness; the one slow step is [`Challenge::salted_password`], which a caller runs where
//! it holds nothing up.
//!
//! ```text
//!  client  n,,n=,r=NONCE                          gs2 header, client-first-message-bare
//!  server  r=NONCE…,s=SALT,i=ITERATIONS
//!  client  c=…,r=NONCE…,p=PROOF
//!  server  v=SIGNATURE
//! ```
//!
//! Source: RFC 5802, RFC 7677 (SCRAM-SHA-256), RFC 5929 (`tls-server-end-point`). PostgreSQL
//! ignores the user's name in the exchange, so it is empty, as in libpq.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::cast_possible_truncation))]

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The count comes from a server that has proven nothing yet, and each is work: PostgreSQL's
/// default is 4,096, and this many take about a second.
pub(crate) const ITERATIONS_MAX: u32 = 2_000_000;

const NONCE_BYTES: usize = 18;
const KEY_BYTES: usize = 32;

pub(crate) const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
pub(crate) const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// What is wrong with the server's side of the exchange.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScramError {
    /// A message that the exchange does not have there.
    #[error("a step of the exchange is missing")]
    Step,
    /// A message that cannot be read.
    #[error("the server's {0} message is malformed")]
    Malformed(&'static str),
    /// Somebody answers another exchange.
    #[error("the server's nonce does not continue ours")]
    Nonce,
    /// The signature does not prove that the server knows the password.
    #[error("the server's signature does not fit")]
    Signature,
}

/// How the login is bound to the TLS session, by the first byte of the exchange.
pub(crate) enum Binding {
    /// `n`: we cannot.
    Unsupported,
    /// `y`: we could, and think that the server cannot.
    Unrequested,
    /// `p`: by the hash of the server's certificate.
    EndPoint(Vec<u8>),
}

impl Binding {
    fn header(&self) -> &'static str {
        match self {
            Self::Unsupported => "n,,",
            Self::Unrequested => "y,,",
            Self::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    /// `c=` of the last message.
    fn encoded(&self) -> String {
        let mut input = self.header().as_bytes().to_vec();
        if let Self::EndPoint(hash) = self {
            input.extend_from_slice(hash);
        }
        STANDARD.encode(input)
    }
}

/// The exchange before the server's first message.
pub(crate) struct Scram {
    binding: Binding,
    nonce: String,
}

impl Scram {
    pub(crate) fn new(binding: Binding) -> Self {
        let mut nonce = [0; NONCE_BYTES];
        rand::fill(&mut nonce).expect("the system has random bytes");
        Self { binding, nonce: STANDARD.encode(nonce) }
    }

    pub(crate) fn first_message(&self) -> String {
        format!("{}n=,r={}", self.binding.header(), self.nonce)
    }

    /// Takes the server's first message.
    pub(crate) fn challenged(self, message: &[u8]) -> Result<Challenge, ScramError> {
        let malformed = || ScramError::Malformed("first");
        let text = std::str::from_utf8(message).map_err(|_| malformed())?;
        let mut parts = text.split(',');
        let mut part = |name| parts.next().and_then(|part| part.strip_prefix(name));
        let nonce = part("r=").ok_or_else(malformed)?.to_owned();
        let salt = part("s=").and_then(|salt| STANDARD.decode(salt).ok()).ok_or_else(malformed)?;
        let iterations = part("i=").and_then(|count| count.parse().ok()).ok_or_else(malformed)?;
        if !nonce.starts_with(&self.nonce) {
            return Err(ScramError::Nonce);
        }
        Ok(Challenge { scram: self, message: text.to_owned(), nonce, salt, iterations })
    }
}

/// What the server wants computed.
pub(crate) struct Challenge {
    scram: Scram,
    message: String,
    nonce: String,
    salt: Vec<u8>,
    iterations: NonZeroU32,
}

impl Challenge {
    pub(crate) fn iterations(&self) -> u32 {
        self.iterations.get()
    }

    /// The slow step: `Hi(Normalize(password), salt, i)`.
    pub(crate) fn salted_password(&self, password: &[u8]) -> [u8; KEY_BYTES] {
        let mut salted = [0; KEY_BYTES];
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(algorithm, self.iterations, &self.salt, &normalize(password), &mut salted);
        salted
    }

    /// Our last message, and what the server must answer to it.
    pub(crate) fn answer(self, salted_password: &[u8; KEY_BYTES]) -> (String, Proof) {
        let Self { scram, message, nonce, .. } = self;
        let last = format!("c={},r={nonce}", scram.binding.encoded());
        let all = format!("n=,r={},{message},{last}", scram.nonce);
        let mut client_key = hash(salted_password, b"Client Key");
        let stored_key = digest::digest(&digest::SHA256, &client_key);
        for (byte, mask) in client_key.iter_mut().zip(hash(stored_key.as_ref(), all.as_bytes())) {
            *byte ^= mask;
        }
        let server_key = hmac::Key::new(hmac::HMAC_SHA256, &hash(salted_password, b"Server Key"));
        (format!("{last},p={}", STANDARD.encode(client_key)), Proof { server_key, all })
    }
}

/// What only a server that knows the password can sign.
pub(crate) struct Proof {
    server_key: hmac::Key,
    all: String,
}

impl Proof {
    /// Takes the server's last message.
    pub(crate) fn check(&self, message: &[u8]) -> Result<(), ScramError> {
        let text = std::str::from_utf8(message).ok();
        let signature = text
            .and_then(|text| text.split(',').next()?.strip_prefix("v="))
            .and_then(|signature| STANDARD.decode(signature).ok())
            .ok_or(ScramError::Malformed("last"))?;
        hmac::verify(&self.server_key, self.all.as_bytes(), &signature)
            .map_err(|_| ScramError::Signature)
    }
}

fn hash(key: &[u8], message: &[u8]) -> [u8; KEY_BYTES] {
    let signed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    signed.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// As libpq: SASLprep where it can be done, else the bytes as they are.
fn normalize(password: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(password) else { return password.to_vec() };
    match stringprep::saslprep(text) {
        Ok(prepared) => prepared.into_owned().into_bytes(),
        Err(_) => password.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn exchange() -> Scram {
        Scram { binding: Binding::Unsupported, nonce: NONCE.to_owned() }
    }

    #[test]
    fn salted_passwords_are_those_of_rfc_7677() {
        // given the challenge of RFC 7677, section 3
        let challenge = exchange().challenged(SERVER_FIRST.as_bytes()).unwrap();
        assert_eq!(challenge.iterations(), 4096);
        let salted = challenge.salted_password(b"pencil");
        // then the keys are those that its proofs were made of: the signature fits to its text
        let (_, mut proof) = challenge.answer(&salted);
        proof.all = format!(
            "n=user,r={NONCE},{SERVER_FIRST},c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
        );
        let signature = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(proof.check(signature), Ok(()));
        assert_eq!(proof.check(b"v=AAAA"), Err(ScramError::Signature));
        assert_eq!(proof.check(b"e=other-error"), Err(ScramError::Malformed("last")));
    }

    #[test]
    fn a_server_that_answers_another_exchange_is_refused() {
        let other = SERVER_FIRST.replace("r=rOpr", "r=rOps");
        assert_eq!(exchange().challenged(other.as_bytes()).err(), Some(ScramError::Nonce));
        for message in ["", "r=x", "r=x,s=AA==", "r=x,s=?,i=1", "r=x,s=AA==,i=0", "e=other"] {
            let error = exchange().challenged(message.as_bytes()).err();
            assert_eq!(error, Some(ScramError::Malformed("first")), "{message}");
        }
    }

    #[test]
    fn what_a_login_is_bound_to_is_in_its_last_message() {
        let bound = Scram { binding: Binding::EndPoint(vec![7; 32]), nonce: NONCE.to_owned() };
        assert!(bound.first_message().starts_with("p=tls-server-end-point,,n=,r="));
        let challenge = bound.challenged(SERVER_FIRST.as_bytes()).unwrap();
        let (last, _) = challenge.answer(&[0; KEY_BYTES]);
        let header = [&b"p=tls-server-end-point,,"[..], &[7; 32]].concat();
        assert!(last.starts_with(&format!("c={},r=", STANDARD.encode(header))), "{last}");
    }
}

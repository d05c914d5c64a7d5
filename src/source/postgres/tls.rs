//! TLS as libpq means it: who is believed, whose name is checked, and what a login is bound to.
//!
//! Owns `sslmode`'s meaning for certificates, and the channel binding. It does not know when TLS
//! is asked for or given up; that is `connect.rs`.
//!
//! libpq checks the chain whenever there is a root certificate, whatever `sslmode`, and the name
//! only for `verify-full`.

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::conninfo::{ConnInfo, RootCertificate, SslMode};
use crate::source::socket::Socket;
use crate::source::tls::{self, Authorities, CertificateFileError, TlsOptions};

/// What a handshake needs, read from the files anew for each connection: certificates rotate.
pub(crate) fn client_config(info: &ConnInfo) -> Result<Arc<ClientConfig>, CertificateFileError> {
    let certificate = info.client_certificate.as_ref();
    tls::client_config(TlsOptions {
        authorities: match &info.root_certificate {
            RootCertificate::None => Authorities::Any,
            RootCertificate::File(path) => Authorities::File(path),
            RootCertificate::System => Authorities::System,
        },
        check_name: info.ssl_mode == SslMode::VerifyFull,
        client_certificate: certificate.map(|(file, key)| (file.as_path(), key.as_path())),
    })
}

/// RFC 5929, section 4.1: the hash of the server's certificate, by the hash function of its
/// signature, or SHA-256 where that is MD5 or SHA-1. `None` where the signature has none
/// (Ed25519), for which the standard defines nothing.
pub(crate) fn server_end_point(socket: &Socket) -> Option<Vec<u8>> {
    let Socket::Tls(stream) = socket else { return None };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates()?.first()?;
    let algorithm = signature_hash(certificate)?;
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

fn signature_hash(certificate: &CertificateDer<'_>) -> Option<&'static digest::Algorithm> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let signature = &parsed.signature_algorithm;
    let oid = signature.algorithm.to_id_string();
    // RSASSA-PSS names its hash in its parameters; SHA-1 where it does not.
    let oid = if oid == "1.2.840.113549.1.1.10" {
        match x509_parser::signature_algorithm::SignatureAlgorithm::try_from(signature).ok()? {
            x509_parser::signature_algorithm::SignatureAlgorithm::RSASSA_PSS(parameters) => {
                parameters.hash_algorithm_oid().to_id_string()
            }
            _ => return None,
        }
    } else {
        oid
    };
    match oid.as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256; DSA with SHA-1, SHA-256; then
        // the bare hashes that RSASSA-PSS names.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2"
        | "1.2.840.10040.4.3"
        | "2.16.840.1.101.3.4.3.2"
        | "1.3.14.3.2.26"
        | "2.16.840.1.101.3.4.2.1" => Some(&digest::SHA256),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.2.4" => {
            Some(&digest::SHA224)
        }
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            Some(&digest::SHA384)
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            Some(&digest::SHA512)
        }
        _ => None,
    }
}

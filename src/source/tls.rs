//! TLS to a database server: who is believed, and whose name is checked.
//!
//! Owns certificates and the handshake. It does not know when TLS is asked for or given up, nor
//! what a connection string calls its choices.
//!
//! Three habits of database servers need more than the web's rules: a self-signed certificate
//! that is its own root, a host name in the Common Name only, and certificates of version 1.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

/// Whose certificates are believed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Authorities<'a> {
    /// Anybody's: encrypted, and nothing more.
    Any,
    /// Those in a PEM file.
    File(&'a Path),
    /// Those of the operating system.
    System,
}

/// What a handshake is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TlsOptions<'a> {
    pub(crate) authorities: Authorities<'a>,
    /// Whether the certificate must carry the name that was connected to.
    pub(crate) check_name: bool,
    /// PEM files of our own certificate and its key.
    pub(crate) client_certificate: Option<(&'a Path, &'a Path)>,
}

/// A certificate or key file of ours that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("could not use {what} file \"{}\"", path.display())]
pub struct CertificateFileError {
    what: &'static str,
    path: PathBuf,
    #[source]
    cause: FileProblem,
}

#[derive(Debug, thiserror::Error)]
enum FileProblem {
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    #[error("it is not PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("it holds no certificate")]
    Empty,
    #[error("others may read it; chmod 0600 (or 0640 where root owns it)")]
    Permissions,
    #[error("TLS refuses it")]
    Tls(#[from] rustls::Error),
}

/// What a handshake needs, read from the files anew for each connection: certificates rotate.
pub(crate) fn client_config(
    options: TlsOptions<'_>,
) -> Result<Arc<ClientConfig>, CertificateFileError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier {
        provider: Arc::clone(&provider),
        trust: trust(options.authorities)?,
        check_name: options.check_name,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the suites of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some((certificate, key)) = options.client_certificate else {
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let chain = read_certificates("client certificate", certificate)?;
    let problem = |cause| CertificateFileError { what: "client key", path: key.to_owned(), cause };
    check_key_permissions(key).map_err(problem)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| problem(error.into()))?;
    let config = builder.with_client_auth_cert(chain, private);
    Ok(Arc::new(config.map_err(|error| problem(error.into()))?))
}

/// Who is believed; `None` for anybody.
fn trust(authorities: Authorities<'_>) -> Result<Option<Trust>, CertificateFileError> {
    let Some(certificates) = certificates(authorities)? else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
    match authorities {
        Authorities::File(path) if added == 0 => {
            let (what, cause) = ("root certificate", FileProblem::Empty);
            Err(CertificateFileError { what, path: path.to_owned(), cause })
        }
        Authorities::File(_) => Ok(Some(Trust { roots, pinned: certificates })),
        Authorities::System | Authorities::Any => Ok(Some(Trust { roots, pinned: Vec::new() })),
    }
}

/// The certificates of those who are believed; `None` for anybody.
pub(crate) fn certificates(
    authorities: Authorities<'_>,
) -> Result<Option<Vec<CertificateDer<'static>>>, CertificateFileError> {
    match authorities {
        Authorities::Any => Ok(None),
        Authorities::File(path) => Ok(Some(read_certificates("root certificate", path)?)),
        Authorities::System => Ok(Some(rustls_native_certs::load_native_certs().certs)),
    }
}

fn read_certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, CertificateFileError> {
    let problem = |cause| CertificateFileError { what, path: path.to_owned(), cause };
    let pem = fs::read(path).map_err(|error| problem(error.into()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| problem(error.into()))?;
    if certificates.is_empty() {
        return Err(problem(FileProblem::Empty));
    }
    Ok(certificates)
}

/// libpq's rule: 0600, or 0640 where root owns the file, as packaged certificates do.
fn check_key_permissions(key: &Path) -> Result<(), FileProblem> {
    let metadata = fs::metadata(key)?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.permissions().mode() & forbidden != 0 {
        return Err(FileProblem::Permissions);
    }
    Ok(())
}

/// Runs the handshake on a socket whose server has agreed to TLS.
pub(crate) async fn handshake(
    stream: TcpStream,
    host: &str,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    // What is no DNS name cannot be sent as one; the verifier then has nothing to compare, and
    // refuses where the name counts. An IP address is never sent as server name.
    let name = ServerName::try_from(host.to_owned())
        .unwrap_or_else(|_| ServerName::from(IpAddr::from([0, 0, 0, 0])));
    TlsConnector::from(config).connect(name, stream).await
}

/// Roots, and the certificates of the root file themselves.
#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    pinned: Vec<CertificateDer<'static>>,
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    trust: Option<Trust>,
    check_name: bool,
}

impl Verifier {
    fn verify_chain(
        &self,
        trust: &Trust,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        // A self-signed server certificate serves as its own root: OpenSSL allows it, the web's
        // rules do not (it is marked as an authority).
        if trust.pinned.iter().any(|pinned| pinned == certificate) {
            return check_dates(&parse(certificate)?, now);
        }
        if parse(certificate)?.version() == X509Version::V1 {
            return self.verify_version_1(trust, certificate, now);
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &trust.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )
    }
}

impl Verifier {
    /// The recipe in PostgreSQL's manual (19.9.5 "Creating Certificates", with OpenSSL 3.0) makes
    /// server certificates of version 1, which the web's rules refuse to read. They are accepted
    /// where an authority of the root file signed them itself.
    fn verify_version_1(
        &self,
        trust: &Trust,
        certificate: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let leaf = parse(certificate)?;
        check_dates(&leaf, now)?;
        let message = leaf.tbs_certificate.as_ref();
        for root in &trust.pinned {
            let root = parse(root)?;
            let may_sign = root.is_ca() || root.version() == X509Version::V1;
            if !may_sign || root.subject().as_raw() != leaf.issuer().as_raw() {
                continue;
            }
            let key = root.public_key().subject_public_key.data.as_ref();
            let signature = leaf.signature_value.data.as_ref();
            // Each algorithm refuses keys and signatures that are not its own, and all are strong
            // enough for TLS, so any one that holds will do.
            let mut algorithms = self.provider.signature_verification_algorithms.all.iter();
            if algorithms.any(|known| known.verify_signature(key, message, signature).is_ok()) {
                return check_dates(&root, now);
            }
        }
        Err(CertificateError::UnknownIssuer.into())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(trust) = &self.trust {
            self.verify_chain(trust, certificate, intermediates, now)?;
        }
        if self.check_name {
            verify_name(certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    /// By the bare key: certificates of version 1, which older `openssl x509 -req` makes, hold a
    /// good key although the web's rules refuse to parse them.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let parsed = parse(certificate)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, rustls::Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad_encoding())?;
    Ok(parsed)
}

fn check_dates(parsed: &X509Certificate<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// The alternative names first; the Common Name counts only where there are none (libpq's
/// `pgtls_verify_peer_name_matches_certificate_guts`, RFC 6125 section 6.4.4).
fn verify_name(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
) -> Result<(), rustls::Error> {
    let parsed = parse(certificate)?;
    let alternatives = parsed.subject_alternative_name().map_err(|_| bad_encoding())?;
    let has_alternatives = alternatives.is_some_and(|alternatives| {
        alternatives.value.general_names.iter().any(|alternative| {
            matches!(alternative, GeneralName::DNSName(_) | GeneralName::IPAddress(_))
        })
    });
    if has_alternatives {
        return verify_server_name(&ParsedCertificate::try_from(certificate)?, name);
    }
    let common = parsed.subject().iter_common_name().next();
    let common = common.and_then(|common| common.as_str().ok()).unwrap_or_default();
    if common_name_matches(common, &name.to_str()) {
        return Ok(());
    }
    Err(CertificateError::NotValidForName.into())
}

/// Equal but for case, or a first label `*` that stands for one label.
fn common_name_matches(common: &str, host: &str) -> bool {
    if common.eq_ignore_ascii_case(host) {
        return !host.is_empty();
    }
    match (common.strip_prefix("*."), host.split_once('.')) {
        (Some(pattern), Some((label, parent))) => {
            let is_address = host.parse::<IpAddr>().is_ok();
            !label.is_empty() && !is_address && pattern.eq_ignore_ascii_case(parent)
        }
        (Some(_) | None, _) => false,
    }
}

fn bad_encoding() -> rustls::Error {
    CertificateError::BadEncoding.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_name_matches_whole_or_by_one_label() {
        for (common, host, matches) in [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*", "db", false),
            ("*.0.0.1", "127.0.0.1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("", "", false),
        ] {
            assert_eq!(common_name_matches(common, host), matches, "{common} for {host}");
        }
    }
}

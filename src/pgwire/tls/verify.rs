//! Is this certificate good enough? The checks of libpq, with webpki underneath.
//!
//! ```text
//!  require, nothing to check by   ─► any certificate
//!  verify-ca, or a root file      ─► exactly a certificate of the file ─┐
//!                                    or signed by one of it             ─┴► dates, revocation
//!  verify-full                    ─► and for this very host
//! ```
//! webpki refuses two kinds of certificate that PostgreSQL's documentation makes: a self-signed one that is an authority too, and one of
//! X.509 version 1. The first is accepted if the root file holds exactly that certificate; the second if a certificate of the root
//! file signed it itself. Invariant: whatever was accepted, the server has proved that it holds the key.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, PeerMisbehaved, SignatureScheme};
use webpki::{CertRevocationList, EndEntityCert, KeyUsage, RawPublicKeyEntity};

use crate::pgwire::certificate::Certificate;

/// Why a server's certificate is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// Its time is over.
    #[error("it expired at {0}")]
    Expired(String),
    /// Its time has not come.
    #[error("it does not count before {0}")]
    NotYet(String),
    /// Nobody we trust signed it.
    #[error("it was issued by {issuer:?}, which {roots} does not vouch for{}", expired_too(*.expired))]
    UnknownIssuer {
        /// Who signed it.
        issuer: String,
        /// Whom we trust.
        roots: String,
        /// Authorities that would have been asked, had they not expired.
        expired: usize,
    },
    /// It vouches for itself, and is not one that we know.
    #[error("it is self-signed by {subject:?}, and {roots} does not hold exactly this certificate")]
    SelfSigned {
        /// Whose it says it is.
        subject: String,
        /// Whom we trust.
        roots: String,
    },
    /// It is another host's.
    #[error("it is for {names}, not for host {host:?}")]
    WrongName {
        /// The host that was asked for.
        host: String,
        /// For whom it is.
        names: String,
    },
    /// Its authority took it back.
    #[error("it was revoked by its issuer")]
    Revoked,
    /// Something else.
    #[error("{0}")]
    Other(String),
}

fn expired_too(expired: usize) -> String {
    if expired == 0 { String::new() } else { format!(" (there, {expired} have expired)") }
}

/// Whom to trust, and whom not any more.
#[derive(Debug)]
pub(super) struct Trust {
    /// Certificates of authorities, or of servers.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Revocation lists; if there is one, there must be one of every issuer.
    pub(super) revoked: Vec<CertRevocationList<'static>>,
    /// Where the roots are from, for messages.
    pub(super) source: String,
}

/// Decides about the certificate of one server.
#[derive(Debug)]
pub(super) struct Verifier {
    /// None: any certificate will do.
    pub(super) trust: Option<Trust>,
    /// The host it must be for, as the user wrote it.
    pub(super) host: Option<String>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn check(
        &self,
        der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateFault> {
        let unreadable = |why: String| CertificateFault::Other(format!("it cannot be read: {why}"));
        let certificate = Certificate::parse(der).map_err(unreadable)?;
        if let Some(trust) = &self.trust {
            in_time(&certificate, now)?;
            trust.check(der, &certificate, intermediates, now, &self.algorithms)?;
        }
        match &self.host {
            Some(host) if !certificate.is_for(host) => {
                Err(CertificateFault::WrongName { host: host.clone(), names: certificate.names_shown() })
            }
            _ => Ok(()),
        }
    }

    /// TLS 1.2 names a scheme that may stand for several algorithms.
    fn signature_of_1_2(
        &self,
        message: &[u8],
        key: &SubjectPublicKeyInfoDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let (_, candidates) = known.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let key =
            RawPublicKeyEntity::try_from(key).map_err(|e| refused(CertificateFault::Other(e.to_string())))?;
        let good =
            candidates.iter().any(|alg| key.verify_signature(*alg, message, signed.signature()).is_ok());
        if good {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion()).map_err(refused)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature_of_1_2(message, &public_key(cert)?, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature_with_raw_key(message, &public_key(cert)?, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The key of a certificate of any version; rustls itself reads it from version 3 alone.
fn public_key(der: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, rustls::Error> {
    let certificate = Certificate::parse(der).map_err(|why| refused(CertificateFault::Other(why)))?;
    Ok(certificate.public_key.into())
}

fn refused(fault: CertificateFault) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(fault))).into()
}

/// What a log-in makes of a server's certificates, its own first, for tests: who is trusted, as whom it was reached (`None`: any host will do),
/// and the second since 1970.
///
/// # Errors
/// As a log-in.
#[cfg(feature = "testing")]
pub fn judge(
    roots: Vec<Vec<u8>>,
    host: Option<&str>,
    (own, intermediates): (&[u8], &[&[u8]]),
    second: u64,
) -> Result<(), CertificateFault> {
    let roots = roots.into_iter().map(CertificateDer::from).collect();
    let trust = Trust { roots, revoked: Vec::new(), source: "the input".to_owned() };
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let verifier = Verifier { trust: Some(trust), host: host.map(str::to_owned), algorithms };
    let intermediates: Vec<_> = intermediates.iter().map(|der| CertificateDer::from(*der)).collect();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(second));
    verifier.check(&CertificateDer::from(own), &intermediates, now)
}

fn in_time(certificate: &Certificate, now: UnixTime) -> Result<(), CertificateFault> {
    match now.as_secs() {
        now if now > certificate.not_after => Err(CertificateFault::Expired(shown(certificate.not_after))),
        now if now < certificate.not_before => Err(CertificateFault::NotYet(shown(certificate.not_before))),
        _ => Ok(()),
    }
}

fn shown(second: u64) -> String {
    let time = i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
    time.map_or_else(|| format!("second {second}"), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

impl Trust {
    fn check(
        &self,
        der: &CertificateDer<'_>,
        certificate: &Certificate,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), CertificateFault> {
        if self.revoked.is_empty() && self.roots.iter().any(|root| root == der) {
            return Ok(());
        }
        let parsed = self.roots.iter().map(|root| (root, Certificate::parse(root)));
        let (current, expired): (Vec<_>, Vec<_>) = parsed
            .filter_map(|(root, parsed)| Some((root, parsed.ok()?)))
            .partition(|(_, parsed)| in_time(parsed, now).is_ok());
        if certificate.without_extensions && self.revoked.is_empty() {
            let signed = current.iter().any(|(_, root)| signed_by(certificate, root, algorithms));
            return if signed { Ok(()) } else { Err(self.unknown_issuer(certificate, expired.len())) };
        }
        let anchors: Vec<TrustAnchor<'_>> =
            current.iter().filter_map(|(root, _)| webpki::anchor_from_trusted_cert(root).ok()).collect();
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        // No list at all is the one reason for which there are no options.
        let revocation = webpki::RevocationOptionsBuilder::new(&lists)
            .ok()
            .map(|options| options.with_expiration_policy(webpki::ExpirationPolicy::Enforce).build());
        let verified = EndEntityCert::try_from(der).and_then(|end| {
            let usage = KeyUsage::server_auth();
            end.verify_for_usage(algorithms.all, &anchors, intermediates, now, usage, revocation, None)
                .map(drop)
        });
        verified.map_err(|error| self.fault(&error, certificate, expired.len()))
    }

    fn fault(&self, error: &webpki::Error, certificate: &Certificate, expired: usize) -> CertificateFault {
        match error {
            webpki::Error::CertRevoked => CertificateFault::Revoked,
            webpki::Error::UnknownRevocationStatus => {
                CertificateFault::Other("the revocation lists say nothing about its issuer".into())
            }
            webpki::Error::CrlExpired { .. } => {
                CertificateFault::Other("the revocation list of its issuer is out of date".into())
            }
            webpki::Error::CaUsedAsEndEntity | webpki::Error::UnknownIssuer
                if certificate.is_self_issued() =>
            {
                let (subject, roots) = (certificate.subject.clone(), self.source.clone());
                CertificateFault::SelfSigned { subject, roots }
            }
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                self.unknown_issuer(certificate, expired)
            }
            other => CertificateFault::Other(format!("it does not meet the rules of TLS: {other}")),
        }
    }

    fn unknown_issuer(&self, certificate: &Certificate, expired: usize) -> CertificateFault {
        let (issuer, roots) = (certificate.issuer.clone(), self.source.clone());
        CertificateFault::UnknownIssuer { issuer, roots, expired }
    }
}

/// One signature, for certificates that webpki does not read. An authority that limits names cannot be obeyed this way.
fn signed_by(certificate: &Certificate, root: &Certificate, algorithms: &WebPkiSupportedAlgorithms) -> bool {
    let Some((body, algorithm, signature)) = certificate.signed() else { return false };
    let key = SubjectPublicKeyInfoDer::from(root.public_key.as_slice());
    let Ok(key) = RawPublicKeyEntity::try_from(&key) else { return false };
    let fits = |alg: &&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
        alg.signature_alg_id().as_ref() == algorithm && key.verify_signature(*alg, &body, signature).is_ok()
    };
    certificate.names_issuer(root) && !root.has_name_constraints && algorithms.all.iter().any(fits)
}

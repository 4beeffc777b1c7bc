//! A server's certificate: for whom it is, how long it counts, and what channel binding hashes.
//!
//! Names follow libpq, not the web's rules: the subject's common name counts where no alternative name is of the host's kind, because
//! that is what PostgreSQL's own documentation tells people to make. Channel binding of type `tls-server-end-point` is the digest of
//! the whole certificate by the hash of its signature algorithm, MD5 and SHA-1 raised to SHA-256 (RFC 5929 4.1); an algorithm without
//! a hash of its own (Ed25519) has none. Pure. Source of truth: `fe-secure-common.c`, `fe-secure-openssl.c`
//! (`pgtls_verify_peer_name_matches_certificate_guts`, `pgtls_get_peer_certificate_hash`).

use core::net::IpAddr;

use sha2::Digest as _;
use x509_cert::Certificate as Parsed;
use x509_cert::der::asn1::{AnyRef, ContextSpecific, ObjectIdentifier};
use x509_cert::der::{Any, Decode as _, Encode as _, Reader as _, SliceReader, TagNumber};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::AlgorithmIdentifierOwned;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const NAME_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.30");
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// A name that a certificate vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A host, perhaps with `*.` in front.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// The parts of a certificate that are looked at.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Whose it is, as text.
    pub subject: String,
    /// Who signed it, as text.
    pub issuer: String,
    /// First second it counts, since 1970.
    pub not_before: u64,
    /// Last second it counts, since 1970.
    pub not_after: u64,
    /// Alternative names of the two kinds that count.
    pub names: Vec<Name>,
    /// The first common name of the subject.
    pub common_name: Option<String>,
    /// The public key with its algorithm, DER.
    pub public_key: Vec<u8>,
    /// X.509 version 1 or 2: without extensions.
    pub without_extensions: bool,
    /// It limits the names that its holder may vouch for.
    pub has_name_constraints: bool,
    parsed: Box<Parsed>,
}

impl Certificate {
    /// Reads the DER form.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let wrong = |error: x509_cert::der::Error| error.to_string();
        let parsed = Parsed::from_der(der).map_err(wrong)?;
        let body = parsed.tbs_certificate();
        let names = body.get_extension::<SubjectAltName>().map_err(wrong)?;
        let names = names.iter().flat_map(|(_, names)| names.0.iter()).filter_map(name).collect();
        let cn = body.subject().iter().find(|part| part.oid == COMMON_NAME);
        Ok(Self {
            subject: body.subject().to_string(),
            issuer: body.issuer().to_string(),
            not_before: body.validity().not_before.to_unix_duration().as_secs(),
            not_after: body.validity().not_after.to_unix_duration().as_secs(),
            names,
            common_name: cn.and_then(|part| text(&part.value)),
            public_key: body.subject_public_key_info().to_der().map_err(wrong)?,
            without_extensions: body.version() != x509_cert::certificate::Version::V3,
            has_name_constraints: body
                .extensions()
                .is_some_and(|all| all.iter().any(|e| e.extn_id == NAME_CONSTRAINTS)),
            parsed: Box::new(parsed),
        })
    }

    /// Issued by itself.
    pub fn is_self_issued(&self) -> bool {
        self.parsed.tbs_certificate().issuer() == self.parsed.tbs_certificate().subject()
    }

    /// Names `other` as its issuer. Whether that one signed it is another question.
    pub fn names_issuer(&self, other: &Self) -> bool {
        self.parsed.tbs_certificate().issuer() == other.parsed.tbs_certificate().subject()
    }

    /// What was signed, the content of the algorithm's identifier, and the signature.
    pub fn signed(&self) -> Option<(Vec<u8>, Vec<u8>, &[u8])> {
        let body = self.parsed.tbs_certificate().to_der().ok()?;
        let algorithm = self.parsed.signature_algorithm().to_der().ok()?;
        let algorithm = AnyRef::from_der(&algorithm).ok()?.value().to_vec();
        Some((body, algorithm, self.parsed.signature().as_bytes()?))
    }

    /// Whether it vouches for `host`, a name or an address as the user wrote it.
    pub fn is_for(&self, host: &str) -> bool {
        let address = host.parse::<IpAddr>().ok();
        let same_kind = |name: &Name| matches!(name, Name::Ip(_)) == address.is_some();
        let fits = |name: &Name| match name {
            Name::Dns(pattern) => matches(pattern, host),
            Name::Ip(other) => Some(*other) == address,
        };
        let by_common_name = || {
            let counts = !self.names.iter().any(same_kind);
            counts && self.common_name.as_deref().is_some_and(|pattern| matches(pattern, host))
        };
        self.names.iter().any(fits) || by_common_name()
    }

    /// All names, for messages.
    pub fn names_shown(&self) -> String {
        let cn = self.common_name.iter().filter(|_| self.names.is_empty()).cloned();
        let names = self.names.iter().map(|name| match name {
            Name::Dns(name) => name.clone(),
            Name::Ip(address) => address.to_string(),
        });
        let all: Vec<String> = names.chain(cn).take(10).collect();
        if all.is_empty() { "nobody".to_owned() } else { all.join(", ") }
    }
}

/// `wildcard_certificate_match`: `*.` stands for one label in front, and nothing else is special.
fn matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let (Some(rest), Some((_, domain))) = (pattern.strip_prefix("*."), host.split_once('.')) else {
        return false;
    };
    !rest.is_empty() && host.parse::<IpAddr>().is_err() && rest.eq_ignore_ascii_case(domain)
}

fn name(general: &GeneralName) -> Option<Name> {
    match general {
        GeneralName::DnsName(name) => Some(Name::Dns(name.as_str().to_owned())),
        GeneralName::IpAddress(octets) => {
            let bytes = octets.as_bytes();
            let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(Name::Ip)
        }
        _ => None,
    }
}

/// The text of a name's part; a zero byte in it is an attack on programs that stop there.
fn text(value: &Any) -> Option<String> {
    let text = std::str::from_utf8(value.value()).ok()?;
    (!text.contains('\0')).then(|| text.to_owned())
}

/// The channel binding data of a connection whose server showed this certificate.
///
/// # Errors
/// Why there is none.
pub fn end_point_hash(der: &[u8]) -> Result<Vec<u8>, String> {
    let parsed = Parsed::from_der(der).map_err(|error| format!("it cannot be read: {error}"))?;
    let algorithm = parsed.signature_algorithm();
    let oid = if algorithm.oid == RSA_PSS { pss_hash(algorithm) } else { Some(algorithm.oid) };
    let unknown = || format!("its signature algorithm {} has no hash of its own", algorithm.oid);
    let digest = match oid.ok_or_else(unknown)?.to_string().as_str() {
        // MD5 and SHA-1, with RSA, with ECDSA, and as a hash of RSA-PSS; then SHA-256 in the same three.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.3.14.3.2.26"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2"
        | "2.16.840.1.101.3.4.2.1" => sha2::Sha256::digest(der).to_vec(),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.2.4" => {
            sha2::Sha224::digest(der).to_vec()
        }
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            sha2::Sha384::digest(der).to_vec()
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            sha2::Sha512::digest(der).to_vec()
        }
        _ => return Err(unknown()),
    };
    Ok(digest)
}

/// The hash in the parameters of RSASSA-PSS (RFC 4055): SHA-1 unless the first, optional element says otherwise.
fn pss_hash(algorithm: &AlgorithmIdentifierOwned) -> Option<ObjectIdentifier> {
    let sha1 = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
    let Some(parameters) = &algorithm.parameters else { return Some(sha1) };
    let mut reader = SliceReader::new(parameters.value()).ok()?;
    if reader.is_finished() {
        return Some(sha1);
    }
    let hash =
        ContextSpecific::<AlgorithmIdentifierOwned>::decode_explicit(&mut reader, TagNumber(0)).ok()?;
    Some(hash.map_or(sha1, |hash| hash.value.oid))
}

#[cfg(test)]
mod tests;

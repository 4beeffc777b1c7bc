//! Whom to trust: which certificate authorities a store's certificate may come from.
//!
//! The operator's `ca_file`, else the one bundle file of the host, else the roots compiled in, so that a static binary
//! works in an empty container. Directories of certificates are never walked: a file per authority costs more than
//! the whole rest of a push.
//! Invariants: one provider of cryptography per process; an authority that cannot be parsed is left out, an operator's
//! file without any is refused.

use std::path::{Path, PathBuf};
use std::sync::Once;

use object_store::Certificate;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::error::Fault;

/// Where distributions keep all authorities in one file: Debian, then Red Hat, then SUSE, then Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Makes ring the provider of cryptography, unless the process has one already.
pub(super) fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that there is one already, which will do.
        rustls::crypto::ring::default_provider().install_default().ok();
    });
}

/// The authorities to trust.
pub(super) fn authorities(ca_file: Option<&Path>) -> Result<Vec<Certificate>, Fault> {
    if let Some(path) = ca_file {
        let fail =
            |cause: &dyn std::fmt::Display| Fault::usage(format!("ca_file {}: {cause}", path.display()));
        let found = parse(&std::fs::read(path).map_err(|error| fail(&error))?);
        return if found.is_empty() { Err(fail(&"there is no certificate in it")) } else { Ok(found) };
    }
    let bundle = BUNDLES.iter().map(PathBuf::from).find_map(|path| std::fs::read(path).ok());
    let found = bundle.map(|pem| parse(&pem)).unwrap_or_default();
    if !found.is_empty() {
        return Ok(found);
    }
    Ok(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(usable).collect())
}

fn parse(pem: &[u8]) -> Vec<Certificate> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).filter_map(|der| usable(&der)).collect()
}

/// The certificate, if TLS can use it as an authority: one that it cannot would make it refuse them all.
fn usable(der: &CertificateDer<'_>) -> Option<Certificate> {
    RootCertStore::empty().add(der.clone()).ok()?;
    Certificate::from_der(der).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roots_compiled_in_are_all_usable() {
        let usable = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter_map(usable).count();
        assert!(usable > 100, "{usable}");
    }

    #[test]
    fn a_ca_file_without_a_certificate_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let fault = authorities(Some(file.path())).unwrap_err();
        assert!(fault.cause.contains(file.path().to_str().unwrap()), "{}", fault.cause);
        assert!(authorities(Some(Path::new("/nonexistent"))).is_err());
    }
}

//! The certificate authorities that this host trusts.
//!
//! The one bundle file of the distribution, else the roots compiled in, so that a static binary works in an empty container.
//! Directories of certificates are never walked: a file per authority costs more than the whole rest of a push.
//! Invariant: an authority that cannot be parsed is left out.

use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Where distributions keep all authorities in one file: Debian, then Red Hat, then SUSE, then Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The authorities of this host.
pub fn system() -> Vec<CertificateDer<'static>> {
    let bundle = BUNDLES.iter().map(PathBuf::from).find_map(|path| std::fs::read(path).ok());
    let found = bundle.map(|pem| of_pem(&pem)).unwrap_or_default();
    if !found.is_empty() {
        return found;
    }
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter(|der| is_usable(der)).cloned().collect()
}

/// The certificates of a PEM text that TLS can use: one that it cannot would make it refuse them all.
pub fn of_pem(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).filter(is_usable).collect()
}

fn is_usable(der: &CertificateDer<'_>) -> bool {
    RootCertStore::empty().add(der.clone()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roots_compiled_in_are_all_usable() {
        let usable = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().filter(|der| is_usable(der)).count();
        assert!(usable > 100, "{usable}");
    }
}

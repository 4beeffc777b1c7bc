//! Whom to trust: which certificate authorities a store's certificate may come from.
//!
//! The operator's `ca_file`, else what the host trusts ([`authorities`]).
//! Invariants: one provider of cryptography per process; an authority that cannot be parsed is left out, an operator's
//! file without any is refused.

use std::path::Path;
use std::sync::Once;

use object_store::Certificate;
use rustls::pki_types::CertificateDer;

use super::error::Fault;
use crate::authorities;

/// Makes ring the provider of cryptography, unless the process has one already.
pub(super) fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that there is one already, which will do.
        rustls::crypto::ring::default_provider().install_default().ok();
    });
}

/// The authorities to trust.
pub(super) fn trusted(ca_file: Option<&Path>) -> Result<Vec<Certificate>, Fault> {
    if let Some(path) = ca_file {
        let fail =
            |cause: &dyn std::fmt::Display| Fault::usage(format!("ca_file {}: {cause}", path.display()));
        let found = converted(&authorities::of_pem(&std::fs::read(path).map_err(|error| fail(&error))?));
        return if found.is_empty() { Err(fail(&"there is no certificate in it")) } else { Ok(found) };
    }
    Ok(converted(&authorities::system()))
}

fn converted(found: &[CertificateDer<'static>]) -> Vec<Certificate> {
    found.iter().filter_map(|der| Certificate::from_der(der).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_without_a_certificate_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let fault = trusted(Some(file.path())).unwrap_err();
        assert!(fault.cause.contains(file.path().to_str().unwrap()), "{}", fault.cause);
        assert!(trusted(Some(Path::new("/nonexistent"))).is_err());
    }
}

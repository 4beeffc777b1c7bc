//! Certificates as a server shows them: any bytes are answered, and a name that matches is one that the certificate has.
//!
//! The host that is asked for comes first, up to a zero byte; the rest is DER. Source of truth: RFC 5280, `fe-secure-common.c`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pgwire::certificate::{Certificate, end_point_hash};

fuzz_target!(|data: &[u8]| {
    let Some(end) = data.iter().position(|&byte| byte == 0) else { return };
    let (host, der) = (String::from_utf8_lossy(&data[..end]), &data[end + 1..]);
    let _ = end_point_hash(der);
    let Ok(certificate) = Certificate::parse(der) else { return };
    let _ = (certificate.signed(), certificate.is_self_issued(), certificate.names_shown());
    if certificate.is_for(&host) {
        assert!(!certificate.names.is_empty() || certificate.common_name.is_some());
    }
});

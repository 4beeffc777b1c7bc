//! Certificates as a server shows them: any bytes are answered, and a name that matches is one that the certificate has.
//!
//! The host that is asked for comes first, up to a zero byte; the rest is DER, one certificate after the other: the server's own, those it
//! sends with it, and the one that is trusted. Source of truth: RFC 5280, `fe-secure-common.c`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pgwire::certificate::{Certificate, end_point_hash};
use pitr::pgwire::tls::verify::judge;

fuzz_target!(|data: &[u8]| {
    let Some(end) = data.iter().position(|&byte| byte == 0) else { return };
    let (host, der) = (String::from_utf8_lossy(&data[..end]), &data[end + 1..]);
    let _ = end_point_hash(der);
    let (own, mut others) = first_of(der);
    let Ok(certificate) = Certificate::parse(own) else { return };
    let _ = (certificate.signed(), certificate.is_self_issued(), certificate.names_shown());
    if certificate.is_for(&host) {
        assert!(!certificate.names.is_empty() || certificate.common_name.is_some());
    }
    let mut sent = Vec::new();
    while !others.is_empty() {
        let (next, rest) = first_of(others);
        sent.push(next);
        others = rest;
    }
    let (start, end) = (certificate.not_before, certificate.not_after);
    let trusting = |roots: &[&[u8]], host: Option<&str>| {
        judge(roots.iter().map(|root| root.to_vec()).collect(), host, (own, &sent), start)
    };
    assert!(trusting(&[], None).is_err(), "nobody vouched for it");
    assert_eq!(trusting(&[own], None).is_ok(), start <= end, "it is the one that is trusted");
    assert_eq!(trusting(&[own], Some(&host)).is_ok(), start <= end && certificate.is_for(&host));
    if let Some(root) = sent.last()
        && trusting(&[root], Some(&host)).is_ok()
    {
        assert!(start <= end && certificate.is_for(&host));
    }
});

/// The first value of DER, by its length, and what follows; all of it if it says anything else.
fn first_of(der: &[u8]) -> (&[u8], &[u8]) {
    let end = match der {
        [_, short @ 0..=0x7F, ..] => Some(2 + usize::from(*short)),
        [_, 0x81, a, ..] => Some(3 + usize::from(*a)),
        [_, 0x82, a, b, ..] => Some(4 + usize::from(u16::from_be_bytes([*a, *b]))),
        _ => None,
    };
    der.split_at(end.unwrap_or(der.len()).min(der.len()))
}

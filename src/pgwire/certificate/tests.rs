//! Names of a certificate and what is hashed, on the certificates that also seed the fuzzer. Real servers judge the rest
//! (`tests/pgwire_tls.rs`), with libpq beside.

use super::*;

fn seed(name: &str) -> Vec<u8> {
    let path = format!("{}/fuzz/seeds/certificate/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(path).unwrap();
    let end = bytes.iter().position(|&byte| byte == 0).unwrap();
    bytes[end + 1..].to_vec()
}

#[test]
fn a_wildcard_stands_for_one_label_in_front_and_nothing_else() {
    for (pattern, host, fits) in [
        ("db.pitr.test", "DB.pitr.TEST", true),
        ("*.pitr.test", "db.pitr.test", true),
        ("*.pitr.test", "a.db.pitr.test", false),
        ("*.pitr.test", "pitr.test", false),
        ("*", "db", false),
        ("*.", "db.", false),
        ("d*.pitr.test", "db.pitr.test", false),
        ("*.0.0.1", "127.0.0.1", false),
    ] {
        assert_eq!(matches(pattern, host), fits, "{pattern} {host}");
    }
}

#[test]
fn names_and_dates_are_read_from_both_versions() {
    let three = Certificate::parse(&seed("san")).unwrap();
    assert_eq!(three.names, [Name::Dns("db.pitr.test".into()), Name::Ip("127.0.0.1".parse().unwrap())]);
    assert!(three.is_for("127.0.0.1") && three.is_for("db.pitr.test") && !three.is_for("127.0.0.2"));
    assert!(!three.without_extensions && three.not_before < three.not_after);
    let one = Certificate::parse(&seed("version1")).unwrap();
    assert!(one.without_extensions && one.names.is_empty() && one.is_for("db.pitr.test"));
    assert_eq!((one.issuer.as_str(), one.subject.as_str()), ("CN=ca", "CN=db.pitr.test"));
    assert!(!one.is_self_issued() && Certificate::parse(&seed("pss")).unwrap().is_self_issued());
}

#[test]
fn the_hash_of_channel_binding_is_that_of_the_signature() {
    let digest = |name: &str| end_point_hash(&seed(name)).unwrap();
    assert_eq!(digest("san"), sha2::Sha256::digest(seed("san")).to_vec(), "ECDSA with SHA-256");
    assert_eq!(
        digest("pss"),
        sha2::Sha384::digest(seed("pss")).to_vec(),
        "RSA-PSS names its hash in the parameters"
    );
    assert!(end_point_hash(b"nonsense").is_err());
}

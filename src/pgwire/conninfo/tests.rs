//! Connection strings against libpq's rules: both forms, the environment, and every way of being refused.
//!
//! Expectations were written down from `libpq.sgml` and tried with psql where it was in doubt.

use super::*;
use proptest::prelude::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment {
        variables: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        os_user: Some("me".into()),
        home: Some("/home/me".into()),
    }
}

fn parse(text: &str) -> Result<ConnInfo, ConnInfoError> {
    ConnInfo::parse(text, &environment(&[]))
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn defaults() -> ConnInfo {
    ConnInfo {
        target: Target::DefaultSocket,
        port: 5432,
        user: "me".into(),
        dbname: "me".into(),
        password: None,
        passfile: Some("/home/me/.pgpass".into()),
        connect_timeout: None,
        application_name: "pitr".into(),
        options: None,
        keepalive: Some(Keepalive {
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            count: 3,
        }),
    }
}

#[test]
fn nothing_at_all_means_the_local_server() {
    assert_eq!(parse(""), Ok(defaults()));
    assert_eq!(parse("  \n"), Ok(defaults()));
    assert_eq!(parse("postgresql://"), Ok(defaults()));
    assert_eq!(parse("host='' port=''"), Ok(defaults()));
}

#[test]
fn keywords_are_read_with_quotes_blanks_and_escapes() {
    let seen =
        parse(r"host = /var/run/pg  user='o\'brien \\x' password=a\ b dbname = 'my db' connect_timeout=1");
    let expected = ConnInfo {
        target: Target::Socket("/var/run/pg".into()),
        user: r"o'brien \x".into(),
        password: Some(Secret::new(b"a b".to_vec())),
        dbname: "my db".into(),
        connect_timeout: Some(Duration::from_secs(2)),
        ..defaults()
    };
    assert_eq!(seen, Ok(expected));
}

#[test]
fn a_uri_says_the_same_as_keywords() {
    for (uri, words) in [
        ("postgresql://bob:s%40crt@db:5433/app", "user=bob password=s@crt host=db port=5433 dbname=app"),
        ("postgres://db", "host=db"),
        ("postgres://db/", "host=db"),
        ("postgres:///app?host=/run/x&port=1", "dbname=app host=/run/x port=1"),
        ("postgres://%2Frun%2Fx/app", "host=/run/x dbname=app"),
        ("postgres://[::1]:5433/", "host=::1 port=5433"),
        ("postgres://bob@/app?application_name=a%20b", "user=bob dbname=app application_name='a b'"),
        ("postgres://:5433", "port=5433"),
    ] {
        assert_eq!(parse(uri).unwrap(), parse(words).unwrap(), "{uri}");
    }
}

#[test]
fn the_text_goes_before_the_environment_and_that_before_defaults() {
    let variables =
        environment(&[("PGHOST", "db"), ("PGPORT", "5433"), ("PGUSER", "bob"), ("PGPASSWORD", "x")]);
    let info = ConnInfo::parse("port=5434", &variables).unwrap();
    let expected = ConnInfo {
        target: Target::Tcp { host: "db".into(), address: None },
        port: 5434,
        user: "bob".into(),
        dbname: "bob".into(),
        password: Some(Secret::new(b"x".to_vec())),
        ..defaults()
    };
    assert_eq!(info, expected);
}

#[test]
fn a_wrong_variable_is_named_as_such() {
    let message = ConnInfo::parse("", &environment(&[("PGPORT", "x")])).unwrap_err().to_string();
    assert!(message.starts_with("PGPORT=\"x\""), "{message}");
    let message = ConnInfo::parse("", &environment(&[("PGSERVICE", "x")])).unwrap_err().to_string();
    assert!(message.starts_with("PGSERVICE is not supported"), "{message}");
}

#[test]
fn the_four_kinds_of_target() {
    let target = |text: &str| parse(text).unwrap().target;
    let address = "10.0.0.7".parse().ok();
    assert_eq!(target("host=@pg"), Target::Abstract("pg".into()));
    assert_eq!(target("host=/tmp"), Target::Socket("/tmp".into()));
    assert_eq!(target("host=db hostaddr=10.0.0.7"), Target::Tcp { host: "db".into(), address });
    assert_eq!(target("hostaddr=10.0.0.7"), Target::Tcp { host: "10.0.0.7".into(), address });
}

#[test]
fn messages_show_the_place_and_never_the_password() {
    let info = parse("host=db user=bob password=hunter2").unwrap();
    assert_eq!(info.to_string(), "db:5432");
    assert!(!format!("{info:?}").contains("hunter2"));
    assert_eq!(parse("host=::1").unwrap().to_string(), "[::1]:5432");
    assert_eq!(parse("host=/tmp").unwrap().to_string(), "/tmp/.s.PGSQL.5432");
}

#[test]
fn an_unknown_keyword_is_named_with_its_nearest() {
    assert_eq!(refusal("hots=db"), "\"hots\" is not a connection keyword (is it host?)");
    assert_eq!(refusal("wal_level=replica"), "\"wal_level\" is not a connection keyword");
    assert_eq!(
        refusal("postgres://db/?aplication_name=x"),
        "\"aplication_name\" is not a connection keyword (is it application_name?)"
    );
}

#[test]
fn what_pitr_cannot_honour_is_refused_and_not_ignored() {
    for mode in ["require", "verify-ca", "verify-full"] {
        assert!(refusal(&format!("sslmode={mode}")).contains("TLS"), "{mode}");
    }
    assert!(refusal("postgres://db/?ssl=true").contains("TLS"));
    for (text, word) in [
        ("sslmode=always", "verify-full"),
        ("host=a,b", "one server"),
        ("port=1,2", "one server"),
        ("postgres://a:1,b:2/x", "one server"),
        ("channel_binding=require", "TLS"),
        ("gssencmode=require", "GSSAPI"),
        ("target_session_attrs=read-write", "target_session_attrs=read-write"),
        ("requirepeer=postgres", "requirepeer"),
        ("replication=true", "replication"),
        ("service=x", "service"),
        ("port=0", "1 to 65535"),
        ("port=65536", "1 to 65535"),
        ("hostaddr=db", "numeric"),
        ("connect_timeout=soon", "number"),
        ("keepalives=2", "number"),
    ] {
        assert!(refusal(text).contains(word), "{text}: {}", refusal(text));
    }
}

#[test]
fn what_changes_nothing_is_accepted() {
    let text =
        "sslmode=prefer sslrootcert=/x client_encoding=UTF8 gssencmode=prefer target_session_attrs=any";
    assert_eq!(parse(text), Ok(defaults()));
}

#[test]
fn broken_texts_are_refused_with_the_reason() {
    for (text, word) in [
        ("mydb", "\"=\" is missing after \"mydb\""),
        ("user='bob", "does not end"),
        ("postgres://[::1", "]"),
        ("postgres://[::1]x", "between"),
        ("postgres://a%4/", "hexadecimal"),
        ("postgres://a%00/", "%00"),
        ("postgres://a%ff/", "UTF-8"),
        ("postgres://a/b?c", "missing after \"c\""),
    ] {
        assert!(refusal(text).contains(word), "{text}: {}", refusal(text));
    }
}

#[test]
fn keepalive_can_be_set_and_switched_off() {
    assert_eq!(parse("keepalives=0").unwrap().keepalive, None);
    let set = parse("keepalives_idle=5 keepalives_interval=6 keepalives_count=7").unwrap().keepalive;
    let seconds = Duration::from_secs;
    assert_eq!(set, Some(Keepalive { idle: seconds(5), interval: seconds(6), count: 7 }));
}

#[test]
fn the_default_socket_is_localhost_in_the_password_file() {
    assert_eq!(parse("").unwrap().passfile_hosts(), ["localhost"]);
    assert_eq!(parse("host=/tmp").unwrap().passfile_hosts(), ["localhost", "/tmp"]);
    assert_eq!(parse("host=/srv").unwrap().passfile_hosts(), ["/srv"]);
    assert_eq!(parse("host=db").unwrap().passfile_hosts(), ["db"]);
}

proptest! {
    #[test]
    fn any_value_survives_quoting_and_percent_encoding(user in "[^\0]{1,20}", password in "[^\0]{1,20}") {
        let quote = |text: &str| text.replace('\\', r"\\").replace('\'', r"\'");
        let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
        let words = parse(&format!("user='{}' password = '{}'", quote(&user), quote(&password))).unwrap();
        let uri = parse(&format!("postgres://{}:{}@", encode(&user), encode(&password))).unwrap();
        prop_assert_eq!(&words.user, &user);
        prop_assert_eq!(words.password.as_ref().unwrap().expose(), password.as_bytes());
        prop_assert_eq!(uri, words);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(postgres://|)\\PC{0,60}", more in "[a-z =':@/?&%\\\\\\[\\]]{0,40}") {
        let _ = parse(&text);
        let _ = parse(&more);
        let _ = parse(&format!("postgresql://{more}"));
    }
}

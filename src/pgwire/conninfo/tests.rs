//! Connection strings against libpq's rules: both forms, services, lists of hosts, the environment, and every way of being refused.
//!
//! Expectations were written down from `libpq.sgml` and tried with psql where it was in doubt.

use super::*;
use proptest::prelude::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment {
        variables: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        os_user: Some("me".into()),
        home: Some("/home/me".into()),
        read_file: Some(service_file),
    }
}

/// The service files of these tests.
fn service_file(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("/home/me/.pg_service.conf") => {
            Ok("# mine\n[other]\nhost=wrong\n\n[main]\n  host=db  \nuser=bob\nuser=late\n\
             options=-c a=b\n[main]\nport=1\n[nested]\nservice=main\n[typo]\nhots=x\n[bare]\nhost\n"
                .into())
        }
        Some("/sys/pg_service.conf") => Ok("[site]\nhost=site-db\nport=5433\n".into()),
        Some("/named") => Ok("[main]\nhost=named-db\n".into()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn host(target: Target, port: u16) -> Host {
    Host { target, port }
}

fn tcp(name: &str, port: u16) -> Host {
    host(Target::Tcp { host: name.into(), address: None }, port)
}

fn usual(name: &str) -> Option<TlsFile> {
    Some(TlsFile { path: Path::new("/home/me/.postgresql").join(name), named: false })
}

fn parse(text: &str) -> Result<ConnInfo, ConnInfoError> {
    ConnInfo::parse(text, &environment(&[]))
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn defaults() -> ConnInfo {
    ConnInfo {
        hosts: vec![host(Target::DefaultSocket, 5432)],
        load_balance: false,
        target_session: TargetSession::Any,
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
        tcp_user_timeout: None,
        tls: TlsOptions {
            mode: SslMode::Prefer,
            negotiation: Negotiation::Postgres,
            roots: Roots::File(usual("root.crt")),
            crl: usual("root.crl"),
            certificate: usual("postgresql.crt"),
            key: usual("postgresql.key"),
            sni: true,
            versions: (TlsVersion::V1_2, TlsVersion::V1_3),
        },
        channel_binding: ChannelBinding::Prefer,
        require_auth: None,
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
        hosts: vec![host(Target::Socket("/var/run/pg".into()), 5432)],
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
        ("postgres://a:1,[::2]:3,c/x", "host=a,::2,c port=1,3, dbname=x"),
        ("postgres://a,b/", "host=a,b"),
        ("postgres://db/?ssl=true", "host=db sslmode=require"),
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
        hosts: vec![tcp("db", 5434)],
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
    let message = ConnInfo::parse("", &environment(&[("PGREQUIREPEER", "x")])).unwrap_err().to_string();
    assert!(message.starts_with("PGREQUIREPEER is not supported"), "{message}");
}

#[test]
fn the_four_kinds_of_target() {
    let target = |text: &str| parse(text).unwrap().hosts.remove(0).target;
    let address = "127.0.0.7".parse().ok();
    assert_eq!(target("host=@pg"), Target::Abstract("pg".into()));
    assert_eq!(target("host=/tmp"), Target::Socket("/tmp".into()));
    assert_eq!(target("host=db hostaddr=127.0.0.7"), Target::Tcp { host: "db".into(), address });
    assert_eq!(target("hostaddr=127.0.0.7"), Target::Tcp { host: "127.0.0.7".into(), address });
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
fn no_part_of_a_password_that_is_badly_written_is_shown() {
    for text in [
        "host=db password=left hunter2",
        "sslpassword=left hunter2 host=db",
        "postgres://bob:left@hunter2@db/x",
        "postgres://bob:left@x:hunter2@db",
        "postgres://bob:hunter2%zz@db",
        "password='hunter2",
    ] {
        let said = refusal(text);
        assert!(!said.contains("hunter2"), "{said}");
    }
    assert!(refusal("host=db bob").ends_with("\"=\" is missing after \"bob\""));
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
    for (text, word) in [
        ("sslmode=always", "verify-full"),
        ("sslnegotiation=direct", "sslmode=require"),
        ("sslrootcert=system sslmode=require", "verify-full"),
        ("ssl_max_protocol_version=TLSv1.1", "TLSv1.2"),
        ("ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", "above"),
        ("ssl_min_protocol_version=SSLv3", "one of"),
        ("sslsni=2", "one of 0, 1"),
        ("sslcertmode=require", "sslcertmode=require"),
        ("sslcrldir=/x", "sslcrl"),
        ("sslkeylogfile=/x", "keys"),
        ("channel_binding=yes", "disable, prefer, require"),
        ("require_auth=md5,!none", "rule out each"),
        ("require_auth=md5,md5", "twice"),
        ("require_auth=secret", "scram-sha-256"),
        ("target_session_attrs=master", "prefer-standby"),
        ("load_balance_hosts=yes", "disable, random"),
        ("host=a,b port=1,2,3", "3 ports do not match 2 servers"),
        ("host=a,b hostaddr=127.0.0.1", "2 host names do not match 1"),
        ("port=1,2", "2 ports do not match 1"),
        ("tcp_user_timeout=x", "number"),
        ("gssencmode=require", "GSSAPI"),
        ("requirepeer=postgres", "requirepeer"),
        ("replication=true", "replication"),
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
    let text = "sslmode=prefer sslpassword=x client_encoding=UTF8 gssencmode=prefer target_session_attrs=any";
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
    let names = |text: &str| parse(text).unwrap().hosts.remove(0).passfile_names();
    assert_eq!(names(""), ["localhost"]);
    assert_eq!(names("host=/tmp"), ["localhost", "/tmp"]);
    assert_eq!(names("host=/srv"), ["/srv"]);
    assert_eq!(names("host=db hostaddr=127.0.0.1"), ["db"]);
}

#[test]
fn a_socket_and_a_loopback_address_are_this_host() {
    for (text, here) in [
        ("", true),
        ("host=/s", true),
        ("host=@s", true),
        ("host=localhost", true),
        ("host=127.0.0.1", true),
        ("host=::1", true),
        ("host=db hostaddr=127.0.0.1", true),
        ("host=db", false),
        ("host=localhost hostaddr=192.0.2.1", false),
    ] {
        assert_eq!(parse(text).unwrap().hosts[0].is_local(), here, "{text}");
    }
}

#[test]
fn lists_of_hosts_addresses_and_ports_are_matched_up() {
    let hosts = |text: &str| parse(text).unwrap().hosts;
    assert_eq!(hosts("host=a,b"), [tcp("a", 5432), tcp("b", 5432)]);
    assert_eq!(hosts("host=a,b port=7"), [tcp("a", 7), tcp("b", 7)]);
    assert_eq!(hosts("host=a,b port=7,"), [tcp("a", 7), tcp("b", 5432)]);
    let socket = host(Target::Socket("/s".into()), 5432);
    assert_eq!(hosts("host=,/s"), [host(Target::DefaultSocket, 5432), socket]);
    let at = |name: &str, address: &str| Target::Tcp { host: name.into(), address: address.parse().ok() };
    let both = [host(at("a", "127.0.0.1"), 5432), host(at("::2", "::2"), 5432)];
    assert_eq!(hosts("host=a, hostaddr=127.0.0.1,::2"), both);
    assert_eq!(parse("host=a,/s port=1").unwrap().to_string(), "a:1, /s/.s.PGSQL.1");
    assert!(refusal(&format!("host={}", ["a"; 65].join(","))).contains("at most 64"));
}

#[test]
fn a_service_goes_before_the_environment_and_the_text_before_both() {
    let variables = environment(&[("PGUSER", "me2"), ("PGPORT", "7"), ("PGSYSCONFDIR", "/sys")]);
    let info = ConnInfo::parse("service=main dbname=x", &variables).unwrap();
    assert_eq!((info.hosts, info.user.as_str(), info.dbname.as_str()), (vec![tcp("db", 7)], "bob", "x"));
    assert_eq!(info.options.as_deref(), Some("-c a=b"));
    assert_eq!(ConnInfo::parse("service=main host=mine", &variables).unwrap().hosts, [tcp("mine", 7)]);
    assert_eq!(ConnInfo::parse("service=site", &variables).unwrap().hosts, [tcp("site-db", 5433)]);
    let named = environment(&[("PGSERVICE", "main"), ("PGSERVICEFILE", "/named")]);
    assert_eq!(ConnInfo::parse("", &named).unwrap().hosts, [tcp("named-db", 5432)]);
    assert_eq!(parse("service=main servicefile=/named").unwrap().hosts, [tcp("named-db", 5432)]);
}

#[test]
fn a_service_that_cannot_be_used_is_named_with_the_place() {
    for (text, words) in [
        ("service=nowhere", "\"nowhere\" cannot be used: it is defined in none of /home/me/.pg_service.conf"),
        ("service=main servicefile=/missing", "/missing cannot be read"),
        ("service=nested", "line 13: a service cannot name another"),
        ("service=typo", "\"hots\" is not a connection keyword (is it host?)"),
        ("service=bare", "\"=\" is missing in line 17"),
    ] {
        assert!(refusal(text).contains(words), "{text}: {}", refusal(text));
    }
}

#[test]
fn tls_is_described_as_libpq_understands_it() {
    let tls = |text: &str| parse(text).unwrap().tls;
    assert_eq!(tls("sslrootcert=system").mode, SslMode::VerifyFull);
    assert_eq!(tls("sslrootcert=system").roots, Roots::System);
    let named = TlsFile { path: "/r".into(), named: true };
    assert_eq!(tls("sslrootcert=/r").roots, Roots::File(Some(named)));
    assert_eq!(tls("sslcertmode=disable").certificate, None);
    assert!(!tls("sslsni=0").sni);
    let direct = tls("sslmode=require sslnegotiation=direct ssl_min_protocol_version=TLSv1.3");
    assert_eq!((direct.negotiation, direct.versions.0), (Negotiation::Direct, TlsVersion::V1_3));
    let legacy = ConnInfo::parse("", &environment(&[("PGREQUIRESSL", "1")])).unwrap();
    assert_eq!(legacy.tls.mode, SslMode::Require);
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

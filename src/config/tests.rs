//! Tests of the configuration: the example of INTERFACE read whole, defaults, and every mistake with the words a user sees.
//!
//! The mistakes are compared as complete reports, place, shown line and hint included: they are the interface.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::initial::Initial;
use super::*;

/// INTERFACE's example, word for word but for its comments.
const FULL: &str = r#"
cluster  = "main"
timezone = "Asia/Jakarta"
state_dir = "/var/lib/pitr/main"

[postgres]
conninfo = "host=/run/postgresql user=postgres"
data_dir = "/var/lib/postgresql/17/main"
bin_dir  = "/usr/lib/postgresql/17/bin"

[archive]
compression = "zstd"
level       = 1
push_ahead  = 8
timeout     = "60s"

[agent]
receive = true
slot    = "pitr_main"
tail_interval = "1s"
tail_size     = "1MiB"
socket  = "/run/pitr/main.sock"
listen  = "127.0.0.1:9432"

[promise]
rpo = "5m"
rto = "2h"

[[repository]]
name      = "local"
url       = "file:///var/backups/pitr"
required  = true
retention = { window = "7d", daily = "30d" }

[[repository]]
name     = "cloud"
url      = "s3://bucket/prefix"
required = false
endpoint = "http://127.0.0.1:9000"
region   = "us-east-1"
allow_http = true
ca_file = "/etc/pitr/ca.pem"
credentials_file = "/etc/pitr/cloud"
tail_url = "s3://bucket/tails"
allow_unsafe_store = true
retention = { window = "30d", daily = "90d", weekly = "52w", monthly = "365d", yearly = "0" }
"#;

const LEAST: &str = "cluster = \"main\"\n[[repository]]\nname = \"local\"\nurl = \"file:///b\"\n";

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("pitr.toml"))
}

fn report(text: &str) -> String {
    parse(text).unwrap_err().report()
}

fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

#[test]
fn the_example_of_the_interface_is_read_whole() {
    let config = parse(FULL).unwrap();
    assert_eq!(config.cluster.as_str(), "main");
    assert_eq!(config.timezone.unwrap().iana_name(), Some("Asia/Jakarta"));
    assert_eq!(config.postgres.data_dir.as_deref(), Some(Path::new("/var/lib/postgresql/17/main")));
    assert_eq!(config.archive, ArchiveConfig::default());
    assert_eq!(config.agent.listen, Some("127.0.0.1:9432".parse().unwrap()));
    assert_eq!(config.promise.rto, Some(Duration::from_secs(7200)));
    let cloud = &config.repositories[1];
    let want = Retention {
        window: days(30),
        daily: days(90),
        weekly: days(364),
        monthly: days(365),
        yearly: days(0),
        grace: days(7),
    };
    assert_eq!(cloud.retention, Some(want));
    assert_eq!(
        *cloud,
        RepositoryConfig {
            name: "cloud".into(),
            url: "s3://bucket/prefix".into(),
            required: false,
            endpoint: Some("http://127.0.0.1:9000".into()),
            region: Some("us-east-1".into()),
            allow_http: true,
            ca_file: Some("/etc/pitr/ca.pem".into()),
            credentials_file: Some("/etc/pitr/cloud".into()),
            tail_url: Some("s3://bucket/tails".into()),
            allow_unsafe_store: true,
            sealed: true,
            retention: Some(want),
        }
    );
}

#[test]
fn what_the_file_does_not_say_has_its_default() {
    let config = parse(&LEAST.replace("main", "a-b")).unwrap();
    assert!(config.timezone.is_none());
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/pitr/a-b"));
    assert_eq!(config.postgres, PostgresConfig::default());
    assert_eq!(
        config.archive,
        ArchiveConfig { compression: Compression::Zstd(1), push_ahead: 8, timeout: Duration::from_secs(60) }
    );
    assert_eq!(
        config.agent,
        AgentConfig {
            receive: true,
            slot: "pitr_a_b".into(),
            tail_interval: Duration::from_secs(1),
            tail_size: 1 << 20,
            socket: "/run/pitr/a-b.sock".into(),
            listen: None,
        }
    );
    assert_eq!(config.promise, PromiseConfig { rpo: Duration::from_secs(300), rto: None });
    assert_eq!(config.repositories, [RepositoryConfig::new("local".into(), "file:///b".into())]);
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest_one() {
    assert_eq!(
        report(&format!("{LEAST}retentoin = {{ window = \"7d\" }}\n")),
        "error: pitr.toml:5:1: unknown key \"retentoin\" in [[repository]]\n       \
         5 | retentoin = { window = \"7d\" }\n         | ^^^^^^^^^\n\
         HINT: did you mean \"retention\"?"
    );
    assert_eq!(
        report(&format!("{LEAST}retention = {{ window = \"7d\", dialy = \"9d\" }}\n")),
        "error: pitr.toml:5:30: unknown key \"dialy\" in retention of [[repository]]\n       \
         5 | retention = { window = \"7d\", dialy = \"9d\" }\n         |                              ^^^^^\n\
         HINT: did you mean \"daily\"?"
    );
    assert_eq!(
        report(&format!("time_zone = \"UTC\"\n{LEAST}")).lines().last(),
        Some("HINT: did you mean \"timezone\"?")
    );
    assert_eq!(
        report(&LEAST.replace("cluster", "clutser")).lines().last(),
        Some("HINT: did you mean \"cluster\"?")
    );
    assert_eq!(
        report(&format!("{LEAST}[promise]\nxyzzy = 1\n")).lines().last(),
        Some("HINT: known here: rpo, rto")
    );
}

#[test]
fn a_wrong_value_is_shown_where_it_stands() {
    assert_eq!(
        report(&format!("{LEAST}[promise]\nrpo = 5\n")),
        "error: pitr.toml:6:7: rpo has no unit: ms, s, m, h, d, w or y\n       6 | rpo = 5\n         |       ^"
    );
    for (more, says) in [
        ("[promise]\nrpo = \"0\"\n", "rpo is not between 1s and 366d"),
        ("[promise]\nrpo = \"5 minutes\"\n", "rpo is not a duration such as 30s, 5m, 1h30m, 7d or 52w"),
        ("[archive]\nlevel = 20\n", "level is not a whole number from 1 to 19"),
        ("[archive]\nlevel = \"1\"\n", "level is not a whole number from 1 to 19"),
        ("[archive]\ncompression = \"lz4\"\n", "compression is neither \"zstd\" nor \"none\""),
        ("[agent]\nreceive = \"yes\"\n", "receive is a string, not true or false without quotes"),
        ("[agent]\nslot = \"Pitr\"\n", "slot is not a slot's name: 1 to 63 of a-z, 0-9 and _"),
        ("[agent]\nsocket = \"x.sock\"\n", "socket is not an absolute path"),
        ("[agent]\ntail_size = \"1MB\"\n", "tail_size is not a size such as 512KiB, 64MiB or 1GiB"),
        ("[agent]\ntail_size = 1\n", "tail_size is not between 8KiB and 64MiB"),
        ("[agent]\nlisten = \"9432\"\n", "listen is not an address and a port such as 127.0.0.1:9432"),
        ("[postgres]\ndata_dir = \"\"\n", "data_dir is empty"),
        ("[postgres]\ndata_dir = 5\n", "data_dir is a number, not a string in quotes"),
        ("retention = { window = \"0\" }\n", "retention keeps nothing"),
        ("retention = \"7d\"\n", "retention is a string, not a table"),
        ("endpoint = \"http://s3\"\n", "endpoint is not encrypted"),
        ("endpoint = \"s3.example.com\"\n", "endpoint is not a server such as https://s3.example.com:9000"),
        (
            "[[repository]]\nname = \"local\"\nurl = \"file:///c\"\n",
            "name is the name of another repository too",
        ),
        (
            "[[repository]]\nname = \"b\"\nurl = \"file:///b/\"\n",
            "url is the place of another repository too",
        ),
        ("[[repository]]\nname = \"b\"\n", "url is missing in [[repository]]"),
        ("[[repository]]\nname = \"b\"\nurl = \"ftp://x\"\n", "url \"ftp://x\" is not file:///path"),
        ("[[repository]]\nname = \"b\"\nurl = \"file://b\"\n", "url \"file://b\" is not file:///path"),
        ("[[repository]]\nname = \"B\"\nurl = \"file:///c\"\n", "name is not a repository's name"),
        ("a = 1\na = 2\n", "duplicate key"),
        ("x = \n", ""),
    ] {
        let text = report(&format!("{LEAST}{more}"));
        assert!(text.starts_with("error: pitr.toml:") && text.contains(says), "{more}: {text}");
    }
}

#[test]
fn the_file_as_a_whole_must_make_sense() {
    for (text, says) in [
        ("", "pitr.toml:1:1: cluster is missing"),
        ("cluster = \"Main\"\n", "cluster \"Main\" is not a cluster name"),
        ("cluster = \"main\"\n", "no [[repository]] is configured"),
        (
            &LEAST.replace("[[repository]]", "[repository]"),
            "repository is a table; each one is written under its own [[repository]]",
        ),
        (&format!("{LEAST}required = false\n"), "no repository is required"),
        (&format!("timezone = \"WIB\"\n{LEAST}"), "timezone \"WIB\" is an abbreviation"),
        (&format!("timezone = \"Asia/Jakata\"\n{LEAST}"), "timezone \"Asia/Jakata\" is not a time zone"),
    ] {
        assert!(report(text).contains(says), "{text}: {}", report(text));
    }
}

#[test]
fn a_line_that_may_hold_a_secret_is_never_shown() {
    for line in ["conninfo = \"password=hunter2\" x", "conninfo = 'postgres://u:hunter2@h/' x"] {
        let text = report(&format!("{LEAST}[postgres]\n{line}\n"));
        assert!(text.starts_with("error: pitr.toml:6:") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn passwords_in_connection_strings_are_noticed() {
    for (conninfo, holds) in [
        ("host=/run/postgresql user=postgres", false),
        ("host=h Password = 'x'", true),
        ("postgresql://user@h/db", false),
        ("postgresql://user:pw@h/db", true),
        ("postgresql://h:5432/db", false),
        ("postgresql://h/db?password=x", true),
        ("host=h sslpassword=x", true),
        ("postgresql:///db?pass%77ord=x", true),
        ("host=%41 application_name='100%'", false),
        ("host=h require_auth=!password user=x", false),
    ] {
        assert_eq!(holds_password(conninfo), holds, "{conninfo}");
    }
}

#[test]
fn a_repository_is_found_by_name() {
    let config = parse(FULL).unwrap();
    assert_eq!(config.repository("cloud").unwrap().region.as_deref(), Some("us-east-1"));
    assert_eq!(
        config.repository("clud").unwrap_err().report(),
        "error: no repository is called \"clud\"\nHINT: did you mean \"cloud\"?"
    );
}

#[test]
fn flags_can_stand_for_a_file() {
    let urls = ["file:///b/".to_owned(), "s3://x".to_owned()];
    let config = Config::without_file(&urls, "main").unwrap();
    let names: Vec<_> = config.repositories.iter().map(|r| (r.name.as_str(), r.url.as_str())).collect();
    assert_eq!(names, [("repository", "file:///b"), ("repository2", "s3://x")]);
    assert_eq!(config.path, None);
    for (urls, cluster) in [(&urls[..], "Main"), (&[][..], "main"), (&["x".to_owned()][..], "main")] {
        assert_eq!(Config::without_file(urls, cluster).unwrap_err().kind(), Kind::Usage);
    }
}

proptest! {
    #[test]
    fn what_init_writes_is_read_back(
        conninfo in "[^\0]{1,30}", dir in "/[^\0]{0,20}", zone in 0_usize..3, url in "/[a-z%é'\"\\\\ ]{1,12}"
    ) {
        let cluster: ClusterName = "a-b".parse().unwrap();
        let zone = ["Asia/Jakarta", "America/New_York"].get(zone).map(|name| TimeZone::get(name).unwrap());
        let url = format!("file://{url}");
        let fingerprint = "ab".repeat(32);
        let text = Initial {
            cluster: &cluster,
            timezone: zone.as_ref(),
            conninfo: &conninfo,
            data_dir: Some(Path::new(&dir)),
            bin_dir: None,
            url: &url, rpo: "5m",
            host_file: Some(Path::new(&dir)),
            seal_fingerprint: Some(&fingerprint),
        }
        .render();
        let config = parse(&text).unwrap();
        prop_assert_eq!(config.cluster, cluster);
        prop_assert_eq!(config.timezone, zone);
        prop_assert_eq!(config.postgres.conninfo, Some(conninfo));
        let keys = config.keys.unwrap();
        prop_assert_eq!(keys.host_file, Some(PathBuf::from(&dir)));
        prop_assert_eq!(keys.seal_fingerprint.unwrap().to_string(), fingerprint);
        prop_assert_eq!(config.postgres.data_dir, Some(PathBuf::from(dir)));
        prop_assert_eq!(config.repositories[0].url.as_str(), url.trim_end_matches('/'));
        prop_assert_eq!(config.archive, ArchiveConfig::default());
    }

    #[test]
    fn any_text_gives_an_answer(lines in proptest::collection::vec(0_usize..1000, 0..60), junk in "[\\[\\]={}\"a-z\n ]{0,30}") {
        let all: Vec<&str> = FULL.lines().collect();
        let mut text: String = lines.iter().map(|n| format!("{}\n", all[n % all.len()])).collect();
        text.push_str(&junk);
        let _ = parse(&text);
    }
}

#[test]
fn what_init_shows_as_examples_is_valid_too() {
    let cluster: ClusterName = "main".parse().unwrap();
    let initial = Initial {
        cluster: &cluster,
        timezone: None,
        conninfo: "x",
        data_dir: None,
        bin_dir: None,
        url: "file:///b",
        rpo: "5m",
        host_file: None,
        seal_fingerprint: None,
    };
    let uncommented: Vec<String> = initial
        .render()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // Prose has no equals sign or bracket near its front; an example has.
            Some(example) if example.starts_with('[') || example.split_whitespace().nth(1) == Some("=") => {
                example.to_owned()
            }
            _ => line.to_owned(),
        })
        .filter(|line| !line.ends_with("_dir = \"\""))
        .collect();
    let config = parse(&uncommented.join("\n")).unwrap();
    assert_eq!(config.repositories.len(), 2);
    assert_eq!(config.agent, Config::without_file(&["file:///b".to_owned()], "main").unwrap().agent);
}

//! Names against a hosts file, the rules of `localhost`, and a name server of our own on this host.
//!
//! No name of these tests is looked up outside: the server below listens on 127.0.0.1, and is the only one that is asked.

use super::*;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig};
use tokio::net::UdpSocket;

const HOSTS: &str = "# comment\n127.0.0.1\tlocalhost\n127.0.0.7  db.pitr.test DB7 # db8\n\n::1 localhost ip6-localhost\n\
                     bad line\n127.0.0.8 db7 db7\n127.0.0.7 db7\n";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_hosts_file_is_read_as_the_c_library_does() {
    let found = |host: &str| of_hosts(HOSTS, host);
    assert_eq!(found("localhost"), [address("127.0.0.1"), address("::1")]);
    assert_eq!(found("db7"), [address("127.0.0.7"), address("127.0.0.8")]);
    assert_eq!(found("DB.pitr.test."), [address("127.0.0.7")]);
    for nobody in ["db8", "line", "pitr.test", "", "#"] {
        assert_eq!(found(nobody), [] as [IpAddr; 0], "{nobody}");
    }
}

#[test]
fn what_no_way_leads_to_comes_last_and_ipv6_before_ipv4() {
    let all = ["127.0.0.1", "::2", "127.0.0.2", "::1"].map(address).to_vec();
    assert_eq!(ordered(all.clone(), |_| true), ["::2", "::1", "127.0.0.1", "127.0.0.2"].map(address));
    let without_ipv6 = ordered(all, IpAddr::is_ipv4);
    assert_eq!(without_ipv6, ["127.0.0.1", "127.0.0.2", "::2", "::1"].map(address));
    assert!(is_reachable(&address("127.0.0.1")));
}

#[tokio::test]
async fn localhost_needs_no_name_server() {
    assert!(is_localhost("LOCALHOST.") && is_localhost("a.localhost") && !is_localhost("notlocalhost"));
    for name in ["localhost", "db.localhost", "127.0.0.3"] {
        let found = lookup(name, Duration::ZERO).await.unwrap();
        assert!(found.iter().all(IpAddr::is_loopback), "{name}: {found:?}");
    }
}

/// Answers like a name server: knows the address of `known` as IPv4, and of nothing else; says nothing about `silent`.
async fn name_server() -> (ResolverConfig, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet).await {
            let question = &packet[12..length];
            let end = question.iter().position(|&byte| byte == 0).unwrap() + 5;
            let (question, is_a) = (&question[..end], question[end - 3] == 1);
            let is = |name: &[u8]| question[1..].starts_with(name);
            if is(b"silent") {
                continue;
            }
            let (code, answers) = if is(b"known_") { (0, u8::from(is_a)) } else { (3, 0) };
            let mut answer =
                [&packet[..2], &[0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0], question].concat();
            if answers == 1 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 9]);
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    let mut config = NameServerConfig::udp(address("127.0.0.1"));
    config.connections.iter_mut().for_each(|connection: &mut ConnectionConfig| connection.port = port);
    (ResolverConfig::from_name_servers(vec![config]), server)
}

#[tokio::test]
async fn a_name_server_is_asked_and_named_if_it_does_not_know() {
    let (servers, task) = name_server().await;
    let limit = Duration::from_secs(20);
    let asked = async |host: &str| ask(host, servers.clone(), ResolverOpts::default(), limit).await;
    assert_eq!(asked("known_db.pitr.test").await.unwrap(), [address("127.0.0.9")]);
    let error = asked("unknown.pitr.test").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        "unknown.pitr.test has no address: the name is not known (asked 127.0.0.1)"
    );
    task.abort();
}

#[tokio::test]
async fn a_name_server_that_says_nothing_is_given_up() {
    let (servers, task) = name_server().await;
    let limit = Duration::from_millis(50);
    let error = ask("silent.pitr.test", servers, ResolverOpts::default(), limit).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
    task.abort();
}

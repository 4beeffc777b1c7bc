//! Names of hosts to addresses, without the C library.
//!
//! ```text
//!  an address itself ─► /etc/hosts ─► localhost ─► DNS as /etc/resolv.conf says
//! ```
//! `getaddrinfo` loads plug-ins by `/etc/nsswitch.conf`; in a static binary that ends in a crash as soon as the host's C library is not
//! the one we were linked with. So mDNS, LDAP and other sources of names are not asked. Both files are read for every look-up: they
//! are small, and a change counts at once. The order of addresses is that of RFC 6724 as far as it matters: what no route leads to
//! comes last, then IPv6 before IPv4. Invariants: every look-up has a deadline; `localhost` needs neither file nor network.

use std::io;
use std::path::Path;
use std::time::Duration;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::{Resolver, system_conf};
use tokio::time::timeout;

/// Addresses of one name that are kept.
const MAX_ADDRESSES: usize = 16;
/// Larger files are not read: neither is a list of hosts then.
const MAX_FILE: u64 = 4 << 20;
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The addresses of `host`, best first, at least one.
///
/// # Errors
/// Kind `NotFound` if the name has none, `TimedOut` if nobody can tell by `limit`; the text says who was asked.
pub async fn lookup(host: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let listed = read(HOSTS).map(|text| of_hosts(&text, host)).unwrap_or_default();
    if !listed.is_empty() {
        return Ok(ordered(listed, is_reachable));
    }
    if is_localhost(host) {
        return Ok(ordered(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()], is_reachable));
    }
    let (servers, options) = servers()?;
    Ok(ordered(ask(host, servers, options, limit).await?, is_reachable))
}

/// RFC 6761: these names are this host, whatever a name server says.
fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

fn read(path: &str) -> io::Result<String> {
    let path = Path::new(path);
    if std::fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other(format!("{} is larger than 4 MiB", path.display())));
    }
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The addresses that a hosts file gives to `host`, in its order.
pub fn of_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let wanted = host.strip_suffix('.').unwrap_or(host);
    let address = |line: &str| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let address: IpAddr = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(wanted)).then_some(address)
    };
    let mut found = Vec::new();
    for address in text.lines().filter_map(address).take(MAX_ADDRESSES) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

fn servers() -> io::Result<(ResolverConfig, ResolverOpts)> {
    let text = read(RESOLV_CONF).map_err(|cause| {
        io::Error::new(cause.kind(), format!("no name server is known: {RESOLV_CONF}: {cause}"))
    })?;
    of_resolv_conf(&text)
}

/// The name servers that a text such as `/etc/resolv.conf` names, and how it wants them to be asked.
///
/// # Errors
/// If a line is wrong.
pub fn of_resolv_conf(text: &str) -> io::Result<(ResolverConfig, ResolverOpts)> {
    let wrong = |cause: hickory_resolver::net::NetError| io::Error::other(format!("{RESOLV_CONF}: {cause}"));
    system_conf::parse_resolv_conf(text).map_err(wrong)
}

async fn ask(
    host: &str,
    servers: ResolverConfig,
    mut options: ResolverOpts,
    limit: Duration,
) -> io::Result<Vec<IpAddr>> {
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // One answer is used once.
    options.cache_size = 0;
    let asked: Vec<String> = servers.name_servers().iter().map(|server| server.ip.to_string()).collect();
    let failed = |kind, cause: String| {
        io::Error::new(kind, format!("{host} has no address: {cause} (asked {})", asked.join(", ")))
    };
    let not_found = |cause: String| failed(io::ErrorKind::NotFound, cause);
    // Names of containers have underscores, which the strict rules of host names do not allow.
    let name = Name::from_str_relaxed(host).map_err(|cause| not_found(cause.to_string()))?;
    let resolver = Resolver::builder_with_config(servers, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|cause| io::Error::other(cause.to_string()))?;
    match timeout(limit, resolver.lookup_ip(name)).await {
        Ok(Ok(found)) => {
            let addresses: Vec<IpAddr> = found.iter().take(MAX_ADDRESSES).collect();
            if addresses.is_empty() { Err(not_found("the answer is empty".into())) } else { Ok(addresses) }
        }
        Ok(Err(cause)) if cause.is_no_records_found() => Err(not_found("the name is not known".into())),
        Ok(Err(cause)) => Err(failed(io::ErrorKind::TimedOut, cause.to_string())),
        Err(_) => Err(failed(io::ErrorKind::TimedOut, "nobody answered in time".into())),
    }
}

/// A stable sort: the order of a file or of a server counts among equals.
fn ordered(mut addresses: Vec<IpAddr>, is_reachable: fn(&IpAddr) -> bool) -> Vec<IpAddr> {
    addresses.sort_by_cached_key(|address| (!is_reachable(address), address.is_ipv4()));
    addresses
}

/// Whether the kernel knows a way there. Connecting a datagram socket sends nothing.
fn is_reachable(address: &IpAddr) -> bool {
    let any: SocketAddr = match address {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    std::net::UdpSocket::bind(any).and_then(|socket| socket.connect((*address, 9))).is_ok()
}

#[cfg(test)]
mod tests;

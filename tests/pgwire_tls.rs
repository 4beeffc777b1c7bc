//! TLS to real servers: who is trusted, who is let in, and what libpq says to the same connection string.
//!
//! The oracle is libpq: `psql` gets the same connection string, and both must end alike, with TLS or without or not at all. Where there
//! is no libpq to ask (a man in the middle, files that only pitr refuses) the server's log and the error's words are.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use pitr::pgwire::{ConnError, ConnInfo, Deadlines, Environment, ReplicationConn, Sql};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use support::cluster::{Install, as_server};
use support::site::{Answer, Site, SiteOptions};
use support::tls::{HOST, TlsCluster, Wanted, address, authority, certificate, no_openssl};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const QUERY: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

fn ready(major: u32) -> Option<Install> {
    if no_openssl() { None } else { Install::find_or_skip(major) }
}

/// Whether the connection is encrypted, or why there is none.
async fn ours(text: &str, home: &Path) -> Result<bool, ConnError> {
    let environment = Environment { home: Some(home.into()), ..Environment::default() };
    let info = ConnInfo::parse(text, &environment).expect("a connection string of ours");
    let mut sql = Sql::connect(&info, &Deadlines::default()).await?;
    let answer = sql.one(QUERY).await?;
    Ok(answer.as_deref() == Some("t"))
}

/// What libpq makes of it.
fn libpq(text: &str, home: &Path) -> Result<Result<bool, String>> {
    let mut psql = as_server("psql")?;
    psql.env("HOME", home).args(["-XAtqw", "-c", QUERY, text]);
    let answer = Answer::of(&mut psql)?;
    Ok(if answer.code == 0 { Ok(answer.out.trim() == "t") } else { Err(answer.err) })
}

async fn agree(text: &str, home: &Path) -> Result<Result<bool, ConnError>> {
    let (ours, theirs) = (ours(text, home).await, libpq(text, home)?);
    let same = match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        (Err(_), Err(_)) => true,
        _ => false,
    };
    ensure!(same, "{text}\nours:   {ours:?}\nlibpq:  {theirs:?}");
    Ok(ours)
}

/// Situation, the certificate that the server shows, the root file, and a word of the refusal with verify-full (none: accepted).
const SITUATIONS: [(&str, &str, Option<&str>, Option<&str>); 9] = [
    ("a good certificate", "good", Some("ca"), None),
    ("a good one with an intermediate", "chained", Some("ca"), None),
    ("no root file", "good", None, Some("root.crt does not exist")),
    ("another authority", "good", Some("other"), Some("does not vouch for")),
    ("another host", "wrong", Some("ca"), Some("not for host \"db.pitr.test\"")),
    ("an expired certificate", "expired", Some("ca"), Some("it expired at")),
    ("a certificate of version 1", "v1", Some("ca"), None),
    ("a self-signed one that is known", "self", Some("self"), None),
    (
        "a self-signed one that is not known",
        "self",
        Some("ca"),
        Some("does not hold exactly this certificate"),
    ),
];

async fn every_mode_ends_as_with_libpq(major: u32) -> Result<()> {
    let Some(install) = ready(major) else { return Ok(()) };
    let Some(server) = TlsCluster::start(&install, "")? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
    for (situation, shown, root, refusal) in SITUATIONS {
        server.show(shown)?;
        for mode in MODES {
            let root = root.map(|root| format!("sslrootcert={}", server.file(&format!("{root}.crt"))));
            let text = server.conninfo(&format!("sslmode={mode} {}", root.unwrap_or_default()));
            let ours = agree(&text, home.path()).await.context(situation)?;
            if mode == "verify-full" {
                match (ours, refusal) {
                    (Ok(tls), None) => ensure!(tls, "{situation}: not encrypted"),
                    (Err(error), Some(words)) => {
                        ensure!(error.to_string().contains(words), "{situation}: {error}");
                        ensure!(error.hint().is_some(), "{situation}: {error} has no hint");
                    }
                    (ours, _) => anyhow::bail!("{situation}: {ours:?}"),
                }
            }
        }
    }
    server.set(&[("ssl", "off")])?;
    for mode in MODES {
        let root = server.file("ca.crt");
        let ours =
            agree(&server.conninfo(&format!("sslmode={mode} sslrootcert={root}")), home.path()).await?;
        if let Err(error) = ours {
            ensure!(
                error.to_string().contains(&format!("does not support TLS, but sslmode={mode}")),
                "{error}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_mode_ends_as_with_libpq_on_13() -> Result<()> {
    every_mode_ends_as_with_libpq(13).await
}

#[tokio::test]
async fn every_mode_ends_as_with_libpq_on_15() -> Result<()> {
    every_mode_ends_as_with_libpq(15).await
}

#[tokio::test]
async fn every_mode_ends_as_with_libpq_on_17() -> Result<()> {
    every_mode_ends_as_with_libpq(17).await
}

#[tokio::test]
async fn every_mode_ends_as_with_libpq_on_18() -> Result<()> {
    every_mode_ends_as_with_libpq(18).await
}

#[tokio::test]
async fn names_of_a_certificate_count_as_with_libpq() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = TlsCluster::start(&install, "")? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    let ip = &server.address;
    let both = format!("subjectAltName=DNS:db.pitr.test,IP:{ip}\nbasicConstraints=CA:FALSE");
    let usual = Wanted::default();
    for (name, cn, extensions, hosts) in [
        (
            "wild",
            "x",
            "subjectAltName=DNS:*.pitr.test",
            &[(HOST, true), ("a.db.pitr.test", false), ("pitr.test", false)][..],
        ),
        ("cn", "DB.pitr.test", "basicConstraints=CA:FALSE", &[(HOST, true), ("other.pitr.test", false)]),
        ("wildcn", "*.pitr.test", "basicConstraints=CA:FALSE", &[(HOST, true), (ip.as_str(), false)]),
        (
            "names-over-cn",
            HOST,
            "subjectAltName=DNS:other.pitr.test",
            &[(HOST, false), ("other.pitr.test", true)],
        ),
        ("ip", HOST, both.as_str(), &[(HOST, true), (ip.as_str(), true), ("127.0.0.9", false)]),
        ("mail", HOST, "subjectAltName=email:a@pitr.test", &[(HOST, true)]),
    ] {
        certificate(&server.dir, &Wanted { name, cn, extensions, ..usual })?;
        server.show(name)?;
        for (host, good) in hosts {
            let text = format!(
                "host={host} hostaddr={ip} user=postgres dbname=postgres sslmode=verify-full sslrootcert={}",
                server.file("ca.crt")
            );
            let ours = agree(&text, home.path()).await.with_context(|| format!("{name} for {host}"))?;
            ensure!(ours.is_ok() == *good, "{name} for {host}: {ours:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_root_file_in_the_usual_place_is_used_as_libpq_does() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = TlsCluster::start(&install, "")? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
    let place = home.path().join(".postgresql");
    fs::create_dir(&place)?;
    for (root, require) in [("ca", true), ("other", false)] {
        fs::copy(server.dir.join(format!("{root}.crt")), place.join("root.crt"))?;
        for mode in MODES {
            let ours = agree(&server.conninfo(&format!("sslmode={mode}")), home.path()).await?;
            if mode == "require" {
                ensure!(ours.is_ok() == require, "a root file makes verify-ca of require: {ours:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_file_that_was_named_must_exist_and_make_sense() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = TlsCluster::start(&install, "")? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    let file = |name: &str| server.file(name);
    let empty = server.dir.join("empty");
    fs::write(&empty, "nothing\n")?;
    for (more, words) in [
        (format!("sslmode=require sslrootcert={}", file("nowhere")), "sslrootcert"),
        (format!("sslmode=prefer sslrootcert={}", file("nowhere")), "sslrootcert"),
        (format!("sslmode=require sslrootcert={}", file("empty")), "there is no certificate in it"),
        (format!("sslcert={}", file("nowhere")), "sslcert"),
        (format!("sslcert={}", file("good.crt")), "sslkey"),
        (format!("sslrootcert={} sslcrl={}", file("ca.crt"), file("nowhere")), "sslcrl"),
    ] {
        let error = ours(&server.conninfo(&more), home.path()).await.err().context(more.clone())?;
        ensure!(error.to_string().contains(words), "{more}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_as_by_libpq() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = TlsCluster::start(&install, "")? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    let dir = &server.dir;
    fs::write(dir.join("index.txt"), "")?;
    fs::write(dir.join("crlnumber"), "01\n")?;
    fs::write(
        dir.join("ca.cnf"),
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncrlnumber=crlnumber\ndefault_md=sha256\ndefault_crl_days=2\n",
    )?;
    let crl =
        format!("sslmode=verify-ca sslrootcert={} sslcrl={}", server.file("ca.crt"), server.file("ca.crl"));
    let generate = "ca -config ca.cnf -gencrl -keyfile ca.key -cert ca.crt -out ca.crl";
    support::tls::openssl(dir, generate)?;
    ensure!(agree(&server.conninfo(&crl), home.path()).await?.is_ok(), "nothing is revoked yet");
    support::tls::openssl(dir, "ca -config ca.cnf -revoke good.crt -keyfile ca.key -cert ca.crt")?;
    support::tls::openssl(dir, generate)?;
    let error = agree(&server.conninfo(&crl), home.path()).await?.err().context("a revoked certificate")?;
    ensure!(error.to_string().contains("it was revoked"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_client_certificate_lets_its_role_in_and_no_other() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = TlsCluster::start(&install, "")? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    let dir = &server.dir;
    server.cluster.psql("CREATE ROLE by_cert LOGIN REPLICATION")?;
    server.set(&[("ssl_ca_file", &server.file("ca.crt"))])?;
    server.hba("hostssl all,replication by_cert 127.0.0.0/8 cert\n")?;
    let usual = Wanted { cn: "by_cert", extensions: "basicConstraints=CA:FALSE", ..Wanted::default() };
    certificate(dir, &Wanted { name: "client", ..usual })?;
    certificate(dir, &Wanted { name: "clientv1", extensions: "", ..usual })?;
    certificate(dir, &Wanted { name: "somebody", cn: "somebody", ..usual })?;
    certificate(dir, &Wanted { name: "stranger", authority: "other", ..usual })?;
    support::tls::openssl(dir, "pkey -in client.key -aes256 -passout pass:x -out locked.key")?;
    fs::copy(dir.join("client.key"), dir.join("loose.key"))?;
    for (name, mode) in [("locked.key", 0o600), ("loose.key", 0o644)] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode))?;
        support::cluster::give_to_server(&dir.join(name))?;
    }
    let text = |cert: &str, key: &str| {
        let files = format!("sslcert={} sslkey={}", server.file(cert), server.file(key));
        format!(
            "host={HOST} hostaddr={} user=by_cert dbname=postgres sslmode=require {files}",
            server.address
        )
    };
    for (cert, key, words) in [
        ("client.crt", "client.key", None),
        ("clientv1.crt", "clientv1.key", None),
        ("somebody.crt", "somebody.key", Some("certificate authentication failed")),
        ("stranger.crt", "stranger.key", Some("UnknownCA")),
        ("client.crt", "good.key", Some("does not belong to the certificate")),
        ("client.crt", "loose.key", Some("mode 0644")),
        ("client.crt", "locked.key", Some("it is encrypted")),
    ] {
        let ours = agree(&text(cert, key), home.path()).await?;
        match (ours, words) {
            (Ok(tls), None) => ensure!(tls, "{cert}"),
            (Err(error), Some(words)) => ensure!(error.to_string().contains(words), "{cert} {key}: {error}"),
            (ours, _) => anyhow::bail!("{cert} {key}: {ours:?}"),
        }
    }
    let without =
        format!("host={HOST} hostaddr={} user=by_cert dbname=postgres sslmode=require", server.address);
    let error = agree(&without, home.path()).await?.err().context("no certificate was shown")?;
    ensure!(error.hint().is_some_and(|hint| hint.contains("sslcert")), "{error}: {:?}", error.hint());
    Ok(())
}

/// A server with a role whose password is proved by SCRAM over TLS alone.
fn with_scram(install: &Install) -> Result<Option<TlsCluster>> {
    let Some(server) = TlsCluster::start(install, "password_encryption = 'scram-sha-256'")? else {
        return Ok(None);
    };
    server.cluster.psql("CREATE ROLE by_scram LOGIN PASSWORD 'secret'; SET password_encryption = 'md5';\nCREATE ROLE by_md5 LOGIN PASSWORD 'secret';")?;
    server.hba("host all by_scram 127.0.0.0/8 scram-sha-256\nhost all by_md5 127.0.0.0/8 md5\nhost all nobody 127.0.0.0/8 trust\n")?;
    Ok(Some(server))
}

fn scram(server: &TlsCluster, more: &str) -> String {
    format!("host={HOST} hostaddr={} user=by_scram password=secret dbname=postgres {more}", server.address)
}

async fn scram_is_bound_to_every_kind_of_certificate(major: u32) -> Result<()> {
    let Some(install) = ready(major) else { return Ok(()) };
    let Some(server) = with_scram(&install)? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    let usual = Wanted::default();
    let rsa = "-newkey rsa:2048 -nodes";
    for (name, authority_key, signature) in [
        ("e256", "ca", "-sha256"),
        ("e384", "ca", "-sha384"),
        ("e512", "ca", "-sha512"),
        ("r256", "rsa", "-sha256"),
        ("r384", "rsa", "-sha384"),
        ("r512", "rsa", "-sha512"),
    ] {
        if authority_key == "rsa" && !server.dir.join("rsa.crt").exists() {
            support::tls::openssl(
                &server.dir,
                &format!("req -new -x509 {rsa} -days 2 -keyout rsa.key -out rsa.crt -subj /CN=rsa"),
            )?;
        }
        certificate(&server.dir, &Wanted { name, authority: authority_key, signature, ..usual })?;
        server.show(name)?;
        let text = scram(&server, "sslmode=require channel_binding=require");
        ensure!(agree(&text, home.path()).await.context(name)?.context(name)?, "{name}: not encrypted");
    }
    Ok(())
}

#[tokio::test]
async fn scram_is_bound_to_every_kind_of_certificate_on_13() -> Result<()> {
    scram_is_bound_to_every_kind_of_certificate(13).await
}

#[tokio::test]
async fn scram_is_bound_to_every_kind_of_certificate_on_17() -> Result<()> {
    scram_is_bound_to_every_kind_of_certificate(17).await
}

#[tokio::test]
async fn scram_is_bound_to_every_kind_of_certificate_on_18() -> Result<()> {
    scram_is_bound_to_every_kind_of_certificate(18).await
}

#[tokio::test]
async fn a_certificate_that_binds_nothing_is_named_only_where_binding_is_required() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = with_scram(&install)? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    support::tls::openssl(
        &server.dir,
        "req -new -x509 -newkey ed25519 -nodes -days 2 -keyout ed.key -out ed.crt -subj /CN=db.pitr.test",
    )?;
    support::cluster::give_to_server(&server.dir.join("ed.key"))?;
    server.show("ed")?;
    let text = scram(&server, "sslmode=require channel_binding=require");
    let error = agree(&text, home.path()).await?.err().context("Ed25519 has no hash")?;
    ensure!(error.to_string().contains("1.3.101.112 has no hash of its own"), "{error}");
    // libpq gives up here; nothing is lost by going on without.
    ensure!(ours(&scram(&server, "sslmode=require"), home.path()).await?, "not encrypted");
    Ok(())
}

#[tokio::test]
async fn what_is_required_of_a_log_in_is_required_as_by_libpq() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = with_scram(&install)? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    let tcp = format!("host={HOST} hostaddr={} dbname=postgres", server.address);
    for (text, good) in [
        (scram(&server, "sslmode=disable channel_binding=require"), false),
        (scram(&server, "sslmode=disable channel_binding=prefer"), true),
        (scram(&server, "sslmode=require channel_binding=disable"), true),
        (format!("{tcp} user=by_md5 password=secret sslmode=require channel_binding=require"), false),
        (format!("{tcp} user=nobody sslmode=require channel_binding=require"), false),
        (
            format!(
                "host={} user=postgres dbname=postgres channel_binding=require",
                server.cluster.socket.display()
            ),
            false,
        ),
    ] {
        let ours = agree(&text, home.path()).await?;
        ensure!(ours.is_ok() == good, "{text}: {ours:?}");
    }
    // psql 15 does not know require_auth: the words are libpq 16's.
    for (who, required, good) in [
        ("by_scram password=secret", "scram-sha-256", true),
        ("by_scram password=secret", "md5,password", false),
        ("by_scram password=secret", "!scram-sha-256", false),
        ("by_scram password=secret", "!md5,!none", true),
        ("by_md5 password=secret", "md5", true),
        ("by_md5 password=secret", "scram-sha-256", false),
        ("nobody", "none", true),
        ("nobody", "!none", false),
    ] {
        server.cluster.psql(
            "DO $$ BEGIN CREATE ROLE nobody LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        )?;
        let done = ours(&format!("{tcp} user={who} require_auth={required}"), home.path()).await;
        ensure!(done.is_ok() == good, "{who} {required}: {done:?}");
        if let Err(error) = done {
            ensure!(error.to_string().contains(&format!("require_auth={required}")), "{error}");
        }
    }
    Ok(())
}

/// Ends the client's TLS with a certificate of its own and speaks TLS of its own to the server.
async fn man_in_the_middle(server: &TlsCluster) -> Result<String> {
    let dir = &server.dir;
    let pem = |name: &str| fs::read(dir.join(name));
    certificate(dir, &Wanted { name: "middle", ..Wanted::default() })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = CertificateDer::pem_slice_iter(&pem("middle.crt")?).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&pem("middle.key")?)?;
    let facing_client = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem("ca.crt")?)?)?;
    let facing_server = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (acceptor, connector) = (
        tokio_rustls::TlsAcceptor::from(Arc::new(facing_client)),
        tokio_rustls::TlsConnector::from(Arc::new(facing_server)),
    );
    let (listener, target) = (TcpListener::bind((address(1), 5432)).await?, server.address.clone());
    let place = listener.local_addr()?.ip().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (acceptor, connector, target) = (acceptor.clone(), connector.clone(), target.clone());
            tokio::spawn(async move {
                let mut question = [0; 8];
                client.read_exact(&mut question).await?;
                let mut server = TcpStream::connect((target, 5432)).await?;
                server.write_all(&question).await?;
                client.write_all(&[server.read_u8().await?]).await?;
                let name = ServerName::try_from(HOST).map_err(std::io::Error::other)?;
                let mut server = connector.connect(name, server).await?;
                let mut client = acceptor.accept(client).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    Ok(place)
}

#[tokio::test]
async fn a_man_in_the_middle_is_found_out_by_channel_binding() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = with_scram(&install)? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    let middle = man_in_the_middle(&server).await?;
    let text = |binding: &str| {
        // His certificate is as good as the server's: only the binding tells them apart.
        format!(
            "host={HOST} hostaddr={middle} user=by_scram password=secret dbname=postgres sslmode=verify-full \
             sslrootcert={} channel_binding={binding}",
            server.file("ca.crt")
        )
    };
    ensure!(ours(&text("disable"), home.path()).await?, "the man in the middle does not work at all");
    for binding in ["prefer", "require"] {
        let error = ours(&text(binding), home.path()).await.err().context(binding)?;
        ensure!(error.code() == Some("28000") && error.to_string().contains("channel binding"), "{error}");
        ensure!(error.hint().is_some_and(|hint| hint.contains("between")), "{:?}", error.hint());
    }
    Ok(())
}

/// Shows the server's certificate without its key, in one version of TLS.
async fn copycat(dir: &Path, version: &'static rustls::SupportedProtocolVersion) -> Result<u16> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pem = |name: &str| fs::read(dir.join(name));
    let chain = CertificateDer::pem_slice_iter(&pem("good.crt")?).collect::<Result<Vec<_>, _>>()?;
    let key = provider.key_provider.load_private_key(PrivateKeyDer::from_pem_slice(&pem("wrong.key")?)?)?;
    let shown = rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(chain, key));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            client.read_exact(&mut [0; 8]).await?;
            client.write_all(b"S").await?;
            acceptor.accept(client).await.ok();
        }
        std::io::Result::Ok(())
    });
    Ok(port)
}

#[tokio::test]
async fn a_certificate_is_no_proof_without_its_key() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = TlsCluster::start(&install, "")? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let port = copycat(&server.dir, version).await?;
        for mode in ["require", "verify-full"] {
            // The certificate itself is trusted, by its authority and as a copy.
            for root in ["ca.crt", "good.crt"] {
                let text = format!(
                    "host={HOST} hostaddr=127.0.0.1 port={port} user=x dbname=x sslmode={mode} sslrootcert={}",
                    server.file(root)
                );
                let error = ours(&text, home.path()).await.err().context("it was taken for the server")?;
                ensure!(error.to_string().contains("BadSignature"), "{mode}: {error}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn tls_begins_at_once_where_the_server_can() -> Result<()> {
    for (major, can) in [(15, false), (17, true), (18, true)] {
        let Some(install) = ready(major) else { continue };
        let Some(server) = TlsCluster::start(&install, "")? else { continue };
        let home = tempfile::tempdir()?;
        let text = server.conninfo(&format!(
            "sslmode=verify-full sslrootcert={} sslnegotiation=direct",
            server.file("ca.crt")
        ));
        match ours(&text, home.path()).await {
            Ok(tls) => ensure!(tls && can, "PostgreSQL {major}"),
            Err(error) => {
                ensure!(!can && error.to_string().contains("sslnegotiation=direct"), "{major}: {error}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken_and_none_below() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let Some(server) = TlsCluster::start(&install, "")? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    let root = format!("sslmode=verify-full sslrootcert={}", server.file("ca.crt"));
    for (servers, more, version) in [
        ("TLSv1.3", "", Some("TLSv1.3")),
        ("TLSv1.2", "", Some("TLSv1.2")),
        ("TLSv1.2", "ssl_min_protocol_version=TLSv1.3", None),
        ("TLSv1.3", "ssl_max_protocol_version=TLSv1.2", None),
    ] {
        let (least, most) = if servers == "TLSv1.3" { (servers, "") } else { ("TLSv1.2", servers) };
        server.set(&[("ssl_min_protocol_version", least), ("ssl_max_protocol_version", most)])?;
        let text = server.conninfo(&format!("{root} {more}"));
        ensure!(agree(&text, home.path()).await?.is_ok() == version.is_some(), "{servers} {more}");
        if let Some(version) = version {
            let info = ConnInfo::parse(&text, &Environment::default())?;
            let mut sql = Sql::connect(&info, &Deadlines::default()).await?;
            let spoken = sql.one("select version from pg_stat_ssl where pid = pg_backend_pid()").await?;
            ensure!(spoken.as_deref() == Some(version), "{spoken:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_comes_before_the_encryption_is_never_taken_for_the_server() -> Result<()> {
    // CVE-2021-23222: a message put behind the "S" by somebody in the middle, unencrypted.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let stuffed = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await?;
        client.read_exact(&mut [0; 8]).await?;
        client.write_all(b"SR\0\0\0\x08\0\0\0\0").await?;
        client.read_to_end(&mut Vec::new()).await
    });
    let text = format!("host=127.0.0.1 port={port} user=x dbname=x sslmode=require");
    let error = ours(&text, Path::new("/nonexistent")).await.err().context("it was taken for the server")?;
    ensure!(matches!(error, ConnError::Tls { .. }), "{error}");
    stuffed.await??;
    Ok(())
}

#[tokio::test]
async fn init_check_and_backup_work_over_tls() -> Result<()> {
    let Some(install) = ready(15) else { return Ok(()) };
    let server = address(2);
    let conf: &'static str = Box::leak(format!("listen_addresses = '{server}'").into_boxed_str());
    let site = Site::new(&install, &SiteOptions { conf, segment_mib: 16, ..SiteOptions::default() })?;
    let dir = site.place().join("tls");
    fs::create_dir(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    authority(&dir, "ca", "authority")?;
    certificate(&dir, &Wanted::default())?;
    site.cluster.append_conf(
        "postgresql.conf",
        &format!(
            "fsync = on\nssl = on\nssl_cert_file = '{0}/good.crt'\nssl_key_file = '{0}/good.key'\n",
            dir.display()
        ),
    )?;
    site.cluster.append_conf("pg_hba.conf", "hostssl all,replication postgres 127.0.0.0/8 trust\n")?;
    site.cluster.stop(support::cluster::Stop::Fast)?;
    site.cluster.start()?;
    site.cluster.psql("CREATE TABLE big AS SELECT n, md5(n::text) FROM generate_series(1, 1500000) n;")?;

    let tls = format!(
        "host={HOST} hostaddr={server} user=postgres dbname=postgres sslmode=verify-full sslrootcert={}/ca.crt",
        dir.display()
    );
    let text = fs::read_to_string(&site.config)?;
    let line = text.lines().find(|line| line.starts_with("conninfo")).context("no conninfo")?;
    fs::write(&site.config, text.replace(line, &format!("conninfo = \"{tls}\"")))?;
    site.json(&["init", "--json"])?;
    let checked = site.ask(&["check", "--json"])?;
    ensure!(checked.code == 0, "{checked:?}");
    let done = site.backup()?;
    let rate = done["bytes_per_second"].as_u64().context("no rate")?;
    eprintln!("a backup of {} bytes over TLS: {rate} bytes/s", done["cluster_bytes"]);
    let (copy, _) = site.restored(&[])?;
    ensure!(copy.psql("SELECT count(*), max(n) FROM big")? == "1500000|1500000");

    // The same with a root that does not fit: nothing connects, and each command says why.
    authority(&dir, "ca", "another")?;
    for command in [&["backup"][..], &["check"], &["init"]] {
        let answer = site.ask(command)?;
        let told = format!("{}{}", answer.out, answer.err);
        ensure!(answer.code == 1 && told.contains("does not vouch for"), "{command:?}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_walsender_is_encrypted_too() -> Result<()> {
    let Some(install) = ready(17) else { return Ok(()) };
    let Some(server) = TlsCluster::start(&install, "")? else { return Ok(()) };
    let text = server.conninfo(&format!("sslmode=verify-full sslrootcert={}", server.file("ca.crt")));
    let info = ConnInfo::parse(&text, &Environment::default())?;
    let mut conn = ReplicationConn::connect(&info, &Deadlines::default()).await?;
    let ssl = server.cluster.psql(
        "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE backend_type = 'walsender'",
    )?;
    ensure!(ssl == "t" && conn.identify_system().await?.timeline.get() == 1);
    Ok(())
}

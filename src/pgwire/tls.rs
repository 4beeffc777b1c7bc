//! TLS: from the settings of a connection to an encrypted socket.
//!
//! ```text
//!  SSLRequest ─►  ◄─ S | N      one byte is read, no more: what else came with it was not encrypted
//!  ClientHello ─► ... handshake: rustls, `verify` decides about the certificate
//! ```
//! `sslnegotiation=direct` leaves the first line out. All files are read before a socket is opened, so that a wrong path never looks like
//! a fault of the server. Invariants: without `disable`, `allow` and `prefer` nothing but an encrypted stream comes out; sessions are
//! never resumed, so every connection is checked. Source of truth: `fe-secure-openssl.c` (`initialize_SSL`), `protocol.sgml`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use core::net::Ipv4Addr;

use bytes::BytesMut;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::certificate::Certificate;
use super::conninfo::{Negotiation, Roots, SslMode, TlsFile, TlsOptions, TlsVersion};
use super::error::TlsFault;
use super::files::{self, Secrecy};
use super::message;
use crate::authorities;
use verify::{CertificateFault, Trust, Verifier};

pub mod verify;

/// The protocol's name in TLS (`PG_ALPN_PROTOCOL`).
const ALPN: &[u8] = b"postgresql";
/// rustls reads some KiB at a time; this makes few calls to the kernel of it.
const SOCKET_BUFFER: usize = 128 << 10;

/// An encrypted connection.
pub(super) type TlsStream = tokio_rustls::client::TlsStream<BufReader<TcpStream>>;

/// What came of asking for encryption.
pub(super) enum Secured {
    /// It is encrypted.
    Tls(Box<TlsStream>),
    /// The server cannot, and that is acceptable.
    Plain(TcpStream),
}

/// How one host is spoken to over TLS.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    mode: SslMode,
    negotiation: Negotiation,
}

impl Tls {
    /// Reads all files. `host` is the name, or the address, as the user wrote it.
    pub(super) async fn prepare(options: &TlsOptions, host: &str) -> Result<Self, TlsFault> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier {
            trust: trust(options).await?,
            host: (options.mode == SslMode::VerifyFull).then(|| host.to_owned()),
            algorithms: provider.signature_verification_algorithms,
        };
        let own = own_certificate(options, &provider).await?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(options))
            .map_err(|error| TlsFault::Handshake(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match own {
            Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        let name = ServerName::try_from(host.to_owned()).ok();
        config.enable_sni = options.sni && matches!(name, Some(ServerName::DnsName(_)));
        Ok(Self {
            config: Arc::new(config),
            // Our verifier knows the host; without SNI, rustls has no other use for a name.
            name: name.unwrap_or_else(|| ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into())),
            mode: options.mode,
            negotiation: options.negotiation,
        })
    }

    /// Encrypts a connection on which nothing was said yet.
    pub(super) async fn start(&self, mut socket: TcpStream) -> Result<Secured, TlsFault> {
        if self.negotiation == Negotiation::Postgres {
            match ask(&mut socket)
                .await
                .map_err(|error| TlsFault::Handshake(format!("connection lost: {error}")))?
            {
                b'S' => {}
                b'N' if self.mode <= SslMode::Prefer => return Ok(Secured::Plain(socket)),
                b'N' => return Err(TlsFault::NotOffered(self.mode)),
                b'E' => {
                    let said = "the server answers the question for TLS with an error; its log says which";
                    return Err(TlsFault::Handshake(said.into()));
                }
                other => {
                    let said = format!(
                        "0x{other:02x} is no answer to the question for TLS; this is not a PostgreSQL server"
                    );
                    return Err(TlsFault::Handshake(said));
                }
            }
        }
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.config));
        let socket = BufReader::with_capacity(SOCKET_BUFFER, socket);
        let stream =
            connector.connect(self.name.clone(), socket).await.map_err(|error| self.fault(&error))?;
        if self.negotiation == Negotiation::Direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(TlsFault::NotDirect);
        }
        Ok(Secured::Tls(Box::new(stream)))
    }

    fn fault(&self, error: &io::Error) -> TlsFault {
        let ended = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
        if ended && self.negotiation == Negotiation::Direct {
            return TlsFault::NotDirect;
        }
        fault(error)
    }
}

async fn ask(socket: &mut TcpStream) -> io::Result<u8> {
    let mut question = BytesMut::new();
    message::put_ssl_request(&mut question);
    socket.write_all(&question).await?;
    socket.read_u8().await
}

/// What rustls, or our verifier below it, has to say.
pub(super) fn fault(error: &io::Error) -> TlsFault {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) => {
            match other.0.downcast_ref::<CertificateFault>() {
                Some(fault) => TlsFault::Certificate(fault.clone()),
                None => TlsFault::Handshake(error.to_string()),
            }
        }
        Some(rustls::Error::AlertReceived(alert)) => TlsFault::Alert(format!("alert {alert:?}")),
        _ => TlsFault::Handshake(format!("the handshake failed: {error}")),
    }
}

fn versions(options: &TlsOptions) -> Vec<&'static SupportedProtocolVersion> {
    let (least, most) = options.versions;
    let all = [(TlsVersion::V1_3, &TLS13), (TlsVersion::V1_2, &TLS12)];
    all.into_iter().filter(|(version, _)| (least..=most).contains(version)).map(|(_, known)| known).collect()
}

/// Whom to trust; nobody in particular if nothing is there to check by and nothing has to be checked.
async fn trust(options: &TlsOptions) -> Result<Option<Trust>, TlsFault> {
    let must = options.mode >= SslMode::VerifyCa;
    let (roots, source) = match &options.roots {
        Roots::System => (authorities::system(), "the list of authorities of this host".to_owned()),
        Roots::File(file) => {
            let Some((pem, path)) = optional(file.as_ref(), "sslrootcert").await? else {
                let looked = file
                    .as_ref()
                    .map_or_else(|| "~/.postgresql/root.crt".into(), |f| f.path.display().to_string());
                return if must { Err(TlsFault::NoRoots { mode: options.mode, looked }) } else { Ok(None) };
            };
            let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
            if found.is_empty() {
                return Err(wrong("sslrootcert", path, "there is no certificate in it".into()));
            }
            (found, path.display().to_string())
        }
    };
    let revoked = match optional(options.crl.as_ref(), "sslcrl").await? {
        Some((pem, path)) => revocation_lists(&pem, path)?,
        None => Vec::new(),
    };
    Ok(Some(Trust { roots, revoked, source }))
}

fn revocation_lists(pem: &[u8], path: &Path) -> Result<Vec<CertRevocationList<'static>>, TlsFault> {
    let list = |der: CertificateRevocationListDer<'_>| OwnedCertRevocationList::from_der(&der);
    let lists = CertificateRevocationListDer::pem_slice_iter(pem).filter_map(Result::ok).map(list);
    let lists: Result<Vec<_>, _> = lists.collect();
    match lists {
        Ok(lists) if lists.is_empty() => {
            Err(wrong("sslcrl", path, "there is no revocation list in it".into()))
        }
        Ok(lists) => Ok(lists.into_iter().map(CertRevocationList::Owned).collect()),
        Err(error) => Err(wrong("sslcrl", path, error.to_string())),
    }
}

/// Our own certificate and its key, if there is one.
async fn own_certificate(
    options: &TlsOptions,
    provider: &CryptoProvider,
) -> Result<Option<CertifiedKey>, TlsFault> {
    let Some((pem, path)) = optional(options.certificate.as_ref(), "sslcert").await? else {
        return Ok(None);
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    let Some(own) = chain.first() else {
        return Err(wrong("sslcert", path, "there is no certificate in it".into()));
    };
    let own = Certificate::parse(own).map_err(|why| wrong("sslcert", path, why))?;
    let Some(file) = &options.key else {
        return Err(wrong("sslcert", path, "its key must be named with sslkey".into()));
    };
    let fail = |reason: String| wrong("sslkey", &file.path, reason);
    let pem = files::read(&file.path, Secrecy::OwnOrRoots).await.map_err(|error| fail(error.to_string()))?;
    if String::from_utf8_lossy(&pem).contains("ENCRYPTED") {
        let reason = "it is encrypted, which pitr cannot read: `openssl pkey -in KEY -out PLAIN` decrypts it, \
                      and mode 0600 protects it";
        return Err(fail(reason.into()));
    }
    let key =
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| fail(format!("no private key: {error}")))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| fail(error.to_string()))?;
    if key.public_key().is_some_and(|public| public.as_ref() != own.public_key) {
        return Err(fail(format!("it does not belong to the certificate {}", path.display())));
    }
    Ok(Some(CertifiedKey::new(chain, key)))
}

/// The content of a file, which need not exist in its usual place.
async fn optional<'a>(
    file: Option<&'a TlsFile>,
    keyword: &'static str,
) -> Result<Option<(Vec<u8>, &'a Path)>, TlsFault> {
    let Some(TlsFile { path, named }) = file else { return Ok(None) };
    match files::read(path, Secrecy::Open).await {
        Ok(content) => Ok(Some((content, path))),
        Err(error) if !named && missing(&error) => Ok(None),
        Err(error) => Err(wrong(keyword, path, error.to_string())),
    }
}

fn missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn wrong(keyword: &'static str, path: &Path, reason: String) -> TlsFault {
    TlsFault::File { keyword, path: path.to_owned(), reason }
}

//! Logging in: the start-up packet, and whatever proof of identity the server asks for.
//!
//! ```text
//!  StartupMessage ─►        ◄─ AuthenticationOk | CleartextPassword | MD5Password | SASL ── SCRAM-SHA-256 ─┐
//!                           ◄─ ParameterStatus* BackendKeyData ReadyForQuery                 verified both ways
//! ```
//! Invariants: once SCRAM has begun, nothing but the server's valid signature lets us in, so a server that does not know the
//! password is noticed; the password file is read only when a password is asked for, and only if nobody else can read it.
//! Source of truth: `protocol.sgml`, `fe-auth-scram.c`, `fe-connect.c`.

use std::time::Duration;

use postgres_protocol::authentication::{md5_hash, sasl};

use super::conninfo::{AuthMethod, ChannelBinding, ConnInfo};
use super::dial::Limit;
use super::error::ConnError;
use super::message::{self, Authentication, Message, WireError};
use super::password::{self, Found};
use super::socket::Wire;

/// What the session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    /// A physical replication connection: replication commands only.
    Replication,
    /// An SQL session whose statements are stopped by the server after this time.
    Sql {
        /// `statement_timeout`
        statement_timeout: Duration,
    },
}

/// What a server tells about itself while it lets us in; versions before 14 do not.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reported {
    /// `in_hot_standby`
    pub(super) standby: Option<bool>,
    /// `default_transaction_read_only`
    pub(super) read_only: Option<bool>,
}

/// Logs in on a connection on which nothing was said yet.
pub(super) async fn begin(
    info: &ConnInfo,
    session: Session,
    wire: &mut Wire,
    limit: &Limit,
) -> Result<Reported, ConnError> {
    let at = wire.at().to_owned();
    put_startup(info, session, wire)?;
    let work = async {
        wire.request(limit.rest()).await?;
        let mut login = Login { info, session, wire, patience: limit.rest(), password: None };
        login.authenticate().await?;
        login.until_ready().await
    };
    limit.on(&at, "let us in", work).await?
}

fn put_startup(info: &ConnInfo, session: Session, wire: &mut Wire) -> Result<(), WireError> {
    let timeout;
    let mut parameters = vec![
        ("user", info.user.as_str()),
        // Without a database the server would hold everything against another encoding, places of tablespaces too, and fail.
        ("client_encoding", if session == Session::Replication { "SQL_ASCII" } else { "UTF8" }),
        ("application_name", info.application_name.as_str()),
    ];
    if let Some(options) = &info.options {
        parameters.push(("options", options));
    }
    match session {
        Session::Replication => parameters.push(("replication", "true")),
        Session::Sql { statement_timeout } => {
            timeout = format!("{}ms", statement_timeout.as_millis());
            parameters.extend([
                ("database", info.dbname.as_str()),
                ("statement_timeout", timeout.as_str()),
                ("DateStyle", "ISO"),
                // Nobody's schema may put its own functions and operators in front of PostgreSQL's.
                ("search_path", "pg_catalog"),
            ]);
        }
    }
    message::put_startup(&parameters, &mut wire.out)
}

/// How far SCRAM has come.
enum Scram {
    NotBegun,
    First(sasl::ScramSha256),
    Second(sasl::ScramSha256),
    Verified,
}

/// A log-in on its way.
struct Login<'a> {
    info: &'a ConnInfo,
    session: Session,
    wire: &'a mut Wire,
    patience: Duration,
    /// Once the server asked for it.
    password: Option<Found>,
}

impl Login<'_> {
    async fn authenticate(&mut self) -> Result<(), ConnError> {
        let mut scram = Scram::NotBegun;
        loop {
            let request = match self.receive().await? {
                Message::Authentication(request) => request,
                other => {
                    let expected = "an authentication request";
                    return Err(WireError::Unexpected { got: other.name(), expected }.into());
                }
            };
            scram = match (request, scram) {
                (Authentication::Ok, Scram::Verified) => return Ok(()),
                (Authentication::Ok, Scram::NotBegun) => {
                    if self.password.is_none() {
                        self.allow(AuthMethod::None, "no")?;
                    }
                    return Ok(());
                }
                (Authentication::Cleartext, Scram::NotBegun) => {
                    self.allow(AuthMethod::Password, "plain password")?;
                    let password = self.password().await?;
                    message::put_password(&password, &mut self.wire.out)?;
                    Scram::NotBegun
                }
                (Authentication::Md5(salt), Scram::NotBegun) => {
                    self.allow(AuthMethod::Md5, "MD5")?;
                    let digest = md5_hash(self.info.user.as_bytes(), &self.password().await?, salt);
                    message::put_password(digest.as_bytes(), &mut self.wire.out)?;
                    Scram::NotBegun
                }
                (Authentication::Sasl(offered), Scram::NotBegun) => self.begin_scram(&offered).await?,
                (Authentication::SaslContinue(data), Scram::First(mut exchange)) => {
                    exchange.update(&data).map_err(|error| self.impostor(&error))?;
                    message::put_sasl(exchange.message(), &mut self.wire.out)?;
                    Scram::Second(exchange)
                }
                (Authentication::SaslFinal(data), Scram::Second(mut exchange)) => {
                    exchange.finish(&data).map_err(|error| self.impostor(&error))?;
                    Scram::Verified
                }
                (Authentication::Other(name), _) => {
                    return Err(self.method(name, "which pitr does not speak"));
                }
                (_, _) => return Err(self.impostor(&"an authentication step came out of turn")),
            };
            self.wire.flush(self.patience).await?;
        }
    }

    async fn begin_scram(&mut self, offered: &[String]) -> Result<Scram, ConnError> {
        let offers = |name: &str| offered.iter().any(|other| other == name);
        let (plain, plus) = (offers(sasl::SCRAM_SHA_256), offers(sasl::SCRAM_SHA_256_PLUS));
        if !plain && !plus {
            return Err(self.method(&offered.join(" or "), "which pitr does not speak"));
        }
        self.allow(AuthMethod::Scram, "SCRAM-SHA-256")?;
        let required = self.info.channel_binding == ChannelBinding::Require;
        let (name, binding) = match (self.info.channel_binding, self.wire.stream().end_point()) {
            (ChannelBinding::Prefer | ChannelBinding::Require, Some(Ok(hash))) if plus => {
                (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash))
            }
            // Tells a server that does offer it that somebody took the offer out.
            (ChannelBinding::Prefer, Some(Ok(_))) => {
                (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())
            }
            (ChannelBinding::Require, Some(Err(why))) => {
                return Err(self
                    .method(sasl::SCRAM_SHA_256_PLUS, &format!("and its certificate binds nothing: {why}")));
            }
            _ => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        };
        if required && name != sasl::SCRAM_SHA_256_PLUS {
            return Err(self.method(
                sasl::SCRAM_SHA_256,
                "but channel_binding=require needs TLS and SCRAM-SHA-256-PLUS",
            ));
        }
        if name == sasl::SCRAM_SHA_256 && !plain {
            return Err(self.method(&offered.join(" or "), "which needs TLS and channel binding"));
        }
        let first = sasl::ScramSha256::new(&self.password().await?, binding);
        message::put_sasl_initial(name, first.message(), &mut self.wire.out)?;
        Ok(Scram::First(first))
    }

    /// Refuses a method that the user ruled out, before anything is sent that it could abuse.
    fn allow(&self, method: AuthMethod, shown: &str) -> Result<(), ConnError> {
        if let Some(required) = self.info.require_auth.as_ref().filter(|required| !required.allows(method)) {
            return Err(self.method(shown, &format!("but require_auth={}", required.text)));
        }
        if self.info.channel_binding == ChannelBinding::Require && method != AuthMethod::Scram {
            return Err(self.method(shown, "but channel_binding=require allows SCRAM-SHA-256-PLUS alone"));
        }
        Ok(())
    }

    async fn password(&mut self) -> Result<Vec<u8>, ConnError> {
        let found = password::find(self.info, self.wire.host(), self.session).await;
        let found = found.map_err(|reason| ConnError::Password { at: self.at(), reason })?;
        Ok(self.password.insert(found).password.expose().to_vec())
    }

    async fn until_ready(&mut self) -> Result<Reported, ConnError> {
        let mut reported = Reported::default();
        loop {
            match self.receive().await? {
                Message::ReadyForQuery => return Ok(reported),
                Message::ParameterStatus(name, value) if name == "in_hot_standby" => {
                    reported.standby = Some(value == "on");
                }
                Message::ParameterStatus(name, value) if name == "default_transaction_read_only" => {
                    reported.read_only = Some(value == "on");
                }
                Message::ParameterStatus(..) => {}
                Message::BackendKeyData { process, secret } => self.wire.keep_key(process, secret),
                other => {
                    return Err(WireError::Unexpected { got: other.name(), expected: "ReadyForQuery" }.into());
                }
            }
        }
    }

    /// The next message that is neither a notice nor the end.
    async fn receive(&mut self) -> Result<Message, ConnError> {
        loop {
            match self.wire.receive(self.patience, "let us in").await? {
                Message::Notice(said) => self.wire.note(*said),
                Message::Error(notice) => {
                    let password_from = self.password.as_ref().map(|found| found.from.clone());
                    return Err(ConnError::Refused { at: self.at(), notice, password_from });
                }
                other => return Ok(other),
            }
        }
    }

    fn at(&self) -> String {
        self.wire.at().to_owned()
    }

    fn method(&self, method: &str, reason: &str) -> ConnError {
        ConnError::Method { at: self.at(), method: method.to_owned(), reason: reason.to_owned() }
    }

    fn impostor(&self, reason: &impl ToString) -> ConnError {
        ConnError::Impostor { at: self.at(), reason: reason.to_string() }
    }
}

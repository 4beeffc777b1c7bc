//! Which server, and how: the hosts one after the other, with TLS or without, until one is what was asked for.
//!
//! ```text
//!  for each host:  TLS (sslmode=prefer) ─ refused? ─► plain     allow: the other way round     require and above: TLS alone
//!                    └─ logged in ─► what is it? (target_session_attrs) ─► taken, or the next host
//! ```
//! The next host is tried if one cannot be reached, says that it is not ready, or is not what was asked for; a host that refuses the
//! log-in ends the search, as with libpq. Unlike libpq, a wrong password is never sent a second time without encryption: only a server
//! that refuses before it asked for one is asked again the other way. Source of truth: `PQconnectPoll` in `fe-connect.c`.

use super::conninfo::{ConnInfo, Host, SslMode, Target, TargetSession};
use super::dial::{self, Limit};
use super::error::{ConnError, TlsFault};
use super::message;
use super::socket::{Deadlines, Wire};
use super::startup::{self, Reported, Session};
use super::tls::Tls;

/// Connects and logs in. Dropped in the middle, nothing remains but a connection that the server closes.
pub(super) async fn login(
    info: &ConnInfo,
    session: Session,
    deadlines: &Deadlines,
) -> Result<Wire, ConnError> {
    let mut hosts: Vec<&Host> = info.hosts.iter().collect();
    if info.load_balance {
        dial::shuffle(&mut hosts);
    }
    let rounds = match info.target_session {
        TargetSession::PreferStandby => vec![TargetSession::Standby, TargetSession::Any],
        wanted => vec![wanted],
    };
    let mut failures = Vec::new();
    for (wanted, host) in rounds.iter().flat_map(|wanted| hosts.iter().map(move |host| (*wanted, *host))) {
        match one_host(info, host, session, wanted, deadlines).await {
            Ok(wire) => return Ok(wire),
            Err(error) => {
                let is_last_word = !goes_on(&error);
                failures.push(error);
                if is_last_word {
                    break;
                }
            }
        }
    }
    Err(together(failures))
}

/// Whether the next host may do better.
fn goes_on(error: &ConnError) -> bool {
    match error {
        ConnError::Unreachable { .. } | ConnError::Timeout { .. } | ConnError::NotWanted { .. } => true,
        ConnError::NoneOf(attempts) => attempts.last().is_some_and(goes_on),
        // cannot_connect_now: it is starting or stopping
        other => other.code() == Some("57P03"),
    }
}

fn together(mut failures: Vec<ConnError>) -> ConnError {
    match (failures.pop(), failures.is_empty()) {
        (Some(only), true) => only,
        (last, _) => ConnError::NoneOf(failures.into_iter().chain(last).collect()),
    }
}

async fn one_host(
    info: &ConnInfo,
    host: &Host,
    session: Session,
    wanted: TargetSession,
    deadlines: &Deadlines,
) -> Result<Wire, ConnError> {
    let limit = Limit::new(info.connect_timeout.unwrap_or(deadlines.connect));
    let (mut wire, reported) = logged_in(info, host, session, &limit).await?;
    if wanted == TargetSession::Any {
        return Ok(wire);
    }
    let (standby, read_only) = match reported {
        Reported { standby: Some(standby), read_only: Some(read_only) } => (standby, read_only || standby),
        _ => ask(info, session, &mut wire, &limit).await?,
    };
    let fits = match wanted {
        TargetSession::Any | TargetSession::PreferStandby => true,
        TargetSession::ReadWrite => !read_only,
        TargetSession::ReadOnly => read_only,
        TargetSession::Primary => !standby,
        TargetSession::Standby => standby,
    };
    if fits {
        return Ok(wire);
    }
    let found = match (standby, read_only) {
        (true, _) => "a standby",
        (false, true) => "a primary whose sessions are read-only",
        (false, false) => "a primary",
    };
    let at = wire.at().to_owned();
    wire.close().await;
    Err(ConnError::NotWanted { at, found, wanted })
}

/// Asks a server before 14 whether it is in recovery and whether sessions are read-only. A walsender cannot tell.
async fn ask(
    info: &ConnInfo,
    session: Session,
    wire: &mut Wire,
    limit: &Limit,
) -> Result<(bool, bool), ConnError> {
    let mut other;
    let wire = match session {
        Session::Sql { .. } => wire,
        Session::Replication => {
            let session = Session::Sql { statement_timeout: limit.rest() };
            other = logged_in(info, wire.host(), session, limit).await?.0;
            &mut other
        }
    };
    let statement =
        "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on'";
    message::put_statement(statement, &[], &mut wire.out)?;
    wire.request(limit.rest()).await?;
    let rows = wire.rows(limit.rest()).await?;
    let column = |index: usize| {
        let cell = rows.first().and_then(|row| row.get(index)).cloned().flatten();
        cell.as_deref() == Some(b"t")
    };
    Ok((column(0), column(1)))
}

/// One log-in, encrypted or not as `sslmode` says.
async fn logged_in(
    info: &ConnInfo,
    host: &Host,
    session: Session,
    limit: &Limit,
) -> Result<(Wire, Reported), ConnError> {
    let name = match &host.target {
        Target::Tcp { host, .. } => Some(host.as_str()),
        Target::DefaultSocket | Target::Socket(_) | Target::Abstract(_) => None,
    };
    let tls = match name.filter(|_| info.tls.mode != SslMode::Disable) {
        Some(name) => {
            let fault = |fault| ConnError::Tls { at: dial::place(info, host), fault };
            Some(Tls::prepare(&info.tls, name).await.map_err(fault)?)
        }
        None => None,
    };
    let plain_first = info.tls.mode == SslMode::Allow;
    let mut encrypted = true;
    let first = tls.clone().filter(|_| !plain_first);
    let error = match attempt(info, host, session, first, limit, &mut encrypted).await {
        // A server without TLS was asked in plain already.
        Err(error) if tls.is_some() && encrypted != plain_first && may_change(info.tls.mode, &error) => error,
        done => return done,
    };
    let second = tls.filter(|_| plain_first);
    let done = attempt(info, host, session, second, limit, &mut encrypted).await;
    done.map_err(|second| together(vec![error, second]))
}

/// Whether the other way, plain or encrypted, may succeed where this one failed.
fn may_change(mode: SslMode, error: &ConnError) -> bool {
    let refused = || {
        let asked = matches!(error, ConnError::Refused { password_from: Some(_), .. });
        error.code() == Some("28000") && !asked
    };
    match mode {
        SslMode::Allow => refused(),
        SslMode::Prefer => {
            refused()
                || matches!(error, ConnError::Tls { fault, .. } if !matches!(fault, TlsFault::File { .. }))
        }
        SslMode::Disable | SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => false,
    }
}

async fn attempt(
    info: &ConnInfo,
    host: &Host,
    session: Session,
    tls: Option<Tls>,
    limit: &Limit,
    encrypted: &mut bool,
) -> Result<(Wire, Reported), ConnError> {
    *encrypted = tls.is_some();
    let (stream, peer) = dial::dial(info, host, tls, limit).await?;
    *encrypted = stream.is_tls();
    let mut wire = Wire::new(stream, peer);
    let reported = startup::begin(info, session, &mut wire, limit).await?;
    Ok((wire, reported))
}

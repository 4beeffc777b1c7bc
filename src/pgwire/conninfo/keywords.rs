//! Every keyword of libpq, and what pitr does about it.
//!
//! A keyword is used, harmless to ignore, or refused with words: ignoring one that matters would connect in another way than the user
//! asked for. Source of truth: `PQconninfoOptions` in `fe-connect.c` of PostgreSQL 13 to 18.

use super::ConnInfoError;

/// What pitr does about a keyword.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// It has an effect.
    Used,
    /// Ignoring it changes nothing that was asked for.
    Ignored,
    /// Only these values mean what pitr does anyway.
    Only(&'static [&'static str], &'static str),
    /// It cannot be honoured.
    Refused(&'static str),
}

const NO_GSS: &str = "pitr does not speak GSSAPI";
const NO_OAUTH: &str = "pitr does not speak OAuth";
const CERTMODE: &str = "pitr cannot insist that the server asks for a certificate";

/// Keyword, environment variable, rule.
pub(super) const KEYWORDS: &[(&str, &str, Rule)] = &[
    ("host", "PGHOST", Rule::Used),
    ("hostaddr", "PGHOSTADDR", Rule::Used),
    ("port", "PGPORT", Rule::Used),
    ("dbname", "PGDATABASE", Rule::Used),
    ("user", "PGUSER", Rule::Used),
    ("password", "PGPASSWORD", Rule::Used),
    ("passfile", "PGPASSFILE", Rule::Used),
    ("service", "PGSERVICE", Rule::Used),
    ("servicefile", "PGSERVICEFILE", Rule::Used),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Rule::Used),
    ("application_name", "PGAPPNAME", Rule::Used),
    ("fallback_application_name", "", Rule::Used),
    ("options", "PGOPTIONS", Rule::Used),
    ("keepalives", "", Rule::Used),
    ("keepalives_idle", "", Rule::Used),
    ("keepalives_interval", "", Rule::Used),
    ("keepalives_count", "", Rule::Used),
    ("tcp_user_timeout", "", Rule::Used),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Rule::Used),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Rule::Used),
    ("sslmode", "PGSSLMODE", Rule::Used),
    ("sslnegotiation", "PGSSLNEGOTIATION", Rule::Used),
    ("sslrootcert", "PGSSLROOTCERT", Rule::Used),
    ("sslcert", "PGSSLCERT", Rule::Used),
    ("sslkey", "PGSSLKEY", Rule::Used),
    ("sslcrl", "PGSSLCRL", Rule::Used),
    ("sslsni", "PGSSLSNI", Rule::Used),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Rule::Used),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Rule::Used),
    ("sslcertmode", "PGSSLCERTMODE", Rule::Only(&["disable", "allow"], CERTMODE)),
    ("channel_binding", "PGCHANNELBINDING", Rule::Used),
    ("require_auth", "PGREQUIREAUTH", Rule::Used),
    ("client_encoding", "PGCLIENTENCODING", Rule::Ignored),
    ("sslcompression", "PGSSLCOMPRESSION", Rule::Ignored),
    // Matters for an encrypted key alone, and that one is refused.
    ("sslpassword", "", Rule::Ignored),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", Rule::Ignored),
    ("krbsrvname", "PGKRBSRVNAME", Rule::Ignored),
    ("gsslib", "PGGSSLIB", Rule::Ignored),
    ("gssdelegation", "PGGSSDELEGATION", Rule::Ignored),
    ("gssencmode", "PGGSSENCMODE", Rule::Only(&["disable", "prefer"], NO_GSS)),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Rule::Only(&["3.0"], "pitr speaks protocol 3.0")),
    (
        "sslcrldir",
        "PGSSLCRLDIR",
        Rule::Refused("put the revocation lists into one file and name it with sslcrl"),
    ),
    ("sslkeylogfile", "", Rule::Refused("pitr never writes down the keys of a connection")),
    ("requirepeer", "PGREQUIREPEER", Rule::Refused("pitr cannot check the server's user")),
    ("replication", "", Rule::Refused("pitr decides itself which of its connections are for replication")),
    ("scram_client_key", "", Rule::Refused("give the password")),
    ("scram_server_key", "", Rule::Refused("give the password")),
    ("oauth_issuer", "", Rule::Refused(NO_OAUTH)),
    ("oauth_client_id", "", Rule::Refused(NO_OAUTH)),
    ("oauth_client_secret", "", Rule::Refused(NO_OAUTH)),
    ("oauth_scope", "", Rule::Refused(NO_OAUTH)),
];

/// The keyword as the table has it.
pub(super) fn known(keyword: &str) -> Result<&'static str, ConnInfoError> {
    if let Some((name, ..)) = KEYWORDS.iter().find(|(name, ..)| *name == keyword) {
        return Ok(name);
    }
    let distance = |name: &&str| strsim::damerau_levenshtein(name, keyword);
    let nearest = KEYWORDS.iter().map(|(name, ..)| *name).min_by_key(distance);
    let nearest = nearest.filter(|name| distance(name) <= 2).map(str::to_owned);
    Err(ConnInfoError::UnknownKeyword { keyword: keyword.chars().take(64).collect(), nearest })
}

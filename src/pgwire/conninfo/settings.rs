//! From pairs of keyword and value to a typed connection.
//!
//! ```text
//!  PG* variables  <  service file  <  text          a later one overrides an earlier one
//!         └────────── Settings ──────────┘ ─► rules of KEYWORDS ─► ConnInfo
//! ```
//! An empty value counts as not given, as libpq takes it. Pure.
//! Source of truth: `conninfo_add_defaults` and `pqConnectOptions2` in `fe-connect.c`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::choices::{self, Names, RequireAuth};
use super::keywords::{KEYWORDS, Rule, known};
use super::{
    ChannelBinding, ConnInfo, ConnInfoError, Environment, Keepalive, Negotiation, Roots, Secret, SslMode,
    TargetSession, TlsFile, TlsOptions, TlsVersion, service,
};

/// Settings by keyword, each with the name under which it was given.
#[derive(Debug, Default)]
pub(super) struct Settings(BTreeMap<&'static str, (String, String)>);

impl Settings {
    /// Puts the sources on top of each other and applies the rules that need no understanding of a value.
    pub(super) fn collect(
        pairs: Vec<(String, String)>,
        environment: &Environment,
    ) -> Result<Self, ConnInfoError> {
        let mut settings = Self::default();
        settings.add_variables(environment);
        let mut text = Self::default();
        for (keyword, value) in pairs {
            text.0.insert(known(&keyword)?, (keyword, value));
        }
        let named = |keyword| text.text(keyword).or_else(|| settings.text(keyword)).map(str::to_owned);
        let file = named("servicefile");
        if let Some(name) = named("service") {
            let found = service::settings(&name, file.as_deref(), environment)?;
            for (keyword, value) in found {
                let shown = format!("{keyword} of service {name}");
                settings.0.insert(known(&keyword)?, (shown, value));
            }
        }
        settings.0.append(&mut text.0);
        settings.check()?;
        Ok(settings)
    }

    fn add_variables(&mut self, environment: &Environment) {
        let get = |variable: &str| environment.variables.get(variable).cloned();
        if get("PGREQUIRESSL").is_some_and(|value| value.starts_with('1')) {
            self.0.insert("sslmode", ("PGREQUIRESSL".into(), "require".into()));
        }
        for (keyword, variable, _) in KEYWORDS.iter().filter(|entry| !entry.1.is_empty()) {
            if let Some(value) = get(variable) {
                self.0.insert(keyword, ((*variable).to_owned(), value));
            }
        }
    }

    fn check(&self) -> Result<(), ConnInfoError> {
        for (keyword, _, rule) in KEYWORDS {
            let Some((name, value)) = self.0.get(keyword).filter(|(_, value)| !value.is_empty()) else {
                continue;
            };
            match rule {
                Rule::Used | Rule::Ignored => {}
                Rule::Only(values, _) if values.contains(&value.as_str()) => {}
                Rule::Only(_, reason) => {
                    return Err(ConnInfoError::Unsupported { name: format!("{name}={value}"), reason });
                }
                Rule::Refused(reason) => {
                    return Err(ConnInfoError::Unsupported { name: name.clone(), reason });
                }
            }
        }
        Ok(())
    }

    pub(super) fn build(&self, environment: &Environment) -> Result<ConnInfo, ConnInfoError> {
        let user = self.text("user").map(str::to_owned).or_else(|| environment.os_user.clone());
        let user = user.filter(|user| !user.is_empty()).ok_or(ConnInfoError::NoUser)?;
        let default_passfile = || environment.home.as_ref().map(|home| home.join(".pgpass"));
        let application = self.text("application_name").or_else(|| self.text("fallback_application_name"));
        let timeout = self.number("connect_timeout", 0, 1_000_000)?.filter(|&seconds| seconds > 0);
        let patience = self.number("tcp_user_timeout", 0, u32::MAX)?.filter(|&millis| millis > 0);
        let balance = self.choice("load_balance_hosts", &[("disable", false), ("random", true)], false)?;
        let required = self.text("require_auth").map(RequireAuth::parse).transpose();
        Ok(ConnInfo {
            hosts: self.hosts()?,
            load_balance: balance,
            target_session: self.choice("target_session_attrs", TargetSession::NAMES, TargetSession::Any)?,
            dbname: self.text("dbname").unwrap_or(&user).to_owned(),
            password: self.text("password").map(|text| Secret::new(text.as_bytes().to_vec())),
            passfile: self.text("passfile").map(PathBuf::from).or_else(default_passfile),
            // libpq: below 2 s there would be no time to look up a name
            connect_timeout: timeout.map(|seconds| Duration::from_secs(u64::from(seconds.max(2)))),
            application_name: application.unwrap_or("pitr").to_owned(),
            options: self.text("options").map(str::to_owned),
            keepalive: self.keepalive()?,
            tcp_user_timeout: patience.map(|millis| Duration::from_millis(u64::from(millis))),
            tls: self.tls(environment)?,
            channel_binding: self.choice("channel_binding", ChannelBinding::NAMES, ChannelBinding::Prefer)?,
            require_auth: required.map_err(|reason| self.wrong("require_auth", reason))?,
            user,
        })
    }

    /// The value of a keyword; an empty one counts as not given.
    pub(super) fn text(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub(super) fn wrong(&self, keyword: &str, reason: String) -> ConnInfoError {
        let (name, value) = self.0.get(keyword).cloned().unwrap_or_default();
        ConnInfoError::Value { name, value, reason }
    }

    fn choice<T: Copy>(&self, keyword: &str, names: Names<T>, default: T) -> Result<T, ConnInfoError> {
        let Some(word) = self.text(keyword) else { return Ok(default) };
        choices::find(names, word).map_err(|reason| self.wrong(keyword, reason))
    }

    fn number(&self, keyword: &str, least: u32, most: u32) -> Result<Option<u32>, ConnInfoError> {
        let Some(text) = self.text(keyword) else { return Ok(None) };
        let number = text.trim().parse::<u32>().ok().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| self.wrong(keyword, "it is not a number in the possible range".into()))
    }

    fn keepalive(&self) -> Result<Option<Keepalive>, ConnInfoError> {
        if self.number("keepalives", 0, 1)? == Some(0) {
            return Ok(None);
        }
        let seconds = |keyword, default| {
            let given = self.number(keyword, 0, 32_767)?.filter(|&seconds| seconds > 0);
            Ok(Duration::from_secs(u64::from(given.unwrap_or(default))))
        };
        Ok(Some(Keepalive {
            idle: seconds("keepalives_idle", 30)?,
            interval: seconds("keepalives_interval", 10)?,
            count: self.number("keepalives_count", 0, 127)?.filter(|&count| count > 0).unwrap_or(3),
        }))
    }

    fn tls(&self, environment: &Environment) -> Result<TlsOptions, ConnInfoError> {
        let file = |keyword: &str, usual: &str| {
            let named = self.text(keyword).map(|path| TlsFile { path: path.into(), named: true });
            let home = environment.home.as_ref();
            let default =
                || home.map(|home| TlsFile { path: home.join(".postgresql").join(usual), named: false });
            named.or_else(default)
        };
        let system = self.text("sslrootcert") == Some("system");
        let default_mode = if system { SslMode::VerifyFull } else { SslMode::Prefer };
        let mode = self.choice("sslmode", SslMode::NAMES, default_mode)?;
        if system && mode != SslMode::VerifyFull {
            let reason = "the authorities of the host vouch for everybody: use sslmode=verify-full with them";
            return Err(self.wrong("sslrootcert", reason.into()));
        }
        let negotiation = self.choice("sslnegotiation", Negotiation::NAMES, Negotiation::Postgres)?;
        if negotiation == Negotiation::Direct && mode < SslMode::Require {
            let reason = "it needs sslmode=require, verify-ca or verify-full";
            return Err(self.wrong("sslnegotiation", reason.into()));
        }
        let with_certificate = self.text("sslcertmode") != Some("disable");
        Ok(TlsOptions {
            mode,
            negotiation,
            roots: if system { Roots::System } else { Roots::File(file("sslrootcert", "root.crt")) },
            crl: file("sslcrl", "root.crl"),
            certificate: file("sslcert", "postgresql.crt").filter(|_| with_certificate),
            key: file("sslkey", "postgresql.key"),
            sni: self.choice("sslsni", &[("0", false), ("1", true)], true)?,
            versions: self.versions()?,
        })
    }

    fn versions(&self) -> Result<(TlsVersion, TlsVersion), ConnInfoError> {
        let (least, most) = ("ssl_min_protocol_version", "ssl_max_protocol_version");
        let lowest = self.choice(least, TlsVersion::NAMES, TlsVersion::V1_2)?;
        let highest = self.choice(most, TlsVersion::NAMES, TlsVersion::V1_3)?;
        if highest == TlsVersion::Old {
            return Err(self.wrong(most, "pitr speaks TLSv1.2 and TLSv1.3".into()));
        }
        if lowest > highest {
            return Err(self.wrong(least, "it is above ssl_max_protocol_version".into()));
        }
        Ok((lowest, highest))
    }
}

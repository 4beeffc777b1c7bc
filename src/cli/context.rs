//! What a command works with: the configuration, the environment, the open repositories.
//!
//! This is the one place where the environment is read. Repositories are opened from the configuration, or from
//! `--repository URL --cluster NAME` where there is none. Opening asks nothing of a store: an unreachable one shows with its first
//! call, so that `info` on one repository does not fail for another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroize as _;

use crate::cli::args::Common;
use crate::cli::keyring;
use crate::cli::privilege::{self, Account};
use crate::config::load::{Caller, load};
use crate::config::{Config, RepositoryConfig};
use crate::durable::Owner;
use crate::error::Error;
use crate::pgwire::{ConnInfo, Environment};
use crate::repo::{Keyring, Repository};
use crate::store::{Settings, Store, StoreOptions, StoreUrl, parse_credentials_file};

/// Longest credentials file that is read.
const MAX_CREDENTIALS: u64 = 64 * 1024;
/// Longest service file that is read.
const MAX_SERVICES: u64 = 1 << 20;

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    /// The flags that all commands share.
    pub common: Common,
    /// The configuration; without a file, what the flags say.
    pub config: Config,
    /// The environment of the process.
    pub environment: BTreeMap<String, String>,
    /// The keys at hand; `None`: nothing is encrypted.
    pub keys: Option<Arc<Keyring>>,
}

impl Context {
    /// Reads the configuration.
    ///
    /// # Errors
    /// Kind `Usage` if there is none and the flags do not replace it, and whatever is wrong with it.
    pub fn load(common: &Common, caller: Caller) -> Result<Self, Error> {
        let mut environment = environment();
        // Flags that say all win over a file that would only be looked for, whatever is in it: it may come to be there in the middle of a
        // recovery that was begun without.
        let by_url = common.config.is_none() && common.repository.iter().any(|said| said.contains("://"));
        let found = if by_url && common.cluster.is_some() {
            None
        } else {
            load(common.config.as_deref(), &environment, caller)?
        };
        let config = match (found, &common.cluster) {
            (Some(config), None) => config,
            (Some(config), Some(name)) if config.cluster.as_str() == name => config,
            (_, Some(name)) if common.config.is_none() => Config::without_file(&common.repository, name)?,
            (Some(config), Some(name)) => {
                return Err(Error::usage(format!(
                    "--cluster {name} contradicts the configuration, which says {}",
                    config.cluster
                )));
            }
            (None, _) => {
                return Err(Error::usage("there is no configuration").hint(
                    "run `pitr init`, name a file with --config, or give --repository URL --cluster NAME",
                ));
            }
        };
        let keys = keyring::read(common, &config, &environment, caller)?;
        // Nobody after this needs it, and stores are handed the whole environment.
        environment.remove(keyring::VARIABLE).zeroize();
        Ok(Self { common: common.clone(), config, environment, keys })
    }

    /// Steps down from root to the owner of the data directory or of a `file://` repository.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn act_as_owner(&self) -> Result<(), Error> {
        if !privilege::is_root() {
            return Ok(());
        }
        match self.owner() {
            Some(account) => privilege::step_down(&account),
            None => Ok(()),
        }
    }

    /// Who owns the data directory, else the first `file://` repository that exists, else the postgres account.
    pub fn owner(&self) -> Option<Account> {
        let data = self.config.postgres.data_dir.as_deref().and_then(Account::owner_of);
        let local = || {
            self.config.repositories.iter().find_map(|r| local_path(r).as_deref().and_then(Account::owner_of))
        };
        data.or_else(local).filter(|account| account.uid != 0).or_else(|| Account::named("postgres"))
    }

    /// The configured connection, completed from the environment.
    ///
    /// # Errors
    /// Kind `Usage` for a connection string that is wrong.
    pub fn conninfo(&self) -> Result<ConnInfo, Error> {
        let text = self.config.postgres.conninfo.as_deref().unwrap_or("user=postgres dbname=postgres");
        ConnInfo::parse(text, &surroundings(&self.environment)).map_err(|e| {
            Error::usage("the configured conninfo is wrong")
                .source(e)
                .hint("correct conninfo in the [postgres] section of the configuration")
        })
    }

    /// Opens the repositories that `--repository` names, or all.
    ///
    /// # Errors
    /// For a name that is not configured, and options that a store cannot have.
    pub fn repositories(&self) -> Result<Vec<Repository>, Error> {
        let named = &self.common.repository;
        let by_url = self.config.path.is_none();
        let chosen: Vec<&RepositoryConfig> = if named.is_empty() || by_url {
            self.config.repositories.iter().collect()
        } else {
            named.iter().map(|name| self.config.repository(name)).collect::<Result<_, _>>()?
        };
        chosen.into_iter().map(|r| self.open(r)).collect()
    }

    /// Opens one repository.
    ///
    /// # Errors
    /// For options that a store cannot have, and a credentials file that cannot be read.
    pub fn open(&self, config: &RepositoryConfig) -> Result<Repository, Error> {
        let wrong = |e: String| {
            Error::usage(format!("repository {:?}: {e}", config.name))
                .hint("correct its [[repository]] in the configuration")
        };
        let url: StoreUrl = config.url.parse().map_err(|e: crate::store::UrlError| wrong(e.to_string()))?;
        let owner = match &url {
            StoreUrl::File(_) if privilege::is_root() => {
                self.owner().map(|account| Owner { uid: account.uid, gid: account.gid })
            }
            _ => None,
        };
        let options = StoreOptions {
            endpoint: config.endpoint.clone(),
            region: config.region.clone(),
            allow_http: config.allow_http,
            ca_file: config.ca_file.clone(),
            credentials: config
                .credentials_file
                .as_deref()
                .map(read_credentials)
                .transpose()?
                .unwrap_or_default(),
            environment: self.environment.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            owner,
            allow_unsafe_store: config.allow_unsafe_store,
            request_timeout_base: Some(self.config.archive.timeout),
        };
        let store = Store::open(&url, &options).map_err(|e| wrong(e.to_string()))?;
        let repository = Repository::new(store, &config.name, self.config.cluster.clone(), config.required);
        Ok(match &self.keys {
            Some(keys) => repository.with_keys(Arc::clone(keys), !config.sealed),
            None => repository,
        })
    }
}

/// The environment as text; names and values that are not UTF-8 are of no use to pitr.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// What connection strings are completed from: libpq's variables, the user and its home.
pub fn surroundings(variables: &BTreeMap<String, String>) -> Environment {
    let account = Account::current();
    // A container's user may have no entry in /etc/passwd, and a home all the same.
    let home = account.home.or_else(|| variables.get("HOME").map(PathBuf::from));
    Environment {
        variables: variables.clone(),
        os_user: account.name,
        home,
        read_file: Some(read_service_file),
    }
}

fn read_service_file(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_SERVICES).read_to_string(&mut text)?;
    Ok(text)
}

fn local_path(config: &RepositoryConfig) -> Option<PathBuf> {
    match config.url.parse::<StoreUrl>() {
        Ok(StoreUrl::File(path)) => Some(path),
        _ => None,
    }
}

/// The names and values of a credentials file.
///
/// # Errors
/// Kind `Key` if it cannot be read, `Usage` if it is none.
pub fn read_credentials(path: &Path) -> Result<Settings, Error> {
    use std::io::Read;
    let unreadable = |e: std::io::Error| {
        Error::key(format!("cannot read the credentials file {}", path.display()))
            .source(e)
            .hint("it must be readable by the server's user, mode 0600")
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_CREDENTIALS).read_to_string(&mut text).map_err(unreadable)?;
    parse_credentials_file(&text).map_err(|e| {
        Error::usage(format!("the credentials file {} is wrong", path.display()))
            .source(e)
            .hint("it takes lines `name = value` under [default], or the key file of a Google account")
    })
}

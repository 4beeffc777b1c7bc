//! `pitr init`: from a stock server to one that archives, without a file edited by hand.
//!
//! ```text
//!  as root:   ask the server and look at the repositories (as its user) ─► write the configuration, make the repository's directory
//!             ─► step down for good
//!  as owner:  identity in every repository ─► settings printed, or made with --apply ─► what to do next
//! ```
//! Run by an ordinary user, the same without the change of user: the configuration then needs a place that user may write
//! (`--config FILE`).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::cli::args::{Common, InitArgs};
use crate::cli::context::{self, Context};
use crate::cli::exit::Ended;
use crate::cli::keyring;
use crate::cli::output::{self, say};
use crate::cli::privilege::{self, Account};
use crate::clock::SystemClock;
use crate::config::initial::Initial;
use crate::config::load::{Caller, SYSTEM_FILE, load};
use crate::config::{Config, holds_password};
use crate::durable::{self, Owner};
use crate::error::{Error, Result};
use crate::ops::failure;
use crate::ops::init::facts::{ServerFacts, failed};
use crate::ops::init::settings::{self, Change};
use crate::ops::init::{self, RepositoryReport};
use crate::pgdata::conf;
use crate::pgwire::{ConnError, ConnInfo, Deadlines, Sql, Target};
use crate::repo::RepoError;
use crate::repo::path::ClusterName;
use crate::store::StoreUrl;
use crate::wal::{SystemId, WalFileName};

/// The cluster's name where none is given.
const DEFAULT_CLUSTER: &str = "main";
/// Connection of a host's own server where none is given.
const DEFAULT_CONNINFO: &str = "host=/var/run/postgresql user=postgres dbname=postgres";

/// What is printed at the end.
struct Done {
    config: PathBuf,
    written: bool,
    facts: ServerFacts,
    /// What the configuration found says of another server than this one.
    stale: Option<String>,
    repositories: Vec<RepositoryReport>,
    changes: Vec<Change>,
    applied: bool,
    role: Vec<String>,
    adopted: Option<Vec<WalFileName>>,
}

/// Runs `init`.
///
/// # Errors
/// See the module, and [`init::repository`].
pub fn run(common: &Common, args: &InitArgs) -> Result<Ended> {
    let environment = context::environment();
    // A named file that is not there is to be written: another one that would be found is another cluster's.
    let found = match &common.config {
        Some(named) if !named.exists() => None,
        named => load(named.as_deref(), &environment, Caller::Operator)?,
    };
    let admin = admin_conninfo(args, found.as_ref(), &environment)?;
    let account = server_account(args, found.as_ref(), &admin);
    let facts = match &account {
        Some(account) => privilege::acting_as(account, || ask(&admin))?,
        None => ask(&admin)?,
    };
    let data_dir = args.data_dir.clone().or_else(|| facts.data_dir.clone());
    let owner = data_dir.as_deref().and_then(Account::owner_of).or(account);
    let (config, new) = match found {
        Some(config) => {
            check_host_file(args, &config)?;
            (config, None)
        }
        None => {
            let (config, text) = new_configuration(common, args, &facts, data_dir.as_deref())?;
            (config, Some(text))
        }
    };
    // Before anything is made: what is refused leaves nothing behind.
    let looked = || look(common, args, &facts, &config, &environment);
    match &owner {
        Some(owner) => privilege::acting_as(owner, looked)?,
        None => looked()?,
    }
    if let Some(text) = &new {
        write_configuration(&config, text, owner.as_ref())?;
    }
    let written = new.is_some();
    make_local_roots(&config, owner.as_ref())?;
    if let Some(owner) = &owner {
        privilege::step_down(owner)?;
    }
    let path = config.path.clone().unwrap_or_else(|| PathBuf::from(SYSTEM_FILE));
    let keys = keyring::read(common, &config, &environment, Caller::Operator)?;
    let context =
        Context { common: Common { repository: Vec::new(), ..common.clone() }, config, environment, keys };
    super::with_threads(|_| finish(context, args, facts, admin, path, written))
}

async fn finish(
    context: Context,
    args: &InitArgs,
    facts: ServerFacts,
    admin: ConnInfo,
    config: PathBuf,
    written: bool,
) -> Result<Ended> {
    let confirmed = args.system_id.map(SystemId::new);
    let mut repositories = Vec::new();
    for repository in context.repositories()? {
        repositories.push(init::repository(&repository, &facts, confirmed, &SystemClock).await?);
    }
    let binary = own_path()?;
    let command = conf::archive_command(&binary, &config)
        .map_err(|e| Error::usage("archive_command cannot name this program and configuration").source(e))?;
    let changes = settings::changes(&facts, &command, context.config.promise.rpo)?;
    let role = missing_role(&context, &admin).await?;
    let adopted = if args.adopt { Some(adopt(&context, args, &facts).await?) } else { None };
    let apply = args.apply || args.adopt;
    if apply {
        let mut sql = Sql::connect(&admin, &Deadlines::default()).await.map_err(failed)?;
        for statement in &role {
            sql.rows(statement, &[]).await.map_err(failed)?;
        }
        init::apply(&mut sql, &changes).await?;
    }
    let stale = stale(&context.config, &facts);
    let applied = apply;
    let done = Done { config, written, facts, stale, repositories, changes, applied, role, adopted };
    if context.common.json {
        print_json(&done);
    } else {
        print_text(&done);
    }
    Ok(Ended::Well)
}

/// Whether all repositories can be what the configuration says of them, by reading alone: an encrypted one takes the host file, and a new one
/// that is not on this host and not to be encrypted takes a word that this is wanted. Afterwards would be too late: a folder stays what
/// it was made as.
fn look(
    common: &Common,
    args: &InitArgs,
    facts: &ServerFacts,
    config: &Config,
    environment: &std::collections::BTreeMap<String, String>,
) -> Result<()> {
    let keys = keyring::read(common, config, environment, Caller::Operator)?;
    let context = Context {
        common: Common { repository: Vec::new(), ..common.clone() },
        config: config.clone(),
        environment: environment.clone(),
        keys,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::failed("cannot start the runtime").source(e))?;
    runtime.block_on(async {
        for configured in &context.config.repositories {
            let repository = context.open(configured)?;
            // Its directory is made later; a store says that it is gone.
            let new = matches!(configured.url.parse(), Ok(StoreUrl::File(path)) if !path.exists());
            let found = if new { Ok(Vec::new()) } else { repository.identities().await };
            let there = found.map_err(lacks_host_file)?;
            let wanted = args.plain || !configured.sealed || is_local(&configured.url);
            match there.iter().any(|identity| identity.system == facts.system) {
                true => {}
                false if repository.is_to_be_sealed() => {
                    repository.host_for_a_folder().map_err(lacks_host_file)?;
                }
                false if wanted => {}
                false => return Err(in_clear(&configured.url, context.config.path.as_deref())),
            }
        }
        Ok(())
    })
}

fn lacks_host_file(error: RepoError) -> Error {
    let lacks = matches!(error, RepoError::NoKeys { .. });
    let error = Error::from(error);
    if !lacks {
        return error;
    }
    error.hint(
        "it takes the cluster's host file: --host-file FILE, or host_file under [keys] in a configuration that is there. If it is lost, `pitr key recover` makes one",
    )
}

/// What leaves the host is encrypted unless somebody says otherwise. `config` is the file that says nothing, if there is one.
fn in_clear(url: &str, config: Option<&Path>) -> Error {
    let make = "make keys with `pitr key init --host-file /etc/pitr/main.host --generate daily=FILE --generate offline=FILE`";
    let then = config.filter(|path| path.exists()).map_or_else(
        || "repeat with --host-file /etc/pitr/main.host; or say --plain".to_owned(),
        |path| {
            format!(
                "put [keys] and host_file = \"/etc/pitr/main.host\" into {}; or say --plain, or sealed = false in its [[repository]]",
                path.display()
            )
        },
    );
    Error::usage(format!("{url} is not on this host, and nothing says how it is to be encrypted"))
        .hint(format!("{make} and {then}"))
}

/// What the configuration says of a server that is another one by now: after pg_upgrade the directories are new, and `restore
/// --replace` would take the old one.
fn stale(config: &Config, facts: &ServerFacts) -> Option<String> {
    let differs = |ours: &Option<PathBuf>, theirs: &Option<PathBuf>| {
        let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        matches!((ours, theirs), (Some(ours), Some(theirs)) if real(ours) != real(theirs))
    };
    let keys = [
        ("data_dir", &config.postgres.data_dir, &facts.data_dir),
        ("bin_dir", &config.postgres.bin_dir, &facts.bin_dir),
    ];
    let lines: Vec<String> = keys
        .into_iter()
        .filter(|(_, ours, theirs)| differs(ours, theirs))
        .filter_map(|(key, _, theirs)| Some(format!("{key} = \"{}\"", theirs.as_ref()?.display())))
        .collect();
    let file =
        config.path.as_ref().map_or_else(|| "the configuration".to_owned(), |p| p.display().to_string());
    (!lines.is_empty()).then(|| format!("{file}: this server has {}", lines.join(", ")))
}

/// A copy's histories go into the archive before its segments may.
async fn adopt(context: &Context, args: &InitArgs, facts: &ServerFacts) -> Result<Vec<WalFileName>> {
    if facts.in_recovery {
        return Err(Error::refused(
            "the server is still in recovery: a copy is adopted after it was promoted",
        )
        .hint("let it reach its target and promote it (pg_ctl promote), then repeat the command"));
    }
    let data_dir = args.data_dir.clone().or_else(|| facts.data_dir.clone());
    let data_dir = data_dir
        .ok_or_else(|| Error::usage("--adopt must know the data directory").hint("--data-dir DIR"))?;
    init::adopt::adopt(
        &context.repositories()?,
        &data_dir,
        super::archive::compression(&context.config.archive),
    )
    .await
}

fn admin_conninfo(
    args: &InitArgs,
    found: Option<&Config>,
    variables: &std::collections::BTreeMap<String, String>,
) -> Result<ConnInfo> {
    for (flag, text) in [("--superuser", &args.superuser), ("--conninfo", &args.conninfo)] {
        if text.as_deref().is_some_and(holds_password) {
            return Err(Error::usage(format!("{flag} has a password in it: no secret is taken from the command line"))
                .hint("whoever lists processes may have seen it: change it, and put it into ~/.pgpass, PGPASSWORD, or a file that passfile=FILE or service=NAME names"));
        }
    }
    let configured = found.and_then(|config| config.postgres.conninfo.as_deref());
    let text =
        args.superuser.as_deref().or(args.conninfo.as_deref()).or(configured).unwrap_or(DEFAULT_CONNINFO);
    let environment = context::surroundings(variables);
    ConnInfo::parse(text, &environment)
        // Not shown: it may hold a password. The cause names the keyword.
        .map_err(|e| {
            Error::usage("the server's connection string is wrong")
                .source(e)
                .hint("such as --superuser 'host=/run/postgresql user=postgres'")
        })
}

/// The user the server runs as: who owns its data directory, else its socket, else the account called postgres.
fn server_account(args: &InitArgs, found: Option<&Config>, admin: &ConnInfo) -> Option<Account> {
    if !privilege::is_root() {
        return None;
    }
    let data = args.data_dir.as_deref().or_else(|| found.and_then(|c| c.postgres.data_dir.as_deref()));
    let socket = admin.hosts.first().and_then(|host| match &host.target {
        Target::Socket(directory) => Some(directory.join(format!(".s.PGSQL.{}", host.port))),
        Target::DefaultSocket | Target::Abstract(_) | Target::Tcp { .. } => None,
    });
    let owner = data.and_then(Account::owner_of).or_else(|| socket.as_deref().and_then(Account::owner_of));
    owner.filter(|account| account.uid != 0).or_else(|| Account::named("postgres"))
}

fn ask(admin: &ConnInfo) -> Result<ServerFacts> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::failed("cannot start the runtime").source(e))?;
    runtime.block_on(async {
        let mut sql = Sql::connect(admin, &Deadlines::default()).await.map_err(|e| match e {
            ConnError::Unreachable { .. } => Error::failed("cannot connect to PostgreSQL")
                .source(e)
                .hint("is it running? name the connection with --superuser, for example --superuser 'host=/run/postgresql user=postgres'"),
            other => failure::of_server("cannot connect to PostgreSQL", other),
        })?;
        let facts = ServerFacts::read(&mut sql).await;
        sql.close().await;
        facts
    })
}

/// A host file that is given and that the configuration does not name would not be used, and what is stored would stay in clear for good.
fn check_host_file(args: &InitArgs, config: &Config) -> Result<()> {
    let Some(given) = &args.host_file else { return Ok(()) };
    let real = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_default();
    let named = config.keys.as_ref().and_then(|keys| keys.host_file.as_deref());
    if named.is_some_and(|named| real(named) == real(given)) {
        return Ok(());
    }
    let file = config.path.as_deref().unwrap_or_else(|| Path::new(SYSTEM_FILE)).display();
    let what = named.map_or_else(|| "no host file".to_owned(), |named| named.display().to_string());
    Err(Error::usage(format!("{file} is there already and names {what}, not {}", given.display())).hint(
        format!(
            "what is stored would not be encrypted with it: put [keys] and host_file = \"{}\" into {file}, then repeat without --host-file",
            real(given).display()
        ),
    ))
}

/// Whether the URL names a place on this host. What is no URL is refused elsewhere.
fn is_local(url: &str) -> bool {
    matches!(url.parse::<StoreUrl>(), Ok(StoreUrl::File(_) | StoreUrl::Memory(_)) | Err(_))
}

/// The host file to be named in a new configuration.
fn host_file(args: &InitArgs, url: &str) -> Result<Option<PathBuf>> {
    if let Some(path) = &args.host_file {
        let absolute = std::path::absolute(path);
        return absolute
            .map(Some)
            .map_err(|e| Error::usage(format!("cannot find {}", path.display())).source(e));
    }
    if is_local(url) || args.plain {
        return Ok(None);
    }
    Err(in_clear(url, None))
}

/// The configuration that is to be written, and its text.
fn new_configuration(
    common: &Common,
    args: &InitArgs,
    facts: &ServerFacts,
    data_dir: Option<&Path>,
) -> Result<(Config, String)> {
    let url =
        match common.repository.as_slice() {
            [url] => url,
            [] => return Err(Error::usage("no repository is given").hint(
                "where shall the backups go? --repository file:///var/backups/pitr, or s3://bucket/prefix",
            )),
            _ => {
                return Err(Error::usage("init writes a configuration with one repository")
                    .hint("add the others to the file and run init again"));
            }
        };
    let host_file = host_file(args, url)?;
    let name = common.cluster.as_deref().unwrap_or(DEFAULT_CLUSTER);
    let cluster: ClusterName = name.parse().map_err(|e| Error::usage(format!("--cluster: {e}")))?;
    let zone = args.timezone.as_deref().unwrap_or(&facts.timezone);
    let zone = match crate::target::named(zone) {
        Ok(zone) => Some(zone),
        Err(e) if args.timezone.is_some() => {
            return Err(Error::usage(format!("--timezone: {e}")).hint("give a name such as Europe/Berlin"));
        }
        // The server may know a zone that this host does not; a naive time is then refused until the user names one.
        Err(_) => None,
    };
    let fingerprint = host_file.as_deref().map(|path| keyring::host_file_of(path, &cluster)).transpose()?;
    let fingerprint = fingerprint.map(|host| host.seal.fingerprint().to_string());
    let initial = Initial {
        cluster: &cluster,
        timezone: zone.as_ref(),
        conninfo: args.conninfo.as_deref().or(args.superuser.as_deref()).unwrap_or(DEFAULT_CONNINFO),
        data_dir,
        bin_dir: facts.bin_dir.as_deref(),
        url,
        rpo: &args.rpo,
        host_file: host_file.as_deref(),
        seal_fingerprint: fingerprint.as_deref(),
    };
    let path = common.config.clone().unwrap_or_else(|| PathBuf::from(SYSTEM_FILE));
    let path = std::path::absolute(&path)
        .map_err(|e| Error::usage("the configuration's path is wrong").source(e))?;
    let text = initial.render();
    Ok((Config::parse(&text, &path)?, text))
}

fn write_configuration(config: &Config, text: &str, owner: Option<&Account>) -> Result<()> {
    let path = config.path.clone().unwrap_or_else(|| PathBuf::from(SYSTEM_FILE));
    let cannot = |e: &dyn std::fmt::Display| {
        Error::failed(format!("cannot write the configuration {}", path.display()))
            .source(e.to_string())
            .hint("run init as root, or name a place you may write with --config FILE")
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| cannot(&e))?;
    }
    // The server's user reads it in archive_command; nobody else needs to.
    let owner = owner.filter(|_| privilege::is_root()).map(|account| Owner { uid: 0, gid: account.gid });
    durable::write_replace(&path, text.as_bytes(), 0o640, owner).map_err(|e| cannot(&e))
}

/// Makes the directories of `file://` repositories while root may still make them anywhere.
fn make_local_roots(config: &Config, owner: Option<&Account>) -> Result<()> {
    for repository in &config.repositories {
        let Ok(StoreUrl::File(path)) = repository.url.parse::<StoreUrl>() else { continue };
        if path.exists() {
            owned_by(&path, owner)?;
            continue;
        }
        let owner = owner
            .filter(|_| privilege::is_root())
            .map(|account| Owner { uid: account.uid, gid: account.gid });
        durable::Root::new(&path, owner).make().map_err(|e| {
            Error::failed(format!("cannot make the repository {}", path.display()))
                .source(e)
                .hint("run init as root, or make the directory and give it to the server's user")
        })?;
    }
    Ok(())
}

/// A directory that the server's user cannot write would only show with the first segment.
fn owned_by(path: &Path, owner: Option<&Account>) -> Result<()> {
    let (Some(owner), Ok(meta)) = (owner, std::fs::metadata(path)) else { return Ok(()) };
    if !meta.is_dir() {
        return Err(Error::usage(format!("{} is not a directory", path.display())));
    }
    if meta.uid() == owner.uid || meta.mode() & 0o022 != 0 {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{} belongs to uid {}, but {} must write it",
        path.display(),
        meta.uid(),
        owner.label()
    ))
    .hint(format!("chown {} {}", owner.label(), path.display())))
}

/// What the configuration's role still lacks, if it is not the one that asks.
async fn missing_role(context: &Context, admin: &ConnInfo) -> Result<Vec<String>> {
    if context.config.postgres.conninfo.is_none() {
        return Ok(Vec::new());
    }
    let wanted = context.conninfo()?;
    if wanted.user == admin.user {
        return Ok(Vec::new());
    }
    let mut sql = Sql::connect(admin, &Deadlines::default()).await.map_err(failed)?;
    let there =
        sql.rows("select 1 from pg_roles where rolname = $1", &[&wanted.user]).await.map_err(failed)?;
    Ok(if there.is_empty() { init::role_statements(&wanted.user) } else { Vec::new() })
}

/// Where this program is, as the server must name it.
pub fn own_path() -> Result<PathBuf> {
    std::fs::read_link("/proc/self/exe")
        .map_err(|e| Error::failed("cannot tell where this program is").source(e))
}

/// How this host restarts the server: Debian's way where its layout is found.
fn restart_command(facts: &ServerFacts) -> String {
    let data = facts.data_dir.clone().unwrap_or_default();
    let parts: Vec<String> =
        data.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    match parts.as_slice() {
        [.., lib, version, name] if lib == "postgresql" && version.parse::<u32>().is_ok() => {
            format!("pg_ctlcluster {version} {name} restart")
        }
        _ => format!("pg_ctl -D {} restart", data.display()),
    }
}

fn said_of_repositories(done: &Done) -> String {
    let mut text = String::new();
    for repository in &done.repositories {
        let state = if repository.created { "cluster created" } else { "cluster there already" };
        let sealed = if repository.sealed { ", encrypted" } else { ", not encrypted" };
        let degraded = if repository.degraded { "; DEGRADED: a second writer could go unseen" } else { "" };
        text.push_str(&format!(
            "repository     {} {} ({state}{sealed}{degraded})\n",
            repository.name, repository.url
        ));
        if let Some(key) = &repository.left_behind {
            text.push_str(&format!("{:14} nothing can be deleted there: {key} stays, and may go\n", ""));
        }
    }
    text
}

fn print_text(done: &Done) {
    let facts = &done.facts;
    let state = if done.written { "written" } else { "found" };
    let mut text = format!(
        "server         PostgreSQL {}, system {}, {}\nconfiguration  {} ({state})\n",
        facts.version,
        facts.system,
        facts
            .data_dir
            .as_deref()
            .map_or_else(|| "data directory unknown".to_owned(), |d| d.display().to_string()),
        done.config.display()
    );
    if let Some(stale) = &done.stale {
        text.push_str(&format!("edit           {stale}\n"));
    }
    text.push_str(&said_of_repositories(done));
    if let Some(histories) = &done.adopted {
        let names: Vec<String> = histories.iter().map(ToString::to_string).collect();
        text.push_str(&format!("adopted        a primary now; histories stored: {}\n", names.join(", ")));
    }
    for statement in &done.role {
        text.push_str(&format!("role           {}{statement};\n", if done.applied { "made: " } else { "" }));
    }
    for change in &done.changes {
        let restart = if change.restart { ", takes a restart" } else { "" };
        let line = if done.applied {
            format!("{} = '{}' (was '{}'{restart})", change.name, change.value, change.now)
        } else {
            format!("{};", change.statement())
        };
        text.push_str(&format!("setting        {line}\n"));
    }
    let restart = done.changes.iter().any(|c| c.restart);
    let mut next: Vec<String> = Vec::new();
    if !done.changes.is_empty() && !done.applied {
        next.push(
            "run the statements above as superuser (or `pitr init --apply`), then SELECT pg_reload_conf();"
                .to_owned(),
        );
    }
    if restart {
        next.push(format!(
            "{}   # archive_mode and wal_level change only with a restart",
            restart_command(facts)
        ));
    }
    next.extend(["pitr check".to_owned(), "pitr backup".to_owned()]);
    if done.repositories.iter().any(|r| r.sealed) {
        next.push("pitr key kit --with-identity --identity OFFLINE.key   # print it; keep it where this host is not".to_owned());
    }
    for (index, step) in next.iter().enumerate() {
        text.push_str(&format!("{:15}{step}\n", if index == 0 { "next" } else { "" }));
    }
    say(&text);
}

fn print_json(done: &Done) {
    let facts = &done.facts;
    let changes: Vec<_> = done
        .changes
        .iter()
        .map(|c| serde_json::json!({ "name": c.name, "value": c.value, "was": c.now, "restart": c.restart }))
        .collect();
    let repositories: Vec<_> = done
        .repositories
        .iter()
        .map(|r| serde_json::json!({ "name": r.name, "url": r.url, "created": r.created, "encrypted": r.sealed, "degraded": r.degraded, "left_behind": r.left_behind }))
        .collect();
    output::json(&serde_json::json!({
        "schema": "pitr.init.v1",
        "configuration": done.config.display().to_string(),
        "written": done.written,
        "stale": done.stale,
        "system_identifier": facts.system.to_string(),
        "version": facts.version,
        "repositories": repositories,
        "settings": changes,
        "applied": done.applied,
        "restart_needed": done.changes.iter().any(|c| c.restart),
        "role": done.role,
        "adopted": done.adopted.as_ref().map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>()),
    }));
}

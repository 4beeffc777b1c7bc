//! Flags and arguments. The doc comments here are the help that users read.
//!
//! Names are those of INTERFACE: scripts depend on them, so nothing is renamed without need. Values are checked where they are
//! given a type (`target`, `repo::path`), not here.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// WAL archiving and point-in-time recovery for PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "pitr", version, about, disable_help_subcommand = true, max_term_width = 110)]
pub struct Cli {
    /// Flags that every command knows.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command knows.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// Configuration file [default: $PITR_CONFIG, ./pitr.toml, /etc/pitr/pitr.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A repository of the configuration by name, or its URL where there is no configuration
    #[arg(long, global = true, value_name = "NAME|URL")]
    pub repository: Vec<String>,
    /// The cluster's name in the repository, where there is no configuration
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Identity file that opens an encrypted repository [default: the configuration's, else the key itself in $PITR_IDENTITY, but for what PostgreSQL starts and a restore that it goes on with]
    #[arg(long, global = true, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Fingerprint of the cluster's seal key, as the recovery kit prints it: nothing else is believed
    #[arg(long, global = true, value_name = "HEX")]
    pub seal_fingerprint: Option<String>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Print errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more (repeat for details)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set up: write the configuration, create the repository and the cluster's identity, print what PostgreSQL needs
    Init(InitArgs),
    /// Check configuration, server settings and repositories; fast, for cron. Exit 2: at risk
    Check(CheckArgs),
    /// Store one WAL file: archive_command = 'pitr --config FILE archive-push %p'
    ArchivePush(PushArgs),
    /// Fetch one WAL file: restore_command = 'pitr --config FILE archive-get %f "%p"'
    ArchiveGet(GetArgs),
    /// Stay, and make archiving fast: stores WAL before PostgreSQL asks, answers archive-push. Runs as the server's user
    Agent(AgentArgs),
    /// Fetch what a recovery will ask for next: what `archive-get` leaves behind where there is no agent
    #[command(hide = true)]
    FetchAhead(AheadArgs),
    /// Archive a damaged WAL segment as it is, so that archiving gets past it. Moments behind it need a new backup
    Accept(AcceptArgs),
    /// Take a base backup over the replication protocol
    Backup(BackupArgs),
    /// Bring the cluster back: plan first, then restore
    Restore(RestoreArgs),
    /// Backups, WAL ranges, timelines, and the span of time that can be restored
    Info(InfoArgs),
    /// Look for damage and gaps in the repository; says which restore points they cost. Exit 6: there are some
    Verify(VerifyArgs),
    /// Give up what retention no longer promises; says which restore points go. For cron, after backups
    Expire(ExpireArgs),
    /// The keys of an encrypted cluster: make, rotate, hand on, look at, and print the recovery kit
    Key(KeyArgs),
    /// Keep a backup from expiring, with the WAL that makes it consistent
    Pin(PinArgs),
    /// Let a pinned backup expire again
    Unpin(UnpinArgs),
    /// Everything in one minute on a throw-away cluster
    Demo(DemoArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// Become a user with all its groups, then another program: what `restore` tries restore_command with
    #[command(hide = true)]
    ExecAs {
        /// User id
        uid: u32,
        /// Group id
        gid: u32,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

/// Flags of `key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The host file: what a host seals with, and which opens nothing [default: the configuration's]
    #[arg(long, global = true, value_name = "FILE")]
    pub host_file: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: KeyCommand,
}

/// What `key` does.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make the keys of a new cluster: for at least two recipients. Nothing is stored in a repository yet
    Init(KeyInitArgs),
    /// Begin the next key epoch; takes no secret, rewrites nothing
    Rotate,
    /// Let one more recipient read everything; takes an identity that opens it
    Add {
        /// A name and the public key of an age identity
        #[arg(value_name = "NAME=AGE1...")]
        recipient: String,
    },
    /// Begin a key epoch that a recipient cannot open; takes an identity that opens everything. What was stored before stays readable to him
    Remove {
        /// Its name
        name: String,
    },
    /// Make the host file anew from an identity and the repositories, after the host is lost, and begin the next key epoch
    Recover(KeyRecoverArgs),
    /// Epochs, their age, recipients, and whether the repositories have the wraps
    List,
    /// Does the identity at hand open what is stored? Exit 7: not all of it
    Test,
    /// Print the recovery kit: where the backups are and how to restore them, with and without pitr
    Kit {
        /// Print the identity too: whoever has the page can then read the backups
        #[arg(long)]
        with_identity: bool,
    },
}

/// Flags of `key init`.
#[derive(Debug, Args)]
pub struct KeyInitArgs {
    /// Who may read: a name, and the public key of an age identity that is there already
    #[arg(long, value_name = "NAME=AGE1...")]
    pub recipient: Vec<String>,
    /// Who may read: a name, and a file that is made for its new identity
    #[arg(long, value_name = "NAME=FILE")]
    pub generate: Vec<String>,
}

/// Flags of `key recover`.
#[derive(Debug, Args)]
pub struct KeyRecoverArgs {
    /// Who may read from now on, and all that is stored.
    #[command(flatten)]
    pub recipients: KeyInitArgs,
    /// Believe the seal key that the repositories hold, although no fingerprint vouches for it
    #[arg(long)]
    pub unverified: bool,
}

/// Flags of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Connection for what needs a superuser [default: the configuration's, else user postgres over the socket]
    #[arg(long, value_name = "CONNINFO")]
    pub superuser: Option<String>,
    /// Connection that the written configuration will use [default: what --superuser says]
    #[arg(long, value_name = "CONNINFO")]
    pub conninfo: Option<String>,
    /// Make the settings now instead of printing them (ALTER SYSTEM and a reload; never a restart)
    #[arg(long)]
    pub apply: bool,
    /// Turn a restored copy into a primary of its own: allow archiving, store its history, take a full backup
    #[arg(long)]
    pub adopt: bool,
    /// Encrypt, with this host file (see `pitr key init`); for the configuration that is written
    #[arg(long, value_name = "FILE", conflicts_with = "plain")]
    pub host_file: Option<PathBuf>,
    /// Do not encrypt a repository that is not on this host
    #[arg(long)]
    pub plain: bool,
    /// The promised recovery point objective, from which archive_timeout follows
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub rpo: String,
    /// Time zone of times without one [default: the server's]
    #[arg(long, value_name = "ZONE")]
    pub timezone: Option<String>,
    /// The data directory, where the server cannot be asked for it
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Go on although the repository holds another system identifier under this name (after pg_upgrade or initdb)
    #[arg(long, value_name = "N")]
    pub system_id: Option<u64>,
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Leave the server out; check configuration and repositories only
    #[arg(long)]
    pub offline: bool,
    /// Instead: try to overwrite and delete with these credentials, on objects made for that. Exit 2: what is stored could be destroyed
    #[arg(long, conflicts_with = "offline")]
    pub attack: bool,
}

/// Arguments of `archive-push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The file, relative to the data directory or absolute (%p)
    pub path: PathBuf,
}

/// Flags of `agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Ask the agent that runs how it goes, and end
    #[arg(long)]
    pub status: bool,
}

/// Arguments of `accept`.
#[derive(Debug, Args)]
pub struct AcceptArgs {
    /// The segment's file, or its name in pg_wal
    #[arg(value_name = "SEGMENT")]
    pub segment: PathBuf,
    /// Yes, although it is damaged: what was committed after the damage can't be restored until there is a new backup
    #[arg(long, required = true)]
    pub damaged: bool,
}

/// Arguments of `archive-get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The file's name (%f)
    pub file: String,
    /// Where to put it (%p)
    pub destination: PathBuf,
    /// Where recovery goes.
    #[command(flatten)]
    pub route: RouteArgs,
}

/// Arguments of `fetch-ahead`: those of the `archive-get` that leaves it behind.
#[derive(Debug, Args)]
pub struct AheadArgs {
    /// The segment that was delivered last
    pub file: String,
    /// Where recovery goes.
    #[command(flatten)]
    pub route: RouteArgs,
}

/// Where recovery goes.
#[derive(Debug, Args)]
pub struct RouteArgs {
    /// The timeline recovery goes to: parents are cut at their forks
    #[arg(long, value_name = "N")]
    pub timeline: Option<u32>,
    /// Where recovery stops: a segment that is stored only in part is delivered if that reaches so far
    #[arg(long, value_name = "X/X")]
    pub until: Option<String>,
    /// The cluster's system identifier [default: the data directory's, else the newest in the repository]
    #[arg(long, value_name = "N")]
    pub system_id: Option<u64>,
}

/// Flags of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// A full backup (the only kind so far, and the default)
    #[arg(long)]
    pub full: bool,
    /// A text kept with the backup
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,
    /// Upper bound of the transfer, per second (such as 50MiB)
    #[arg(long, value_name = "SIZE")]
    pub max_rate: Option<String>,
    /// How the server makes the checkpoint that a backup starts with
    #[arg(long, value_enum, default_value_t = CheckpointArg::Fast)]
    pub checkpoint: CheckpointArg,
}

/// `--checkpoint` of `backup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckpointArg {
    /// At once, with the write load that brings
    Fast,
    /// Spread over checkpoint_completion_target; the backup may start minutes later
    Spread,
}

/// Flags of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Where to stop.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Directory to restore into [default: the configured data_dir]
    #[arg(long, value_name = "DIR")]
    pub target_dir: Option<PathBuf>,
    /// Print the plan and stop
    #[arg(long)]
    pub dry_run: bool,
    /// This is the new primary: archiving stays on
    #[arg(long, conflicts_with = "copy")]
    pub replace: bool,
    /// A copy beside the primary: archiving off, configuration of its own
    #[arg(long)]
    pub copy: bool,
    /// Keep what is in the target directory under another name
    #[arg(long)]
    pub move_aside: bool,
    /// Go on although WAL of the old data directory cannot be stored: its newest commits are then lost
    #[arg(long)]
    pub without_old_wal: bool,
    /// Timeline to follow [default: the newest]
    #[arg(long, value_name = "N|latest")]
    pub timeline: Option<String>,
    /// Backup to start from [default: the newest that reaches the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// System identifier, where the repository holds several under this name
    #[arg(long, value_name = "N")]
    pub system_id: Option<u64>,
    /// New place of a tablespace, named by its old one or its OID (repeat for each)
    #[arg(long, value_name = "OLD=NEW")]
    pub tablespace: Vec<OsString>,
    /// What the server does at the target
    #[arg(long, value_enum, default_value_t = ActionArg::Promote)]
    pub action: ActionArg,
    /// Packs fetched at the same time
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// After promotion: remove the settings that the restore wrote
    #[arg(long)]
    pub finish: bool,
}

/// Where recovery stops: at most one.
#[derive(Debug, Default, Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// A time (2025-10-17 10:30, with offset or zone name), "10 minutes ago", or latest
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Everything that ends at or before this position
    #[arg(long, value_name = "X/X")]
    pub to_lsn: Option<String>,
    /// Up to and with this transaction (of a number as pg_current_xact_id() shows it, the lower half)
    #[arg(long, value_name = "XID", value_parser = xid)]
    pub to_xid: Option<u32>,
    /// Up to, without this transaction
    #[arg(long, value_name = "XID", value_parser = xid)]
    pub to_before_xid: Option<u32>,
    /// A named restore point
    #[arg(long, value_name = "POINT")]
    pub to_name: Option<String>,
    /// The end of the backup: the earliest consistent moment
    #[arg(long)]
    pub immediate: bool,
}

/// WAL has the lower 32 bits of a transaction's number; the server's functions show all 64.
fn xid(text: &str) -> Result<u32, String> {
    let number: u64 = text.parse().map_err(|_| "a transaction's number, such as 4711".to_owned())?;
    u32::try_from(number & u64::from(u32::MAX)).map_err(|e| e.to_string())
}

/// `--action` of `restore`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActionArg {
    /// Open for writing on a new timeline
    Promote,
    /// Stay read-only until pg_wal_replay_resume()
    Pause,
    /// Stop; recovery can go on from there
    Shutdown,
}

/// Flags of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// One backup alone, with the WAL that makes it consistent
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Read every object whole (the default)
    #[arg(long, conflicts_with = "sample")]
    pub all: bool,
    /// Read the part that is due today: 30d or 10% or 0.1; 0 reads names and small objects alone. Run daily it reads everything once
    /// in that many days (10% is 10 days); small objects and manifests are read every time
    #[arg(long, value_name = "DAYS|PART")]
    pub sample: Option<String>,
    /// Also decode every WAL record, and compare every file with PostgreSQL's own checksum
    #[arg(long)]
    pub decode: bool,
    /// Objects read at the same time
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
}

/// Flags of `expire`.
#[derive(Debug, Args)]
pub struct ExpireArgs {
    /// Print what would go and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Give up this backup, whatever retention says; never the last sound one
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// With --backup: although moments of the promised window are lost
    #[arg(long, requires = "backup")]
    pub below_promise: bool,
}

/// Arguments of `pin`.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// The backup
    #[arg(value_name = "ID")]
    pub backup: String,
    /// A text kept with the pin
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Keep all WAL from its start on too, so that every later moment stays restorable
    #[arg(long)]
    pub with_wal: bool,
}

/// Arguments of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// System identifier, where the repository holds several under this name [default: the newest]
    #[arg(long, value_name = "N")]
    pub system_id: Option<u64>,
}

/// Arguments of `unpin`.
#[derive(Debug, Args)]
pub struct UnpinArgs {
    /// The backup
    #[arg(value_name = "ID")]
    pub backup: String,
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// PostgreSQL programs to use [default: the newest that is installed]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Keep the throw-away cluster and repository
    #[arg(long)]
    pub keep: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_its_lower_half() {
        assert_eq!(xid("4711"), Ok(4711));
        assert_eq!(xid("8589934600"), Ok(8));
        assert!(xid("").is_err() && xid("-1").is_err() && xid("0x10").is_err());
    }
}

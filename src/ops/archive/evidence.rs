//! Two primaries under one name: what is known of each.
//!
//! ```text
//!  offered   this process: its host, the file's data directory; the times of the commits in it
//!  stored    when the store took it, the times of its commits, and the hosts that began backups on its timeline
//! ```
//! Nothing in WAL or in its objects says which host wrote it, so what is told is evidence, each piece true by itself, and where there is none that
//! is said too. Invariants: it never becomes an error and changes no exit code; it ends after [`PATIENCE`], and reads the newest
//! [`MOST_BACKUPS`] intents at most. Leases name the same processes as the intents do, and no timeline; pins are of who restores.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::repo::backups::Begun;
use crate::repo::path::BackupId;
use crate::repo::walobject::WalHeader;
use crate::repo::{RepoError, System, this_process};
use crate::wal::{PgTime, TimelineId, WalFileName};

/// Longest that the repository is asked about the stored side.
const PATIENCE: Duration = Duration::from_secs(5);
/// Backups whose intents are read, the newest ones.
const MOST_BACKUPS: usize = 40;
/// Hosts that are named.
const MOST_HOSTS: usize = 4;
/// Longest name of a host that is shown (`HOST_NAME_MAX`).
const LONGEST_HOST: usize = 64;

/// Both sides, in two lines or three. `commits` are the times of the offered file.
pub(super) async fn of_both(
    system: &System,
    path: &Path,
    commits: Option<(PgTime, PgTime)>,
    name: WalFileName,
    stored: Option<&WalHeader>,
) -> String {
    let host = printable(&this_process().host);
    let offered = format!("offered by host {host} from {}{}", origin(path).display(), commits_text(commits));
    format!("{offered}\n{}", of_stored(system, name, stored).await)
}

/// The stored side. Without a header the object is looked for by its name.
pub(super) async fn of_stored(system: &System, name: WalFileName, stored: Option<&WalHeader>) -> String {
    let own = this_process().host;
    let timeline = name.timeline();
    let asked = async { tokio::join!(taken(system, name, stored), system.begun_on(timeline, MOST_BACKUPS)) };
    // Who does not answer in time has told nothing.
    let (taken, begun) = match tokio::time::timeout(PATIENCE, asked).await {
        Ok((taken, begun)) => (taken.ok().flatten(), begun.ok()),
        Err(_) => (None, None),
    };
    let commits = stored.and_then(|header| header.commits);
    format!("{}\n{}", stored_text(taken, commits), hosts_text(timeline, &own, begun.as_ref()))
}

async fn taken(
    system: &System,
    name: WalFileName,
    stored: Option<&WalHeader>,
) -> Result<Option<Timestamp>, RepoError> {
    match stored {
        Some(header) => system.taken_at(header).await,
        None => match system.fetch_wal(name).await? {
            Some(fetched) => system.taken_at(&fetched.header).await,
            None => Ok(None),
        },
    }
}

/// The data directory, or wherever else the file lies. Links stay: people know their directories by the names in the configuration.
fn origin(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().unwrap_or(&path);
    let above = directory.parent().filter(|_| directory.ends_with("pg_wal"));
    above.unwrap_or(directory).to_owned()
}

fn stored_text(taken: Option<Timestamp>, commits: Option<(PgTime, PgTime)>) -> String {
    match taken {
        Some(at) => {
            format!(
                "stored {} by the store's clock{}",
                at.strftime("%Y-%m-%d %H:%M:%S+00"),
                commits_text(commits)
            )
        }
        None => format!("stored at a time that the store does not tell{}", commits_text(commits)),
    }
}

fn commits_text(commits: Option<(PgTime, PgTime)>) -> String {
    match commits {
        Some((first, last)) if first == last => format!(", with a commit of {first}"),
        Some((first, last)) => format!(", with commits from {first} to {last}"),
        None => String::new(),
    }
}

/// Which hosts began backups on the timeline: one of them is likely to have stored what is there.
fn hosts_text(timeline: TimelineId, own: &str, begun: Option<&Begun>) -> String {
    let Some(begun) = begun else {
        return format!("which hosts began backups on timeline {timeline} could not be read");
    };
    let mut hosts: Vec<(&str, &BackupId)> = Vec::new();
    for intent in &begun.intents {
        let host = intent.process.host.as_str();
        if !host.is_empty() && !hosts.iter().any(|(known, _)| *known == host) {
            hosts.push((host, &intent.id));
        }
    }
    let looked = if begun.all { "" } else { " (not all could be looked at)" };
    if hosts.is_empty() {
        return format!("no backup on timeline {timeline} names a host{looked}: who stored it is not known");
    }
    let only_own = hosts.iter().all(|(host, _)| *host == own);
    let told = |(host, last): &(&str, &BackupId)| {
        let name = if *host == own && !only_own { ", which is this one's name" } else { "" };
        format!("host {}{name} (last: {last})", printable(host))
    };
    let named: Vec<String> = hosts.iter().take(MOST_HOSTS).map(told).collect();
    let more = if hosts.len() > MOST_HOSTS { ", and others" } else { "" };
    let text = format!("backups on timeline {timeline} were begun by {}{more}{looked}", named.join(", "));
    if only_own { format!("{text}, which is this one's name: who stored it is not known") } else { text }
}

/// What a repository says is shown on terminals and in the server's log.
fn printable(host: &str) -> String {
    if host.is_empty() {
        return "(without a name)".to_owned();
    }
    host.chars().take(LONGEST_HOST).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::objects::{BackupKind, Intent, Nonce, Process};
    use crate::wal::{SegmentName, SystemId};

    fn intent(n: u32, host: &str) -> Intent {
        let started_at: Timestamp = "2026-10-17T10:30:00Z".parse().unwrap();
        Intent {
            id: BackupId::new(started_at, n),
            nonce: Nonce::new([0; 16]),
            cluster: "main".parse().unwrap(),
            system: SystemId::new(7),
            kind: BackupKind::Full,
            started_at,
            timeline: TimelineId::FIRST,
            wal_floor: SegmentName::parse("000000010000000000000001").unwrap(),
            references: Vec::new(),
            takes_over: None,
            process: Process { host: host.to_owned(), boot: String::new(), pid: 1, version: "1".to_owned() },
        }
    }

    fn text(hosts: &[&str], all: bool) -> String {
        let intents = (9..).zip(hosts).map(|(n, host)| intent(n, host)).collect();
        hosts_text(TimelineId::FIRST, "db1", Some(&Begun { intents, all }))
    }

    #[test]
    fn hosts_are_named_each_with_its_newest_backup_and_doubt_is_said() {
        assert_eq!(
            text(&["db2", "db1", "db2", ""], true),
            "backups on timeline 1 were begun by host db2 (last: 20261017-103000-00000009), \
             host db1, which is this one's name (last: 20261017-103000-0000000a)"
        );
        let own = text(&["db1", "db1"], true);
        assert!(
            own.ends_with(
                "(last: 20261017-103000-00000009), which is this one's name: who stored it is not known"
            ),
            "{own}"
        );
        assert_eq!(text(&[], true), "no backup on timeline 1 names a host: who stored it is not known");
        assert!(text(&[], false).contains("not all could be looked at"));
        assert!(text(&["a", "b", "c", "d", "e"], true).ends_with("and others"));
        assert!(text(&["evil\n\u{1b}[2J"], true).contains("host evil??[2J (last"));
        assert!(hosts_text(TimelineId::FIRST, "db1", None).ends_with("could not be read"));
    }

    #[test]
    fn a_file_of_pg_wal_comes_from_its_data_directory() {
        assert_eq!(origin(Path::new("/srv/main/pg_wal/00000002.history")), Path::new("/srv/main"));
        assert_eq!(origin(Path::new("/tmp/00000002.history")), Path::new("/tmp"));
        assert_eq!(origin(Path::new("pg_wal/A")), std::env::current_dir().unwrap());
    }
}

//! Settings of the server that make archiving work, hinder it, or only pretend it.
//!
//! What is right is said for the three that archiving stands on (`archive_mode`, `archive_command`, `archive_timeout`); the others are
//! named only if they harm. Pure. Source of truth: PostgreSQL's manual, "Write Ahead Log" and "Continuous Archiving";
//! `pgarch.c`, `shell_archive.c`, `xlogbackup.c` of 13 to 18.

use std::time::Duration;

use super::{Finding, Grade};
use crate::ops::archive::command::{Outline, outline};
use crate::ops::init::facts::ServerFacts;
use crate::ops::init::settings::archive_timeout as wanted_timeout;

/// Judges the server's settings against the promise.
pub fn server(facts: &ServerFacts, rpo: Duration) -> Vec<Finding> {
    let mut found = vec![archive_mode(facts)];
    // While archive_mode is off the server shows neither.
    if archives(facts) {
        found.push(match facts.setting("archive_library") {
            "" => archive_command(facts),
            library => archive_library(facts, library),
        });
    }
    found.push(archive_timeout(facts, rpo));
    found.extend(others(facts));
    found
}

/// Is WAL of this server archived, as far as its settings go?
pub(super) fn archives(facts: &ServerFacts) -> bool {
    facts.setting("archive_mode") != "off"
}

fn archive_mode(facts: &ServerFacts) -> Finding {
    let what = "archive_mode";
    let setting = facts.settings.get(what);
    let waits = setting.is_some_and(|setting| setting.pending_restart);
    let file = setting.and_then(|setting| setting.file.as_deref()).unwrap_or("postgresql.conf");
    match facts.setting(what) {
        "always" => Finding::new(Grade::Risk, what, "always: standbys archive the same names too")
            .hint("set it to on"),
        "off" if waits => {
            Finding::new(Grade::Bad, what, "a restart is waiting to switch it on").hint("restart the server")
        }
        "on" if waits => Finding::new(Grade::Risk, what, "on, and a restart is waiting to change that")
            .hint(format!("after the next restart nothing may be archived: see {what} in {file}")),
        "on" if facts.in_recovery => {
            Finding::new(Grade::Good, what, "on; a standby archives nothing until it is promoted")
        }
        "on" => Finding::new(Grade::Good, what, "on"),
        _ => Finding::new(Grade::Bad, what, "off: no WAL is archived")
            .hint("`pitr init --apply`, then restart the server"),
    }
}

/// 15 lets the library win without a word; from 16 on the archiver refuses both.
fn archive_library(facts: &ServerFacts, library: &str) -> Finding {
    let command = !facts.setting("archive_command").is_empty();
    let text = match (command, facts.major.number() >= 16) {
        (false, _) => format!("{library} is asked to archive, and pitr is not"),
        (true, false) => {
            format!("{library} is asked to archive: archive_command is not run, nor pitr with it")
        }
        (true, true) => format!(
            "{library}, beside archive_command: the archiver refuses to run with both, and archives nothing"
        ),
    };
    Finding::new(Grade::Bad, "archive_library", text).hint(
        "when it may go: ALTER SYSTEM SET archive_library = ''; SELECT pg_reload_conf(); then `pitr init --apply`",
    )
}

fn archive_command(facts: &ServerFacts) -> Finding {
    let command = facts.setting("archive_command");
    let bad = |text: String| Finding::new(Grade::Bad, "archive_command", text);
    let beside_or_instead = "`pitr init` says how to run pitr beside it, or instead";
    match outline(command) {
        Outline::Pitr(push) if push.hides_failure => {
            bad(format!("{command}: can say yes although pitr failed, and WAL is then lost"))
                .hint("join commands by && and nothing else")
        }
        Outline::Pitr(push) if !push.told => {
            bad(format!("{command}: pitr is not told which file, and can store none"))
                .hint("end it with archive-push %p; `pitr init` prints it whole")
        }
        Outline::Pitr(_) => Finding::new(Grade::Good, "archive_command", command),
        Outline::Empty => bad("empty: WAL piles up in pg_wal until the disk is full".to_owned())
            .hint("`pitr init --apply`"),
        Outline::SaysYes => bad(format!(
            "{command:?} does not run pitr: it says yes and stores nothing, so the server throws its WAL away"
        ))
        .hint("`pitr init --apply`, then `pitr backup`: WAL that is gone does not come back"),
        Outline::SaysNo => bad(format!(
            "{command:?} does not run pitr: it says no to all, and WAL piles up in pg_wal until the disk is full"
        ))
        .hint("`pitr init --apply`"),
        Outline::Tool(tool) => {
            bad(format!("{command:?} does not run pitr, but {tool}")).hint(beside_or_instead)
        }
        Outline::Copies(program) => bad(format!(
            "{command:?} does not run pitr: {program} puts the file elsewhere, unchecked, and not into the repository"
        ))
        .hint(beside_or_instead),
        // A script may run it; the round trip knows.
        Outline::Unknown => {
            let text = format!("{command:?}: whether it runs pitr cannot be seen");
            Finding::new(Grade::Risk, "archive_command", text)
                .hint("name pitr in it as `pitr init` prints it, so that the server gets pitr's own answer")
        }
    }
}

fn archive_timeout(facts: &ServerFacts, rpo: Duration) -> Finding {
    let (timeout, promised) = (timeout(facts), rpo.as_secs());
    if timeout == 0 || timeout > promised {
        let text = format!(
            "{timeout} s: a commit on a quiet server is not archived within the promised {promised} s"
        );
        return Finding::new(Grade::Risk, "archive_timeout", text).hint(format!(
            "ALTER SYSTEM SET archive_timeout = {}; SELECT pg_reload_conf();",
            wanted_timeout(rpo)
        ));
    }
    Finding::new(Grade::Good, "archive_timeout", format!("{timeout} s for a promised {promised} s"))
}

/// Seconds; 0 for never.
pub(super) fn timeout(facts: &ServerFacts) -> u64 {
    facts.setting("archive_timeout").parse().unwrap_or(0)
}

/// What is not about archiving in name.
fn others(facts: &ServerFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    if facts.setting("wal_level") == "minimal" {
        let text = "minimal: its WAL lacks what a recovery needs; such a server neither archives nor can be backed up";
        found.push(
            Finding::new(Grade::Bad, "wal_level", text).hint("`pitr init --apply`, then restart the server"),
        );
    }
    if facts.setting("max_wal_senders") == "0" {
        found.push(
            Finding::new(Grade::Bad, "max_wal_senders", "0: no backup can be taken")
                .hint("`pitr init --apply`, then restart the server"),
        );
    }
    // archive_mode is judged by itself.
    let waits =
        facts.settings.iter().filter(|(name, found)| found.pending_restart && **name != *"archive_mode");
    found.extend(waits.map(|(name, _)| {
        Finding::new(Grade::Risk, "settings", format!("{name}: a restart is waiting to change it"))
            .hint(format!("what it will be: SELECT setting FROM pg_file_settings WHERE name = '{name}';"))
    }));
    // The archiver reads WAL that may be on no disk yet. After a crash of the host the server goes on from less than it archived,
    // and writes its next segments under names that are taken.
    if facts.setting("fsync") == "off" {
        let text = "off: a crash of the host can damage the server, or lose it WAL that is archived; \
                    the archive then refuses what it writes in its place";
        found.push(
            Finding::new(Grade::Risk, "fsync", text)
                .hint("ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf();"),
        );
    }
    // No harm to what pitr promises: a base backup of a primary writes full pages for as long as it runs. So it is told, not graded.
    if facts.setting("full_page_writes") == "off" && !facts.in_recovery {
        let text = "off: backups of this server are sound (while one runs it is on), its standbys cannot be backed up";
        found.push(Finding::new(Grade::Good, "full_page_writes", text).hint(
            "unless the file system never tears a page: ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::facts;
    use super::*;

    const RPO: Duration = Duration::from_secs(300);

    /// What is not as it should be, with these settings.
    fn found(settings: &[(&str, &str)]) -> Vec<(Grade, String, String)> {
        let findings = server(&facts(settings), RPO);
        assert!(findings.iter().all(|f| f.grade == Grade::Good || f.hint.is_some()), "{findings:?}");
        let wrong = findings.into_iter().filter(|f| f.grade != Grade::Good);
        wrong.map(|f| (f.grade, f.what, f.found)).collect()
    }

    #[test]
    fn a_server_as_init_leaves_it_has_nothing_wrong() {
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn every_command_that_does_not_archive_through_pitr_has_words_of_its_own() {
        for (command, grade, words) in [
            ("", Grade::Bad, "empty: WAL piles up"),
            ("true", Grade::Bad, "says yes and stores nothing"),
            (":", Grade::Bad, "says yes and stores nothing"),
            ("exit 0", Grade::Bad, "says yes and stores nothing"),
            ("echo %p", Grade::Bad, "says yes and stores nothing"),
            ("false", Grade::Bad, "says no to all"),
            ("pgbackrest archive-push %p", Grade::Bad, "does not run pitr, but pgBackRest"),
            ("wal-g wal-push %p", Grade::Bad, "does not run pitr, but WAL-G"),
            ("cp %p /a/%f", Grade::Bad, "cp puts the file elsewhere"),
            ("pitr archive-push %p || true", Grade::Bad, "can say yes although pitr failed"),
            ("pitr archive-push %f", Grade::Bad, "is not told which file"),
            ("/usr/local/bin/archive.sh %p", Grade::Risk, "cannot be seen"),
        ] {
            let found = found(&[("archive_command", command)]);
            let [(graded, what, text)] = found.as_slice() else { panic!("{command}: {found:?}") };
            assert!((*graded, what.as_str()) == (grade, "archive_command"), "{found:?}");
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_library_is_named_instead_of_the_command_that_it_replaces() {
        let only = found(&[("archive_library", "basic_archive"), ("archive_command", "")]);
        assert_eq!(only.len(), 1, "{only:?}");
        assert!(only[0].1 == "archive_library" && only[0].2.contains("and pitr is not"), "{only:?}");
        let both = found(&[("archive_library", "basic_archive")]);
        assert!(both.len() == 1 && both[0].2.contains("refuses to run with both"), "{both:?}");
        let mut older = facts(&[("archive_library", "basic_archive")]);
        older.major = crate::wal::PgMajor::from_version_num(150_018).unwrap();
        assert!(server(&older, RPO)[1].found.contains("is not run"));
    }

    #[test]
    fn settings_that_undermine_archiving_are_graded_by_what_they_do() {
        let graded = |name, value| found(&[(name, value)]).first().map(|f| (f.0, f.1.clone()));
        assert_eq!(graded("archive_mode", "off"), Some((Grade::Bad, "archive_mode".into())));
        assert_eq!(graded("archive_mode", "always"), Some((Grade::Risk, "archive_mode".into())));
        assert_eq!(graded("archive_timeout", "0"), Some((Grade::Risk, "archive_timeout".into())));
        assert_eq!(graded("archive_timeout", "301"), Some((Grade::Risk, "archive_timeout".into())));
        assert_eq!(graded("max_wal_senders", "0"), Some((Grade::Bad, "max_wal_senders".into())));
        assert_eq!(graded("fsync", "off"), Some((Grade::Risk, "fsync".into())));
        assert_eq!(graded("full_page_writes", "off"), None);
        let minimal = found(&[("wal_level", "minimal"), ("archive_mode", "off")]);
        assert!(minimal.iter().any(|f| f.0 == Grade::Bad && f.1 == "wal_level"), "{minimal:?}");
        // The server shows no command then, and one finding says all.
        let off = found(&[("archive_mode", "off"), ("archive_command", "(disabled)")]);
        assert_eq!(off.len(), 1, "{off:?}");
    }

    #[test]
    fn a_restart_that_waits_is_told() {
        let pending = |value| {
            let mut facts = facts(&[("archive_mode", value)]);
            facts.settings.get_mut("archive_mode").unwrap().pending_restart = true;
            server(&facts, RPO).swap_remove(0)
        };
        let mut other = facts(&[]);
        other.settings.get_mut("wal_level").unwrap().pending_restart = true;
        let other: Vec<Finding> =
            server(&other, RPO).into_iter().filter(|f| f.grade != Grade::Good).collect();
        assert!(other.len() == 1 && other[0].found.contains("wal_level: a restart is waiting"), "{other:?}");
        assert!(pending("off").found.contains("waiting to switch it on"));
        assert!(pending("on").grade == Grade::Risk && pending("on").found.contains("waiting to change"));
    }
}

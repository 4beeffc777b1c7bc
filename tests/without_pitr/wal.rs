//! The `restore_command` that the script writes: it says "absent" only where that is true.
//!
//! PostgreSQL opens the database on the first file that it cannot get, so a segment that is damaged, missing, unfinished or out of
//! reach must stop recovery instead. The oracle is PostgreSQL: whether it opens, and with which rows.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use pitr::wal::Lsn;

use super::support::cluster::{Cluster, Install, as_server, give_to_server, run};
use super::support::site::{Answer, settle, until};
use super::{ROWS, Rescue, Source, stops, tools};

/// What PostgreSQL takes as fatal: everything above 125.
const FATAL: i32 = 200;

const NUMBERS: &str = "SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM t";

/// A folder with WAL of every kind behind a backup: segment `n` holds row `n`.
struct Archive {
    source: Source,
    rescue: Rescue,
    /// The second is stored twice: unfinished, with row 2 alone, and with row 20 besides. The fourth is damaged behind row 4, before row 40.
    segments: Vec<String>,
    /// Between rows 2 and 20.
    between: Lsn,
    /// The fourth before a byte of it was flipped.
    good: Vec<u8>,
}

impl Archive {
    fn new(install: &Install, sealed: bool) -> Result<Self> {
        let source = Source::new(install, sealed)?;
        let site = &source.site;
        let sql = |sql: &str| site.cluster.psql(sql);
        let row = |n: u32| sql(&format!("INSERT INTO t VALUES ({n}, 'row')"));
        sql("CREATE TABLE t (n int, said text)")?;
        site.switch()?;
        site.backup()?;
        row(1)?;
        let mut segments = vec![site.switch()?];

        row(2)?;
        let second = sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
        push(&source, &second, &fs::read(site.cluster.data.join("pg_wal").join(&second))?)?;
        let between = sql("SELECT pg_current_wal_insert_lsn()")?.parse()?;
        row(20)?;
        sql("SELECT pg_switch_wal()")?;
        let longer = site.object(&format!("{second}.2"))?;
        until(|| Ok(longer.exists()), || format!("{second} has no longer copy"))?;
        segments.push(second);
        row(3)?;
        segments.push(site.switch()?);

        let command = sql("SHOW archive_command")?;
        sql("ALTER SYSTEM SET archive_command = 'false'")?;
        sql("SELECT pg_reload_conf()")?;
        row(4)?;
        let at: Lsn = sql("SELECT pg_current_wal_insert_lsn()")?.parse()?;
        row(40)?;
        let fourth = sql(&format!("SELECT pg_walfile_name('{at}')"))?;
        sql("SELECT pg_switch_wal()")?;
        let file = site.cluster.data.join("pg_wal").join(&fourth);
        let good = super::flip(&file, usize::try_from(at.get() % (1 << 20))? + 40)?;
        site.ask(&["accept", &fourth, "--damaged"])?.expect(0, &[])?;
        segments.push(fourth);
        sql(&format!("ALTER SYSTEM SET archive_command = '{}'", command.replace('\'', "''")))?;
        sql("SELECT pg_reload_conf()")?;
        row(5)?;
        segments.push(site.switch()?);
        let rescue = source.rescue()?;
        Ok(Self { source, rescue, segments, between, good })
    }

    /// The objects of segment `n`, counted from 1: its copies, and the record of a gap.
    fn objects(&self, n: usize) -> Result<Vec<PathBuf>> {
        let (mut found, name) = (Vec::new(), self.segments[n - 1].as_str());
        super::support::restored::walk(&self.rescue.folder.join("wal"), &mut |path| {
            if path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)) {
                found.push(path.to_owned());
            }
        })?;
        ensure!(!found.is_empty(), "no {name}");
        Ok(found)
    }

    fn without(&self, n: usize) -> Result<()> {
        self.objects(n)?.iter().try_for_each(fs::remove_file).context("an object to remove")
    }

    /// Copy `copy` of segment `n`.
    fn copy(&self, n: usize, copy: u32) -> Result<PathBuf> {
        let suffix = if copy == 1 { ".wal".to_owned() } else { format!(".{copy}.wal") };
        let first = self.objects(n)?.into_iter().find(|path| path.extension().is_some_and(|e| e == "wal"));
        let dir = first.as_deref().and_then(Path::parent).context("a folder")?.to_owned();
        Ok(dir.join(format!("{}{suffix}", self.segments[n - 1])))
    }

    fn restored(&self, install: &Install) -> Result<Restored> {
        self.restored_with(install, &[])
    }

    fn restored_with(&self, install: &Install, flags: &[&str]) -> Result<Restored> {
        let copy = Cluster::around(install)?;
        self.rescue.restore(&copy.data, flags)?.expect(0, &[])?;
        settle(&copy)?;
        Ok(Restored { copy })
    }
}

/// Archives a file of these bytes.
fn push(source: &Source, name: &str, bytes: &[u8]) -> Result<()> {
    let file = source.place.path().join(name);
    fs::write(&file, bytes)?;
    give_to_server(&file)?;
    source.site.ask(&["archive-push", &file.display().to_string()])?.expect(0, &[])
}

/// A data directory that the script made.
struct Restored {
    copy: Cluster,
}

impl Restored {
    fn work(&self) -> PathBuf {
        self.copy.root().join("data.restore")
    }

    fn destination(&self) -> PathBuf {
        self.copy.root().join("got")
    }

    /// Asks for a file as PostgreSQL does.
    fn get(&self, file: &str) -> Result<Answer> {
        Answer::of(as_server(self.work().join("get.sh"))?.arg(file).arg(self.destination()))
    }

    fn answers(&self, file: &str, code: i32) -> Result<Answer> {
        let answer = self.get(file)?;
        ensure!(answer.code == code, "{file}: not {code}: {answer:?}");
        Ok(answer)
    }

    fn stops(&self, says: &str) -> Result<()> {
        stops(&self.copy, says)
    }

    /// PostgreSQL opens the database, with these rows.
    fn opens(&self, numbers: &str) -> Result<()> {
        self.copy.start()?;
        self.copy.wait_for("SELECT pg_is_in_recovery()", "f")?;
        let found = self.copy.psql(NUMBERS)?;
        ensure!(found == numbers, "rows {found}, not {numbers}\n{}", self.copy.log_text());
        Ok(())
    }

    /// What the script says an operator can do to end recovery at a segment.
    fn end_at(&self, segment: &str) -> Result<()> {
        run(as_server("touch")?.arg(self.work().join(format!("end-at-{segment}")))).map(drop)
    }
}

fn each(test: impl Fn(&Install, bool) -> Result<()>) -> Result<()> {
    for (major, sealed) in [(17, false), (13, true)] {
        let Some(install) = Install::find_or_skip(major).filter(|_| tools()) else { continue };
        test(&install, sealed).with_context(|| format!("PostgreSQL {major}, sealed: {sealed}"))?;
    }
    Ok(())
}

#[test]
fn damage_that_was_accepted_stops_recovery_until_somebody_says_that_it_shall_end_there() -> Result<()> {
    each(|install, sealed| {
        let mut archive = Archive::new(install, sealed)?;
        let fourth = archive.segments[3].clone();
        let copy = archive.restored(install)?;
        copy.answers(&fourth, FATAL)?.expect(FATAL, &["damage in it"])?;
        copy.stops("damage in it")?;
        copy.end_at(&fourth)?;
        copy.opens("1,2,3,4,20")?;
        // A copy that is whole heals it.
        push(&archive.source, &fourth, &archive.good)?;
        archive.rescue = archive.source.rescue()?;
        archive.restored(install)?.opens("1,2,3,4,5,20,40")
    })
}

#[test]
fn a_missing_or_unfinished_segment_is_the_end_only_if_no_wal_goes_on_after_it() -> Result<()> {
    each(|install, sealed| {
        let archive = Archive::new(install, sealed)?;
        let [first, second, ..] = archive.segments.as_slice() else { unreachable!() };
        archive.without(4)?;
        let (third, fifth) = (archive.segments[2].as_str(), archive.segments[4].as_str());
        let copy = archive.restored(install)?;
        copy.answers(&archive.segments[3], FATAL)?.expect(FATAL, &[fifth])?;
        archive.without(5)?;

        // Beside a full copy, whatever has a higher number was put there.
        let planted = archive.copy(2, 3)?;
        fs::copy(archive.copy(2, 1)?, &planted)?;
        archive.restored(install)?.opens("1,2,3,20")?;
        fs::remove_file(&planted)?;

        let (short, full) = (archive.copy(2, 1)?, archive.copy(2, 2)?);
        let away = archive.rescue.fresh("away");
        fs::rename(&short, &away)?;
        copy.answers(second, FATAL)?.expect(FATAL, &["copy 2"])?;
        fs::rename(&away, &short)?;
        fs::rename(&full, &away)?;
        copy.stops("it is unfinished")?;
        copy.end_at(second)?;
        copy.opens("1,2")?;

        let hole = archive.restored(install)?;
        let gone = archive.rescue.fresh("gone");
        let at = archive.copy(1, 1)?;
        fs::rename(&at, &gone)?;
        hole.stops(third)?;
        hole.end_at(first)?;
        hole.opens("")?;
        fs::rename(&gone, &at)?;

        let unfinished = archive.restored(install)?;
        archive.without(3)?;
        unfinished.answers(second, 0)?;
        unfinished.answers(third, 1)?;
        unfinished.opens("1,2")
    })
}

#[test]
fn a_timeline_that_was_left_later_shows_what_its_parent_lacks() -> Result<()> {
    each(|install, sealed| {
        let mut archive = Archive::new(install, sealed)?;
        let second = archive.segments[1].clone();
        let fifth = archive.segments[4].clone();
        let at = u64::from_str_radix(fifth.get(16..).context("a segment's number")?, 16)? << 20;
        for (child, lines) in [
            (2, format!("1\t0/{:X}\tx\n", at + 0x100)),
            (3, format!("1\t0/{at:X}\tx\n\n2\t0/{:X}\ty\n", at + 0x200)),
        ] {
            push(&archive.source, &format!("0000000{child}.history"), lines.as_bytes())?;
        }
        archive.rescue = archive.source.rescue()?;
        for n in 3..=5 {
            archive.without(n)?;
        }
        let copy = archive.restored(install)?;
        let history = |child: u32| archive.rescue.folder.join(format!("wal/0000000{child}.history"));
        for missing in 2..4 {
            copy.answers(&archive.segments[missing], FATAL)?.expect(FATAL, &[".history"])?;
        }
        // The fork is in the fifth: the end of its parent may be on no disk any more.
        copy.answers(&fifth, 1)?;
        fs::remove_file(archive.copy(2, 2)?)?;
        copy.answers(&second, FATAL)?.expect(FATAL, &["unfinished"])?;

        copy.answers("00000002.history", 0)?;
        copy.answers("00000004.history", 1)?;
        copy.answers("00000001.history", 1)?;
        fs::remove_file(history(2))?;
        copy.answers("00000002.history", FATAL)?.expect(FATAL, &["00000003.history"])?;
        fs::remove_file(history(3))?;
        copy.answers("00000002.history", 1)?;
        copy.answers(&second, 0)?;
        let child = archive.rescue.folder.join("wal/00000002/00000000");
        fs::create_dir_all(&child)?;
        fs::write(child.join("000000020000000000000009.partial.wal"), b"")?;
        copy.answers("00000002.history", FATAL)?.expect(FATAL, &["000000020000000000000009"]).map(drop)
    })
}

/// RECOVERY.md 7: where of the newest timeline nothing but its history is stored, PostgreSQL asks for the WAL of its parent.
#[test]
fn nothing_of_a_timeline_is_replayed_past_the_fork_to_the_one_that_recovery_follows() -> Result<()> {
    each(|install, sealed| {
        let mut archive = Archive::new(install, sealed)?;
        let fork = format!("1\t{}\tno recovery target specified\n", archive.between);
        push(&archive.source, "00000002.history", fork.as_bytes())?;
        archive.rescue = archive.source.rescue()?;
        let copy = archive.restored(install)?;
        let [_, second, third, ..] = archive.segments.as_slice() else { unreachable!() };
        copy.answers(third, 1)?;
        copy.answers(second, 0)?;
        let (got, at) = (fs::read(copy.destination())?, usize::try_from(archive.between.get() % (1 << 20))?);
        let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        ensure!(got.len() == 1 << 20 && zero(&got[at..]) && !zero(&got[at - 64..at]), "not cut at {at}");
        copy.opens("1,2")?;

        archive.without(4)?;
        archive.without(5)?;
        let old = archive.restored_with(install, &["-t", "1"])?;
        old.answers(third, 0)?;
        old.opens("1,2,3,20")?;
        // A fork at the very beginning of a segment leaves nothing of it.
        let start = archive.between.get() >> 20 << 20;
        push(&archive.source, "00000003.history", format!("1\t{}\tx\n", Lsn::new(start)).as_bytes())?;
        archive.rescue = archive.source.rescue()?;
        archive.restored(install)?.answers(second, 1).map(drop)
    })
}

/// PostgreSQL would refuse any other only when it is started, and name no better one.
#[test]
fn the_backup_that_is_chosen_leads_to_the_timeline_that_recovery_follows() -> Result<()> {
    each(|install, sealed| {
        let source = Source::new(install, sealed)?;
        let site = &source.site;
        let id = |done: serde_json::Value| done["id"].as_str().map(str::to_owned).context("an id");
        let position = || site.cluster.psql("SELECT pg_current_wal_insert_lsn()");
        let early = position()?;
        source.table()?;
        site.switch()?;
        let older = id(site.backup()?)?;
        site.switch()?;
        let (fork, rows) = (position()?, site.cluster.psql(ROWS)?);
        site.cluster.psql("DELETE FROM t WHERE n > 100")?;
        site.switch()?;
        // Of backups of one second the names decide which is the newer one.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let newer = id(site.backup()?)?;
        site.switch()?;

        push(&source, "00000002.history", format!("1\t{fork}\tx\n").as_bytes())?;
        let rescue = source.rescue()?;
        let target = rescue.fresh("target");
        let left = format!("timeline 2 left its timeline 1 before, at {fork}");
        rescue.restore(&target, &["-b", &newer])?.expect(1, &[&newer, &left])?;
        ensure!(!target.exists(), "something was left");
        let done = rescue.restore(&target, &["-t", "2"])?;
        done.expect(0, &[&newer, "passed over", &left])?;
        ensure!(done.out.contains(&older), "{done:?}");
        let done = rescue.restore(&rescue.fresh("parent"), &["-t", "1"])?;
        ensure!(done.code == 0 && done.out.contains(&newer) && !done.err.contains(&older), "{done:?}");
        ensure!(rescue.restored(install, &[])?.psql(ROWS)? == rows, "other rows came back");

        push(&source, "00000003.history", format!("1\t{early}\tx\n").as_bytes())?;
        let rescue = source.rescue()?;
        let none = rescue.restore(&rescue.fresh("none"), &[])?;
        none.expect(1, &[&older, &newer, &early, "no complete full backup"])
    })
}

#[test]
fn a_folder_out_of_reach_is_not_the_end_of_wal() -> Result<()> {
    each(|install, sealed| {
        let archive = Archive::new(install, sealed)?;
        archive.without(4)?;
        archive.without(5)?;
        let (folder, away) = (&archive.rescue.folder, archive.rescue.fresh("away"));
        let (copy, first) = (archive.restored(install)?, archive.segments[0].as_str());
        let absent = [archive.segments[3].as_str(), archive.segments[4].as_str(), "00000002.history"];
        let all_fail = |why: &str| -> Result<()> {
            for file in [&absent[..], &[first]].concat() {
                copy.answers(file, FATAL).context(why.to_owned())?;
            }
            Ok(())
        };
        copy.answers(first, 0)?;
        absent.iter().try_for_each(|file| copy.answers(file, 1).map(drop))?;

        fs::rename(folder, &away)?;
        all_fail("moved")?;
        fs::create_dir(folder)?;
        all_fail("the place of a disk that is not mounted")?;
        fs::write(folder.join("identity.json"), b"{}")?;
        all_fail("another folder")?;
        copy.stops("could not restore file")?;
        fs::remove_dir_all(folder)?;
        fs::rename(&away, folder)?;
        copy.opens("1,2,3,20")
    })
}

#[test]
fn whatever_else_fails_in_the_restore_command_is_fatal() -> Result<()> {
    each(|install, sealed| {
        let archive = Archive::new(install, sealed)?;
        archive.without(5)?;
        let (copy, first) = (archive.restored(install)?, archive.segments[0].as_str());
        archive.without(4)?;
        let get = copy.work().join("get.sh");
        let last = archive.segments[4].as_str();
        let nowhere = copy.copy.root().join("no/such/place");
        Answer::of(as_server(&get)?.arg(first).arg(nowhere))?.expect(FATAL, &[])?;
        Answer::of(as_server(&get)?.arg(first))?.expect(FATAL, &[])?;
        Answer::of(&mut as_server(&get)?)?.expect(FATAL, &[])?;
        for odd in ["", "x", "../get.sh", "00000001.history.partial", "000000010000000000000003.partial"] {
            copy.answers(odd, FATAL)?;
        }

        let bin = copy.copy.root().join("bin");
        fs::create_dir(&bin)?;
        let used =
            ["b3sum", "zstd", "age", "head", "tail", "sed", "cut", "grep", "find", "sort", "mv", "wc", "rm"];
        for (tool, code) in used.into_iter().flat_map(|tool| [1, 2, 100, 125].map(|code| (tool, code))) {
            let stub = bin.join(tool);
            fs::write(&stub, format!("#!/bin/sh\nexit {code}\n"))?;
            fs::set_permissions(&stub, fs::Permissions::from_mode(0o755))?;
            for (file, well) in [(first, 0), (last, 1)] {
                let path = format!("{}:/usr/bin:/bin", bin.display());
                let answer =
                    Answer::of(as_server(&get)?.env("PATH", path).arg(file).arg(copy.destination()))?;
                ensure!(answer.code == FATAL || answer.code == well, "{tool} ends with {code}: {answer:?}");
                // What is asked of all of them in turn: of none that says no is it taken for an answer.
                let matters = (tool == "age" && sealed) || !matches!(tool, "age" | "find" | "sort" | "rm");
                ensure!(answer.code == FATAL || well == 1 || !matters, "{tool} was not needed: {answer:?}");
            }
            fs::remove_file(&stub)?;
        }

        // Bytes that rot, of the header too.
        for (at, what) in [(600, "damaged"), (0, "")] {
            let path = archive.copy(1, 1)?;
            let good = fs::read(&path)?;
            let mut bad = good.clone();
            let end = good.windows(4).position(|bytes| bytes == b"end=").context("the end")?;
            bad[if at == 0 { end + 5 } else { at }] ^= 1;
            fs::write(&path, bad)?;
            copy.answers(first, FATAL)?.expect(FATAL, &[what])?;
            fs::write(&path, good)?;
        }
        // A disk that takes nothing.
        run(as_server("chmod")?.arg("500").arg(copy.work()))?;
        copy.answers(first, FATAL)?;
        copy.answers(last, FATAL)?;
        run(as_server("chmod")?.arg("700").arg(copy.work()))?;
        copy.opens("1,2,3,20")
    })
}

//! A damaged segment in `pg_wal` stops the archiver; `pitr accept` is the operator's way past it.
//!
//! The damage is done to the file of a real server that could not archive for a while. What must hold: nothing is accepted by itself,
//! the archiver gets on afterwards, every command shows the gap, what lies before the damage can be restored and what lies behind it
//! can't until there is a new backup; a good copy that turns up later heals the gap. The oracles are rows, `zstd` and `cmp`.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use pitr::wal::Lsn;
use support::cluster::{Install, give_to_server, run};
use support::restored::{Restored, Source};

/// A server whose archiver is stopped by a damaged segment.
struct Blocked {
    source: Source,
    /// The damaged segment.
    segment: String,
    /// A restore point before the damage, with rows 1 and 2.
    before: &'static str,
    /// A time behind it, with rows 1 to 4.
    behind: String,
    /// The file as it was.
    good: Vec<u8>,
}

impl Blocked {
    /// `harm` changes the file; it is told where in it row 3 was written.
    fn new(install: &Install, harm: impl Fn(&mut [u8], usize)) -> Result<Self> {
        let source = Source::new(install, "archive_timeout = 60\nfsync = on")?;
        source.backup()?;
        source.row(1)?;
        source.archive_all()?;
        let sql = |sql: &str| source.cluster.psql(sql);
        let command = sql("SHOW archive_command")?;
        sql("ALTER SYSTEM SET archive_command = 'false'")?;
        sql("SELECT pg_reload_conf()")?;
        source.row(2)?;
        let before = "before";
        sql(&format!("SELECT pg_create_restore_point('{before}')"))?;
        let at: Lsn = sql("SELECT pg_current_wal_insert_lsn()")?.parse()?;
        source.row(3)?;
        let segment = sql(&format!("SELECT pg_walfile_name('{at}')"))?;
        sql("SELECT pg_switch_wal()")?;
        let behind = source.row(4)?;
        source.row(5)?;
        sql("SELECT pg_switch_wal()")?;
        source.row(6)?;
        let path = source.cluster.data.join("pg_wal").join(&segment);
        let good = fs::read(&path)?;
        let mut bad = good.clone();
        harm(&mut bad, usize::try_from(at.get() % (1 << 20))?);
        fs::File::options().write(true).open(&path)?.write_all_at(&bad, 0)?;
        sql(&format!("ALTER SYSTEM SET archive_command = '{}'", command.replace('\'', "''")))?;
        sql("SELECT pg_reload_conf()")?;
        source.cluster.wait_for("SELECT last_failed_wal FROM pg_stat_archiver", &segment)?;
        Ok(Self { source, segment, before, behind, good })
    }

    fn file(&self) -> PathBuf {
        self.source.cluster.data.join("pg_wal").join(&self.segment)
    }

    /// Every object whose name begins with the segment's.
    fn objects(&self) -> Result<Vec<PathBuf>> {
        self.objects_in(&self.source.repository)
    }

    fn objects_in(&self, repository: &Path) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        support::restored::walk(repository, &mut |path| {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&self.segment)) {
                found.push(path.to_owned());
            }
        })?;
        found.sort();
        Ok(found)
    }

    /// Pushes the segment with these bytes; the server's own file may be recycled by now.
    fn push(&self, place: &str, bytes: &[u8]) -> Result<()> {
        let folder = self.source.target(place);
        fs::create_dir(&folder)?;
        let file = folder.join(&self.segment);
        fs::write(&file, bytes)?;
        give_to_server(&folder)?;
        give_to_server(&file)?;
        self.source.pitr(&["archive-push", &file.display().to_string()])?.expect(0).map(drop)
    }

    /// With this retention: since when `expire` says that every moment can be restored. Deletes what may go.
    fn all_moments_since(&self, retention: &str) -> Result<String> {
        let text = fs::read_to_string(&self.source.config)?;
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("retention")).collect();
        fs::write(&self.source.config, format!("{}\n{retention}\n", kept.join("\n")))?;
        let said = self.source.pitr(&["expire", "--json"])?.expect(0)?.json()?;
        let window = &said["repositories"][0]["systems"][0]["window"];
        Ok(window["before"].as_str().with_context(|| said.to_string())?.to_owned())
    }

    /// Restores a copy, and the rows it holds.
    fn rows(&self, install: &Install, name: &str, flags: &[&str]) -> Result<String> {
        let target = self.source.target(name);
        self.source.restore(&target, &[&["--copy"], flags].concat())?.expect(0)?;
        Restored::start_copy(install, &target)?.promoted()?.rows()
    }

    fn rows_before(&self, install: &Install, name: &str) -> Result<()> {
        let rows = self.rows(install, name, &["--to-name", self.before])?;
        ensure!(rows == "1,2", "{rows}");
        Ok(())
    }
}

/// A byte of row 3 is flipped.
fn flip(bytes: &mut [u8], at: usize) {
    if let Some(byte) = bytes.get_mut(at + 40) {
        *byte ^= 0xFF;
    }
}

fn is_refused_until_it_is_accepted(world: &Blocked) -> Result<()> {
    let (source, segment) = (&world.source, world.segment.as_str());
    let path = world.file().display().to_string();
    let pushed = source.pitr(&["archive-push", &path])?.expect(6)?;
    ensure!(pushed.err.contains(segment) && pushed.err.contains("pitr accept"), "{pushed:?}");
    let undecided = source.pitr(&["accept", segment])?.expect(3)?;
    ensure!(undecided.err.contains("--damaged"), "{undecided:?}");
    let sound = source.cluster.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
    let refused = source.pitr(&["accept", &sound, "--damaged"])?.expect(9)?;
    ensure!(refused.err.contains("is sound"), "{refused:?}");
    let none = source.pitr(&["accept", "00000002.history", "--damaged"])?.expect(3)?;
    ensure!(none.err.contains("not a WAL segment's name"), "{none:?}");
    ensure!(world.objects()?.is_empty(), "{:?}", world.objects()?);
    Ok(())
}

/// What every command says while nothing begins behind the gap.
fn the_gap_is_shown(world: &Blocked) -> Result<()> {
    let (source, segment) = (&world.source, world.segment.as_str());
    let info = source.pitr(&["info"])?.expect(0)?.out;
    ensure!(info.contains(&format!("segment {segment} is good only in part")), "{info}");
    let check = source.pitr(&["check"])?.expect(2)?.out;
    ensure!(check.contains(segment) && check.contains("pitr backup"), "{check}");
    for flags in [["verify", "--json"].as_slice(), &["verify", "--decode", "--json"]] {
        let said = source.pitr(flags)?.expect(6)?;
        let findings =
            said.json()?["repositories"][0]["systems"][0]["findings"].as_array().cloned().unwrap_or_default();
        ensure!(findings.len() == 1 && findings[0].to_string().contains(segment), "{said:?}");
    }
    let target = source.target("refused");
    for flags in [[].as_slice(), &["--to", &world.behind]] {
        let said = source.restore(&target, &[&["--copy"], flags].concat())?.expect(4).context("refused")?;
        ensure!(said.err.contains(segment) && said.err.contains("--to-lsn"), "{said:?}");
        ensure!(!target.exists(), "something was restored");
    }
    Ok(())
}

fn one_flipped_byte(install: &Install) -> Result<()> {
    let world = Blocked::new(install, flip)?;
    let (source, segment) = (&world.source, world.segment.as_str());
    let damaged = fs::read(world.file())?;
    is_refused_until_it_is_accepted(&world)?;

    let accepted = source.pitr(&["accept", segment, "--damaged", "--json"])?.expect(0)?.json()?;
    ensure!(accepted["damage"].as_str().is_some_and(|what| what.contains("is damaged at")), "{accepted}");
    source.cluster.wait_for(&format!("SELECT last_archived_wal > '{segment}' FROM pg_stat_archiver"), "t")?;
    let objects = world.objects()?;
    let [record, object] = objects.as_slice() else { anyhow::bail!("{objects:?}") };
    ensure!(record.to_string_lossy().ends_with(".gap.json"), "{objects:?}");
    let plain = std::process::Command::new("zstd").args(["-dcq"]).arg(object).output()?.stdout;
    ensure!(plain == damaged, "it was not stored as it is");

    the_gap_is_shown(&world)?;
    world.rows_before(install, "before")?;

    // A decision is made once; the same again changes nothing.
    source.pitr(&["accept", segment, "--damaged"])?.expect(0)?;
    source.pitr(&["archive-push", &world.file().display().to_string()])?.expect(0)?;
    ensure!(world.objects()? == objects, "{:?}", world.objects()?);

    // A new backup begins behind it.
    source.backup()?;
    source.row(7)?;
    source.archive_all()?;
    let check = source.pitr(&["check"])?.expect(0)?.out;
    ensure!(!check.contains(segment), "{check}");
    let verify = source.pitr(&["verify", "--decode"])?.expect(0)?.out;
    ensure!(verify.contains("known gap") && verify.contains(segment), "{verify}");
    ensure!(world.rows(install, "latest", &[])? == "1,2,3,4,5,6,7", "not all rows");
    world.rows_before(install, "before2")?;
    let with_gap = world.all_moments_since("retention = { window = \"7d\" }")?;

    // The good segment is found after all, on a standby for one.
    world.push("standby", &world.good)?;
    ensure!(world.objects()?.len() == 3, "{:?}", world.objects()?);
    let info = source.pitr(&["info"])?.expect(0)?.out;
    ensure!(!info.contains("gap"), "{info}");
    let verify = source.pitr(&["verify", "--decode"])?.expect(0)?.out;
    ensure!(!verify.contains("known gap"), "{verify}");
    ensure!(world.rows(install, "healed", &["--to", &world.behind])? == "1,2,3,4", "not healed");
    let healed = world.all_moments_since("retention = { window = \"7d\" }")?;
    ensure!(healed < with_gap, "every moment since {with_gap}, and healed since {healed}");
    // What the archiver may offer again is still taken.
    world.push("again", &damaged)?;

    // What retention gives up takes the record of the gap with it.
    source.backup()?;
    source.row(8)?;
    source.archive_all()?;
    world.all_moments_since("retention = { window = \"1ms\", grace = \"0\" }")?;
    source.pitr(&["expire"])?.expect(0)?;
    ensure!(world.objects()?.is_empty(), "{:?}", world.objects()?);
    source.pitr(&["verify", "--decode"])?.expect(0).map(drop)
}

#[test]
fn a_damaged_segment_is_accepted_by_hand_and_everything_shows_the_gap_until_it_heals() -> Result<()> {
    for major in [15, 13, 18] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        one_flipped_byte(&install).with_context(|| format!("PostgreSQL {major}"))?;
    }
    Ok(())
}

/// With its first page gone, a segment does not even say whose it is.
#[test]
fn a_segment_without_a_first_page_can_be_accepted_and_what_lies_before_it_restores() -> Result<()> {
    for major in [15, 17] {
        let Some(install) = Install::find_or_skip(major) else { continue };
        let world = Blocked::new(&install, |bytes, _| bytes[..8192].fill(0xA5))?;
        let (source, segment) = (&world.source, world.segment.as_str());
        source.pitr(&["archive-push", &world.file().display().to_string()])?.expect(6)?;
        let said = source.pitr(&["accept", segment, "--damaged", "--json"])?.expect(0)?.json()?;
        let start = format!("0/{:X}00000", u64::from_str_radix(segment.get(16..).context("a name")?, 16)?);
        ensure!(said["valid_to"] == start.as_str(), "{said}, not {start}");
        source
            .cluster
            .wait_for(&format!("SELECT last_archived_wal > '{segment}' FROM pg_stat_archiver"), "t")?;
        the_gap_is_shown(&world)?;
        let lsn = said["valid_to"].as_str().context("a position")?.to_owned();
        ensure!(world.rows(&install, "start", &["--to-lsn", &lsn])? == "1", "row 1 was archived before it");
    }
    Ok(())
}

/// Too short for a segment: what is lost must be filled up by a person first.
#[test]
fn a_segment_that_is_cut_off_is_accepted_once_it_has_its_size_again() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = Blocked::new(&install, flip)?;
    let (source, segment) = (&world.source, world.segment.as_str());
    let file = fs::File::options().write(true).open(world.file())?;
    file.set_len(300_000)?;
    let said = source.pitr(&["accept", segment, "--damaged"])?.expect(6)?;
    ensure!(said.err.contains("300000 bytes") && said.err.contains("truncate -s 1048576"), "{said:?}");
    ensure!(world.objects()?.is_empty(), "{:?}", world.objects()?);
    run(std::process::Command::new("truncate").args(["-s", "1048576"]).arg(world.file()))?;
    source.pitr(&["accept", segment, "--damaged"])?.expect(0)?;
    world.rows_before(&install, "before")
}

/// Where nobody accepted anything, nothing is taken; what was away when somebody did, catches up.
#[test]
fn an_optional_repository_decides_nothing_and_gets_the_decision_later() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = Blocked::new(&install, flip)?;
    let (source, segment) = (&world.source, world.segment.as_str());
    let (second, away) = (source.target("second"), source.target("away"));
    fs::create_dir(&second)?;
    give_to_server(&second)?;
    let text = fs::read_to_string(&source.config)?;
    let more = format!(
        "[[repository]]\nname = \"second\"\nurl = \"file://{}\"\nrequired = false\n",
        second.display()
    );
    fs::write(&source.config, format!("{text}{more}"))?;
    source.pitr(&["init"])?.expect(0)?;
    let file = world.file().display().to_string();
    source.pitr(&["--repository", "second", "archive-push", &file])?.expect(6)?;
    fs::rename(&second, &away)?;
    let said = source.pitr(&["accept", segment, "--damaged"])?.expect(0)?;
    ensure!(said.err.contains("second"), "{said:?}");
    fs::rename(&away, &second)?;
    ensure!(world.objects_in(&second)?.is_empty() && world.objects()?.len() == 2, "{said:?}");
    source.pitr(&["archive-push", &file])?.expect(0)?;
    ensure!(world.objects_in(&second)?.len() == 2, "{:?}", world.objects_in(&second)?);
    Ok(())
}

//! `archive-push` and `archive-get` as PostgreSQL runs them: what is stored, what is refused, and when "not there" is said.
//!
//! The program is run on segments of a real server that does not archive by itself. Whatever is refused must be refused by its own
//! error, with an exit code of 1 to 125 (push) or 200 to 220 (get), and leave the repository and the destination as they were.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pitr::wal::{Keep, Lsn, Scanner, SegmentName, SegmentSize};
use support::cluster::{Install, Stop, give_to_server, scratch};
use support::keys;
use support::site::{Answer, Site, SiteOptions, until};

const PAGE: usize = 8192;
const MIB: u64 = 1 << 20;

/// A stopped cluster with some complete segments of 1 MiB, none of which is archived, and a new repository.
struct Bench {
    site: Site,
    /// Complete segments in order.
    segments: Vec<String>,
    out: PathBuf,
    /// What opens an encrypted repository, and is no part of the configuration.
    identity: Option<PathBuf>,
}

impl Bench {
    fn new() -> Result<Option<Self>> {
        Self::with(|_| Ok(None))
    }

    /// One whose repository is encrypted. Who pushes cannot open it, as on a database's host.
    fn sealed() -> Result<Option<Self>> {
        let bench = Self::with(|place| {
            let host = place.join("main.host");
            keys::init(&host, place, &[])?;
            Ok(Some(format!("[keys]\nhost_file = \"{}\"\n", host.display())))
        })?;
        Ok(bench.map(|bench| Self { identity: Some(keys::daily(bench.site.place())), ..bench }))
    }

    /// `more` belongs to the configuration of a site in that directory, if it shall have one before `init`.
    fn with(more: impl Fn(&Path) -> Result<Option<String>>) -> Result<Option<Self>> {
        let Some(install) = Install::find_or_skip(15) else { return Ok(None) };
        let conf = "wal_keep_size = 512MB\nmax_wal_size = 1GB\n";
        let options = SiteOptions { archives: false, conf, ..SiteOptions::default() };
        let place = scratch("pitr-archive-")?;
        let (url, more) = (format!("file://{}", place.path().join("repo").display()), more(place.path())?);
        let site = Site::at(&install, &options, place, &url, more.as_deref())?;
        site.cluster.psql(
            "SELECT pg_switch_wal(); CREATE TABLE t AS SELECT n, md5(n::text) AS text FROM generate_series(1, 130000) n;\n\
             SELECT pg_switch_wal(); INSERT INTO t VALUES (0, 'last'); SELECT pg_switch_wal();",
        )?;
        let current = site.cluster.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")?;
        let files = site.cluster.wal_files()?;
        site.cluster.stop(Stop::Fast)?;
        let names = files.iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        let mut segments: Vec<String> = names.filter(|name| *name < current).collect();
        // A server of its own has written these; the oldest belong to initdb.
        segments.drain(..segments.len().saturating_sub(8));
        ensure!(segments.len() == 8, "{segments:?}");
        let out = site.place().join("out");
        fs::create_dir(&out)?;
        give_to_server(&out)?;
        Ok(Some(Self { site, segments, out, identity: None }))
    }

    fn bytes(&self, segment: &str) -> Result<Vec<u8>> {
        Ok(fs::read(self.site.cluster.data.join("pg_wal").join(segment))?)
    }

    /// As PostgreSQL does: a path relative to the data directory.
    fn push(&self, segment: &str) -> Result<Answer> {
        self.site.ask(&["archive-push", &format!("pg_wal/{segment}")])
    }

    /// Pushes a file of this name and content from elsewhere.
    fn push_bytes(&self, name: &str, bytes: &[u8]) -> Result<Answer> {
        let path = self.site.place().join(name);
        fs::write(&path, bytes)?;
        give_to_server(&path)?;
        let answer = self.site.ask(&["archive-push", path.to_str().context("a path")?]);
        fs::remove_file(&path)?;
        answer
    }

    fn pushed(&self, segments: &[&String]) -> Result<()> {
        segments.iter().try_for_each(|segment| self.push(segment)?.expect(0, &[]))
    }

    fn get(&self, name: &str, more: &[&str]) -> Result<Answer> {
        let destination = self.destination();
        let mut args = vec!["archive-get"];
        args.extend(more);
        if let Some(identity) = &self.identity {
            args.extend(["--identity", identity.to_str().context("a path")?]);
        }
        args.extend([name, destination.to_str().context("a path")?]);
        self.site.ask(&args)
    }

    fn destination(&self) -> PathBuf {
        self.out.join("RECOVERYXLOG")
    }

    /// Gets a file that must be there, and takes it away.
    fn got(&self, name: &str, more: &[&str]) -> Result<Vec<u8>> {
        self.get(name, more)?.expect(0, &[])?;
        let bytes = fs::read(self.destination())?;
        fs::remove_file(self.destination())?;
        Ok(bytes)
    }

    /// A get that must fail with `codes` and these words, and leave what was there.
    fn not_got(
        &self,
        name: &str,
        more: &[&str],
        codes: std::ops::RangeInclusive<i32>,
        word: &str,
    ) -> Result<()> {
        fs::write(self.destination(), "was here before")?;
        give_to_server(&self.destination())?;
        let answer = self.get(name, more)?;
        ensure!(
            codes.contains(&answer.code) && answer.err.contains(word),
            "{name} {more:?}, {word:?}: {answer:?}"
        );
        ensure!(fs::read(self.destination())? == b"was here before", "{name}: the destination was touched");
        ensure!(fs::read_dir(&self.out)?.count() == 1, "{name}: something was left beside the destination");
        Ok(fs::remove_file(self.destination())?)
    }

    fn absent(&self, name: &str) -> Result<()> {
        self.not_got(name, &[], 1..=1, "")
    }

    fn doubted(&self, name: &str, word: &str) -> Result<()> {
        self.not_got(name, &[], 200..=220, word)
    }
}

/// The first byte of some record that lies inside one page in the middle of a segment, and its size.
fn a_record(name: &str, bytes: &[u8]) -> Result<(usize, usize)> {
    let mut found = None;
    let mut scanner = Scanner::new(SegmentName::parse(name)?, SegmentSize::new(MIB)?, Keep::Summary)?;
    scanner.push_observed(bytes, &mut |record| {
        let at = |lsn: Lsn| usize::try_from(lsn.get() % MIB).unwrap_or(0);
        let (start, end) = (at(record.lsn), at(record.end));
        if start > 40 * PAGE && start / PAGE == end / PAGE && end - start > 60 {
            found.get_or_insert((start, end - start));
        }
    })?;
    found.with_context(|| format!("{name} has no such record"))
}

/// The LSN of a byte of a segment.
fn position(segment: &str, offset: usize) -> Result<Lsn> {
    let (name, size) = (SegmentName::parse(segment)?, SegmentSize::new(MIB)?);
    Ok(name.number(size)?.start(size).saturating_add(u64::try_from(offset)?))
}

/// The same segment with one row changed and the record's CRC made right again, as if a second primary had written it.
fn rewritten(name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let (at, size) = a_record(name, bytes)?;
    let mut other = bytes.to_vec();
    let record = other.get_mut(at..at + size).context("inside")?;
    *record.last_mut().context("not empty")? ^= 1;
    let (header, body) = record.split_at(24);
    let crc = crc32c::crc32c_append(crc32c::crc32c(body), &header[..20]);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
    Ok(other)
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut other = bytes.to_vec();
    other[at] ^= 0x40;
    other
}

#[test]
fn what_is_not_this_clusters_whole_valid_segment_is_refused_by_its_own_error() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [first, second, third, ..] = bench.segments.as_slice() else { unreachable!() };
    bench.pushed(&[first])?;
    let before = bench.site.listing()?;
    let (bytes, stored) = (bench.bytes(second)?, bench.bytes(first)?);
    let later_timeline = second.replacen("00000001", "00000002", 1);
    let (record, _) = a_record(second, &bytes)?;
    let mut child = bytes.clone();
    child[4] = 2; // xlp_tli of the first page
    let small = &bytes[..bytes.len() - PAGE];
    let cases: Vec<(&str, &str, Vec<u8>, &str)> = vec![
        ("another cluster's", second, flipped(&bytes, 24), "was written by system"),
        ("another segment's name", third, bytes.clone(), "should hold WAL from"),
        ("a timeline without history", &later_timeline, bytes.clone(), "00000002.history"),
        ("pages of a later timeline", second, child, "timeline"),
        ("truncated", second, small.to_vec(), "has 1040384 bytes"),
        ("empty", second, Vec::new(), "is not a WAL segment"),
        ("a page header in the middle", second, flipped(&bytes, 50 * PAGE), "page"),
        ("a flipped byte in a record", second, flipped(&bytes, record + 40), "CRC"),
        ("two histories under one name", first, rewritten(first, &stored)?, "already archived"),
        ("a name that is none", "00000001000000000000000G", bytes.clone(), "cannot archive"),
    ];
    let mut errors: Vec<String> = Vec::new();
    for (what, name, content, word) in cases {
        let answer = bench.push_bytes(name, &content)?;
        ensure!((1..=125).contains(&answer.code) && answer.err.contains(word), "{what}: {answer:?}");
        ensure!(bench.site.listing()? == before, "{what}: the repository has changed");
        let line = answer.err.lines().next().unwrap_or_default().to_owned();
        ensure!(!errors.contains(&line), "{what} has the error of another case: {line}");
        errors.push(line);
    }
    // A conflict names the record where both part.
    let conflict = bench.push_bytes(first, &rewritten(first, &stored)?)?;
    conflict.expect(9, &["transaction", "nothing was replaced"])?;
    ensure!(bench.got(first, &[])? == stored);
    // What was wrong above was wrong for these reasons alone.
    bench.push_bytes(second, &bytes)?.expect(0, &[])?;
    bench.pushed(&[third])
}

#[test]
fn what_push_acknowledged_get_returns_and_equal_content_twice_is_success() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    for segment in &bench.segments {
        bench.pushed(&[segment])?;
        let listing = bench.site.listing()?;
        bench.pushed(&[segment])?;
        ensure!(bench.site.listing()? == listing, "{segment}: the second push wrote something");
        ensure!(bench.got(segment, &[])? == bench.bytes(segment)?, "{segment}");
    }
    // The same segment is asked for more than once, and what lies at the destination is replaced.
    let [first, .., last] = bench.segments.as_slice() else { unreachable!() };
    bench.get(first, &[])?.expect(0, &[])?;
    bench.get(last, &[])?.expect(0, &[])?;
    ensure!(fs::read(bench.destination())? == bench.bytes(last)?);
    let (file, data) = (fs::metadata(bench.destination())?, fs::metadata(&bench.site.cluster.data)?);
    ensure!(file.permissions().mode() & 0o7777 == 0o600 && file.uid() == data.uid(), "{file:?}");
    ensure!(file.nlink() == 1, "the server recycles the file in place");
    if nix::unistd::geteuid().is_root() {
        // An operator's sudo must not leave the server a file that it cannot read.
        let mut by_root = std::process::Command::new(bench.site.program());
        by_root.env_clear().current_dir(&bench.site.cluster.data).arg("--config").arg(&bench.site.config);
        Answer::of(by_root.args(["archive-get", first, "pg_wal/by-root"]))?.expect(0, &[])?;
        let file = fs::metadata(bench.site.cluster.data.join("pg_wal/by-root"))?;
        ensure!((file.uid(), file.gid()) == (data.uid(), data.gid()), "{file:?}");
    }
    // Relative paths count from the data directory, and `--json` says what happened.
    let said = bench.site.json(&["archive-get", last, "pg_wal/RECOVERYXLOG", "--json"])?;
    ensure!(said["outcome"] == "delivered" && said["bytes"] == MIB, "{said}");
    ensure!(fs::read(bench.site.cluster.data.join("pg_wal/RECOVERYXLOG"))? == bench.bytes(last)?);
    let said = bench.site.json(&["archive-push", &format!("pg_wal/{last}"), "--json"])?;
    ensure!(said["file"] == last.as_str() && said["repositories"][0]["outcome"] == "AlreadyThere", "{said}");
    Ok(())
}

/// RECOVERY 8: a segment without its history is unreachable, and its timeline would be taken again.
#[test]
fn no_segment_is_acknowledged_before_the_histories_of_its_timeline() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let segment = bench.segments[3].as_str();
    let (bytes, pg_wal) = (bench.bytes(segment)?, bench.site.cluster.data.join("pg_wal"));
    let fork = position(segment, 0x40)?;
    let child = |timeline: u32| segment.replacen("00000001", &format!("{timeline:08}"), 1);
    let put = |name: &str, content: &[u8]| -> Result<()> {
        fs::write(pg_wal.join(name), content)?;
        give_to_server(&pg_wal.join(name))
    };
    for timeline in [2, 3, 6] {
        put(&child(timeline), &bytes)?;
    }
    let stored = |name: &str| Ok::<_, anyhow::Error>(bench.site.object(name)?.exists());
    bench.push(&child(2))?.expect(9, &["00000002.history"])?;
    ensure!(!stored(&child(2))?);
    // Of timeline 6 the own history is at hand, the ancestor's not, nor what it said.
    put("00000006.history", format!("2\t{fork}\tx\n").as_bytes())?;
    bench.push(&child(6))?.expect(9, &["00000002.history"])?;
    ensure!(!stored(&child(6))?);
    // In the history of timeline 3 it is, as PostgreSQL writes it; when its file comes, it is the same.
    let two = format!("1\t{fork}\tno recovery target specified\n");
    put("00000003.history", format!("{two}\n2\t{fork}\tx\n").as_bytes())?;
    bench.push(&child(3))?.expect(0, &[])?;
    ensure!(stored(&child(3))? && stored("00000003.history")? && stored("00000002.history")?);
    put("00000002.history", two.as_bytes())?;
    bench.push("00000002.history")?.expect(0, &[])?;
    bench.push(&child(2))?.expect(0, &[])?;
    // Two servers were promoted to one timeline.
    let before = bench.site.listing()?;
    put("00000002.history", format!("1\t{fork}\tanother reason\n").as_bytes())?;
    bench.push("00000002.history")?.expect(9, &["00000002.history", "two servers"])?;
    put("00000004.history", b"4\t0/0\tits own parent\n")?;
    bench.push("00000004.history")?.expect(6, &["00000004.history"])?;
    ensure!(bench.site.listing()? == before);
    let history = bench.got("00000002.history", &[])?;
    ensure!(history == format!("1\t{fork}\tno recovery target specified\n").as_bytes());
    // A history may also be pushed by itself, as PostgreSQL does first of all.
    put("00000005.history", format!("1\t{fork}\tx\n").as_bytes())?;
    bench.push("00000005.history")?.expect(0, &[])
}

/// RECOVERY 12: with `archive_mode = always` a segment that was restored from a tail is offered while its rest is still to come.
#[test]
fn an_unfinished_segment_is_no_answer_once_wal_goes_on_after_it() -> Result<()> {
    let (Some(plain), Some(sealed)) = (Bench::new()?, Bench::sealed()?) else { return Ok(()) };
    unfinished(&plain).context("plain")?;
    // What was sealed before the name turned out to be taken cannot be compared: the file is read again.
    unfinished(&sealed).context("sealed")
}

fn unfinished(bench: &Bench) -> Result<()> {
    let [first, second, third, ..] = bench.segments.as_slice() else { unreachable!() };
    let (bytes, padded) = (bench.bytes(second)?, |to: usize| -> Result<Vec<u8>> {
        let mut short = bench.bytes(second)?;
        short[to..].fill(0);
        Ok(short)
    });
    let (record, size) = a_record(second, &bytes)?;
    bench.pushed(&[first])?;
    bench.push_bytes(second, &padded(record)?)?.expect(0, &[])?;
    ensure!(bench.got(second, &[])? == padded(record)?, "the newest segment may be unfinished");
    // Cut in the middle of a record it holds the same WAL: nothing to store.
    let listing = bench.site.listing()?;
    bench.push_bytes(second, &padded(record + size / 2)?)?.expect(0, &[])?;
    ensure!(bench.site.listing()? == listing);
    bench.pushed(&[third])?;
    bench.doubted(second, second)?;
    bench.pushed(&[second])?;
    ensure!(bench.site.object(&format!("{second}.2"))?.exists());
    ensure!(bench.got(second, &[])? == bytes);
    // The short copy once more, and one of another history.
    bench.push_bytes(second, &padded(record)?)?.expect(0, &[])?;
    bench.push_bytes(second, &rewritten(second, &bytes)?)?.expect(9, &["already archived"])?;
    ensure!(bench.got(second, &[])? == bytes);
    Ok(())
}

/// P3, RECOVERY 12: recovery ends inside an unfinished segment, so that is an answer only if no repository has more.
#[test]
fn an_unfinished_segment_is_no_answer_while_another_repository_may_have_more() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [first, second, third, ..] = bench.segments.as_slice() else { unreachable!() };
    let bytes = bench.bytes(second)?;
    let short = |to: usize| {
        let mut short = bytes.clone();
        short[to..].fill(0);
        short
    };
    let (record, size) = a_record(second, &bytes)?;
    let (shorter, longer) = (short(record), short(record + size.next_multiple_of(8)));
    let use_only = |which: &[&str]| {
        let repository = |name: &&str| {
            let url = bench.site.place().join(name);
            format!("[[repository]]\nname = \"{name}\"\nurl = \"file://{}\"\n", url.display())
        };
        bench.site.write_config(&which.iter().map(repository).collect::<String>())
    };
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&bench.site.repository, &bench.site.place().join("behind")])
        .status()?;
    ensure!(copied.success());
    let both = ["behind", "repo"];

    use_only(&both)?;
    bench.pushed(&[first])?;
    bench.push_bytes(second, &shorter)?.expect(0, &[])?;
    ensure!(bench.got(second, &[])? == shorter, "neither has more");
    use_only(&["repo"])?;
    bench.push_bytes(second, &longer)?.expect(0, &[])?;
    for order in [both, ["repo", "behind"]] {
        use_only(&order)?;
        ensure!(bench.got(second, &[])? == longer, "{order:?}: the longest of unfinished ones");
    }
    ensure!(bench.got(second, &["--repository", "behind"])? == shorter, "the others are not asked");
    // Whoever cannot be asked may have more, unless recovery ends within what is there.
    let (within, after) =
        (position(second, PAGE)?.to_string(), position(second, record)?.saturating_add(8).to_string());
    let (identity, aside) = (bench.site.folder()?.join("identity.json"), bench.site.place().join("aside"));
    for order in [both, ["repo", "behind"]] {
        use_only(&order)?;
        fs::rename(&identity, &aside)?;
        bench.doubted(second, "repo")?;
        bench.not_got(second, &["--until", &after], 200..=220, "repo")?;
        let enough = bench.got(second, &["--until", &within])?;
        ensure!(enough == shorter, "{order:?}");
        fs::rename(&aside, &identity)?;
    }
    use_only(&["repo"])?;
    bench.pushed(&[second, third])?;
    use_only(&both)?;
    ensure!(bench.got(second, &[])? == bytes, "whole where more was archived");
    // A repository that has later WAL alone shows that the segment went on.
    for copy in ["", ".2", ".3"] {
        fs::remove_file(bench.site.object(&format!("{second}{copy}"))?)?;
    }
    bench.doubted(second, third)
}

#[test]
fn partial_and_backup_history_files_are_kept_and_never_served_as_segments() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [first, .., last] = bench.segments.as_slice() else { unreachable!() };
    bench.pushed(&[first])?;
    let (partial, bytes) = (format!("{last}.partial"), bench.bytes(last)?);
    bench.push_bytes(&partial, &bytes)?.expect(0, &[])?;
    ensure!(bench.got(&partial, &[])? == bytes);
    // RECOVERY 10. The end of an abandoned timeline: recovery along it must be able to end.
    bench.absent(last)?;
    let (backup, text) = (format!("{first}.00000028.backup"), b"START WAL LOCATION: 0/2000028\n");
    bench.push_bytes(&backup, text)?.expect(0, &[])?;
    bench.push_bytes(&backup, text)?.expect(0, &[])?;
    ensure!(bench.got(&backup, &[])? == text);
    bench.push_bytes(&backup, b"another text\n")?.expect(9, &["already archived"])?;
    // The full segment later is another file, not another content.
    bench.pushed(&[last])?;
    ensure!(bench.got(last, &[])? == bytes);
    Ok(())
}

/// P3: PostgreSQL takes 1 to 125 as "end of WAL" and opens the database, so only proof may say it.
#[test]
fn absence_is_said_only_when_it_is_proven() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [first, second, third, .., last] = bench.segments.as_slice() else { unreachable!() };
    bench.absent(first)?; // nothing at all is stored
    bench.pushed(&[first, third])?;
    bench.absent(last)?;
    bench.absent("00000002.history")?;
    bench.absent("00000001.history")?;
    bench.absent(&first.replacen("00000001", "00000002", 1))?;
    bench.doubted(second, third)?;
    bench.doubted("no-name", "no-name")?;
    bench.not_got(last, &["--bogus"], 200..=220, "--bogus")?;
    bench.not_got(last, &["--timeline", "0"], 200..=220, "timeline 0")?;
    bench.not_got(last, &["--timeline", "7"], 200..=220, "timeline 7")?;
    bench.not_got(last, &["--system-id", "42"], 200..=220, "42")?;
    bench.not_got(last, &["--help"], 200..=220, "")?;

    let object = bench.site.object(first)?;
    let bytes = fs::read(&object)?;
    for at in [5, 100, 520, bytes.len() - 3] {
        fs::write(&object, flipped(&bytes, at))?;
        bench.doubted(first, first)?;
    }
    fs::write(&object, &bytes[..bytes.len() / 2])?;
    bench.doubted(first, first)?;
    fs::write(&object, &bytes)?;
    ensure!(bench.got(first, &[])? == bench.bytes(first)?, "the object is itself again");

    let identity = bench.site.folder()?.join("identity.json");
    let aside = bench.site.place().join("aside");
    fs::rename(&identity, &aside)?;
    bench.doubted(last, "")?;
    bench.doubted(first, "")?;
    fs::rename(&aside, &identity)?;
    fs::rename(&bench.site.repository, &aside)?;
    bench.doubted(last, "")?;
    // Doubt about it is fatal after replay is done, but a store that is not there proves nothing.
    bench.doubted("00000001.history", "")?;
    fs::create_dir(&bench.site.repository)?; // the mount point of a disk that is not there
    bench.doubted(last, "")?;
    fs::remove_dir(&bench.site.repository)?;
    fs::rename(&aside, &bench.site.repository)?;
    bench.absent(last)?;

    let config = fs::read_to_string(&bench.site.config)?;
    fs::write(&bench.site.config, format!("{config}\nbogus = 1\n"))?;
    bench.doubted(last, "bogus")?;
    fs::remove_file(&bench.site.config)?;
    bench.doubted(last, "pitr.toml")?;
    Ok(())
}

#[test]
fn a_store_that_does_not_answer_is_no_absence_and_a_required_one_blocks_the_push() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [first, second, .., last] = bench.segments.as_slice() else { unreachable!() };
    bench.pushed(&[first])?;
    let local =
        format!("[[repository]]\nname = \"local\"\nurl = \"file://{}\"\n", bench.site.repository.display());
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let keys = bench.site.place().join("keys");
    fs::write(&keys, "access_key_id = x\nsecret_access_key = y\n")?;
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
    give_to_server(&keys)?;
    let dead = format!(
        "[[repository]]\nname = \"dead\"\nurl = \"s3://bucket/prefix\"\nendpoint = \"http://127.0.0.1:{port}\"\n\
         allow_http = true\ncredentials_file = \"{}\"\nregion = \"us-east-1\"\n",
        keys.display()
    );
    bench.site.write_config(&format!("{local}{dead}"))?;
    let before = bench.site.listing()?;
    let blocked = bench.push(second)?;
    ensure!((1..=125).contains(&blocked.code) && blocked.err.contains("s3://bucket"), "{blocked:?}");
    bench.doubted(last, "dead")?;
    ensure!(bench.got(first, &[])? == bench.bytes(first)?, "it is in the repository that lives");
    ensure!(bench.got(first, &["--repository", "local"])? == bench.bytes(first)?);
    bench.not_got(last, &["--repository", "local"], 1..=1, "")?;
    bench.not_got(first, &["--repository", "dead"], 200..=220, "dead")?;
    // The living one may have it; the next attempt finds it there and goes on.
    let after = bench.site.listing()?;
    ensure!(after.len() <= before.len() + 1, "{after:?}");

    bench.site.write_config(&format!("{local}{dead}required = false\n"))?;
    bench.push(second)?.expect(0, &["warning", "dead"])?;
    ensure!(bench.got(second, &[])? == bench.bytes(second)?);
    // Where it alone is asked for there is no other that has it.
    let path = format!("pg_wal/{second}");
    let alone = bench.site.ask(&["--repository", "dead", "archive-push", &path])?;
    ensure!((1..=125).contains(&alone.code) && alone.err.contains("s3://bucket"), "{alone:?}");
    bench.doubted(last, "dead")?;
    // A second repository on a disk that is not mounted.
    let gone = bench.site.place().join("gone/disk");
    bench.site.write_config(&format!(
        "{local}[[repository]]\nname = \"disk\"\nurl = \"file://{}\"\n",
        gone.display()
    ))?;
    let blocked = bench.push(last)?;
    ensure!((1..=125).contains(&blocked.code) && blocked.err.contains("disk"), "{blocked:?}");
    ensure!(!gone.exists(), "a missing mount point was made");
    bench.doubted(&bench.segments[4].clone(), "disk")
}

/// An optional repository that takes connections and never answers, without an agent: it would hold each segment for minutes.
#[test]
fn a_silent_optional_repository_does_not_hold_up_what_the_required_ones_have() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [first, second, ..] = bench.segments.as_slice() else { unreachable!() };
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let keys = bench.site.place().join("keys");
    fs::write(&keys, "access_key_id = x\nsecret_access_key = y\n")?;
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
    give_to_server(&keys)?;
    let silent = format!(
        "[[repository]]\nname = \"silent\"\nrequired = false\nurl = \"s3://bucket/prefix\"\nendpoint = \"http://{}\"\n\
         allow_http = true\ncredentials_file = \"{}\"\nregion = \"us-east-1\"\n",
        silent.local_addr()?,
        keys.display()
    );
    let main = bench.site.repository.display();
    // It comes first, and is silent from its first request on.
    bench
        .site
        .write_config(&format!("{silent}[[repository]]\nname = \"main\"\nurl = \"file://{main}\"\n"))?;
    let before = bench.site.listing()?.len();
    for segment in [first, second, first] {
        let begun = Instant::now();
        bench.push(segment)?.expect(0, &["warning", "repository silent", "is not stored there yet"])?;
        // Two minutes is what its own deadlines come to.
        ensure!(begun.elapsed() < Duration::from_secs(60), "{segment}: {:?}", begun.elapsed());
        ensure!(bench.got(segment, &["--repository", "main"])? == bench.bytes(segment)?, "{segment}");
    }
    ensure!(bench.site.listing()?.len() == before + 2, "{:?}", bench.site.listing()?);
    Ok(())
}

/// RECOVERY 15: exit 200 would kill a standby, which asks again by itself and never opens on absence.
#[test]
fn a_standby_is_told_to_ask_again() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [first, second, third, ..] = bench.segments.as_slice() else { unreachable!() };
    bench.pushed(&[first, third])?;
    bench.doubted(second, "")?;
    let signal = bench.site.cluster.data.join("standby.signal");
    fs::write(&signal, "")?;
    bench.not_got(second, &[], 1..=1, "standby")?;
    ensure!(bench.got(first, &[])? == bench.bytes(first)?);
    let object = bench.site.object(first)?;
    let bytes = fs::read(&object)?;
    fs::write(&object, flipped(&bytes, 700))?;
    bench.not_got(first, &[], 1..=1, first)?;
    // A wrong command line stays wrong.
    bench.not_got(second, &["--bogus"], 200..=220, "--bogus")?;
    fs::rename(&bench.site.repository, bench.site.place().join("aside"))?;
    bench.not_got(second, &[], 1..=1, "standby")
}

/// A restore without a configuration writes flags that say all. `pitr init` on that host, while it recovers, must not end it.
#[test]
fn flags_that_name_a_repository_by_its_url_are_believed_whatever_a_configuration_says() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let first = bench.segments[0].clone();
    bench.pushed(&[&first])?;
    let url = format!("file://{}", bench.site.repository.display());
    let own = fs::read_to_string(&bench.site.config)?;
    for text in [own.clone(), own.replace("cluster = \"main\"", "cluster = \"other\""), "nonsense".to_owned()]
    {
        fs::write(&bench.site.config, &text)?;
        let mut command = support::cluster::as_server(bench.site.program())?;
        command.env("PITR_CONFIG", &bench.site.config).current_dir(&bench.site.cluster.data);
        let to = bench.out.join("by-url");
        command.args(["--repository", &url, "--cluster", "main", "archive-get", &first]).arg(&to);
        Answer::of(&mut command)?.expect(0, &[]).with_context(|| text.clone())?;
        ensure!(fs::read(&to)? == bench.bytes(&first)?);
        fs::remove_file(&to)?;
    }
    Ok(())
}

/// RECOVERY 7: what a parent holds at or past the fork is not part of the child's history.
#[test]
fn with_a_timeline_a_parent_is_cut_at_the_fork() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [first, second, third, fourth, ..] = bench.segments.as_slice() else { unreachable!() };
    bench.pushed(&[first, second, third])?;
    let bytes = bench.bytes(second)?;
    let (fork, _) = a_record(second, &bytes)?;
    let history = format!("1\t{}\tno recovery target specified\n", position(second, fork)?);
    bench.push_bytes("00000002.history", history.as_bytes())?.expect(0, &[])?;
    let route = ["--timeline", "2"];
    ensure!(bench.got(first, &route)? == bench.bytes(first)?);
    let cut = bench.got(second, &route)?;
    ensure!(cut.len() == bytes.len() && cut[..fork] == bytes[..fork] && cut[fork..].iter().all(|b| *b == 0));
    for beyond in [third, fourth] {
        bench.not_got(beyond, &route, 1..=1, "")?;
    }
    // On the parent's own route, and without one, nothing is cut.
    for more in [&["--timeline", "1"][..], &[]] {
        ensure!(bench.got(second, more)? == bytes && bench.got(third, more)? == bench.bytes(third)?);
    }
    ensure!(bench.got("00000002.history", &route)? == history.as_bytes());
    Ok(())
}

/// P8. The moments differ from run to run, but a repeated push must always find its way.
#[test]
fn a_push_that_is_killed_at_any_moment_can_be_repeated() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let begun = Instant::now();
    bench.pushed(&[&bench.segments[0]])?;
    let whole = u64::try_from(begun.elapsed().as_micros())?;
    let mut killed = 0;
    for round in 0..4_u64 {
        for (segment, step) in bench.segments.iter().skip(1).zip(1_u64..) {
            let mut push = bench
                .site
                .pitr(&["archive-push", &format!("pg_wal/{segment}")])?
                .stderr(Stdio::null())
                .spawn()?;
            // Golden-ratio steps cover the span evenly however many rounds there are.
            let part = (round * 7 + step) * 618 % 1000;
            thread::sleep(Duration::from_micros(whole * part / 1000));
            kill(Pid::from_raw(i32::try_from(push.id())?), Signal::SIGKILL)?;
            killed += usize::from(push.wait()?.signal() == Some(9));
            if round < 3 {
                remove_if_there(&bench.site.object(segment)?)?;
            }
        }
    }
    ensure!(killed > 5, "hardly any push was killed: {killed}");
    for segment in &bench.segments {
        bench.pushed(&[segment])?;
        ensure!(bench.got(segment, &[])? == bench.bytes(segment)?, "{segment}");
    }
    let stray: Vec<PathBuf> = bench.site.listing()?.into_keys().filter(|path| is_hidden(path)).collect();
    ensure!(stray.is_empty(), "left behind: {stray:?}");
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

#[test]
fn wal_that_retention_gave_up_is_neither_taken_nor_called_absent() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let [first, second, third, fourth, ..] = bench.segments.as_slice() else { unreachable!() };
    bench.pushed(&[first])?;
    let floor = bench.site.folder()?.join("floor");
    fs::create_dir(&floor)?;
    let write = |n: u32, first: &str, keep: &str| -> Result<()> {
        let text = format!(
            "{{\"pitr\": \"floor 1\", \"nonce\": \"{}\", \"created\": \"2025-10-17T10:30:00Z\",\n\
             \"timelines\": [{{\"timeline\": 1, \"first\": \"{first}\", \"keep\": [{keep}]}}]}}",
            "5a".repeat(16)
        );
        fs::write(floor.join(format!("{n}.json")), text)?;
        give_to_server(&floor)?;
        give_to_server(&floor.join(format!("{n}.json")))
    };
    write(1, third, &format!("{{\"first\": \"{first}\", \"last\": \"{first}\"}}"))?;
    let refused = bench.push(second)?;
    ensure!((1..=125).contains(&refused.code) && refused.err.contains(second.as_str()), "{refused:?}");
    ensure!(!bench.site.object(second)?.exists());
    bench.doubted(second, second)?;
    ensure!(bench.got(first, &[])? == bench.bytes(first)?, "a kept range below the floor");
    bench.pushed(&[first, third])?;
    bench.absent(fourth)?;
    // The highest number counts, and one that cannot be read is no floor of zero.
    write(10, fourth, "")?;
    write(9, first, "")?;
    ensure!(bench.push(third)?.code != 0);
    fs::write(floor.join("11.json"), "{ torn")?;
    ensure!((1..=125).contains(&bench.push(fourth)?.code));
    bench.doubted(&bench.segments[6].clone(), "11.json")
}

/// RECOVERY 16: the server ends its commands by SIGTERM and reads from the status that it was a signal.
#[test]
fn a_signal_ends_push_and_get_at_once() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    silent.set_nonblocking(true)?;
    let keys = bench.site.place().join("keys");
    fs::write(&keys, "access_key_id = x\nsecret_access_key = y\n")?;
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
    give_to_server(&keys)?;
    bench.site.write_config(&format!(
        "[[repository]]\nname = \"silent\"\nurl = \"s3://bucket/prefix\"\nendpoint = \"http://{}\"\nallow_http = true\n\
         credentials_file = \"{}\"\nregion = \"us-east-1\"\n",
        silent.local_addr()?,
        keys.display()
    ))?;
    let path = format!("pg_wal/{}", bench.segments[0]);
    let commands: [&[&str]; 2] =
        [&["archive-push", &path], &["archive-get", &bench.segments[0], "pg_wal/RECOVERYXLOG"]];
    for args in commands {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut child: Child =
                bench.site.pitr(args)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            // Closed at once it would be tried again: kept until the program is gone.
            let connection = std::cell::RefCell::new(None);
            until(
                || Ok(silent.accept().is_ok_and(|c| connection.replace(Some(c)).is_none())),
                || format!("{args:?} does not connect"),
            )?;
            kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
            let status = child.wait()?;
            ensure!(status.signal() == Some(i32::from(signal as u8)), "{args:?} {signal}: {status}");
        }
    }
    ensure!(!bench.site.cluster.data.join("pg_wal/RECOVERYXLOG").exists());
    Ok(())
}

#[test]
fn nothing_is_archived_from_a_copy() -> Result<()> {
    let Some(bench) = Bench::new()? else { return Ok(()) };
    let marker = bench.site.cluster.data.join("pitr.copy");
    fs::write(&marker, "{}")?;
    let before = bench.site.listing()?;
    bench.push(&bench.segments[0])?.expect(9, &["copy", "--adopt"])?;
    ensure!(bench.site.listing()? == before);
    fs::remove_file(&marker)?;
    bench.pushed(&[&bench.segments[0]])
}

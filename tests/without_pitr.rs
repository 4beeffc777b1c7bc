//! The way out: `contrib/restore-without-pitr.sh`, which uses nothing of pitr, restores plain and encrypted repositories.
//!
//! PostgreSQL is started on what it makes, and its rows are compared; what is damaged or forged must stop it.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

#[path = "without_pitr/state.rs"]
mod state;
#[path = "without_pitr/wal.rs"]
mod wal;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use support::cluster::{Cluster, Install, as_server, give_to_server, run, scratch};
use support::keys::{self, tools};
use support::site::{Answer, Site, SiteOptions, open, settle, until};

const ROWS: &str = "SELECT count(*) || ' ' || md5(string_agg(said, ',' ORDER BY n)) FROM t";

/// A server with its repository, whose folder will be all that is left.
struct Source {
    site: Site,
    place: tempfile::TempDir,
    key: Option<PathBuf>,
    fingerprint: Option<String>,
}

impl Source {
    fn new(install: &Install, sealed: bool) -> Result<Self> {
        let place = scratch("pitr-rescue-")?;
        if !sealed {
            let site = Site::new(install, &SiteOptions::default())?;
            return Ok(Self { site, place, key: None, fingerprint: None });
        }
        let home = scratch("pitr-sealed-")?;
        let host = home.path().join("main.host");
        let made = keys::init(&host, place.path(), &["--json"])?;
        let made: serde_json::Value = serde_json::from_str(&made.out)?;
        let url = format!("file://{}", home.path().join("repo").display());
        let more = format!("[keys]\nhost_file = \"{}\"\n", host.display());
        let site = Site::at(install, &SiteOptions::default(), home, &url, Some(&more))?;
        let (key, fingerprint) = (keys::offline(place.path()), made["seal_fingerprint"].as_str());
        Ok(Self { site, key: Some(key), fingerprint: fingerprint.map(str::to_owned), place })
    }

    /// A table in whose rows is what a test looks for.
    fn table(&self) -> Result<()> {
        self.site
            .cluster
            .psql("CREATE TABLE t AS SELECT n, md5(n::text) AS said FROM generate_series(1, 500) n")
            .map(drop)
    }

    /// The folder as it is now.
    fn rescue(&self) -> Result<Rescue> {
        let place = scratch("pitr-rescue-")?;
        let folder = place.path().join("folder");
        run(as_server("cp")?.arg("-a").arg(self.site.folder()?).arg(&folder))?;
        let key = self.key.as_ref().map(|key| -> Result<PathBuf> {
            let copy = place.path().join("offline.key");
            run(as_server("cp")?.arg(key).arg(&copy))?;
            Ok(copy)
        });
        Ok(Rescue {
            rows: self.site.cluster.psql(ROWS)?,
            key: key.transpose()?,
            fingerprint: self.fingerprint.clone(),
            spaces: Vec::new(),
            place,
            folder,
        })
    }
}

/// A copy of the repository's folder, as somebody without pitr would make it.
struct Rescue {
    place: tempfile::TempDir,
    /// Where tablespaces were on the server.
    spaces: Vec<PathBuf>,
    rows: String,
    folder: PathBuf,
    key: Option<PathBuf>,
    fingerprint: Option<String>,
}

impl Rescue {
    fn of(install: &Install, sealed: bool) -> Result<Self> {
        Self::with(install, sealed, &[])
    }

    /// With tables in tablespaces whose directories have these names.
    fn with(install: &Install, sealed: bool, spaces: &[&str]) -> Result<Self> {
        let source = Source::new(install, sealed)?;
        let site = &source.site;
        source.table()?;
        let mut places = Vec::new();
        for (n, name) in spaces.iter().enumerate() {
            let space = source.place.path().join(name);
            fs::create_dir(&space)?;
            give_to_server(&space)?;
            site.cluster.psql(&format!("CREATE TABLESPACE far{n} LOCATION '{}'", space.display()))?;
            site.cluster.psql(&format!(
                "CREATE TABLE far{n} TABLESPACE far{n} AS SELECT generate_series(1, 500) n"
            ))?;
            places.push(space);
        }
        site.switch()?;
        site.backup()?;
        for n in 0..spaces.len() {
            site.cluster.psql(&format!("INSERT INTO far{n} SELECT generate_series(501, 700)"))?;
        }
        if sealed {
            // What comes after lies in another epoch.
            site.json(&["key", "rotate", "--json"])?;
        }
        site.cluster.psql("INSERT INTO t SELECT n, md5(n::text) FROM generate_series(501, 900) n")?;
        site.switch()?;
        Ok(Self { spaces: places, ..source.rescue()? })
    }

    fn restore(&self, target: &Path, more: &[&str]) -> Result<Answer> {
        Answer::of(&mut self.script(target, more)?)
    }

    fn script(&self, target: &Path, more: &[&str]) -> Result<Command> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/restore-without-pitr.sh");
        // Below somebody's home the servers' user could not read it.
        let copy = self.place.path().join("restore.sh");
        fs::copy(script, &copy)?;
        let mut command = as_server("sh")?;
        command.current_dir(self.place.path()).arg(&copy).args(more);
        if let Some(key) = self.key.as_deref().filter(|_| !more.contains(&"-i")) {
            command.arg("-i").arg(key);
        }
        command.arg(&self.folder).arg(target);
        Ok(command)
    }

    /// Restores into a new place and starts a server there.
    fn restored(&self, install: &Install, more: &[&str]) -> Result<Cluster> {
        let copy = Cluster::around(install)?;
        self.restore(&copy.data, more)?.expect(0, &[])?;
        open(&copy)?;
        Ok(copy)
    }

    fn fresh(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn a_file(&self, below: &str, like: &str) -> Result<PathBuf> {
        let mut found = Vec::new();
        support::restored::walk(&self.folder.join(below), &mut |path| {
            if path.to_string_lossy().contains(like) {
                found.push(path.to_owned());
            }
        })?;
        found.sort();
        found.pop().with_context(|| format!("no {like} below {below}"))
    }
}

fn flip(path: &Path, at: usize) -> Result<Vec<u8>> {
    let good = fs::read(path)?;
    let mut bad = good.clone();
    bad[at] ^= 1;
    fs::write(path, bad)?;
    Ok(good)
}

/// PostgreSQL gives up, and did not open the database before.
fn stops(copy: &Cluster, says: &str) -> Result<()> {
    // It may be up for a moment: hot standby takes connections before the end of recovery.
    let _ = copy.start();
    let open = || copy.log_text().contains("ready to accept connections");
    until(|| Ok(copy.postmaster_pid().is_none() || open()), || format!("it runs\n{}", copy.log_text()))?;
    let log = copy.log_text();
    ensure!(!open(), "it was opened\n{log}");
    ensure!(log.contains(says), "nothing of {says:?}\n{log}");
    Ok(())
}

#[test]
fn a_plain_repository_is_restored_without_pitr() -> Result<()> {
    let Some(install) = Install::find_or_skip(17).filter(|_| tools()) else { return Ok(()) };
    let rescue = Rescue::of(&install, false)?;
    let copy = rescue.restored(&install, &[])?;
    ensure!(copy.psql(ROWS)? == rescue.rows, "other rows came back");
    let pack = rescue.a_file("backups", "pack-")?;
    let good = flip(&pack, 1000)?;
    rescue.restore(&rescue.fresh("one"), &[])?.expect(1, &["pack-00000"])?;
    fs::write(&pack, good).context("the pack as it was")
}

#[test]
fn an_encrypted_repository_is_restored_without_pitr() -> Result<()> {
    let Some(install) = Install::find_or_skip(17).filter(|_| tools()) else { return Ok(()) };
    let rescue = Rescue::of(&install, true)?;
    let fingerprint = rescue.fingerprint.clone().context("a fingerprint")?;
    let copy = rescue.restored(&install, &["-f", &fingerprint])?;
    ensure!(copy.psql(ROWS)? == rescue.rows, "other rows came back");
    let unverified = rescue.restore(&rescue.fresh("unverified"), &[])?;
    unverified.expect(0, &["UNVERIFIED", &fingerprint])?;
    let zeros = "00".repeat(32);
    rescue.restore(&rescue.fresh("other"), &["-f", &zeros])?.expect(1, &["opens no wrap"])?;
    let stranger = rescue.fresh("stranger.key");
    run(as_server("age-keygen")?.arg("-o").arg(&stranger))?;
    let stranger = stranger.display().to_string();
    rescue.restore(&rescue.fresh("locked"), &["-i", &stranger])?.expect(1, &["opens no wrap"])?;

    // Forged and damaged: a verdict, a manifest, a pack, and WAL, which stops recovery.
    for (below, like, at, says) in [
        ("backups", "backup.json", 300, "backup.json was changed"),
        ("backups", "manifest.jsonl.zst.age", 400, "the manifest is damaged"),
        ("backups", "pack-00000", 1000, "pack-00000"),
    ] {
        let path = rescue.a_file(below, like)?;
        let good = flip(&path, at)?;
        rescue.restore(&rescue.fresh(&format!("bad-{at}")), &[])?.expect(1, &[says])?;
        fs::write(&path, good)?;
    }
    let last = rescue.a_file("wal", ".wal")?;
    let good = fs::read(&last)?;
    // Its header says another time, and its checksum is made right again.
    let header = String::from_utf8(good.get(8..512).context("a header")?.to_vec())?
        .replace("codec=zstd", "codec=none");
    let (lines, _) = header.rsplit_once("crc=").context("crc")?;
    let header = format!("{lines}crc={:08x}\n", crc32fast::hash(lines.as_bytes()));
    let forged = [&good[..8], format!("{header:504}").as_bytes(), &good[512..]].concat();
    fs::write(&last, forged)?;
    let copy = Cluster::around(&install)?;
    rescue.restore(&copy.data, &[])?.expect(0, &[])?;
    settle(&copy)?;
    stops(&copy, "forged")
}

/// The places of tablespaces are as they were: `old` was there, and `new` was not.
fn fails_behind_the_last_file(rescue: &Rescue, moves: [&str; 2], [new, old]: [&Path; 2]) -> Result<()> {
    let (bin, target) = (rescue.fresh("bin"), rescue.fresh("fails"));
    fs::create_dir(&bin)?;
    let tar = "#!/bin/sh\n/bin/tar \"$@\"\nfind \"$6/pg_tblspc/\" -follow -name 'PG_*' >&2\nexit 1\n";
    fs::write(bin.join("tar"), tar)?;
    fs::set_permissions(bin.join("tar"), fs::Permissions::from_mode(0o755))?;
    ensure!(old.exists() && !new.exists(), "the places before");
    let mut script = rescue.script(&target, &["-T", moves[0], "-T", moves[1]])?;
    script.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    Answer::of(&mut script)?.expect(1, &["/PG_", "the files cannot be written"])?;
    ensure!(!target.exists() && !new.exists(), "something was left");
    ensure!(fs::read_dir(old)?.count() == 0, "something was left in {}", old.display());
    Ok(())
}

#[test]
fn tablespaces_go_where_they_are_told_to_and_nowhere_else() -> Result<()> {
    for (version, sealed) in [(13, false), (14, true), (17, true)] {
        let Some(install) = Install::find_or_skip(version).filter(|_| tools()) else { return Ok(()) };
        let rescue = Rescue::with(&install, sealed, &["far away\\disk", "a=b"])?;
        let [odd, equals] = rescue.spaces.as_slice() else { unreachable!("two were asked for") };
        let (new, other) = (rescue.fresh("new \\ place"), rescue.fresh("c=d"));
        let escaped = |path: &Path| path.display().to_string().replace('=', "\\=");
        let moves = [
            format!("{}={}", escaped(odd), escaped(&new)),
            format!("{}={}", escaped(equals), escaped(&other)),
        ];
        let [first, second] = moves.each_ref().map(String::as_str);
        ensure!(rescue.spaces.iter().all(|old| !old.exists()), "they went with the server");

        let target = rescue.fresh("refused");
        let refused = |more: &[&str], says: &str| -> Result<()> {
            rescue.restore(&target, more)?.expect(1, &[says])?;
            ensure!(!target.exists(), "{more:?} left a directory");
            ensure!(!rescue.fresh("refused.restore").exists(), "{more:?} left keys");
            Ok(())
        };
        refused(&["-T", first], &equals.display().to_string())?;
        refused(&["-T", first, "-T", &format!("{}={}", escaped(equals), escaped(&new))], "two tablespaces")?;
        let inner = format!("{}={}", escaped(equals), escaped(&new.join("inner")));
        refused(&["-T", first, "-T", &inner], "the place of another tablespace")?;
        refused(&["-T", first, "-T", second, "-T", "/none=/x"], "no tablespace there")?;
        refused(&["-T", first, "-T", "a=b=/c"], "not OLD=NEW")?;
        refused(&["-T", first, "-T", &format!("{}=c", escaped(equals))], "absolute")?;
        ensure!(!new.exists() && !other.exists(), "{version}: what was refused made directories");
        fs::create_dir(&other)?;
        give_to_server(&other)?;
        fs::write(other.join("taken"), b"x")?;
        refused(&["-T", first, "-T", second], "not empty")?;
        fs::remove_file(other.join("taken"))?;
        fails_behind_the_last_file(&rescue, [first, second], [&new, &other])?;

        let copy = rescue.restored(&install, &["-T", first, "-T", second])?;
        ensure!(copy.psql(ROWS)? == rescue.rows, "{version}: other rows came back");
        for (n, place) in [&new, &other].into_iter().enumerate() {
            ensure!(
                copy.psql(&format!("SELECT count(*), max(n) FROM far{n}"))? == "700|700",
                "{version}: far{n}"
            );
            let at = copy.psql(&format!(
                "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'far{n}'"
            ))?;
            ensure!(Path::new(&at) == place.canonicalize()?, "{version}: {at}");
            ensure!(fs::read_dir(place)?.count() == 1, "{version}: nothing in {}", place.display());
        }
        ensure!(rescue.spaces.iter().all(|old| !old.exists()), "{version}: the old place is back");
        // By its OID, for names that no shell can say.
        let oid = copy.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'far0'")?;
        let (by_oid, beside) = (rescue.fresh("by oid"), rescue.fresh("beside"));
        let moves =
            [format!("{oid}={}", by_oid.display()), format!("{}={}", escaped(equals), beside.display())];
        rescue.restore(&rescue.fresh("again"), &["-T", &moves[0], "-T", &moves[1]])?.expect(0, &[])?;
        ensure!(fs::read_dir(&by_oid)?.count() == 1 && fs::read_dir(&beside)?.count() == 1, "{version}");
    }
    Ok(())
}

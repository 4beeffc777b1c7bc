//! What is wrong in a repository is found, named, and costs no more than it must.
//!
//! Damage is done to the files of a `file://` repository of a real cluster; what pitr says of it is compared with what was done.
//! What it calls good is restored, and the oracle is rows.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

#[path = "verify/kinds.rs"]
mod kinds;
#[path = "verify/sample.rs"]
mod sample;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use pitr::codec::Compression;
use pitr::repo::manifest::{FileKind, Manifest, ManifestWriter};
use pitr::repo::nonce;
use pitr::repo::objects::{Floor, Intent, ObjectRef, Verdict, decode, encode};
use pitr::repo::walobject::{Asked, Facts, WalObjectBuilder, open, parse_info};
use pitr::store::{Store, StoreOptions, StoreUrl};
use pitr::wal::scan::{Keep, Scanner};
use pitr::wal::{Lsn, SegmentSize, WalFileName};
use serde_json::Value;
use support::cluster::{Install, Stop, as_server, give_to_server, run, setting};
use support::restored::{PITR, Restored, Said, Source};
use support::site::until;

/// A backup in what `info --json` says.
fn backup<'a>(info: &'a Value, id: &str) -> Result<&'a Value> {
    let backups = info["repositories"][0]["backups"].as_array().with_context(|| info.to_string())?;
    backups.iter().find(|backup| backup["id"] == id).with_context(|| format!("no {id} in {info}"))
}

#[test]
fn a_damaged_intent_or_verdict_is_named_and_all_other_backups_stay_usable() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let source = Source::new(&install, "")?;
    source.row(1)?;
    let (one, two) = (source.backup()?, source.backup()?);
    source.archive_all()?;
    let folder = source.folder()?.join("backups");
    for object in ["intent.json", "backup.json"] {
        let path = folder.join(&two).join(object);
        let good = fs::read(&path)?;
        let text = String::from_utf8(good.clone())?;
        let (head, _) = text.split_once(",\n  \"sum\"").context("a sum")?;
        let newer = format!("{}\n}}\n", head.replacen(" 1\",", " 2\",", 1));
        for bad in [good.get(..100).context("long")?.to_vec(), b"\x00garbage".to_vec(), newer.into_bytes()] {
            fs::write(&path, &bad)?;
            let name = format!("{two}/{object}");
            let info = source.pitr(&["info", "--json"])?.expect(0)?.json()?;
            let (of_one, of_two) = (backup(&info, &one)?, backup(&info, &two)?);
            ensure!(of_one["restorable"] == true && of_two["restorable"] == false, "{info}");
            let state = of_two["state"].as_str().context("a state")?;
            ensure!(state.starts_with("unreadable") && state.contains(&name), "{state}");
            let text = source.pitr(&["info"])?.expect(0)?.out;
            ensure!(text.contains("unreadable") && text.contains(&name), "{text}");

            let plan = source.restore(&source.target("x"), &["--dry-run"])?.expect(0)?.json()?;
            ensure!(plan["backup"] == one.as_str() && plan["warnings"].to_string().contains(&name), "{plan}");
            let asked = source.restore(&source.target("x"), &["--dry-run", "--backup", &two])?.expect(6)?;
            ensure!(asked.err.contains(&name), "{asked:?}");
            source.restore(&source.target("x"), &["--dry-run", "--backup", &one])?.expect(0)?;
        }
        fs::write(&path, &good)?;
        // Doubt is neither damage nor absence.
        let fault = format!("fail@open/{object}:1+");
        for args in [["info", "--json"].as_slice(), &["restore", "--dry-run", "--target-dir", "/nowhere/x"]] {
            let doubt =
                Said::of(&source.command(args)?.env("PITR_TEST_FAULTS", &fault).output()?).expect(1)?;
            ensure!(doubt.err.contains(object) && !doubt.err.contains("unreadable"), "{doubt:?}");
        }
    }
    // A damaged verdict does not keep the next backup from starting.
    fs::write(folder.join(&two).join("backup.json"), "{}")?;
    source.backup()?;
    Ok(())
}

/// A repository with two backups, two timelines, and every kind of object; what its cluster holds besides.
struct World {
    source: Source,
    /// The backups: one on each timeline.
    backups: [String; 2],
    /// A copy of the repository, to be harmed.
    copy: PathBuf,
}

impl World {
    fn new(install: &Install) -> Result<Self> {
        let source = Source::new(install, "")?;
        source.row(1)?;
        let one = source.backup()?;
        for n in 2..5 {
            source.row(n)?;
            source.archive_all()?;
        }
        // Reads leave pins.
        source.restore(&source.target("pins"), &[])?.expect(0)?;
        source.row(5)?;
        promote(&source)?;
        source.row(6)?;
        source.archive_all()?;
        source.row(7)?;
        let two = source.backup()?;
        for n in 8..10 {
            source.row(n)?;
            source.archive_all()?;
        }
        let floor = Floor { nonce: nonce()?, created: jiff::Timestamp::UNIX_EPOCH, timelines: Vec::new() };
        let place = source.folder()?.join("floor");
        fs::create_dir(&place)?;
        fs::write(place.join("1.json"), encode(&floor))?;
        give_to_server(&place)?;
        give_to_server(&place.join("1.json"))?;
        let copy = source.place.path().join("copy");
        run(Command::new("cp").arg("-a").arg(&source.repository).arg(&copy))?;
        Ok(Self { source, backups: [one, two], copy })
    }

    /// `pitr verify` of the copy.
    fn verify(&self, args: &[&str]) -> Result<Said> {
        let url = format!("file://{}", self.copy.display());
        let mut command = as_server(PITR)?;
        command.current_dir("/").args(["verify", "--repository", &url, "--cluster", "main", "--json"]);
        Ok(Said::of(&command.args(args).output()?))
    }

    /// Every object of the copy: its key, and where it is.
    fn objects(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut found = BTreeMap::new();
        support::restored::walk(&self.copy, &mut |path| {
            if let Ok(key) = path.strip_prefix(&self.copy) {
                found.insert(key.display().to_string(), path.to_owned());
            }
        })?;
        Ok(found)
    }

    /// The verdict of a backup, as it was before any harm.
    fn verdict(&self, id: &str) -> Result<Value> {
        let path = self.source.folder()?.join("backups").join(id).join("backup.json");
        Ok(serde_json::from_str(&fs::read_to_string(path)?)?)
    }

    /// The numbers of the segments that a backup needs.
    fn segments(&self, id: &str) -> Result<RangeInclusive<u64>> {
        let verdict = self.verdict(id)?;
        let number = |name: &str| {
            let lsn: Lsn = verdict[name].as_str().context("an LSN")?.parse()?;
            Ok::<u64, anyhow::Error>(lsn.get() >> 20)
        };
        Ok(number("start_lsn")?..=number("stop_lsn")?)
    }

    /// The backups that need the object called `key`: of those, verify must say so.
    fn needing(&self, key: &str) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for (id, timeline) in self.backups.iter().zip(["00000001", "00000002"]) {
            let needed = match segment(key) {
                Some((of, number)) => of == timeline && self.segments(id)?.contains(&number),
                None => {
                    key.contains(&format!("/backups/{id}/"))
                        || key.ends_with("/identity.json")
                        || key.contains("/floor/")
                        || key.ends_with(&format!("{timeline}.history"))
                }
            };
            if needed {
                found.insert(id.clone());
            }
        }
        Ok(found)
    }

    /// Objects that may be deleted, or exchanged with one of their kind, without loss, and why nobody can tell.
    fn harmless(&self, harm: Harm, key: &str, newest: &str) -> Result<Option<&'static str>> {
        let oldest = self.segments(&self.backups[0])?;
        let deleted = match key {
            _ if key == newest => "nothing behind the newest segment proves that it was there",
            _ if segment(key).is_some_and(|(_, number)| number < *oldest.start()) => {
                "it is older than every backup"
            }
            _ if key.ends_with(".partial.wal") => "the child's own copy holds what recovery needs",
            _ if key.ends_with(".backup") => "a backup history file informs people",
            _ if key.contains("/leases/") => "a lease is a courtesy between writers",
            _ if key.contains("/pins/") => "a pin that is gone was released",
            _ if key.contains("/floor/") => {
                "without it more WAL is expected, and what is missing is then a gap"
            }
            _ if key.ends_with(&format!("{}/backup.json", self.backups[1])) => {
                "the newest backup without a verdict may be running, or its writer died"
            }
            _ => return Ok(None),
        };
        Ok(match harm {
            Harm::Delete => Some(deleted),
            Harm::Swap if key.contains("/leases/") => Some("a lease does not say its number"),
            _ => None,
        })
    }

    /// The key of an object of the cluster.
    fn key(&self, object: &str) -> Result<String> {
        let folder = self.source.folder()?;
        Ok(format!("{}/{object}", folder.strip_prefix(&self.source.repository)?.display()))
    }

    /// The key of a segment.
    fn segment_key(&self, timeline: u32, number: u64) -> Result<String> {
        let log = number / 4096;
        self.key(&format!("wal/{timeline:08X}/{log:08X}/{timeline:08X}{log:08X}{:08X}.wal", number % 4096))
    }

    /// Where the copy keeps the object called `key`.
    fn at(&self, key: &str) -> PathBuf {
        self.copy.join(key)
    }

    /// Puts an object into the copy, in place of what is there.
    fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let path = self.at(key);
        let dir = path.parent().context("a folder")?;
        let fresh = !dir.exists();
        fs::create_dir_all(dir)?;
        if fresh {
            give_to_server(dir)?;
        }
        fs::write(&path, bytes)?;
        give_to_server(&path)
    }

    /// Restores from the copy into `name`.
    fn restore(&self, name: &str, flags: &[&str]) -> Result<Said> {
        let config = self.source.place.path().join("copy.toml");
        let text = fs::read_to_string(&self.source.config)?;
        fs::write(
            &config,
            text.replace(&self.source.repository.display().to_string(), &self.copy.display().to_string()),
        )?;
        give_to_server(&config)?;
        let target = self.source.target(name).display().to_string();
        let mut command = as_server(PITR)?;
        command.arg("--config").arg(&config).args(["restore", "--copy", "--json", "--target-dir", &target]);
        Ok(Said::of(&command.args(flags).output()?))
    }
}

/// Makes the running cluster end timeline 1 and go on on timeline 2.
fn promote(source: &Source) -> Result<()> {
    source.cluster.stop(Stop::Fast)?;
    let signal = source.cluster.data.join("standby.signal");
    fs::write(&signal, "")?;
    give_to_server(&signal)?;
    source.cluster.start()?;
    source.cluster.wait_for("SELECT pg_promote()", "t")?;
    source.cluster.wait_for("SELECT pg_is_in_recovery()", "f")
}

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Harm {
    FlipFirst,
    FlipMiddle,
    FlipLast,
    Truncate,
    Empty,
    Delete,
    Swap,
}

const HARMS: [Harm; 7] = [
    Harm::FlipFirst,
    Harm::FlipMiddle,
    Harm::FlipLast,
    Harm::Truncate,
    Harm::Empty,
    Harm::Delete,
    Harm::Swap,
];

/// Timeline and number of the segment that `key` is.
fn segment(key: &str) -> Option<(&str, u64)> {
    let name = key.rsplit('/').next()?.strip_suffix(".wal").filter(|name| name.len() == 24)?;
    let (timeline, number) = name.split_at_checked(8)?;
    let (log, segment) = number.split_at_checked(8)?;
    let part = |text| u64::from_str_radix(text, 16).ok();
    Some((timeline, part(log)? * 4096 + part(segment)?))
}

/// What `harm` makes of the file at `path`; false if nothing changed.
fn harm(harm: Harm, path: &Path, good: &[u8], other: Option<&Vec<u8>>) -> Result<bool> {
    let mut bad = good.to_vec();
    let flip = |bytes: &mut Vec<u8>, at: usize| {
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 0x10;
        }
    };
    match harm {
        Harm::FlipFirst => flip(&mut bad, 0),
        Harm::FlipMiddle => flip(&mut bad, good.len() / 2),
        Harm::FlipLast => flip(&mut bad, good.len() - 1),
        Harm::Truncate => bad.truncate(good.len() / 2),
        Harm::Empty => bad.clear(),
        Harm::Delete => {
            fs::remove_file(path)?;
            return Ok(true);
        }
        Harm::Swap => match other {
            Some(other) => bad.clone_from(other),
            None => return Ok(false),
        },
    }
    fs::write(path, &bad)?;
    Ok(bad != good)
}

/// The kind of an object: what its key is apart from numbers and ids.
fn kind(key: &str) -> String {
    let file = key.rsplit('/').next().unwrap_or_default();
    let folder = key.split('/').rev().nth(if key.contains("/backups/") { 2 } else { 1 }).unwrap_or_default();
    let folder = if folder.len() == 8 { "wal" } else { folder };
    let stem: String = file.chars().map(|c| if c.is_ascii_hexdigit() { '0' } else { c }).collect();
    format!("{folder}/{}", stem.replace('0', ""))
}

/// The finding about `key`.
fn finding<'a>(said: &'a Value, key: &str) -> Option<&'a Value> {
    let folders = said["repositories"][0]["systems"].as_array()?.iter().map(|folder| &folder["findings"]);
    let all = folders.chain([&said["repositories"][0]["findings"]]);
    all.filter_map(Value::as_array).flatten().find(|finding| finding["object"] == key)
}

/// What is wrong with what verify says of the object called `key`, which was harmed; `same_size` tells whether its size is what it was.
fn judge(world: &World, what: Harm, key: &str, same_size: bool, newest: &str) -> Result<Option<String>> {
    let said = world.verify(&[])?;
    let report = said.json()?;
    let found = finding(&report, key);
    if world.harmless(what, key, newest)?.is_some() {
        let right = said.code == 0 && found.is_none();
        return Ok((!right).then(|| format!("{what:?} {key}: exit {}: {found:?}", said.code)));
    }
    let expected = world.needing(key)?;
    let named = found.and_then(|finding| finding["backups"].as_array()).into_iter().flatten();
    let named: BTreeMap<&str, &Value> =
        named.filter_map(|backup| Some((backup["id"].as_str()?, &backup["restorable"]))).collect();
    // A restore does without what the server said of itself and its own manifest, if the listing is as it should be.
    let extra = key.ends_with("/backup_manifest") || key.ends_with("/catalogue.json.zst");
    let restorable = extra && same_size;
    let right = said.code == 6
        && found.is_some()
        && named.keys().copied().eq(expected.iter().map(String::as_str))
        && named.values().all(|can| **can == restorable);
    Ok((!right)
        .then(|| format!("{what:?} {key}: exit {}, not {expected:?}, {restorable}: {found:?}", said.code)))
}

#[test]
fn every_harm_to_every_object_is_found_named_and_laid_to_the_right_backups() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    let clean = world.verify(&[])?.expect(0)?.json()?;
    ensure!(clean["clean"] == true && clean["repositories"][0]["faults"] == 0, "{clean}");
    world.verify(&["--decode"])?.expect(0)?;
    let objects = world.objects()?;
    let newest = objects.keys().rfind(|key| key.contains("/wal/00000002/")).context("WAL")?.clone();
    let read = |path: &PathBuf| fs::read(path).map_err(anyhow::Error::from);
    let kinds: BTreeSet<String> = objects.keys().map(|key| kind(key)).collect();
    ensure!(kinds.len() >= 14, "{kinds:?}");
    let mut wrong = Vec::new();
    for (key, path) in &objects {
        let good = read(path)?;
        // Another object of the same kind, if there is one.
        let twin = objects.iter().find(|(other, _)| *other != key && kind(other) == kind(key));
        let other = twin.map(|(_, path)| read(path)).transpose()?;
        for what in HARMS {
            if harm(what, path, &good, other.as_ref())? {
                let still =
                    path.metadata().is_ok_and(|now| now.len() == u64::try_from(good.len()).unwrap_or(0));
                wrong.extend(judge(&world, what, key, still, &newest)?);
            }
            fs::write(path, &good)?;
            give_to_server(path)?;
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    world.verify(&["--decode"])?.expect(0)?;
    Ok(())
}

/// The moments that a finding says are lost on the way to a timeline.
fn lost(finding: &Value, timeline: u32) -> Result<&Value> {
    let all = finding["lost"].as_array().with_context(|| finding.to_string())?;
    all.iter()
        .find(|lost| lost["timeline"] == timeline)
        .with_context(|| format!("nothing on {timeline}: {finding}"))
}

#[test]
fn lost_moments_are_those_that_a_restore_refuses_and_what_is_left_restores() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    // Row 2 lies in the segment after the backup's last one, row 3 in the one that goes.
    let number = world.segments(&world.backups[0])?.end() + 2;
    let key = world.segment_key(1, number)?;
    fs::remove_file(world.at(&key))?;
    let report = world.verify(&[])?.expect(6)?.json()?;
    let found = finding(&report, &key).context("the gap")?;
    ensure!(found["fault"] == "gap" && found["backups"].as_array().is_some_and(Vec::is_empty), "{found}");
    let (here, on) = (lost(found, 1)?, lost(found, 2)?);
    ensure!(here["resumes"] == false && on["resumes"] == true && here["from"] == on["from"], "{found}");
    ensure!(
        here["to"]["lsn"].is_string() && on["from"]["time"].is_string() && on["to"]["time"].is_string(),
        "{found}"
    );
    let text = |value: &Value| value.as_str().map(str::to_owned).context("text");
    let (from, to) = (text(&on["from"]["lsn"])?, text(&on["to"]["lsn"])?);
    let inside = Lsn::new((number << 20) + 4096).to_string();
    let dry = |flags: &[&str]| world.restore("dry", &[flags, &["--dry-run"]].concat());
    for (code, lsn) in [(0, &from), (4, &inside), (0, &to)] {
        dry(&["--to-lsn", lsn, "--timeline", "2"])?.expect(code)?;
    }
    dry(&["--to", &text(&on["from"]["time"])?, "--timeline", "2"])?.expect(0)?;
    dry(&["--to", &text(&on["to"]["time"])?, "--timeline", "2"])?.expect(0)?;

    world.restore("before", &["--to-lsn", &from, "--timeline", "1"])?.expect(0)?;
    let server = Restored::start_copy(&install, &world.source.target("before"))?.promoted()?;
    ensure!(server.rows()? == "1,2", "{}", server.rows()?);
    drop(server);
    world.restore("latest", &[])?.expect(0)?;
    let server = Restored::start_copy(&install, &world.source.target("latest"))?.promoted()?;
    ensure!(server.rows()? == "1,2,3,4,5,6,7,8,9", "{}", server.rows()?);
    Ok(())
}

#[test]
fn a_lost_backup_costs_the_moments_that_no_other_one_reaches() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    let pack = |id: &str| world.key(&format!("backups/{id}/pack-00000.tar.zst"));
    let [one, two] = &world.backups;
    let (first, second) = (fs::read(world.at(&pack(one)?))?, fs::read(world.at(&pack(two)?))?);
    // The newer one: all its moments are reached from the older one.
    world.put(&pack(two)?, second.get(..9).context("long")?)?;
    let report = world.verify(&[])?.expect(6)?.json()?;
    let found = finding(&report, &pack(two)?).context("the pack")?;
    ensure!(found["lost"].as_array().is_some_and(Vec::is_empty), "{found}");
    ensure!(world.verify(&["--backup", one])?.expect(0)?.json()?["clean"] == true);
    ensure!(finding(&world.verify(&["--backup", two])?.expect(6)?.json()?, &pack(two)?).is_some());
    world.verify(&["--backup", "20010101-000000-00000000"])?.expect(5)?;
    world.put(&pack(two)?, &second)?;
    // The older one: what lies before the newer one is gone.
    world.put(&pack(one)?, first.get(..9).context("long")?)?;
    let report = world.verify(&[])?.expect(6)?.json()?;
    let found = finding(&report, &pack(one)?).context("the pack")?;
    let on = lost(found, 2)?;
    ensure!(on["from"].is_null() && on["resumes"] == true && lost(found, 1)?["resumes"] == false, "{found}");
    let earliest = report["repositories"][0]["systems"][0]["windows"][0]["spans"][0]["earliest"].clone();
    ensure!(on["to"] == earliest, "{found} {earliest}");
    Ok(())
}

#[test]
fn decoding_finds_what_was_wrong_before_it_was_stored() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    // A record whose bytes changed before they were digested.
    let key = world.segment_key(2, world.segments(&world.backups[1])?.end() + 1)?;
    let object = fs::read(world.at(&key))?;
    let (header, _) = parse_info(&object)?;
    let asked = Asked { cluster: header.cluster.clone(), system: header.system, name: header.name };
    let mut plain = Vec::new();
    open(&object, &asked, |bytes| plain.extend_from_slice(bytes))?;
    let WalFileName::Segment(name) = header.name else { bail!("{}", header.name) };
    let mut scanner = Scanner::new(name, SegmentSize::new(header.size)?, Keep::Summary)?;
    scanner.push(&plain)?;
    let scan = scanner.finish()?;
    let record = scan.first_record.context("records")?.bytes_since(scan.start);
    *plain.get_mut(usize::try_from(record)? + 4).context("a record")? ^= 1;
    let mut builder = WalObjectBuilder::new(asked, header.size, Compression::Zstd { level: 1 })?;
    builder.push(&plain)?;
    world.put(&key, &builder.finish(Facts::Scanned(&scan))?.chunks.concat())?;
    world.verify(&[])?.expect(0)?;
    let report = world.verify(&["--decode"])?.expect(6)?.json()?;
    let found = finding(&report, &key).context("the segment")?;
    ensure!(found["what"].as_str().is_some_and(|what| what.contains("is damaged at")), "{found}");
    world.put(&key, &object)?;

    // A file that is not the one of PostgreSQL's manifest.
    let id = &world.backups[0];
    let (manifest_key, verdict_key) = (
        world.key(&format!("backups/{id}/manifest.jsonl.zst"))?,
        world.key(&format!("backups/{id}/backup.json"))?,
    );
    let manifest = Manifest::open(fs::read(world.at(&manifest_key))?.into())?;
    let mut writer =
        ManifestWriter::new(manifest.header(), manifest.packs(), Compression::Zstd { level: 1 })?;
    for entry in manifest.entries() {
        let mut entry = entry?;
        if let (FileKind::File { checksum, .. }, b"PG_VERSION") = (&mut entry.kind, entry.path.as_bytes()) {
            *checksum = Some("CRC32C:00000000".to_owned());
        }
        writer.push(&entry)?;
    }
    let written = writer.finish()?;
    let Verdict::Complete(mut verdict) = Verdict::decode(&fs::read(world.at(&verdict_key))?)? else {
        bail!("a verdict")
    };
    verdict.manifest = ObjectRef { stored: written.stored, digest: written.digest };
    world.put(&manifest_key, &written.chunks.concat())?;
    world.put(&verdict_key, &encode(&*verdict))?;
    world.verify(&[])?.expect(0)?;
    let report = world.verify(&["--decode"])?.expect(6)?.json()?;
    let text = report.to_string();
    ensure!(text.contains("PG_VERSION has CRC-32C") && text.contains(id.as_str()), "{text}");
    Ok(())
}

#[test]
fn what_is_not_ours_or_left_over_is_no_damage_and_doubt_is_none_either() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    let foreign = [world.key("notes.txt")?, "main/README".to_owned(), world.key("wal/00000001/x.wal")?];
    for key in &foreign {
        world.put(key, b"not pitr's")?;
    }
    world.put("main/probe-0123", b"time")?;
    // A backup whose writer died after its first pack.
    let dead = "20200101-000000-0badcafe";
    let intent =
        fs::read_to_string(world.source.folder()?.join(format!("backups/{}/intent.json", world.backups[0])))?;
    let mut intent: Intent = decode(intent.as_bytes())?;
    intent.id = dead.parse()?;
    world.put(&world.key(&format!("backups/{dead}/intent.json"))?, &encode(&intent))?;
    world.put(&world.key(&format!("backups/{dead}/pack-00000.tar.zst"))?, &[7; 1000])?;
    let report = world.verify(&[])?.expect(0)?.json()?;
    let repository = &report["repositories"][0];
    let unknown: BTreeSet<&str> =
        repository["unknown"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    ensure!(unknown == foreign.iter().map(String::as_str).collect() && report["clean"] == true, "{report}");
    let left = &repository["systems"][0]["leftovers"];
    ensure!(left.to_string().contains(dead) && left[0]["bytes"].as_u64() > Some(1000), "{left}");

    let everything = repository["systems"][0]["bytes_read"].as_u64().context("bytes")?;
    let little = world.verify(&["--sample", "0"])?.expect(0)?.json()?;
    ensure!(
        little["repositories"][0]["systems"][0]["bytes_read"].as_u64() < Some(everything / 4),
        "{little}"
    );
    world.verify(&["--sample", "0x"])?.expect(3)?;

    // Whatever the store does not answer: nothing is said to be damaged.
    let url = format!("file://{}", world.copy.display());
    let ask = |faults: &str| {
        let mut command = as_server(PITR)?;
        command.args(["verify", "--repository", &url, "--cluster", "main", "--json", "--jobs", "1"]);
        Ok::<Said, anyhow::Error>(Said::of(
            &command.current_dir("/").env("PITR_TEST_FAULTS", faults).output()?,
        ))
    };
    for object in [
        "intent.json",
        "backup.json",
        "identity.json",
        ".wal",
        "00000002.history",
        "pack-",
        "manifest",
        "floor",
    ] {
        let said = ask(&format!("fail@open/{object}:1+"))?.expect(1)?;
        ensure!(said.err.contains(object) && !said.out.contains("\"faults\":1"), "{object}: {said:?}");
    }
    ask("fail@list:1+")?.expect(1)?;
    // A read that went wrong once is read again.
    ask("fail@open/pack-:1,short@open/.wal:3")?.expect(0)?;
    fs::rename(&world.copy, world.source.target("unmounted"))?;
    world.verify(&[])?.expect(1)?;
    Ok(())
}

/// The double of AWS with one bucket, ended with the test.
struct Moto {
    server: Child,
    endpoint: String,
}

impl Moto {
    fn start() -> Result<Option<Self>> {
        let Some(program) = setting("PITR_MOTO") else {
            eprintln!("SKIPPED: moto is not installed; run tests/setup.sh");
            return Ok(None);
        };
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(program);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let moto = Self { server, endpoint: format!("http://127.0.0.1:{port}") };
        until(|| Ok(TcpStream::connect(("127.0.0.1", port)).is_ok()), || "moto does not listen".to_owned())?;
        run(Command::new("curl").args(["-sfX", "PUT", &format!("{}/bucket", moto.endpoint)]))?;
        Ok(Some(moto))
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

#[tokio::test]
async fn a_bucket_is_looked_at_like_a_directory() -> Result<()> {
    let (Some(install), Some(moto)) = (Install::find_or_skip(15), Moto::start()?) else { return Ok(()) };
    let world = World::new(&install)?;
    let place = world.source.place.path();
    let (keys, config) = (place.join("keys"), place.join("s3.toml"));
    fs::write(&keys, "access_key_id = tester\nsecret_access_key = not-so-secret\n")?;
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
    fs::write(
        &config,
        format!(
            "cluster = \"main\"\ntimezone = \"UTC\"\n[[repository]]\nname = \"cloud\"\nurl = \"s3://bucket/p\"\n\
             endpoint = \"{}\"\nallow_http = true\nregion = \"us-east-1\"\ncredentials_file = \"{}\"\n",
            moto.endpoint,
            keys.display()
        ),
    )?;
    give_to_server(&keys)?;
    give_to_server(&config)?;
    let credentials =
        [("access_key_id", "tester"), ("secret_access_key", "not-so-secret")].into_iter().collect();
    let options = StoreOptions {
        endpoint: Some(moto.endpoint.clone()),
        allow_http: true,
        credentials,
        ..StoreOptions::default()
    };
    let store = Store::open(&"s3://bucket/p".parse::<StoreUrl>()?, &options)?;
    for (key, path) in world.objects()? {
        store.create(&key, fs::read(path)?).await?;
    }
    let verify = |args: &[&str]| {
        let mut command = as_server(PITR)?;
        command.arg("--config").arg(&config).args(["verify", "--json"]).args(args);
        Ok::<Said, anyhow::Error>(Said::of(&command.output()?))
    };
    ensure!(verify(&["--decode"])?.expect(0)?.json()?["clean"] == true);
    let pack = world.key(&format!("backups/{}/pack-00000.tar.zst", world.backups[1]))?;
    let mut bytes = fs::read(world.at(&pack))?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.delete(&pack).await?;
    store.create(&pack, bytes).await?;
    let segment = world.segment_key(1, *world.segments(&world.backups[0])?.start())?;
    store.delete(&segment).await?;
    let report = verify(&[])?.expect(6)?.json()?;
    for (key, id) in [(&pack, &world.backups[1]), (&segment, &world.backups[0])] {
        let found = finding(&report, key).with_context(|| format!("{key}: {report}"))?;
        ensure!(
            found["backups"][0]["id"] == id.as_str() && found["backups"][0]["restorable"] == false,
            "{found}"
        );
    }
    drop(moto);
    // The bucket is gone: that is not damage.
    let doubt = Said::of(&as_server(PITR)?.arg("--config").arg(&config).args(["verify", "--json"]).output()?);
    ensure!(doubt.code == 1 && doubt.err.contains("s3://bucket/p"), "{doubt:?}");
    Ok(())
}

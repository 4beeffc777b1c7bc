//! Every kind of object that a key can name, harmed and deleted: those that the world of all other tests has not.
//!
//! Which kinds there are is read from the sources, so that a new one fails this test until it has a row.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use pitr::repo::objects::{AcceptedGap, Alive, Expired, decode};
use pitr::repo::path::{ClusterName, Sealing, SystemKeys, SystemObject};
use pitr::repo::this_process;
use pitr::wal::{SegmentName, SystemId};

use super::support::office::{Office, sealed_here};
use super::support::site::{Answer, Site};
use super::*;

/// The variants of an enum, as a source has them.
fn variants<'a>(source: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let (_, body) = source.split_once(&format!("pub enum {name} {{\n")).with_context(|| name.to_owned())?;
    let (body, _) = body.split_once("\n}").context("its end")?;
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    Ok(lines.filter(|line| line.starts_with(char::is_uppercase)).map(word).collect())
}

/// A variant's name without what it holds.
fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default()
}

/// Every kind that there is.
fn kinds_of_the_sources() -> Result<BTreeSet<String>> {
    let paths = include_str!("../../src/repo/path.rs");
    let names = include_str!("../../src/wal/segment.rs");
    let mut found = BTreeSet::from(["a later copy of a segment".to_owned()]);
    for variant in variants(paths, "SystemObject")? {
        match variant {
            "Wal" => found.extend(variants(names, "WalFileName")?.iter().map(|name| format!("WAL: {name}"))),
            "Backup" => {
                found.extend(variants(paths, "BackupObject")?.iter().map(|name| format!("backup: {name}")));
            }
            other => {
                found.insert(other.to_owned());
            }
        }
    }
    Ok(found)
}

fn kind_of(object: &SystemObject) -> String {
    match object {
        SystemObject::Wal(_, copy) if *copy > 1 => "a later copy of a segment".to_owned(),
        SystemObject::Wal(name, _) => format!("WAL: {}", word(&format!("{name:?}"))),
        SystemObject::Backup(_, object) => format!("backup: {}", word(&format!("{object:?}"))),
        other => word(&format!("{other:?}")).to_owned(),
    }
}

/// The kinds of the objects below `root`.
fn kinds_in(root: &Path, system: &str, sealing: Sealing) -> Result<BTreeSet<String>> {
    let keys = SystemKeys::new(&"main".parse::<ClusterName>()?, system.parse::<SystemId>()?, sealing);
    let mut found = BTreeSet::new();
    support::restored::walk(root, &mut |path| {
        let key = path.strip_prefix(root).map(|key| key.display().to_string()).unwrap_or_default();
        found.extend(keys.parse(&key).as_ref().map(kind_of));
    })?;
    Ok(found)
}

/// What verify must say of a harmed object.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    /// Nothing: and why that is right.
    Nothing(&'static str),
    /// It is named, and no backup is lost with it.
    Named,
    /// WAL is missing at this segment's first copy.
    Gap,
}

/// An object that the world has for this test, and what is expected of each harm.
struct RowOfKind {
    key: String,
    harmed: Expected,
    deleted: Expected,
}

/// Adds what no server of a few seconds makes.
fn add_rare_objects(world: &World) -> Result<Vec<RowOfKind>> {
    let [_, two] = &world.backups;
    // Behind the newer backup: a copy that ends early, and the whole one beside it.
    let number = world.segments(two)?.end() + 1;
    let first = world.segment_key(2, number)?;
    let second = format!("{}.2.wal", first.strip_suffix(".wal").context("a segment")?);
    let object = fs::read(world.at(&first))?;
    world.put(&second, &object)?;
    world.put(&first, &shorter(&object)?)?;
    // A gap that was accepted, and healed since: the segment's own header decides.
    let healed = world.segment_key(1, world.segments(&world.backups[0])?.end() + 1)?;
    let name = healed.rsplit('/').next().and_then(|file| file.strip_suffix(".wal")).context("a name")?;
    let gap = AcceptedGap {
        segment: SegmentName::parse(name)?,
        valid_to: Lsn::new(1 << 20),
        damage: "a record that was mended".to_owned(),
        nonce: nonce()?,
        created: jiff::Timestamp::UNIX_EPOCH,
        process: this_process(),
    };
    let gap_key = format!("{}.gap.json", healed.strip_suffix(".wal").context("a segment")?);
    world.put(&gap_key, &encode(&gap))?;
    let intent_key = world.key(&format!("backups/{two}/intent.json"))?;
    let intent: Intent = decode(&fs::read(world.at(&intent_key))?)?;
    let alive = Alive { id: two.parse()?, nonce: intent.nonce, created: jiff::Timestamp::UNIX_EPOCH };
    let alive_key = world.key(&format!("backups/{two}/alive-1.json"))?;
    world.put(&alive_key, &encode(&alive))?;
    let rows = [
        (first, Expected::Named, Expected::Named),
        (second, Expected::Named, Expected::Gap),
        (gap_key, Expected::Named, Expected::Nothing("the segment's own header says whether there is a gap")),
        (alive_key, Expected::Named, Expected::Nothing("a sign of life counts while there is no verdict")),
    ];
    Ok(rows.map(|(key, harmed, deleted)| RowOfKind { key, harmed, deleted }).into())
}

/// The object of a copy of the same segment that was cut in the middle of its records.
fn shorter(object: &[u8]) -> Result<Vec<u8>> {
    let (header, _) = parse_info(object)?;
    let asked = Asked { cluster: header.cluster.clone(), system: header.system, name: header.name };
    let mut plain = Vec::new();
    open(object, &asked, |bytes| plain.extend_from_slice(bytes))?;
    let (start, valid) = (header.segment_start().context("a start")?, header.valid.context("valid WAL")?);
    let half = usize::try_from(valid.to.bytes_since(start))? / 2;
    plain[half..].fill(0);
    let WalFileName::Segment(name) = header.name else { bail!("{}", header.name) };
    let mut scanner = Scanner::new(name, SegmentSize::new(header.size)?, Keep::Summary)?;
    scanner.push(&plain)?;
    let scan = scanner.finish()?;
    let mut builder = WalObjectBuilder::new(asked, header.size, Compression::Zstd { level: 1 })?;
    builder.push(&plain)?;
    Ok(builder.finish(Facts::Scanned(&scan))?.chunks.concat())
}

/// Whether verify says what is expected of `key`.
fn is_said(world: &World, key: &str, expected: Expected) -> Result<Option<String>> {
    let said = world.verify(&[])?;
    let report = said.json()?;
    let gap_at = key.strip_suffix(".2.wal").map_or_else(|| key.to_owned(), |stem| format!("{stem}.wal"));
    let found = match expected {
        Expected::Gap => finding(&report, &gap_at).filter(|found| found["fault"] == "gap"),
        _ => finding(&report, key),
    };
    let costs_no_backup = found.is_none_or(|found| found["backups"].as_array().is_some_and(Vec::is_empty));
    let right = match expected {
        Expected::Nothing(_) => said.code == 0 && found.is_none(),
        Expected::Named | Expected::Gap => said.code == 6 && found.is_some() && costs_no_backup,
    };
    Ok((!right).then(|| format!("{key}, {expected:?}: exit {}: {found:?} of {report}", said.code)))
}

/// A third backup, and its tombstone: whatever happens to what is dead is no damage.
fn harm_the_dead(world: &World) -> Result<Vec<String>> {
    let id = world.source.backup()?;
    run(Command::new("cp").arg("-aT").arg(&world.source.repository).arg(&world.copy))?;
    let tombstone = Expired {
        id: id.parse()?,
        nonce: nonce()?,
        created: jiff::Timestamp::UNIX_EPOCH,
        reason: "chosen".to_owned(),
    };
    let key = world.key(&format!("backups/{id}/expired.json"))?;
    world.put(&key, &encode(&tombstone))?;
    let mut wrong = Vec::new();
    for (key, path) in world.objects()?.into_iter().filter(|(key, _)| key.contains(&id)) {
        let good = fs::read(&path)?;
        for what in HARMS.into_iter().filter(|what| *what != Harm::Swap) {
            harm(what, &path, &good, None)?;
            let reason = "it is dead, or without its tombstone whole again";
            wrong.extend(
                is_said(world, &key, Expected::Nothing(reason))?.map(|text| format!("{what:?} {text}")),
            );
            fs::write(&path, &good)?;
            give_to_server(&path)?;
        }
    }
    Ok(wrong)
}

/// A sealed repository in which there are two timelines, and its office.
fn sealed_world(install: &Install) -> Result<(Site, Office)> {
    let (site, office) = sealed_here(install)?;
    site.backup()?;
    site.promote()?;
    site.switch()?;
    site.backup()?;
    Ok((site, office))
}

/// What only a sealed folder has. The parents of a timeline are looked at by who has no key; a wrap that does not open is missed by who
/// has one, as `key test` says; one that is gone by everybody.
fn harm_the_sealed(site: &Site, office: &Office) -> Result<Vec<String>> {
    let daily = office.daily().display().to_string();
    let (folder, mut wrong) = (site.folder()?, Vec::new());
    let stranger = Office::new(&site.place().join("stranger.host"))?;
    let wrong_key = stranger.daily().display().to_string();
    let (ancestry, wrap) =
        (folder.join("wal/00000002.ancestry.json"), folder.join("keys/e0001/wrap-0001.age"));
    site.ask(&["verify"])?.expect(0, &[])?;
    site.ask(&["--identity", &daily, "verify"])?.expect(0, &[])?;
    for path in [&ancestry, &wrap] {
        let good = fs::read(path)?;
        for what in HARMS.into_iter().filter(|what| *what != Harm::Swap) {
            harm(what, path, &good, None)?;
            let mut expect = |args: &[&str], code: i32, words: &str| -> Result<()> {
                let said: Answer = site.ask(args)?;
                let right = said.code == code && format!("{}{}", said.out, said.err).contains(words);
                wrong.extend((!right).then(|| format!("{what:?} {}, {args:?}: {said:?}", path.display())));
                Ok(())
            };
            if path == &ancestry {
                // The history itself is encrypted: without a key nobody finds the way without its parents in clear.
                expect(&["verify"], 6, "00000002.ancestry.json")?;
                expect(&["--identity", &daily, "verify"], 6, "00000002.ancestry.json")?;
                // An identity that does not open the history is as good as none.
                expect(&["--identity", &wrong_key, "verify"], 6, "everything on timeline 2")?;
            } else {
                // What one identity does not open another may; what has no wrap any more nobody opens.
                let code = if what == Harm::Delete { 6 } else { 7 };
                expect(&["--identity", &daily, "verify"], code, "e0001")?;
                expect(&["verify"], if what == Harm::Delete { 6 } else { 0 }, "e")?;
                expect(&["--identity", &daily, "key", "test"], 7, "e0001")?;
            }
            fs::write(path, &good)?;
            give_to_server(path)?;
        }
    }
    site.ask(&["--identity", &daily, "verify"])?.expect(0, &[])?;
    Ok(wrong)
}

#[test]
fn no_kind_of_object_can_be_harmed_or_deleted_unseen() -> Result<()> {
    let Some(install) = Install::find_or_skip(15) else { return Ok(()) };
    let world = World::new(&install)?;
    let rows = add_rare_objects(&world)?;
    world.verify(&["--decode"])?.expect(0)?;
    let mut wrong = Vec::new();
    for row in &rows {
        let path = world.at(&row.key);
        let good = fs::read(&path)?;
        for what in HARMS.into_iter().filter(|what| *what != Harm::Swap) {
            harm(what, &path, &good, None)?;
            let expected = if what == Harm::Delete { row.deleted } else { row.harmed };
            wrong.extend(is_said(&world, &row.key, expected)?.map(|text| format!("{what:?} {text}")));
            world.put(&row.key, &good)?;
        }
    }
    wrong.extend(harm_the_dead(&world)?);
    let (site, office) = sealed_world(&install)?;
    wrong.extend(harm_the_sealed(&site, &office)?);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));

    let system =
        world.source.folder()?.file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
    let mut found = kinds_in(&world.copy, &system, Sealing::Plain)?;
    found.extend(kinds_in(&site.repository, &site.system()?, Sealing::Sealed)?);
    let all = kinds_of_the_sources()?;
    ensure!(found == all, "without a row here or above: {:?}", all.symmetric_difference(&found));
    Ok(())
}

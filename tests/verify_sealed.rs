//! Packs of an encrypted repository, looked at by a host that cannot open them: each damaged byte is found and the pack named.
//!
//! The host has its host file and no identity. Damage is done to the files of a `file://` repository with a backup of two packs; the
//! oracle is which file was changed. A verdict of before, without digests, is made with the seal key as the host file has it.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use pitr::repo::objects::{Backup, Closing, Verdict, encode_as};
use pitr::seal::HostFile;
use serde_json::{Value, json};
use support::cluster::{Install, give_to_server, scratch};
use support::keys;
use support::site::{Answer, Site, SiteOptions};

/// A backup of two packs in an encrypted repository. Its identities lie where the host does not look.
struct World {
    site: Site,
    office: tempfile::TempDir,
    id: String,
    folder: PathBuf,
}

impl World {
    fn new(install: &Install) -> Result<Self> {
        let (place, office) = (scratch("pitr-locked-")?, scratch("pitr-office-")?);
        let host_file = place.path().join("main.host");
        keys::init(&host_file, office.path(), &[])?;
        let url = format!("file://{}", place.path().join("repo").display());
        let more = format!("[keys]\nhost_file = \"{}\"\n", host_file.display());
        let site = Site::at(install, &SiteOptions::default(), place, &url, Some(&more))?;
        // More than a pack of what no compressor makes smaller.
        let mut noise = Vec::new();
        File::open("/dev/urandom")?.take(40 << 20).read_to_end(&mut noise)?;
        let file = site.cluster.data.join("noise");
        fs::write(&file, noise)?;
        give_to_server(&file)?;
        site.switch()?;
        let made = site.backup()?;
        ensure!(made["packs"] == 2, "{made}");
        site.switch()?;
        let id = made["id"].as_str().context("an id")?.to_owned();
        let folder = site.folder()?.join("backups").join(&id);
        Ok(Self { site, office, id, folder })
    }

    fn pack(&self, number: u32) -> PathBuf {
        self.folder.join(format!("pack-{number:05}.tar.zst.age"))
    }

    /// `verify` with `flags`, in words and as JSON.
    fn verify(&self, flags: &[&str]) -> Result<(Answer, Value)> {
        let said = self.site.ask(&[&["verify"], flags].concat())?;
        let json = self.site.ask(&[&["verify", "--json"], flags].concat())?;
        ensure!(said.code == json.code, "{said:?} {json:?}");
        let json = serde_json::from_str(&json.out).with_context(|| format!("{json:?}"))?;
        Ok((said, json))
    }

    /// As who has a key.
    fn opened(&self, flags: &[&str]) -> Result<(Answer, Value)> {
        let identity = keys::daily(self.office.path()).display().to_string();
        self.verify(&[flags, &["--identity", &identity]].concat())
    }

    /// Makes `change` to the verdict as the host could: with the right mac.
    fn with_verdict(&self, change: impl FnOnce(&mut Backup)) -> Result<()> {
        let path = self.folder.join("backup.json");
        let host = HostFile::parse(&fs::read_to_string(self.site.place().join("main.host"))?)?;
        let key = path.strip_prefix(&self.site.repository)?.display().to_string();
        let closing = Closing::Mac { seal: &host.seal, place: &key };
        let Verdict::Complete(mut verdict) = Verdict::decode_as(&fs::read(&path)?, closing)? else {
            bail!("not complete");
        };
        change(&mut verdict);
        fs::write(&path, encode_as(&*verdict, closing))?;
        Ok(())
    }
}

/// Files of the objects that were found damaged or missing; of a row, the first and the last.
fn found(report: &Value) -> Result<Vec<String>> {
    let all = report["repositories"][0]["systems"][0]["findings"].as_array().context("findings")?;
    let file = |key: &Value| key.as_str().and_then(|key| key.rsplit('/').next()).map(str::to_owned);
    let named = all.iter().flat_map(|finding| [file(&finding["object"]), file(&finding["through"])]);
    Ok(named.flatten().collect())
}

fn is_clean(answer: &Answer, report: &Value) -> bool {
    answer.code == 0
        && answer.out.contains("no damage found\n")
        && report["clean"] == true
        && report["repositories"][0]["complete"] == true
        && report["repositories"][0]["faults"] == 0
        && report["repositories"][0]["systems"][0]["packs_unread"] == json!([])
}

/// What may happen to a file. `false`: it is not there any more.
type Harm = fn(&mut Vec<u8>, &Path) -> Result<bool>;

const HARMS: [(&str, Harm); 8] = [
    ("nothing is left", |bytes, _| {
        bytes.clear();
        Ok(true)
    }),
    ("half is left", |bytes, _| {
        bytes.truncate(bytes.len() / 2);
        Ok(true)
    }),
    ("a byte more", |bytes, _| {
        bytes.push(0);
        Ok(true)
    }),
    ("the first byte", |bytes, _| flipped(bytes, |_| 0)),
    // Behind the first piece that is read.
    ("one in the middle", |bytes, _| flipped(bytes, |len| len / 2)),
    ("the last byte", |bytes, _| flipped(bytes, |len| len - 1)),
    ("another pack of the same backup", |bytes, other| {
        *bytes = fs::read(other)?;
        Ok(true)
    }),
    ("it is gone", |_, _| Ok(false)),
];

fn flipped(bytes: &mut [u8], at: impl Fn(usize) -> usize) -> Result<bool> {
    let at = at(bytes.len());
    *bytes.get_mut(at).context("a byte")? ^= 1;
    Ok(true)
}

#[test]
fn every_harm_to_a_pack_is_found_without_a_key_and_the_pack_named() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let world = World::new(&install)?;
    let (said, report) = world.verify(&[])?;
    ensure!(is_clean(&said, &report), "{said:?} {report}");
    let read = report["repositories"][0]["systems"][0]["bytes_read"].as_u64().context("bytes")?;
    ensure!(read > 40 << 20, "the packs were not read: {report}");
    for number in [0, 1] {
        let (pack, other) = (world.pack(number), world.pack(1 - number));
        let good = fs::read(&pack)?;
        for (what, harm) in HARMS {
            let mut bad = good.clone();
            if harm(&mut bad, &other)? {
                fs::write(&pack, &bad)?;
            } else {
                fs::remove_file(&pack)?;
            }
            let (said, report) = world.verify(&[])?;
            let name = pack.file_name().context("a name")?.display().to_string();
            ensure!(said.code == 6 && report["clean"] == false, "{what}: {said:?}");
            ensure!(found(&report)? == [name], "{what}, pack {number}: {report}");
            let backup = format!("backup {} CAN NO LONGER BE RESTORED", world.id);
            ensure!(said.out.contains(&backup), "{what}: {said:?}");
            fs::write(&pack, &good)?;
            give_to_server(&pack)?;
        }
    }
    let (said, report) = world.verify(&[])?;
    ensure!(is_clean(&said, &report), "{said:?} {report}");
    Ok(())
}

#[test]
fn a_cut_pack_is_damage_even_where_no_pack_is_read_and_digests_are_not_believed_without_their_mac()
-> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let world = World::new(&install)?;
    let pack = world.pack(1);
    let good = fs::read(&pack)?;
    fs::write(&pack, &good[..good.len() / 2])?;
    let (said, report) = world.verify(&["--sample", "0"])?;
    let both = ["pack-00000.tar.zst.age", "pack-00001.tar.zst.age"];
    ensure!(said.code == 6 && found(&report)? == both, "{said:?} {report}");
    ensure!(said.out.contains("bytes instead of"), "{said:?}");
    fs::write(&pack, &good)?;
    let (said, report) = world.verify(&["--sample", "0"])?;
    ensure!(is_clean(&said, &report), "{said:?} {report}");

    // Who changes a pack and what the verdict says of it has no mac for that.
    let mut forged = good.clone();
    forged[good.len() / 2] ^= 1;
    fs::write(&pack, &forged)?;
    let verdict = world.folder.join("backup.json");
    let text = fs::read_to_string(&verdict)?;
    let digest = |bytes: &[u8]| pitr::codec::Digest::of(bytes).short().to_string();
    ensure!(text.contains(&digest(&good)), "{text}");
    fs::write(&verdict, text.replace(&digest(&good), &digest(&forged)))?;
    let (said, report) = world.verify(&[])?;
    ensure!(said.code == 6 && found(&report)? == ["backup.json"], "{said:?} {report}");
    ensure!(said.out.contains("forged"), "{said:?}");
    Ok(())
}

#[test]
fn packs_of_a_backup_from_before_are_not_called_clean_without_a_key() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let world = World::new(&install)?;
    world.with_verdict(|verdict| verdict.pack_digests.clear())?;
    let (said, report) = world.verify(&[])?;
    said.expect(1, &["could not be checked without a key", &world.id, "--identity"])?;
    ensure!(said.out.contains(&format!("backup {}: its packs WERE NOT CHECKED", world.id)), "{said:?}");
    ensure!(said.out.contains("which is not all") && !said.out.contains("no damage found\n"), "{said:?}");
    let repository = &report["repositories"][0];
    ensure!(report["clean"] == false && repository["complete"] == false, "{report}");
    ensure!(
        repository["faults"] == 0 && report["errors"].as_array().is_some_and(|e| e.len() == 1),
        "{report}"
    );
    ensure!(repository["systems"][0]["packs_unread"] == json!([world.id]), "{report}");
    // Nobody asked for packs, or a key is there: nothing is in doubt.
    for (said, report) in [world.verify(&["--sample", "0"])?, world.opened(&[])?] {
        ensure!(is_clean(&said, &report), "{said:?} {report}");
    }

    let pack = world.pack(0);
    let good = fs::read(&pack)?;
    fs::write(&pack, "")?;
    let (said, report) = world.verify(&[])?;
    let both = ["pack-00000.tar.zst.age", "pack-00001.tar.zst.age"];
    ensure!(said.code == 6 && found(&report)? == both, "{said:?} {report}");
    let (said, report) = world.opened(&[])?;
    ensure!(said.code == 6 && found(&report)? == [both[0]], "{said:?} {report}");
    fs::write(&pack, &good)?;
    fs::remove_file(world.pack(1))?;
    let (said, report) = world.verify(&[])?;
    ensure!(said.code == 6 && found(&report)? == [both[1]], "{said:?} {report}");
    Ok(())
}

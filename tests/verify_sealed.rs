//! Packs of an encrypted repository, looked at by a host that cannot open them.
//!
//! The host has its host file and no identity. Damage is done to the files of a `file://` repository with a backup of two packs; the
//! oracle is which file was changed.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::cluster::{Install, give_to_server, scratch};
use support::keys;
use support::site::{Answer, Site, SiteOptions};

/// A backup of two packs in an encrypted repository.
struct World {
    site: Site,
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
        let folder = site.folder()?.join("backups").join(made["id"].as_str().context("an id")?);
        Ok(Self { site, folder })
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
}

#[test]
fn a_cut_pack_is_damage_even_where_no_pack_is_read() -> Result<()> {
    let Some(install) = Install::find_or_skip(17) else { return Ok(()) };
    let world = World::new(&install)?;
    let pack = world.pack(1);
    let good = fs::read(&pack)?;
    fs::write(&pack, &good[..good.len() / 2])?;
    for flags in [&["--sample", "0"][..], &[]] {
        let (said, report) = world.verify(flags)?;
        let both = ["pack-00000.tar.zst.age", "pack-00001.tar.zst.age"];
        ensure!(said.code == 6 && found(&report)? == both, "{said:?} {report}");
        ensure!(said.out.contains("bytes instead of"), "{said:?}");
    }
    fs::write(&pack, &good)?;
    let (said, report) = world.verify(&[])?;
    ensure!(is_clean(&said, &report), "{said:?} {report}");
    Ok(())
}

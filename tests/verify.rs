//! What is wrong in a repository is found, named, and costs no more than it must.
//!
//! Damage is done to the files of a `file://` repository of a real cluster; what pitr says of it is compared with what was done.
//! What it calls good is restored, and the oracle is rows.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]

mod support;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::cluster::Install;
use support::restored::{Said, Source};

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

//! What must be true of a repository after anything at all, judged from its bytes alone.
//!
//! ```text
//!  I1  an object that was there is there, and the same      I2  WAL decodes to what a server wrote, by libzstd
//!  I3  a complete verdict: every pack, every file by PostgreSQL's own manifest, all WAL from start to stop
//! ```
//! The oracles are libzstd, the `tar` crate, PostgreSQL's `backup_manifest` and the files of `pg_wal`; only names of objects and
//! members of JSON are taken from FORMAT.md. Nothing here asks pitr whether pitr did well.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use pitr::store::Store;
use serde_json::Value;

/// A repository: its objects by key.
pub type Objects = BTreeMap<String, Bytes>;

/// Reads all objects of a store.
pub async fn objects(store: &Store) -> Result<Objects> {
    let mut found = Objects::new();
    for info in store.list("").await? {
        let bytes = store.get(&info.key).await?.with_context(|| info.key.clone())?;
        found.insert(info.key, bytes);
    }
    Ok(found)
}

/// Reads all objects of a `file://` repository; temporary files have no name that counts.
pub fn objects_in(root: &Path) -> Result<Objects> {
    let mut found = Objects::new();
    let mut stack = vec![root.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                stack.push(path);
            } else if !pitr::durable::is_temporary(path.file_name().context("a name")?) {
                let key = path.strip_prefix(root)?.to_str().context("a key")?.to_owned();
                found.insert(key, std::fs::read(&path)?.into());
            }
        }
    }
    Ok(found)
}

/// A store of its own that holds these objects.
pub async fn store_of(objects: &Objects) -> Result<Store> {
    let store = Store::open(&"memory:".parse()?, &pitr::store::StoreOptions::default())?;
    for (key, bytes) in objects {
        store.create(key, bytes.clone()).await?;
    }
    Ok(store)
}

/// Knows what servers wrote, and remembers which backups it has taken apart already.
#[derive(Debug, Default)]
pub struct Auditor {
    /// What was offered under a name of `pg_wal`, in any attempt.
    offered: BTreeMap<String, BTreeSet<Vec<u8>>>,
    /// Where complete segments of the server stay.
    pg_wal: Option<PathBuf>,
    /// Objects that were judged.
    judged: Sums,
    /// Complete backups, and what each was whole by: whether it still is, costs no second look into it.
    seen_whole: BTreeMap<String, Sums>,
}

/// Objects by key, and what tells another content: size and CRC-32C.
type Sums = BTreeMap<String, (usize, u32)>;

fn sum(bytes: &Bytes) -> (usize, u32) {
    (bytes.len(), crc32c::crc32c(bytes))
}

impl Auditor {
    /// One that compares with the files of a server that keeps its WAL.
    pub fn of_server(pg_wal: &Path) -> Self {
        Self { pg_wal: Some(pg_wal.to_owned()), ..Self::default() }
    }

    /// From now on a file of this name may have this content.
    pub fn offer(&mut self, name: &str, content: &[u8]) {
        self.offered.entry(name.to_owned()).or_default().insert(content.to_vec());
    }

    /// Every invariant that a repository shows by itself.
    pub fn check(&mut self, before: &Objects, after: &Objects) -> Result<()> {
        // The passing objects of a race of creates may go at any time.
        for (key, bytes) in before.iter().filter(|(key, _)| !key.contains("/probe-")) {
            let now = after.get(key).with_context(|| format!("{key} is gone"))?;
            ensure!(now == bytes, "{key} was changed");
        }
        for (key, bytes) in after.iter().filter(|(key, _)| !before.contains_key(*key)) {
            let sum = sum(bytes);
            if self.judged.get(key) != Some(&sum) {
                self.check_object(key, bytes).with_context(|| key.clone())?;
                self.judged.insert(key.clone(), sum);
            }
        }
        self.whole(after).map(drop)
    }

    /// How many complete backups there are; each must be whole, though it was so before.
    pub fn whole(&mut self, all: &Objects) -> Result<usize> {
        let mut count = 0;
        for folder in all.keys().filter_map(|key| key.strip_suffix("/backup.json")) {
            let is_there =
                |(key, seen): (&String, &(usize, u32))| all.get(key).is_some_and(|b| sum(b) == *seen);
            if self.seen_whole.get(folder).is_some_and(|parts| parts.iter().all(is_there)) {
                count += 1;
            } else if let Some(parts) = self.taken_apart(folder, all).context(folder.to_owned())? {
                self.seen_whole.insert(folder.to_owned(), parts);
                count += 1;
            }
        }
        Ok(count)
    }

    /// How many complete backups it has seen so far.
    pub fn whole_backups(&self) -> usize {
        self.seen_whole.len()
    }

    fn check_object(&self, key: &str, bytes: &[u8]) -> Result<()> {
        if let Some(name) = wal_name(key) {
            let plain = zstd::stream::decode_all(bytes)?;
            let local = self.pg_wal.as_ref().map(|dir| dir.join(&name));
            let offered = self.offered.get(&name).is_some_and(|contents| contents.contains(&plain));
            let is_local = || local.is_some_and(|path| std::fs::read(path).is_ok_and(|file| file == plain));
            // The server itself removes the old ones of these.
            let label = self.pg_wal.is_some() && name.ends_with(".backup");
            let is_label = label && plain.starts_with(b"START WAL LOCATION: ");
            ensure!(offered || is_label || is_local(), "no server wrote this");
        } else if key.ends_with(".json") {
            let document: Value = serde_json::from_slice(bytes)?;
            ensure!(document["pitr"].is_string(), "{document}");
        }
        Ok(())
    }

    /// What a complete backup is whole by; nothing for an abandoned one.
    fn taken_apart(&self, folder: &str, all: &Objects) -> Result<Option<Sums>> {
        let parts = RefCell::new(Sums::new());
        let object = |name: &str| {
            let key = format!("{folder}/{name}");
            let bytes = all.get(&key).with_context(|| format!("no {name}"))?;
            parts.borrow_mut().insert(key, sum(bytes));
            anyhow::Ok(bytes)
        };
        let verdict: Value = serde_json::from_slice(object("backup.json")?)?;
        if verdict["status"] != "complete" {
            ensure!(verdict["status"] == "abandoned", "{verdict}");
            return Ok(None);
        }
        let intent: Value = serde_json::from_slice(object("intent.json")?)?;
        ensure!(intent["nonce"] == verdict["nonce"], "another writer's verdict");
        let mut packs = Vec::new();
        for number in 0..verdict["packs"]["count"].as_u64().context("packs")? {
            packs.extend_from_slice(object(&format!("pack-{number:05}.tar.zst"))?);
        }
        ensure!(
            verdict["packs"]["stored"].as_u64() == Some(u64::try_from(packs.len())?),
            "bytes of the packs"
        );
        let mut found = unpack(&packs)?;
        ensure!(found.contains_key("global/pg_control"), "no control file");
        let said: Value = serde_json::from_slice(object("backup_manifest")?)?;
        for file in said["Files"].as_array().context("Files")? {
            let path = file["Path"].as_str().context("Path")?;
            let (size, crc) = found.remove(path).with_context(|| format!("{path} is missing"))?;
            let hex: String = crc.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            ensure!(
                file["Size"].as_u64() == Some(size) && file["Checksum"] == hex.as_str(),
                "{path} differs: {file}"
            );
        }
        object("manifest.jsonl.zst")?;
        let mut parts = parts.into_inner();
        parts.extend(self.wal_is_there(folder, &verdict, all)?);
        Ok(Some(parts))
    }

    fn wal_is_there(&self, folder: &str, verdict: &Value, all: &Objects) -> Result<Sums> {
        let system = folder.rsplit_once("/backups/").context("a folder of backups")?.0;
        let size = verdict["segment_size"].as_u64().context("segment_size")?;
        let timeline = verdict["timeline"].as_u64().context("timeline")?;
        let lsn = |name: &str| -> Result<u64> {
            let (high, low) = verdict[name].as_str().context("an LSN")?.split_once('/').context("X/X")?;
            Ok((u64::from_str_radix(high, 16)? << 32) | u64::from_str_radix(low, 16)?)
        };
        let (first, last) = (lsn("start_lsn")? / size, (lsn("stop_lsn")? - 1) / size);
        let mut parts = Sums::new();
        for number in first..=last {
            let per_log = (1 << 32) / size;
            let (log, within) = (number / per_log, number % per_log);
            let key =
                format!("{system}/wal/{timeline:08X}/{log:08X}/{timeline:08X}{log:08X}{within:08X}.wal");
            let bytes = all.get(&key).with_context(|| format!("no {key}"))?;
            self.check_object(&key, bytes)?;
            parts.insert(key, sum(bytes));
        }
        Ok(parts)
    }

    /// True if a file of this name and content comes back from some copy of it.
    pub fn comes_back(objects: &Objects, name: &str, content: &[u8]) -> bool {
        let copies = objects.iter().filter(|(key, _)| wal_name(key).is_some_and(|found| found == name));
        copies
            .into_iter()
            .any(|(_, bytes)| zstd::stream::decode_all(&bytes[..]).is_ok_and(|plain| plain == content))
    }
}

/// The file of `pg_wal` that an object is, if it is one. Records of gaps and of ancestry lie beside them.
fn wal_name(key: &str) -> Option<String> {
    if !key.contains("/wal/") || key.ends_with(".json") {
        return None;
    }
    let file = key.rsplit('/').next()?;
    let Some(stem) = file.strip_suffix(".wal") else { return Some(file.to_owned()) };
    let copy = stem.rsplit_once('.').filter(|(_, copy)| copy.bytes().all(|byte| byte.is_ascii_digit()));
    Some(copy.map_or(stem, |(name, _)| name).to_owned())
}

/// Size and CRC-32C of every file in a backup's packs.
fn unpack(packs: &[u8]) -> Result<BTreeMap<String, (u64, u32)>> {
    let mut archive = tar::Archive::new(zstd::stream::read::Decoder::new(packs)?);
    let mut found = BTreeMap::new();
    for member in archive.entries()? {
        let mut member = member?;
        if member.header().entry_type().is_file() {
            let path = member.path()?.to_str().context("a path")?.to_owned();
            let mut bytes = Vec::new();
            member.read_to_end(&mut bytes)?;
            found.insert(path, (u64::try_from(bytes.len())?, crc32c::crc32c(&bytes)));
        }
    }
    Ok(found)
}

//! Tablespaces of a restore: where each goes, and the `tablespace_map` that tells PostgreSQL so.
//!
//! ```text
//!  tablespace_map of the backup        --tablespace /srv/fast=/srv/copy/fast       tablespace_map that is written
//!  16385 /srv/fast                ───► contents below /srv/copy/fast/PG_15_…  ───► 16385 /srv/copy/fast
//! ```
//! The links in `pg_tblspc` are made by PostgreSQL itself when it reads the map. Invariants: a copy never writes to where the
//! original's tablespaces are; nothing that a live cluster may use is replaced or moved.
//! Source of truth: `read_tablespace_map` in `xlogrecovery.c`; facts/wal-recovery 8.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::durable::{self, Owner, TreeWriter};
use crate::error::{Error, Result};
use crate::pgdata::TablespaceMap;
use crate::pgdata::label::TablespaceLink;
use crate::wal::PgMajor;

use super::Purpose;
use super::directory::{cannot, durable_error};
use super::moving;

/// `--tablespace OLD=NEW`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub old: Old,
    /// Where it goes.
    pub new: PathBuf,
}

/// The tablespace that a [`Move`] means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Old {
    /// The one that was there on the server.
    Place(PathBuf),
    /// The one with this OID: a place may be a name that no terminal can show or type.
    Oid(u32),
}

impl Move {
    /// Parses `OLD=NEW`, where OLD is a place or an OID; an equals sign in a path is written `\=`, as `pg_basebackup` takes it. Paths are
    /// bytes, in whatever encoding.
    ///
    /// # Errors
    /// Kind `Usage`.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bad = |why: &str| {
            Error::usage(format!("--tablespace {}: {why}", text.display()))
                .hint("write --tablespace /old/place=/new/place, or OID=/new/place, and an equals sign within a path as \\=")
        };
        let mut parts: Vec<Vec<u8>> = vec![Vec::new()];
        let mut bytes = text.as_bytes().iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            let escaped = byte == b'\\' && bytes.peek() == Some(&b'=');
            match (byte, parts.last_mut()) {
                (b'=', _) => parts.push(Vec::new()),
                (_, Some(part)) => part.push(if escaped { bytes.next().unwrap_or(byte) } else { byte }),
                (_, None) => {}
            }
        }
        let [old, new] = parts.as_slice() else { return Err(bad("it is not OLD=NEW")) };
        let new = clean(Path::new(OsStr::from_bytes(new)));
        let oid = std::str::from_utf8(old).ok().and_then(|text| text.parse().ok());
        let old = oid.map_or_else(|| Old::Place(clean(Path::new(OsStr::from_bytes(old)))), Old::Oid);
        if matches!(&old, Old::Place(place) if !place.is_absolute()) || !new.is_absolute() {
            return Err(bad("both paths must be absolute"));
        }
        Ok(Self { old, new })
    }

    fn means(&self, oid: u32, place: &Path) -> bool {
        match &self.old {
            Old::Place(old) => old == place,
            Old::Oid(old) => *old == oid,
        }
    }
}

/// One tablespace and where its contents go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID.
    pub oid: u32,
    /// Where it was on the server.
    pub original: PathBuf,
    /// Where it goes; `None` for one that lies inside the data directory.
    pub place: Option<PathBuf>,
}

/// Decides where every tablespace goes.
///
/// # Errors
/// Kind `Usage` for a `--tablespace` that names none of them, `Refused` for a copy that would write where the original is.
pub fn locate(
    map: &TablespaceMap,
    moves: &[Move],
    purpose: Purpose,
    target: &Path,
) -> Result<Vec<Tablespace>> {
    let original = |link: &TablespaceLink| clean(Path::new(OsStr::from_bytes(&link.path)));
    let originals: Vec<(u32, PathBuf)> = map.links.iter().map(|link| (link.oid, original(link))).collect();
    if let Some(stray) = moves.iter().find(|m| !originals.iter().any(|(oid, place)| m.means(*oid, place))) {
        let which = match &stray.old {
            Old::Place(place) => format!("at {}", place.display()),
            Old::Oid(oid) => format!("{oid}"),
        };
        return Err(Error::usage(format!("the backup has no tablespace {which}")).hint(known(&originals)));
    }
    let mut found = Vec::new();
    for (oid, original) in &originals {
        let moved = moves.iter().find(|m| m.means(*oid, original)).map(|m| m.new.clone());
        let place = original.is_absolute().then(|| moved.unwrap_or_else(|| original.clone()));
        found.push(Tablespace { oid: *oid, original: original.clone(), place });
    }
    if purpose == Purpose::Copy {
        refuse_originals(&found)?;
    }
    for (index, one) in found.iter().enumerate() {
        let Some(place) = &one.place else { continue };
        if place.starts_with(target) || target.starts_with(place) {
            return Err(Error::refused(format!(
                "tablespace {} would be inside the data directory: {}",
                one.oid,
                place.display()
            ))
            .hint("give it another place with --tablespace OLD=NEW"));
        }
        let earlier = found.iter().take(index).filter_map(|t| t.place.as_ref());
        if earlier.into_iter().any(|other| other == place) {
            return Err(Error::usage(format!("two tablespaces would be at {}", place.display()))
                .hint("give each its own place with --tablespace OLD=NEW"));
        }
    }
    Ok(found)
}

/// A copy must not write where the original's tablespaces are.
fn refuse_originals(all: &[Tablespace]) -> Result<()> {
    let taken = |t: &&Tablespace| t.place.as_ref().is_some_and(|p| all.iter().any(|o| o.original == *p));
    let unmapped: Vec<&Tablespace> = all.iter().filter(taken).collect();
    if unmapped.is_empty() {
        return Ok(());
    }
    let listed = |each: &dyn Fn(&Tablespace) -> String, between: &str| {
        unmapped.iter().map(|one| each(one)).collect::<Vec<_>>().join(between)
    };
    let places = listed(&|one| one.original.display().to_string(), ", ");
    Err(Error::refused(format!("a copy needs new places for the tablespaces at {places}"))
        .hint(listed(&|one| format!("--tablespace {}=/new/place", handle(one.oid, &one.original)), " ")))
}

/// What names a tablespace on a command line: its place, or its OID if the place is no text.
fn handle(oid: u32, place: &Path) -> String {
    place.to_str().map_or_else(|| oid.to_string(), |text| text.replace('=', "\\="))
}

fn known(originals: &[(u32, PathBuf)]) -> String {
    if originals.is_empty() {
        return "it has none".to_owned();
    }
    let list: Vec<String> = originals.iter().map(|(oid, p)| format!("{} ({oid})", p.display())).collect();
    format!("it has: {}", list.join(", "))
}

/// The map for the restored directory.
///
/// # Errors
/// Kind `Usage` for a place that PostgreSQL cannot read back.
pub fn map_bytes(tablespaces: &[Tablespace], major: PgMajor) -> Result<Vec<u8>> {
    let links = tablespaces.iter().map(|t| TablespaceLink {
        oid: t.oid,
        path: t.place.as_ref().unwrap_or(&t.original).as_os_str().as_bytes().to_vec(),
    });
    let map = TablespaceMap { links: links.collect() };
    map.to_bytes(major).map_err(|e| Error::usage(e.to_string()).source(e))
}

/// What is at the place of a tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// Free: the place is absent, or without contents of this PostgreSQL version.
    Free,
    /// A killed restore of ours wrote there.
    Leftover,
    /// It belongs to the data directory that is moved aside.
    Old,
}

/// Looks whether a tablespace can be put at `place`, where its contents will be in `version` (`PG_15_202209061`).
///
/// # Errors
/// Kind `Refused` if something of this version is there that is neither ours nor the old directory's.
pub fn look(place: &Path, version: &str, leftovers: &[PathBuf], old: &[PathBuf]) -> Result<Room> {
    let inside = place.join(version);
    let above = place.parent().unwrap_or_else(|| Path::new("/"));
    if !place.exists() && !above.is_dir() {
        return Err(Error::not_found(format!("{} does not exist", above.display()))
            .hint("is a file system not mounted? otherwise make the directory first"));
    }
    let occupied = match std::fs::read_dir(&inside) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == ErrorKind::NotFound => false,
        Err(e) => return Err(cannot("list", &inside, e)),
    };
    let same = |known: &PathBuf| known == place || known.canonicalize().ok() == place.canonicalize().ok();
    match occupied {
        false => Ok(Room::Free),
        true if leftovers.iter().any(same) => Ok(Room::Leftover),
        true if old.iter().any(same) => Ok(Room::Old),
        true => Err(Error::refused(format!("tablespace directory {} is not empty", inside.display()))
            .hint("choose another place with --tablespace OLD=NEW, or empty it")),
    }
}

/// A tablespace of a data directory that is moved aside: it goes aside with it, so that the old directory still has its own files
/// and recovery, which may make tablespaces of the backup's future again, finds its places free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldTablespace {
    /// The name of its link in `pg_tblspc`.
    pub oid: OsString,
    /// Where the link leads.
    pub place: PathBuf,
    /// PostgreSQL's own folders in there (`PG_15_202209061`), of the directory's version.
    pub folders: Vec<OsString>,
    /// Where they go.
    pub kept: PathBuf,
}

impl OldTablespace {
    /// Those of a data directory that hold files and are not aside yet, and where a move at `stamp` puts them. An interrupted move may
    /// have left one half of the directory in each of `halves`.
    ///
    /// # Errors
    /// If one cannot be looked at.
    pub fn all_of(halves: &[&Path], stamp: &str) -> Result<Vec<Self>> {
        let either = |name: &str| halves.iter().map(|half| half.join(name)).find(|path| path.exists());
        let Some(links) = either("pg_tblspc") else { return Ok(Vec::new()) };
        let entries = std::fs::read_dir(&links).map_err(|e| cannot("list", &links, e))?;
        let version =
            either("PG_VERSION").and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let prefix = format!("PG_{}_", version.trim());
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| cannot("list", &links, e))?;
            // What is no link lies inside the data directory and moves with it.
            let Ok(place) = std::fs::read_link(entry.path()) else { continue };
            let leads_to = clean(&place);
            let (place, kept) = match leads_to.parent().filter(|_| is_kept(&leads_to)) {
                // It is aside, with all it has; or the link was the first step.
                Some(_) if !folders_of(&leads_to, &prefix)?.is_empty() => continue,
                Some(above) => (above.to_path_buf(), leads_to),
                None => (leads_to.clone(), leads_to.join(format!("{}{stamp}", moving::KEPT))),
            };
            let folders = folders_of(&place, &prefix)?;
            if !folders.is_empty() {
                found.push(Self { oid: entry.file_name(), place, folders, kept });
            }
        }
        Ok(found)
    }

    /// Makes the link in `data_dir` lead to where the folders go, and moves them there. The link is first: from it the next restore
    /// knows where to go on, wherever this one is killed.
    ///
    /// # Errors
    /// As the file system answers.
    pub fn set_aside(&self, data_dir: &Path, owner: Option<Owner>) -> Result<()> {
        let name = self.kept.file_name().map(PathBuf::from).unwrap_or_default();
        TreeWriter::new(&self.place, owner).create_dir(&name, 0o700).map_err(durable_error)?;
        self.lead(data_dir, &self.kept, owner)?;
        for (moved, folder) in self.folders.iter().enumerate() {
            let (from, to) = (self.place.join(folder), self.kept.join(folder));
            if let Err(error) = durable::move_aside(&from, &to) {
                // Whoever cannot move it at all leaves the old directory as it was.
                if moved == 0 && from.exists() {
                    self.lead(data_dir, &self.place, owner).ok();
                }
                return Err(durable_error(error));
            }
        }
        Ok(())
    }

    /// Makes the link in `data_dir` lead to `place`, in one step.
    fn lead(&self, data_dir: &Path, place: &Path, owner: Option<Owner>) -> Result<()> {
        let new = PathBuf::from("pitr.link");
        let made = data_dir.join(&new);
        if made.symlink_metadata().is_ok() {
            std::fs::remove_file(&made).map_err(|e| cannot("remove", &made, e))?; // of a killed attempt
        }
        TreeWriter::new(data_dir, owner).create_symlink(&new, place).map_err(durable_error)?;
        let link = data_dir.join("pg_tblspc").join(&self.oid);
        std::fs::rename(&made, &link).map_err(|e| cannot("replace", &link, e))?;
        durable::sync_dir(&data_dir.join("pg_tblspc")).map_err(durable_error)
    }
}

/// Whether a link that leads here was led here by a move aside.
fn is_kept(place: &Path) -> bool {
    place.file_name().is_some_and(|name| name.as_bytes().starts_with(moving::KEPT.as_bytes()))
}

/// PostgreSQL's own folders in the place of a tablespace; none if there is no such place.
fn folders_of(place: &Path, prefix: &str) -> Result<Vec<OsString>> {
    match std::fs::read_dir(place) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(cannot("list", place, e)),
        Ok(inside) => {
            let names = inside.flatten().map(|entry| entry.file_name());
            Ok(names.filter(|name| name.as_bytes().starts_with(prefix.as_bytes())).collect())
        }
    }
}

/// Checks the places of tablespaces that replay will make: PostgreSQL makes them where they were made first, whatever is there by
/// then, and would write into a live cluster's files. Returns what must be done by hand.
///
/// # Errors
/// Kind `Refused` if one is taken by anything but the directory that goes aside.
pub fn check_met(made: &[(u32, Vec<u8>)], old: &[OldTablespace], major: PgMajor) -> Result<Vec<String>> {
    let mut said = Vec::new();
    for (oid, place) in made {
        let place = clean(Path::new(OsStr::from_bytes(place)));
        let prefix = format!("PG_{}_", major.number());
        let taken = match std::fs::read_dir(&place) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                said.push(format!(
                    "replay makes tablespace {oid} at {}: make that directory, empty and owned by the server's user, before the \
                     server is started",
                    place.display()
                ));
                continue;
            }
            Err(e) => return Err(cannot("list", &place, e)),
            Ok(inside) => inside.flatten().any(|e| e.file_name().as_bytes().starts_with(prefix.as_bytes())),
        };
        let same =
            |o: &&OldTablespace| o.place == place || o.place.canonicalize().ok() == place.canonicalize().ok();
        if taken && old.iter().find(same).is_none() {
            return Err(Error::refused(format!(
                "replay makes tablespace {oid} at {}, where another cluster's files are",
                place.display()
            ))
            .hint(
                "restore to a moment before it was made, or from a backup taken after that with --tablespace, or on a host where \
                 this place is free",
            ));
        }
    }
    Ok(said)
}

/// The tablespaces that an unfinished restore in `data_dir` wrote to, by the map it had put there.
pub fn mapped_in(data_dir: &Path, major: PgMajor) -> Vec<PathBuf> {
    let map = std::fs::read(data_dir.join("tablespace_map")).ok();
    let map = map.and_then(|bytes| TablespaceMap::parse(&bytes, major).ok()).unwrap_or_default();
    map.links.iter().map(|l| clean(Path::new(OsStr::from_bytes(&l.path)))).collect()
}

/// Without trailing slashes and `.` parts, so that equal paths compare equal.
fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn map(paths: &[&str]) -> TablespaceMap {
        let links =
            paths.iter().zip(16385..).map(|(p, oid)| TablespaceLink { oid, path: p.as_bytes().to_vec() });
        TablespaceMap { links: links.collect() }
    }

    fn moves(texts: &[&str]) -> Vec<Move> {
        texts.iter().map(|t| Move::parse(t.as_ref()).unwrap()).collect()
    }

    #[test]
    fn a_move_is_two_absolute_paths() {
        let parsed = Move::parse("/a\\=b/=/c".as_ref()).unwrap();
        assert_eq!((parsed.old, parsed.new), (Old::Place("/a=b".into()), PathBuf::from("/c")));
        for bad in ["", "/a", "/a=b", "a=/b", "/a=/b=/c", "16385=c", "-1=/c"] {
            assert_eq!(Move::parse(bad.as_ref()).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn a_place_that_is_no_text_is_moved_by_its_bytes_or_its_oid() {
        let bytes = |text: &[u8]| OsStr::from_bytes(text).to_owned();
        let links = vec![TablespaceLink { oid: 16385, path: b"/srv/caf\xe9".to_vec() }];
        let map = TablespaceMap { links };
        let target = Path::new("/srv/copy");
        let refused = locate(&map, &[], Purpose::Copy, target).unwrap_err();
        assert!(refused.report().contains("--tablespace 16385=/new/place"), "{refused}");
        for flag in [bytes(b"/srv/caf\xe9=/new/\xe9"), bytes(b"16385=/new/\xe9")] {
            let good = locate(&map, &[Move::parse(&flag).unwrap()], Purpose::Copy, target).unwrap();
            assert_eq!(map_bytes(&good, PgMajor::V15).unwrap(), b"16385 /new/\xe9\n");
        }
        let stray = locate(&map, &moves(&["16386=/x"]), Purpose::Copy, target).unwrap_err();
        assert_eq!(stray.message(), "the backup has no tablespace 16386");
    }

    #[test]
    fn a_copy_names_every_tablespace_that_has_no_new_place() {
        let target = Path::new("/srv/copy");
        let map = map(&["/srv/a", "/srv/b"]);
        let refused = locate(&map, &moves(&["/srv/a=/new/a"]), Purpose::Copy, target).unwrap_err();
        assert_eq!(refused.kind(), Kind::Refused);
        assert!(refused.message().ends_with("/srv/b") && !refused.message().contains("/srv/a,"), "{refused}");
        // Swapping two of the original's places writes into them all the same.
        let swapped = locate(&map, &moves(&["/srv/a=/srv/b", "/srv/b=/srv/a"]), Purpose::Copy, target);
        assert_eq!(swapped.unwrap_err().kind(), Kind::Refused);
        let good = locate(&map, &moves(&["/srv/a=/new/a", "/srv/b/=/new/b"]), Purpose::Copy, target).unwrap();
        assert_eq!(map_bytes(&good, PgMajor::V15).unwrap(), b"16385 /new/a\n16386 /new/b\n");
    }

    #[test]
    fn a_replacement_uses_the_original_places() {
        let found = locate(&map(&["/srv/a"]), &[], Purpose::Replace, Path::new("/srv/main")).unwrap();
        assert_eq!(found.first().and_then(|t| t.place.clone()), Some(PathBuf::from("/srv/a")));
        for inside in ["/srv/main/ts", "/srv"] {
            let moved = moves(&[&format!("/srv/a={inside}")]);
            assert!(locate(&map(&["/srv/a"]), &moved, Purpose::Replace, Path::new("/srv/main")).is_err());
        }
        let stray =
            locate(&map(&[]), &moves(&["/x=/y"]), Purpose::Replace, Path::new("/srv/main")).unwrap_err();
        assert_eq!(stray.kind(), Kind::Usage);
    }

    #[test]
    fn only_what_is_ours_or_the_old_clusters_may_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("ts");
        let version = "PG_15_202209061";
        assert_eq!(look(&place, version, &[], &[]).unwrap(), Room::Free);
        std::fs::create_dir_all(place.join(version)).unwrap();
        std::fs::create_dir_all(place.join("PG_14_202107181/5")).unwrap();
        assert_eq!(look(&place, version, &[], &[]).unwrap(), Room::Free);
        std::fs::create_dir_all(place.join(version).join("5")).unwrap();
        assert_eq!(look(&place, version, &[], &[]).unwrap_err().kind(), Kind::Refused);
        assert_eq!(look(&place, version, std::slice::from_ref(&place), &[]).unwrap(), Room::Leftover);
        assert_eq!(look(&place, version, &[], std::slice::from_ref(&place)).unwrap(), Room::Old);
        let nowhere = look(&dir.path().join("a/b"), version, &[], &[]).unwrap_err();
        assert_eq!(nowhere.kind(), Kind::NotFound);
    }
}

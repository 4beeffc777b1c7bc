//! Before a byte is written: everything a restore will do is decided here, and everything that can be refused is.
//!
//! ```text
//!  plan (backup, route, stop) ─► manifest, catalogue, control file ─► directory, tablespaces, host, configuration, room ─► Prepared
//! ```
//! A [`Prepared`] restore is a plain description; printing it is `--dry-run`. Nothing is written, neither here nor in the
//! repository. Source of truth: RECOVERY.md 9, 21 to 25.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::durable::{self, Owner};
use crate::error::{Error, Kind, Result};
use crate::ops::backup::catalogue::Catalogue;
use crate::ops::plan::RecoveryPlan;
use crate::pgdata::conf::{CommandSource, Item, ItemKind};
use crate::pgdata::copyconf::{self, CopyPlace, CopySource};
use crate::pgdata::paths::Access;
use crate::pgdata::recovery::{self, Action, RecoverySettings};
use crate::pgdata::{ControlFile, TablespaceMap};
use crate::repo::objects::Checksums;
use crate::store::StoreUrl;
use crate::wal::PgMajor;

use super::Purpose;
use super::configuration::Configuration;
use super::directory::{self, Place, State};
use super::found::Found;
use super::host::{self, Installed};
use super::image::Image;
use super::layout::{self, Layout};
use super::marker::Marker;
use super::outside::{self, Home, RestoredFiles};
use super::purpose;
use super::settings::{self, KeyFlags, Origin, OwnFile, WalSource};
use super::stored::StoredBackup;
use super::tablespaces::{self, Move, OldTablespace, Room, Tablespace};
use super::unarchived::Unarchived;

/// Room that is kept free beside the files: recovery fetches WAL into `pg_wal`.
const SPARE_BYTES: u64 = 256 << 20;

/// What is asked for, beside the target.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where to restore to.
    pub target_dir: PathBuf,
    /// Replacement or copy, if it was said: see [`purpose::decide`].
    pub purpose: Option<Purpose>,
    /// Keep what is there under another name.
    pub move_aside: bool,
    /// New places of tablespaces.
    pub moves: Vec<Move>,
    /// What the server does at the target.
    pub action: Action,
}

/// What the command knows of its surroundings.
#[derive(Debug, Clone)]
pub struct Site {
    /// Absolute path of this program.
    pub binary: PathBuf,
    /// Absolute path of the configuration, if there is one.
    pub config: Option<PathBuf>,
    /// Identity file and fingerprint that `restore_command` must name, because the configuration does not.
    pub keys: KeyFlags,
    /// The configured data directory.
    pub data_dir: Option<PathBuf>,
    /// The configured directory of PostgreSQL's programs.
    pub bin_dir: Option<PathBuf>,
    /// The promised recovery point objective.
    pub rpo: Duration,
    /// The time now.
    pub now: Timestamp,
}

/// A restore, decided.
#[derive(Debug)]
pub struct Prepared {
    /// The backup.
    pub stored: StoredBackup,
    /// Where recovery goes.
    pub plan: RecoveryPlan,
    /// Replacement or copy.
    pub purpose: Purpose,
    /// The target directory as it is now.
    pub place: Place,
    /// Where its contents go, if they are in the way.
    pub aside: Option<PathBuf>,
    /// Tablespaces of the old directory, which go aside with it.
    pub old_tablespaces: Vec<OldTablespace>,
    /// The tablespaces, with what is at their places.
    pub tablespaces: Vec<(Tablespace, Room)>,
    /// The folder of this PostgreSQL in each tablespace.
    pub version_folder: Option<String>,
    /// All files.
    pub image: Image,
    /// Where they go.
    pub layout: Layout,
    /// The backup's control file.
    pub control: Vec<u8>,
    /// Modes of the directory.
    pub access: Access,
    /// Who the server runs as.
    pub user: Owner,
    /// Files that the restore writes itself.
    pub files: Vec<OwnFile>,
    /// Configuration outside the data directory.
    pub home: Home,
    /// The recovery settings in `files`.
    pub settings: RecoverySettings,
    /// The command that starts the server.
    pub start: String,
    /// Absolute path of this program.
    pub binary: PathBuf,
    /// Bytes of the packs that hold the files.
    pub bytes_to_fetch: u64,
    /// WAL that only the old data directory holds (or held, before it was stored).
    pub old_wal: Option<Unarchived>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

impl Prepared {
    /// The owner that files must be given to, if this process has files to give away.
    pub fn owner(&self) -> Option<Owner> {
        self.user.to_give()
    }

    /// Names and values that will be set for recovery.
    pub fn settings_shown(&self) -> Vec<(String, String)> {
        self.settings.settings().unwrap_or_default()
    }
}

/// What was read of the backup to decide.
struct Seen {
    image: Image,
    access: Access,
    version_folder: Option<String>,
    control: Vec<u8>,
    parsed: ControlFile,
    /// `None` only if the backup has none: never for want of room.
    auto_conf: Option<Vec<u8>>,
    map: TablespaceMap,
    small: RestoredFiles,
    catalogue: Option<Catalogue>,
    warnings: Vec<String>,
}

/// Decides a restore of `stored` by `plan`, as a replacement or a copy ([`purpose::decide`]).
///
/// # Errors
/// Whatever stands in the way, see the module.
pub async fn prepare(
    stored: StoredBackup,
    plan: RecoveryPlan,
    purpose: Purpose,
    request: &Request,
    site: &Site,
) -> Result<Prepared> {
    let place = Place::inspect(&request.target_dir)?;
    let configured = site.data_dir.as_deref();
    place.check_free(request.move_aside)?;
    let user = purpose::server_user(&place, configured)?;
    check_writable(&place)?;
    let installed = Installed::look(site.bin_dir.as_deref());
    installed.check_major(stored.verdict().major)?;

    let mut seen = look(&stored, &place.path).await?;
    check_control(&stored, &seen.parsed)?;
    check_whole_wal(&plan)?;
    if let Some(raised) = plan.met.required {
        seen.parsed.required.raise(raised);
    }
    let located = tablespaces::locate(&seen.map, &request.moves, purpose, &place.path)?;
    let layout = Layout::new(purpose, &located);
    let old_tablespaces = old_tablespaces(&place, purpose, site)?;
    let rooms = look_at_tablespaces(
        &place,
        &located,
        seen.version_folder.as_deref(),
        &old_tablespaces,
        stored.verdict().major,
    )?;
    check_room(&place, &seen.image, &layout, &located)?;

    let mut warnings = seen.warnings.clone();
    warnings.extend(tablespaces::check_met(&plan.met.tablespaces, &old_tablespaces, stored.verdict().major)?);
    warnings.extend(backup_warnings(&stored, seen.catalogue.as_ref()));
    let command = restore_command(&stored, &plan, site)?;
    let decided =
        Decided { purpose, place: &place.path, user, action: request.action, stored: &stored, plan: &plan };
    let own = decided.own_files(command, &seen, &installed, site.now)?;
    warnings.extend(own.warnings);
    let start = installed.start_command(&place.path, own.home.outside());
    let goes_on = purpose == Purpose::Replace && place.unfinished.is_some();
    let aside = (place.is_occupied() || goes_on).then(|| place.aside(site.now));
    let bytes_to_fetch = bytes_of_packs(&stored, &seen.image);
    Ok(Prepared {
        plan,
        purpose,
        aside,
        old_tablespaces,
        binary: site.binary.clone(),
        tablespaces: located.into_iter().zip(rooms).collect(),
        version_folder: seen.version_folder,
        layout,
        control: seen.control,
        access: seen.access,
        user,
        files: own.files,
        home: own.home,
        settings: own.settings,
        start,
        bytes_to_fetch,
        old_wal: None,
        warnings,
        image: seen.image,
        place,
        stored,
    })
}

/// Reads manifest, catalogue and the small files that decide.
async fn look(stored: &StoredBackup, target: &Path) -> Result<Seen> {
    let id = stored.verdict().id.clone();
    let image = stored.image().await?;
    let (catalogue, unreadable) = stored.catalogue().await?;
    let found = Found::scan(&image)?;
    let must = [layout::CONTROL, "backup_label", "PG_VERSION"];
    if let Some(missing) = must.iter().find(|path| !found.has(path)) {
        return Err(Error::corrupt(format!("backup {id} has no {missing}")));
    }
    let mut files = stored.files(&image, &found.files()).await?;
    let auto_conf = files.remove(layout::AUTO_CONF.as_bytes());
    let mut take = |path: &str| files.remove(path.as_bytes()).unwrap_or_default();
    let (control, map) = (take(layout::CONTROL), take(layout::TABLESPACE_MAP));
    let parsed =
        ControlFile::parse(&control).map_err(|e| Error::corrupt(format!("backup {id}: {e}")).source(e))?;
    let map = TablespaceMap::parse(&map, stored.verdict().major)
        .map_err(|e| Error::corrupt(format!("backup {id}: {e}")).source(e))?;
    if map.links.is_empty() && !stored.verdict().tablespaces.is_empty() {
        return Err(Error::corrupt(format!("backup {id} has tablespaces but no tablespace_map")));
    }
    let mut small = RestoredFiles::default();
    for (path, bytes) in files {
        small.add(target.join(String::from_utf8_lossy(&path).into_owned()), bytes);
    }
    let unreadable =
        unreadable.map(|why| format!("what the server said about itself could not be read: {why}"));
    let warnings = unreadable.into_iter().chain(found.warning()).collect();
    Ok(Seen {
        control,
        parsed,
        auto_conf,
        map,
        small,
        catalogue,
        warnings,
        access: found.access,
        version_folder: found.version_folder,
        image,
    })
}

fn check_writable(place: &Place) -> Result<()> {
    let above = place.path.parent().unwrap_or_else(|| Path::new("/"));
    let needed = if place.state == State::Absent || (place.is_occupied() && !place.mount_point) {
        above
    } else {
        &place.path
    };
    nix::unistd::access(needed, nix::unistd::AccessFlags::W_OK).map_err(|e| {
        Error::key(format!("cannot write in {}", needed.display()))
            .source(e)
            .hint("run the restore as the user that PostgreSQL runs as, or as root")
    })
}

/// Replay cannot get through what was written with `wal_level = minimal`, and must not try: PostgreSQL 13 may open what is left.
fn check_whole_wal(plan: &RecoveryPlan) -> Result<()> {
    let Some(at) = plan.met.minimal else { return Ok(()) };
    Err(Error::new(
        Kind::Unreachable,
        format!("from LSN {at} on the server wrote WAL with wal_level=minimal: what was loaded in bulk is not in it, and no replay goes through"),
    )
    .hint("name a moment before that, or restore from a backup that was taken after it"))
}

/// The control file belongs to the backup (RECOVERY.md 25): page and segment size are what this program's plan assumes.
fn check_control(stored: &StoredBackup, control: &ControlFile) -> Result<()> {
    let verdict = stored.verdict();
    if control.system_id != verdict.system {
        return Err(Error::corrupt(format!(
            "backup {} is of system {}, its pg_control of system {}",
            verdict.id, verdict.system, control.system_id
        )));
    }
    if control.segment_size != verdict.segment_size {
        return Err(Error::corrupt(format!(
            "backup {} has WAL segments of {} bytes, its pg_control says {}",
            verdict.id,
            verdict.segment_size.bytes(),
            control.segment_size.bytes()
        )));
    }
    if u64::from(control.wal_page_size) != crate::wal::PAGE_SIZE {
        return Err(Error::refused(format!(
            "WAL pages of {} bytes are not supported",
            control.wal_page_size
        )));
    }
    Ok(())
}

/// Only a replacement may move tablespaces aside, and only those of the very directory that it replaces.
fn old_tablespaces(place: &Place, purpose: Purpose, site: &Site) -> Result<Vec<OldTablespace>> {
    let halves: Vec<&Path> = place
        .unfinished
        .as_deref()
        .into_iter()
        .chain(matches!(place.state, State::Cluster(_)).then_some(place.path.as_path()))
        .collect();
    match purpose {
        Purpose::Replace => OldTablespace::all_of(&halves, &directory::stamp(site.now)),
        Purpose::Copy => Ok(Vec::new()),
    }
}

fn look_at_tablespaces(
    place: &Place,
    located: &[Tablespace],
    version: Option<&str>,
    old: &[OldTablespace],
    major: PgMajor,
) -> Result<Vec<Room>> {
    let leftovers = match place.state {
        State::Leftover => {
            let marked = Marker::read(&place.path).map(|m| m.tablespaces).unwrap_or_default();
            [marked, tablespaces::mapped_in(&place.path, major)].concat()
        }
        _ => Vec::new(),
    };
    let old: Vec<PathBuf> = old.iter().map(|t| t.place.clone()).collect();
    let room = |t: &Tablespace| match (&t.place, version) {
        (Some(at), Some(version)) => tablespaces::look(at, version, &leftovers, &old),
        _ => Ok(Room::Free),
    };
    located.iter().map(room).collect()
}

/// Room for the files, on each file system that gets some: the data directory's also takes the WAL that recovery fetches.
fn check_room(place: &Place, image: &Image, layout: &Layout, located: &[Tablespace]) -> Result<()> {
    if place.state == State::Leftover {
        return Ok(()); // what is there counts twice; a full disk shows soon enough, and leaves leftovers again
    }
    let roots: Vec<&Path> = std::iter::once(place.path.as_path())
        .chain(located.iter().filter_map(|t| t.place.as_deref()))
        .collect();
    let mut needed = vec![0_u64; roots.len()];
    if let Some(first) = needed.first_mut() {
        *first = SPARE_BYTES;
    }
    let mut rows = image.rows();
    while let Some(row) = rows.next_row()? {
        let tree = layout.destination(row.path).map(|(tree, _)| tree);
        if let Some(sum) = tree.and_then(|tree| needed.get_mut(tree)) {
            *sum = sum.saturating_add(row.size);
        }
    }
    let mut systems: BTreeMap<u64, (u64, &Path)> = BTreeMap::new();
    for (root, bytes) in roots.into_iter().zip(needed) {
        let device = root.ancestors().find_map(|p| std::fs::metadata(p).ok()).map_or(0, |m| m.dev());
        let sum = &mut systems.entry(device).or_insert((0, root)).0;
        *sum = sum.saturating_add(bytes);
    }
    for (needed, root) in systems.into_values() {
        match durable::free_bytes(root) {
            Some(free) if free < needed => {
                return Err(Error::refused(format!(
                    "{} has {free} bytes free, the restore needs {needed}",
                    root.display()
                ))
                .hint("make room, or restore into a larger file system with --target-dir or --tablespace"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is read of the store: all of the packs that hold a file, near enough.
fn bytes_of_packs(stored: &StoredBackup, image: &Image) -> u64 {
    let named = image.packs().iter().fold(0_u64, |sum, pack| sum.saturating_add(pack.info.stored));
    named.max(stored.verdict().packs.stored)
}

fn backup_warnings(stored: &StoredBackup, catalogue: Option<&Catalogue>) -> Vec<String> {
    let mut warnings = Vec::new();
    if stored.verdict().checksums == Checksums::Corrupt {
        warnings.push(
            "the server had damaged pages when the backup was taken: the restored one has them too"
                .to_owned(),
        );
    }
    warnings.extend(catalogue.map(Installed::collation_warnings).unwrap_or_default());
    warnings
}

fn restore_command(stored: &StoredBackup, plan: &RecoveryPlan, site: &Site) -> Result<String> {
    let repository = stored.system().repository();
    let url = repository.store().url().to_string();
    let source = match &site.config {
        Some(path) => CommandSource::Config { path, repository: Some(repository.name()) },
        None => CommandSource::Url { url: &url, cluster: repository.cluster().as_str() },
    };
    if site.config.is_none() && !matches!(repository.store().url(), StoreUrl::File(_)) {
        // The server's environment is empty: whatever this process found there is not at hand when recovery asks.
        return Err(Error::usage("a restore from a cloud store needs a configuration file").hint(
            "write one with this [[repository]] and its credentials_file (pitr init), and give it by --config: \
             restore_command runs without your environment",
        ));
    }
    settings::restore_command(
        &WalSource { binary: &site.binary, source, keys: &site.keys },
        plan.recovery_target_timeline,
        plan.hole_behind.then(|| plan.stop.end()),
        stored.verdict().system,
    )
}

/// What the restore writes itself.
struct Own {
    files: Vec<OwnFile>,
    home: Home,
    settings: RecoverySettings,
    warnings: Vec<String>,
}

/// What was decided so far.
struct Decided<'a> {
    purpose: Purpose,
    place: &'a Path,
    user: Owner,
    action: Action,
    stored: &'a StoredBackup,
    plan: &'a RecoveryPlan,
}

impl Decided<'_> {
    fn configuration(&self, files: &RestoredFiles, home: &Home) -> Configuration {
        let main = home.outside().map_or_else(|| self.place.join("postgresql.conf"), Path::to_owned);
        Configuration::read(files, &main, &self.place.join(layout::AUTO_CONF))
    }

    /// The files that the restore writes itself, by purpose.
    fn own_files(&self, command: String, seen: &Seen, installed: &Installed, now: Timestamp) -> Result<Own> {
        let (small, control, catalogue) = (&seen.small, &seen.parsed, seen.catalogue.as_ref());
        match self.purpose {
            Purpose::Replace => {
                self.replacement(command, small, seen.auto_conf.as_deref(), control, catalogue)
            }
            Purpose::Copy => self.copy(command, small, control, catalogue, installed, now),
        }
    }

    fn replacement(
        &self,
        command: String,
        small: &RestoredFiles,
        auto_conf: Option<&[u8]>,
        control: &ControlFile,
        catalogue: Option<&Catalogue>,
    ) -> Result<Own> {
        let home = outside::home(catalogue, self.place);
        let mut held = RestoredFiles::default();
        held.extend_from(small);
        held.add_home(&home);
        // An old one in the place is not the backup's.
        held.add(self.place.join(layout::AUTO_CONF), auto_conf.unwrap_or_default().to_vec());
        let conf = self.configuration(&held, &home);
        refuse_always(&conf)?;
        refuse_leftovers(&conf, &self.place.join(layout::AUTO_CONF))?;
        let mut warnings = conf.unclear.clone();
        if auto_conf.is_none() {
            warnings.push(
                "the backup holds no postgresql.auto.conf: the restored one sets what recovery needs and nothing else"
                    .to_owned(),
            );
        }
        if let Home::Missing(main) = &home {
            warnings.push(format!(
                "the configuration {} is not here, and the backup does not hold its text",
                main.display()
            ));
        }
        if let (Home::Kept(main), Some(dir)) = (&home, conf.value("data_directory"))
            && Path::new(dir) != self.place
        {
            // The server that this configuration starts would be the old one, past its damage.
            return Err(Error::refused(format!(
                "{} says data_directory = {dir}, but the restore goes into {}",
                main.display(),
                self.place.display()
            ))
            .hint("restore into that directory, change data_directory, or restore with --copy"));
        }
        let too_small = conf.too_small(&control.required);
        for (name, value) in &too_small {
            warnings.push(format!(
                "{name} is set to {value} for recovery: the configuration has less than the primary had"
            ));
        }
        let mut extra = settings::replacement_extras(too_small);
        extra.extend(settings::demanded(self.plan, self.stored.verdict()));
        let settings = settings::recovery(self.plan, command, self.action, extra);
        let files = settings::replacement(&settings, auto_conf.unwrap_or_default())?;
        Ok(Own { files, home, settings, warnings })
    }

    fn copy(
        &self,
        command: String,
        small: &RestoredFiles,
        control: &ControlFile,
        catalogue: Option<&Catalogue>,
        installed: &Installed,
        now: Timestamp,
    ) -> Result<Own> {
        debug_assert!(self.purpose == Purpose::Copy);
        let from_files = || {
            let conf = self.configuration(small, &Home::DataDir);
            conf.settings.into_iter().map(|s| (s.name, s.value)).collect()
        };
        let theirs: Vec<(String, String)> = catalogue.map_or_else(from_files, |c| {
            c.settings.iter().map(|s| (s.name.clone(), s.value.clone())).collect()
        });
        let source =
            CopySource { control, major: self.stored.verdict().major, settings: &theirs, host: installed };
        let user = host::user_name(self.user.uid);
        let os_users: Vec<&str> = user.as_deref().into_iter().chain(["root"]).collect();
        let own_socket = self.place.join(SOCKET_DIR);
        let socket_dir = if own_socket.as_os_str().len() <= MAX_SOCKET_DIR {
            own_socket.as_path()
        } else {
            Path::new("/tmp")
        };
        let log_dir = self.place.join(LOG_DIR);
        let superuser = catalogue.and_then(|c| c.superuser.as_deref());
        let superuser = superuser.filter(|role| *role != "postgres" && copyconf::is_role_of_a_map(role));
        let roles: Vec<&str> = ["postgres"].into_iter().chain(superuser).collect();
        let place = CopyPlace {
            port: host::free_port(),
            socket_dir,
            log_dir: &log_dir,
            os_users: &os_users,
            roles: &roles,
        };
        let repository = self.stored.system().repository();
        let origin = Origin {
            cluster: repository.cluster().as_str(),
            system_identifier: self.stored.verdict().system.to_string(),
            backup: self.stored.verdict().id.as_str(),
            made_at: now.to_string(),
            note: Origin::NOTE,
        };
        let extra = settings::demanded(self.plan, self.stored.verdict());
        let settings = settings::recovery(self.plan, command, self.action, extra);
        let (files, left_out) = settings::copy(&settings, &source, &place, &origin)?;
        let warnings =
            left_out.into_iter().map(|what| format!("not taken over from the source: {what}")).collect();
        Ok(Own { files, home: Home::DataDir, settings, warnings })
    }
}

/// Directory of a copy's socket, in its data directory.
pub const SOCKET_DIR: &str = "pitr.socket";
/// Directory of a copy's log.
pub const LOG_DIR: &str = "log";
/// Longest directory in which a socket has room for its name.
const MAX_SOCKET_DIR: usize = 90;

/// `archive_mode = always` would archive the segments that recovery restores, padded tails among them (RECOVERY.md 12).
fn refuse_always(conf: &Configuration) -> Result<()> {
    match conf.setting("archive_mode") {
        Some(s) if s.value.eq_ignore_ascii_case("always") => Err(Error::refused(format!(
            "archive_mode = always in {} (line {}) would archive what recovery restores",
            s.file.display(),
            s.line
        ))
        .hint("restore with --copy, set archive_mode = on in the configuration, or take a backup with it set to on")),
        _ => Ok(()),
    }
}

/// Targets outside `postgresql.auto.conf` would stay after the restore's own settings are gone.
fn refuse_leftovers(conf: &Configuration, auto_conf: &Path) -> Result<()> {
    let left = conf.settings.iter().filter(|s| s.file != auto_conf).find(|s| {
        let kind = ItemKind::Setting { name: s.name.clone(), value: s.value.clone() };
        !recovery::leftovers(&[Item { line: s.line, kind }]).is_empty()
    });
    match left {
        Some(s) => Err(Error::refused(format!(
            "{} sets {} (line {}), a leftover of an earlier recovery",
            s.file.display(),
            s.name,
            s.line
        ))
        .hint("remove the line from the source's configuration and take a backup, or restore with --copy")),
        None => Ok(()),
    }
}

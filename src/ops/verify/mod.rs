//! `verify`: is everything there that a restore would need, and is it what was written?
//!
//! ```text
//!  survey      one listing of the cluster's folder            unknown names, leftovers
//!  documents   every small object, bit for bit                intents, verdicts, identity, floor
//!  backups     names, sizes; manifest; packs ─► packs         digest of the body, of every frame; --decode: CRC of every file
//!                                      └─► locked             without its key: digest of the body
//!  wal         bodies ─► chain                                header, digest, tag; record to record; --decode: every record's CRC
//!  continuity  what must be there against what is             gaps, forks, the floor
//!  effect      ─► restore points: what each fault costs, what still works
//! ```
//! Invariants: nothing is written; a store that does not answer ends the look and is never damage (I8); damage is read twice before
//! it is called so; memory does not depend on the size of the cluster: bodies in flight are bounded ([`budget`]), manifests are
//! read frame by frame. `--decode` holds the file list of one backup, as a restore does.

mod backups;
pub mod budget;
mod chain;
mod continuity;
mod documents;
mod effect;
pub mod finding;
mod folder;
mod locked;
mod packs;
pub mod sample;
pub mod survey;
mod wal;

pub use finding::{Affected, Fault, Finding, Findings, Lost, Subject};
pub use sample::Sample;

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ops::Progress;
use crate::ops::plan::Window;
use crate::repo::manifest::Manifest;
use crate::repo::objects::Identity;
use crate::repo::path::{self, BackupId, BackupObject, Sealing, SystemObject};
use crate::repo::{Keyring, RepoError, Repository};
use crate::seal::Epoch;
use crate::store::StoreErrorKind;
use crate::wal::SystemId;

use survey::Survey;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// One backup alone, with the WAL that makes it consistent.
    pub backup: Option<BackupId>,
    /// Which bodies are read.
    pub sample: Sample,
    /// Decode every WAL record, and compare every file with PostgreSQL's checksum.
    pub decode: bool,
    /// Bodies read at a time.
    pub jobs: usize,
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Objects that are there.
    pub listed: u64,
    /// Objects whose bytes were read and checked.
    pub read: u64,
    /// Their size.
    pub bytes: u64,
}

/// A backup, after the look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Its id.
    pub id: BackupId,
    /// Everything it needs is there, as far as was looked.
    pub restorable: bool,
    /// Pages were damaged when it was taken: it is what the server had, and is restored only by its name.
    pub corrupt: bool,
}

/// What nobody needs any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Whose it is: a backup, or WAL.
    pub of: String,
    /// Why it is left over.
    pub why: &'static str,
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// WAL that an operator accepted as damaged, with a backup behind it: known, and no new loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The object.
    pub object: String,
    /// What it costs.
    pub lost: Vec<Lost>,
}

/// Objects of one epoch that no identity at hand opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unopened {
    /// How many.
    pub objects: u64,
    /// The first that was met.
    pub first: String,
}

/// What was found in the folder of one system identifier.
#[derive(Debug)]
pub struct Folder {
    /// Whose it is.
    pub system: SystemId,
    /// Its identity, if it can be read.
    pub identity: Option<Identity>,
    /// It is encrypted and no key was at hand: of what it holds, only that no byte changed was seen.
    pub locked: bool,
    /// Without a key, backups of which packs were due that nothing could be held against: their verdicts have no digests.
    pub unread: Vec<BackupId>,
    /// An identity is at hand, and what these epochs sealed it does not open: looked at as without a key.
    pub unopened: BTreeMap<Epoch, Unopened>,
    /// It is encrypted, and nothing but the repository itself vouches for its seal key.
    pub unverified: bool,
    /// How much was looked at.
    pub extent: Extent,
    /// What is wrong.
    pub findings: Findings,
    /// Backups that exist, oldest first.
    pub backups: Vec<Backup>,
    /// What can be restored, per timeline.
    pub windows: Vec<Window>,
    /// What nobody needs.
    pub leftovers: Vec<Leftover>,
    /// Gaps that were accepted.
    pub known: Vec<Known>,
}

/// What was found in one repository.
#[derive(Debug)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// A folder for each system identifier.
    pub folders: Vec<Folder>,
    /// What is wrong with what belongs to no folder.
    pub findings: Findings,
    /// Names that are not pitr's, the first of them.
    pub unknown: Vec<String>,
    /// How many there are.
    pub unknown_count: u64,
    /// Why the look ended before all was seen.
    pub stopped: Option<Error>,
}

impl Report {
    /// Everything that is wrong.
    pub fn count(&self) -> u64 {
        let folders = self.folders.iter().map(|folder| folder.findings.count);
        folders.fold(self.findings.count, u64::saturating_add)
    }
}

/// Looks at everything that `repository` holds of its cluster. Dropped, it leaves nothing behind.
///
/// # Errors
/// If nothing could be seen: kind `NotFound` if there is no such cluster or backup, else as the store answers. What ends the look
/// later is [`Report::stopped`].
pub async fn verify(repository: &Repository, request: &Request, progress: &dyn Progress) -> Result<Report> {
    progress.begin("listing", None);
    let survey = Survey::read(repository).await?;
    let chosen: Vec<(&SystemId, &survey::Listed)> = survey
        .folders
        .iter()
        .filter(|(_, listed)| request.backup.as_ref().is_none_or(|id| holds(listed, id)))
        .collect();
    match (&request.backup, chosen.is_empty()) {
        (_, false) => {}
        (Some(id), true) => {
            return Err(
                Error::not_found(format!("there is no backup {id}")).hint("`pitr info` lists the backups")
            );
        }
        (None, true) => return Err(crate::ops::info::no_cluster(repository)),
    }
    needs_no_key(repository, request, &chosen).await?;
    let mut report = Report {
        name: repository.name().to_owned(),
        url: repository.store().url().to_string(),
        folders: Vec::new(),
        findings: Findings::default(),
        unknown: survey.unknown.clone(),
        unknown_count: survey.unknown_count,
        stopped: None,
    };
    let looked = look(repository, request, &survey, &chosen, &mut report, progress).await;
    progress.end();
    report.stopped = looked.err();
    Ok(report)
}

/// Whoever asks for what only a key shows must not be told "no damage found" without it.
async fn needs_no_key(
    repository: &Repository,
    request: &Request,
    chosen: &[(&SystemId, &survey::Listed)],
) -> Result<()> {
    let has_key = repository.keys().is_some_and(Keyring::has_identity);
    for (system, _) in chosen.iter().filter(|_| request.decode && !has_key) {
        if repository.sealing(**system).await? == Some(Sealing::Sealed) {
            let epochs = repository.epochs_there(**system).await;
            let text = format!(
                "repository {} is encrypted{epochs}, and --decode reads what is in it",
                repository.name()
            );
            return Err(
                Error::key(text).hint("give an identity: identity_file under [keys], or --identity FILE")
            );
        }
    }
    Ok(())
}

fn holds(listed: &survey::Listed, id: &BackupId) -> bool {
    let first = SystemObject::Backup(id.clone(), BackupObject::Intent);
    listed
        .range(first..)
        .next()
        .is_some_and(|(o, _)| matches!(o, SystemObject::Backup(found, _) if found == id))
}

async fn look(
    repository: &Repository,
    request: &Request,
    survey: &Survey,
    chosen: &[(&SystemId, &survey::Listed)],
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<()> {
    if request.backup.is_none() {
        formats(repository, survey, &mut report.findings).await?;
    }
    for (system, listed) in chosen {
        report.folders.push(Folder {
            system: **system,
            identity: None,
            locked: false,
            unread: Vec::new(),
            unopened: BTreeMap::new(),
            unverified: false,
            extent: Extent { listed: u64::try_from(listed.len()).unwrap_or(u64::MAX), ..Extent::default() },
            findings: Findings::default(),
            backups: Vec::new(),
            windows: Vec::new(),
            leftovers: Vec::new(),
            known: Vec::new(),
        });
        if let Some(folder) = report.folders.last_mut() {
            folder::look(repository, request, listed, folder, progress).await?;
            name_markers(repository, &mut folder.findings).await;
        }
    }
    Ok(())
}

/// Of what is missing, says what a delete marker hides: its version may be brought back.
async fn name_markers(repository: &Repository, findings: &mut Findings) {
    let missing = findings.kept.iter_mut().filter(|finding| finding.fault != Fault::Damaged);
    for finding in missing {
        let found = repository.store().head(&finding.object).await;
        if found.is_err_and(|error| error.kind == StoreErrorKind::Hidden) {
            finding
                .what
                .push_str("; deleted by a delete marker, its version may be brought back: docs/roles.md");
        }
    }
}

/// The marks that keep a pitr away which would not understand what is here.
async fn formats(repository: &Repository, survey: &Survey, findings: &mut Findings) -> Result<()> {
    let key = |n| path::format_key(repository.cluster(), n);
    if survey.formats.is_empty() {
        let what = "nothing keeps an older pitr from writing here";
        findings.add(Fault::Missing, key(crate::repo::REPOSITORY_FORMAT), what, Subject::Aside);
    }
    for n in &survey.formats {
        match twice(|| repository.check_format_mark(*n)).await {
            Ok(true) => {}
            Ok(false) => {
                let what = "it went while it was looked at";
                findings.add(Fault::Missing, key(*n), what, Subject::Aside);
            }
            Err(e) if e.is_damage() => findings.add(Fault::Damaged, key(*n), e.to_string(), Subject::Aside),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// What a read may find not to be there.
trait There {
    fn is_there(&self) -> bool;
}

impl There for bool {
    fn is_there(&self) -> bool {
        *self
    }
}

impl<T> There for Option<T> {
    fn is_there(&self) -> bool {
        self.is_some()
    }
}

impl There for Manifest {
    fn is_there(&self) -> bool {
        true
    }
}

/// Does `read` again if it found damage, or nothing where a listing has something: what the store holds and what one read brought are
/// not the same, and one denial proves no loss.
async fn twice<T: There, F: Future<Output = Result<T, RepoError>>>(
    read: impl Fn() -> F,
) -> Result<T, RepoError> {
    match read().await {
        Ok(found) if !found.is_there() => read().await,
        Err(error) if error.is_damage() || matches!(error, RepoError::Missing { .. }) => read().await,
        done => done,
    }
}

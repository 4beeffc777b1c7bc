//! Findings: what is wrong, and what it costs.
//!
//! A finding names an object and says what is wrong with it; its subject says what that object is for. Only when all is known,
//! `effect` turns subjects into restore points: which backups no longer restore, and which moments are lost.

use std::collections::BTreeSet;

use crate::ops::plan::Moment;
use crate::repo::path::BackupId;
use crate::wal::{SegmentNo, TimelineId};

/// Findings that are kept with all they say; more are only counted. A repository with so many has one cause.
pub const MAX_FINDINGS: usize = 1000;

/// What kind of fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An object that another one vouches for is not there.
    Missing,
    /// What is stored is not what was written.
    Damaged,
    /// WAL is missing between what is there.
    Gap,
}

impl Fault {
    /// A word for JSON and people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Damaged => "damaged",
            Self::Gap => "gap",
        }
    }
}

/// What an object is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The whole folder: no restore is planned without it.
    Folder,
    /// Backups that need it.
    Backups(BTreeSet<BackupId>),
    /// A backup that restores without it.
    Extra(BackupId),
    /// WAL, both ends included.
    Wal {
        /// The timeline.
        timeline: TimelineId,
        /// First segment.
        first: SegmentNo,
        /// Last segment.
        last: SegmentNo,
    },
    /// The history of a timeline, without which recovery does not find the way there.
    History(TimelineId),
    /// Nothing that a restore reads.
    Aside,
}

/// A backup that a finding touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// The backup.
    pub id: BackupId,
    /// It can still be restored.
    pub restorable: bool,
}

/// Moments that can no longer be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// On the way to this timeline.
    pub timeline: TimelineId,
    /// The last moment before them that can be reached; `None` if there is none.
    pub from: Option<Moment>,
    /// The first one after them, or where the archive ends; `None` if that is not known.
    pub to: Option<Moment>,
    /// After them there is a moment that can be reached; else nothing follows.
    pub resumes: bool,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of fault.
    pub fault: Fault,
    /// The key of the object, or of the first one.
    pub object: String,
    /// The key of the last one, of several in a row.
    pub through: Option<String>,
    /// What is wrong with it, in words.
    pub what: String,
    /// What it is for.
    pub subject: Subject,
    /// The backups it touches.
    pub affected: Vec<Affected>,
    /// The moments it costs.
    pub lost: Vec<Lost>,
}

/// All findings of one folder.
#[derive(Debug, Default)]
pub struct Findings {
    /// The first [`MAX_FINDINGS`].
    pub kept: Vec<Finding>,
    /// How many there are.
    pub count: u64,
}

impl Findings {
    /// Takes up a finding.
    pub(super) fn add(&mut self, fault: Fault, object: String, what: impl Into<String>, subject: Subject) {
        self.add_range(fault, object, None, what, subject);
    }

    /// Takes up a finding about several objects in a row.
    pub(super) fn add_range(
        &mut self,
        fault: Fault,
        object: String,
        through: Option<String>,
        what: impl Into<String>,
        subject: Subject,
    ) {
        self.count += 1;
        if self.kept.len() < MAX_FINDINGS {
            let (affected, lost) = (Vec::new(), Vec::new());
            self.kept.push(Finding { fault, object, through, what: what.into(), subject, affected, lost });
        }
    }

    /// Whether anything of what was found is about the backup called `id`.
    pub(super) fn concern(&self, id: &BackupId) -> bool {
        self.kept.iter().any(|finding| match &finding.subject {
            Subject::Backups(ids) => ids.contains(id),
            Subject::Extra(extra) => extra == id,
            Subject::Folder | Subject::Wal { .. } | Subject::History(_) | Subject::Aside => false,
        })
    }

    /// A backup more that needs `object`. False: nothing was found wrong with it.
    pub(super) fn also_needed(&mut self, object: &str, id: &BackupId) -> bool {
        let found = self.kept.iter_mut().find(|finding| finding.object == object);
        if let Some(Finding { subject: Subject::Backups(ids), .. }) = found {
            ids.insert(id.clone());
            return true;
        }
        false
    }
}

/// The subject of an object that one backup needs.
pub(super) fn needed_by(id: &BackupId) -> Subject {
    Subject::Backups(BTreeSet::from([id.clone()]))
}

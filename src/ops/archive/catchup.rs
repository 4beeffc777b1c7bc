//! What one repository lacks and another one has, copied: how an optional repository gets what it missed.
//!
//! ```text
//!  histories ─► per timeline, log by log: listed in both ─► in the source, not in the target ─► GET, digest, the same bytes PUT
//!                                                             │ older than all the target has, or given up there: not owed
//! ```
//! Invariants: nothing is put under a timeline whose history is not the same in both; an object that is damaged in the source goes nowhere;
//! objects are put as [`System::put_wal`] puts everything, so what is stored is never replaced, and copying twice or beside a push is
//! harmless. Between repositories of one kind the bytes stay as they are; an encrypted one seals what comes from one that is not, and the
//! other way round nothing is copied. Memory is one log's names, and the objects under way. REPOSITORY.md 7.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::error::{Error, Kind, Result};
use crate::repo::archive::Stored;
use crate::repo::objects::Floor;
use crate::repo::transfer::{WalPlace, place_of};
use crate::repo::walobject::WalEnd;
use crate::repo::{Repository, System};
use crate::wal::{SystemId, TimelineId, WalFileName};

/// Bytes of segments under way at once, and the most files.
const AT_ONCE_BYTES: u64 = 64 << 20;
const AT_ONCE: u64 = 4;
/// Most files told of that could not be copied.
const MOST_LEFT: usize = 20;

/// What came of it.
#[derive(Debug, Default)]
pub struct CaughtUp {
    /// Files copied.
    pub files: u64,
    /// Bytes of their objects.
    pub bytes: u64,
    /// What could not be copied from any repository, and why: at most 20 of them.
    pub left: BTreeMap<WalFileName, String>,
}

/// Copies to `target` the WAL of `system` that it lacks and one of `sources` has, in their order. `tell` is given the number of files so far.
///
/// # Errors
/// The first failure of the target or of a source; what was copied by then stays. Damage and conflicts are no failure but what is left.
pub async fn catch_up(
    sources: &[&Repository],
    target: &Repository,
    system: SystemId,
    tell: impl Fn(u64),
) -> Result<CaughtUp> {
    let mut done = CaughtUp::default();
    // The agent stays, and its directories may be mounted again.
    let target = target.anew();
    target.check_writable().await?;
    let target = target.open(system).await?;
    // Without any WAL there is no backup either, and nothing that older WAL could be of use for.
    let Some(oldest) = target.oldest_wal().await? else { return Ok(done) };
    let floor = target.floor().await?;
    let mut failure = None;
    for source in sources {
        let copied = async {
            let source = source.open(system).await?;
            let copying = Copying { source, target: &target, oldest, floor: floor.as_ref() };
            copying.run(&mut done, &tell).await
        };
        if let Err(e) = copied.await {
            failure = failure.or(Some(e.context(format!("copying from repository {}", source.name()))));
        }
    }
    failure.map_or(Ok(done), Err)
}

/// One source, one target.
struct Copying<'a> {
    source: System,
    target: &'a System,
    oldest: WalPlace,
    floor: Option<&'a Floor>,
}

/// What one file came to.
enum Copied {
    /// Bytes of the object.
    Stored(u64),
    Left(String),
}

impl CaughtUp {
    fn note(&mut self, name: WalFileName, copied: Copied) {
        match copied {
            Copied::Stored(bytes) => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(bytes);
                // Another source may have had it damaged.
                self.left.remove(&name);
            }
            Copied::Left(why) if self.left.len() < MOST_LEFT => {
                self.left.insert(name, why);
            }
            Copied::Left(_) => {}
        }
    }
}

impl Copying<'_> {
    async fn run(&self, done: &mut CaughtUp, tell: &impl Fn(u64)) -> Result<()> {
        let (ours, theirs) = (self.source.identity(), self.target.identity());
        if ours.segment_size != theirs.segment_size || (ours.sealed && !theirs.sealed) {
            return Err(Error::refused(format!(
                "repositories {} and {} were initialised with other segment sizes, or only the first of them encrypted",
                self.source.repository().name(),
                self.target.repository().name()
            ))
            .hint("what is encrypted is never copied to where it would not be"));
        }
        let timelines = self.source.timelines().await?;
        let mut apart = BTreeSet::new();
        for (timeline, _) in timelines.iter().filter(|(_, found)| found.history) {
            if let Some(why) = self.copy_history(*timeline, done).await? {
                apart.insert(*timeline);
                done.note(WalFileName::History(*timeline), Copied::Left(why));
            }
        }
        for (timeline, _) in
            timelines.iter().filter(|(t, found)| found.first_wal.is_some() && !apart.contains(t))
        {
            self.copy_timeline(*timeline, done, tell).await?;
        }
        Ok(())
    }

    /// Why WAL of the timeline must not be copied, if so.
    async fn copy_history(&self, timeline: TimelineId, done: &mut CaughtUp) -> Result<Option<String>> {
        let name = WalFileName::History(timeline);
        let theirs = match self.target.history(timeline).await {
            Ok(theirs) => theirs,
            Err(e) => return only_damage(e.into()).map(Some),
        };
        let ours = match self.source.history(timeline).await {
            Ok(ours) => ours,
            Err(e) => return only_damage(e.into()).map(Some),
        };
        match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours != theirs => Ok(Some(format!(
                "{name} is not the same in repository {}: two servers were promoted to timeline {timeline}",
                self.source.repository().name()
            ))),
            (_, Some(_)) | (None, None) => Ok(None),
            (Some(ours), None) if !self.target.put_ancestry(&ours).await? => Ok(Some(format!(
                "{name} has other parents in repository {}: two servers were promoted to timeline {timeline}",
                self.target.repository().name()
            ))),
            (Some(_), None) => match self.copy(name).await? {
                Copied::Left(why) => Ok(Some(why)),
                stored @ Copied::Stored(_) => {
                    done.note(name, stored);
                    Ok(None)
                }
            },
        }
    }

    async fn copy_timeline(
        &self,
        timeline: TimelineId,
        done: &mut CaughtUp,
        tell: &impl Fn(u64),
    ) -> Result<()> {
        let most = (AT_ONCE_BYTES / self.source.identity().segment_size.bytes()).clamp(1, AT_ONCE);
        let most = usize::try_from(most).unwrap_or(1);
        let mut under_way = FuturesUnordered::new();
        let mut account = |(name, copied): (WalFileName, Result<Copied>)| -> Result<()> {
            done.note(name, copied?);
            tell(done.files);
            Ok(())
        };
        for log in self.source.logs(timeline).await? {
            if log.log() < self.oldest.0 {
                continue;
            }
            let there = self.target.files_of_log(log).await?;
            for (name, copies) in self.source.files_of_log(log).await? {
                let has = there.get(&name).copied().unwrap_or(0);
                if has >= copies || !self.is_owed(name) {
                    continue;
                }
                // A later copy of what was stored whole in the first place would be of no use.
                if has > 0 && !self.may_grow(name).await? {
                    continue;
                }
                while under_way.len() >= most {
                    under_way.next().await.map_or(Ok(()), &mut account)?;
                }
                under_way.push(async move { (name, self.copy(name).await) });
            }
        }
        while let Some(copied) = under_way.next().await {
            account(copied)?;
        }
        Ok(())
    }

    fn is_owed(&self, name: WalFileName) -> bool {
        place_of(name).is_none_or(|place| place >= self.oldest)
            && match name {
                WalFileName::Segment(segment) => self.floor.is_none_or(|floor| floor.keeps(segment)),
                WalFileName::Partial(_) | WalFileName::History(_) | WalFileName::BackupHistory(..) => true,
            }
    }

    /// Whether what the target has may have a longer copy beside it.
    async fn may_grow(&self, name: WalFileName) -> Result<bool> {
        let WalFileName::Segment(segment) = name else { return Ok(false) };
        let info = self.target.segment_header(segment).await?;
        Ok(info.is_none_or(|header| header.valid.is_some_and(|valid| valid.end.may_have_longer_copy())))
    }

    async fn copy(&self, name: WalFileName) -> Result<Copied> {
        let fetched = match self.source.fetch_wal(name).await {
            Ok(Some(fetched)) => fetched,
            // Retention took it meanwhile.
            Ok(None) => {
                return Ok(Copied::Left(format!("{name} is not in repository {} any more", self.from())));
            }
            Err(e) => return only_damage(e.into()).map(Copied::Left),
        };
        let object = if self.target.identity().sealed && !self.source.identity().sealed {
            let work = tokio::task::spawn_blocking(move || fetched.for_sealing());
            work.await.map_err(|e| Error::failed(format!("reading {name} was cut off")).source(e))?
        } else {
            fetched.verbatim()
        };
        let object = match object {
            Ok(object) => object,
            Err(e) => return only_damage(e.into()).map(Copied::Left),
        };
        // As a push does: whoever lists the segment must know that its header has to be looked at.
        if let WalFileName::Segment(segment) = name
            && object.header.valid.is_some_and(|valid| valid.end == WalEnd::Damaged)
            && let Some(gap) = self.source.accepted_gap(segment).await?
        {
            self.target.record_gap(&gap).await?;
        }
        match self.target.put_wal(&object).await {
            Ok(Stored::Conflict(_)) => Ok(Copied::Left(format!(
                "{name} is not the same in repository {}: other content is stored under its name",
                self.from()
            ))),
            Ok(_) => Ok(Copied::Stored(object.stored())),
            Err(e) => only_damage(e.into()).map(Copied::Left),
        }
    }

    fn from(&self) -> &str {
        self.source.repository().name()
    }
}

/// Damage of one object is told and passed over; anything else is a failure.
fn only_damage(error: Error) -> Result<String> {
    if matches!(error.kind(), Kind::Corrupt | Kind::Refused) { Ok(error.report()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::*;
    use crate::codec::{Compression, len_u64};
    use crate::repo::objects::{AcceptedGap, TimelineFloor};
    use crate::repo::path::Sealing;
    use crate::repo::walobject::tests::scan;
    use crate::repo::walobject::{Facts, WalObject, WalObjectBuilder};
    use crate::repo::{Keyring, NewIdentity};
    use crate::seal::{Identity, NamedRecipient};
    use crate::store::{Store, StoreOptions, StoreUrl};
    use crate::wal::scan::SegmentEnd;
    use crate::wal::{Lsn, PgMajor, SegmentName, SegmentNo, SegmentSize};

    const SYSTEM: SystemId = SystemId::new(7_301_234_567_890_123_456);
    const MIB: u64 = 1 << 20;

    async fn made(name: &str) -> System {
        let store = Store::open(&"memory:".parse::<StoreUrl>().unwrap(), &StoreOptions::default()).unwrap();
        let repository = Repository::new(store, name, "main".parse().unwrap(), true);
        let new = NewIdentity {
            system: SYSTEM,
            major: PgMajor::V15,
            segment_size: SegmentSize::new(MIB).unwrap(),
            sealing: Sealing::Plain,
        };
        repository.create_identity(new, Timestamp::UNIX_EPOCH).await.unwrap().0
    }

    fn segment(timeline: u32, n: u64) -> SegmentName {
        let size = SegmentSize::new(MIB).unwrap();
        SegmentName::new(TimelineId::new(timeline).unwrap(), SegmentNo::new(n), size)
    }

    fn object(system: &System, name: WalFileName, plain: &[u8], facts: Facts<'_>) -> WalObject {
        let compression = Compression::Zstd { level: 1 };
        let mut builder = WalObjectBuilder::new(system.asked(name), len_u64(plain), compression).unwrap();
        builder.push(plain).unwrap();
        builder.finish(facts).unwrap()
    }

    /// A segment of which `valid` bytes are WAL; `fill` tells contents apart.
    fn segment_object(system: &System, name: SegmentName, valid: u64, fill: u8) -> WalObject {
        let end = if valid == MIB { SegmentEnd::Full } else { SegmentEnd::Short };
        let mut scan = scan(valid, end);
        let start = name.number(SegmentSize::new(MIB).unwrap()).unwrap().start(scan.size);
        (scan.name, scan.start, scan.valid_to) = (name, start, start.saturating_add(valid));
        let mut plain = vec![fill; 1 << 20];
        plain[usize::try_from(valid).unwrap()..].fill(0);
        object(system, WalFileName::Segment(name), &plain, Facts::Scanned(&scan))
    }

    async fn store(system: &System, name: SegmentName, valid: u64, fill: u8) -> Stored {
        system.put_wal(&segment_object(system, name, valid, fill)).await.unwrap()
    }

    async fn store_history(system: &System, timeline: u32, text: &str) {
        let name = WalFileName::History(TimelineId::new(timeline).unwrap());
        system.put_wal(&object(system, name, text.as_bytes(), Facts::Unscanned)).await.unwrap();
    }

    /// Everything below `wal/`, with its bytes.
    async fn contents(system: &System) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        let store = system.repository().store();
        for listed in store.list(&system.keys().wal_dir()).await.unwrap() {
            let bytes = store.get(&listed.key).await.unwrap().unwrap();
            found.insert(listed.key.replacen(&system.keys().wal_dir(), "", 1), bytes.to_vec());
        }
        found
    }

    async fn run(sources: &[&System], target: &System) -> Result<CaughtUp> {
        let sources: Vec<&Repository> = sources.iter().map(|s| s.repository()).collect();
        catch_up(&sources, target.repository(), SYSTEM, |_| {}).await
    }

    #[tokio::test]
    async fn everything_since_the_oldest_that_is_there_is_copied_as_it_is() {
        let (source, target) = (made("local").await, made("cloud").await);
        for n in 1..10 {
            store(&source, segment(1, n), MIB, 7).await;
        }
        store(&source, segment(1, 5000), MIB, 7).await;
        store_history(&source, 2, "1\t0/900000\tx\n").await;
        for n in 9..12 {
            store(&source, segment(2, n), MIB, 8).await;
        }
        let partial = WalFileName::Partial(segment(1, 9));
        source.put_wal(&object(&source, partial, &[7; 1 << 20], Facts::Unscanned)).await.unwrap();
        let backup = WalFileName::BackupHistory(segment(1, 4), 0x28);
        source.put_wal(&object(&source, backup, b"START WAL LOCATION", Facts::Unscanned)).await.unwrap();

        let done = run(&[&source], &target).await.unwrap();
        assert_eq!(done.files, 0, "it has no WAL, so it is owed none");
        store(&target, segment(1, 3), MIB, 7).await;
        let done = run(&[&source], &target).await.unwrap();
        assert!(done.left.is_empty(), "{done:?}");
        let (mut wanted, there) = (contents(&source).await, contents(&target).await);
        for old in [
            "00000001/00000000/000000010000000000000001.wal",
            "00000001/00000000/000000010000000000000002.wal",
        ] {
            assert!(wanted.remove(old).is_some());
        }
        assert_eq!(there, wanted);
        assert_eq!(done.files, len_u64(&vec![0; wanted.len() - 1]));
        assert_eq!(run(&[&source], &target).await.unwrap().files, 0, "nothing is lacking any more");
    }

    #[tokio::test]
    async fn what_retention_gave_up_there_is_not_owed() {
        let (source, target) = (made("local").await, made("cloud").await);
        for n in 1..6 {
            store(&source, segment(1, n), MIB, 7).await;
        }
        store(&target, segment(1, 1), MIB, 7).await;
        let line = TimelineFloor { timeline: TimelineId::FIRST, first: segment(1, 4), keep: Vec::new() };
        target.raise_floor(|_| Some(vec![line.clone()]), Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(run(&[&source], &target).await.unwrap().files, 2);
        let there: Vec<String> = contents(&target).await.into_keys().collect();
        assert_eq!(there.len(), 3, "{there:?}");
    }

    #[tokio::test]
    async fn wal_of_a_timeline_that_is_another_one_there_is_left() {
        let (source, target) = (made("local").await, made("cloud").await);
        store(&source, segment(1, 1), MIB, 7).await;
        store(&target, segment(1, 1), MIB, 7).await;
        store_history(&source, 2, "1\t0/100100\tx\n").await;
        store_history(&target, 2, "1\t0/100200\tx\n").await;
        store(&source, segment(2, 1), MIB, 8).await;
        let before = contents(&target).await;
        let done = run(&[&source], &target).await.unwrap();
        assert_eq!(contents(&target).await, before);
        let why = &done.left[&WalFileName::History(TimelineId::new(2).unwrap())];
        assert!(why.contains("two servers were promoted to timeline 2"), "{why}");
    }

    #[tokio::test]
    async fn damage_goes_nowhere_and_another_source_heals_it() {
        let (source, other, target) = (made("local").await, made("third").await, made("cloud").await);
        for n in [1, 2, 4] {
            store(&source, segment(1, n), MIB, 7).await;
        }
        // An object with a flipped bit; and under one name another content.
        let mut bytes = segment_object(&source, segment(1, 3), MIB, 7).chunks.concat();
        *bytes.last_mut().unwrap() ^= 1;
        let key = source.keys().wal(WalFileName::Segment(segment(1, 3)));
        source.repository().store().create(&key, bytes::Bytes::from(bytes)).await.unwrap();
        store(&target, segment(1, 1), MIB, 7).await;
        store(&target, segment(1, 2), MIB, 9).await;
        let done = run(&[&source], &target).await.unwrap();
        assert_eq!(done.files, 1);
        let left: Vec<WalFileName> = done.left.keys().copied().collect();
        assert_eq!(left, [WalFileName::Segment(segment(1, 3))], "a name that is taken is not looked into");
        store(&other, segment(1, 3), MIB, 7).await;
        let done = run(&[&source, &other], &target).await.unwrap();
        assert!(done.files == 1 && done.left.is_empty(), "{done:?}");
    }

    #[tokio::test]
    async fn a_longer_copy_is_stored_beside_the_shorter_one() {
        let (source, target) = (made("local").await, made("cloud").await);
        store(&source, segment(1, 1), 4096, 7).await;
        store(&target, segment(1, 1), 4096, 7).await;
        assert_eq!(store(&source, segment(1, 1), MIB, 7).await, Stored::LongerCopy(2));
        // This one got the longer copy at once.
        store(&source, segment(1, 2), 4096, 7).await;
        store(&source, segment(1, 2), MIB, 7).await;
        store(&target, segment(1, 2), MIB, 7).await;
        let done = run(&[&source], &target).await.unwrap();
        assert_eq!((done.files, done.left.len()), (1, 0), "{done:?}");
        let there: Vec<String> = contents(&target).await.into_keys().collect();
        let name = |end: &str| format!("00000001/00000000/00000001000000000000000{end}.wal");
        assert_eq!(there, [name("1.2"), name("1"), name("2")]);
    }

    #[tokio::test]
    async fn an_accepted_segment_comes_with_the_record_of_its_gap() {
        let (source, target) = (made("local").await, made("cloud").await);
        store(&source, segment(1, 1), MIB, 7).await;
        store(&target, segment(1, 1), MIB, 7).await;
        let gap = AcceptedGap {
            segment: segment(1, 2),
            valid_to: Lsn::new(2 * MIB),
            damage: "a page is torn".to_owned(),
            nonce: crate::repo::nonce().unwrap(),
            created: Timestamp::UNIX_EPOCH,
            process: crate::repo::this_process(),
        };
        source.record_gap(&gap).await.unwrap();
        let name = WalFileName::Segment(segment(1, 2));
        source.put_wal(&object(&source, name, &[7; 1 << 20], Facts::Damaged(None))).await.unwrap();
        assert_eq!(run(&[&source], &target).await.unwrap().files, 1);
        assert_eq!(target.accepted_gap(segment(1, 2)).await.unwrap(), Some(gap));
        assert_eq!(contents(&target).await, contents(&source).await);
    }

    #[tokio::test]
    async fn an_encrypted_repository_seals_what_comes_from_one_that_is_not_and_gives_nothing_back() {
        let identities = [Identity::generate(), Identity::generate()];
        let recipient = |(name, identity): (&str, &Identity)| NamedRecipient {
            name: name.to_owned(),
            recipient: identity.recipient(),
        };
        let recipients = ["daily", "offline"].into_iter().zip(&identities).map(recipient).collect();
        let cluster = "main".parse().unwrap();
        let host = crate::ops::key::init(&cluster, recipients, Timestamp::UNIX_EPOCH).unwrap();
        let keys = Keyring::new(Some(host), vec![identities[0].clone()], None).unwrap();
        let store_of = |name| {
            let store =
                Store::open(&"memory:".parse::<StoreUrl>().unwrap(), &StoreOptions::default()).unwrap();
            Repository::new(store, name, cluster.clone(), true)
        };
        let sealed = store_of("vault").with_keys(Arc::new(keys), false);
        let new = NewIdentity {
            system: SYSTEM,
            major: PgMajor::V15,
            segment_size: SegmentSize::new(MIB).unwrap(),
            sealing: Sealing::Sealed,
        };
        let sealed = sealed.create_identity(new, Timestamp::UNIX_EPOCH).await.unwrap().0;
        let source = made("local").await;
        for n in 1..4 {
            store(&source, segment(1, n), MIB, 7).await;
        }
        store(&source, segment(1, 4), 4096, 7).await;
        store_history(&source, 2, "1\t0/400100\tx\n").await;
        store(&sealed, segment(1, 1), MIB, 7).await;
        let done = run(&[&source], &sealed).await.unwrap();
        assert_eq!((done.files, done.left.len()), (4, 0), "{done:?}");
        for n in 1..5 {
            let name = WalFileName::Segment(segment(1, n));
            let (ours, theirs) =
                (source.fetch_wal(name).await.unwrap(), sealed.fetch_wal(name).await.unwrap());
            let theirs = theirs.unwrap();
            assert!(theirs.header.key.is_some());
            assert_eq!(ours.unwrap().plain().unwrap(), theirs.plain().unwrap());
        }
        // What was sealed on the way is what a push would have stored.
        assert_eq!(store(&sealed, segment(1, 2), MIB, 7).await, Stored::AlreadyThere);
        assert_eq!(store(&sealed, segment(1, 4), MIB, 7).await, Stored::LongerCopy(2));
        let timeline = TimelineId::new(2).unwrap();
        assert_eq!(sealed.history(timeline).await.unwrap(), source.history(timeline).await.unwrap());

        let before = contents(&source).await;
        store(&sealed, segment(1, 5), MIB, 7).await;
        let error = run(&[&sealed], &source).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
        assert_eq!(contents(&source).await, before);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_named() {
        let source = made("local").await;
        store(&source, segment(1, 1), MIB, 7).await;
        let target = made("cloud").await;
        store(&target, segment(1, 1), MIB, 7).await;
        let nobody = {
            let url = "memory:".parse::<StoreUrl>().unwrap();
            let store = Store::open(&url, &StoreOptions::default()).unwrap();
            Repository::new(store, "nobody", "main".parse().unwrap(), true)
        };
        let error = catch_up(&[&nobody], target.repository(), SYSTEM, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("nobody"), "{error}");
        let error = catch_up(&[source.repository()], &nobody, SYSTEM, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains("nobody"), "{error}");
    }
}

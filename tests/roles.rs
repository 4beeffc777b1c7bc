//! Three roles on a bucket whose server enforces them: a writer that deletes nothing, a reader, an expirer; and what is left when
//! somebody takes the credentials of one. docs/roles.md says the same in words.
//!
//! The policies are those of `contrib/policies`, as they are. The server is `moto`, with signatures and policies on.

#![expect(clippy::disallowed_methods, reason = "scratch files of tests need no durability")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pitr::error::Kind;
use pitr::ops::restore::stored::StoredBackup;
use pitr::repo::Repository;
use pitr::repo::objects::Verdict;
use pitr::store::{Created, Store, StoreErrorKind};
use pitr::wal::Lsn;
use serde_json::Value;
use support::azurite::{ACCOUNT, Azurite};
use support::cluster::{Cluster, Install, as_server, give_to_server, scratch, setting};
use support::moto::{Bucket, Moto, URL, no_bypass, owner_policy, policy};
use support::site::{Answer, Site, SiteOptions, open, switch};

/// What is marked goes with the next run.
const AT_ONCE: &str = "retention = { window = \"1ms\", grace = \"0\" }\n";
const CONF: &str = "fsync = on\nautovacuum = off\n";
const OWNER: &str = "owner";
const WRITER: &str = "writer";
const READER: &str = "reader";
const PINNING: &str = "pinning";
const EXPIRER: &str = "expirer";

/// A server that archives into the bucket as the writer, and a configuration for each of the others.
struct World {
    site: Site,
    moto: Moto,
    /// Everything may be looked at with it, and nothing of what the test is about is done with it.
    owner: Store,
    expirer: Store,
}

impl World {
    fn new(moto: Moto) -> Result<Option<Self>> {
        let Some(install) = Install::find_or_skip(17) else { return Ok(None) };
        let place = scratch("pitr-roles-")?;
        let policies = [
            (OWNER, vec![owner_policy()]),
            (WRITER, vec![policy("writer")?]),
            (READER, vec![policy("reader")?]),
            (PINNING, vec![policy("reader")?, policy("reader-pins")?]),
            (EXPIRER, vec![policy("expirer")?]),
        ];
        let mut keys = Vec::new();
        for (name, policies) in &policies {
            keys.push((*name, moto.user(name, policies)?));
        }
        moto.enforce()?;
        let store = |wanted: &str| {
            let keys = keys.iter().find(|(name, _)| *name == wanted).context("a user")?;
            moto.store(&keys.1)
        };
        let (owner, expirer) = (store(OWNER)?, store(EXPIRER)?);
        let mut more = String::new();
        for (name, keys) in &keys {
            let settings = moto.settings(place.path(), name, keys)?;
            if *name == WRITER {
                more = settings + AT_ONCE;
            }
        }
        // `init` makes the settings with the writer's credentials, and the server archives with them.
        let options = SiteOptions { conf: CONF, ..SiteOptions::default() };
        let site = Site::at(&install, &options, place, URL, Some(&more))?;
        let text = fs::read_to_string(&site.config)?;
        for (name, _) in &keys {
            let config = site.place().join(format!("{name}.toml"));
            fs::write(&config, text.replace("writer.keys", &format!("{name}.keys")))?;
            give_to_server(&config)?;
        }
        Ok(Some(Self { site, moto, owner, expirer }))
    }

    /// `pitr ARGS` with somebody's credentials.
    fn ask(&self, who: &str, args: &[&str]) -> Result<Answer> {
        let mut command = as_server(self.site.program())?;
        command.current_dir(&self.site.cluster.data).arg("--config");
        command.arg(self.site.place().join(format!("{who}.toml"))).args(args);
        Answer::of(&mut command)
    }

    fn json(&self, who: &str, args: &[&str]) -> Result<Value> {
        let answer = self.ask(who, args)?;
        ensure!(answer.code == 0, "{who}: {args:?}: {answer:?}");
        serde_json::from_str(&answer.out).with_context(|| format!("{args:?}: {answer:?}"))
    }

    fn key(&self, rest: &str) -> Result<String> {
        Ok(format!("main/{}/{rest}", self.site.system()?))
    }

    fn segment_key(&self, name: &str) -> Result<String> {
        let (timeline, log) = (name.get(..8).context("a timeline")?, name.get(8..16).context("a log")?);
        self.key(&format!("wal/{timeline}/{log}/{name}.wal"))
    }

    /// Ends the segment and waits until the server says that it is archived; its name.
    fn archived(&self) -> Result<String> {
        self.site.cluster.psql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t VALUES (1)")?;
        switch(&self.site.cluster, |name| {
            let said = format!("SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver");
            Ok(self.site.cluster.psql(&said)? == "t")
        })
    }

    /// Damages a segment before it is archived, and accepts it as it is; its name.
    fn accepted(&self) -> Result<String> {
        let sql = |sql: &str| self.site.cluster.psql(sql);
        let command = sql("SHOW archive_command")?;
        let archive_with = |command: &str| -> Result<()> {
            sql(&format!("ALTER SYSTEM SET archive_command = '{}'", command.replace('\'', "''")))?;
            sql("SELECT pg_reload_conf()").map(drop)
        };
        archive_with("false")?;
        let at: Lsn = sql("SELECT pg_current_wal_insert_lsn()")?.parse()?;
        sql("INSERT INTO t VALUES (2)")?;
        let segment = sql("SELECT pg_walfile_name(pg_switch_wal())")?;
        let path = self.site.cluster.data.join("pg_wal").join(&segment);
        let file = fs::File::options().read(true).write(true).open(&path)?;
        let place = at.get() % file.metadata()?.len() + 40;
        let mut byte = [0];
        file.read_exact_at(&mut byte, place)?;
        file.write_all_at(&[!byte[0]], place)?;
        archive_with(&command)?;
        self.site.cluster.wait_for("SELECT last_failed_wal FROM pg_stat_archiver", &segment)?;
        self.ask(WRITER, &["accept", &segment, "--damaged"])?.expect(0, &[])?;
        self.archived()?;
        Ok(segment)
    }

    fn backup(&self) -> Result<String> {
        let done = self.json(WRITER, &["backup", "--full", "--json"])?;
        Ok(done["id"].as_str().context("an id")?.to_owned())
    }

    /// The names of all objects but the passing ones.
    async fn names(&self) -> Result<BTreeSet<String>> {
        let all = self.owner.list("").await?.into_iter().map(|info| info.key);
        Ok(all.filter(|key| !key.contains("/probe-")).collect())
    }

    /// The expirer expires until it has deleted that backup; the names that are left. How many runs that takes is not said: the
    /// bucket's clock has whole seconds, and within the one of the next backup's end this one is still needed.
    async fn expired(&self, id: &str) -> Result<BTreeSet<String>> {
        for _ in 0..20 {
            let report = self.json(EXPIRER, &["expire", "--json"])?;
            let left = self.names().await?;
            if !left.iter().any(|key| key.contains(id)) {
                ensure!(report.to_string().contains(id), "{report}");
                return Ok(left);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        bail!("{id} is still listed: {:?}", self.names().await?)
    }

    fn get(&self, who: &str, name: &str) -> Result<Answer> {
        let to = PathBuf::from("pg_wal/asked-for");
        self.ask(who, &["archive-get", name, &to.display().to_string()])
    }
}

fn world(bucket: Bucket) -> Result<Option<World>> {
    let Some(moto) = Moto::start(bucket)? else { return Ok(None) };
    World::new(if matches!(bucket, Bucket::Locked(_)) { moto.like_aws()? } else { moto })
}

#[tokio::test]
async fn the_writer_does_all_that_a_database_host_does_and_deletes_and_marks_nothing() -> Result<()> {
    let Some(world) = world(Bucket::Versions)? else { return Ok(()) };
    let segment = world.archived()?;
    let first = world.backup()?;
    let second = world.backup()?;
    let check = world.json(WRITER, &["check", "--json"])?;
    let said = check["findings"].to_string();
    ensure!(
        said.contains("nothing can be deleted, so main/probe-") && said.contains("it keeps versions"),
        "{said}"
    );
    ensure!(world.json(WRITER, &["info", "--json"])?.to_string().contains(&second));
    world.get(WRITER, &segment)?.expect(0, &[])?;
    // What an operator pinned elsewhere is his: the host neither releases nor replaces it, nor pins.
    world.ask(EXPIRER, &["pin", &second, "--reason", "audit"])?.expect(0, &[])?;
    for args in [&["pin", second.as_str(), "--reason", "x"][..], &["unpin", &second]] {
        world.ask(WRITER, args)?.expect(7, &["AccessDenied", "docs/roles.md"])?;
    }
    let before = world.names().await?;
    for args in [&["expire"][..], &["expire", "--backup", first.as_str()]] {
        world.ask(WRITER, args)?.expect(7, &["AccessDenied", "the expirer of docs/roles.md"])?;
    }
    let writer = fs::read_to_string(world.site.place().join("writer.keys"))?;
    let writer = world.moto.store(&writer)?;
    for key in &before {
        let error = writer.delete(key).await.err().with_context(|| key.clone())?;
        ensure!(error.kind == StoreErrorKind::Credentials, "{error:?}");
    }
    // Nor may he say that something may go, or that a pin was meant otherwise: expire would believe him.
    let pin = before.iter().find(|key| key.contains("/pins/operator-")).context("a pin")?;
    for key in [&world.key("floor/9.json")?, pin] {
        let put = writer.create(key, "x").await;
        ensure!(put.is_err_and(|error| error.kind == StoreErrorKind::Credentials), "{key}");
    }
    ensure!(world.names().await? == before);
    ensure!(!world.moto.versions("main")?.iter().any(|version| version.marker));
    Ok(())
}

#[tokio::test]
async fn the_reader_restores_and_whatever_writes_fails_and_names_the_page() -> Result<()> {
    let Some(world) = world(Bucket::Versions)? else { return Ok(()) };
    world.archived()?;
    let id = world.backup()?;
    let segment = world.archived()?;
    world.json(READER, &["info", "--json"])?;
    ensure!(world.json(READER, &["verify", "--json"])?["clean"] == true);
    world.get(READER, &segment)?.expect(0, &[])?;
    let before = world.names().await?;
    let file = format!("pg_wal/{segment}");
    let forced = [
        &["archive-push", file.as_str()][..],
        &["backup", "--full"],
        &["expire"],
        &["pin", id.as_str(), "--reason", "x"],
        &["init"],
        &["check"],
    ];
    for args in forced {
        let answer = world.ask(READER, args)?;
        let code = if args[0] == "check" { 1 } else { 7 };
        let said = format!("{}{}", answer.out, answer.err);
        ensure!(answer.code == code && said.contains("AccessDenied"), "{args:?}: {answer:?}");
        ensure!(said.contains("docs/roles.md"), "{args:?}: {answer:?}");
    }
    let restore = |who: &str| -> Result<(Cluster, Value)> {
        let copy = Cluster::around(&world.site.cluster.install)?;
        let target = copy.data.display().to_string();
        let done = world.json(who, &["restore", "--copy", "--target-dir", &target, "--json"])?;
        Ok((copy, done))
    };
    let (copy, done) = restore(READER)?;
    ensure!(done["unpinned"].as_str().is_some_and(|why| why.contains("AccessDenied")), "{done}");
    ensure!(world.names().await? == before, "a reader left something");
    open(&copy)?;
    ensure!(copy.psql("SELECT count(*) FROM t")? == "2");
    // With the second policy it pins, and releases the pin; nothing else.
    restore(PINNING)?;
    let made: Vec<_> = world.names().await?.difference(&before).cloned().collect();
    ensure!(made.len() == 2 && made.iter().all(|key| key.contains("/pins/reader-")), "{made:?}");
    world.ask(PINNING, &["archive-push", &file])?.expect(7, &["AccessDenied"])?;
    Ok(())
}

#[tokio::test]
async fn the_expirer_expires_and_reads_neither_backups_nor_wal() -> Result<()> {
    let Some(world) = world(Bucket::Versions)? else { return Ok(()) };
    world.archived()?;
    let (first, second) = (world.backup()?, world.backup()?);
    let segment = world.archived()?;
    let pack = world.key(&format!("backups/{second}/pack-00000.tar.zst"))?;
    for key in [&pack, &world.segment_key(&segment)?] {
        let error = world.expirer.get(key).await.err().context("it may not read that")?;
        ensure!(error.kind == StoreErrorKind::Credentials, "{error:?}");
    }
    let before = world.names().await?;
    let left = world.expired(&first).await?;
    ensure!(left.contains(&pack), "{left:?}");
    ensure!(left.len() < before.len());
    // What it deleted lies under markers, version for version.
    let gone = world.moto.versions(&world.key(&format!("backups/{first}/pack-"))?)?;
    ensure!(gone.iter().any(|v| !v.marker) && gone.iter().any(|v| v.marker), "{gone:?}");
    // Who asks for WAL that expired is told so, and not of markers.
    let old = before.difference(&left).find(|key| key.ends_with(".wal")).context("WAL expired")?;
    let name = old.rsplit('/').next().and_then(|file| file.strip_suffix(".wal")).context("a name")?;
    world.get(READER, name)?.expect(205, &["it has expired"])?;
    Ok(())
}

/// Whether a good copy of an accepted segment has come stands in a file that the expirer may not read. What needs that segment stays, all
/// else goes.
#[tokio::test]
async fn the_expirer_goes_on_after_damage_was_accepted_and_gives_up_nothing_for_it() -> Result<()> {
    let Some(world) = world(Bucket::Versions)? else { return Ok(()) };
    world.archived()?;
    let first = world.backup()?;
    let segment = world.accepted()?;
    let says = |report: &Value| report["repositories"][0]["systems"][0]["notes"].to_string();
    let kept = |report: &Value, id: &str| -> Result<Value> {
        let kept = report["repositories"][0]["systems"][0]["kept"].as_array().context("a list")?;
        Ok(kept.iter().find(|kept| kept["id"] == id).map(|kept| kept["reasons"].clone()).unwrap_or_default())
    };
    // The one backup there is was complete before: no doubt about it.
    let report = world.json(EXPIRER, &["expire", "--json"])?;
    ensure!(says(&report).contains(&segment) && says(&report).contains("may not read"), "{report}");
    ensure!(kept(&report, &first)?.to_string().contains("newest"), "{report}");
    // Who may read knows that it is damaged, and does not say so.
    let report = world.json(OWNER, &["expire", "--dry-run", "--json"])?;
    ensure!(!says(&report).contains(&segment), "{report}");
    let second = world.backup()?;
    world.archived()?;
    let left = world.expired(&first).await?;
    ensure!(left.iter().any(|key| key.contains(&second)), "{left:?}");
    // Nothing needs it any more, whatever is in it.
    let report = world.json(EXPIRER, &["expire", "--json"])?;
    ensure!(!says(&report).contains(&segment), "{report}");
    let left = world.names().await?;
    ensure!(!left.iter().any(|key| key.contains(&segment)), "{left:?}");
    Ok(())
}

/// A segment that somebody deleted in a bucket with versions is neither absent, which would open the database, nor lost.
#[tokio::test]
async fn a_delete_marker_is_doubt_and_its_version_is_brought_back() -> Result<()> {
    let Some(world) = world(Bucket::Versions)? else { return Ok(()) };
    world.archived()?;
    let id = world.backup()?;
    let segment = world.archived()?;
    let next = world.json(READER, &["info", "--json"])?;
    // One that never was is absent: the marker makes the difference.
    let size = world.site.segment_size()?;
    let name = pitr::wal::SegmentName::parse(&segment)?;
    let never =
        pitr::wal::SegmentName::new(name.timeline(), name.number(size)?.next().next(), size).to_string();
    world.get(READER, &never)?.expect(1, &[]).with_context(|| next.to_string())?;
    let key = world.segment_key(&segment)?;
    world.owner.delete(&key).await?;
    world.get(READER, &segment)?.expect(201, &["delete marker", "docs/roles.md"])?;
    let pack = world.key(&format!("backups/{id}/pack-00000.tar.zst"))?;
    world.owner.delete(&pack).await?;
    let verify = world.ask(READER, &["verify", "--json"])?;
    ensure!(verify.code == 6, "{verify:?}");
    let line = "deleted by a delete marker, its version may be brought back";
    ensure!(verify.out.contains(line) && verify.out.contains("pack-00000"), "{verify:?}");
    // As docs/roles.md says: the marker is a version, and deleting it brings back the one below.
    for key in [&key, &pack] {
        let marker = world.moto.versions(key)?.into_iter().find(|v| v.marker).context("a marker")?;
        let path = format!("bucket/{}?versionId={}", marker.key, marker.id);
        world.moto.as_owner(&["-X", "DELETE"], &path)?;
    }
    world.get(READER, &segment)?.expect(0, &[])?;
    ensure!(world.json(READER, &["verify", "--json"])?["clean"] == true);
    Ok(())
}

/// Who reads a backup while it goes is told that it expired, and of nothing else that is deleted.
#[tokio::test]
async fn a_backup_that_goes_while_it_is_read_has_expired_and_is_not_called_hidden() -> Result<()> {
    let Some(world) = world(Bucket::Versions)? else { return Ok(()) };
    world.archived()?;
    let (first, second) = (world.backup()?, world.backup()?);
    world.archived()?;
    let repository = Repository::new(world.owner.clone(), "cloud", "main".parse()?, true);
    let system = repository.open_current().await?.context("a cluster")?;
    let read = async |id: &str| -> Result<StoredBackup> {
        match system.verdict(&id.parse()?).await? {
            Some(Verdict::Complete(verdict)) => Ok(StoredBackup::new(system.clone(), *verdict)),
            other => bail!("{other:?}"),
        }
    };
    let (goes, stays) = (read(&first).await?, read(&second).await?);
    let image = goes.image().await?;
    let files = BTreeMap::from([(b"PG_VERSION".to_vec(), 3)]);
    goes.files(&image, &files).await?;
    world.expired(&first).await?;
    let manifest = goes.image().await.err().context("the manifest is gone")?;
    let pack = goes.files(&image, &files).await.err().context("the pack is gone")?;
    for error in [manifest, pack] {
        ensure!(error.kind() == Kind::NotFound && error.report().contains("has expired"), "{error:?}");
    }
    let manifest = world.key(&format!("backups/{second}/manifest.jsonl.zst"))?;
    world.owner.delete(&manifest).await?;
    let error = stays.image().await.err().context("it was deleted")?;
    // Of a marker moto speaks in answers to HEAD alone; S3 does here too, and then it is a doubt.
    ensure!(error.kind() != Kind::NotFound && !error.report().contains("has expired"), "{error:?}");
    Ok(())
}

/// In a bucket that locks every object, a cluster lives as elsewhere, `expire` included, and nothing that was stored is lost.
#[tokio::test]
async fn a_cluster_lives_in_a_bucket_with_object_lock_and_expire_leaves_every_version() -> Result<()> {
    let Some(world) = world(Bucket::Locked("COMPLIANCE"))? else { return Ok(()) };
    world.archived()?;
    let (first, _) = (world.backup()?, world.backup()?);
    let check = world.json(WRITER, &["check", "--json"])?.to_string();
    ensure!(check.contains("object lock: COMPLIANCE, 1 days for every new object"), "{check}");
    world.expired(&first).await?;
    let kept = world.moto.versions(&world.key(&format!("backups/{first}/"))?)?;
    let data: BTreeSet<_> = kept.iter().filter(|v| !v.marker).map(|v| &v.key).collect();
    ensure!(data.iter().any(|key| key.ends_with("pack-00000.tar.zst")), "{kept:?}");
    for version in kept.iter().filter(|v| !v.marker) {
        let path = format!("bucket/{}?versionId={}", version.key, version.id);
        ensure!(world.moto.as_owner(&["-X", "DELETE"], &path).is_err(), "{version:?} could be deleted");
    }
    ensure!(world.json(READER, &["verify", "--json"])?["clean"] == true);
    Ok(())
}

/// What `check --attack` found.
#[derive(Debug)]
struct Found {
    code: i32,
    verdict: String,
    why: String,
    /// What became of the object of each attempt.
    attempts: Vec<String>,
    /// The attempts of which something stays.
    left: Vec<String>,
}

/// What `check --attack` finds with these credentials.
fn attacked(moto: &Moto, policies: &[String]) -> Result<Found> {
    let keys = moto.user("attacker", policies)?;
    moto.enforce()?;
    let place = scratch("pitr-attack-")?;
    let settings = moto.settings(place.path(), "attacker", &keys)?;
    attack(place.path(), URL, &settings)
}

fn attack(place: &std::path::Path, url: &str, settings: &str) -> Result<Found> {
    let config = place.join("pitr.toml");
    fs::write(
        &config,
        format!("cluster = \"main\"\n[[repository]]\nname = \"r\"\nurl = \"{url}\"\n{settings}"),
    )?;
    give_to_server(&config)?;
    let ask = |json: &[&str]| {
        let mut command = as_server(env!("CARGO_BIN_EXE_pitr"))?;
        Answer::of(
            command.current_dir("/").arg("--config").arg(&config).args(["check", "--attack"]).args(json),
        )
    };
    let answer = ask(&["--json"])?;
    let report: Value = serde_json::from_str(&answer.out).with_context(|| format!("{answer:?}"))?;
    ensure!(report["schema"] == "pitr.check-attack.v1", "{report}");
    let found = &report["repositories"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let each = |tried: &Value| {
        format!("{} {} {}", text(&tried["tried"]), text(&tried["outcome"]), text(&tried["content"]))
    };
    let attempts = found["attempts"].as_array().context("attempts")?.iter().map(each).collect();
    let words = ask(&[])?;
    let (verdict, why) = (text(&found["verdict"]), text(&found["why"]));
    ensure!(words.code == answer.code && words.out.contains(&why), "{words:?}");
    let of_key = |key: &Value| text(key).split('-').skip(3).collect::<Vec<_>>().join("_");
    let left = found["left_behind"].as_array().context("keys")?.iter().map(of_key).collect();
    Ok(Found { code: answer.code, verdict, why, attempts, left })
}

fn expect(found: Found, code: i32, verdict: &str, attempts: &[&str]) -> Result<Found> {
    let as_expected = (found.code, found.verdict.as_str()) == (code, verdict) && found.attempts == attempts;
    ensure!(as_expected, "{found:?}");
    Ok(found)
}

/// Of an attempt on what no lock covers, where neither a marker nor a version may be deleted.
const NO_VERSION: &str = "delete_unlocked refused intact";
const NO_LOCK: &str = "shorten_retention not_tried intact";

#[tokio::test]
async fn who_has_the_writers_credentials_of_a_bucket_without_versions_can_overwrite_all() -> Result<()> {
    let Some(moto) = Moto::start(Bucket::Plain)? else { return Ok(()) };
    let all = [
        "overwrite done gone",
        "delete refused intact",
        "delete_version refused intact",
        "delete_unlocked not_tried intact",
        NO_LOCK,
    ];
    let found = expect(attacked(&moto.like_aws()?, &[policy("writer")?])?, 2, "destroyable", &all)?;
    ensure!(found.left.len() == all.len(), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn who_has_the_writers_credentials_of_a_bucket_with_versions_destroys_nothing() -> Result<()> {
    let Some(moto) = Moto::start(Bucket::Versions)? else { return Ok(()) };
    let all = [
        "overwrite done by_version",
        "delete refused intact",
        "delete_version refused intact",
        NO_VERSION,
        NO_LOCK,
    ];
    let found = expect(attacked(&moto.like_aws()?, &[policy("writer")?])?, 0, "survives", &all)?;
    ensure!(!found.why.contains("could not be tried"), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn who_has_the_expirers_credentials_of_a_bucket_with_versions_only_hides() -> Result<()> {
    let Some(moto) = Moto::start(Bucket::Versions)? else { return Ok(()) };
    let all = [
        "overwrite done by_version",
        "delete done by_version",
        "delete_version refused intact",
        "delete_unlocked refused by_version",
        NO_LOCK,
    ];
    let moto = moto.like_aws()?;
    let found = expect(attacked(&moto, &[policy("expirer")?])?, 0, "survives", &all)?;
    // What lies below a marker stays as much as what cannot be deleted.
    let left = ["overwrite", "delete", "delete_version", "delete_unlocked", "shorten_retention"];
    ensure!(found.left == left, "{found:?}");
    for key in moto.versions("main/probe-attack-")?.into_iter().filter(|version| !version.marker) {
        ensure!(left.iter().any(|name| key.key.ends_with(&name.replace('_', "-"))), "{key:?}");
    }
    Ok(())
}

/// Of a bucket with object lock the fresh objects of an attack are held. Who may delete versions destroys whatever is older.
#[tokio::test]
async fn who_may_delete_versions_destroys_all_that_object_lock_does_not_hold_now() -> Result<()> {
    let hides = ["overwrite done by_version", "delete done by_version"];
    let attempts = |rest: [&'static str; 3]| [&hides[..], &rest[..]].concat();
    let Some(moto) = Moto::start(Bucket::Versions)? else { return Ok(()) };
    let gone = attempts(["delete_version done gone", "delete_unlocked done intact", NO_LOCK]);
    expect(attacked(&moto.like_aws()?, &[owner_policy()])?, 2, "destroyable", &gone)?;

    let held =
        ["delete_version refused intact", "delete_unlocked done intact", "shorten_retention refused intact"];
    let Some(moto) = Moto::start(Bucket::Locked("COMPLIANCE"))? else { return Ok(()) };
    let found = attacked(&moto.like_aws()?, &[owner_policy()])?;
    let found = expect(found, 2, "destroyable", &attempts(held))?;
    ensure!(found.why.contains("all that is older than its retention (COMPLIANCE, 1 days)"), "{found:?}");

    // In governance mode, who has the right to bypass it deletes all, and may end a retention early. Who has not is as above.
    let Some(moto) = Moto::start(Bucket::Locked("GOVERNANCE"))? else { return Ok(()) };
    let moto = moto.like_aws()?;
    let gone = ["delete_version done gone", "delete_unlocked done intact", "shorten_retention done gone"];
    expect(attacked(&moto, &[owner_policy()])?, 2, "destroyable", &attempts(gone))?;
    let Some(moto) = Moto::start(Bucket::Locked("GOVERNANCE"))? else { return Ok(()) };
    let found = attacked(&moto.like_aws()?, &[owner_policy(), no_bypass()])?;
    let found = expect(found, 2, "destroyable", &attempts(held))?;
    ensure!(found.why.contains("all that is older than its retention (GOVERNANCE, 1 days)"), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn the_roles_destroy_nothing_in_a_bucket_with_object_lock_and_a_guess_is_said_to_be_one() -> Result<()>
{
    let Some(moto) = Moto::start(Bucket::Locked("COMPLIANCE"))? else { return Ok(()) };
    let all = [
        "overwrite done by_version",
        "delete refused intact",
        "delete_version refused intact",
        NO_VERSION,
        "shorten_retention refused intact",
    ];
    let found = expect(attacked(&moto.like_aws()?, &[policy("writer")?])?, 0, "survives", &all)?;
    ensure!(found.why.contains("could not be tried on any that is stored"), "{found:?}");

    let Some(moto) = Moto::start(Bucket::Locked("COMPLIANCE"))? else { return Ok(()) };
    let all = [
        "overwrite done by_version",
        "delete done by_version",
        "delete_version refused intact",
        "delete_unlocked refused by_version",
        "shorten_retention refused intact",
    ];
    let found = expect(attacked(&moto.like_aws()?, &[policy("expirer")?])?, 0, "survives", &all)?;
    ensure!(!found.why.contains("could not be tried"), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn a_readers_credentials_are_refused_before_anything_is_made() -> Result<()> {
    let Some(moto) = Moto::start(Bucket::Versions)? else { return Ok(()) };
    let refused = ["overwrite", "delete", "delete_version", "delete_unlocked"]
        .map(|what| format!("{what} refused unknown"));
    let mut refused: Vec<&str> = refused.iter().map(String::as_str).collect();
    refused.push("shorten_retention not_tried unknown");
    let found = expect(attacked(&moto, &[policy("reader")?])?, 0, "survives", &refused)?;
    ensure!(found.left.is_empty() && moto.versions("main")?.is_empty(), "a reader made something: {found:?}");
    Ok(())
}

/// Only what the attack made itself is attacked, and what it could delete is deleted.
#[tokio::test]
async fn an_attack_touches_nothing_but_its_own_objects() -> Result<()> {
    let Some(moto) = Moto::start(Bucket::Plain)? else { return Ok(()) };
    let keys = moto.user(OWNER, &[owner_policy()])?;
    let store = moto.store(&keys)?;
    for key in ["main/7/identity.json", "main/probe-of-somebody"] {
        ensure!(store.create(key, "x").await? == Created::New);
    }
    let attack = attacked(&moto, &[owner_policy()])?;
    ensure!(attack.verdict == "destroyable" && attack.left.is_empty(), "{attack:?}");
    for info in store.list("").await? {
        ensure!(store.get(&info.key).await?.as_deref() == Some(b"x".as_slice()), "{info:?}");
    }
    ensure!(store.list("").await?.len() == 2);
    Ok(())
}

#[test]
fn a_directory_is_not_attacked_and_said_to_be_its_owners() -> Result<()> {
    let place = scratch("pitr-attack-")?;
    fs::create_dir(place.path().join("repo"))?;
    give_to_server(&place.path().join("repo"))?;
    let found = attack(place.path(), &format!("file://{}/repo", place.path().display()), "")?;
    expect(found, 2, "destroyable", &[])?;
    match fs::read_dir(place.path().join("repo"))?.next() {
        None => Ok(()),
        Some(entry) => bail!("{entry:?} was made"),
    }
}

/// Azure's own emulator, which checks what a token permits: `c` creates, and only `w` replaces.
#[test]
fn a_token_of_azure_without_w_and_d_destroys_nothing_and_one_with_them_does() -> Result<()> {
    let Some(program) = setting("PITR_AZURITE").map(PathBuf::from).filter(|path| path.exists()) else {
        eprintln!("SKIPPED: PITR_AZURITE is not installed, see tests/setup.sh");
        return Ok(());
    };
    let server = Azurite::start(program, "pitr-test")?;
    let attacked = |permissions: &str| -> Result<Found> {
        let place = scratch("pitr-attack-")?;
        let file = place.path().join("keys");
        fs::write(
            &file,
            format!("account_name = {ACCOUNT}\nsas_token = {}\n", server.token(permissions, 1)?),
        )?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        give_to_server(&file)?;
        let (endpoint, file) = (server.endpoint(), file.display());
        let settings =
            format!("endpoint = \"{endpoint}\"\nallow_http = true\ncredentials_file = \"{file}\"\n");
        attack(place.path(), "az://pitr-test/p", &settings)
    };
    let untried = [
        "delete_version not_tried intact",
        "delete_unlocked not_tried intact",
        "shorten_retention not_tried intact",
    ];
    let writer = ["overwrite refused intact", "delete refused intact"];
    expect(attacked("rlc")?, 0, "survives", &[&writer[..], &untried[..]].concat())?;
    let expirer = ["overwrite refused intact", "delete done gone"];
    expect(attacked("rlcd")?, 2, "destroyable", &[&expirer[..], &untried[..]].concat())?;
    let all = ["overwrite done gone", "delete done gone"];
    expect(attacked("rwlcd")?, 2, "destroyable", &[&all[..], &untried[..]].concat())?;
    Ok(())
}

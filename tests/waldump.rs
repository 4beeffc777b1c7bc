//! Our reading of real WAL against PostgreSQL's own: every record, commit time and prepared transaction.
//!
//! Two oracles that are not ours: `pg_waldump` of the same major, where there is one, and the server's memory of its commit
//! times (`track_commit_timestamp`), on all of 13 to 18. The load covers what changes the shape of WAL: records longer than a
//! segment, switches, crashes, prepared transactions with long lists, dropped databases, and a promotion.

#![expect(clippy::print_stderr, reason = "says what was compared, or skipped")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pitr::wal::scan::{SegmentScan, join};
use pitr::wal::{
    Event, EventKind, Keep, Lsn, PgMajor, Scanner, SegmentEnd, SegmentName, SegmentSize, TimelineId,
};
use support::cluster::{Cluster, Install, Options, Stop, as_server, give_to_server, run};

/// Names of the resource managers in the order of their ids (`rmgrlist.h`).
const MANAGERS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// One record as both sides see it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    lsn: Lsn,
    manager: String,
    total: u32,
    xid: u32,
    prev: Lsn,
    /// Of transaction ends: operation, transaction, time.
    end: Option<String>,
}

/// A directory of segments as we read it.
struct Reading {
    scans: Vec<SegmentScan>,
    rows: Vec<Row>,
    events: Vec<Event>,
}

const LOAD: &str = "
create table log (x bigint);
create table wide (id int primary key, body text);
alter table wide alter body set storage external;
do $$ begin for i in 1..200 loop insert into log select txid_current(); commit; end loop; end $$;
insert into wide select i, repeat(md5(i::text), 50) from generate_series(1, 2000) i;
begin; insert into log values (0); rollback;
do $$ begin
  for i in 1..100 loop
    begin insert into log values (i); if i % 3 = 0 then raise exception 'no'; end if;
    exception when others then null; end;
  end loop; end $$;
checkpoint;
update wide set body = body || 'x' where id % 7 = 0;
insert into wide select 100000, repeat('0123456789abcdef', 200000);
select pg_logical_emit_message(false, 'pitr', repeat('m', 3400000));
insert into log select txid_current();
select pg_create_restore_point('before upgrade');
begin; create table made_in_prepared (i serial primary key, t text); savepoint a;
insert into log select i from generate_series(1, 10) i; savepoint b; insert into log values (-1); drop table wide;
prepare transaction 'one';
begin; create table lost_in_prepared (i serial primary key, t text); insert into log values (-2);
prepare transaction 'two';
insert into log select txid_current();
commit prepared 'one';
rollback prepared 'two';
create database short_lived;
select oid from pg_database where datname = 'short_lived';
drop database short_lived;
select count(*) from (select pg_switch_wal()) s;
insert into log select txid_current();
";

fn load(cluster: &Cluster) -> Result<u32> {
    let answers = cluster.psql(LOAD)?;
    let database = answers
        .lines()
        .find_map(|line| line.parse::<u32>().ok().filter(|oid| *oid >= 10_000 && *oid < 1_000_000));
    database.context("the load did not say which database it dropped")
}

/// A cluster with all of [`LOAD`], a crash under load, and a promotion, stopped. Also the OID of the dropped database.
fn lived(install: &Install, segment_mib: u32) -> Result<(Cluster, u32, BTreeMap<u32, String>)> {
    let conf = "wal_keep_size = 4GB\nmax_wal_size = 4GB\nmax_prepared_transactions = 5\ntrack_commit_timestamp = on\n\
                full_page_writes = on\nautovacuum = off\nwal_log_hints = on\n";
    let cluster = Cluster::init(install, &Options { segment_mib, conf: conf.into(), checksums: false })?;
    cluster.start()?;
    let database = load(&cluster)?;
    let place = cluster.data.with_file_name("tablespace");
    fs::create_dir(&place)?;
    give_to_server(&place)?;
    cluster.psql(&format!("create tablespace fast location '{}'", place.display()))?;
    thread::scope(|scope| -> Result<()> {
        let busy = scope.spawn(|| {
            cluster.psql_in("template1", "do $$ begin loop create temp table t as select generate_series(1, 3000); drop table t; commit; end loop; end $$")
        });
        thread::sleep(Duration::from_millis(700));
        cluster.crash()?;
        ensure!(busy.join().is_ok_and(|ended| ended.is_err()), "the load must have been cut off");
        Ok(())
    })?;
    cluster.start()?;
    cluster.psql("insert into log select txid_current(); select count(*) from (select pg_switch_wal()) s; insert into log select txid_current();")?;
    cluster.stop(Stop::Fast)?;
    cluster.append_conf("standby.signal", "")?;
    cluster.start()?;
    cluster.promote()?;
    cluster.psql("insert into log select txid_current(); select pg_create_restore_point('on two'); insert into log select -1 from generate_series(1, 1000); select count(*) from (select pg_switch_wal()) s; insert into log select txid_current();")?;
    let times = cluster.psql(
        "select x, to_char(pg_xact_commit_timestamp(x::text::xid), 'YYYY-MM-DD HH24:MI:SS.US\"+00\"') from log
         where x >= 100 and pg_xact_commit_timestamp(x::text::xid) is not null",
    )?;
    cluster.stop(Stop::Fast)?;
    let times = times.lines().filter_map(|line| line.split_once('|'));
    let times = times.map(|(xid, time)| Ok((xid.parse()?, time.to_owned()))).collect::<Result<_>>()?;
    Ok((cluster, database, times))
}

/// Scans all segments of one timeline, and puts the records between them together.
fn read(wal: &Path, timeline: TimelineId, size: SegmentSize, major: PgMajor) -> Result<Reading> {
    let mut files: Vec<SegmentName> = fs::read_dir(wal)?
        .filter_map(|entry| SegmentName::parse(entry.ok()?.file_name().to_str()?).ok())
        .filter(|name| name.timeline() == timeline)
        .collect();
    files.sort();
    let mut reading = Reading { scans: Vec::new(), rows: Vec::new(), events: Vec::new() };
    for (index, name) in files.into_iter().enumerate() {
        let bytes = fs::read(wal.join(name.to_string()))?;
        if bytes.starts_with(&[0; 24]) {
            continue; // made ahead, never written
        }
        let mut scanner = Scanner::new(name, size, Keep::All)?;
        let mut refused = None;
        for piece in bytes.chunks(4099 + 1000 * index) {
            let rows = &mut reading.rows;
            let result = scanner.push_observed(piece, &mut |record| {
                rows.push(row(record.lsn, record.header, record.event));
            });
            if let Err(error) = result {
                refused = Some(error);
                break;
            }
        }
        match refused {
            Some(pitr::wal::ScanError::Misplaced { .. }) => continue, // recycled ahead, not yet written
            Some(error) => return Err(error.into()),
            None => {}
        }
        let scan = scanner.finish()?;
        reading.events.extend(scan.events.iter().cloned());
        reading.scans.push(scan);
    }
    let crossing: Vec<_> =
        (0..reading.scans.len()).filter_map(|first| crossing(&reading.scans[first..], major)).collect();
    for whole in crossing {
        let whole = whole?;
        reading.rows.push(row(whole.lsn, &whole.header, whole.event.as_ref()));
        reading.events.extend(whole.event);
    }
    reading.rows.sort_by_key(|row| row.lsn);
    reading.events.sort_by_key(|event| event.lsn);
    Ok(reading)
}

/// The record that starts in the first of these segments and ends in a later one, if there is one and it was not abandoned.
fn crossing(scans: &[SegmentScan], major: PgMajor) -> Option<Result<pitr::wal::scan::Crossing>> {
    let (first, rest) = scans.split_first()?;
    let tail = first.tail.as_ref()?;
    let mut heads = Vec::new();
    for scan in rest {
        let head = scan.head.as_ref()?;
        heads.push(head);
        if !head.goes_on() {
            break;
        }
    }
    Some(join(tail, &heads, major).map_err(Into::into))
}

fn row(lsn: Lsn, header: &pitr::wal::record::RecordHeader, event: Option<&Event>) -> Row {
    let manager = MANAGERS
        .get(usize::from(header.rmid))
        .map_or_else(|| header.rmid.to_string(), |name| (*name).to_owned());
    let end = event.and_then(|event| {
        let (name, time) = match event.kind {
            EventKind::Commit { time, prepared: false } => (String::from("COMMIT"), time),
            EventKind::Commit { time, prepared: true } => (format!("COMMIT_PREPARED {}:", event.xid), time),
            EventKind::Abort { time, prepared: false } => (String::from("ABORT"), time),
            EventKind::Abort { time, prepared: true } => (format!("ABORT_PREPARED {}:", event.xid), time),
            _ => return None,
        };
        Some(format!("{name} {}", time.to_string().replace("+00", " UTC")))
    });
    Row { lsn, manager, total: header.total, xid: header.xid, prev: header.prev, end }
}

/// One line of `pg_waldump`: `rmgr: Heap  len (rec/tot): 54/ 150, tx: 739, lsn: 0/01.., prev 0/01.., desc: INSERT ...`.
fn parse(line: &str) -> Option<Row> {
    let (_, rest) = line.split_once("rmgr: ")?;
    let (manager, rest) = rest.split_once(" len (rec/tot):")?;
    let (_, rest) = rest.split_once('/')?;
    let (total, rest) = rest.split_once(", tx:")?;
    let (xid, rest) = rest.split_once(", lsn: ")?;
    let (lsn, rest) = rest.split_once(", prev ")?;
    let (prev, rest) = rest.split_once(", desc: ")?;
    let manager = manager.trim().to_owned();
    let ends = ["COMMIT ", "ABORT ", "COMMIT_PREPARED ", "ABORT_PREPARED "];
    let end = ends.iter().any(|end| rest.starts_with(end)) && manager == "Transaction";
    let end = end.then(|| rest.split_once(" UTC").map(|(end, _)| format!("{end} UTC"))).flatten();
    Some(Row {
        lsn: lsn.parse().ok()?,
        manager,
        total: total.trim().parse().ok()?,
        xid: xid.trim().parse().ok()?,
        prev: prev.parse().ok()?,
        end,
    })
}

fn waldump(program: &Path, reading: &Reading, wal: &Path) -> Result<Vec<Row>> {
    let first = reading.scans.first().context("no segment")?;
    let last = reading.scans.last().context("no segment")?;
    let mut command = as_server(program)?;
    command.arg("-p").arg(wal).arg("-t").arg(first.name.timeline().to_string());
    command.arg("-s").arg(first.first_record.context("no record")?.to_string());
    command.arg("-e").arg(last.valid_to.to_string());
    let text = run(&mut command)?;
    text.lines().map(|line| parse(line).with_context(|| format!("cannot read: {line}"))).collect()
}

fn compare(major: u32, segment_mib: u32) -> Result<()> {
    let Some(install) = Install::find_or_skip(major) else { return Ok(()) };
    let (cluster, dropped, times) = lived(&install, segment_mib)?;
    let wal = cluster.data.join("pg_wal");
    let size = SegmentSize::new(u64::from(segment_mib) << 20)?;
    let pg = PgMajor::from_number(major).context("a known major")?;
    let two = TimelineId::new(2).context("2 is not 0")?;
    let (one, two) = (read(&wal, TimelineId::FIRST, size, pg)?, read(&wal, two, size, pg)?);

    // Shape.
    let (last, before) = one.scans.split_last().context("segments of timeline 1")?;
    assert!(before.iter().all(|scan| scan.end != SegmentEnd::Short), "{before:?}");
    assert_eq!((last.end, last.major, last.decoded), (SegmentEnd::Short, Some(pg), true));
    assert!(before.iter().filter(|scan| scan.end == SegmentEnd::Switch).count() >= 2);
    let fork = two.scans.first().context("segments of timeline 2")?;
    assert_eq!((fork.first_timeline.get(), fork.last_timeline.get(), fork.end), (1, 2, SegmentEnd::Switch));
    let spans = before.iter().filter(|scan| scan.records == 0).count();
    assert_eq!(spans >= 2, segment_mib == 1, "3.4 MB in one record cover segments of 1 MiB: {spans}");

    // Events.
    let has = |kind: &dyn Fn(&EventKind) -> bool| {
        one.events.iter().chain(&two.events).any(|event| kind(&event.kind))
    };
    assert!(has(&|kind| matches!(kind, EventKind::RestorePoint { name, .. } if name == "before upgrade")));
    assert!(has(&|kind| matches!(kind, EventKind::RestorePoint { name, .. } if name == "on two")));
    assert!(has(&|kind| matches!(kind, EventKind::DatabaseCreate { database } if *database == dropped)));
    assert!(has(&|kind| matches!(kind, EventKind::DatabaseDrop { databases } if databases == &[dropped])));
    assert!(has(&|kind| matches!(kind, EventKind::Checkpoint { shutdown: true, .. })));
    assert!(has(
        &|kind| matches!(kind, EventKind::TablespaceCreate { place, .. } if place.ends_with(b"/tablespace"))
    ));
    assert!(has(
        &|kind| matches!(kind, EventKind::EndOfRecovery { timeline, previous, .. } if (timeline.get(), previous.get()) == (2, 1))
    ));
    assert!(has(&|kind| matches!(kind, EventKind::Prepare { .. })));

    // Commit times, by what the server remembers of them.
    assert!(times.len() >= 200, "{times:?}");
    let mut found = BTreeMap::new();
    for event in one.events.iter().chain(&two.events) {
        if let EventKind::Commit { time, .. } = event.kind {
            found.insert(event.xid, time.to_string());
        }
    }
    for (xid, time) in &times {
        assert_eq!(found.get(xid), Some(time), "commit of {xid}");
    }

    // Every record, by pg_waldump.
    let Some(program) = install.own_tool("pg_waldump") else {
        eprintln!("SKIPPED comparison with pg_waldump {major}: there is none");
        return Ok(());
    };
    for reading in [&one, &two] {
        let theirs = waldump(&program, reading, &wal)?;
        for (ours, theirs) in reading.rows.iter().zip(&theirs) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(reading.rows.len(), theirs.len());
    }
    eprintln!("compared {} records of PostgreSQL {major}", one.rows.len() + two.rows.len());
    Ok(())
}

macro_rules! compare {
    ($($name:ident: $major:literal, $mib:literal;)*) => {
        $(#[test] fn $name() -> Result<()> { compare($major, $mib) })*
    };
}

compare! {
    records_of_13_in_small_segments: 13, 1;
    records_of_13_in_default_segments: 13, 16;
    records_of_14_in_small_segments: 14, 1;
    records_of_14_in_default_segments: 14, 16;
    records_of_15_in_small_segments: 15, 1;
    records_of_15_in_default_segments: 15, 16;
    records_of_16_in_small_segments: 16, 1;
    records_of_16_in_default_segments: 16, 16;
    records_of_17_in_small_segments: 17, 1;
    records_of_17_in_default_segments: 17, 16;
    records_of_18_in_small_segments: 18, 1;
    records_of_18_in_default_segments: 18, 16;
}

//! Sealed formats: one stored example of each, made once and read since then by pitr and by `age`, `zstd` and `b3sum`.
//!
//! What age writes is random, so these fixtures are never made again and compared: they are read. `PITR_BLESS=1` writes those that are
//! missing. The keys beside them open nothing else.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]
#![expect(clippy::disallowed_methods, reason = "fixtures of tests")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use jiff::Timestamp;
use pitr::codec::{Compression, Digest};
use pitr::repo::objects::{Ancestry, Closing, Parent, decode_as, encode_as};
use pitr::repo::walobject::{Asked, Facts, Lock, Sealer, WalHeader, WalObjectBuilder, open_with};
use pitr::seal::{
    Epoch, EpochKey, HostEpoch, HostFile, Identity, NamedRecipient, Opened, Opener, SealKey, Wrap, body,
};
use pitr::wal::{SystemId, TimelineId, WalFileName};

const SYSTEM: SystemId = SystemId::new(7_301_234_567_890_123_456);
const HISTORY: &[u8] = b"1\t0/3000100\tbefore 2025-10-17 10:30:00+00\n";

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format/sealed").join(name)
}

fn fixture(name: &str) -> Vec<u8> {
    let path = place(name);
    assert!(path.exists(), "{name} is missing; PITR_BLESS=1 writes it");
    fs::read(path).unwrap()
}

fn text(name: &str) -> String {
    String::from_utf8(fixture(name)).unwrap()
}

fn asked() -> Asked {
    Asked {
        cluster: "main".parse().unwrap(),
        system: SYSTEM,
        name: WalFileName::parse("00000002.history").unwrap(),
    }
}

fn ancestry_key() -> String {
    format!("main/{SYSTEM}/wal/00000002.ancestry.json")
}

fn ancestry() -> Ancestry {
    let parent = Parent { timeline: TimelineId::FIRST, switch: "0/3000100".parse().unwrap() };
    Ancestry { timeline: TimelineId::new(2).unwrap(), parents: vec![parent] }
}

/// Writes what is missing, all of one piece.
fn bless() {
    if std::env::var_os("PITR_BLESS").is_none() || place("host.json").exists() {
        return;
    }
    fs::create_dir_all(place("")).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(place(name), bytes).unwrap();
    let (daily, offline) = (Identity::generate(), Identity::generate());
    let opened = Opened {
        key: EpochKey::generate(Epoch::FIRST),
        seal: SealKey::new(*Digest::of(b"the seal key of the fixtures").as_bytes()),
        created: "2025-10-17T10:30:00Z".parse::<Timestamp>().unwrap(),
        recipients: Vec::new(),
    };
    let wrap = opened.wrap("main", &[&daily.recipient(), &offline.recipient()]).unwrap();
    let named = |name: &str, of: &Identity| NamedRecipient { name: name.into(), recipient: of.recipient() };
    let host = HostFile {
        cluster: "main".into(),
        seal: opened.seal.clone(),
        epoch: Epoch::FIRST,
        epochs: vec![HostEpoch {
            epoch: Epoch::FIRST,
            created: opened.created,
            recipient: opened.key.recipient(),
            wraps: vec![wrap.clone()],
        }],
        recipients: vec![named("daily", &daily), named("offline", &offline)],
    };
    let mut builder =
        WalObjectBuilder::new(asked(), u64::try_from(HISTORY.len()).unwrap(), Compression::Zstd { level: 1 })
            .unwrap();
    builder.push(HISTORY).unwrap();
    let sealer = Sealer { key: opened.seal.clone(), epoch: Epoch::FIRST, recipient: opened.key.recipient() };
    let object = builder.finish(Facts::Unscanned).unwrap().sealed(&sealer).unwrap();
    let closing = Closing::Mac { seal: &opened.seal, place: &ancestry_key() };
    let pack = body::encrypt([Bytes::from_static(b"a pack")], &[&opened.key.recipient()]).unwrap();
    put("daily.key", daily.file("fixture: recipient daily").as_bytes());
    put("wrap-0001.age", &wrap.0);
    put("00000002.history", &object.chunks.concat());
    put("00000002.ancestry.json", &encode_as(&ancestry(), closing));
    put("pack.age", &pack.concat());
    put("host.json", host.render().as_bytes());
}

fn opened() -> Opened {
    bless();
    let daily = Identity::parse_file(&text("daily.key")).unwrap();
    Wrap(fixture("wrap-0001.age").into()).open(&daily, "main", Epoch::FIRST).unwrap()
}

#[test]
fn a_host_file_and_a_wrap_of_then_are_read() {
    let opened = opened();
    let host = HostFile::parse(&text("host.json")).unwrap();
    assert_eq!((host.cluster.as_str(), host.epoch), ("main", Epoch::FIRST));
    assert_eq!(host.seal, opened.seal);
    assert_eq!(host.current().unwrap().recipient, opened.key.recipient());
    assert_eq!(*host.render(), text("host.json"), "a host file has one spelling");
}

#[test]
fn objects_of_then_are_read() {
    let opened = opened();
    let epochs = BTreeMap::from([(Epoch::FIRST, opened.key.identity.clone())]);
    let lock = Lock::Sealed { key: &opened.seal, epochs: &epochs };
    let mut plain = Vec::new();
    let object = fixture("00000002.history");
    let header = open_with(&object, &asked(), lock, |bytes| plain.extend_from_slice(bytes)).unwrap();
    assert_eq!(plain, HISTORY);
    assert_eq!(WalHeader::parse(&object).unwrap(), header);
    assert_eq!(
        Opener(std::slice::from_ref(&opened.key.identity)).plain(&fixture("pack.age")).unwrap(),
        b"a pack"
    );
    let closing = Closing::Mac { seal: &opened.seal, place: &ancestry_key() };
    assert_eq!(decode_as::<Ancestry>(&fixture("00000002.ancestry.json"), closing).unwrap(), ancestry());
    assert_eq!(
        encode_as(&ancestry(), closing),
        fixture("00000002.ancestry.json"),
        "a mac is the same each time"
    );
}

/// What a shell makes of `script` with the fixtures as its directory; `None` if a tool is missing.
fn shell(script: &str) -> Option<String> {
    for tool in ["age", "b3sum", "zstd"] {
        if Command::new(tool).arg("--version").output().is_err() {
            eprintln!("SKIPPED: {tool} is not installed; run tests/setup.sh");
            return None;
        }
    }
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(place(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_tools_of_the_format_page_read_them_and_make_the_same_digests() {
    bless();
    let seal = "age -d -i daily.key wrap-0001.age | sed -n 's/^# seal key: //p' | perl -ne 'chomp; print pack(\"H*\", $_)'";
    let Some(plain) =
        shell("tail -c +513 00000002.history | age -d -i <(age -d -i daily.key wrap-0001.age) | zstd -qdc")
    else {
        return;
    };
    assert_eq!(plain.as_bytes(), HISTORY);
    let opened = opened();
    assert_eq!(
        shell(&format!("{seal} | b3sum --no-names")).unwrap().trim(),
        opened.seal.fingerprint().to_string()
    );
    let header = WalHeader::parse(&fixture("00000002.history")).unwrap();
    let mac = shell(&format!(
        "f=$(mktemp); {{ printf 'pitr1 header\\n'; head -c 512 00000002.history | tail -c +9 | sed '/^mac=/,$d'; }} > $f; {seal} | b3sum --keyed --no-names $f; rm $f"
    ));
    assert!(mac.unwrap().starts_with(&header.mac.unwrap().to_string()));
    let tag = shell(&format!(
        "f=$(mktemp); plain=$(tail -c +513 00000002.history | age -d -i <(age -d -i daily.key wrap-0001.age) | zstd -qdc | b3sum --no-names); \
         printf 'pitr1 tag\\nsys={SYSTEM}\\nname=00000002.history\\nsize={}\\nplain=%s\\n' $plain > $f; {seal} | b3sum --keyed --no-names $f; rm $f",
        HISTORY.len()
    ));
    assert_eq!(tag.unwrap().trim(), header.tag.to_string());
}

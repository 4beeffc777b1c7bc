//! What a store in a cloud answers: any bytes are taken, and no answer but the store's own "no such object" proves an absence.
//!
//! The first byte chooses the cloud. The rest is an answer over HTTP: the status on a line, headers, an empty line, the body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::store::answers::{Answer, Cloud, Heard};
use pitr::store::{Created, Settings, StoreOptions};
use tokio::runtime::{Builder, Runtime};

fuzz_target!(|data: &[u8]| {
    let Some((which, stream)) = data.split_first() else { return };
    CLOUDS.with(|clouds| clouds.hear(usize::from(*which), stream));
});

thread_local! {
    static CLOUDS: Clouds = Clouds::open();
}

/// Headers that some part of the client reads.
const HEADERS: [&str; 12] = [
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "last-modified",
    "x-amz-bucket-region",
    "x-amz-delete-marker",
    "x-amz-version-id",
    "x-goog-generation",
    "x-ms-error-code",
    "x-ms-version-id",
];

/// A store of each language, none of which is ever asked.
struct Clouds {
    runtime: Runtime,
    stores: [Cloud; 3],
}

impl Clouds {
    fn open() -> Self {
        let settings = [
            ("aws_access_key_id", "A"),
            ("aws_secret_access_key", "S"),
            ("google_skip_signature", "true"),
            ("azure_storage_account_name", "a"),
            ("azure_storage_account_key", "c2VjcmV0"),
        ];
        let stores = [("s3", "aws_"), ("gs", "google_"), ("az", "azure_")].map(|(scheme, prefix)| {
            let own = settings.iter().copied().filter(|(name, _)| name.starts_with(prefix));
            let options = StoreOptions { credentials: own.collect::<Settings>(), ..StoreOptions::default() };
            let url = format!("{scheme}://bucket/prefix").parse().expect("a URL");
            Cloud::open(&url, &options).expect("it can be opened")
        });
        Self { runtime: Builder::new_current_thread().enable_all().build().expect("a runtime"), stores }
    }

    fn hear(&self, which: usize, stream: &[u8]) {
        let end = stream.windows(2).position(|two| two == b"\n\n").unwrap_or(stream.len());
        let head = String::from_utf8_lossy(&stream[..end]);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.trim().parse::<u16>().ok());
        let Some(status) = status.filter(|status| (100..1000).contains(status)) else { return };
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let name = HEADERS.into_iter().find(|known| *known == name)?;
            Some((name, value.trim().as_bytes().to_vec()))
        };
        let headers: Vec<_> = lines.filter_map(header).collect();
        let body = stream.get(end + 2..).unwrap_or_default().to_vec().into();
        let answer = Answer { status, headers, body };
        let heard = self.runtime.block_on(self.stores[which % 3].hear("a/b", &answer));
        judge(&answer, &heard);
    }
}

/// What must be true of every answer.
fn judge(answer: &Answer, heard: &Heard) {
    let success = (200..300).contains(&answer.status);
    assert!(success || !matches!(heard.created, Ok(Created::New)), "{heard:?}");
    let taken = matches!(answer.status, 304 | 409 | 412);
    assert!(taken || !matches!(heard.created, Ok(Created::Exists)), "{heard:?}");
    assert!(success || heard.listed.is_err() && !matches!(heard.read, Ok(Some(_))), "{heard:?}");
    let says = |code: &str| {
        let header =
            answer.headers.iter().any(|(name, value)| *name == "x-ms-error-code" && value == code.as_bytes());
        header || answer.body.windows(code.len()).any(|part| part == code.as_bytes())
    };
    if matches!(heard.read, Ok(None)) || matches!(heard.size, Ok(None)) {
        assert!(answer.status == 404 && (says("NoSuchKey") || says("BlobNotFound")), "{answer:?} {heard:?}");
        assert!(!answer.headers.contains(&marker()), "{answer:?} {heard:?}");
    }
    let Some(versions) = &heard.versions else { return };
    assert!(success || versions.current.is_err() && versions.marked.is_err(), "{heard:?}");
    assert!(success || versions.deleted.is_err() && versions.shortened.is_err(), "{heard:?}");
    assert!(success || versions.protection.is_err(), "a refusal promises something: {heard:?}");
    assert!(success || !matches!(versions.read, Ok(Some(_))), "{heard:?}");
    assert!(answer.status == 404 || !matches!(versions.read, Ok(None)), "{heard:?}");
    if matches!(versions.marked, Ok(Some(_))) {
        assert!(answer.headers.contains(&marker()), "{answer:?} {heard:?}");
    }
}

/// What says that a marker lies over an object.
fn marker() -> (&'static str, Vec<u8>) {
    ("x-amz-delete-marker", b"true".to_vec())
}

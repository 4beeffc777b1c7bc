//! Keys and age bodies: any bytes are answered; nothing is opened that was not sealed, and no error quotes what it read.
//!
//! The input is tried as an age file, as a wrap, as a host file, as an identity file, and behind a header that is right, as the body of one.
//! Source of truth: FORMAT.md, "Sealed folders".
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pitr::seal::{AGE_MAGIC, Epoch, HostFile, Identity, Opener, Wrap};

static KEY: LazyLock<Identity> = LazyLock::new(Identity::generate);

fuzz_target!(|data: &[u8]| {
    let opener = Opener(std::slice::from_ref(&KEY));
    for file in [data.to_vec(), [AGE_MAGIC, data].concat()] {
        assert!(opener.plain(&file).is_err(), "nothing here was made for this key");
        let _ = opener.start(&file, false);
        let wrap = Wrap(file.into());
        assert!(wrap.open(std::slice::from_ref(&KEY), "main", Epoch::FIRST).is_err());
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(host) = HostFile::parse(text) {
        assert_eq!(HostFile::parse(&host.render()), Ok(host));
    }
    let _ = Identity::parse_file(text);
    let _ = text.parse::<Epoch>();
});

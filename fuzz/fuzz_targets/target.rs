//! The text of `--to`: any text is answered, and an accepted moment is read back from how it is shown.
//!
//! With and without a configured zone that has gaps and folds.
//! Source of truth: `src/target.rs`.
#![no_main]

use jiff::Timestamp;
use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;
use pitr::target::{Context, ToSpec, parse, show};

fuzz_target!(|text: &str| {
    let zone = TimeZone::get("America/New_York").expect("in every time zone database");
    let now = Timestamp::from_second(1_760_000_000).expect("in range");
    for configured in [None, Some(&zone)] {
        let context = Context { now, configured, host: Some(&zone), server: None };
        let Ok(ToSpec::At(moment)) = parse(text, &context) else { continue };
        let shown = show(moment, &TimeZone::UTC);
        // Years before 0000 and after 9999 have no form that is read.
        if shown.as_bytes().first().is_some_and(u8::is_ascii_digit) {
            assert_eq!(parse(&shown, &context), Ok(ToSpec::At(moment)), "{shown}");
        }
    }
});

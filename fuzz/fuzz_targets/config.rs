//! Our own configuration file: any text is answered, and a mistake is reported with its place.
//!
//! Durations and sizes are read from the same text.
//! Source of truth: `src/config`.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pitr::config::{Config, units};

fuzz_target!(|text: &str| {
    if let Err(error) = Config::parse(text, Path::new("pitr.toml")) {
        assert!(error.message().starts_with("pitr.toml:"), "{error}");
    }
    if let Ok(duration) = units::parse_duration(text) {
        assert_eq!(units::parse_duration(&units::show_duration(duration)), Ok(duration));
    }
    if let Ok(size) = units::parse_size(text) {
        assert_eq!(units::parse_size(&units::show_size(size)), Ok(size));
    }
});

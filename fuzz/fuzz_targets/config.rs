//! Our own configuration file: any text is answered, and a mistake is reported with its place. The short way of `archive-push` finds the
//! agent's socket where the whole configuration has it.
//!
//! Durations, sizes, URLs of stores, files of credentials and profiles are read from the same text; no error of a file of secrets quotes it.
//! Source of truth: `src/config`, `src/cli/thin.rs`, `src/store/credentials.rs`.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pitr::cli::thin::Door;
use pitr::config::{Config, units};
use pitr::store::{CredentialsError, StoreUrl, check_key, parse_credentials_file, static_profile_keys};

fuzz_target!(|text: &str| {
    match Config::parse(text, Path::new("pitr.toml")) {
        Err(error) => assert!(error.message().starts_with("pitr.toml:"), "{error}"),
        Ok(config) => {
            let door = Door::parse(text).expect("the short way reads what the long one does");
            assert_eq!((door.socket, door.config), (config.agent.socket, config.fingerprint));
        }
    }
    let _ = Door::parse(text);
    credentials(text);
    if let Ok(url) = text.parse::<StoreUrl>() {
        assert_eq!(url.to_string().parse(), Ok(url));
    }
    if check_key(text).is_ok() {
        assert!(text.split('/').all(|part| !matches!(part, "" | "." | "..")));
    }
    if let Ok(duration) = units::parse_duration(text) {
        assert_eq!(units::parse_duration(&units::show_duration(duration)), Ok(duration));
    }
    if let Ok(size) = units::parse_size(text) {
        assert_eq!(units::parse_size(&units::show_size(size)), Ok(size));
    }
});

/// Files with secrets in them.
fn credentials(text: &str) {
    let _ = parse_credentials_file(text);
    for (one, other) in [(Some(text), None), (None, Some(text)), (Some(text), Some(text))] {
        for profile in [None, Some("ops")] {
            match static_profile_keys(one, other, profile) {
                Ok(keys) => {
                    let named = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region"];
                    let keys = keys.unwrap_or_default();
                    assert!(keys.iter().all(|(name, _)| named.contains(&name)));
                    assert_eq!(keys.get(named[0]).is_some(), keys.get(named[1]).is_some());
                }
                Err(CredentialsError::NoProfile(name) | CredentialsError::Half(name)) => {
                    assert!(name == profile.unwrap_or("default"));
                }
                Err(_) => {}
            }
        }
    }
}

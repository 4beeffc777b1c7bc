//! The recovery kit: one page that a person prints and keeps where the host is not.
//!
//! It says where the bytes are, whose they are, how to restore with pitr, and how without it; with `--with-identity` also the key. Whoever
//! finds a kit with the key in it and reaches the repository can read everything: it is kept like one.

use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::args::{Common, KeyArgs};
use crate::cli::exit::Ended;
use crate::cli::output::{self, say};
use crate::clock::{Clock as _, SystemClock};
use crate::config::RepositoryConfig;
use crate::error::{Error, Result};
use crate::ops::key;
use crate::repo::Keyring;

use super::Held;

/// Prints the kit.
///
/// # Errors
/// Kind `Key` if the identity that is to be printed is not at hand, or does not open every epoch.
pub(super) async fn run(common: &Common, args: &KeyArgs, with_identity: bool) -> Result<Ended> {
    let held = Held::read(common, args)?;
    let identities = held.context.keys.as_deref().map(Keyring::identities).unwrap_or_default();
    if with_identity && identities.is_empty() {
        return Err(
            Error::key("there is no identity to print").hint("give the offline recipient's: --identity FILE")
        );
    }
    // A kit that opens nothing would be found out on the worst of days.
    key::prove(&held.host, identities)?;
    let mut systems = Vec::new();
    for repository in held.context.repositories()? {
        // A kit is useful without this list, and a store that does not answer is no reason to have none.
        systems.extend(key::compare(&repository, &held.host).await.unwrap_or_default());
    }
    let mut text = Zeroizing::new(head(&held));
    for place in &systems {
        text.push_str(&format!(
            "  repository {}: folder {}/{}\n",
            place.repository, held.host.cluster, place.system
        ));
    }
    text.push_str(&with_pitr(&held));
    text.push_str(WITHOUT);
    text.push_str("\nIDENTITY\n");
    // A text that grows leaves copies of itself behind.
    text.reserve(identities.len().saturating_mul(256).saturating_add(256));
    if with_identity {
        for identity in identities {
            for part in
                ["  ", &identity.to_text(), "\n  (public key ", &identity.recipient().to_string(), ")\n"]
            {
                text.push_str(part);
            }
        }
    } else {
        text.push_str("  not printed. It is kept at: ______________________________________________\n");
    }
    if common.json {
        let systems: Vec<_> = systems
            .iter()
            .map(|place| json!({ "repository": place.repository, "system": place.system.to_string() }))
            .collect();
        output::json(&json!({
            "schema": "pitr.key-kit.v1",
            "cluster": held.host.cluster,
            "seal_fingerprint": held.host.seal.fingerprint().to_string(),
            "repositories": systems,
            "with_identity": with_identity,
            "text": text.as_str(),
        }));
    } else {
        say(&text);
    }
    Ok(Ended::Well)
}

fn head(held: &Held) -> String {
    let host = &held.host;
    let mut text = format!(
        "RECOVERY KIT of PostgreSQL cluster {}, made by pitr {} at {}\n\n\
         Keep this page where the database host is not. The backups are encrypted; one of these keys opens them:\n",
        host.cluster,
        crate::repo::VERSION,
        SystemClock.now().strftime("%Y-%m-%d %H:%M UTC"),
    );
    for recipient in &host.recipients {
        text.push_str(&format!("  {}: {}\n", recipient.name, recipient.recipient));
    }
    let epochs: Vec<String> = host.epochs.iter().map(|e| e.epoch.to_string()).collect();
    text.push_str(&format!(
        "Key epochs so far: {}\n\nSEAL FINGERPRINT (tells this cluster's backups from forged ones)\n  {}\n\nWHERE THE BACKUPS ARE\n",
        epochs.join(", "),
        host.seal.fingerprint()
    ));
    for repository in &held.context.config.repositories {
        text.push_str(&format!("  {}: {}\n", repository.name, repository.url));
    }
    text
}

fn repository_text(config: &RepositoryConfig) -> String {
    let mut text = format!("  [[repository]]\n  name = {:?}\n  url  = {:?}\n", config.name, config.url);
    let mut line = |key: &str, value: &Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("  {key} = {value:?}\n"));
        }
    };
    line("endpoint", &config.endpoint);
    line("region", &config.region);
    if config.allow_http {
        text.push_str("  allow_http = true\n");
    }
    if !config.sealed {
        text.push_str("  sealed = false\n");
    }
    if config.allow_unsafe_store {
        text.push_str("  allow_unsafe_store = true\n");
    }
    if config.ca_file.is_some() {
        text.push_str("  ca_file = \"/etc/pitr/ca.pem\"    # the certificate of the authority that the store's server is signed by\n");
    }
    if !config.url.starts_with("file:") {
        text.push_str("  credentials_file = \"/etc/pitr/credentials\"\n");
    }
    text
}

fn with_pitr(held: &Held) -> String {
    let mut text = format!(
        "\nTO RESTORE WITH PITR\n  Put the key (AGE-SECRET-KEY-1...) into /etc/pitr/recovery.key and this into /etc/pitr/restore.toml:\n\n  \
         cluster = {:?}\n  [keys]\n  identity_file    = \"/etc/pitr/recovery.key\"\n  seal_fingerprint = \"{}\"\n",
        held.host.cluster,
        held.host.seal.fingerprint()
    );
    for repository in &held.context.config.repositories {
        text.push_str(&repository_text(repository));
    }
    text.push_str(
        "\n  PostgreSQL's recovery reads these files, as the user that it runs as:\n  \
         chown -R postgres: /etc/pitr; chmod 755 /etc/pitr; chmod 600 /etc/pitr/*\n  \
         pitr --config /etc/pitr/restore.toml info\n  \
         pitr --config /etc/pitr/restore.toml restore --target-dir DIR [--to \"2025-10-17 10:30+00\"]\n",
    );
    text
}

/// The page says no more than it takes; FORMAT.md has the rest.
const WITHOUT: &str = "
TO RESTORE WITHOUT PITR (with age, zstd, tar and a shell; R is a copy of the folder above on a local disk)
  age -d -i recovery.key R/keys/e0001/wrap-0001.age > e0001.key     # one for each epoch; the newest wrap that opens
  ls R/backups                                                      # choose B: backup.json says complete, no expired.json
  mkdir -m 700 data
  for p in R/backups/B/pack-*.age; do age -d -i e0001.key $p; done | zstd -dc | tar x -C data
  rm -f data/standby.signal; touch data/recovery.signal; archive_mode = off; restore_command is a script that does, for the file %f,
    tail -c +513 R/wal/TTTTTTTT/LLLLLLLL/%f.wal | age -d -i e0001.key | zstd -dc > %p
  and ends with 1 only if no such file is there and none of a later segment, with 200 if anything failed: what is below 126 opens the database.
  FORMAT.md of pitr, section 8, says all of it; contrib/restore-without-pitr.sh does it. The start of each .wal file is readable text and names its epoch.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_no_command_of_pitr_in_its_second_half() {
        assert!(
            !WITHOUT.contains("pitr restore") && WITHOUT.contains("age -d") && WITHOUT.contains("zstd -dc")
        );
    }
}

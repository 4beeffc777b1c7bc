//! The recovery kit: one page that a person prints and keeps where the host is not.
//!
//! It says where the bytes are, whose they are, how to restore with pitr and archive again, how to restore without it, and how the host was
//! configured; with `--with-identity` also the key. What else it takes, the credentials of the stores, it says in words, file by file. Whoever finds a kit with the key in it and reaches the repository can read everything: it is kept like one.

use std::path::Path;

use serde_json::json;
use zeroize::Zeroizing;

use crate::cli::args::{Common, KeyArgs};
use crate::cli::context::read_credentials;
use crate::cli::exit::Ended;
use crate::cli::output::{self, say};
use crate::clock::{Clock as _, SystemClock};
use crate::config::initial::quoted;
use crate::config::{Config, RepositoryConfig};
use crate::error::{Error, Result};
use crate::ops::key::{self, Place};
use crate::pgdata::conf::quote_shell;
use crate::repo::Keyring;
use crate::seal::{HostFile, Identity};
use crate::wal::PgMajor;

use super::Held;

/// What is done by hand, where `contrib/restore-without-pitr.sh` is not at hand either. FORMAT.md, section 8, explains it.
const BY_HAND: &str = include_str!("by_hand.sh");

/// The line before it, and the one after it.
const CUT: &str = "# - - - - - - - - 8< - - - - - - - -\n";

/// Prints the kit.
///
/// # Errors
/// Kind `Key` if the identity that is to be printed is not at hand or not a recipient's, or does not open every epoch.
pub(super) async fn run(common: &Common, args: &KeyArgs, with_identity: bool) -> Result<Ended> {
    let held = Held::read(common, args)?;
    let identities = held.context.keys.as_deref().map(Keyring::identities).unwrap_or_default();
    if with_identity {
        check_printed(&held.host, identities)?;
    }
    // A kit that opens nothing would be found out on the worst of days.
    key::prove(&held.host, identities)?;
    let folders = Folders::look(&held).await?;
    let mut text = Zeroizing::new(head(&held));
    text.push_str(&folders.text(&held));
    text.push_str(&with_pitr(&held));
    text.push_str(&again(&held)?);
    text.push_str(&without_pitr(&held, &folders));
    text.push_str(&configuration_text(&held.context.config));
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
        output::json(&json!({
            "schema": "pitr.key-kit.v1",
            "cluster": held.host.cluster,
            "seal_fingerprint": held.host.seal.fingerprint().to_string(),
            "repositories": folders.json(),
            "unknown": folders.unknown.iter().map(|(name, why)| json!({ "repository": name, "why": why })).collect::<Vec<_>>(),
            "with_identity": with_identity,
            "text": text.as_str(),
        }));
    } else {
        say(&text);
    }
    Ok(Ended::Well)
}

/// Whoever was removed opens nothing newer: his key on the page would be found out when it is too late.
fn check_printed(host: &HostFile, identities: &[Identity]) -> Result<()> {
    if identities.is_empty() {
        return Err(
            Error::key("there is no identity to print").hint("give the offline recipient's: --identity FILE")
        );
    }
    for public in identities.iter().map(Identity::recipient) {
        if !host.recipients.iter().any(|r| r.recipient == public) {
            return Err(Error::key(format!("{public} is no recipient: its identity is not for a recovery kit"))
                .hint("it was removed, or never added: `pitr key list` names the recipients; give the identity of one of them"));
        }
    }
    Ok(())
}

/// Where the bytes are, as far as the stores say.
#[derive(Default)]
struct Folders {
    places: Vec<(Place, Option<PgMajor>)>,
    /// Repositories that did not say, and why: a kit is useful without, and says what it lacks.
    unknown: Vec<(String, String)>,
}

impl Folders {
    async fn look(held: &Held) -> Result<Self> {
        let mut folders = Self::default();
        for repository in held.context.repositories()? {
            let name = repository.name().to_owned();
            match key::compare(&repository, &held.host).await {
                Ok(places) if places.is_empty() => {
                    folders
                        .unknown
                        .push((name, "it holds no encrypted folder of this cluster yet".to_owned()));
                }
                Ok(places) => {
                    for place in places {
                        let major =
                            repository.open(place.system).await.ok().map(|open| open.identity().major);
                        folders.places.push((place, major));
                    }
                }
                Err(e) => folders.unknown.push((name, e.to_string())),
            }
        }
        Ok(folders)
    }

    fn text(&self, held: &Held) -> String {
        let mut text = String::new();
        for (place, major) in &self.places {
            let (cluster, system) = (&held.host.cluster, place.system);
            let of = major.map_or_else(String::new, |major| format!(", of PostgreSQL {major}"));
            text.push_str(&format!("  repository {}: folder {cluster}/{system}{of}\n", place.repository));
        }
        for (name, why) in &self.unknown {
            let cluster = &held.host.cluster;
            text.push_str(&format!("  repository {name}: folder below {cluster}/ not known: {why}\n"));
        }
        text
    }

    fn json(&self) -> Vec<serde_json::Value> {
        let place = |(p, major): &(Place, Option<PgMajor>)| json!({ "repository": p.repository, "system": p.system.to_string(), "major": major.map(PgMajor::number) });
        self.places.iter().map(place).collect()
    }

    /// Commands that copy each folder to a local disk, by the tools of its store.
    fn copy_text(&self, held: &Held) -> String {
        let mut text = String::new();
        for config in &held.context.config.repositories {
            for (place, _) in self.places.iter().filter(|(place, _)| place.repository == config.name) {
                let folder =
                    format!("{}/{}/{}", config.url.trim_end_matches('/'), held.host.cluster, place.system);
                text.push_str(&format!("  {}\n", copy_command(&folder, config.endpoint.as_deref())));
            }
        }
        text
    }
}

fn head(held: &Held) -> String {
    let host = &held.host;
    let mut text = format!(
        "RECOVERY KIT of PostgreSQL cluster {}, made by pitr {} at {}\n\n\
         Keep this page where the database host is not, and as a file too. The backups are encrypted; one of these keys opens them:\n",
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

fn copy_command(folder: &str, endpoint: Option<&str>) -> String {
    // What cannot be said to a shell has no place in a URL either.
    let word = |text: &str| quote_shell(text).unwrap_or_else(|_| "...".to_owned());
    let (scheme, rest) = folder.split_once("://").unwrap_or(("file", folder));
    match scheme {
        "s3" => {
            let endpoint =
                endpoint.map_or_else(String::new, |endpoint| format!(" --endpoint-url {}", word(endpoint)));
            format!("aws s3 cp --recursive{endpoint} {} FOLDER", word(folder))
        }
        "gs" => format!("gcloud storage cp --recursive {} FOLDER", word(&format!("{folder}/*"))),
        "az" => {
            let url = format!("https://ACCOUNT.blob.core.windows.net/{rest}");
            format!("azcopy copy --recursive --as-subdir=false {} FOLDER", word(&url))
        }
        _ => format!("cp -a {} FOLDER", word(rest)),
    }
}

/// The configuration that the host had, for the one that takes its place: without comments, and without a password.
fn configuration_text(config: &Config) -> String {
    let text = config.path.as_deref().and_then(|path| std::fs::read_to_string(path).ok());
    let Some(mut table) = text.and_then(|text| text.parse::<toml::Table>().ok()) else {
        return String::new();
    };
    if config.holds_secret()
        && let Some(postgres) = table.get_mut("postgres").and_then(toml::Value::as_table_mut)
    {
        postgres.remove("conninfo");
    }
    let lines: String = table.to_string().lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "\nHOW THE LOST HOST WAS CONFIGURED (take over what still holds: retention, promise, time zone, agent)\n{lines}"
    )
}

fn credentials_file(config: &RepositoryConfig) -> String {
    format!("/etc/pitr/{}.credentials", config.name)
}

fn ca_file(config: &RepositoryConfig) -> String {
    format!("/etc/pitr/{}.ca.pem", config.name)
}

fn repository_text(config: &RepositoryConfig) -> String {
    let (name, url) = (quoted(&config.name), quoted(&config.url));
    let mut text = format!("  [[repository]]\n  name = {name}\n  url  = {url}\n");
    let mut line = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            text.push_str(&format!("  {key} = {}\n", quoted(value)));
        }
    };
    line("endpoint", config.endpoint.as_deref());
    line("region", config.region.as_deref());
    line("ca_file", config.ca_file.as_ref().map(|_| ca_file(config)).as_deref());
    line("credentials_file", config.credentials_file.as_ref().map(|_| credentials_file(config)).as_deref());
    if !config.required {
        text.push_str("  required = false\n");
    }
    if config.allow_http {
        text.push_str("  allow_http = true\n");
    }
    if !config.sealed {
        text.push_str("  sealed = false\n");
    }
    if config.allow_unsafe_store {
        text.push_str("  allow_unsafe_store = true\n");
    }
    text
}

/// The files that a `[[repository]]` names, in words: what they hold is not on the page.
fn files_text(config: &RepositoryConfig) -> String {
    let mut text = String::new();
    if let Some(path) = &config.credentials_file {
        text.push_str(&format!(
            "  {}: who pitr is to the store of {}. The values are not on this page; they are kept at: ____________\n",
            credentials_file(config),
            config.name
        ));
        for line in credentials_lines(path, &config.url) {
            text.push_str(&format!("    {line}\n"));
        }
    } else if !config.url.starts_with("file:") {
        text.push_str(&format!(
            "  {} has no credentials file: the lost host had its own from its environment, ~/.aws or its machine's role. Where there is\n  no such thing, add credentials_file = {:?}, with these lines:\n",
            config.name,
            credentials_file(config)
        ));
        for line in usual_lines(&config.url) {
            text.push_str(&format!("    {line}\n"));
        }
    }
    if config.ca_file.is_some() {
        text.push_str(&format!(
            "  {}: the certificate, as PEM, of the authority that signed that of the store's server; no secret\n",
            ca_file(config)
        ));
    }
    text
}

/// The lines of a credentials file without their values: as they are now, if it can be read.
fn credentials_lines(path: &Path, url: &str) -> Vec<String> {
    let found = read_credentials(path).ok().filter(|found| !found.is_empty());
    match found {
        Some(found) if found.get("google_service_account_key").is_none() => {
            found.iter().map(|(name, _)| format!("{name} = ...")).collect()
        }
        _ => usual_lines(url),
    }
}

fn usual_lines(url: &str) -> Vec<String> {
    let lines: &[&str] = match url.split_once(':').map_or("", |(scheme, _)| scheme) {
        "az" => &["account_name = ...", "account_key = ...      # or sas_token = ..."],
        "gs" => &["(the JSON key file of the Google service account, as it is)"],
        _ => &["access_key_id = ...", "secret_access_key = ..."],
    };
    lines.iter().map(|line| (*line).to_owned()).collect()
}

/// How the lost host reached its server, for the one that takes its place. A password is not on the page.
fn server_text(config: &Config) -> String {
    let Some(conninfo) = &config.postgres.conninfo else { return String::new() };
    if config.holds_secret() {
        return "  [postgres]\n  # conninfo = \"...\"   (it has a password in it, and is kept at: ____________)\n".to_owned();
    }
    format!("  [postgres]\n  # conninfo = {}\n", quoted(conninfo))
}

fn host_file(held: &Held) -> String {
    format!("/etc/pitr/{}.host", held.host.cluster)
}

fn with_pitr(held: &Held) -> String {
    let mut text = format!(
        "\nTO RESTORE WITH PITR\n  Put the key (AGE-SECRET-KEY-1...) into /etc/pitr/recovery.key and this into /etc/pitr/restore.toml:\n\n  \
         cluster = {:?}\n  [keys]\n  identity_file    = \"/etc/pitr/recovery.key\"\n  seal_fingerprint = \"{}\"\n  # host_file = \"{}\"\n",
        held.host.cluster,
        held.host.seal.fingerprint(),
        host_file(held)
    );
    text.push_str(&server_text(&held.context.config));
    for repository in &held.context.config.repositories {
        text.push_str(&repository_text(repository));
    }
    text.push('\n');
    for repository in &held.context.config.repositories {
        text.push_str(&files_text(repository));
    }
    if let Some(dir) = &held.context.config.postgres.data_dir {
        text.push_str(&format!("  The lost host's data directory was {}.\n", dir.display()));
    }
    text.push_str(
        "  PostgreSQL's recovery reads these files, as the user that it runs as:\n  \
         chown -R postgres: /etc/pitr; chmod 755 /etc/pitr; chmod 600 /etc/pitr/*\n  \
         pitr --config /etc/pitr/restore.toml info\n  \
         pitr --config /etc/pitr/restore.toml restore --target-dir DIR [--to \"2025-10-17 10:30+00\"]\n  \
         (--replace: DIR is the new primary's; --copy: it is a look beside it. What to do then, it says at its end)\n",
    );
    text
}

/// A host that has lost its host file archives nothing.
fn again(held: &Held) -> Result<String> {
    let word = |text: &str| {
        quote_shell(text).map_err(|e| Error::usage("a recipient's name cannot be said to a shell").source(e))
    };
    let mut recipients = String::new();
    for recipient in &held.host.recipients {
        let pair = format!("{}={}", recipient.name, recipient.recipient);
        recipients.push_str(&format!(" \\\n    --recipient {}", word(&pair)?));
    }
    Ok(format!(
        "\nTO ARCHIVE AGAIN (after restore --replace: what the host seals with is made anew from the key and the repository)\n  \
         pitr --config /etc/pitr/restore.toml key recover --host-file {}{recipients}\n  \
         Leave out a key that is lost or that somebody may have, and name another. Of several repositories, name those that are left by\n  \
         --repository NAME, and take the others out of restore.toml, if one is lost for good. Take away the # before host_file in restore.toml, and that\n  \
         before conninfo, if there is one, once it says how the new server is reached. Take over from below what the host promised. When the\n  server is open:\n  \
         pitr --config /etc/pitr/restore.toml init --apply\n  \
         pitr --config /etc/pitr/restore.toml backup --full\n  \
         Then print a new page, and take the identity off that host.\n",
        host_file(held)
    ))
}

fn without_pitr(held: &Held, folders: &Folders) -> String {
    let fingerprint = held.host.seal.fingerprint().to_string();
    format!(
        "\nTO RESTORE WITHOUT PITR, with age, zstd, tar, b3sum and a shell. FOLDER is a copy of the folder above on a local disk:\n\
         {}  \
         By pitr's own script, of which a copy belongs beside this page: it checks every digest and mac, moves tablespaces, and names what is wrong.\n  \
         sh restore-without-pitr.sh -i recovery.key -f {fingerprint} FOLDER data\n  \
         By hand, which checks only that what age opens was not changed, and that each key is the one with the fingerprint:\n\
         {CUT}{}{CUT}  \
         Then start PostgreSQL of the same major version on data. If there is no postgresql.conf in it (Debian has it below /etc), make one, and\n  \
         pg_hba.conf. To stop earlier, add recovery_target_time = '2025-10-17 10:30:00+00' to data/postgresql.auto.conf before that.\n  \
         When it is open, delete the e*.key files, recovery.key and seal: they open everything, and make what looks genuine.\n",
        folders.copy_text(held),
        BY_HAND.replace("@fingerprint@", &fingerprint)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_without_pitr_is_no_way_with_it() {
        assert!(
            !BY_HAND.contains("pitr restore") && BY_HAND.contains("age -d") && BY_HAND.contains("zstd -dc")
        );
        assert_eq!(BY_HAND.matches("@fingerprint@").count(), 1);
    }

    #[test]
    fn each_store_has_a_command_that_copies_a_folder() {
        let command = |folder: &str| copy_command(folder, Some("http://h:9000"));
        let s3 = command("s3://b/p/main/7");
        assert!(
            s3.starts_with("aws s3 cp --recursive --endpoint-url ") && s3.contains("s3://b/p/main/7"),
            "{s3}"
        );
        let out = |folder: &str| {
            let text = command(folder).replacen("cp -a", "printf %s,", 1);
            let done = std::process::Command::new("sh").args(["-c", &text]).output().unwrap();
            String::from_utf8(done.stdout).unwrap()
        };
        assert_eq!(out("file:///it's here/main/7"), "/it's here/main/7,FOLDER,");
        assert!(command("gs://b/main/7").contains("gs://b/main/7/*"));
        assert!(command("az://c/main/7").contains("blob.core.windows.net/c/main/7"));
    }

    #[test]
    fn the_configuration_is_on_the_page_without_comments_and_passwords() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("pitr.toml");
        let said = |conninfo: &str| {
            let text = format!(
                "cluster = \"main\" # secret remark\n[postgres]\nconninfo = \"{conninfo}\"\ndata_dir = \"/d\"\n\
                 [[repository]]\nname = \"one\"\nurl = \"file:///r\"\nretention = {{ window = \"7d\" }}\n"
            );
            #[expect(clippy::disallowed_methods, reason = "a scratch file of a test needs no durability")]
            std::fs::write(&path, &text).unwrap();
            let config = Config::parse(&text, &path).unwrap();
            configuration_text(&Config { path: Some(path.clone()), ..config })
        };
        let plain = said("host=/tmp");
        for words in ["conninfo = \"host=/tmp\"", "data_dir = \"/d\"", "window = \"7d\""] {
            assert!(plain.contains(words), "{plain}");
        }
        let secret = said("host=h password=hunter2");
        assert!(
            !secret.contains("hunter2") && !secret.contains("conninfo") && secret.contains("/d"),
            "{secret}"
        );
        assert!(!plain.contains("remark"), "{plain}");
    }

    #[test]
    fn how_the_server_is_reached_is_on_the_page_but_for_a_password() {
        let said = |conninfo: &str| {
            let text = format!(
                "cluster = \"main\"\n[postgres]\nconninfo = {}\n[[repository]]\nname = \"one\"\nurl = \"file:///r\"\n",
                quoted(conninfo)
            );
            server_text(&Config::parse(&text, Path::new("/pitr.toml")).unwrap())
        };
        assert_eq!(said("host='/a b' port=5433"), "  [postgres]\n  # conninfo = \"host='/a b' port=5433\"\n");
        for secret in ["host=h password=hunter2", "postgres://bob:hunter2@h/"] {
            let said = said(secret);
            assert!(said.contains("kept at") && !said.contains("hunter2") && !said.contains("bob"), "{said}");
        }
    }

    #[test]
    fn a_repository_names_the_files_that_it_had_and_no_others() {
        let named = |name: &str, url: &str, more: &str| {
            let text =
                format!("cluster = \"main\"\n[[repository]]\nname = \"{name}\"\nurl = \"{url}\"\n{more}");
            Config::parse(&text, Path::new("/pitr.toml")).unwrap().repositories.pop().unwrap()
        };
        let files = "credentials_file = \"/secret/x\"\nca_file = \"/y\"\n";
        let (one, two) = (named("one", "s3://bucket/a", files), named("two", "gs://bucket/b", ""));
        let said = |config: &RepositoryConfig| repository_text(config) + &files_text(config);
        let (first, second) = (said(&one), said(&two));
        for word in
            ["\"/etc/pitr/one.credentials\"", "\"/etc/pitr/one.ca.pem\"", "secret_access_key = ...", "PEM"]
        {
            assert!(first.contains(word), "{word}: {first}");
        }
        assert!(!repository_text(&two).contains("_file") && second.contains("role"), "{second}");
        assert!(second.contains("JSON key file") && !second.contains("access_key_id"), "{second}");
        let local = said(&named("here", "file:///var/backups", ""));
        assert!(!local.contains("credentials"), "{local}");
    }
}

//! The keys, as `check` sees them: are the wraps where a restore will look for them, and how old is the key?
//!
//! A repository without the wraps of an epoch is unreadable for ever once the host is gone, and one with others than the host's may be
//! somebody's attempt to be read for him. Rules: REPOSITORY.md 5.

use jiff::{SignedDuration, Timestamp};

use super::{Finding, Grade};
use crate::ops::key;
use crate::repo::{Keyring, Repository};
use crate::seal::HostFile;

/// From this age on a key should be rotated.
const OLD: SignedDuration = SignedDuration::from_hours(335 * 24);

/// What is to be said of the keys of one sealed repository.
pub(super) async fn repository(repository: &Repository, now: Timestamp) -> Vec<Finding> {
    let what = format!("keys in {}", repository.name());
    let Some(host) = repository.keys().and_then(Keyring::host) else {
        let text = "there is no host file here: nothing can be stored in it from this host";
        return vec![Finding::new(Grade::Good, &what, text)];
    };
    let places = match key::compare(repository, host).await {
        Ok(places) => places,
        Err(e) => return vec![Finding::failed(&what, &e)],
    };
    let mut found = Vec::new();
    for place in &places {
        if let Some(first) = place.strange.first() {
            let text = format!(
                "{} of system {} is not what the host file holds ({} such)",
                first,
                place.system,
                place.strange.len()
            );
            found.push(Finding::new(Grade::Risk, &what, text).hint(
                "either this host file is not the newest one, or somebody put it there; nothing here uses it",
            ));
        }
        if let Some(first) = place.missing.first() {
            let text =
                format!("{first} of system {} is missing ({} such)", place.system, place.missing.len());
            let finding = Finding::new(Grade::Bad, &what, text);
            found.push(
                finding.hint("`pitr init` puts it there; without it what was sealed is lost with the host"),
            );
        }
    }
    if found.is_empty() {
        let text = format!("{} wraps in {} folders, all the host file's", host.wraps().count(), places.len());
        found.push(Finding::new(Grade::Good, &what, text));
    }
    found.extend(age(host, now));
    found
}

fn age(host: &HostFile, now: Timestamp) -> Option<Finding> {
    let current = host.current()?;
    let age = now.duration_since(current.created);
    (age >= OLD).then(|| {
        let text = format!("epoch {} is {} days old", current.epoch, age.as_hours() / 24);
        Finding::new(Grade::Risk, "keys", text)
            .hint("`pitr key rotate` begins the next one; nothing is rewritten")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{Identity, NamedRecipient};

    #[test]
    fn a_key_is_old_from_335_days_on() {
        let made: Timestamp = "2025-01-01T00:00:00Z".parse().unwrap();
        let recipient = |name: &str| NamedRecipient {
            name: name.to_owned(),
            recipient: Identity::generate().recipient(),
        };
        let mut host =
            key::init(&"main".parse().unwrap(), vec![recipient("a"), recipient("b")], made).unwrap();
        let after = |days: i64| made + SignedDuration::from_hours(days * 24);
        assert_eq!(age(&host, after(334)), None);
        assert_eq!(age(&host, after(335)).unwrap().grade, Grade::Risk);
        key::rotate(&mut host, after(335)).unwrap();
        assert_eq!(age(&host, after(336)), None, "the newest epoch counts");
    }
}

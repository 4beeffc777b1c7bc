//! Replacement or copy: who the restored server is, and who it runs as.
//!
//! ```text
//!  said (--replace, --copy) ............................................. as said
//!  target is the configured data_dir, no sign of life for twice the RPO . replacement
//!  target is the configured data_dir, signs of life ..................... exit 9: it must be said
//!  any other target ..................................................... copy
//! ```
//! Two servers that archive as one cluster destroy each other's history; so a replacement beside a living primary is never assumed.
//! Pure but for user names. Source of truth: RECOVERY.md 9.

use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::durable::Owner;
use crate::error::{Error, Result};

use super::Purpose;
use super::directory::Place;
use super::host;

/// The newest sign that the cluster is alive somewhere: a time in stored WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// When.
    pub at: Timestamp,
}

/// Decides the purpose.
///
/// # Errors
/// Kind `Refused` where it must be said.
pub fn decide(
    said: Option<Purpose>,
    target: &Path,
    configured: Option<&Path>,
    life: Option<Life>,
    rpo: Duration,
    now: Timestamp,
) -> Result<Purpose> {
    let is_configured =
        configured.is_some_and(|dir| dir == target || dir.canonicalize().is_ok_and(|d| d == target));
    match said {
        Some(purpose) => return Ok(purpose),
        None if !is_configured => return Ok(Purpose::Copy),
        None => {}
    }
    let quiet = SignedDuration::try_from(rpo.saturating_mul(2)).unwrap_or(SignedDuration::MAX);
    match life {
        Some(life) if now.duration_since(life.at) < quiet => {
            let ago = now.duration_since(life.at).as_secs().max(0);
            Err(Error::refused(format!(
                "the cluster was alive {ago} seconds ago: the archive holds WAL of {}",
                life.at
            ))
            .hint(
                "if it is this server that is to be replaced, say --replace; if another server is the primary now, restore a copy \
                 with --copy --target-dir DIR",
            ))
        }
        _ => Ok(Purpose::Replace),
    }
}

/// The user that the restored server will run as: the owner of what is there, of the configured data directory, of the directory
/// above, else `postgres`; for a process that is not root, itself.
///
/// # Errors
/// Kind `Refused` if this process cannot make the directory that user's, or there is no such user.
pub fn server_user(place: &Place, configured: Option<&Path>) -> Result<Owner> {
    let own = host::ourselves();
    if own.uid != 0 {
        return match place.owner {
            Some(owner) if owner.uid != own.uid => {
                let name = host::user_name(owner.uid).unwrap_or_else(|| format!("user {}", owner.uid));
                Err(Error::refused(format!("{} belongs to {name}", place.path.display()))
                    .hint(format!("run the command as {name}, or as root")))
            }
            _ => Ok(own),
        };
    }
    let of = |path: &Path| Owner::of(path).ok();
    let above = place.path.parent().and_then(of);
    let known = [place.owner, configured.and_then(of), above, host::postgres_user()];
    known.into_iter().flatten().find(|owner| owner.uid != 0).ok_or_else(|| {
        Error::refused("PostgreSQL does not run as root, and there is no user postgres here")
            .hint("make the target directory first and give it to the user the server runs as")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn decided(said: Option<Purpose>, target: &str, seconds_since_life: Option<i64>) -> Result<Purpose> {
        let now = Timestamp::from_second(1_760_000_000).unwrap();
        let life =
            seconds_since_life.map(|s| Life { at: Timestamp::from_second(1_760_000_000 - s).unwrap() });
        let configured = Some(Path::new("/srv/main"));
        decide(said, Path::new(target), configured, life, Duration::from_secs(300), now)
    }

    #[test]
    fn a_replacement_beside_a_living_cluster_must_be_said() {
        assert_eq!(decided(None, "/srv/main", Some(599)).unwrap_err().kind(), Kind::Refused);
        assert_eq!(decided(None, "/srv/main", Some(601)).unwrap(), Purpose::Replace);
        assert_eq!(decided(None, "/srv/main", None).unwrap(), Purpose::Replace);
        assert_eq!(decided(Some(Purpose::Replace), "/srv/main", Some(1)).unwrap(), Purpose::Replace);
        // A source whose clock is ahead is alive too.
        assert_eq!(decided(None, "/srv/main", Some(-50)).unwrap_err().kind(), Kind::Refused);
    }

    #[test]
    fn anything_but_the_configured_directory_is_a_copy_unless_said() {
        assert_eq!(decided(None, "/srv/other", Some(1)).unwrap(), Purpose::Copy);
        assert_eq!(decided(Some(Purpose::Replace), "/srv/other", Some(1)).unwrap(), Purpose::Replace);
        assert_eq!(decided(Some(Purpose::Copy), "/srv/main", None).unwrap(), Purpose::Copy);
    }
}

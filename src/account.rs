//! Accounts of this host: who owns a directory, who the server's user is, which groups it has.
//!
//! Read from `/etc/passwd` and `/etc/group` alone: in a static binary the C library's look-ups load plug-ins made for the host's
//! library, and crash. An account that is kept elsewhere (LDAP) is known by its number; nothing here needs more.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};

/// Who a command acts as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Login name, where the id has one.
    pub name: Option<String>,
    /// Home directory, where the id has one.
    pub home: Option<PathBuf>,
}

impl Account {
    /// The account that owns `path`.
    pub fn owner_of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self::of_ids(meta.uid(), meta.gid()))
    }

    /// The account called `name`.
    pub fn named(name: &str) -> Option<Self> {
        passwd().find(|account| account.name.as_deref() == Some(name))
    }

    /// The account this process runs as now.
    pub fn current() -> Self {
        Self::of_ids(Uid::effective().as_raw(), Gid::effective().as_raw())
    }

    /// The login name, or the number where there is none.
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("uid {}", self.uid))
    }

    /// The account with this user id; the group id is taken as given.
    pub fn of_ids(uid: u32, gid: u32) -> Self {
        let known = passwd().find(|account| account.uid == uid);
        let (name, home) = known.map_or((None, None), |account| (account.name, account.home));
        Self { uid, gid, name, home }
    }

    /// Groups this account is a member of, its primary one first.
    pub fn groups(&self) -> Vec<Gid> {
        let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let others = self.named_in(&text).into_iter().filter(|gid| *gid != self.gid);
        std::iter::once(self.gid).chain(others).map(Gid::from_raw).collect()
    }

    /// The groups of which a text such as `/etc/group` names it as a member.
    pub fn named_in(&self, text: &str) -> Vec<u32> {
        let named = self.name.as_deref().unwrap_or_default();
        let member = |line: &str| {
            let mut fields = line.split(':').skip(2);
            let (gid, members) = (fields.next()?.parse::<u32>().ok()?, fields.next()?);
            (!named.is_empty() && members.split(',').any(|m| m == named)).then_some(gid)
        };
        text.lines().filter_map(member).collect()
    }

    /// The account of a line of `/etc/passwd`; `None` for a line that is no account.
    pub fn of_line(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [name, _, uid, gid, _, home, ..] => Some(Self {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                name: Some((*name).to_owned()),
                home: Some(PathBuf::from(home)),
            }),
            _ => None,
        }
    }
}

/// The accounts of this host, as `/etc/passwd` has them; lines that are not accounts are passed over.
fn passwd() -> impl Iterator<Item = Account> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let accounts: Vec<Account> = text.lines().filter_map(Account::of_line).collect();
    accounts.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_read_as_passwd_has_them() {
        let found =
            Account::of_line("postgres:x:105:113:PostgreSQL,,,:/var/lib/postgresql:/bin/bash").unwrap();
        assert_eq!((found.uid, found.gid, found.label()), (105, 113, "postgres".to_owned()));
        assert_eq!(found.home, Some(PathBuf::from("/var/lib/postgresql")));
        for bad in ["", "postgres", "a:b:c:d:e:f:g", "+::::::", "x:x:-1:0:::"] {
            assert_eq!(Account::of_line(bad), None, "{bad}");
        }
    }

    #[test]
    fn root_is_known_everywhere() {
        assert_eq!(Account::named("root").map(|a| a.uid), Some(0));
    }
}

//! Who started this process, and whether he is still there.
//!
//! PostgreSQL's startup process, or a shell between, waits for `restore_command`. When it is killed, what it started lives on, and the next
//! startup process asks for another file under the same destination. So a file is put there only while he who asked for it waits
//! (RECOVERY.md 18). A shell outlives its own parent as well, so both are looked at.

use std::sync::OnceLock;

/// The parent of this process, and the parent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    parent: i32,
    above: Option<i32>,
}

impl Asker {
    /// Who waited for this process when it was first asked. Looked at again after he was gone, whoever inherits an orphan would pass for him.
    pub fn at_first() -> Self {
        static FIRST: OnceLock<Asker> = OnceLock::new();
        *FIRST.get_or_init(Self::now)
    }

    fn now() -> Self {
        let parent = nix::unistd::getppid().as_raw();
        Self { parent, above: parent_of(parent) }
    }

    /// Whether he still waits. Who is above the parent need not be shown to every user (`hidepid` in proc(5)).
    pub fn waits(self) -> bool {
        let now = Self::now();
        let same_above = match (self.above, now.above) {
            (Some(then), Some(now)) => then == now,
            _ => true,
        };
        now.parent == self.parent && same_above
    }
}

/// The fourth word of `stat` (proc(5)); the second is the program's name, in which anything may stand.
fn parent_of(process: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_from_the_kernel() {
        let own = i32::try_from(std::process::id()).unwrap();
        let asker = Asker::now();
        assert_eq!(parent_of(own), Some(asker.parent));
        assert!(asker.waits());
        assert!(!Asker { above: Some(own), ..asker }.waits());
        assert!(!Asker { parent: own, ..asker }.waits());
        assert_eq!(Asker::at_first(), Asker::at_first());
        assert_eq!(parent_of(-1), None);
    }
}

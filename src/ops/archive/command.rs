//! What an `archive_command` does: does it run pitr, does it run something else too, and can it say yes although pitr said no?
//!
//! PostgreSQL hands the text to a shell. Only its outline is looked at here, as people write it: commands joined by `&&`. pgBackRest's
//! sub-command is called `archive-push` too, so the program's name counts. Pure.

/// An `archive_command` that runs `pitr archive-push`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct PushCommand {
    /// Another command runs before or after it.
    pub(in crate::ops) beside: bool,
    /// What follows a failure of it may still end well.
    pub(in crate::ops) hides_failure: bool,
}

/// The outline of `command`; `None` if it does not run `pitr archive-push`.
pub(in crate::ops) fn push_command(command: &str) -> Option<PushCommand> {
    let simple: Vec<&str> =
        command.split(['&', '|', ';', '\n']).filter(|part| !part.trim().is_empty()).collect();
    let ours = simple.iter().position(|part| runs_push(part))?;
    let (before, after) = (simple.get(..ours).unwrap_or_default(), simple.get(ours..).unwrap_or_default());
    let beside = !before.is_empty() || after.len() > 1;
    // `a && b` fails if either does; anything else that joins commands may not.
    let joined = command.replace("&&", " ");
    Some(PushCommand { beside, hides_failure: joined.contains(['&', '|', ';', '\n']) })
}

/// Does this simple command run `pitr archive-push`, perhaps behind `env`, `nice` and the like?
fn runs_push(simple: &str) -> bool {
    let bare = |word: &str| word.trim_matches(['\'', '"', '(', ')']).to_owned();
    let words: Vec<String> = simple.split_whitespace().map(bare).collect();
    let pitr = words.iter().position(|word| {
        word.rsplit('/').next().is_some_and(|name| name.starts_with("pitr") && !name.contains('='))
    });
    pitr.is_some_and(|at| words.iter().skip(at).any(|word| word == "archive-push"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitrs_own_command_is_told_from_others_of_the_same_name() {
        let ours = |beside, hides_failure| Some(PushCommand { beside, hides_failure });
        for (command, want) in [
            ("/usr/local/bin/pitr --config /etc/pitr/pitr.toml archive-push %p", ours(false, false)),
            ("'/opt/my tools/pitr' archive-push \"%p\"", ours(false, false)),
            ("TZ=UTC nice /usr/bin/pitr-0.2 archive-push %p", ours(false, false)),
            ("pgbackrest archive-push %p", None),
            ("pgbackrest --config=/etc/pitr/rest.conf archive-push %p", None),
            ("wal-g wal-push %p", None),
            ("cp %p /var/lib/pitr/%f", None),
            ("true", None),
            ("", None),
            ("pgbackrest archive-push %p && pitr archive-push %p", ours(true, false)),
            ("pitr archive-push %p && test ! -f /a/%f && cp %p /a/%f", ours(true, false)),
            ("pitr archive-push %p || true", ours(true, true)),
            ("pitr archive-push %p; cp %p /a/%f", ours(true, true)),
            ("pitr archive-push %p & wait", ours(true, true)),
            ("pitr archive-push %p | logger", ours(true, true)),
        ] {
            assert_eq!(push_command(command), want, "{command}");
        }
    }
}

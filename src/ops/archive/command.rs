//! What an `archive_command` does: does it run pitr, does it run something else too, and can it say yes although pitr said no?
//!
//! PostgreSQL hands the text to a shell. Only its outline is looked at here, as people write it: simple commands, joined. pgBackRest's
//! sub-command is called `archive-push` too, so the program's name counts. What is not recognised stays unknown: a script may run
//! pitr, and only a segment that goes there and comes back can tell. Pure.

/// An `archive_command` that runs `pitr archive-push`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) struct PushCommand {
    /// Another command runs before or after it.
    pub(in crate::ops) beside: bool,
    /// What follows a failure of it may still end well.
    pub(in crate::ops) hides_failure: bool,
    /// It is told which file (`%p`).
    pub(in crate::ops) told: bool,
}

/// What an `archive_command` is, as far as its text tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Outline {
    /// It runs pitr.
    Pitr(PushCommand),
    /// Nothing is run: the server keeps its WAL.
    Empty,
    /// It stores nothing and says yes: the server throws its WAL away.
    SaysYes,
    /// It stores nothing and says no: the server keeps its WAL.
    SaysNo,
    /// Another tool for backups, by its name.
    Tool(&'static str),
    /// A program that copies files, by its name.
    Copies(&'static str),
    /// Something else.
    Unknown,
}

/// Tools for backups, by what their programs' names begin with.
const TOOLS: [(&str, &str); 8] = [
    ("pgbackrest", "pgBackRest"),
    ("wal-g", "WAL-G"),
    ("wal-e", "WAL-E"),
    ("barman", "Barman"),
    ("pg_probackup", "pg_probackup"),
    ("pgmoneta", "pgmoneta"),
    ("pghoard", "PGHoard"),
    ("omnipitr", "OmniPITR"),
];
/// Programs with which people copy WAL.
const COPIERS: [&str; 27] = [
    "cp", "mv", "ln", "install", "cat", "dd", "tee", "rsync", "scp", "sftp", "ssh", "gzip", "bzip2", "xz",
    "zstd", "lz4", "tar", "curl", "aws", "s3cmd", "gsutil", "gcloud", "az", "azcopy", "rclone", "mc", "gpg",
];
/// Programs that run the one behind them.
const WRAPPERS: [&str; 12] =
    ["env", "nice", "ionice", "chrt", "exec", "command", "nohup", "sudo", "time", "timeout", "sh", "bash"];

/// What `command` is.
pub(in crate::ops) fn outline(command: &str) -> Outline {
    let parts = simple_commands(command);
    if parts.is_empty() {
        return Outline::Empty;
    }
    if let Some(push) = push_command(command) {
        return Outline::Pitr(push);
    }
    let words = parts.iter().flat_map(|part| part.split_whitespace());
    let tool = |word: &str| TOOLS.iter().find(|(begin, _)| base(&bare(word)).starts_with(begin));
    if let Some((_, name)) = words.filter(|word| !word.contains('=')).find_map(tool) {
        return Outline::Tool(name);
    }
    let programs: Vec<Program> = parts.iter().map(|part| program(part)).collect();
    if let Some(name) = programs.iter().find_map(|p| COPIERS.into_iter().find(|name| *name == p.name)) {
        return Outline::Copies(name);
    }
    let answers: Option<Vec<bool>> = programs.iter().map(Program::answer).collect();
    match answers {
        None => Outline::Unknown,
        // `a && b` says yes if both do; otherwise the last one decides, or the first yes.
        Some(all) if is_all_and(command) && all.contains(&false) => Outline::SaysNo,
        Some(_) => Outline::SaysYes,
    }
}

/// The outline of `command`; `None` if it does not run `pitr archive-push`.
pub(in crate::ops) fn push_command(command: &str) -> Option<PushCommand> {
    let joined = joined(command);
    let ours = joined.iter().position(|(part, _)| runs_push(part))?;
    let (before, from) = joined.split_at_checked(ours)?;
    let ((push, join), after) = from.split_first()?;
    // It is run whatever came of what stands before it, or its answer is theirs.
    let is_run = before.iter().all(|(_, join)| matches!(join, Join::And | Join::Then));
    let counts = match (join, after) {
        (Join::End | Join::Then, []) => true,
        (Join::And, rest) => rest.iter().all(|(_, join)| matches!(join, Join::And | Join::End)),
        // It ends with pitr's own answer, or with no.
        (Join::Then | Join::Or, [(last, Join::End | Join::Then)]) if hands_on(last) => true,
        (Join::Or, [(last, Join::End | Join::Then)]) => program(last).answer() == Some(false),
        _ => false,
    };
    let beside = joined.len() > 1;
    Some(PushCommand { beside, hides_failure: !(is_run && counts), told: push.contains("%p") })
}

/// Ends with the answer of what ran before.
fn hands_on(simple: &str) -> bool {
    matches!(simple, "exit" | "exit $?")
}

/// What stands between a simple command and the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    /// `&&`
    And,
    /// `||`
    Or,
    /// `;`, or the end of the line.
    Then,
    /// `&`
    Beside,
    /// `|`
    Pipe,
    /// Nothing, and nothing follows.
    End,
}

/// The simple commands, each with what follows it.
fn joined(command: &str) -> Vec<(String, Join)> {
    let plain = without_redirects(command);
    let mut found: Vec<(String, Join)> = Vec::new();
    let mut rest = plain.as_str();
    while !rest.is_empty() {
        let at = rest.find(['&', '|', ';', '\n']).unwrap_or(rest.len());
        let (part, tail) = rest.split_at(at);
        let joins = [("&&", Join::And), ("||", Join::Or), ("&", Join::Beside), ("|", Join::Pipe)];
        let (sign, join) = joins.into_iter().find(|(sign, _)| tail.starts_with(sign)).unwrap_or(match tail {
            "" => ("", Join::End),
            _ => (";", Join::Then),
        });
        rest = tail.get(sign.len()..).unwrap_or_default();
        if !part.trim().is_empty() {
            found.push((part.trim().to_owned(), join));
        }
    }
    found
}

/// The text without what sends output elsewhere by a number (`2>&1`, `&>file`), whose `&` joins nothing.
fn without_redirects(command: &str) -> String {
    command.replace(">&", ">").replace("&>", ">")
}

fn simple_commands(command: &str) -> Vec<String> {
    joined(command).into_iter().map(|(part, _)| part).collect()
}

/// `a && b` fails if either does; anything else that joins commands may not.
fn is_all_and(command: &str) -> bool {
    !without_redirects(command).replace("&&", " ").contains(['&', '|', ';', '\n'])
}

fn bare(word: &str) -> String {
    word.trim_matches(['\'', '"', '(', ')', '{', '}']).to_owned()
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Does this simple command run `pitr archive-push`, perhaps behind `env`, `nice` and the like?
fn runs_push(simple: &str) -> bool {
    let words: Vec<String> = simple.split_whitespace().map(bare).collect();
    let pitr = words.iter().position(|word| base(word).starts_with("pitr") && !base(word).contains('='));
    pitr.is_some_and(|at| words.iter().skip(at).any(|word| word == "archive-push"))
}

/// The program that a simple command runs, and its first argument.
struct Program {
    name: String,
    argument: String,
}

impl Program {
    /// What a program that stores nothing answers; `None` for one that may store something.
    fn answer(&self) -> Option<bool> {
        match (self.name.as_str(), self.argument.as_str()) {
            ("true" | ":" | "echo" | "printf" | "logger" | "sleep", _) | ("exit", "" | "0") => Some(true),
            ("false" | "exit", _) => Some(false),
            _ => None,
        }
    }
}

fn program(simple: &str) -> Program {
    let mut words = simple.split_whitespace().map(bare).filter(|word| !word.is_empty());
    let mut behind_wrapper = false;
    let name = loop {
        let Some(word) = words.next() else { break String::new() };
        let setting = word.split_once('=').is_some_and(|(name, _)| !name.contains('/'));
        let of_wrapper =
            behind_wrapper && (word.starts_with('-') || word.starts_with(|c: char| c.is_ascii_digit()));
        if WRAPPERS.contains(&base(&word)) {
            behind_wrapper = true;
        } else if !setting && !of_wrapper {
            break base(&word).to_owned();
        }
    };
    Program { name, argument: words.next().unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitrs_own_command_is_told_from_others_of_the_same_name() {
        let ours = |beside, hides_failure| Some(PushCommand { beside, hides_failure, told: true });
        for (command, want) in [
            ("/usr/local/bin/pitr --config /etc/pitr/pitr.toml archive-push %p", ours(false, false)),
            ("'/opt/my tools/pitr' archive-push \"%p\"", ours(false, false)),
            ("TZ=UTC nice /usr/bin/pitr-0.2 archive-push %p", ours(false, false)),
            ("pitr archive-push %p >> /var/log/pitr.log 2>&1", ours(false, false)),
            ("pitr archive-push %p &>/var/log/pitr.log", ours(false, false)),
            ("pgbackrest archive-push %p", None),
            ("pgbackrest --config=/etc/pitr/rest.conf archive-push %p", None),
            ("wal-g wal-push %p", None),
            ("cp %p /var/lib/pitr/%f", None),
            ("true", None),
            ("", None),
            ("pgbackrest archive-push %p && pitr archive-push %p", ours(true, false)),
            ("pitr archive-push %p && test ! -f /a/%f && cp %p /a/%f", ours(true, false)),
            (". /etc/pitr/env; pitr archive-push %p", ours(true, false)),
            ("export TZ=UTC\npitr archive-push %p;", ours(true, false)),
            ("pitr archive-push %p || exit 1", ours(true, false)),
            ("pitr archive-push %p || false", ours(true, false)),
            ("pitr archive-push %p; exit $?", ours(true, false)),
            ("pitr archive-push %p || exit", ours(true, false)),
            ("pitr archive-push %p || exit 0", ours(true, true)),
            ("pitr archive-push %p; exit 0", ours(true, true)),
            ("pitr archive-push %p || exit 1 || true", ours(true, true)),
            ("pitr archive-push %p && cp %p /a/%f || true", ours(true, true)),
            ("test -f /a/%f || pitr archive-push %p", ours(true, true)),
            ("pitr archive-push %p &", ours(false, true)),
            ("pitr archive-push %p || true", ours(true, true)),
            ("pitr archive-push %p; cp %p /a/%f", ours(true, true)),
            ("pitr archive-push %p & wait", ours(true, true)),
            ("pitr archive-push %p | logger", ours(true, true)),
        ] {
            assert_eq!(push_command(command), want, "{command}");
        }
        assert!(push_command("pitr archive-push %f").is_some_and(|push| !push.told));
        assert!(push_command("cp %p /a/%f && pitr archive-push").is_some_and(|push| !push.told));
    }

    #[test]
    fn a_command_without_pitr_is_known_for_what_it_does_to_wal() {
        for (command, want) in [
            ("", Outline::Empty),
            (" ", Outline::Empty),
            ("true", Outline::SaysYes),
            ("/bin/true", Outline::SaysYes),
            (":", Outline::SaysYes),
            ("exit 0", Outline::SaysYes),
            ("exit", Outline::SaysYes),
            ("echo %p >> /tmp/list 2>&1", Outline::SaysYes),
            ("sh -c 'exit 0'", Outline::SaysYes),
            ("false || true", Outline::SaysYes),
            ("/bin/false", Outline::SaysNo),
            ("exit 1", Outline::SaysNo),
            ("echo %f && false", Outline::SaysNo),
            ("/usr/bin/pgbackrest --log-level-console=info archive-push %p", Outline::Tool("pgBackRest")),
            ("PGUSER=postgres envdir /etc/wal-g /usr/local/bin/wal-g wal-push %p", Outline::Tool("WAL-G")),
            ("barman-cloud-wal-archive s3://bucket main %p", Outline::Tool("Barman")),
            ("barman-wal-archive host main %p", Outline::Tool("Barman")),
            ("bash -c 'pgbackrest archive-push %p || true'", Outline::Tool("pgBackRest")),
            ("cp %p /archive/%f", Outline::Copies("cp")),
            ("test ! -f /a/%f && cp %p /a/%f", Outline::Copies("cp")),
            ("nice -n 19 /usr/bin/rsync -a %p host:/wal/%f", Outline::Copies("rsync")),
            ("gzip < %p > /a/%f.gz", Outline::Copies("gzip")),
            // A script may do anything, whatever it is told, or where it lies.
            ("/opt/pgbackrest/archive.sh %p", Outline::Unknown),
            ("/usr/local/bin/archive.sh cp %p", Outline::Unknown),
            ("sh /opt/archive.sh %p %f", Outline::Unknown),
        ] {
            assert_eq!(outline(command), want, "{command}");
        }
        assert!(matches!(outline("nice pitr archive-push %p"), Outline::Pitr(_)));
    }
}

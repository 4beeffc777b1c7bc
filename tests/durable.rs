//! What a file survives: kill -9 at every step, a failing fsync, a full and a read-only disk.
//!
//! The test program runs itself as a child under strace, which shows the order of system calls, kills the child at the
//! n-th one, or lets one fail. SKIPPED without strace; the small file systems need root.
//! The oracle is the list of system calls and the bytes on disk, never what durable says of itself.
#![cfg(feature = "testing")]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a child answers on stdout, a skipped test says so"
)]
#![expect(clippy::disallowed_methods, reason = "the child is told by its environment what to do")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pitr::durable::{Creation, Delivery, Root, is_temporary, write_replace};

/// What the child is told to do: `create`, `names` (create with temporary names), `deliver`, `fill`.
const TASK: &str = "PITR_DURABLE_TASK";
const PLACE: &str = "PITR_DURABLE_PLACE";
const KEY: &str = "main/7/wal/object";
const BODY: &[u8] = b"every byte or none";
/// Bytes of each file of `fill`.
const LARGE: usize = 300_000;

/// Not a test: what the child does. Without a task it passes at once.
#[test]
fn child() -> Result<()> {
    let Ok(task) = std::env::var(TASK) else { return Ok(()) };
    let place = PathBuf::from(std::env::var_os(PLACE).context("a place")?);
    match task.as_str() {
        "create" | "names" => {
            let root =
                if task == "names" { Root::with_temporary_names(&place) } else { Root::new(&place, None) };
            if root.create(Path::new(KEY), &[BODY])? == Creation::Exists {
                root.sync_existing(Path::new(KEY))?;
            }
        }
        "deliver" => {
            let mut delivery = Delivery::begin(&place, None)?;
            delivery.append(BODY)?;
            delivery.finish()?;
        }
        "fill" => {
            let root = Root::with_temporary_names(&place);
            for number in 0.. {
                let byte = u8::try_from(number % 251)?;
                root.create(Path::new(&format!("fill/{number}")), &[vec![byte; LARGE]])?;
            }
        }
        _ => anyhow::bail!("no task {task}"),
    }
    println!("YES");
    Ok(())
}

/// Runs a task in a child, under strace with these arguments if there are any.
fn run(task: &str, place: &Path, strace: &[&str]) -> Result<Output> {
    let own = std::env::current_exe()?;
    let mut command = match strace {
        [] => Command::new(&own),
        arguments => {
            let mut traced = Command::new("strace");
            traced.args(["-f", "-y", "-qq"]).args(arguments).arg(&own);
            traced
        }
    };
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command.env(TASK, task).env(PLACE, place).stdin(Stdio::null());
    Ok(command.output()?)
}

fn said_yes(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stdout).lines().any(|line| line.ends_with("YES"))
}

fn no_strace() -> bool {
    let missing = Command::new("strace").arg("-V").output().is_err();
    if missing {
        eprintln!("SKIPPED: strace is not installed, see tests/setup.sh");
    }
    missing
}

/// The system calls of a task that matter, in order, each as it begins: `fsync /a/b`, `linkat`, `YES`.
fn calls(task: &str, place: &Path) -> Result<Vec<String>> {
    let log = tempfile::NamedTempFile::new()?;
    let path = log.path().to_str().context("a path")?;
    let traced = "trace=fsync,linkat,renameat,renameat2,unlinkat,mkdir,write";
    let output = run(task, place, &["-e", traced, "-o", path])?;
    ensure!(said_yes(&output), "{task} failed: {output:?}");
    let text = std::fs::read_to_string(log.path())?;
    Ok(text.lines().filter_map(interesting).collect())
}

fn interesting(line: &str) -> Option<String> {
    let (_, call) = line.split_once(char::is_whitespace)?;
    let (name, arguments) = call.trim_start().split_once('(')?;
    match name {
        "fsync" => {
            let (_, path) = arguments.split_once('<')?;
            let (path, _) = path.split_once('>')?;
            Some(format!(
                "fsync {}",
                if path.contains("/#") || path.contains("/.pitr-tmp-") { "FILE" } else { path }
            ))
        }
        "write" => arguments.contains("YES").then(|| "YES".to_owned()),
        _ => Some(name.to_owned()),
    }
}

/// The fsyncs that lead from the directory of the object to the root, and to what holds the root.
fn up(root: &Path) -> Vec<String> {
    let dirs = ["main/7/wal", "main/7", "main", ""].map(|dir| root.join(dir));
    let dirs = dirs.iter().map(PathBuf::as_path).chain(root.parent());
    dirs.map(|dir| format!("fsync {}", dir.display().to_string().trim_end_matches('/'))).collect()
}

#[test]
fn file_and_every_directory_are_synced_before_yes() -> Result<()> {
    if no_strace() {
        return Ok(());
    }
    for (task, publish) in [("create", vec!["linkat"]), ("names", vec!["linkat", "unlinkat"])] {
        let dir = tempfile::tempdir()?;
        let root = dir.path().canonicalize()?.join("repository");
        std::fs::create_dir(&root)?;
        let mut expected = ["mkdir", "mkdir", "mkdir", "fsync FILE"].map(str::to_owned).to_vec();
        expected.extend(publish.into_iter().map(str::to_owned));
        expected.extend(up(&root));
        expected.push("YES".to_owned());
        assert_eq!(calls(task, &root)?, expected, "{task}");
    }
    Ok(())
}

#[test]
fn an_existing_file_is_synced_with_all_its_directories_before_yes() -> Result<()> {
    if no_strace() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let root = dir.path().canonicalize()?;
    run("create", &root, &[])?;
    let mut expected = vec![format!("fsync {}", root.join(KEY).display())];
    expected.extend(up(&root));
    expected.push("YES".to_owned());
    assert_eq!(calls("create", &root)?, expected);
    Ok(())
}

#[test]
fn a_delivery_is_synced_before_it_has_its_name() -> Result<()> {
    if no_strace() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let target = dir.path().join("RECOVERYXLOG");
    assert_eq!(calls("deliver", &target)?, ["fsync FILE", "linkat", "YES"]);
    assert_eq!(calls("deliver", &target)?, ["fsync FILE", "linkat", "linkat", "renameat", "YES"]);
    Ok(())
}

/// The names below a directory that a listing would show, with their bytes.
fn visible(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut stack = vec![dir.to_path_buf()];
    while let Some(at) = stack.pop() {
        for entry in std::fs::read_dir(at)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                stack.push(entry.path());
            } else if !is_temporary(&entry.file_name()) {
                found.push((entry.path(), std::fs::read(entry.path())?));
            }
        }
    }
    Ok(found)
}

#[test]
fn killed_at_any_system_call_it_leaves_the_whole_file_or_none_and_a_repeat_succeeds() -> Result<()> {
    if no_strace() {
        return Ok(());
    }
    for task in ["create", "names"] {
        let steps = ["mkdir", "fchmod", "fsync", "linkat", "unlinkat"];
        let kills = steps.map(|step| kill_at_each(task, step));
        let kills: Vec<usize> = kills.into_iter().collect::<Result<_>>()?;
        // Three directories; the file, four directories up to the root and what holds it.
        let unlinks = usize::from(task == "names");
        ensure!(kills == [3, 1, 6, 1, unlinks], "{task}: {kills:?}");
    }
    Ok(())
}

/// Kills the task at its first, second, ... call of this kind, until it gets through; says how often it was killed.
fn kill_at_each(task: &str, step: &str) -> Result<usize> {
    for nth in 1..40 {
        let dir = tempfile::tempdir()?;
        let inject = format!("inject={step}:signal=KILL:when={nth}");
        let output = run(task, dir.path(), &["-e", &inject, "-o", "/dev/null"])?;
        if said_yes(&output) {
            return Ok(nth - 1);
        }
        ensure!(output.status.signal() == Some(9) || output.status.code() == Some(137), "{output:?}");
        for (path, bytes) in visible(dir.path())? {
            ensure!(bytes == BODY, "{step} {nth}: {} is half a file", path.display());
        }
        ensure!(said_yes(&run(task, dir.path(), &[])?), "{task} {step} {nth}: the repeat");
        ensure!(visible(dir.path())? == [(dir.path().join(KEY), BODY.to_vec())]);
    }
    anyhow::bail!("{task} never gets through {step}")
}

#[test]
fn a_failing_fsync_is_no_yes_and_a_file_that_was_not_synced_has_no_name() -> Result<()> {
    if no_strace() {
        return Ok(());
    }
    for nth in 1..=4 {
        let dir = tempfile::tempdir()?;
        let inject = format!("inject=fsync:error=EIO:when={nth}");
        let output = run("create", dir.path(), &["-e", &inject, "-o", "/dev/null"])?;
        let shown = String::from_utf8_lossy(&output.stderr);
        ensure!(!said_yes(&output) && shown.contains("cannot fsync"), "{nth}: {output:?}");
        ensure!(nth > 1 || visible(dir.path())?.is_empty());
    }
    Ok(())
}

#[test]
fn kill_after_kill_leaves_no_half_file_and_the_next_process_sweeps_up() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "child", "--nocapture"])
            .env(TASK, "fill")
            .env(PLACE, dir.path())
            .stdout(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(40 + round * 13));
        child.kill()?;
        child.wait()?;
    }
    let files = visible(dir.path())?;
    ensure!(files.len() > 1, "the child wrote something");
    for (path, bytes) in files {
        let number: u64 = path.file_name().and_then(|name| name.to_str()).context("a name")?.parse()?;
        let byte = u8::try_from(number % 251)?;
        ensure!(
            bytes.len() == LARGE && bytes.iter().all(|b| *b == byte),
            "{} is half a file",
            path.display()
        );
    }
    Root::with_temporary_names(dir.path()).create(Path::new("fill/last"), &["x"])?;
    let left = std::fs::read_dir(dir.path().join("fill"))?
        .flatten()
        .filter(|entry| is_temporary(&entry.file_name()));
    ensure!(left.count() == 0, "temporary files of killed processes stay");
    Ok(())
}

#[test]
fn without_hard_links_a_rename_that_does_not_replace_stands_in() -> Result<()> {
    if no_strace() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let refuse = ["-e", "inject=linkat:error=EPERM", "-o", "/dev/null"];
    ensure!(said_yes(&run("names", dir.path(), &refuse)?));
    ensure!(visible(dir.path())? == [(dir.path().join(KEY), BODY.to_vec())]);
    ensure!(std::fs::read_dir(dir.path().join(KEY).parent().context("a directory")?)?.count() == 1);
    let neither =
        ["-e", "inject=linkat:error=EPERM", "-e", "inject=renameat2:error=EINVAL", "-o", "/dev/null"];
    let other = tempfile::tempdir()?;
    let output = run("names", other.path(), &neither)?;
    ensure!(!said_yes(&output) && String::from_utf8_lossy(&output.stderr).contains("neither hard links"));
    ensure!(visible(other.path())?.is_empty());
    Ok(())
}

/// A file system of one MiB, unmounted with the test.
struct Small(tempfile::TempDir);

impl Small {
    /// `None`, with a word, if we may not mount.
    fn mount() -> Result<Option<Self>> {
        let dir = tempfile::tempdir()?;
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Ok(Some(Self(dir)));
        }
        eprintln!("SKIPPED: mounting a small file system needs root");
        Ok(None)
    }

    fn read_only(&self) -> Result<()> {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(self.0.path()).status()?;
        ensure!(status.success(), "remount");
        Ok(())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().ok();
    }
}

#[test]
fn a_full_disk_and_a_read_only_one_are_named_and_nothing_is_left() -> Result<()> {
    let Some(small) = Small::mount()? else { return Ok(()) };
    let path = small.0.path();
    let large = vec![7; 4 << 20];
    for root in [Root::new(path, None), Root::with_temporary_names(path)] {
        let error = root.create(Path::new("a/large"), &[&large]).err().context("it is full")?;
        ensure!(error.is_full(), "{error:?}");
        ensure!(
            error.to_string().starts_with(&format!("cannot write {}/a/large: No space", path.display())),
            "{error}"
        );
    }
    let error = write_replace(&path.join("pitr.toml"), &large, 0o600, None).err().context("it is full")?;
    ensure!(error.is_full() && visible(path)?.is_empty());
    ensure!(std::fs::read_dir(path.join("a"))?.count() == 0, "a temporary file is left");
    small.read_only()?;
    for error in [
        Root::new(path, None).create(Path::new("b"), &["x"]).err(),
        Root::new(path, None).create(Path::new("new/b"), &["x"]).err(),
        Delivery::begin(&path.join("b"), None).err(),
    ] {
        let error = error.context("it is read-only")?;
        ensure!(error.is_denied() && error.to_string().contains(&path.display().to_string()), "{error}");
    }
    Ok(())
}

#[test]
fn root_gives_what_it_makes_to_the_owner_of_the_data() -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir()?;
    let nobody = pitr::durable::Owner { uid: 65534, gid: 65534 };
    let Some(owner) = nobody.to_give() else {
        eprintln!("SKIPPED: only root gives files away");
        return Ok(());
    };
    let root = Root::new(dir.path().join("repository"), Some(owner));
    root.make()?;
    root.create(Path::new("a/b"), &["x"])?;
    for (name, mode) in [("", 0o700), ("a", 0o700), ("a/b", 0o600)] {
        let found = root.path().join(name).metadata()?;
        ensure!((found.uid(), found.gid()) == (65534, 65534), "{name}");
        ensure!(found.permissions().mode() & 0o7777 == mode, "{name}");
    }
    Ok(())
}

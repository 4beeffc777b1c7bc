//! What durable promises short of a power cut: names, modes, leftovers, races.
//!
//! Every rule about a new file is tried both ways a new file is kept: without a name, and under a temporary one.
//! That fsync comes before "yes", and what kill -9 and a full disk leave, is in `tests/durable.rs`.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::nameless::{NewFile, Strategy, rename_to_free, sweep};
use super::*;

/// Every file below `dir` with its content, so that a test sees leftovers too.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut stack = vec![dir.to_path_buf()];
    while let Some(at) = stack.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

fn expect(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn roots(dir: &Path) -> [Root; 2] {
    [Root::new(dir.join("nameless"), None), Root::with_temporary_names(dir.join("named"))]
}

#[test]
fn a_second_create_of_one_name_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for root in roots(dir.path()) {
        root.make().unwrap();
        let key = Path::new("wal/00000001/segment.wal");
        assert_eq!(root.create(key, &["one ", "body"]).unwrap(), Creation::New);
        assert_eq!(root.create(key, &["other"]).unwrap(), Creation::Exists);
        root.sync_existing(key).unwrap();
        assert_eq!(files(root.path()), expect(&[("wal/00000001/segment.wal", "one body")]));
        assert_eq!(mode(&root.path().join(key)), FILE_MODE);
        assert_eq!(mode(&root.path().join("wal")), DIR_MODE);
        assert_eq!(mode(root.path()), DIR_MODE);
    }
}

#[test]
fn of_many_racing_creates_exactly_one_wins_and_its_bytes_stay() {
    let dir = tempfile::tempdir().unwrap();
    for root in roots(dir.path()) {
        root.make().unwrap();
        let winners: Vec<String> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..16)
                .map(|racer| {
                    let root = &root;
                    scope.spawn(move || {
                        let body = format!("body of {racer}");
                        let created = root.create(Path::new("a/b/key"), &[&body]).unwrap();
                        (created == Creation::New).then_some(body)
                    })
                })
                .collect();
            racers.into_iter().filter_map(|racer| racer.join().unwrap()).collect()
        });
        assert_eq!(winners.len(), 1);
        assert_eq!(files(root.path()), expect(&[("a/b/key", &winners[0])]));
    }
}

#[test]
fn a_missing_root_is_an_error_and_not_an_absence() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path().join("not/mounted"), None);
    let error = root.create(Path::new("key"), &["x"]).unwrap_err();
    assert!(error.to_string().contains("not/mounted"), "{error}");
    assert!(root.remove(Path::new("key")).is_err());
    assert!(files(dir.path()).is_empty());
}

#[test]
fn a_root_that_is_another_tree_than_before_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for root in roots(dir.path()) {
        root.make().unwrap();
        root.create(Path::new("wal/1"), &["x"]).unwrap();
        std::fs::rename(root.path(), dir.path().join("aside")).unwrap();
        make_dir(root.path(), DIR_MODE, None).unwrap();
        let error = root.create(Path::new("wal/2"), &["x"]).unwrap_err();
        assert!(error.is_moved(), "{error}");
        assert!(files(root.path()).is_empty() && !root.path().join("wal").exists());
        // Who looks anew takes it as it is.
        assert_eq!(root.anew().create(Path::new("wal/2"), &["x"]).unwrap(), Creation::New);
        std::fs::remove_dir_all(dir.path().join("aside")).unwrap();
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn a_root_whose_disk_was_unmounted_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, root) = (dir.path().join("disk"), Root::new(dir.path().join("mounted"), None));
    make_dir(&disk, DIR_MODE, None).unwrap();
    root.make().unwrap();
    let run = |program: &str, args: &[&Path]| {
        std::process::Command::new(program).args(args).status().is_ok_and(|status| status.success())
    };
    // Of the same device: only the number of the mount tells.
    if !run("mount", &[Path::new("--bind"), &disk, root.path()]) {
        eprintln!("SKIPPED: mounting takes root");
        return;
    }
    root.note();
    let unmounted = run("umount", &[root.path()]);
    let refused =
        [root.create(Path::new("wal/1"), &["x"]).map(drop), root.remove(Path::new("wal/1")).map(drop)];
    let mounted = run("mount", &[Path::new("--bind"), &disk, root.path()]);
    let created = root.anew().create(Path::new("wal/1"), &["x"]);
    let found = files(&disk);
    run("umount", &[root.path()]);
    assert!(unmounted && mounted);
    for error in refused.map(Result::unwrap_err) {
        assert!(error.is_moved(), "{error}");
    }
    assert_eq!((created.unwrap(), found), (Creation::New, expect(&[("wal/1", "x")])));
    assert!(files(root.path()).is_empty());
}

#[test]
fn names_that_lead_out_of_the_root_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (root, tree) = (Root::new(dir.path(), None), TreeWriter::new(dir.path(), None));
    for name in ["../x", "a/../../x", "/etc/x", "", "a/.."] {
        assert!(root.create(Path::new(name), &["x"]).is_err(), "{name}");
        assert!(tree.create_file(Path::new(name), 0o600).is_err(), "{name}");
    }
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for strategy in [Strategy::Best, Strategy::Named] {
        let target = dir.path().join("RECOVERYXLOG");
        let mut delivery = Delivery::begin_with(&target, FILE_MODE, None, strategy).unwrap();
        delivery.append(b"half").unwrap();
        drop(delivery);
        assert!(files(dir.path()).is_empty());
    }
}

#[test]
fn a_delivery_replaces_the_file_with_an_inode_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    for strategy in [Strategy::Best, Strategy::Named] {
        let target = dir.path().join("RECOVERYXLOG");
        for text in ["first", "second"] {
            let mut delivery = Delivery::begin_with(&target, FILE_MODE, None, strategy).unwrap();
            delivery.append(text.as_bytes()).unwrap();
            delivery.finish().unwrap();
            assert_eq!(files(dir.path()), expect(&[("RECOVERYXLOG", text)]));
            assert_eq!(target.metadata().unwrap().nlink(), 1);
            assert_eq!(mode(&target), 0o600);
        }
    }
}

#[test]
fn a_replaced_configuration_has_exactly_the_mode_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("pitr.toml");
    write_replace(&target, b"one", 0o644, None).unwrap();
    write_replace(&target, b"two", 0o640, None).unwrap();
    assert_eq!(files(dir.path()), expect(&[("pitr.toml", "two")]));
    assert_eq!(mode(&target), 0o640);
}

#[test]
fn a_sweep_removes_what_the_dead_left_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut living = NewFile::begin(dir.path(), 0o600, None, Strategy::Named).unwrap();
    io::Write::write_all(living.file(), b"being written").unwrap();
    write_replace(&dir.path().join(".pitr-tmp-00000000deadbeef"), b"left by a killed process", 0o600, None)
        .unwrap();
    write_replace(&dir.path().join("data"), b"data", 0o600, None).unwrap();
    sweep(dir.path()).unwrap();
    assert_eq!(files(dir.path()).len(), 2);
    assert!(living.publish_new("living".as_ref()).unwrap());
    assert_eq!(files(dir.path()), expect(&[("data", "data"), ("living", "being written")]));
}

#[test]
fn a_restored_tree_has_modes_parts_and_links() {
    let dir = tempfile::tempdir().unwrap();
    let tree = TreeWriter::new(dir.path().join("data"), None);
    tree.make_root(0o700).unwrap();
    tree.create_dir(Path::new("base/5"), 0o750).unwrap();
    let file = tree.create_file(Path::new("base/5/1259"), 0o640).unwrap();
    std::thread::scope(|scope| {
        for part in 0..4_u8 {
            let file = &file;
            scope.spawn(move || file.write_at(u64::from(part) * 2, &[b'a' + part; 2]).unwrap());
        }
    });
    assert!(tree.create_file(Path::new("base/5/1259"), 0o640).is_err(), "never over an existing file");
    tree.create_symlink(Path::new("base/link"), Path::new("/nowhere")).unwrap();
    sync_tree(tree.root(), 3).unwrap();
    assert_eq!(std::fs::read(tree.root().join("base/5/1259")).unwrap(), b"aabbccdd");
    assert_eq!(mode(file.path()), 0o640);
    assert_eq!(mode(&tree.root().join("base/5")), 0o750);
    assert!(remove_durably(file.path()).unwrap());
    assert!(!remove_durably(file.path()).unwrap());
}

#[test]
fn syncing_a_tree_that_is_not_there_names_it() {
    let error = sync_tree(Path::new("/nonexistent/pitr"), 2).unwrap_err();
    assert!(error.to_string().starts_with("cannot list /nonexistent/pitr: "), "{error}");
}

#[test]
fn moving_aside_never_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("data"), dir.path().join("data.before"));
    std::fs::create_dir(&from).unwrap();
    std::fs::create_dir(&to).unwrap();
    assert!(move_aside(&from, &to).is_err());
    std::fs::remove_dir(&to).unwrap();
    move_aside(&from, &to).unwrap();
    assert!(to.is_dir() && !from.exists());
}

#[test]
fn the_rename_that_stands_in_for_a_hard_link_never_replaces() {
    let dir = tempfile::tempdir().unwrap();
    write_replace(&dir.path().join("new"), b"new", 0o600, None).unwrap();
    write_replace(&dir.path().join("taken"), b"old", 0o600, None).unwrap();
    let at = open_dir(dir.path()).unwrap();
    assert_eq!(rename_to_free(&at, "new".as_ref(), "taken".as_ref()), Err(nix::errno::Errno::EEXIST));
    assert_eq!(files(dir.path()), expect(&[("new", "new"), ("taken", "old")]));
    rename_to_free(&at, "new".as_ref(), "free".as_ref()).unwrap();
    assert_eq!(files(dir.path()), expect(&[("free", "new"), ("taken", "old")]));
}

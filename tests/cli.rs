//! The program as a file and as a command line: static, and with the exit codes that PostgreSQL reads.
//!
//! No server, no repository: what is tested here must hold before anything is configured. Exit codes of real failures are tested
//! where they happen (`tests/archive.rs`, `tests/restore.rs`).

use std::process::{Command, Output};

fn pitr(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pitr")).args(args).env_clear().current_dir("/").output().expect("pitr")
}

fn code(args: &[&str]) -> i32 {
    pitr(args).status.code().expect("an exit code")
}

/// Program headers of an ELF file: type and, for PT_INTERP (3) or PT_DYNAMIC (2), that it is not a static program.
fn program_header_types(elf: &[u8]) -> Vec<u32> {
    let word =
        |at: usize, n: usize| elf[at..at + n].iter().rev().fold(0_u64, |sum, b| sum << 8 | u64::from(*b));
    let (offset, size, count) = (word(0x20, 8), word(0x36, 2), word(0x38, 2));
    let at = |i: u64| usize::try_from(offset + i * size).expect("an offset in memory");
    (0..count).map(|i| u32::try_from(word(at(i), 4)).expect("four bytes")).collect()
}

#[test]
fn the_program_is_one_static_file() {
    let elf = std::fs::read(env!("CARGO_BIN_EXE_pitr")).expect("the program");
    let types = program_header_types(&elf);
    assert!(!types.is_empty() && !types.contains(&3), "it asks for a dynamic loader: {types:?}");
}

#[test]
fn no_mistake_in_restore_command_reads_as_end_of_wal() {
    for args in [
        &["archive-get"][..],
        &["archive-get", "--bogus"],
        &["archive-get", "--help"],
        &["--config", "/nonexistent", "archive-get", "000000010000000000000001", "x"],
        &["archive-get", "000000010000000000000001", "x", "--timeline", "nine"],
        &[
            "--repository",
            "file:///nonexistent/repository",
            "--cluster",
            "c",
            "archive-get",
            "000000010000000000000001",
            "x",
        ],
        &["--repository", "nonsense:", "--cluster", "c", "archive-get", "000000010000000000000001", "x"],
        &["--cluster", "c", "archive-get", "not-wal", "x"],
        &["--bogus", "archive-get"],
    ] {
        let code = code(args);
        assert!((200..=220).contains(&code), "{args:?} exits {code}");
    }
}

#[test]
fn no_mistake_in_archive_command_kills_the_archiver_or_reads_as_archived() {
    for args in [
        &["archive-push"][..],
        &["archive-push", "--help"],
        &["archive-push", "/nonexistent/000000010000000000000001"],
        &["--config", "/nonexistent", "archive-push", "x"],
        &[
            "--repository",
            "file:///nonexistent/repository",
            "--cluster",
            "c",
            "archive-push",
            "/etc/hostname",
        ],
    ] {
        let code = code(args);
        assert!((1..=125).contains(&code), "{args:?} exits {code}");
    }
}

#[test]
fn usage_errors_exit_3_and_help_exits_0() {
    assert_eq!(code(&["--help"]), 0);
    assert_eq!(code(&["--version"]), 0);
    assert_eq!(code(&["restore", "--help"]), 0);
    assert_eq!(code(&["nonsense"]), 3);
    assert_eq!(code(&["restore", "--to", "latest", "--immediate"]), 3);
    assert_eq!(code(&["info"]), 3);
    assert_eq!(code(&["--repository", "memory:x", "--cluster", "UPPER", "info"]), 3);
}

#[test]
fn an_error_with_json_is_one_object() {
    let output = pitr(&["--json", "info"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((object["schema"].as_str(), object["exit_code"].as_u64()), (Some("pitr.error.v1"), Some(3)));
}

#[test]
fn an_error_without_advice_of_its_own_ends_with_that_of_its_kind() {
    let output = pitr(&["--json", "--repository", "file:///nowhere", "--cluster", "a/b", "info"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let hint = object["hint"].as_str().expect("a hint");
    assert_eq!(hint, pitr::error::Kind::Usage.advice());
    assert!(String::from_utf8_lossy(&output.stderr).ends_with(&format!("HINT: {hint}\n")), "{output:?}");
}

#[test]
fn completions_and_manual_are_printed() {
    for args in [&["completions", "bash"][..], &["man"]] {
        let output = pitr(args);
        assert!(output.status.success() && output.stdout.len() > 1000, "{args:?}");
    }
}

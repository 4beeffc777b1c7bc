//! The shape of the code base, enforced: who may use whom, how long a file and a function may be, and that every file says what
//! it is for.
//!
//! The layer table below is ARCHITECTURE.md's drawing in code. A module may use itself, what its row lists, and nothing else.
//! Checks read the source as text, so they also see `crate::` paths inside functions; test modules are exempt.

#![expect(clippy::string_slice, reason = "the sources cut here are ours and cut at ASCII")]

use std::fs;
use std::path::{Path, PathBuf};

/// Longest matching prefix decides a module's row. `std`-only rows list nothing.
const LAYERS: &[(&str, &[&str])] = &[
    ("wal", &[]),
    ("pgdata", &["wal"]),
    ("codec", &[]),
    ("seal", &["codec"]),
    // Formats: pure, below the line of IO.
    ("repo::binary", &["wal"]),
    ("repo::path", &["wal", "codec", "seal"]),
    ("repo::objects", &["wal", "codec", "seal", "repo::path"]),
    ("repo::annex", &["wal", "codec", "repo::binary"]),
    ("repo::walobject", &["wal", "codec", "seal", "repo::binary", "repo::path", "repo::annex"]),
    ("repo::pack", &["codec", "repo::binary", "repo::path"]),
    ("repo::manifest", &["wal", "codec", "repo::binary", "repo::path", "repo::pack"]),
    ("repo::retention", &["wal", "repo::path", "repo::objects"]),
    ("repo::catalog", &["wal", "codec", "repo::path", "repo::objects", "repo::walobject", "repo::annex"]),
    ("pgwire::message", &["wal"]),
    ("pgwire::replication", &["wal", "pgwire::message"]),
    ("pgwire::basebackup", &["wal", "pgwire::message", "pgwire::replication"]),
    ("pgwire::tar", &[]),
    ("pgwire::tarwrite", &["pgwire::tar"]),
    ("pgwire::conninfo", &[]),
    ("pgwire::certificate", &[]),
    ("pgwire::passfile", &["pgwire::conninfo"]),
    ("target", &[]),
    ("error", &[]),
    // The places that touch the world.
    ("account", &[]),
    ("authorities", &[]),
    ("resolve", &[]),
    ("clock", &[]),
    ("durable", &[]),
    ("store", &["clock", "durable", "authorities", "resolve"]),
    ("pgwire", &["wal", "clock", "pgwire", "authorities", "resolve"]),
    ("repo", &["wal", "codec", "seal", "clock", "store", "repo", "durable"]),
    ("config", &["wal", "seal", "error", "store", "repo", "target", "pgwire"]),
    ("ops::plan", &["wal", "seal"]),
    (
        "ops",
        &[
            "account", "wal", "pgdata", "seal", "codec", "repo", "pgwire", "clock", "durable", "store",
            "error", "target", "config", "ops",
        ],
    ),
    ("agent", &["wal", "pgdata", "codec", "repo", "durable", "clock", "error", "ops", "agent"]),
    (
        "cli",
        &[
            "account", "wal", "pgdata", "seal", "codec", "repo", "pgwire", "clock", "durable", "store",
            "error", "target", "config", "ops", "agent", "cli",
        ],
    ),
];

/// Modules below the line of IO, where these words must not occur.
const PURE: &[&str] = &[
    "wal",
    "pgdata",
    "codec",
    "seal",
    "repo::binary",
    "repo::path",
    "repo::objects",
    "repo::annex",
    "repo::walobject",
    "repo::pack",
    "repo::manifest",
    "repo::catalog",
    "repo::retention",
    "pgwire::message",
    "pgwire::replication",
    "pgwire::basebackup",
    "pgwire::tar",
    "pgwire::tarwrite",
    "pgwire::conninfo",
    "pgwire::certificate",
    "pgwire::passfile",
    "target",
    "ops::plan",
];
const IMPURE_WORDS: &[&str] = &[
    "std::fs",
    "std::net",
    "std::env",
    "tokio::",
    "SystemTime::now",
    "Instant::now",
    "async fn",
    "tracing::",
];

const FILE_CEILING: usize = 800;
const FUNCTION_CEILING: usize = 70;

struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

fn rust_files(root: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            // A build directory, by the mark that cargo leaves in it: `src/target` is none.
            let built = path.join("CACHEDIR.TAG").exists();
            if !built && path.file_name().is_some_and(|n| n != "corpus" && n != "artifacts") {
                rust_files(&path, into);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    files.sort();
    assert!(files.len() > 20, "the source tree was not found");
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(root.join("src")).expect("under src").with_extension("");
            let mut parts: Vec<String> =
                relative.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
            if parts.last().is_some_and(|p| p == "mod") {
                parts.pop();
            }
            let text = fs::read_to_string(&path).expect("readable source");
            Source { path, module: parts.join("::"), text }
        })
        .collect()
}

fn is_test_file(source: &Source) -> bool {
    source.module.split("::").any(|part| part == "tests" || part == "testing")
}

/// The text before the inline test module: tests may reach anywhere.
fn production(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ").map_or(text, |at| &text[..at])
}

fn within(module: &str, prefix: &str) -> bool {
    module == prefix || module.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("::"))
}

fn row(module: &str) -> Option<&'static (&'static str, &'static [&'static str])> {
    LAYERS.iter().filter(|(prefix, _)| within(module, prefix)).max_by_key(|(prefix, _)| prefix.len())
}

/// Every `crate::a::b` path with the line it stands on; braces after a prefix are opened one level.
fn crate_paths(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at + "crate::".len()..];
            let path: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
            match (path.is_empty(), rest.strip_prefix('{')) {
                (true, Some(list)) => {
                    let inner = list.split('}').next().unwrap_or("");
                    for item in inner.split(',') {
                        let head: String = item
                            .trim()
                            .chars()
                            .take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':')
                            .collect();
                        found.push((index + 1, head));
                    }
                }
                _ => found.push((index + 1, path.trim_end_matches(':').to_owned())),
            }
        }
    }
    found
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|s| !is_test_file(s)) {
        let Some((own, allowed)) = row(&source.module) else {
            if source.module != "lib" && source.module != "main" {
                faults.push(format!(
                    "{}: module {} has no row in the layer table",
                    source.path.display(),
                    source.module
                ));
            }
            continue;
        };
        for (line, path) in crate_paths(production(&source.text)) {
            let Some((target, _)) = row(&path) else { continue };
            let fine = within(&path, own)
                || target == own
                || allowed.iter().any(|a| within(target, a) || within(&path, a));
            if !fine {
                faults.push(format!(
                    "{}:{line}: {} must not use crate::{path}",
                    source.path.display(),
                    source.module
                ));
            }
        }
    }
    assert!(faults.is_empty(), "layers:\n{}", faults.join("\n"));
}

#[test]
fn pure_modules_touch_nothing_outside() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|s| !is_test_file(s) && PURE.iter().any(|p| within(&s.module, p))) {
        for (index, line) in production(&source.text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            for word in IMPURE_WORDS.iter().filter(|w| code.contains(**w)) {
                faults.push(format!("{}:{}: {word} below the line of IO", source.path.display(), index + 1));
            }
        }
    }
    assert!(faults.is_empty(), "purity:\n{}", faults.join("\n"));
}

#[test]
fn files_and_functions_stay_short_and_every_file_says_what_it_is_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        rust_files(&root.join(folder), &mut files);
    }
    let mut faults = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("readable source");
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > FILE_CEILING {
            faults.push(format!("{}: {} lines, the ceiling is {FILE_CEILING}", path.display(), lines.len()));
        }
        let header = lines.iter().take_while(|l| l.starts_with("//!")).count();
        let least = if path.components().any(|c| c.as_os_str() == "fuzz_targets") { 1 } else { 3 };
        if header < least && !path.ends_with("tests.rs") {
            faults.push(format!("{}: starts with {header} lines of //!, wants {least}", path.display()));
        }
        for (line, length, name) in long_functions(&lines) {
            faults.push(format!(
                "{}:{line}: fn {name} has {length} lines, the ceiling is {FUNCTION_CEILING}",
                path.display()
            ));
        }
    }
    assert!(faults.is_empty(), "sizes:\n{}", faults.join("\n"));
}

/// Functions over the ceiling: from the line with `fn` to the closing brace at the same indentation (rustfmt puts it there).
fn long_functions(lines: &[&str]) -> Vec<(usize, usize, String)> {
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let starts = [
            "fn ",
            "pub fn ",
            "async fn ",
            "pub async fn ",
            "pub(crate) fn ",
            "pub(super) fn ",
            "pub(crate) async fn ",
            "pub(super) async fn ",
            "const fn ",
            "pub const fn ",
        ];
        let Some(prefix) = starts.iter().find(|p| trimmed.starts_with(**p)) else { continue };
        let close = format!("{}}}", " ".repeat(indent));
        let end = lines[index..]
            .iter()
            .position(|l| **l == close || (l.starts_with(&close) && l.len() == close.len()));
        let one_line = trimmed.ends_with('}') || trimmed.ends_with(';');
        if let (Some(length), false) = (end, one_line)
            && length + 1 > FUNCTION_CEILING
        {
            let name =
                trimmed[prefix.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            found.push((index + 1, length + 1, name));
        }
    }
    found
}

/// The repository is create-only: data goes through one method of the store, which one module calls.
#[test]
fn only_expire_deletes_from_a_store() {
    const DELETERS: &[&str] = &["ops::expire::delete", "store"];
    let mut faults = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|s| !is_test_file(s)) {
        for (index, line) in production(&source.text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if !(code.contains(".delete(") || code.contains("::delete(")) {
                continue;
            }
            if DELETERS.iter().any(|module| within(&source.module, module)) {
                seen += usize::from(within(&source.module, "ops::expire::delete"));
            } else {
                faults.push(format!("{}:{}: deletes from a store", source.path.display(), index + 1));
            }
        }
    }
    assert!(faults.is_empty(), "deletes:\n{}", faults.join("\n"));
    assert_eq!(seen, 1, "calls of the one method");
}

#[test]
fn words_of_other_tools_stay_out() {
    let mut faults = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            for word in ["stanza", "todo!(", "unimplemented!(", "FIXME", "XXX"] {
                if line.contains(word) {
                    faults.push(format!("{}:{}: {word}", source.path.display(), index + 1));
                }
            }
        }
    }
    assert!(faults.is_empty(), "words:\n{}", faults.join("\n"));
}

#[test]
fn the_tests_that_the_page_of_rules_names_exist() {
    let page = include_str!("../docs/rules.md");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        rust_files(&root.join(folder), &mut files);
    }
    let code: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let named = page.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() >= 2);
    let missing: Vec<&str> = named
        .filter(|name| {
            !name.contains('.')
                && !code.contains(&format!("fn {name}("))
                && !code.contains(&format!("{name}:"))
        })
        .collect();
    assert!(missing.is_empty(), "docs/rules.md names tests that do not exist: {missing:?}");
}

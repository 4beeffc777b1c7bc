//! `docs/errors.md` and `docs/deadlines.md`, held against the source: no error without a row, no row without an error, no number
//! that the constant does not have.
//!
//! Messages are compared by their fixed part: `{name}` in the source and `…` in the table both stand for anything. What has no literal
//! where the error is made (it passes on the words of a layer below) is looked up in that layer's own list of errors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use pitr::error::Kind;

/// Where errors become what a person reads.
const SPEAKERS: [&str; 4] = ["src/ops", "src/cli", "src/config", "src/agent"];
/// Errors of lower layers that are shown as they are.
const LOWER: [&str; 5] = [
    "src/ops/plan/refusal.rs",
    "src/pgwire/error.rs",
    "src/repo/error.rs",
    "src/store/error.rs",
    "src/wal/scan/error.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(root().join(file)).with_context(|| file.to_owned())
}

fn rust_files(below: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(below)? {
        let path = entry?.path();
        let tests = path.file_stem().is_some_and(|name| name == "tests");
        if path.is_dir() && !tests {
            rust_files(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") && !tests {
            into.push(path);
        }
    }
    Ok(())
}

/// A source file without its tests, and its string literals by where they begin.
struct Source {
    file: String,
    text: Vec<u8>,
    literals: BTreeMap<usize, Literal>,
}

struct Literal {
    end: usize,
    value: String,
}

fn sources(folder: &str) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    rust_files(&root().join(folder), &mut files)?;
    files.sort();
    let source = |path: PathBuf| -> Result<Source> {
        let text = fs::read_to_string(&path)?;
        let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default().as_bytes().to_vec();
        let literals = literals(&text);
        Ok(Source { file: path.strip_prefix(root())?.display().to_string(), text, literals })
    };
    files.into_iter().map(source).collect()
}

/// All string literals; comments and characters are passed over.
fn literals(text: &[u8]) -> BTreeMap<usize, Literal> {
    let mut found = BTreeMap::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with(b"//") {
            at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        } else if rest.starts_with(b"'\\") || (rest[0] == b'\'' && rest.get(2) == Some(&b'\'')) {
            at += 2 + rest[2..].iter().position(|b| *b == b'\'').unwrap_or(0) + 1;
        } else if rest[0] == b'"' {
            let mut end = at + 1;
            while end < text.len() && text[end] != b'"' {
                end += if text[end] == b'\\' { 2 } else { 1 };
            }
            let value = unescaped(&String::from_utf8_lossy(&text[at + 1..end.min(text.len())]));
            found.insert(at, Literal { end: end + 1, value });
            at = end + 1;
        } else {
            at += 1;
        }
    }
    found
}

fn unescaped(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('\n')) => while chars.next_if(|c| c.is_whitespace()).is_some() {},
            ('\\', Some('n')) => plain.push(chars.next().map_or('\n', |_| '\n')),
            ('\\', Some(_)) => plain.extend(chars.next()),
            _ => plain.push(c),
        }
    }
    plain
}

/// The first line, every placeholder an ellipsis.
fn fixed(message: &str) -> String {
    let mut out = String::new();
    let mut depth = 0;
    for c in message.split('\n').next().unwrap_or_default().chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ if depth > 0 => continue,
            _ => out.push(c),
        }
        if c == '{' && !out.ends_with('…') {
            out.push('…');
        }
    }
    out.trim_end().to_owned()
}

/// Whether there is a word to look it up by.
fn has_words(message: &str) -> bool {
    message.chars().any(char::is_alphabetic)
}

impl Source {
    /// The call that opens with the bracket at `open`: its first literal, and its text.
    fn call(&self, open: usize) -> (Option<&Literal>, String) {
        let (mut at, mut depth, mut first) = (open, 0_usize, None);
        while at < self.text.len() {
            if let Some(literal) = self.literals.get(&at) {
                first = first.or(Some(literal));
                at = literal.end;
                continue;
            }
            match self.text[at] {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            at += 1;
        }
        (first, String::from_utf8_lossy(&self.text[open..at.min(self.text.len())]).into_owned())
    }

    /// The first literal of what the variable was given whose name stands at `at`: the nearest `let` before it.
    fn named(&self, at: usize) -> Option<&Literal> {
        let rest = &self.text[at..];
        let length = rest.iter().position(|b| !b.is_ascii_lowercase() && *b != b'_')?;
        let name = std::str::from_utf8(&rest[..length]).ok().filter(|_| rest[length] == b')')?;
        let given = ["let ", "let mut "].map(|word| self.places(&format!("{word}{name} = ")));
        let nearest = given.into_iter().flatten().filter(|place| *place < at).max()?;
        let end = self.places(";").into_iter().find(|end| *end > nearest)?;
        self.literals.range(nearest..end).next().map(|(_, literal)| literal)
    }

    /// Every place where `what` stands outside of literals, and is no part of a longer word.
    fn places(&self, what: &str) -> Vec<usize> {
        let hits = self.text.windows(what.len()).enumerate().filter(|(_, w)| *w == what.as_bytes());
        let outside = |at: &usize| {
            let literal = self.literals.range(..at).next_back();
            let before = &self.text[..*at];
            let alone = !before.last().is_some_and(u8::is_ascii_alphanumeric) && !before.ends_with(b"io::");
            literal.is_none_or(|(_, literal)| literal.end <= *at) && alone
        };
        hits.map(|(at, _)| at).filter(outside).map(|at| at + what.len()).collect()
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text[..at].iter().filter(|b| **b == b'\n').count()
    }
}

const KINDS: [(&str, Kind); 10] = [
    ("failed", Kind::Failed),
    ("at_risk", Kind::AtRisk),
    ("usage", Kind::Usage),
    ("unreachable", Kind::Unreachable),
    ("not_found", Kind::NotFound),
    ("corrupt", Kind::Corrupt),
    ("key", Kind::Key),
    ("busy", Kind::Busy),
    ("refused", Kind::Refused),
    ("interrupted", Kind::Interrupted),
];

/// An error as the source makes it: where, its fixed part, and its exit code if the place decides that.
type Made = (String, String, Option<u8>);

fn made(source: &Source) -> Vec<Made> {
    let mut found = Vec::new();
    let mut take = |open: usize, code: Option<u8>| {
        if let Some(literal) = source.call(open - 1).0.or_else(|| source.named(open)) {
            let place = format!("{}:{}", source.file, source.line(open));
            found.push((place, fixed(&literal.value), code));
        }
    };
    for (name, kind) in KINDS {
        for open in source.places(&format!("Error::{name}(")) {
            take(open, Some(kind.exit_code()));
        }
    }
    for open in source.places("Error::new(") {
        let (_, text) = source.call(open - 1);
        let named = KINDS.iter().find(|(_, kind)| text.contains(&format!("Kind::{kind:?}")));
        take(open, named.map(|(_, kind)| kind.exit_code()));
    }
    for call in ["of_server(", ".context("] {
        for open in source.places(call) {
            take(open, None);
        }
    }
    found.retain(|(_, message, _)| has_words(message));
    found
}

/// The table: exit codes by message.
fn table() -> Result<BTreeMap<String, BTreeSet<u8>>> {
    let mut rows = BTreeMap::<String, BTreeSet<u8>>::new();
    for line in read("docs/errors.md")?.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [message, exit, _, next] = cells.as_slice() else { anyhow::bail!("not four cells: {line}") };
        ensure!(!next.is_empty(), "nothing to do next: {line}");
        let codes = exit.split(',').map(|code| code.trim().parse::<u8>());
        let codes = codes.collect::<Result<Vec<_>, _>>().with_context(|| line.to_owned())?;
        rows.entry(message.trim_matches('`').to_owned()).or_default().extend(codes);
    }
    ensure!(rows.len() > 150, "the table has only {} rows", rows.len());
    Ok(rows)
}

/// Where a moment is read: what is wrong with it is shown as the cause.
const MOMENTS: &str = "src/target.rs";

/// What may be wrong with the text of a moment.
fn made_of_moments(source: &Source) -> Vec<Made> {
    let open = ["TargetError::new(", "TargetError::without_zone("].map(|call| source.places(call));
    let message = |open: usize| {
        let (first, text) = source.call(open - 1);
        // Another error is passed on with more of a hint.
        let own = text.trim_start_matches('(').trim_start().starts_with("format!(");
        first.filter(|_| own).map(|literal| (open, fixed(&literal.value)))
    };
    let said = open.into_iter().flatten().filter_map(message);
    said.map(|(open, m)| (format!("{}:{}", source.file, source.line(open)), m, Some(3))).collect()
}

/// What the lower layers' own lists of errors say.
fn made_below(source: &Source) -> Vec<Made> {
    let places = if LOWER.contains(&source.file.as_str()) { source.places("#[error(") } else { Vec::new() };
    let message = |open: usize| Some((open, fixed(&source.call(open - 1).0?.value)));
    // A fault of a page or of a record is shown behind the segment's name.
    let is_cause = |message: &str| source.file.starts_with("src/wal") && !message.starts_with('…');
    let shown = places.into_iter().filter_map(message).filter(|(_, m)| has_words(m) && !is_cause(m));
    shown.map(|(open, m)| (format!("{}:{}", source.file, source.line(open)), m, None)).collect()
}

#[test]
fn every_error_has_a_row_with_its_exit_code() -> Result<()> {
    let table = table()?;
    let mut all = Vec::new();
    for folder in SPEAKERS {
        all.extend(sources(folder)?.iter().flat_map(made));
    }
    all.extend(sources("src")?.iter().flat_map(made_below));
    let moments: Vec<Made> =
        sources("src")?.iter().filter(|s| s.file == MOMENTS).flat_map(made_of_moments).collect();
    ensure!(moments.len() >= 14, "only {} errors of moments were found", moments.len());
    all.extend(moments);
    ensure!(all.len() > 200, "only {} errors were found", all.len());
    let fault = |(place, message, code): &Made| {
        let Some(codes) = table.get(message) else { return Some(format!("{place}: no row for `{message}`")) };
        let code = code.filter(|code| !codes.contains(code))?;
        Some(format!("{place}: `{message}` ends with {code}, its row says {codes:?}"))
    };
    let faults: Vec<String> = all.iter().filter_map(fault).collect();
    ensure!(faults.is_empty(), "docs/errors.md:\n{}", faults.join("\n"));
    Ok(())
}

#[test]
fn every_row_is_an_error_that_pitr_can_say() -> Result<()> {
    let all = sources("src")?;
    let said: BTreeSet<String> =
        all.iter().flat_map(|s| s.literals.values()).map(|l| fixed(&l.value)).collect();
    let stale: Vec<String> = table()?.into_keys().filter(|message| !said.contains(message)).collect();
    ensure!(stale.is_empty(), "docs/errors.md has rows that nothing says:\n{}", stale.join("\n"));
    Ok(())
}

/// Milliseconds of every quantity in a cell such as `250 ms to 5 s`; a bare number is itself.
fn quantities(cell: &str) -> Result<Vec<u64>> {
    let words: Vec<&str> = cell.split_whitespace().filter(|word| *word != "to").collect();
    let number = |word: &str| word.parse::<u64>().with_context(|| cell.to_owned());
    match words.as_slice() {
        [count] => Ok(vec![number(count)?]),
        pairs => pairs
            .chunks(2)
            .map(|pair| {
                let [n, unit] = pair else { anyhow::bail!("{cell}") };
                let factor = match *unit {
                    "ms" => 1,
                    "s" => 1000,
                    "min" => 60_000,
                    "h" => 3_600_000,
                    "d" => 86_400_000,
                    _ => anyhow::bail!("unit of {cell}"),
                };
                Ok(number(n)? * factor)
            })
            .collect(),
    }
}

/// What a constant, or a field of a default, is given in a source file.
fn given(text: &str, name: &str) -> Result<Vec<u64>> {
    const UNITS: [(&str, u64); 4] =
        [("from_millis(", 1), ("from_secs(", 1000), ("from_mins(", 60_000), ("from_hours(", 3_600_000)];
    let value = |line: &str| -> Option<Vec<u64>> {
        let rest = line.trim_start().trim_start_matches("pub(super) ").trim_start_matches("pub ");
        let rest = rest.trim_start_matches("const ").strip_prefix(name)?.strip_prefix(": ")?;
        let product = |text: &str| -> Option<u64> {
            text.split('*').map(|n| n.trim().replace('_', "").parse::<u64>().ok()).product()
        };
        let mut found = Vec::new();
        for (call, factor) in UNITS {
            found.extend(
                rest.split(call).skip(1).filter_map(|arg| Some(product(arg.split(')').next()?)? * factor)),
            );
        }
        let plain = rest.rsplit("= ").next()?.trim_end_matches([';', ',']);
        Some(if found.is_empty() { vec![product(plain)?] } else { found })
    };
    text.lines().find_map(value).with_context(|| format!("{name} is given no number"))
}

#[test]
fn deadlines_are_those_of_the_constants() -> Result<()> {
    let page = read("docs/deadlines.md")?;
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains("`src/"));
    let mut seen = 0;
    for line in rows {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [_, quantity, place, _] = cells.as_slice() else { anyhow::bail!("not four cells: {line}") };
        let parts: Vec<&str> = place.split('`').filter(|part| !part.trim().is_empty()).collect();
        let [file, name] = parts.as_slice() else { anyhow::bail!("not a file and a name: {line}") };
        let given = given(&read(file)?, name).with_context(|| line.to_owned())?;
        ensure!(given == quantities(quantity)?, "{line}\nthe source says {given:?}");
        seen += 1;
    }
    ensure!(seen > 30, "only {seen} rows");
    Ok(())
}

//! The syntax of `postgresql.conf`: reading settings, taking some out, quoting values and commands.
//!
//! ```text
//!  shared_buffers = 128MB     # comment        name, optional '=', value, comment
//!  restore_command 'it''s \'fine\''            '' and \' are quotes, \n \t \\ \101 as in C
//!  include_dir 'conf.d'                        include, include_if_exists, include_dir
//! ```
//! A setting never spans lines, so everything here works line by line and [`strip_settings`] keeps the other lines byte for byte.
//! Names compare without case. Within one server the last setting of a name counts; `postgresql.auto.conf` is read last.
//! Pure: includes are returned, not followed. Source of truth: `guc-file.l` of PostgreSQL 13 to 18.

use std::path::Path;

use crate::wal::TimelineId;

/// One line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Number of the line, from 1.
    pub line: usize,
    /// What it says.
    pub kind: ItemKind,
}

/// What a line of a configuration file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemKind {
    /// A setting; the name in lower case, the value unquoted.
    Setting {
        /// Name, lower case; `extension.name` for those of extensions.
        name: String,
        /// Value.
        value: String,
    },
    /// Another file, or a directory of files, read at this place.
    Include {
        /// Which of the three directives.
        kind: IncludeKind,
        /// Relative to the directory of the file that holds the directive.
        path: String,
    },
}

/// The three directives that read other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncludeKind {
    /// `include`: the file must exist.
    File,
    /// `include_if_exists`.
    FileIfExists,
    /// `include_dir`: every `*.conf` in it that does not begin with a dot, sorted by byte value.
    Directory,
}

/// A line that PostgreSQL would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not a setting: {why}")]
pub struct ConfError {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A text that cannot stand in a configuration file or a shell command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// It holds a NUL byte.
    #[error("the value holds a NUL byte")]
    Nul,
    /// A path that works only from one working directory, or is not text.
    #[error("the path is not absolute, or not UTF-8")]
    Path,
}

/// Every setting and include of a file, in its order.
///
/// # Errors
/// [`ConfError`] for the first line that PostgreSQL would refuse: it then refuses the whole file.
pub fn parse(text: &[u8]) -> Result<Vec<Item>, ConfError> {
    let mut items = Vec::new();
    for (index, raw) in text.split(|b| *b == b'\n').enumerate() {
        let line = index + 1;
        let said = parse_line(raw).map_err(|why| ConfError { line, why })?;
        items.extend(said.map(|kind| Item { line, kind }));
    }
    Ok(items)
}

/// The text without the settings whose (lower-case) name `drop` picks. All other lines stay as they are, also broken ones.
pub fn strip_settings(text: &[u8], drop: impl Fn(&str) -> bool) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len());
    for raw in text.split_inclusive(|b| *b == b'\n') {
        let line = raw.strip_suffix(b"\n").unwrap_or(raw);
        let dropped = setting_name(line).is_some_and(|name| drop(&name));
        if !dropped {
            kept.extend_from_slice(raw);
        }
    }
    kept
}

/// The name a line sets, even if its value is broken: a broken value of a dropped setting must go too.
fn setting_name(line: &[u8]) -> Option<String> {
    let mut scan = Scan { rest: line };
    scan.blanks();
    let name = scan.name()?;
    let include = ["include", "include_if_exists", "include_dir"].contains(&name.as_str());
    (!include).then_some(name)
}

fn parse_line(raw: &[u8]) -> Result<Option<ItemKind>, &'static str> {
    let mut scan = Scan { rest: raw };
    scan.blanks();
    if scan.at_end() {
        return Ok(None);
    }
    if raw.contains(&0) {
        return Err("it holds a NUL byte");
    }
    let name = scan.name().ok_or("it does not begin with a name")?;
    scan.blanks();
    if scan.rest.first() == Some(&b'=') {
        scan.skip(1);
        scan.blanks();
    }
    let value = scan.value()?;
    scan.blanks();
    if !scan.at_end() {
        return Err("something follows the value");
    }
    // A NUL that is written as \0 ends the value, as it ends a string of the server.
    let value = value.split(|b| *b == 0).next().unwrap_or_default().to_vec();
    let value = String::from_utf8(value).map_err(|_| "the value is not UTF-8")?;
    let include = |kind, path| ItemKind::Include { kind, path };
    Ok(Some(match name.as_str() {
        "include" => include(IncludeKind::File, value),
        "include_if_exists" => include(IncludeKind::FileIfExists, value),
        "include_dir" => include(IncludeKind::Directory, value),
        _ => ItemKind::Setting { name, value },
    }))
}

/// The rest of a line.
struct Scan<'a> {
    rest: &'a [u8],
}

impl<'a> Scan<'a> {
    fn skip(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }

    fn take_while(&mut self, fits: impl Fn(u8) -> bool) -> &'a [u8] {
        let length = self.rest.iter().position(|b| !fits(*b)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn blanks(&mut self) {
        self.take_while(|b| matches!(b, b' ' | b'\t' | b'\r'));
    }

    /// Nothing, or a comment.
    fn at_end(&self) -> bool {
        matches!(self.rest.first(), None | Some(b'#'))
    }

    /// `name` or `extension.name`, in lower case.
    fn name(&mut self) -> Option<String> {
        let mut name = self.identifier()?.to_vec();
        if self.rest.first() == Some(&b'.') {
            let mut after = Scan { rest: self.rest.get(1..).unwrap_or_default() };
            if let Some(second) = after.identifier() {
                name.push(b'.');
                name.extend_from_slice(second);
                self.rest = after.rest;
            }
        }
        Some(String::from_utf8_lossy(&name.to_ascii_lowercase()).into_owned())
    }

    fn identifier(&mut self) -> Option<&'a [u8]> {
        self.rest.first().filter(|b| is_letter(**b))?;
        Some(self.take_while(|b| is_letter(b) || b.is_ascii_digit()))
    }

    fn value(&mut self) -> Result<Vec<u8>, &'static str> {
        match self.rest.first() {
            None | Some(b'#') => Err("the value is missing"),
            Some(b'\'') => self.quoted(),
            Some(b) if is_letter(*b) => self.word(),
            Some(_) => self.number(),
        }
    }

    /// Letters, digits and `-._:/`. Exactly `a.b` is a name of an extension's setting to PostgreSQL, and no value.
    fn word(&mut self) -> Result<Vec<u8>, &'static str> {
        let word =
            self.take_while(|b| is_letter(b) || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b':' | b'/'));
        let mut as_name = Scan { rest: word };
        if word.contains(&b'.') && as_name.name().is_some() && as_name.rest.is_empty() {
            return Err("the value looks like a setting's name; quote it");
        }
        Ok(word.to_vec())
    }

    /// Whole numbers with a unit, hexadecimal ones too, and plain fractions with an exponent.
    fn number(&mut self) -> Result<Vec<u8>, &'static str> {
        let word = self.take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-'));
        let unsigned = word.strip_prefix(b"-").or_else(|| word.strip_prefix(b"+")).unwrap_or(word);
        if is_integer(unsigned) || is_real(unsigned) {
            return Ok(word.to_vec());
        }
        Err("the value is neither a word nor a number; quote it")
    }

    fn quoted(&mut self) -> Result<Vec<u8>, &'static str> {
        self.skip(1);
        let mut value = Vec::new();
        loop {
            let plain = self.take_while(|b| !matches!(b, b'\'' | b'\\'));
            value.extend_from_slice(plain);
            match (self.rest.first(), self.rest.get(1)) {
                (Some(b'\''), Some(b'\'')) => {
                    value.push(b'\'');
                    self.skip(2);
                }
                (Some(b'\''), _) => {
                    self.skip(1);
                    return Ok(value);
                }
                (Some(_), Some(_)) => {
                    self.skip(1);
                    value.push(self.escaped());
                }
                _ => return Err("the closing quote is missing"),
            }
        }
    }

    /// What stands behind a backslash: one to three octal digits, a letter of C, or the byte itself.
    fn escaped(&mut self) -> u8 {
        let digits = self.rest.iter().take(3).take_while(|b| (b'0'..=b'7').contains(*b)).count();
        if digits > 0 {
            let octal = self.rest.iter().take(digits);
            // PostgreSQL keeps the low byte of what may be nine bits.
            let byte = octal.fold(0_u8, |n, b| n.wrapping_mul(8).wrapping_add(b.wrapping_sub(b'0')));
            self.skip(digits);
            return byte;
        }
        let byte = self.rest.first().copied().unwrap_or(b'\\');
        self.skip(1);
        match byte {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            other => other,
        }
    }
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_integer(word: &[u8]) -> bool {
    if let Some(hex) = word.strip_prefix(b"0x") {
        // A unit may follow, and hexadecimal digits and unit letters overlap.
        let digits = hex.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if digits > 0 {
            return hex.iter().skip(digits).all(u8::is_ascii_alphabetic);
        }
    }
    let digits = word.iter().take_while(|b| b.is_ascii_digit()).count();
    digits > 0 && word.iter().skip(digits).all(u8::is_ascii_alphabetic)
}

fn is_real(word: &[u8]) -> bool {
    let whole = word.iter().take_while(|b| b.is_ascii_digit()).count();
    let Some(fraction) = word.get(whole..).and_then(|rest| rest.strip_prefix(b".")) else { return false };
    let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
    match fraction.get(digits..) {
        None | Some([]) => true,
        Some([b'e' | b'E', exponent @ ..]) => {
            let plain =
                exponent.strip_prefix(b"-").or_else(|| exponent.strip_prefix(b"+")).unwrap_or(exponent);
            !plain.is_empty() && plain.iter().all(u8::is_ascii_digit)
        }
        Some(_) => false,
    }
}

/// `value` as a quoted string of `postgresql.conf`.
///
/// # Errors
/// [`QuoteError::Nul`].
pub fn quote_value(value: &str) -> Result<String, QuoteError> {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for c in value.chars() {
        match c {
            '\0' => return Err(QuoteError::Nul),
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    Ok(quoted)
}

/// `word` as one word of `/bin/sh`: as it is if harmless, else in single quotes.
///
/// # Errors
/// [`QuoteError::Nul`].
pub fn quote_shell(word: &str) -> Result<String, QuoteError> {
    if word.contains('\0') {
        return Err(QuoteError::Nul);
    }
    let harmless = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@,".contains(&b);
    if !word.is_empty() && word.bytes().all(harmless) {
        return Ok(word.to_owned());
    }
    Ok(format!("'{}'", word.replace('\'', "'\\''")))
}

/// Where the commands that the server runs find the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandSource<'a> {
    /// A configuration file, and the repository in it that the restore used; `None` asks all of them.
    Config {
        /// Absolute path of the file.
        path: &'a Path,
        /// Name of the repository.
        repository: Option<&'a str>,
    },
    /// No file: the repository's URL and the cluster's name.
    Url {
        /// URL of the repository.
        url: &'a str,
        /// The cluster in it.
        cluster: &'a str,
    },
}

impl CommandSource<'_> {
    fn flags(&self) -> Result<Vec<String>, QuoteError> {
        Ok(match self {
            Self::Config { path, repository } => {
                let mut flags = vec!["--config".to_owned(), percent(&quote_shell(absolute(path)?)?)];
                if let Some(name) = repository {
                    flags.extend(["--repository".to_owned(), percent(&quote_shell(name)?)]);
                }
                flags
            }
            Self::Url { url, cluster } => vec![
                "--repository".to_owned(),
                percent(&quote_shell(url)?),
                "--cluster".to_owned(),
                percent(&quote_shell(cluster)?),
            ],
        })
    }
}

/// The value of `restore_command`: absolute paths, because it runs in the data directory with a short PATH (RECOVERY 17), and
/// `%` doubled, because PostgreSQL 16 and later refuse a percent sign they do not know. Not yet quoted as a value.
///
/// # Errors
/// [`QuoteError`] for a path that is relative or not UTF-8, or any text with a NUL byte.
pub fn restore_command(
    binary: &Path,
    source: &CommandSource<'_>,
    timeline: Option<TimelineId>,
) -> Result<String, QuoteError> {
    let mut words = vec![percent(&quote_shell(absolute(binary)?)?)];
    words.push("archive-get".to_owned());
    words.extend(source.flags()?);
    if let Some(timeline) = timeline {
        words.extend(["--timeline".to_owned(), timeline.to_string()]);
    }
    words.extend(["%f".to_owned(), "\"%p\"".to_owned()]);
    Ok(words.join(" "))
}

/// Flags about keys, each with a space before it; nothing if there are none. By the rules of [`restore_command`].
///
/// # Errors
/// As [`restore_command`].
pub fn key_flags(identity: Option<&Path>, fingerprint: Option<&str>) -> Result<String, QuoteError> {
    let mut flags = String::new();
    if let Some(path) = identity {
        flags.push_str(&format!(" --identity {}", percent(&quote_shell(absolute(path)?)?)));
    }
    if let Some(digits) = fingerprint {
        flags.push_str(&format!(" --seal-fingerprint {}", percent(&quote_shell(digits)?)));
    }
    Ok(flags)
}

/// The value of `archive_command`, by the rules of [`restore_command`]: every required repository of the configuration is written.
///
/// # Errors
/// [`QuoteError`] for a path that is relative or not UTF-8, or one with a NUL byte.
pub fn archive_command(binary: &Path, config: &Path) -> Result<String, QuoteError> {
    let binary = percent(&quote_shell(absolute(binary)?)?);
    let config = percent(&quote_shell(absolute(config)?)?);
    Ok(format!("{binary} --config {config} archive-push %p"))
}

fn absolute(path: &Path) -> Result<&str, QuoteError> {
    path.to_str().filter(|_| path.is_absolute()).ok_or(QuoteError::Path)
}

fn percent(word: &str) -> String {
    word.replace('%', "%%")
}

#[cfg(test)]
mod tests;

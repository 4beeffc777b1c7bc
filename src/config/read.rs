//! Sections of a TOML file whose keys are asked for one by one: types are checked where a value is used, and what nobody
//! asked for is a mistake.
//!
//! No list of known keys is kept anywhere: a section remembers what it was asked, so the check cannot drift from the code. Every
//! error names file, line and column and shows the line, unless the line may hold a secret.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::units;
use crate::error::{Error, Result};

/// The file an error points into.
pub(super) struct Document<'d> {
    text: &'d str,
    path: &'d str,
}

impl<'d> Document<'d> {
    pub(super) fn new(text: &'d str, path: &'d str) -> Self {
        Self { text, path }
    }

    /// The parsed file.
    pub(super) fn table(&self) -> Result<Spanned<DeTable<'d>>> {
        DeTable::parse(self.text).map_err(|error| {
            let what = error.message().lines().collect::<Vec<_>>().join(", ");
            self.fault(&error.span().unwrap_or(0..0), &what)
        })
    }

    /// An error at a place of the file.
    fn fault(&self, span: &Range<usize>, what: &str) -> Error {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let number = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        let line = self.text.lines().nth(number - 1).unwrap_or("");
        let mut message = format!("{}:{number}:{column}: {what}", self.path);
        if !line.trim().is_empty() && !may_hold_secret(line) {
            let marked =
                self.text.get(span.clone()).unwrap_or("").lines().next().unwrap_or("").chars().count();
            let (margin, indent) = (number.to_string(), " ".repeat(column - 1));
            let (blank, marks) = (" ".repeat(margin.len()), "^".repeat(marked.max(1)));
            message.push_str(&format!("\n{margin} | {line}\n{blank} | {indent}{marks}"));
        }
        Error::usage(message)
    }
}

/// Errors end up in logs and tickets.
fn may_hold_secret(line: &str) -> bool {
    let lower = line.to_ascii_lowercase();
    lower.contains('@')
        || ["password", "secret", "passwd", "access_key"].iter().any(|word| lower.contains(word))
}

/// One table of the file.
pub(super) struct Section<'d> {
    document: &'d Document<'d>,
    /// How messages name it; empty for the top of the file.
    title: String,
    table: &'d DeTable<'d>,
    span: Range<usize>,
    asked: Vec<&'static str>,
}

type Value<'d> = &'d Spanned<DeValue<'d>>;

impl<'d> Section<'d> {
    /// The top of the file.
    pub(super) fn top(document: &'d Document<'d>, table: &'d Spanned<DeTable<'d>>) -> Self {
        // Errors about the file as a whole point at its begin.
        Self { document, title: String::new(), table: table.get_ref(), span: 0..0, asked: Vec::new() }
    }

    fn value(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.asked.push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn wrong(&self, key: &str, value: Value<'d>, why: &str) -> Error {
        self.document.fault(&value.span(), &format!("{key} {why}"))
    }

    /// An error about the section itself.
    pub(super) fn fault(&self, what: &str) -> Error {
        self.document.fault(&self.span, what)
    }

    /// An error about the value of a key.
    pub(super) fn fault_at(&self, key: &'static str, why: &str) -> Error {
        let value = self.table.iter().find(|(name, _)| name.get_ref() == key);
        value.map_or_else(|| self.fault(&format!("{key} {why}")), |(_, value)| self.wrong(key, value, why))
    }

    /// A string, converted; the words of a failed conversion follow the key in the message.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Some(text) = value.get_ref().as_str() else {
            return Err(self.wrong(key, value, &format!("is {}, not a string in quotes", kind(value))));
        };
        if text.is_empty() {
            return Err(self.wrong(key, value, "is empty"));
        }
        if text.contains('\0') {
            return Err(self.wrong(key, value, "holds a NUL character"));
        }
        convert(text).map(Some).map_err(|why| self.wrong(key, value, &why))
    }

    /// A string that must be there.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T> {
        match self.text(key, convert)? {
            Some(value) => Ok(value),
            None => Err(self.unless_misspelt(key)),
        }
    }

    /// "Missing", or the key that was probably meant to be it.
    fn unless_misspelt(&self, key: &'static str) -> Error {
        let names: Vec<&str> = self.table.keys().map(|name| name.get_ref().as_ref()).collect();
        let near = nearest(key, &names).and_then(|near| self.table.keys().find(|k| k.get_ref() == near));
        match near {
            Some(near) => self.unknown(near, Some(key)),
            None => self.fault(&format!("{key} is missing{}", self.place())),
        }
    }

    /// An absolute path.
    pub(super) fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>> {
        self.text(key, |text| {
            let path = PathBuf::from(text);
            if path.is_absolute() { Ok(path) } else { Err("is not an absolute path".to_owned()) }
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str) -> Result<Option<bool>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let flag = value.get_ref().as_bool();
        flag.map(Some).ok_or_else(|| {
            self.wrong(key, value, &format!("is {}, not true or false without quotes", kind(value)))
        })
    }

    /// A whole number within `range`.
    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = whole(value.get_ref());
        number.filter(|n| range.contains(n)).map(Some).ok_or_else(|| {
            self.wrong(
                key,
                value,
                &format!("is not a whole number from {} to {}", range.start(), range.end()),
            )
        })
    }

    /// A duration within `range`: a string with units, or 0.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Result<Option<Duration>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let parsed = units::parse_duration(&number_or_text(value));
        let duration = parsed.map_err(|why| self.wrong(key, value, &why))?;
        if !range.contains(&duration) {
            let (least, most) = (units::show_duration(*range.start()), units::show_duration(*range.end()));
            return Err(self.wrong(key, value, &format!("is not between {least} and {most}")));
        }
        Ok(Some(duration))
    }

    /// A size within `range`: a string with a unit, or a number of bytes.
    pub(super) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let plain = whole(value.get_ref()).and_then(|n| u64::try_from(n).ok());
        let parsed = plain.map_or_else(|| units::parse_size(&number_or_text(value)), Ok);
        let bytes = parsed.map_err(|why| self.wrong(key, value, &why))?;
        if !range.contains(&bytes) {
            let (least, most) = (units::show_size(*range.start()), units::show_size(*range.end()));
            return Err(self.wrong(key, value, &format!("is not between {least} and {most}")));
        }
        Ok(Some(bytes))
    }

    /// `[key]`, or an inline table.
    pub(super) fn section(&mut self, key: &'static str) -> Result<Option<Self>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let Some(table) = value.get_ref().as_table() else {
            return Err(self.wrong(key, value, &format!("is {}, not a table", kind(value))));
        };
        let title =
            if self.title.is_empty() { format!("[{key}]") } else { format!("{key} of {}", self.title) };
        Ok(Some(Self { document: self.document, title, table, span: value.span(), asked: Vec::new() }))
    }

    /// Every `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Result<Vec<Self>> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let written = format!("is {}; each one is written under its own [[{key}]]", kind(value));
        let Some(array) = value.get_ref().as_array() else {
            return Err(self.wrong(key, value, &written));
        };
        let mut sections = Vec::new();
        for value in array.iter() {
            let Some(table) = value.get_ref().as_table() else {
                return Err(self.wrong(key, value, &written));
            };
            let title = format!("[[{key}]]");
            sections.push(Self {
                document: self.document,
                title,
                table,
                span: value.span(),
                asked: Vec::new(),
            });
        }
        Ok(sections)
    }

    /// Refuses keys that were never asked for.
    pub(super) fn finish(self) -> Result<()> {
        let stranger = self.table.keys().find(|name| !self.asked.contains(&name.get_ref().as_ref()));
        stranger.map_or(Ok(()), |name| Err(self.unknown(name, nearest(name.get_ref(), &self.asked))))
    }

    fn unknown(&self, name: &Spanned<std::borrow::Cow<'_, str>>, near: Option<&str>) -> Error {
        let shown: String = name.get_ref().chars().take(60).collect();
        let error = self.document.fault(&name.span(), &format!("unknown key {shown:?}{}", self.place()));
        match near {
            Some(near) => error.hint(format!("did you mean {near:?}?")),
            None => error.hint(format!("known here: {}", self.asked.join(", "))),
        }
    }

    fn place(&self) -> String {
        if self.title.is_empty() { String::new() } else { format!(" in {}", self.title) }
    }
}

fn whole(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// The text of a string or a number, for units.
fn number_or_text(value: Value<'_>) -> String {
    match value.get_ref() {
        DeValue::String(text) => text.clone().into_owned(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        other => other.type_str().to_owned(),
    }
}

fn kind(value: Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The name most like `word`, if one is like it at all.
pub(super) fn nearest<'n>(word: &str, names: &[&'n str]) -> Option<&'n str> {
    let word = word.to_lowercase();
    let score = |name: &&&'n str| (strsim::jaro_winkler(&word, name) * 1000.0).round();
    let best = names.iter().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(&best) >= 800.0).then_some(*best)
}

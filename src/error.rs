//! The error that leaves the program: what kind of failure, said in one line, with its causes and one piece of advice.
//!
//! ```text
//! error: cannot store 00000001000000000000000A            message: names the object, lower case, no final dot
//!   cause: repository "cloud": connection refused         source chain, outermost first
//! HINT: is the endpoint right? see `pitr check`           what to do, never part of the message
//! ```
//! The kind decides the exit code, and scripts rely on those numbers (INTERFACE: exit codes). Pure modules keep enums of
//! their own; this type begins where a command has to answer. `archive-push` and `archive-get` speak to PostgreSQL, not to
//! people, and map errors to their own ranges.

use std::error::Error as StdError;
use std::fmt;

/// What kind of failure it is: the reaction it calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It did not work, and none of the more exact kinds applies.
    Failed,
    /// `check` and `status`: it works now, but a promise is in danger.
    AtRisk,
    /// A wrong command line or configuration, an unclear or impossible local time.
    Usage,
    /// The recovery target cannot be reached: not covered, before consistency, in a gap, on two branches.
    Unreachable,
    /// What was named does not exist.
    NotFound,
    /// Stored bytes are damaged.
    Corrupt,
    /// A key or a permission is missing.
    Key,
    /// Someone else is at it.
    Busy,
    /// Refused because going on could destroy data.
    Refused,
    /// Ended by a signal.
    Interrupted,
}

impl Kind {
    /// The exit code of a command that ends with this kind.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::AtRisk => 2,
            Self::Usage => 3,
            Self::Unreachable => 4,
            Self::NotFound => 5,
            Self::Corrupt => 6,
            Self::Key => 7,
            Self::Busy => 8,
            Self::Refused => 9,
            Self::Interrupted => 130,
        }
    }

    /// What to do about an error of this kind that has no advice of its own.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Failed => "mend the cause and repeat the command: repeating is safe",
            Self::AtRisk => "see to what is named above",
            Self::Usage => {
                "correct the command line or the configuration; `pitr COMMAND --help` shows the flags"
            }
            Self::Unreachable => "name another moment; `pitr info` shows what can be restored",
            Self::NotFound => "`pitr info` shows what is there",
            Self::Corrupt => {
                "nothing of it was used; take another backup or repository, and see `pitr verify` for what is lost"
            }
            Self::Key => "check owner, mode and credentials for the user that pitr runs as",
            Self::Busy => "wait, and repeat the command",
            Self::Refused => {
                "mend what stands in the way, then repeat the command; nothing existing was replaced"
            }
            Self::Interrupted => "repeat the command: repeating is safe",
        }
    }

    /// A name for JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::AtRisk => "at_risk",
            Self::Usage => "usage",
            Self::Unreachable => "unreachable",
            Self::NotFound => "not_found",
            Self::Corrupt => "corrupt",
            Self::Key => "key",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Any error as a cause.
type Cause = Box<dyn StdError + Send + Sync>;

/// `Result` with the program's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure as a command reports it. [`fmt::Display`] is the message alone; [`Error::report`] is everything.
pub struct Error {
    // Boxed: a `Result` that is nearly always Ok should not carry a hundred bytes around.
    inner: Box<Inner>,
}

struct Inner {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Cause>,
    unanswered: bool,
}

impl Error {
    /// An error of `kind`. The message is lower case, has no final dot and names the object.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                hint: None,
                source: None,
                unanswered: false,
            }),
        }
    }

    /// [`Kind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// [`Kind::AtRisk`].
    pub fn at_risk(message: impl Into<String>) -> Self {
        Self::new(Kind::AtRisk, message)
    }

    /// [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// [`Kind::Unreachable`].
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    /// [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// [`Kind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    /// [`Kind::Key`].
    pub fn key(message: impl Into<String>) -> Self {
        Self::new(Kind::Key, message)
    }

    /// [`Kind::Busy`].
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(Kind::Busy, message)
    }

    /// [`Kind::Refused`].
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    /// [`Kind::Interrupted`].
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, message)
    }

    /// The same error with advice: a sentence that says what to do. The last one given stays.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// The same error with its cause.
    #[must_use]
    pub fn source(mut self, cause: impl Into<Cause>) -> Self {
        self.inner.source = Some(cause.into());
        self
    }

    /// The error one level up: `message` becomes the line that is shown first, this error its cause. Kind and hint stay.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        let hint = self.inner.hint.take();
        let unanswered = self.inner.unanswered;
        let mut outer = Self::new(self.inner.kind, message).source(self);
        (outer.inner.hint, outer.inner.unanswered) = (hint, unanswered);
        outer
    }

    /// The same error: it is of a store that gave no answer, which took its time and would take it again.
    #[must_use]
    pub fn unanswered(mut self) -> Self {
        self.inner.unanswered = true;
        self
    }

    /// Whether a store gave no answer.
    pub fn is_unanswered(&self) -> bool {
        self.inner.unanswered
    }

    /// The same error; with the advice of its kind if it has none of its own.
    #[must_use]
    pub fn advised(self) -> Self {
        let general = self.kind().advice();
        if self.advice().is_some() { self } else { self.hint(general) }
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// The message without causes.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The advice, if there is any.
    pub fn advice(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// The exit code of the command.
    pub fn exit_code(&self) -> u8 {
        self.kind().exit_code()
    }

    /// Message, causes and hint, one per line, without a final newline. Further lines of a message are indented under it.
    pub fn report(&self) -> String {
        let mut text = labelled("", "error: ", &self.inner.message);
        let mut said = self.inner.message.clone();
        for cause in causes(self) {
            // Wrappers often print the error they wrap: the same words once are enough.
            if !said.contains(&cause) {
                text.push('\n');
                text.push_str(&labelled("  ", "cause: ", &cause));
            }
            said = cause;
        }
        if let Some(hint) = self.advice() {
            text.push('\n');
            text.push_str(&labelled("", "HINT: ", hint));
        }
        text
    }
}

/// The texts of the source chain, outermost first. A bound keeps a chain that runs in circles from hanging the report.
fn causes(error: &Error) -> Vec<String> {
    const MOST_CAUSES: usize = 16;
    let mut texts = Vec::new();
    let mut next = StdError::source(error);
    while let Some(cause) = next.filter(|_| texts.len() < MOST_CAUSES) {
        texts.push(cause.to_string());
        next = cause.source();
    }
    texts
}

/// `text` behind `label`; its further lines stand below its first letter.
fn labelled(indent: &str, label: &str, text: &str) -> String {
    let hang = format!("\n{}", " ".repeat(indent.len() + label.len()));
    format!("{indent}{label}{}", text.trim_end().replace('\n', &hang))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.inner.kind, self.report())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|cause| {
            let cause: &(dyn StdError + 'static) = cause;
            cause
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_shows_message_causes_and_hint_in_that_order() {
        let inner = Error::failed("connection refused");
        let error = Error::unreachable("cannot read the repository")
            .source(inner)
            .hint("is it up?\nsee `pitr check`");
        assert_eq!(
            error.report(),
            "error: cannot read the repository\n  cause: connection refused\nHINT: is it up?\n      see `pitr check`"
        );
        assert_eq!(error.to_string(), "cannot read the repository");
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    fn context_keeps_kind_and_hint() {
        let error = Error::key("no key for epoch 2").hint("give --identity").context("cannot open backup X");
        assert_eq!(error.kind(), Kind::Key);
        assert_eq!(
            error.report(),
            "error: cannot open backup X\n  cause: no key for epoch 2\nHINT: give --identity"
        );
    }

    #[test]
    fn a_cause_that_the_message_repeats_is_said_once() {
        let error = Error::failed("cannot open /x: no such file").source("no such file");
        assert_eq!(error.report(), "error: cannot open /x: no such file");
    }

    #[test]
    fn exit_codes_are_those_of_the_interface() {
        use Kind::{AtRisk, Busy, Corrupt, Failed, Interrupted, Key, NotFound, Refused, Unreachable, Usage};
        let kinds = [Failed, AtRisk, Usage, Unreachable, NotFound, Corrupt, Key, Busy, Refused, Interrupted];
        assert_eq!(kinds.map(Kind::exit_code), [1, 2, 3, 4, 5, 6, 7, 8, 9, 130]);
    }
}

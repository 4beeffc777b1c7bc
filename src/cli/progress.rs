//! Progress on a terminal: bytes, rate and time left, on standard error.
//!
//! In a log (standard error is not a terminal), with `--json` or `--quiet`, nothing is printed but notes, and phases at `-v`: a cron
//! mail stays short. Implements [`crate::ops::Progress`].

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::output;
use crate::ops::Progress;

/// How much a command says besides its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// Errors only.
    Quiet,
    /// Progress on a terminal, nothing in a log.
    Normal,
    /// Phases in a log too.
    Verbose,
}

/// The terminal's progress line.
#[derive(Debug)]
pub struct Terminal {
    talk: Talk,
    drawn: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Terminal {
    /// Draws if standard error is a terminal and `talk` allows.
    pub fn new(talk: Talk) -> Self {
        let drawn = talk != Talk::Quiet && std::io::stderr().is_terminal();
        Self { talk, drawn, bar: Mutex::new(None) }
    }

    fn with_bar(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        // A poisoned lock means another thread panicked while drawing: the picture does not matter any more.
        if let Ok(mut bar) = self.bar.lock() {
            act(&mut bar);
        }
    }
}

impl Progress for Terminal {
    fn begin(&self, phase: &str, total: Option<u64>) {
        if self.talk == Talk::Verbose && !self.drawn {
            output::warn(phase);
        }
        if !self.drawn {
            return;
        }
        self.with_bar(|slot| {
            if let Some(old) = slot.take() {
                old.finish_and_clear();
            }
            let template = match total {
                Some(_) => "{msg} {bar:24} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left",
                None => "{msg} {spinner} {bytes}  {binary_bytes_per_sec}",
            };
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(8));
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(phase.to_owned());
            *slot = Some(bar);
        });
    }

    fn total(&self, bytes: u64) {
        self.with_bar(|slot| {
            if let Some(bar) = slot {
                bar.set_length(bytes);
            }
        });
    }

    fn advance(&self, bytes: u64) {
        self.with_bar(|slot| {
            if let Some(bar) = slot {
                bar.inc(bytes);
            }
        });
    }

    fn note(&self, text: &str) {
        if self.talk == Talk::Quiet {
            return;
        }
        self.with_bar(|slot| match slot {
            Some(bar) => bar.suspend(|| output::warn(text)),
            None => output::warn(text),
        });
    }

    fn end(&self) {
        self.with_bar(|slot| {
            if let Some(bar) = slot.take() {
                bar.finish_and_clear();
            }
        });
    }
}

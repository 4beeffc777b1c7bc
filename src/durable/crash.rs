//! Named points between the steps of this module at which a test kills the process, as kill -9 or the host would.
//!
//! `PITR_TEST_CRASH=[NAME:]N` ends the process with SIGKILL when it passes its N-th point (of this name), counted from 1. Calls to a
//! store have points of their own, `kill` and `killed-after` in `store::fault`.
//! Invariant: a program that is not built for tests has no point at all: [`point`] is empty there.

/// A step is about to be taken, or was just taken: here a test may kill the process.
#[cfg(not(any(test, feature = "testing")))]
#[inline(always)]
pub(crate) fn point(_name: &'static str) {}

#[cfg(any(test, feature = "testing"))]
pub(crate) use armed::{die, point};

#[cfg(any(test, feature = "testing"))]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Which point is the last.
    #[derive(Debug, PartialEq, Eq)]
    pub(super) struct Plan {
        /// Only points of this name count.
        pub(super) name: Option<String>,
        /// The how many-th, from 1.
        pub(super) nth: u64,
    }

    impl Plan {
        pub(super) fn parse(text: &str) -> Option<Self> {
            let (name, nth) =
                text.rsplit_once(':').map_or((None, text), |(name, nth)| (Some(name.to_owned()), nth));
            Some(Self { name, nth: nth.parse().ok()? })
        }
    }

    /// A step is about to be taken, or was just taken: here a test may kill the process.
    pub(crate) fn point(name: &'static str) {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        static PASSED: AtomicU64 = AtomicU64::new(0);
        let Some(plan) = PLAN.get_or_init(from_environment) else { return };
        if plan.name.as_ref().is_none_or(|wanted| wanted == name)
            && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == plan.nth
        {
            tracing::warn!("injected kill at {name}");
            die();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a switch of test programs, no part of any configuration")]
    fn from_environment() -> Option<Plan> {
        let text = std::env::var("PITR_TEST_CRASH").ok()?;
        let plan = Plan::parse(&text);
        // A test that asks for an impossible point must not pass for want of it.
        Some(plan.unwrap_or_else(|| {
            tracing::error!("PITR_TEST_CRASH: {text:?} is not [NAME:]N");
            Plan { name: None, nth: 1 }
        }))
    }

    /// Ends this process as kill -9 does: nothing is flushed, dropped or told.
    pub(crate) fn die() -> ! {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL); // it cannot fail
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::armed::Plan;

    #[test]
    fn plans_are_read_from_text() {
        assert_eq!(Plan::parse("3"), Some(Plan { name: None, nth: 3 }));
        assert_eq!(Plan::parse("settled:1"), Some(Plan { name: Some("settled".into()), nth: 1 }));
        assert_eq!(Plan::parse("settled"), None);
    }
}

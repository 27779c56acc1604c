//! Earned: the revisions of one module that may be gone back to.
//!
//! A revision earns that by being live through its probation, not by being live: what somebody pinned for a
//! moment to have a look at it, or a bad file that another bad file replaced, is no measure for what comes
//! next, and nothing to go back to.

use super::Baseline;
use crate::domain::verdict::Revision;

/// So many are kept: further back nobody wants to go.
const KEPT: usize = 8;

/// See the module documentation. The one that was live last comes last, each with what it did then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Earned(Vec<(Revision, Baseline)>);

impl Earned {
    /// A revision that earned it is replaced.
    pub fn note(&mut self, revision: Revision, baseline: Baseline) {
        self.0.retain(|(known, _)| *known != revision);
        self.0.push((revision, baseline));
        let beyond = self.0.len().saturating_sub(KEPT);
        self.0.drain(..beyond);
    }

    /// What the next revision is compared with, and goes back to: the last of them that is not `broken`,
    /// as one is that the breaker of some host rolled back.
    pub fn fallback(&self, is_broken: impl Fn(Revision) -> bool) -> Option<(Revision, Baseline)> {
        self.0.iter().rev().find(|(revision, _)| !is_broken(*revision)).copied()
    }

    /// What a revision did; nothing of one that did not earn it.
    pub fn baseline(&self, revision: Revision) -> Option<Baseline> {
        self.0.iter().find(|(known, _)| *known == revision).map(|(_, baseline)| *baseline)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Counts;
    use super::*;

    const A: Revision = Revision([0xa; 32]);
    const B: Revision = Revision([0xb; 32]);

    fn measured(seen: u64) -> Baseline {
        Baseline::Measured(Counts { seen, rejected: 0, faulted: 0 })
    }

    #[test]
    fn the_last_that_no_breaker_rolled_back_is_gone_back_to() {
        let mut earned = Earned::default();
        assert_eq!(earned.fallback(|_| false), None);
        earned.note(A, measured(1));
        earned.note(B, measured(2));
        assert_eq!(earned.fallback(|_| false), Some((B, measured(2))));
        assert_eq!(earned.fallback(|revision| revision == B), Some((A, measured(1))));
        assert_eq!(earned.fallback(|_| true), None);

        // An operator went back to it, and it was replaced again.
        earned.note(A, measured(3));
        assert_eq!(earned.fallback(|_| false), Some((A, measured(3))));
        assert_eq!((earned.baseline(A), earned.baseline(B)), (Some(measured(3)), Some(measured(2))));
    }

    #[test]
    fn the_list_does_not_grow_with_uptime() {
        let mut earned = Earned::default();
        for byte in 0..=u8::MAX {
            earned.note(Revision([byte; 32]), Baseline::Unknown);
        }
        assert_eq!(earned.0.len(), KEPT);
        assert_eq!(earned.baseline(Revision([0; 32])), None);
        assert_eq!(earned.fallback(|_| false).map(|(revision, _)| revision), Some(Revision([u8::MAX; 32])));
    }
}

//! Tally: how many records each revision of a module was shown, and what became of them.
//!
//! State: three counters for each revision of a module in a pipeline, which every chain of that pipeline
//! that has the revision adds to, once a chunk. They only ever grow, and are gone with the last chain.
//! What recovery judges again is not counted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::domain::breaker::Counts;
use crate::domain::verdict::{Rejection, RejectionKind, Revision, Stage};
use crate::pipeline::ports::ModuleIdentity;

/// What became of the records that one revision of a module was shown in one pipeline.
#[derive(Debug, Default)]
pub struct Tally {
    seen: AtomicU64,
    rejected: AtomicU64,
    faulted: AtomicU64,
}

impl Tally {
    /// Adds what became of `seen` records of a chunk, of which these were refused.
    pub(super) fn add<'r>(&self, seen: usize, refused: impl Iterator<Item = &'r Rejection>) {
        let (mut rejected, mut faulted) = (0, 0);
        for rejection in refused {
            match rejection.kind {
                RejectionKind::Trap
                | RejectionKind::Timeout
                | RejectionKind::Memory
                | RejectionKind::BadRow => faulted += 1,
                _ => rejected += 1,
            }
        }
        // Whoever reads them may see the first before the others: they are compared by the thousand.
        self.seen.fetch_add(seen as u64, Ordering::Relaxed);
        if rejected > 0 {
            self.rejected.fetch_add(rejected, Ordering::Relaxed);
        }
        if faulted > 0 {
            self.faulted.fetch_add(faulted, Ordering::Relaxed);
        }
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts { seen: load(&self.seen), rejected: load(&self.rejected), faulted: load(&self.faulted) }
    }
}

/// Which tally: pipeline, stage, name and revision.
type Key = (String, Stage, Arc<str>, Revision);

/// The tallies of all chains that run.
#[derive(Debug, Default)]
pub(super) struct Tallies(Mutex<HashMap<Key, Weak<Tally>>>);

impl Tallies {
    /// The one of a module in a pipeline.
    pub(super) fn of(&self, pipeline: &str, module: &ModuleIdentity) -> Arc<Tally> {
        let ModuleIdentity { name, stage, revision } = module;
        let key = (pipeline.to_owned(), *stage, name.clone(), *revision);
        let mut tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.retain(|_, tally| tally.strong_count() > 0);
        if let Some(tally) = tallies.get(&key).and_then(Weak::upgrade) {
            return tally;
        }
        let tally = Arc::new(Tally::default());
        tallies.insert(key, Arc::downgrade(&tally));
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, byte: u8) -> ModuleIdentity {
        ModuleIdentity { name: name.into(), stage: Stage::Validate, revision: Revision([byte; 32]) }
    }

    fn rejection(kind: RejectionKind) -> Rejection {
        Rejection {
            stage: Stage::Validate,
            module: "rules".into(),
            revision: None,
            kind,
            code: String::new(),
            field: None,
            reason: String::new(),
        }
    }

    #[test]
    fn a_refusal_is_a_rejection_or_a_fault() {
        let tally = Tally::default();
        let all = RejectionKind::ALL.map(rejection);
        tally.add(10, all.iter().filter(|rejection| rejection.kind != RejectionKind::Insert));
        tally.add(5, std::iter::empty());
        // `rejected`, `malformed` and, which no module does, `unrecovered`; then the four failures.
        assert_eq!(tally.counts(), Counts { seen: 15, rejected: 3, faulted: 4 });
    }

    #[test]
    fn chains_of_a_pipeline_share_a_revisions_tally_while_one_lives() {
        let tallies = Tallies::default();
        let first = tallies.of("purchases", &module("rules", 1));
        first.add(7, std::iter::empty());
        assert!(Arc::ptr_eq(&first, &tallies.of("purchases", &module("rules", 1))));
        for (pipeline, name, byte) in
            [("other", "rules", 1), ("purchases", "more", 1), ("purchases", "rules", 2)]
        {
            assert_eq!(tallies.of(pipeline, &module(name, byte)).counts(), Counts::default());
        }
        drop(first);
        assert_eq!(tallies.of("purchases", &module("rules", 1)).counts(), Counts::default());
        assert_eq!(tallies.0.lock().unwrap().len(), 1);
    }
}

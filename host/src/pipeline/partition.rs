//! Partition: puts the verdicts of its chunks back into offset order.

use std::collections::BTreeMap;

use super::event::Judged;

/// One assigned partition. Chunks come in any order, each sequence number once, and leave in order.
#[derive(Debug, Default)]
pub struct Partition {
    next: u64,
    waiting: BTreeMap<u64, Judged>,
}

impl Partition {
    /// Takes a judged chunk in and returns those whose turn it is now, in order.
    pub fn reorder(&mut self, judged: Judged) -> Vec<Judged> {
        self.waiting.insert(judged.taken.sequence, judged);
        let mut ready = Vec::new();
        while let Some(judged) = self.waiting.remove(&self.next) {
            ready.push(judged);
            self.next += 1;
        }
        ready
    }
}

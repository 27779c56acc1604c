//! Budget: one count of bytes: of records and rows, from intake until their batch settles, and of the
//! bodies of INSERTs while they are under way. It is what keeps memory bounded: intake stops taking
//! records while it is spent. Nothing is dropped to make room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Shared count of bytes in flight, with its limit.
#[derive(Clone, Debug)]
pub struct Budget {
    held: Arc<AtomicUsize>,
    limit: usize,
}

/// Bytes taken from a budget, given back when dropped.
#[derive(Debug)]
pub struct Hold {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { held: Arc::default(), limit }
    }

    /// Bytes that may still be taken; 0 means that intake waits.
    pub fn available(&self) -> usize {
        self.limit.saturating_sub(self.held())
    }

    /// Bytes taken.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Most bytes that intake takes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Takes bytes, even beyond the limit: what has been read cannot be unread. The overshoot is
    /// one read of the intake, the rows of the chunks that are with the workers, and the bodies of
    /// the INSERTs under way, for which intake then waits.
    pub fn take(&self, bytes: usize) -> Hold {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Hold { held: self.held.clone(), bytes }
    }
}

impl Hold {
    /// Takes `bytes` more into this hold.
    pub fn grow(&mut self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let budget = Budget::new(100);
        let mut hold = budget.take(60);
        hold.grow(60);
        assert_eq!((budget.held(), budget.available()), (120, 0));
        drop(hold);
        assert_eq!((budget.held(), budget.available()), (0, 100));
    }
}

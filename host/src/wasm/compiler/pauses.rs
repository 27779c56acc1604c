//! Pauses: how long a file waits that this machine did not let be compiled.
//!
//! Most often the system ended the compiler for want of memory: the module is not refused for it, but a file that
//! is compiled again each second, only to be ended again, would keep the machine at its worst.
//!
//! State: the files that this happened to, and until when they wait; at most [`MOST_FILES`] of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Wait after the first time; it doubles each time.
const FIRST: Duration = Duration::from_secs(2);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(300);
/// Files that are remembered. Where there are more, the machine has other troubles.
const MOST_FILES: usize = 256;

/// SHA-256 of a file.
pub(super) type Content = [u8; 32];

struct Pause {
    times: u32,
    until: Instant,
    reason: String,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Pauses {
    by_file: HashMap<Content, Pause>,
}

impl Pauses {
    /// Why a file waits at `now`, if it does.
    pub(super) fn pending(&self, file: &Content, now: Instant) -> Option<&str> {
        self.by_file.get(file).filter(|pause| now < pause.until).map(|pause| &*pause.reason)
    }

    /// Takes note that a file could not be compiled; it waits twice as long as the last time.
    pub(super) fn ended(&mut self, file: Content, reason: &str, now: Instant) {
        if self.by_file.len() >= MOST_FILES && !self.by_file.contains_key(&file) {
            self.by_file.clear();
        }
        let pause = self.by_file.entry(file).or_insert(Pause { times: 0, until: now, reason: String::new() });
        pause.until = now + FIRST.saturating_mul(1 << pause.times.min(16)).min(LONGEST);
        pause.times += 1;
        reason.clone_into(&mut pause.reason);
    }

    /// Takes note that a compiler had its say about a file.
    pub(super) fn over(&mut self, file: &Content) {
        self.by_file.remove(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Content = [1; 32];

    #[test]
    fn a_file_waits_twice_as_long_each_time_up_to_a_bound() {
        let mut pauses = Pauses::default();
        let mut now = Instant::now();
        assert!(pauses.pending(&FILE, now).is_none());
        let mut waits = Vec::new();
        for _ in 0..10 {
            pauses.ended(FILE, "killed", now);
            let started = now;
            while let Some(reason) = pauses.pending(&FILE, now) {
                assert_eq!(reason, "killed");
                now += Duration::from_secs(1);
            }
            waits.push((now - started).as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert!(pauses.pending(&[2; 32], now).is_none(), "another file does not wait");
    }

    #[test]
    fn what_went_well_begins_anew_and_nothing_grows_without_bound() {
        let mut pauses = Pauses::default();
        let now = Instant::now();
        pauses.ended(FILE, "killed", now);
        pauses.over(&FILE);
        assert!(pauses.pending(&FILE, now).is_none());
        for index in 0..=u16::MAX {
            let mut file = FILE;
            file[..2].copy_from_slice(&index.to_le_bytes());
            pauses.ended(file, "killed", now);
        }
        assert!(pauses.by_file.len() <= MOST_FILES);
    }
}

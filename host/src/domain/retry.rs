//! Retry: whether to try again, and how long to wait before.

use std::time::Duration;

/// Whether an error may go away by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retryability {
    /// Trying the same thing again may succeed.
    Retry,
    /// The same thing will fail again.
    Permanent,
}

/// Exponential backoff with full jitter
/// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>), without an end:
/// an outage is waited out, however long it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Upper bound of the first wait.
    pub initial: Duration,
    /// Upper bound of every later wait.
    pub maximum: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { initial: Duration::from_millis(100), maximum: Duration::from_secs(10) }
    }
}

impl RetryPolicy {
    /// Wait before attempt `attempt` (0 is the first repetition), for a `jitter` drawn from 0.0..1.0.
    /// At least half of the bound is waited, so that a broken server is never hammered.
    pub fn wait(&self, attempt: u32, jitter: f64) -> Duration {
        let bound = self.initial.saturating_mul(2u32.saturating_pow(attempt.min(31))).min(self.maximum);
        bound.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_keep_within_their_bounds() {
        let policy = RetryPolicy { initial: Duration::from_millis(100), maximum: Duration::from_secs(1) };
        let bounds = [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis);
        for (attempt, bound) in bounds.into_iter().enumerate() {
            assert_eq!(policy.wait(attempt as u32, 1.0), bound);
            assert_eq!(policy.wait(attempt as u32, 0.0), bound / 2);
        }
        assert_eq!(policy.wait(u32::MAX, 1.0), policy.maximum);
    }
}

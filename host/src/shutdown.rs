//! Shutdown: the drain token and its deadline.

//! Log: lines for the people who run the module.
//!
//! State: natively, and on this thread only, the lines that a test collects
//! ([`testing::logged`](crate::testing::logged)).

pub use crate::bindings::validator::sluice::module::log::Level;

/// Writes a line to the host's log, formatted as by `format!`: `log!(Level::Warn, "no price for {sku}")`.
///
/// Nothing comes back, so a verdict cannot depend on it. The host adds pipeline, module and revision, cuts
/// a line after 1,024 bytes, and drops lines beyond some ten a second. A record that is run again, since another
/// in its chunk made the module fail, is logged again. Lines of `new` are shown when the file is checked.
///
/// A module that never logs imports nothing. Natively, in tests, lines go to standard error, or to
/// [`testing::logged`](crate::testing::logged).
#[macro_export]
macro_rules! log {
    ($level:expr, $($argument:tt)+) => {
        $crate::adapter::log($level, &::std::format!($($argument)+))
    };
}

/// Hands a line to the host.
#[cfg(target_family = "wasm")]
pub fn log(level: Level, message: &str) {
    crate::bindings::validator::sluice::module::log::log(level, message);
}

/// Hands a line to the test that collects lines, or prints it.
#[cfg(not(target_family = "wasm"))]
pub fn log(level: Level, message: &str) {
    collected::LINES.with_borrow_mut(|lines| match lines {
        Some(lines) => lines.push((level, message.to_owned())),
        None => eprintln!("{level:?}: {message}"),
    });
}

#[cfg(not(target_family = "wasm"))]
pub(crate) mod collected {
    use std::cell::RefCell;

    use super::Level;

    thread_local! {
        pub(super) static LINES: RefCell<Option<Vec<(Level, String)>>> = const { RefCell::new(None) };
    }

    /// Runs `body` and answers the lines that it wrote, too.
    pub(crate) fn logged<T>(body: impl FnOnce() -> T) -> (T, Vec<(Level, String)>) {
        let before = LINES.replace(Some(Vec::new()));
        let result = body();
        let lines = LINES.replace(before).unwrap_or_default();
        (result, lines)
    }
}

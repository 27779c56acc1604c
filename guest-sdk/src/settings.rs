//! A module's settings, and the one value of the author's type that an instance keeps.

use std::cell::OnceCell;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::json;

/// The settings of a module that has none. A setting given to it nevertheless is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Reads a module's settings.
pub(crate) fn read<S: DeserializeOwned>(config: &str) -> Result<S, String> {
    json::from_slice(config.as_bytes()).map_err(|error| format!("settings: {error}"))
}

/// The value that `init` makes and every later call of the instance uses.
#[derive(Debug)]
pub struct Slot<T>(OnceCell<T>);

impl<T> Slot<T> {
    /// An empty slot.
    #[expect(clippy::new_without_default, reason = "a constant, filled once")]
    pub const fn new() -> Self {
        Self(OnceCell::new())
    }

    /// Makes the value from the settings.
    ///
    /// # Errors
    /// When the settings cannot be read, when the author's `new` refuses them, or the second time.
    pub fn fill<S: DeserializeOwned>(
        &self,
        config: &str,
        new: impl FnOnce(S) -> Result<T, String>,
    ) -> Result<(), String> {
        let value = new(read(config)?)?;
        self.0.set(value).map_err(|_| "init was called a second time".to_owned())
    }

    /// The value.
    ///
    /// # Panics
    /// When [`fill`](Self::fill) has not succeeded before: the host broke the contract.
    pub fn get(&self) -> &T {
        self.0.get().expect("init comes before any other call")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_once_and_unknown_ones_are_refused() {
        let slot = Slot::new();
        let refused = slot.fill(r#"{"limit": 3}"#, |_: NoSettings| Ok(1)).unwrap_err();
        assert_eq!(refused, "settings: unknown_field at limit: no field has this name");
        assert_eq!(slot.fill("{}", |_: NoSettings| Err::<i32, _>("no".into())), Err("no".into()));
        assert_eq!(slot.fill("{}", |_: NoSettings| Ok(1)), Ok(()));
        assert_eq!(slot.get(), &1);
        assert!(slot.fill("{}", |_: NoSettings| Ok(2)).unwrap_err().contains("second time"));
        assert_eq!(slot.get(), &1);
    }
}

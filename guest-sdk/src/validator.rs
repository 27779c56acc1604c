//! Validators: one function over a record.

use serde::de::DeserializeOwned;

use crate::bindings::types;
use crate::{Record, Rejection};

/// A rule: accepts a record, or refuses it. Exported by [`validator!`](crate::validator!).
pub trait Validator: Sized {
    /// The module's settings in the pipeline's configuration; [`NoSettings`](crate::NoSettings)
    /// where it has none. Use `#[serde(default, deny_unknown_fields)]`, so that a mistake in the
    /// configuration is found when the module is loaded.
    type Settings: DeserializeOwned;

    /// Makes the rule, once for each wasm instance.
    ///
    /// # Errors
    /// A sentence for the operator, which refuses the module: the settings make no sense.
    fn new(settings: Self::Settings) -> Result<Self, String>;

    /// Judges one record.
    ///
    /// # Errors
    /// Why the record is refused. It becomes a dead letter.
    fn validate(&self, record: &Record<'_>) -> Result<(), Rejection>;
}

/// Judges the selected records of a chunk.
pub fn validate<V: Validator>(rule: &V, records: &types::Records, selected: &[u32]) -> Vec<types::Rejection> {
    let mut rejections = Vec::new();
    for &index in selected {
        if let Err(rejection) = rule.validate(&Record::new(records, index as usize)) {
            rejections.push(lower(index, rejection));
        }
    }
    rejections
}

/// The rejection of record `index` as the contract has it.
#[cold]
pub(crate) fn lower(index: u32, rejection: Rejection) -> types::Rejection {
    types::Rejection {
        index,
        code: rejection.code.into_owned(),
        field: rejection.field.map(Into::into),
        reason: rejection.reason.into_owned(),
    }
}

//! The purchase pipeline's validator: `rules`, as a module.

mod rules;

pub use rules::{PurchaseRules, Settings};

sluice_sdk::validator!(PurchaseRules);

#[cfg(test)]
mod tests;

//! The purchase rules with one rule more: something has to be paid.
//!
//! This is what a changed rule looks like. `make demo` copies it over `purchase-rules.wasm` half-way.

#[path = "../src/rules/mod.rs"]
pub mod rules;

use purchase_message::Purchase;
use rules::{PurchaseRules, Settings};
use sluice_sdk::{Record, Rejection, Validator};

/// The rules, and that something is paid.
pub struct PaidPurchases(PurchaseRules);

impl Validator for PaidPurchases {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        PurchaseRules::new(settings).map(Self)
    }

    fn validate(&self, record: &Record<'_>) -> Result<(), Rejection> {
        self.0.validate(record)?;
        if Purchase::read(record)?.payment.amount_cents == 0 {
            return Err(
                Rejection::new("nothing_paid", "a purchase costs something").at("payment.amount_cents")
            );
        }
        Ok(())
    }
}

sluice_sdk::validator!(PaidPurchases);

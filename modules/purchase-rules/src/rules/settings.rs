//! Settings of the rules. Every key has a default; unknown keys are refused.

use serde::Deserialize;

use super::currency;

/// `pipelines.*.settings.purchase-rules`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Currencies that may be paid in, as ISO 4217 codes.
    pub currencies: Vec<String>,
    /// Payment statuses that are known.
    pub statuses: Vec<String>,
    /// Payment methods that are known.
    pub methods: Vec<String>,
    /// How far a purchase may lie after its record's own timestamp: clocks differ.
    pub future_tolerance_seconds: u32,
}

impl Default for Settings {
    fn default() -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            currencies: texts(&[
                "EUR", "USD", "GBP", "CHF", "AUD", "CAD", "CZK", "DKK", "JPY", "NOK", "PLN", "RUB", "SEK",
                "UAH",
            ]),
            statuses: texts(&["completed", "pending", "failed", "refunded"]),
            methods: texts(&["card", "apple_pay", "google_pay", "paypal", "bank_transfer"]),
            future_tolerance_seconds: 300,
        }
    }
}

impl Settings {
    /// Says what makes no sense.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (name, values) in
            [("currencies", &self.currencies), ("statuses", &self.statuses), ("methods", &self.methods)]
        {
            if values.is_empty() {
                return Err(format!("settings: {name} is empty, so that no purchase could pass: name some"));
            }
        }
        match self.currencies.iter().find(|code| !currency::is_known(code)) {
            Some(code) => Err(format!("settings: currencies: `{code}` is no ISO 4217 code")),
            None => Ok(()),
        }
    }
}

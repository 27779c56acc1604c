//! Orders are taken from some countries only, which the settings name.

use serde::Deserialize;
use sluice_sdk::{Record, Rejection, Validator, validator};

struct AllowedCountries {
    settings: Settings,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    countries: Vec<String>,
}

#[derive(Deserialize)]
struct Order<'a> {
    country: &'a str,
}

impl Validator for AllowedCountries {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.countries.is_empty() {
            return Err("countries is empty: name those that may order".into());
        }
        Ok(Self { settings })
    }

    fn validate(&self, record: &Record) -> Result<(), Rejection> {
        let order: Order = record.json()?;
        if !self.settings.countries.iter().any(|country| country == order.country) {
            let reason = format!("orders from {} are not taken", order.country);
            return Err(Rejection::new("country_not_allowed", reason).at("country"));
        }
        Ok(())
    }
}

validator!(AllowedCountries);

#[cfg(test)]
mod tests {
    use sluice_sdk::testing::{self, record};

    use super::*;

    #[test]
    fn only_listed_countries_may_order() {
        let verdicts = testing::validate::<AllowedCountries>(
            r#"{"countries": ["DE", "AT"]}"#,
            [record(r#"{"country": "AT"}"#), record(r#"{"country": "FR"}"#), record(r#"{}"#)],
        );
        assert_eq!(verdicts[0], Ok(()));
        assert_eq!(verdicts[1].as_ref().unwrap_err().code, "country_not_allowed");
        assert_eq!(verdicts[2].as_ref().unwrap_err().code, "missing_field");
    }
}

//! Only some currencies are sold in; another is accepted, but said in the log, so that somebody looks.

use serde::Deserialize;
use sluice_sdk::{Level, Record, Rejection, log, validator};

#[derive(Deserialize)]
struct Order<'a> {
    currency: &'a str,
}

fn known_currencies(record: &Record) -> Result<(), Rejection> {
    let order: Order = record.json()?;
    if !["EUR", "CHF"].contains(&order.currency) {
        log!(Level::Warn, "offset {}: an order in {}", record.offset(), order.currency);
    }
    Ok(())
}

validator!(fn known_currencies);

#[cfg(test)]
mod tests {
    use sluice_sdk::testing::{self, record, with_record};

    use super::*;

    #[test]
    fn others_are_said() {
        let order = |currency: &str| record(format!(r#"{{"currency": "{currency}"}}"#)).offset(7);
        let (verdicts, lines) =
            testing::logged(|| ["EUR", "XAU"].map(|currency| with_record(order(currency), known_currencies)));
        assert_eq!(verdicts, [Ok(()), Ok(())]);
        assert_eq!(lines, [(Level::Warn, "offset 7: an order in XAU".to_owned())]);
    }
}

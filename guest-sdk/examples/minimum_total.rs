//! An order must have a total of 5.00 at least.

use serde::Deserialize;
use sluice_sdk::{Record, Rejection, validator};

#[derive(Deserialize)]
struct Order {
    total_cents: u64,
}

fn minimum_total(record: &Record) -> Result<(), Rejection> {
    let order: Order = record.json()?;
    if order.total_cents < 500 {
        return Err(Rejection::new("below_minimum", "an order is 5.00 at least").at("total_cents"));
    }
    Ok(())
}

validator!(fn minimum_total);

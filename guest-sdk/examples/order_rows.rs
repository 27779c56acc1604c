//! An order is a row, and each of its lines another, in an output of their own.

use serde::Deserialize;
use sluice_sdk::{
    At, DateTime64, LowCardinality, Mapper, NoSettings, Output, Outputs, Record, Rejection, Row, Timestamp,
    mapper,
};

#[derive(Deserialize)]
struct Order<'a> {
    id: &'a str,
    country: &'a str,
    placed: Timestamp,
    lines: Vec<Line<'a>>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    sku: &'a str,
    quantity: u16,
}

#[derive(Row)]
#[row(output = "orders")]
struct OrderRow<'a> {
    order_id: &'a str,
    country: LowCardinality<&'a str>,
    placed: DateTime64<3>,
}

#[derive(Row)]
#[row(output = "order_lines")]
struct LineRow<'a> {
    order_id: &'a str,
    sku: &'a str,
    quantity: u16,
}

#[derive(Outputs)]
struct OrderOutputs {
    orders: Output<OrderRow<'static>>,
    lines: Output<LineRow<'static>>,
}

struct OrderRows;

impl Mapper for OrderRows {
    type Settings = NoSettings;
    type Outputs = OrderOutputs;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn map(&self, record: &Record, out: &mut OrderOutputs) -> Result<(), Rejection> {
        let order: Order = record.json()?;
        for line in &order.lines {
            out.lines.emit(LineRow { order_id: order.id, sku: line.sku, quantity: line.quantity });
        }
        out.orders.emit(OrderRow {
            order_id: order.id,
            country: LowCardinality(order.country),
            placed: DateTime64::try_from(order.placed).at("placed")?,
        });
        Ok(())
    }
}

mapper!(OrderRows);

#[cfg(test)]
mod tests {
    use sluice_sdk::testing::{self, record};

    use super::*;

    #[test]
    fn an_order_is_a_row_and_one_for_each_line() {
        let order = r#"{"id": "o1", "country": "AT", "placed": "2026-01-31T13:45:00.5+01:00",
                        "lines": [{"sku": "a", "quantity": 2}, {"sku": "b", "quantity": 1}]}"#;
        let too_early = order.replace("2026", "1826");

        let mapped = testing::map::<OrderRows>("{}", [record(order), record(too_early)]);

        let [row] = mapped.rows_of("orders", 0) else { panic!("one row") };
        assert_eq!(&row["placed"], "2026-01-31 12:45:00.500");
        let skus: Vec<&str> = mapped.rows("order_lines").iter().map(|row| &row["sku"]).collect();
        assert_eq!(skus, ["a", "b"]);
        // The other order is rejected as a whole: its lines were taken back.
        let rejection = mapped.verdicts[1].as_ref().unwrap_err();
        assert_eq!((rejection.code.as_ref(), rejection.field.as_deref()), ("out_of_range", Some("placed")));
    }
}

//! The row, and that nothing which does not fit it becomes one.

use serde_json::{Value, json};
use sluice_sdk::testing::{self, Mapped, TestRecord, record};

use crate::PurchaseRows;

fn purchase() -> Value {
    json!({
        "user_id": u64::MAX,
        "trainer_id": 42,
        "purchase_id": "7b9f\"3c1e",
        "timestamp": "2026-01-15T10:23:45.123999+03:00",
        "training": {
            "type": "group",
            "training_id": 501,
            "title": "Основы спортивного питания",
            "category": "yoga",
            "price_cents": u32::MAX,
            "discount_cents": 150,
            "session_date": "2026-01-20T23:30:00-01:00",
        },
        "payment": { "method": "card", "status": "completed", "amount_cents": 7, "currency": "EUR" },
        "extra": { "is": "ignored" },
    })
}

fn map(records: impl IntoIterator<Item = TestRecord>) -> Mapped {
    testing::map::<PurchaseRows>("{}", records)
}

#[test]
fn the_columns_are_those_of_the_table() {
    let columns = testing::columns::<PurchaseRows>();
    assert!(columns.iter().all(|(output, _, _)| output == "purchases"));
    let columns: Vec<String> = columns.into_iter().map(|(_, name, kind)| format!("{name} {kind}")).collect();
    assert_eq!(
        columns,
        [
            "purchase_id String",
            "user_id UInt64",
            "trainer_id UInt64",
            "timestamp DateTime64(3, 'UTC')",
            "training_type LowCardinality(String)",
            "training_id UInt64",
            "training_title String",
            "training_category LowCardinality(String)",
            "price_cents UInt32",
            "discount_cents UInt32",
            "session_date Date",
            "payment_method LowCardinality(String)",
            "payment_status LowCardinality(String)",
            "payment_amount_cents UInt32",
            "payment_currency LowCardinality(String)",
        ]
    );
}

#[test]
fn a_purchase_is_one_row() {
    let mapped = map([record(purchase().to_string())]);
    assert_eq!(mapped.verdicts, [Ok(())]);
    let [row] = mapped.rows_of("purchases", 0) else { panic!("one row") };
    for (column, value) in [
        ("purchase_id", "7b9f\"3c1e"),
        ("user_id", "18446744073709551615"),
        ("trainer_id", "42"),
        ("timestamp", "2026-01-15 07:23:45.123"),
        ("training_type", "group"),
        ("training_id", "501"),
        ("training_title", "Основы спортивного питания"),
        ("training_category", "yoga"),
        ("price_cents", "4294967295"),
        ("discount_cents", "150"),
        ("session_date", "2026-01-21"),
        ("payment_method", "card"),
        ("payment_status", "completed"),
        ("payment_amount_cents", "7"),
        ("payment_currency", "EUR"),
    ] {
        assert_eq!(&row[column], value, "{column}");
    }
}

#[test]
fn what_does_not_fit_its_column_is_rejected_without_the_validator() {
    for (pointer, value, code, field) in [
        ("/user_id", json!(0), "non_positive_id", "user_id"),
        ("/user_id", json!(-1), "non_positive_id", "user_id"),
        ("/trainer_id", json!(1e30), "wrong_type", "trainer_id"),
        ("/training/price_cents", json!(4_294_967_296_u64), "out_of_range", "training.price_cents"),
        ("/training/discount_cents", json!(-1), "out_of_range", "training.discount_cents"),
        ("/payment/amount_cents", json!(1.5), "wrong_type", "payment.amount_cents"),
        ("/training/session_date", json!("2149-06-07T00:00:00Z"), "out_of_range", "training.session_date"),
        ("/training/session_date", json!("1969-12-31T00:00:00Z"), "out_of_range", "training.session_date"),
        ("/timestamp", json!("2300-01-01T00:00:00Z"), "out_of_range", "timestamp"),
        ("/timestamp", json!("soon"), "wrong_type", "timestamp"),
        ("/payment", json!([]), "wrong_type", "payment"),
    ] {
        let mut purchase = purchase();
        *purchase.pointer_mut(pointer).unwrap() = value;
        let mapped = map([record(purchase.to_string())]);
        let rejection = mapped.verdicts[0].as_ref().unwrap_err();
        assert_eq!((rejection.code.as_ref(), rejection.field.as_deref()), (code, Some(field)), "{pointer}");
        assert!(mapped.rows("purchases").is_empty());
    }
}

#[test]
fn what_is_no_message_is_rejected() {
    let mapped = map([testing::tombstone(), record(""), record("[]"), record(b"{\"\xff\":1}")]);
    let codes: Vec<_> =
        mapped.verdicts.iter().map(|verdict| verdict.as_ref().unwrap_err().code.as_ref()).collect();
    assert_eq!(codes, ["tombstone", "malformed", "malformed", "malformed"]);
}

#[test]
fn rejected_records_leave_the_rows_of_their_neighbours_alone() {
    let numbered = |user: u64| {
        let mut purchase = purchase();
        purchase["user_id"] = json!(user);
        record(purchase.to_string())
    };
    let mapped = map([numbered(1), numbered(0), record("{"), numbered(4)]);
    let rows: Vec<&str> = mapped.rows("purchases").into_iter().map(|row| &row["user_id"]).collect();
    assert_eq!(rows, ["1", "4"]);
    let counts: Vec<usize> = (0..4).map(|record| mapped.rows_of("purchases", record).len()).collect();
    assert_eq!(counts, [1, 0, 0, 1]);
}

#[test]
fn it_has_no_settings() {
    let error = testing::new_mapper::<PurchaseRows>(r#"{"table":"purchases"}"#).unwrap_err();
    assert_eq!(error, "settings: unknown_field at table: no field has this name");
}

//! Every rule, obeyed and violated, and every kind of input that is no purchase.

use serde_json::{Value, json};
use sluice_sdk::testing::{self, TestRecord, record};

use crate::PurchaseRules;

/// 2026-01-15T10:23:46Z, a second after the purchase below.
const RECEIVED: i64 = 1_768_472_626_000;

fn purchase() -> Value {
    json!({
        "user_id": 123_456,
        "trainer_id": 42,
        "purchase_id": "7b9f3c1e",
        "timestamp": "2026-01-15T10:23:45.123Z",
        "training": {
            "type": "group",
            "training_id": 501,
            "title": "Morning Hatha for Beginners",
            "category": "yoga",
            "price_cents": 1500,
            "discount_cents": 150,
            "session_date": "2026-01-20T18:00:00Z",
        },
        "payment": { "method": "card", "status": "completed", "amount_cents": 1350, "currency": "EUR" },
    })
}

/// The purchase with the value at a path replaced.
fn with(path: &str, value: Value) -> Value {
    let mut purchase = purchase();
    let pointer = format!("/{}", path.replace('.', "/"));
    *purchase.pointer_mut(&pointer).unwrap_or_else(|| panic!("{path}")) = value;
    purchase
}

/// The purchase as text with one piece of it replaced.
fn altered(from: &str, to: &str) -> String {
    let text = purchase().to_string();
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replace(from, to)
}

fn received(payload: impl AsRef<[u8]>) -> TestRecord {
    record(payload).timestamp(RECEIVED)
}

/// `accepted`, or code and field.
fn verdict_with(settings: &str, record: TestRecord) -> String {
    match &testing::validate::<PurchaseRules>(settings, [record])[0] {
        Ok(()) => "accepted".to_owned(),
        Err(rejection) => match &rejection.field {
            Some(field) => format!("{} {field}", rejection.code),
            None => rejection.code.to_string(),
        },
    }
}

fn verdict(payload: impl AsRef<[u8]>) -> String {
    verdict_with("{}", received(payload))
}

fn verdict_of(purchase: Value) -> String {
    verdict(purchase.to_string())
}

#[test]
fn a_good_purchase_is_accepted() {
    assert_eq!(verdict_of(purchase()), "accepted");
}

#[test]
fn what_is_no_json_object_is_malformed() {
    let whole = purchase().to_string();
    for payload in ["", " ", "{", "null", "7", "\"purchase\"", "[]", "purchase accepted, thank you", "{}{}"] {
        assert_eq!(verdict(payload), "malformed", "{payload}");
    }
    assert_eq!(verdict(format!("[{whole}]")), "malformed");
    assert_eq!(verdict(format!("{whole},")), "malformed");
    for end in 0..whole.len() {
        assert_eq!(verdict(&whole[..end]), "malformed", "{}", &whole[..end]);
    }
}

#[test]
fn invalid_utf8_is_malformed_wherever_it_is() {
    for text in
        [altered("Morning", "Mor\u{1}ning"), altered("\"user_id\":", "\"extra\":\"\u{1}\",\"user_id\":")]
    {
        let mut bytes = text.into_bytes();
        let place = bytes.iter().position(|byte| *byte == 1).unwrap();
        bytes[place] = 0xff;
        assert_eq!(verdict(bytes), "malformed");
    }
}

#[test]
fn a_tombstone_is_told_from_an_empty_payload() {
    assert_eq!(verdict_with("{}", testing::tombstone().timestamp(RECEIVED)), "tombstone");
    assert_eq!(verdict(""), "malformed");
}

#[test]
fn every_field_must_be_there_once_and_of_its_type() {
    let fields = [
        "user_id",
        "trainer_id",
        "purchase_id",
        "timestamp",
        "training",
        "training.type",
        "training.training_id",
        "training.title",
        "training.category",
        "training.price_cents",
        "training.discount_cents",
        "training.session_date",
        "payment",
        "payment.method",
        "payment.status",
        "payment.amount_cents",
        "payment.currency",
    ];
    for path in fields {
        let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
        let pointer = if parent.is_empty() { String::new() } else { format!("/{parent}") };
        let mut missing = purchase();
        let object = missing.pointer_mut(&pointer).unwrap().as_object_mut().unwrap();
        let value = object.remove(name).unwrap();
        assert_eq!(verdict_of(missing), format!("missing_field {path}"));

        for wrong in [json!(null), json!(true), json!([]), json!(1.5), json!([value])] {
            assert_eq!(verdict_of(with(path, wrong.clone())), format!("wrong_type {path}"), "{wrong}");
        }
        let swapped = if value.is_string() { json!(7) } else { json!("7") };
        assert_eq!(verdict_of(with(path, swapped)), format!("wrong_type {path}"));

        // As text, since an object of `serde_json` has every name once.
        let field = format!("\"{name}\":{value}");
        let twice = purchase().to_string().replacen(&field, &format!("{field},{field}"), 1);
        assert_eq!(verdict(twice), format!("duplicate_field {path}"));
    }
}

#[test]
fn integers_are_written_as_integers_and_fit_their_columns() {
    for (from, to, expected) in [
        ("\"user_id\":123456", "\"user_id\":123456.0", "wrong_type user_id"),
        ("\"user_id\":123456", "\"user_id\":1e3", "wrong_type user_id"),
        ("\"user_id\":123456", "\"user_id\":18446744073709551615", "accepted"),
        ("\"user_id\":123456", "\"user_id\":18446744073709551616", "out_of_range user_id"),
        (
            "\"user_id\":123456",
            "\"user_id\":999999999999999999999999999999999999999999",
            "out_of_range user_id",
        ),
        ("\"user_id\":123456", "\"user_id\":-99999999999999999999", "non_positive_id user_id"),
        ("\"price_cents\":1500", "\"price_cents\":1500.0", "wrong_type training.price_cents"),
        ("\"price_cents\":1500", "\"price_cents\":4294967296", "out_of_range training.price_cents"),
        ("\"price_cents\":1500", "\"price_cents\":-1", "out_of_range training.price_cents"),
        ("\"discount_cents\":150", "\"discount_cents\":15e1", "wrong_type training.discount_cents"),
        ("\"amount_cents\":1350", "\"amount_cents\":99999999999", "out_of_range payment.amount_cents"),
    ] {
        assert_eq!(verdict(altered(from, to)), expected, "{to}");
    }
    let mut largest = with("training.price_cents", json!(u32::MAX));
    largest["training"]["discount_cents"] = json!(0);
    largest["payment"]["amount_cents"] = json!(u32::MAX);
    assert_eq!(verdict_of(largest), "accepted");
}

#[test]
fn unknown_fields_are_accepted_whatever_is_in_them() {
    let mut extra = purchase();
    extra["loyalty"] = json!({ "level": "gold", "points": 5.5 });
    extra["training"]["room"] = json!(null);
    assert_eq!(verdict_of(extra), "accepted");

    let prefix = "\"user_id\":";
    let nested = |levels: usize| {
        altered(prefix, &format!("\"note\":{}{},{prefix}", "[".repeat(levels), "]".repeat(levels)))
    };
    assert_eq!(verdict(nested(127)), "accepted");
    assert_eq!(verdict(nested(128)), "malformed");
    assert_eq!(verdict(nested(500_000)), "malformed");
    let long = altered(prefix, &format!("\"note\":\"{}\",{prefix}", "x".repeat(1 << 20)));
    assert_eq!(verdict(long), "accepted");
    let twice = altered(prefix, &format!("\"note\":1,\"note\":2,{prefix}"));
    assert_eq!(verdict(twice), "accepted");
}

#[test]
fn a_purchase_has_an_identifier() {
    for empty in ["", " ", "\t\n"] {
        assert_eq!(verdict_of(with("purchase_id", json!(empty))), "empty_purchase_id purchase_id");
    }
    assert_eq!(verdict_of(with("purchase_id", json!(" x "))), "accepted");
}

#[test]
fn identifiers_are_positive() {
    for path in ["user_id", "trainer_id", "training.training_id"] {
        assert_eq!(verdict_of(with(path, json!(0))), format!("non_positive_id {path}"));
        assert_eq!(verdict_of(with(path, json!(-7))), format!("non_positive_id {path}"));
        assert_eq!(verdict_of(with(path, json!(1))), "accepted");
    }
}

#[test]
fn the_amount_is_the_price_less_the_discount() {
    assert_eq!(verdict_of(with("payment.amount_cents", json!(1351))), "amount_mismatch payment.amount_cents");
    assert_eq!(verdict_of(with("payment.amount_cents", json!(0))), "amount_mismatch payment.amount_cents");
    assert_eq!(
        verdict_of(with("training.discount_cents", json!(1501))),
        "discount_above_price training.discount_cents"
    );
    let mut free = with("training.discount_cents", json!(1500));
    free["payment"]["amount_cents"] = json!(0);
    assert_eq!(verdict_of(free), "accepted");
}

#[test]
fn the_currency_is_iso_4217_and_allowed() {
    for code in ["EURO", "eur", "XYZ", "", "$", "DEM"] {
        assert_eq!(verdict_of(with("payment.currency", json!(code))), "unknown_currency payment.currency");
    }
    let krona = with("payment.currency", json!("ISK")).to_string();
    assert_eq!(verdict(&krona), "currency_not_allowed payment.currency");
    assert_eq!(verdict_with(r#"{"currencies":["ISK"]}"#, received(&krona)), "accepted");
    let euro = purchase().to_string();
    assert_eq!(
        verdict_with(r#"{"currencies":["ISK"]}"#, received(euro)),
        "currency_not_allowed payment.currency"
    );
}

#[test]
fn status_and_method_are_allowed_by_the_settings() {
    for (path, setting) in [("status", "statuses"), ("method", "methods")] {
        let field = format!("payment.{path}");
        let strange = with(&field, json!("barter")).to_string();
        assert_eq!(verdict(&strange), format!("{path}_not_allowed {field}"));
        let settings = json!({ setting: ["barter"] }).to_string();
        assert_eq!(verdict_with(&settings, received(&strange)), "accepted");
        assert_eq!(
            verdict_with(&settings, received(purchase().to_string())),
            format!("{path}_not_allowed {field}")
        );
    }
}

#[test]
fn times_are_rfc_3339() {
    for path in ["timestamp", "training.session_date"] {
        for text in ["2026-01-15 10:23:45", "2026-01-15", "2026-02-30T00:00:00Z", "15.01.2026", ""] {
            assert_eq!(verdict_of(with(path, json!(text))), format!("wrong_type {path}"), "{text}");
        }
    }
    assert_eq!(verdict_of(with("timestamp", json!("2026-01-15T13:23:45+03:00"))), "accepted");
}

#[test]
fn times_fit_their_columns() {
    let session = |text: &str| verdict_of(with("training.session_date", json!(text)));
    assert_eq!(session("2149-06-06T23:59:59Z"), "accepted");
    assert_eq!(session("2149-06-07T00:00:00Z"), "out_of_range training.session_date");
    assert_eq!(session("1969-12-31T23:59:59Z"), "out_of_range training.session_date");
    let timestamp = |text: &str| verdict_of(with("timestamp", json!(text)));
    assert_eq!(timestamp("1900-01-01T00:00:00Z"), "accepted");
    assert_eq!(timestamp("1899-12-31T23:59:59Z"), "out_of_range timestamp");
    assert_eq!(timestamp("2300-01-01T00:00:00Z"), "out_of_range timestamp");
}

#[test]
fn a_purchase_is_not_later_than_its_record_and_the_tolerance() {
    let at = |settings: &str, text: &str, received: Option<i64>| {
        let payload = with("timestamp", json!(text)).to_string();
        let record = match received {
            Some(received) => record(payload).timestamp(received),
            None => record(payload),
        };
        verdict_with(settings, record)
    };
    assert_eq!(at("{}", "2026-01-15T10:28:46Z", Some(RECEIVED)), "accepted");
    assert_eq!(at("{}", "2026-01-15T10:28:46.001Z", Some(RECEIVED)), "timestamp_in_future timestamp");
    let strict = r#"{"future_tolerance_seconds":0}"#;
    assert_eq!(at(strict, "2026-01-15T10:23:46Z", Some(RECEIVED)), "accepted");
    assert_eq!(at(strict, "2026-01-15T10:23:46.001Z", Some(RECEIVED)), "timestamp_in_future timestamp");
    assert_eq!(at(strict, "2026-01-20T10:00:00Z", None), "accepted");
    assert_eq!(at("{}", "2026-01-15T10:28:46Z", Some(i64::MAX)), "accepted");
}

#[test]
fn a_session_is_not_before_the_day_of_purchase() {
    let session = |text: &str| verdict_of(with("training.session_date", json!(text)));
    // Earlier on the same day is fine: the training may have begun when somebody joined it.
    assert_eq!(session("2026-01-15T00:00:00Z"), "accepted");
    assert_eq!(session("2026-01-14T23:59:59Z"), "session_before_purchase training.session_date");
    // Days are those of UTC, whatever the offset.
    assert_eq!(session("2026-01-14T23:59:59-01:00"), "accepted");
    assert_eq!(session("2026-01-15T00:30:00+01:00"), "session_before_purchase training.session_date");
}

#[test]
fn one_bad_record_leaves_its_neighbours_alone() {
    let good = purchase().to_string();
    let bad = with("user_id", json!(0)).to_string();
    let verdicts = testing::validate::<PurchaseRules>(
        "{}",
        [received(&good), received(bad), received("{"), received(&good)],
    );
    assert_eq!(verdicts.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false, true]);
}

#[test]
fn reasons_tell_a_person_what_was_found() {
    let reason = |purchase: Value| {
        let verdicts = testing::validate::<PurchaseRules>("{}", [received(purchase.to_string())]);
        verdicts[0].as_ref().unwrap_err().reason.to_string()
    };
    assert_eq!(
        reason(with("payment.amount_cents", json!(1))),
        "1500 cents less 150 cents are 1350 cents, but 1 were paid"
    );
    assert_eq!(reason(with("user_id", json!("7"))), "expected an integer, found the string \"7\"");
    assert_eq!(reason(with("payment.currency", json!("\n"))), "`\\n` is not an ISO 4217 currency");
    assert_eq!(
        reason(with("timestamp", json!("2026-01-15T11:00:00Z"))),
        "2026-01-15T11:00:00Z is more than 300 s after the record itself"
    );
}

#[test]
fn settings_that_make_no_sense_refuse_the_module() {
    for (settings, complaint) in [
        (
            r#"{"currency":["EUR"]}"#,
            "settings: unknown_field at currency: no field has this name; there are currencies",
        ),
        (r#"{"currencies":"EUR"}"#, "settings: wrong_type at currencies: expected an array"),
        (r#"{"currencies":["EUR","EURO"]}"#, "settings: currencies: `EURO` is no ISO 4217 code"),
        (r#"{"methods":[]}"#, "settings: methods is empty"),
        (r#"{"future_tolerance_seconds":-1}"#, "settings: out_of_range at future_tolerance_seconds"),
        ("[]", "settings: wrong_type: expected an object"),
    ] {
        let error = testing::new_validator::<PurchaseRules>(settings).unwrap_err();
        assert!(error.starts_with(complaint), "{error}");
    }
}

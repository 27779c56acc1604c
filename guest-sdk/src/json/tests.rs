//! Held against `serde_json` where the two agree on what JSON is, and by hand where they differ.

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::reader::Number;
use super::*;
use crate::Rejection;

#[derive(Debug, PartialEq, Deserialize)]
struct Order<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    total: u32,
    #[serde(default)]
    lines: Vec<Line>,
    note: Option<&'a str>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Line {
    sku: i64,
    price: f64,
}

fn order(text: &str) -> Result<Order<'_>, Error> {
    from_str(text)
}

/// Kind and path of what is wrong.
fn fault(text: &str) -> (Kind, String) {
    let error = order(text).unwrap_err();
    (error.kind(), error.path())
}

#[test]
fn a_document_is_read() {
    let text = r#" {"id":"a1","x":[{"y":null}],"total": 7 ,"lines":[{"sku":-1,"price":2},{"price":1.5e1,"sku":0}]} "#;
    let expected = Order {
        id: "a1".into(),
        total: 7,
        lines: vec![Line { sku: -1, price: 2.0 }, Line { sku: 0, price: 15.0 }],
        note: None,
    };
    assert_eq!(order(text).unwrap(), expected);
    assert!(matches!(order(text).unwrap().id, Cow::Borrowed(_)));
    assert!(matches!(order(r#"{"id":"a\n1","total":7}"#).unwrap().id, Cow::Owned(_)));
    assert_eq!(order(r#"{"\u0069d":"a","total":7,"note":"n"}"#).unwrap().note, Some("n"));
}

#[test]
fn faults_have_their_kind_and_path() {
    use Kind::{DuplicateField, MissingField, OutOfRange, WrongType};
    for (text, kind, path) in [
        (r#"{"total":1}"#, MissingField, "id"),
        (r#"{"id":"a","total":1,"lines":[{"sku":1,"price":1},{"sku":2}]}"#, MissingField, "lines[1].price"),
        (r#"{"id":"a","total":1,"id":"b"}"#, DuplicateField, "id"),
        (r#"{"id":"a","total":1,"lines":[{"sku":1,"price":1,"sku":2}]}"#, DuplicateField, "lines[0].sku"),
        (r#"{"id":1,"total":1}"#, WrongType, "id"),
        (r#"{"id":null,"total":1}"#, WrongType, "id"),
        (r#"{"id":"a","total":"1"}"#, WrongType, "total"),
        (r#"{"id":"a","total":1.0}"#, WrongType, "total"),
        (r#"{"id":"a","total":1e3}"#, WrongType, "total"),
        (r#"{"id":"a","total":[1]}"#, WrongType, "total"),
        (r#"{"id":"a","total":true}"#, WrongType, "total"),
        (r#"{"id":"a","total":4294967296}"#, OutOfRange, "total"),
        (r#"{"id":"a","total":-1}"#, OutOfRange, "total"),
        (r#"{"id":"a","total":99999999999999999999999}"#, OutOfRange, "total"),
        (r#"{"id":"a","total":1,"lines":{}}"#, WrongType, "lines"),
        (r#"{"id":"a","total":1,"lines":[[1,2]]}"#, WrongType, "lines[0]"),
        (
            r#"{"id":"a","total":1,"lines":[{"sku":9223372036854775808,"price":1}]}"#,
            OutOfRange,
            "lines[0].sku",
        ),
        (r#"{"id":"a","total":1,"lines":[{"sku":1,"price":1e999}]}"#, OutOfRange, "lines[0].price"),
        (r#"["a",1,[],null]"#, WrongType, ""),
        ("null", WrongType, ""),
        ("7", WrongType, ""),
    ] {
        assert_eq!(fault(text), (kind, path.to_owned()), "{text}");
    }
}

#[test]
fn integers_are_exact_to_their_ends() {
    for text in ["0", "-0", "4294967295"] {
        assert!(from_str::<u32>(text).is_ok(), "{text}");
    }
    assert_eq!(from_str::<u64>("18446744073709551615").unwrap(), u64::MAX);
    assert_eq!(from_str::<u64>("18446744073709551616").unwrap_err().kind(), Kind::OutOfRange);
    assert_eq!(from_str::<i64>("-9223372036854775808").unwrap(), i64::MIN);
    assert_eq!(from_str::<i64>("-9223372036854775809").unwrap_err().kind(), Kind::OutOfRange);
    for value in [i128::MIN, -1, 0, i128::MAX] {
        assert_eq!(from_str::<i128>(&value.to_string()).unwrap(), value);
    }
    assert_eq!(from_str::<u128>(&u128::MAX.to_string()).unwrap(), u128::MAX);
    assert_eq!(from_str::<u128>(&format!("{}0", u128::MAX)).unwrap_err().kind(), Kind::OutOfRange);
    assert_eq!(
        from_str::<i8>("-129").unwrap_err().to_string(),
        "out_of_range: expected an integer from -128 to 127, found -129"
    );
}

#[test]
fn numbers_of_every_length_are_read_with_and_without_bytes_after_them() {
    for digits in 1..=20 {
        for text in
            [&"12345678901234567890"[..digits], &"98765432109876543210"[..digits], &"9".repeat(digits)]
        {
            let expected = text.parse::<u128>().unwrap();
            assert_eq!(from_str::<u128>(text).unwrap(), expected);
            // What follows decides how many bytes are looked at together: the characters around the
            // digits in ASCII, a sign bit, the end of the text.
            for after in ["/", ":", "é", "         ", ".5", "e1"] {
                let document = format!("{{\"n\":{text},\"after\":\"{after}\"}}");
                let mut reader = Reader::new(&document);
                while reader.position() < 5 {
                    reader.step();
                }
                let number = reader.number().unwrap();
                match u64::try_from(expected) {
                    Ok(value) => assert_eq!(number, Number::Unsigned(value)),
                    Err(_) => assert_eq!(number, Number::Long(text)),
                }
                let document = format!("{text}{after}        ");
                let mut reader = Reader::new(&document);
                let is_float = matches!(after, ".5" | "e1");
                assert_eq!(matches!(reader.number().unwrap(), Number::Float(_)), is_float, "{document}");
                assert_eq!(reader.position(), digits + if is_float { after.len() } else { 0 }, "{document}");
            }
        }
    }
}

#[test]
fn what_is_no_json_is_malformed_whatever_else_is_wrong() {
    for text in [
        "",
        " ",
        "{",
        r#"{"id":1,"total":1"#,
        r#"{"id":1,"total":01}"#,
        r#"{"id":1,"total":1} x"#,
        r#"{"id":1,"total":1}}"#,
        r#"{"id":1,,"total":1}"#,
        r#"{"id":1,"total":1,}"#,
        r#"{"id":1 "total":1}"#,
        r#"{"id":1,"total":+1}"#,
        r#"{"id":1,"total":1.}"#,
        r#"{"id":1,"total":.5}"#,
        r#"{"id":1,"total":1e}"#,
        r#"{"id":1,"total":-}"#,
        r#"{"id":1,"total":tru}"#,
        r#"{"id":1,"total":NaN}"#,
        r#"{'id':1}"#,
        r#"{id:1}"#,
        r#"{"id":1,"x":[1,]}"#,
        r#"{"id":1,"x":[1}}"#,
        r#"{"id":1,"x":"\x"}"#,
        r#"{"id":1,"x":"\ud800"}"#,
        r#"{"id":1,"x":"\ud800\u0041"}"#,
        r#"{"id":1,"x":"\udc00"}"#,
        r#"{"id":1,"x":"\u12g4"}"#,
        "{\"id\":1,\"x\":\"a\nb\"}",
        "\u{feff}{}",
    ] {
        assert_eq!(fault(text), (Kind::Syntax, String::new()), "{text}");
        assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
    }
    assert_eq!(
        from_slice::<()>(b"{\"x\":\"\xff\"}").unwrap_err().to_string(),
        "malformed: not UTF-8 at byte 6"
    );
}

#[test]
fn every_truncation_is_malformed() {
    let text = r#"{"id":7,"x":{"ä":[true,null,-1.5e-3,"\ud83d\ude00"]},"total":"1"}"#;
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        assert_eq!(fault(&text[..end]).0, Kind::Syntax, "{}", &text[..end]);
    }
    assert_eq!(fault(text), (Kind::WrongType, "id".to_owned()));
}

#[test]
fn nesting_ends_at_128_levels_without_recursion() {
    let nested =
        |levels: usize| format!(r#"{{"id":"a","total":1,"x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    assert!(order(&nested(DEEPEST - 1)).is_ok());
    let error = order(&nested(DEEPEST)).unwrap_err();
    assert!(error.to_string().starts_with("malformed: nested too deep at byte"), "{error}");
    assert_eq!(order(&nested(1_000_000)).unwrap_err().kind(), Kind::Syntax);

    // As values, where every level is a call.
    let value = |levels: usize| {
        format!("{}{}", r#"{"a":"#.repeat(levels - 1) + "[", "]".to_owned() + &"}".repeat(levels - 1))
    };
    assert!(from_str::<serde_json::Value>(&value(DEEPEST)).is_ok());
    assert_eq!(from_str::<serde_json::Value>(&value(DEEPEST + 1)).unwrap_err().kind(), Kind::Syntax);
}

#[test]
fn strings_end_where_they_end() {
    // Every position of the special byte against the eight bytes that are looked at together.
    for length in 0..24 {
        let plain = "é".repeat(length / 2) + &"x".repeat(length % 2);
        assert_eq!(from_str::<&str>(&format!("\"{plain}\"")).unwrap(), plain);
        for (escape, letter) in [
            (r"\n", "\n"),
            (r"\u00e9", "é"),
            (r"\/", "/"),
            (r#"\""#, "\""),
            (r"\\", "\\"),
            (r"\ud83d\ude00", "😀"),
        ] {
            let text = format!("\"{plain}{escape}{plain}\"");
            assert_eq!(from_str::<String>(&text).unwrap(), format!("{plain}{letter}{plain}"), "{text}");
        }
        for control in ["\u{0}", "\u{1f}"] {
            assert_eq!(
                from_str::<String>(&format!("\"{plain}{control}{plain}\"")).unwrap_err().kind(),
                Kind::Syntax
            );
        }
        assert_eq!(from_str::<String>(&format!("\"{plain}\u{7f}\"")).unwrap().len(), plain.len() + 1);
    }
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Shape {
    Point,
    Circle(u8),
    Square { side: u8 },
    Pair(u8, u8),
}

#[test]
fn all_kinds_of_serde_types_are_read() {
    assert_eq!(
        from_str::<Vec<Shape>>(
            r#"["point",{"circle":1},{"square":{"side":2}},{"pair":[3,4]},{"point":null}]"#
        )
        .unwrap(),
        [Shape::Point, Shape::Circle(1), Shape::Square { side: 2 }, Shape::Pair(3, 4), Shape::Point]
    );
    let error = from_str::<Vec<Shape>>(r#"["point","line"]"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "wrong_type at [1]: expected one of point, circle, square, pair, found `line`"
    );
    let error = from_str::<Shape>(r#"{"square":{"side":2,"top":1}}"#).unwrap_err();
    assert_eq!((error.kind(), error.path().as_str()), (Kind::UnknownField, "top"));
    assert!(from_str::<Shape>(r#"{"circle":1,"point":null}"#).is_err());

    assert_eq!(from_str::<BTreeMap<u8, bool>>(r#"{"7":true}"#).unwrap(), BTreeMap::from([(7, true)]));
    assert!(from_str::<BTreeMap<u8, bool>>(r#"{"x":true}"#).is_err());
    assert_eq!(from_str::<(u8, Option<char>, f32)>(r#"[1,"a",-2]"#).unwrap(), (1, Some('a'), -2.0));
    assert_eq!(from_str::<(u8, u8)>("[1,2,3]").unwrap_err().kind(), Kind::WrongType);
    assert_eq!(from_str::<(u8, u8)>("[1]").unwrap_err().kind(), Kind::WrongType);
    assert_eq!(from_str::<Option<()>>(" null ").unwrap(), None);
    assert_eq!(from_str::<bool>("false").ok(), Some(false));
}

#[test]
fn errors_become_rejections() {
    let rejection = |text: &str| Rejection::from(order(text).unwrap_err());
    assert_eq!(
        rejection(r#"{"id":"a","total":"x"}"#).to_string(),
        "wrong_type at total: expected an integer, found the string \"x\""
    );
    assert_eq!(rejection("[]").to_string(), "malformed: expected an object, found an array");
    assert_eq!(rejection("{").to_string(), "malformed: the document ends early at byte 1");
    let long = format!(r#"{{"id":"a","total":"{}"}}"#, "ä\\n".repeat(1000));
    assert!(rejection(&long).reason.len() < 150, "{}", rejection(&long));
}

fn documents() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<f64>().prop_filter("JSON has no other", |value| value.is_finite()).prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|fields| serde_json::Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Equal but for the last digit of a float, of which `serde_json` is not sure, and `-0`, which is an
/// integer here and a float there.
fn same(theirs: &serde_json::Value, ours: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Number, Object};
    match (theirs, ours) {
        (Number(theirs), Number(ours)) if theirs.is_f64() => {
            let (theirs, ours) = (theirs.as_f64().unwrap_or(0.0), ours.as_f64().unwrap_or(0.0));
            (theirs - ours).abs() <= 1e-300 + 1e-15 * ours.abs()
        }
        (Array(theirs), Array(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(theirs, ours)| same(theirs, ours))
        }
        (Object(theirs), Object(ours)) => {
            theirs.len() == ours.len()
                && theirs.iter().all(|(name, theirs)| ours.get(name).is_some_and(|ours| same(theirs, ours)))
        }
        _ => theirs == ours,
    }
}

/// Whether the reader takes it as a value, and whether it skips it, must be what `serde_json` says.
fn agrees_with_serde_json(bytes: &[u8]) -> Result<(), TestCaseError> {
    let theirs = serde_json::from_slice::<serde_json::Value>(bytes);
    let ours = from_slice::<serde_json::Value>(bytes);
    let skipped = from_slice::<serde::de::IgnoredAny>(bytes);
    match (&theirs, &ours) {
        (Ok(theirs), Ok(ours)) => prop_assert!(same(theirs, ours), "{theirs:?} but {ours:?}"),
        // A float too large is well-formed.
        (Err(_), Err(ours)) if ours.kind() == Kind::OutOfRange => {}
        (Err(_), Err(ours)) => {
            prop_assert_eq!(ours.kind(), Kind::Syntax);
            prop_assert!(skipped.is_err());
        }
        _ => prop_assert!(false, "{theirs:?} but {ours:?}"),
    }
    prop_assert!(theirs.is_err() || skipped.is_ok());
    Ok(())
}

proptest! {
    #[test]
    fn any_document_is_read_as_serde_json_reads_it(document in documents(), pretty: bool) {
        let text = if pretty { serde_json::to_vec_pretty(&document) } else { serde_json::to_vec(&document) };
        agrees_with_serde_json(&text.unwrap())?;
    }

    #[test]
    fn any_damage_is_seen_as_serde_json_sees_it(
        document in documents(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(br#"{}[],:"\u0-+.eE19tfnx /"#.to_vec())), 1..4),
    ) {
        let mut text = serde_json::to_vec(&document).unwrap();
        for (place, byte) in damage {
            let place = place.index(text.len());
            text[place] = byte;
        }
        agrees_with_serde_json(&text)?;
    }

    #[test]
    fn any_bytes_are_read_as_serde_json_reads_them(bytes in prop::collection::vec(prop::sample::select(br#"{}[],:"\nu0-1.eE tf"#.to_vec()), 0..12)) {
        agrees_with_serde_json(&bytes)?;
    }
}

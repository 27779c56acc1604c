//! Cases by themselves: how lines are read, what is refused, and how they go to a module. What a module makes of
//! them is tested with real ones (`host/tests/module_commands.rs`, `host/tests/reload_cases.rs`).

use proptest::prelude::*;
use serde_json::json;

use super::expectation::ExpectedRows;
use super::*;

fn problem(line: &str) -> String {
    match line::parse(line.as_bytes()) {
        Ok(case) => panic!("it should be refused: {case:?}"),
        Err(problem) => problem,
    }
}

fn payload(line: &str) -> Option<String> {
    let (_, record, _) = line::parse(line.as_bytes()).unwrap_or_else(|problem| panic!("{problem}"));
    record.payload.map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn a_payload_reaches_the_module_letter_by_letter() {
    for (given, expected) in [
        (r#"{"a": 1.0,"a":2e2 , "b":[ ]}"#, r#"{"a": 1.0,"a":2e2 , "b":[ ]}"#),
        (r#"{"n": 123456789012345678901234567890}"#, r#"{"n": 123456789012345678901234567890}"#),
        (r#""a \"text\"""#, r#"a "text""#),
        ("12.50", "12.50"),
        ("[1]", "[1]"),
        ("true", "true"),
        (r#""""#, ""),
    ] {
        let line = format!(r#"{{"accepted":true,"payload":{given}}}"#);
        assert_eq!(payload(&line).as_deref(), Some(expected));
    }
    assert_eq!(payload(r#"{"payload": null, "accepted": true}"#), None);
    assert_eq!(payload(r#"{"payload_hex": "6f6b", "accepted": true}"#).as_deref(), Some("ok"));
}

#[test]
fn a_record_has_what_the_line_says_and_nothing_else() {
    let line = r#"{"name": "n", "payload": {}, "key": 42, "headers": {"a": "x", "b": null}, "topic": "t",
        "partition": 3, "offset": 7, "timestamp": "2026-01-31T20:00:00+01:00", "rejected": "no", "field": null}"#;
    let (name, record, expectation) = line::parse(line.as_bytes()).unwrap();
    assert_eq!(name.as_deref(), Some("n"));
    assert_eq!(
        record,
        CaseRecord {
            topic: "t".into(),
            partition: 3,
            offset: Some(7),
            timestamp: 1_769_886_000_000,
            key: Some(b"42".to_vec()),
            payload: Some(b"{}".to_vec()),
            headers: vec![("a".into(), Some(b"x".to_vec())), ("b".into(), None)],
        }
    );
    assert_eq!(expectation, Expectation::Rejected { code: Some("no".into()), field: Some(None) });

    let (_, record, _) =
        line::parse(br#"{"payload":"","headers":[["a","1"],["a",2]],"filtered":true}"#).unwrap();
    assert_eq!(record.headers, [("a".into(), Some(b"1".to_vec())), ("a".into(), Some(b"2".to_vec()))]);
    assert_eq!((record.timestamp, record.offset, record.key), (-1, None, None));
}

#[test]
fn rows_are_one_a_list_or_lists_by_output() {
    let rows = |line: &str| match line::parse(line.as_bytes()).unwrap().2 {
        Expectation::Rows { rows, is_exact } => (rows, is_exact),
        other => panic!("{other:?}"),
    };
    let row = json!({"a": 1}).as_object().cloned().unwrap();
    let only = |rows: &[_]| ExpectedRows::Only(rows.to_vec());
    assert_eq!(rows(r#"{"payload": 1, "row": {"a": 1}}"#), (only(std::slice::from_ref(&row)), false));
    assert_eq!(rows(r#"{"payload": 1, "rows": [], "exact": true}"#), (only(&[]), true));
    assert_eq!(
        rows(r#"{"payload": 1, "rows": {"x": [{"a": 1}, {"a": 1}], "y": []}}"#).0,
        ExpectedRows::ByOutput(vec![("x".into(), vec![row.clone(), row]), ("y".into(), vec![])])
    );
}

#[test]
fn what_is_wrong_with_a_line_is_told_with_the_cure() {
    let lines = [
        r#"{"payload": 1"#,
        "[]",
        r#"{"payload": 1, "acepted": true}"#,
        r#"{"payload": 1, "payload": 2, "accepted": true}"#,
        r#"{"accepted": true}"#,
        r#"{"payload": 1, "payload_hex": "00", "accepted": true}"#,
        r#"{"payload_hex": "0", "accepted": true}"#,
        r#"{"payload": 1}"#,
        r#"{"payload": 1, "accepted": true, "row": {}}"#,
        r#"{"payload": 1, "accepted": false}"#,
        r#"{"payload": 1, "accepted": true, "field": "a"}"#,
        r#"{"payload": 1, "rejected": 7}"#,
        r#"{"payload": 1, "rejected": "no", "field": 1}"#,
        r#"{"payload": 1, "rejected": "no", "exact": true}"#,
        r#"{"payload": 1, "row": [1]}"#,
        r#"{"payload": 1, "rows": {"a": 1}}"#,
        r#"{"payload": 1, "rows": {"a": {"b": 1}}}"#,
        r#"{"payload": 1, "row": {"total": 12345678901234567.89}}"#,
        r#"{"payload": 1, "row": {"id": 18446744073709551616, "text": "1234567890123456.5"}}"#,
        r#"{"payload": 1, "accepted": true, "headers": 1}"#,
        r#"{"payload": 1, "accepted": true, "timestamp": "now"}"#,
        r#"{"payload": 1, "accepted": true, "partition": -1}"#,
        r#"{"payload": 1, "accepted": true, "name": 1}"#,
    ];
    let told: Vec<String> = lines.iter().map(|line| format!("{line}\n    {}", problem(line))).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn numbers_that_json_keeps_are_fine() {
    for number in ["18446744073709551615", "-9223372036854775808", "0.1", "19.90", "1e300", "-0.5"] {
        let line =
            format!(r#"{{"payload": 1, "row": {{"n": {number}, "text": "12345678901234567890123 \" 1"}}}}"#);
        assert!(line::parse(line.as_bytes()).is_ok(), "{number}");
    }
}

#[test]
fn a_file_has_comments_blank_lines_and_every_fault_with_its_line() {
    let file = "\u{feff}# why\r\n\r\n{\"payload\": 1, \"accepted\": true}\r\n// more\n  {\"payload\": 2, \"filtered\": true}";
    let cases = GoldenCases::parse(file.as_bytes()).unwrap();
    assert_eq!(cases.cases.iter().map(|case| case.line).collect::<Vec<_>>(), [3, 5]);
    assert!(GoldenCases::parse(b"# nothing yet\n").unwrap().is_empty());

    let fault =
        GoldenCases::parse(b"{}\n\n\xff\n{\"payload\": 1, \"accepted\": true}\nno").unwrap_err().to_string();
    let expected = "has golden cases that cannot be read: line 1: has no `payload`; write null for a record that has none; \
                    line 3: is not UTF-8; save the file as UTF-8; line 5: is not JSON: ";
    assert!(fault.starts_with(expected), "{fault}");
    let many = b"x\n".repeat(1000);
    let fault = GoldenCases::parse(&many).unwrap_err();
    assert!(matches!(&fault, CasesFault::Lines { told, count: 1000 } if told.len() == TOLD), "{fault}");
}

#[test]
fn a_file_has_its_bounds() {
    let line = b"{\"payload\": 1, \"accepted\": true}\n";
    assert_eq!(GoldenCases::parse(&line.repeat(MOST_CASES)).unwrap().len(), MOST_CASES);
    assert!(matches!(GoldenCases::parse(&line.repeat(MOST_CASES + 1)), Err(CasesFault::TooMany)));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.cases.jsonl");
    std::fs::write(&path, vec![b'\n'; MOST_CASES_BYTES]).unwrap();
    assert_eq!(GoldenCases::read(&path).unwrap().map(|bytes| bytes.len()), Some(MOST_CASES_BYTES));
    std::fs::write(&path, vec![b'\n'; MOST_CASES_BYTES + 1]).unwrap();
    assert!(matches!(GoldenCases::read(&path), Err(CasesFault::TooLarge)));
    assert!(matches!(GoldenCases::read(&folder.path().join("none")), Ok(None)));
    assert!(matches!(GoldenCases::read(folder.path()), Err(CasesFault::Read(_))));
}

#[test]
fn cases_go_to_the_module_many_at_once_and_in_order() {
    let case = |more: &str| format!("{{\"payload\": 1, \"accepted\": true{more}}}\n");
    let file = [
        case(r#", "offset": 10"#),
        case(""),
        case(r#", "offset": 20"#),
        case(r#", "offset": 5"#),
        case(r#", "topic": "other""#),
        case(r#", "topic": "other", "partition": 1"#),
    ];
    let cases = GoldenCases::parse(file.concat().as_bytes()).unwrap();
    let mut rest = cases.cases.as_slice();
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let (chunk, taken) = chunk(rest);
        let offsets: Vec<i64> = (0..chunk.len()).map(|index| chunk.offset(index)).collect();
        seen.push((chunk.topic.to_string(), chunk.partition, offsets));
        rest = &rest[taken..];
    }
    assert_eq!(
        seen,
        [
            ("cases".to_owned(), 0, vec![10, 11, 20]),
            ("cases".to_owned(), 0, vec![5]),
            ("other".to_owned(), 0, vec![0]),
            ("other".to_owned(), 1, vec![0]),
        ]
    );
}

proptest! {
    #[test]
    fn whatever_stands_in_a_line_is_a_case_or_a_problem(text in r#"[{}\[\]",:a-z\\ 0-9.eE+\-é]{0,40}"#, tail in ".{0,20}") {
        let _ = line::parse(text.as_bytes());
        let _ = line::parse(format!("{{\"payload\": {text}, \"row\": {tail}}}").as_bytes());
    }

    #[test]
    fn any_text_stands_for_itself(text in any::<String>()) {
        let line = json!({"accepted": true, "payload": text, "key": {"k": text}}).to_string();
        prop_assert_eq!(payload(&line), Some(text));
    }
}

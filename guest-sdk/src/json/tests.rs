//! Held against `serde_json` where the two agree on what JSON is, and by hand where they differ.

use super::*;

fn value(text: &str) -> Result<serde_json::Value, Error> {
    from_str(text)
}

#[test]
fn placeholder() {
    assert_eq!(value("[1, 2]").unwrap(), serde_json::json!([1, 2]));
}

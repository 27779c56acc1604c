//! Spoils a good record the way that a fault of the description says.
//!
//! Changes of fields come first, in the order of the file; then the record is written as JSON;
//! then come the changes of bytes. Text that is no JSON is put in by way of placeholder strings
//! that no description can contain by accident: they open with U+10FFFF, which is not a character.

use serde_json::Value;

use super::description::{Alteration, Fault, Maker};
use super::message::{FieldPath, Message};
use super::random::Stream;

/// Opens every placeholder; becomes the byte 0xFF where invalid UTF-8 is asked for.
const MARK: char = '\u{10ffff}';

/// Texts of this size or more are not for files of lines.
const LONG: u32 = 64 * 1024;

/// Whether a line of a text file can hold what the fault makes.
pub(super) fn fits_a_line(fault: &Fault) -> bool {
    fault.alter.iter().all(|alteration| match alteration {
        Alteration::Empty
        | Alteration::Tombstone
        | Alteration::NullKey
        | Alteration::Header(_)
        | Alteration::InvalidUtf8(_) => false,
        Alteration::Payload(text) => !text.is_empty() && !text.contains(['\n', '\r']),
        Alteration::Raw(raw) => !raw.text.contains(['\n', '\r']),
        Alteration::Nest(nest) => nest.depth < LONG / 2,
        Alteration::Fill(fill) => fill.bytes < LONG,
        Alteration::Set(_)
        | Alteration::Remove(_)
        | Alteration::Repeat(_)
        | Alteration::Array
        | Alteration::Truncate => true,
    })
}

/// Applies `fault` to the good record `root`; `message` has its key and gets the rest.
pub(super) fn spoil(
    fault: &Fault,
    mut root: Value,
    message: &mut Message,
    stream: &mut Stream,
    mut make: impl FnMut(&Maker, &Value, &mut Stream) -> Option<Value>,
) {
    let mut raw_texts = Vec::new();
    let mut put_raw = |root: &mut Value, field: &FieldPath, text: String| {
        let placeholder = format!("{MARK}{}", raw_texts.len());
        if field.put(root, placeholder.clone().into()) {
            raw_texts.push((format!("\"{placeholder}\""), text));
        }
    };
    for alteration in &fault.alter {
        match alteration {
            Alteration::Set(set) => {
                if let Some(value) = make(&set.to, &root, stream) {
                    set.field.put(&mut root, value);
                }
            }
            Alteration::Remove(field) => drop(field.remove(&mut root)),
            Alteration::Raw(raw) => put_raw(&mut root, &raw.field, raw.text.clone()),
            Alteration::Repeat(field) => {
                if let Some(value) = field.find(&root) {
                    let name = Value::from(field.last());
                    let text = format!("{value},{name}:{value}");
                    put_raw(&mut root, field, text);
                }
            }
            Alteration::Nest(nest) => {
                let depth = nest.depth as usize;
                put_raw(&mut root, &nest.field, "[".repeat(depth) + &"]".repeat(depth));
            }
            Alteration::Fill(fill) => {
                fill.field.put(&mut root, "x".repeat(fill.bytes as usize).into());
            }
            Alteration::InvalidUtf8(field) => {
                let text = field.find(&root).and_then(Value::as_str).unwrap_or_default();
                let marked = format!("{MARK}{text}");
                field.put(&mut root, marked.into());
            }
            Alteration::Header(header) => {
                let value = header.value.clone().map(String::into_bytes);
                message.headers.push((header.name.clone(), value));
            }
            Alteration::NullKey => message.key = None,
            Alteration::Array
            | Alteration::Truncate
            | Alteration::Payload(_)
            | Alteration::Empty
            | Alteration::Tombstone => {}
        }
    }
    let mut text = root.to_string();
    for (placeholder, raw) in raw_texts {
        text = text.replacen(&placeholder, &raw, 1);
    }
    message.payload = alter_bytes(fault, replace_mark(text), stream);
}

/// What is left of the marks becomes the byte that UTF-8 never has.
fn replace_mark(text: String) -> Vec<u8> {
    if !text.contains(MARK) {
        return text.into_bytes();
    }
    let parts: Vec<&[u8]> = text.split(MARK).map(str::as_bytes).collect();
    parts.join(&0xff)
}

fn alter_bytes(fault: &Fault, mut bytes: Vec<u8>, stream: &mut Stream) -> Option<Vec<u8>> {
    for alteration in &fault.alter {
        match alteration {
            Alteration::Array => {
                bytes.insert(0, b'[');
                bytes.push(b']');
            }
            Alteration::Truncate => {
                // At least one byte stays and at least one goes; a cut in a character moves back.
                let longest = i64::try_from(bytes.len().saturating_sub(1)).unwrap_or(i64::MAX);
                let mut length = usize::try_from(stream.between(1, longest)).unwrap_or(0);
                while length > 1 && bytes.get(length).is_some_and(|byte| byte & 0xc0 == 0x80) {
                    length -= 1;
                }
                bytes.truncate(length);
            }
            Alteration::Payload(text) => bytes = text.clone().into_bytes(),
            Alteration::Empty => bytes.clear(),
            Alteration::Tombstone => return None,
            _ => {}
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;

    /// The good record after `alter`, and whether a line can hold it.
    fn spoiled(alter: Value) -> (Message, bool) {
        let fault = json!({"name": "f", "alter": alter, "expect": "mapped"});
        let fault = Fault::deserialize(fault).unwrap();
        let mut message = Message { key: Some(b"k".to_vec()), ..Message::default() };
        let root = json!({"a": 1, "b": {"c": "é"}, "d": [1]});
        let make = |maker: &Maker, _: &Value, _: &mut Stream| match maker {
            Maker::Literal(value) => Some(value.clone()),
            _ => None,
        };
        spoil(&fault, root, &mut message, &mut Stream::new(1, 2, 3), make);
        (message, fits_a_line(&fault))
    }

    fn payload(alter: Value) -> Vec<u8> {
        spoiled(alter).0.payload.unwrap()
    }

    fn text(alter: Value) -> String {
        String::from_utf8(payload(alter)).unwrap()
    }

    #[test]
    fn fields_are_changed_in_their_place() {
        assert_eq!(
            text(
                json!([{"set": {"field": "b.c", "to": {"literal": null}}}, {"set": {"field": "z", "to": {"literal": 2}}}])
            ),
            r#"{"a":1,"b":{"c":null},"d":[1],"z":2}"#,
        );
        assert_eq!(text(json!([{"remove": "b"}])), r#"{"a":1,"d":[1]}"#);
        assert_eq!(text(json!([{"repeat": "b.c"}])), r#"{"a":1,"b":{"c":"é","c":"é"},"d":[1]}"#);
        assert_eq!(
            text(json!([{"nest": {"field": "a", "depth": 3}}])),
            r#"{"a":[[[]]],"b":{"c":"é"},"d":[1]}"#
        );
        assert_eq!(
            text(json!([{"fill": {"field": "d", "bytes": 4}}])),
            r#"{"a":1,"b":{"c":"é"},"d":"xxxx"}"#
        );
    }

    #[test]
    fn raw_text_goes_in_as_it_stands() {
        let raws = json!([
            {"raw": {"field": "a", "text": "1e3"}},
            {"raw": {"field": "b.c", "text": "\"\\uD800\""}},
            {"raw": {"field": "new", "text": "tru"}},
        ]);
        assert_eq!(text(raws), r#"{"a":1e3,"b":{"c":"\uD800"},"d":[1],"new":tru}"#);
    }

    #[test]
    fn bytes_are_changed_after_the_fields() {
        assert_eq!(text(json!(["array", {"remove": "b"}])), r#"[{"a":1,"d":[1]}]"#);
        assert_eq!(text(json!([{"payload": "hello"}])), "hello");
        let bytes = payload(json!([{"invalid_utf8": "b.c"}]));
        assert_eq!(bytes, b"{\"a\":1,\"b\":{\"c\":\"\xff\xc3\xa9\"},\"d\":[1]}");
    }

    #[test]
    fn empty_null_and_headers_are_told_apart() {
        assert_eq!(spoiled(json!(["empty"])).0.payload, Some(Vec::new()));
        assert_eq!(spoiled(json!(["tombstone"])).0.payload, None);
        assert_eq!(spoiled(json!(["null_key"])).0.key, None);
        let (message, _) =
            spoiled(json!([{"header": {"name": "x", "value": "1"}}, {"header": {"name": "y"}}]));
        assert_eq!(message.headers, [("x".to_owned(), Some(b"1".to_vec())), ("y".to_owned(), None)]);
        assert_eq!(message.key.as_deref(), Some(&b"k"[..]));
    }

    #[test]
    fn a_truncated_record_is_never_whole_and_never_empty() {
        let fault = json!({"name": "f", "alter": ["truncate"], "expect": "mapped"});
        let fault = Fault::deserialize(fault).unwrap();
        for index in 0..500 {
            let mut message = Message::default();
            let root = json!({"é": "é"});
            spoil(&fault, root, &mut message, &mut Stream::new(1, index, 0), |_, _, _| None);
            let text = String::from_utf8(message.payload.unwrap()).unwrap();
            assert!(!text.is_empty() && text.len() < "{\"é\":\"é\"}".len(), "{text}");
        }
    }

    #[test]
    fn lines_hold_what_lines_can() {
        for line in [
            json!(["truncate"]),
            json!(["array"]),
            json!([{"payload": "x"}]),
            json!([{"remove": "a"}]),
            json!([{"raw": {"field": "a", "text": "1.0"}}]),
            json!([{"fill": {"field": "a", "bytes": 100}}]),
        ] {
            assert!(spoiled(line.clone()).1, "{line}");
        }
        for other in [
            json!(["empty"]),
            json!(["tombstone"]),
            json!(["null_key"]),
            json!([{"invalid_utf8": "b.c"}]),
            json!([{"header": {"name": "x"}}]),
            json!([{"payload": "a\nb"}]),
            json!([{"payload": ""}]),
            json!([{"raw": {"field": "a", "text": "1\n"}}]),
            json!([{"fill": {"field": "a", "bytes": 1_000_000}}]),
        ] {
            assert!(!spoiled(other.clone()).1, "{other}");
        }
    }
}

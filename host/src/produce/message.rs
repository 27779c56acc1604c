//! What is produced: one message, and where its key comes from.

use serde_json::Value;

/// One Kafka message to send. Nothing that Kafka can hold is missing: an absent key or payload is
/// not an empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Key; `None` is Kafka's null.
    pub key: Option<Vec<u8>>,
    /// Payload; `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// Headers in order; a value may be null.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970-01-01 UTC; `None` lets the producer take its clock.
    pub timestamp: Option<i64>,
}

impl Message {
    /// Bytes of the payload; 0 for a tombstone.
    pub fn payload_size(&self) -> usize {
        self.payload.as_ref().map_or(0, Vec::len)
    }
}

/// Path of a field in a JSON object: names joined by dots, such as `payment.amount_cents`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize)]
#[serde(from = "String")]
pub struct FieldPath {
    names: Vec<String>,
}

impl FieldPath {
    /// The field at this path, if there is one.
    pub fn find<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        self.names.iter().try_fold(root, |value, name| value.get(name))
    }

    /// Puts `value` at this path: a present field keeps its place, an absent one goes last, and
    /// objects on the way are made. False if something on the way is not an object.
    pub fn put(&self, root: &mut Value, value: Value) -> bool {
        let mut at = root;
        for name in &self.names {
            let Some(object) = at.as_object_mut() else { return false };
            at = object.entry(name.as_str()).or_insert_with(|| Value::Object(serde_json::Map::new()));
        }
        *at = value;
        true
    }

    /// Takes the field away; its neighbours keep their order.
    pub fn remove(&self, root: &mut Value) -> Option<Value> {
        let (last, parents) = self.names.split_last()?;
        let parent = parents.iter().try_fold(root, |value, name| value.get_mut(name))?;
        parent.as_object_mut()?.shift_remove(last)
    }

    /// The last name.
    pub fn last(&self) -> &str {
        self.names.last().map_or("", String::as_str)
    }

    /// This path with one more name.
    #[must_use]
    pub fn join(&self, name: &str) -> Self {
        let mut names = self.names.clone();
        names.push(name.to_owned());
        Self { names }
    }

    /// The empty path: the object itself.
    pub fn root() -> Self {
        Self { names: Vec::new() }
    }
}

impl From<String> for FieldPath {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&str> for FieldPath {
    fn from(text: &str) -> Self {
        Self { names: text.split('.').map(str::to_owned).collect() }
    }
}

impl std::fmt::Display for FieldPath {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.names.join("."))
    }
}

/// The key that a JSON value gives: a string as its bytes, anything else as its JSON text, and no
/// key where the field is absent or null.
pub fn key_of(root: &Value, path: &FieldPath) -> Option<Vec<u8>> {
    match path.find(root)? {
        Value::Null => None,
        Value::String(text) => Some(text.clone().into_bytes()),
        other => Some(other.to_string().into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_find_put_and_remove() {
        let mut root = json!({"a": 1, "b": {"c": 2, "d": 3}});
        let path = FieldPath::from("b.c");
        assert_eq!(path.find(&root), Some(&json!(2)));
        assert!(path.put(&mut root, json!("x")));
        assert!(FieldPath::from("e.f").put(&mut root, json!(4)));
        assert!(!FieldPath::from("a.z").put(&mut root, json!(4)), "a is not an object");
        assert_eq!(root.to_string(), r#"{"a":1,"b":{"c":"x","d":3},"e":{"f":4}}"#);
        assert_eq!(path.remove(&mut root), Some(json!("x")));
        assert_eq!(path.remove(&mut root), None);
        assert_eq!(root.to_string(), r#"{"a":1,"b":{"d":3},"e":{"f":4}}"#);
    }

    #[test]
    fn keys_are_text_as_it_stands() {
        let root = json!({"id": "abc", "n": 7, "none": null});
        let key = |path: &str| key_of(&root, &FieldPath::from(path));
        assert_eq!(key("id"), Some(b"abc".to_vec()));
        assert_eq!(key("n"), Some(b"7".to_vec()));
        assert_eq!((key("none"), key("absent")), (None, None));
    }
}

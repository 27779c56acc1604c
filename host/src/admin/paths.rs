//! Paths: where the admin server has what about modules, for links and for clients.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything but RFC 3986's unreserved characters, which stand for themselves wherever they are.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

fn encode(text: &str) -> impl fmt::Display {
    utf8_percent_encode(text, RESERVED)
}

/// All modules, or those of one pipeline.
pub fn modules(pipeline: Option<&str>) -> String {
    with_pipeline("/modules".to_owned(), pipeline)
}

/// A module, or what about it: `history`, `shadow`, `rollback`, `pin`, `release`.
pub fn module(name: &str, what: Option<&str>, pipeline: Option<&str>) -> String {
    let end = what.map(|what| format!("/{what}")).unwrap_or_default();
    with_pipeline(format!("/modules/{}{end}", encode(name)), pipeline)
}

fn with_pipeline(path: String, pipeline: Option<&str>) -> String {
    match pipeline {
        Some(pipeline) => format!("{path}?pipeline={}", encode(pipeline)),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        assert_eq!(modules(None), "/modules");
        assert_eq!(module("purchase-rules.v2", None, None), "/modules/purchase-rules.v2");
        assert_eq!(
            module("a b/\u{fc}?", Some("pin"), Some("p&q")),
            "/modules/a%20b%2F%C3%BC%3F/pin?pipeline=p%26q"
        );
    }
}

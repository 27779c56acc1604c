//! JSON (RFC 8259) into serde types, made for rejections.
//!
//! Why not `serde_json`: a rejection needs the path of the field and the kind of fault, of which
//! `serde_json` has only a sentence; integers beyond 64 bits become floats there; an array passes
//! for a struct; and it costs more in wasm (README, figures). So this reader:
//!
//! - says *where* and *what*: [`Error::path`] and [`Error::kind`];
//! - keeps integers and floats apart: `1.0` and `1e3` are no integers, and an integer that does
//!   not fit is out of range, not mistyped;
//! - borrows strings without escapes from the payload;
//! - checks UTF-8 once, over the whole payload, the parts that nobody asked for included;
//! - nests 128 levels and no deeper, skipping without recursion;
//! - takes only an object for a struct or map.
//!
//! A payload that is not JSON is [`Kind::Syntax`] whatever else is wrong with it.

mod deserializer;
mod error;
mod reader;

pub use error::{Error, Kind};

use serde::Deserialize;

use deserializer::Deserializer;
use reader::Reader;

/// Deepest nesting of arrays and objects.
pub const DEEPEST: usize = 128;

/// Reads one JSON document.
///
/// # Errors
/// When the bytes are not UTF-8 or not JSON, or not what `T` asks for.
#[inline]
pub fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => from_str(text),
        Err(error) => Err(Error::syntax(error.valid_up_to(), "not UTF-8")),
    }
}

/// Reads one JSON document.
///
/// # Errors
/// When the text is not JSON, or not what `T` asks for.
#[inline]
pub fn from_str<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Error> {
    let mut reader = Reader::new(text);
    let result =
        T::deserialize(Deserializer::new(&mut reader)).and_then(|value| reader.end().map(|()| value));
    result.map_err(|error| well_formed_or_syntax(text, error))
}

/// What is wrong with a document of which `error` was found first: that it is no JSON at all, if
/// so. Otherwise a truncated document would be this or that by the order of its fields.
#[cold]
fn well_formed_or_syntax(text: &str, error: Error) -> Error {
    if error.kind() == Kind::Syntax {
        return error;
    }
    let mut reader = Reader::new(text);
    match reader.skip_value(0).and_then(|()| reader.end()) {
        Ok(()) => error,
        Err(syntax) => syntax,
    }
}

#[cfg(test)]
mod tests;

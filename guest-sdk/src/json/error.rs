//! What is wrong with a document: the kind of fault, the path of the field, a sentence.

use std::fmt;

use serde::de;

use crate::Rejection;

/// Longest piece of the document that a message repeats.
const LONGEST_QUOTE: usize = 60;

/// The kind of fault; [`code`](Self::code) is the rejection code that it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not UTF-8, not JSON, or nested too deep.
    Syntax,
    /// A field that must be there is not.
    MissingField,
    /// A field comes twice.
    DuplicateField,
    /// A field that the type does not know, and does not tolerate.
    UnknownField,
    /// A value of another type, or text that does not spell what the type asks for.
    WrongType,
    /// A number that the type cannot hold.
    OutOfRange,
}

impl Kind {
    /// The rejection code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Syntax => "malformed",
            Self::MissingField => "missing_field",
            Self::DuplicateField => "duplicate_field",
            Self::UnknownField => "unknown_field",
            Self::WrongType => "wrong_type",
            Self::OutOfRange => "out_of_range",
        }
    }
}

/// What is wrong with a document.
#[derive(Debug)]
pub struct Error(Box<Fault>);

#[derive(Debug)]
struct Fault {
    kind: Kind,
    /// From the inside out, since that is how an error travels.
    path: Vec<Segment>,
    message: String,
}

#[derive(Debug)]
enum Segment {
    Field(String),
    Index(usize),
}

impl Error {
    #[cold]
    pub(super) fn new(kind: Kind, message: String) -> Self {
        Self(Box::new(Fault { kind, path: Vec::new(), message }))
    }

    #[cold]
    pub(super) fn syntax(offset: usize, message: &str) -> Self {
        Self::new(Kind::Syntax, format!("{message} at byte {offset}"))
    }

    #[cold]
    fn of_field(kind: Kind, field: &str, message: &str) -> Self {
        let mut error = Self::new(kind, message.to_owned());
        error.0.path.push(Segment::Field(field.to_owned()));
        error
    }

    /// The error on its way out of a field.
    #[cold]
    pub(super) fn in_field(mut self, field: &str) -> Self {
        self.0.path.push(Segment::Field(field.to_owned()));
        self
    }

    /// The error on its way out of an element of an array.
    #[cold]
    pub(super) fn in_element(mut self, index: usize) -> Self {
        self.0.path.push(Segment::Index(index));
        self
    }

    /// The kind of fault.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The path of the field, such as `lines[2].price`; empty for the document itself, and where
    /// the document is no JSON.
    pub fn path(&self) -> String {
        let mut path = String::new();
        if self.kind() == Kind::Syntax {
            return path;
        }
        for segment in self.0.path.iter().rev() {
            match segment {
                Segment::Field(field) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(&quoted(field));
                }
                Segment::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        path
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path();
        if path.is_empty() {
            write!(formatter, "{}: {}", self.kind().code(), self.0.message)
        } else {
            write!(formatter, "{} at {path}: {}", self.kind().code(), self.0.message)
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Rejection {
    /// A document that is JSON but another type than the message is as unreadable as no JSON.
    fn from(error: Error) -> Self {
        let path = error.path();
        if path.is_empty() {
            Self::malformed(error.0.message)
        } else {
            Self::new(error.kind().code(), error.0.message).at(path)
        }
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::WrongType, message.to_string())
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(Kind::WrongType, format!("expected {expected}, found {}", Found(found)))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let kind = match found {
            de::Unexpected::Unsigned(_) | de::Unexpected::Signed(_) | de::Unexpected::Float(_) => {
                Kind::OutOfRange
            }
            _ => Kind::WrongType,
        };
        Self::new(kind, format!("expected {expected}, found {}", Found(found)))
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        Self::new(Kind::WrongType, format!("expected {expected}, found {length} elements"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let message = format!("expected one of {}, found `{}`", expected.join(", "), quoted(variant));
        Self::new(Kind::WrongType, message)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        if expected.is_empty() {
            Self::of_field(Kind::UnknownField, field, "no field has this name")
        } else {
            let message = format!("no field has this name; there are {}", expected.join(", "));
            Self::of_field(Kind::UnknownField, field, &message)
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self::of_field(Kind::MissingField, field, "the field is missing")
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::of_field(Kind::DuplicateField, field, "the field comes more than once")
    }
}

/// What was found, in words.
struct Found<'a>(de::Unexpected<'a>);

impl fmt::Display for Found<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            de::Unexpected::Bool(value) => write!(formatter, "{value}"),
            de::Unexpected::Unsigned(value) => write!(formatter, "{value}"),
            de::Unexpected::Signed(value) => write!(formatter, "{value}"),
            de::Unexpected::Float(value) => write!(formatter, "the number {value:?}"),
            de::Unexpected::Str(text) => write!(formatter, "the string \"{}\"", quoted(text)),
            de::Unexpected::Unit => formatter.write_str("null"),
            de::Unexpected::Seq => formatter.write_str("an array"),
            de::Unexpected::Map => formatter.write_str("an object"),
            other => write!(formatter, "{other}"),
        }
    }
}

/// A piece of the document as a message repeats it: short, and on one line.
pub(super) fn quoted(text: &str) -> String {
    let shown = &text[..text.floor_char_boundary(LONGEST_QUOTE)];
    let mut quoted: String =
        shown.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect();
    if shown.len() < text.len() {
        quoted.push('…');
    }
    quoted
}

//! ClickHouse type names, taken apart: written apart from [`crate::value`], so that tests see both.

/// A column type.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Width in bytes, and whether there is a sign.
    Integer(usize, bool),
    Float32,
    Float64,
    Bool,
    String,
    FixedString(usize),
    /// Days; width in bytes.
    Date(usize),
    DateTime,
    /// Digits of the second.
    DateTime64(u32),
    Uuid,
    Ipv4,
    Ipv6,
    /// Width in bytes, and digits after the point.
    Decimal(usize, usize),
    /// Width in bytes, and the names of the numbers.
    Enum(usize, Vec<(String, i16)>),
    Nullable(Box<Kind>),
    Array(Box<Kind>),
    Map(Box<Kind>, Box<Kind>),
    Tuple(Vec<Kind>),
}

/// A type by its name; `None` for a name that this reader does not know.
pub(super) fn parse(name: &str) -> Option<Kind> {
    let (head, arguments) = match name.split_once('(') {
        Some((head, rest)) => (head, split(rest.strip_suffix(')')?)),
        None => (name, Vec::new()),
    };
    let one = || if let [argument] = arguments.as_slice() { Some(*argument) } else { None };
    Some(match head {
        "Int8" => Kind::Integer(1, true),
        "Int16" => Kind::Integer(2, true),
        "Int32" => Kind::Integer(4, true),
        "Int64" => Kind::Integer(8, true),
        "Int128" => Kind::Integer(16, true),
        "UInt8" => Kind::Integer(1, false),
        "UInt16" => Kind::Integer(2, false),
        "UInt32" => Kind::Integer(4, false),
        "UInt64" => Kind::Integer(8, false),
        "UInt128" => Kind::Integer(16, false),
        "Float32" => Kind::Float32,
        "Float64" => Kind::Float64,
        "Bool" => Kind::Bool,
        "String" => Kind::String,
        "FixedString" => Kind::FixedString(one()?.parse().ok()?),
        "Date" => Kind::Date(2),
        "Date32" => Kind::Date(4),
        "DateTime" => Kind::DateTime,
        "DateTime64" => Kind::DateTime64(arguments.first()?.parse().ok()?),
        "UUID" => Kind::Uuid,
        "IPv4" => Kind::Ipv4,
        "IPv6" => Kind::Ipv6,
        "Decimal" => {
            let [digits, scale] = arguments.as_slice() else { return None };
            let width = match digits.parse().ok()? {
                0..=9 => 4,
                10..=18 => 8,
                19..=38 => 16,
                _ => return None,
            };
            Kind::Decimal(width, scale.parse().ok()?)
        }
        "Enum8" => Kind::Enum(1, variants(&arguments)?),
        "Enum16" => Kind::Enum(2, variants(&arguments)?),
        "Nullable" => Kind::Nullable(Box::new(parse(one()?)?)),
        "LowCardinality" => parse(one()?)?,
        "Array" => Kind::Array(Box::new(parse(one()?)?)),
        "Map" => {
            let [key, value] = arguments.as_slice() else { return None };
            Kind::Map(Box::new(parse(key)?), Box::new(parse(value)?))
        }
        "Tuple" => Kind::Tuple(arguments.iter().map(|argument| element(argument)).collect::<Option<_>>()?),
        _ => return None,
    })
}

/// An element of a tuple: a type, or a name and a type.
fn element(argument: &str) -> Option<Kind> {
    parse(argument).or_else(|| {
        let type_name = match argument.strip_prefix('`') {
            Some(quoted) => quoted.split_once("` ")?.1,
            None => argument.split_once(' ')?.1,
        };
        parse(type_name)
    })
}

/// `'name' = 1`.
fn variants(arguments: &[&str]) -> Option<Vec<(String, i16)>> {
    arguments
        .iter()
        .map(|argument| {
            let (name, number) = argument.rsplit_once(" = ")?;
            let name = name.strip_prefix('\'')?.strip_suffix('\'')?;
            Some((name.replace("\\'", "'").replace("\\\\", "\\"), number.parse().ok()?))
        })
        .collect()
}

/// Splits at the commas that are inside of no parentheses and no quotes.
fn split(arguments: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    let mut quote = None;
    let mut escaped = false;
    for (index, letter) in arguments.char_indices() {
        match (quote, letter) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '`') => quote = Some(letter),
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, ',') if depth == 0 => {
                parts.push(arguments[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(arguments[start..].trim());
    parts
}

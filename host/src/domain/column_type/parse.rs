//! Parse: a recursive descent over a type name, bounded in depth.

use super::{ColumnType, EnumWidth, MAXIMUM_NESTING, UnknownColumnType};

/// Longest part of a type name that an error repeats.
const SHOWN_BYTES: usize = 200;

/// Widest `FixedString` that ClickHouse makes (`MAX_FIXEDSTRING_SIZE`).
const MAXIMUM_FIXED_STRING: u64 = 0xff_ffff;

/// SQL names that `CREATE TABLE` takes, in upper case, and what they stand for.
const ALIASES: [(&str, &str); 21] = [
    ("TINYINT", "Int8"),
    ("SMALLINT", "Int16"),
    ("INT", "Int32"),
    ("INTEGER", "Int32"),
    ("BIGINT", "Int64"),
    ("FLOAT", "Float32"),
    ("REAL", "Float32"),
    ("DOUBLE", "Float64"),
    ("BOOL", "Bool"),
    ("BOOLEAN", "Bool"),
    ("CHAR", "String"),
    ("VARCHAR", "String"),
    ("TEXT", "String"),
    ("BLOB", "String"),
    ("DATE", "Date"),
    ("DATETIME", "DateTime"),
    ("TIMESTAMP", "DateTime"),
    ("DEC", "Decimal"),
    ("NUMERIC", "Decimal"),
    ("INET4", "IPv4"),
    ("INET6", "IPv6"),
];

pub(super) fn parse(type_name: &str) -> Result<ColumnType, UnknownColumnType> {
    let mut parser = Parser { text: type_name, position: 0 };
    let parsed = parser.column_type(0).and_then(|column_type| {
        parser.skip_spaces();
        match parser.rest() {
            "" => Ok(column_type),
            rest => Err(format!("unexpected `{}` after the type", shown(rest))),
        }
    });
    parsed.map_err(|problem| UnknownColumnType { type_name: shown(type_name), problem })
}

fn shown(text: &str) -> String {
    match text.char_indices().find(|(index, _)| *index >= SHOWN_BYTES) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn skip_spaces(&mut self) {
        self.position = self.text.len() - self.rest().trim_start().len();
    }

    fn peek(&mut self) -> Option<char> {
        self.skip_spaces();
        self.rest().chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.position += wanted.len_utf8();
        }
        found
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.take(wanted) {
            return Ok(());
        }
        match self.peek() {
            Some(found) => Err(format!("expected `{wanted}` at byte {}, found `{found}`", self.position)),
            None => Err(format!("expected `{wanted}`, found the end")),
        }
    }

    /// Letters, digits and underscores, or text in backquotes or double quotes.
    fn identifier(&mut self) -> Result<String, String> {
        match self.peek() {
            Some(quote @ ('`' | '"')) => self.quoted(quote),
            _ => {
                let rest = self.rest();
                let end = rest
                    .find(|character: char| !character.is_ascii_alphanumeric() && character != '_')
                    .unwrap_or(rest.len());
                if end == 0 {
                    return Err(match rest.chars().next() {
                        Some(found) => format!("expected a name at byte {}, found `{found}`", self.position),
                        None => "expected a name, found the end".into(),
                    });
                }
                self.position += end;
                Ok(rest[..end].to_owned())
            }
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.expect(quote)?;
        let mut value = String::new();
        let mut characters = self.rest().char_indices();
        while let Some((index, character)) = characters.next() {
            if character == quote {
                if !self.rest()[index + 1..].starts_with(quote) {
                    self.position += index + 1;
                    return Ok(value);
                }
                characters.next();
                value.push(quote);
            } else if character == '\\' {
                let Some((_, escaped)) = characters.next() else { break };
                value.push(match escaped {
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    '0' => '\0',
                    other => other,
                });
            } else {
                value.push(character);
            }
        }
        Err(format!("the text that starts at byte {} has no closing {quote}", self.position - 1))
    }

    fn number(&mut self) -> Result<i64, String> {
        self.skip_spaces();
        let rest = self.rest();
        let digits = rest.strip_prefix('-').unwrap_or(rest);
        let sign = rest.len() - digits.len();
        let end = sign + digits.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(digits.len());
        let number =
            rest[..end].parse().map_err(|_| format!("expected a number at byte {}", self.position))?;
        self.position += end;
        Ok(number)
    }

    fn number_within(&mut self, what: &str, low: u64, high: u64) -> Result<u64, String> {
        let number = self.number()?;
        u64::try_from(number)
            .ok()
            .filter(|number| (low..=high).contains(number))
            .ok_or_else(|| format!("{what} is {number}, which is not within {low} to {high}"))
    }

    fn column_type(&mut self, depth: usize) -> Result<ColumnType, String> {
        let name = self.identifier()?;
        self.column_type_named(&name, depth)
    }

    fn column_type_named(&mut self, name: &str, depth: usize) -> Result<ColumnType, String> {
        if depth > MAXIMUM_NESTING {
            return Err(format!("nested deeper than {MAXIMUM_NESTING} levels"));
        }
        if let Some(plain) = ColumnType::plain(name) {
            return Ok(plain);
        }
        match name {
            "Bool" => Ok(ColumnType::Bool),
            "String" => Ok(ColumnType::String),
            "Date32" => Ok(ColumnType::Date32),
            "Time" => Ok(ColumnType::Time),
            "FixedString" => {
                self.expect('(')?;
                let width = self.number_within("the length", 1, MAXIMUM_FIXED_STRING)?;
                self.expect(')')?;
                Ok(ColumnType::FixedString(width as usize))
            }
            "DateTime" => self.date_time(),
            "DateTime64" => self.date_time_64(),
            "Time64" => {
                self.expect('(')?;
                let precision = self.number_within("the precision", 0, 9)?;
                self.expect(')')?;
                Ok(ColumnType::Time64(precision as u8))
            }
            "Decimal" => self.decimal(),
            "Decimal32" => self.decimal_of(9),
            "Decimal64" => self.decimal_of(18),
            "Decimal128" => self.decimal_of(38),
            "Decimal256" => self.decimal_of(76),
            "Enum" => self.enumeration(None),
            "Enum8" => self.enumeration(Some(EnumWidth::One)),
            "Enum16" => self.enumeration(Some(EnumWidth::Two)),
            "Nullable" => match self.only_argument(depth)? {
                inner @ (ColumnType::Nullable(_)
                | ColumnType::LowCardinality(_)
                | ColumnType::Array(_)
                | ColumnType::Map(..)) => {
                    Err(format!("ClickHouse has no Nullable({inner}); put Nullable inside"))
                }
                inner => Ok(ColumnType::Nullable(Box::new(inner))),
            },
            "LowCardinality" => match self.only_argument(depth)? {
                inner @ (ColumnType::LowCardinality(_)
                | ColumnType::Array(_)
                | ColumnType::Map(..)
                | ColumnType::Tuple(_)) => {
                    Err(format!("ClickHouse has no LowCardinality({inner}); put LowCardinality inside"))
                }
                inner => Ok(ColumnType::LowCardinality(Box::new(inner))),
            },
            "Array" => Ok(ColumnType::Array(Box::new(self.only_argument(depth)?))),
            "Map" => {
                self.expect('(')?;
                let key = self.column_type(depth + 1)?;
                self.expect(',')?;
                let value = self.column_type(depth + 1)?;
                self.expect(')')?;
                Ok(ColumnType::Map(Box::new(key), Box::new(value)))
            }
            "Tuple" => self.tuple(depth),
            "SimpleAggregateFunction" => {
                self.expect('(')?;
                let function = self.identifier()?;
                self.expect(',')?;
                let inner = self.column_type(depth + 1)?;
                self.expect(')')?;
                Ok(ColumnType::SimpleAggregateFunction(function, Box::new(inner)))
            }
            "Nothing" => Err("holds no value, so a row cannot fill it".into()),
            "Nested" => {
                Err("declare a Nested column as its parts: one Array each, named `nested.part`".into())
            }
            "AggregateFunction" | "JSON" | "Object" | "Dynamic" | "Variant" | "QBit" => Err(format!(
                "{name} cannot be filled from a module; fill a String or plain column and let a materialized \
                 view or a DEFAULT expression convert it"
            )),
            _ => self.alias(name, depth),
        }
    }

    fn alias(&mut self, name: &str, depth: usize) -> Result<ColumnType, String> {
        let upper = name.to_ascii_uppercase();
        match ALIASES.iter().find(|(alias, _)| *alias == upper) {
            Some((_, canonical)) => {
                let length_follows = *canonical == "String" && self.take('(');
                if length_follows {
                    // ClickHouse takes and ignores the length of VARCHAR(100).
                    self.number()?;
                    self.expect(')')?;
                }
                self.column_type_named(canonical, depth)
            }
            None => Err(format!("{} is not a type that rows can be filled with", shown(name))),
        }
    }

    fn only_argument(&mut self, depth: usize) -> Result<ColumnType, String> {
        self.expect('(')?;
        let inner = self.column_type(depth + 1)?;
        self.expect(')')?;
        Ok(inner)
    }

    fn date_time(&mut self) -> Result<ColumnType, String> {
        if !self.take('(') {
            return Ok(ColumnType::DateTime(None));
        }
        let zone = self.quoted('\'')?;
        self.expect(')')?;
        Ok(ColumnType::DateTime(Some(zone)))
    }

    fn date_time_64(&mut self) -> Result<ColumnType, String> {
        self.expect('(')?;
        let precision = self.number_within("the precision", 0, 9)?;
        let zone = if self.take(',') { Some(self.quoted('\'')?) } else { None };
        self.expect(')')?;
        Ok(ColumnType::DateTime64(precision as u8, zone))
    }

    fn decimal(&mut self) -> Result<ColumnType, String> {
        if !self.take('(') {
            return Ok(ColumnType::Decimal { precision: 10, scale: 0 });
        }
        let precision = self.number_within("the precision", 1, 76)?;
        let scale = if self.take(',') { self.number_within("the scale", 0, precision)? } else { 0 };
        self.expect(')')?;
        Ok(ColumnType::Decimal { precision: precision as u8, scale: scale as u8 })
    }

    fn decimal_of(&mut self, precision: u8) -> Result<ColumnType, String> {
        self.expect('(')?;
        let scale = self.number_within("the scale", 0, precision.into())?;
        self.expect(')')?;
        Ok(ColumnType::Decimal { precision, scale: scale as u8 })
    }

    fn enumeration(&mut self, width: Option<EnumWidth>) -> Result<ColumnType, String> {
        self.expect('(')?;
        let mut values: Vec<(i16, String)> = Vec::new();
        loop {
            let name = self.quoted('\'')?;
            // A value without a number goes on from the one before, starting at 1.
            let number = if self.take('=') {
                self.number()?
            } else {
                values.last().map_or(1, |(last, _)| i64::from(*last) + 1)
            };
            let number = i16::try_from(number)
                .ok()
                .filter(|number| width != Some(EnumWidth::One) || i8::try_from(*number).is_ok())
                .ok_or_else(|| format!("the number {number} of '{name}' does not fit"))?;
            values.push((number, name));
            if !self.take(',') {
                break;
            }
        }
        self.expect(')')?;
        values.sort();
        if let Some(twice) = values.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("the number {} stands twice", twice[0].0));
        }
        let width = width.unwrap_or_else(|| {
            let fits = values.iter().all(|(number, _)| i8::try_from(*number).is_ok());
            if fits { EnumWidth::One } else { EnumWidth::Two }
        });
        Ok(ColumnType::Enum { width, values })
    }

    fn tuple(&mut self, depth: usize) -> Result<ColumnType, String> {
        self.expect('(')?;
        if self.take(')') {
            return Err("an empty Tuple holds no value, so a row cannot fill it".into());
        }
        let mut elements = Vec::new();
        loop {
            let first = self.identifier()?;
            // A name is followed by its type; a type by `(`, `,` or `)`.
            let named = !matches!(self.peek(), Some('(' | ',' | ')') | None);
            elements.push(if named {
                (Some(first), self.column_type(depth + 1)?)
            } else {
                (None, self.column_type_named(&first, depth + 1)?)
            });
            if !self.take(',') {
                break;
            }
        }
        self.expect(')')?;
        Ok(ColumnType::Tuple(elements))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_clickhouse_come_back_as_they_were() {
        for name in [
            "UInt8",
            "Int256",
            "Float32",
            "BFloat16",
            "Bool",
            "String",
            "FixedString(16)",
            "Date",
            "Date32",
            "DateTime",
            "DateTime('Europe/Berlin')",
            "DateTime64(3)",
            "DateTime64(9, 'UTC')",
            "Time",
            "Time64(6)",
            "UUID",
            "IPv4",
            "IPv6",
            "Decimal(18, 4)",
            "Enum8('' = -128, 'it\\'s' = 0, 'a\\\\b\\n' = 127)",
            "Enum16('low' = -300, 'high' = 300)",
            "LowCardinality(Nullable(String))",
            "Array(Array(Nullable(UInt64)))",
            "Map(LowCardinality(String), Array(Tuple(UInt8, String)))",
            "Tuple(a UInt8, `b c` Tuple(String, x Date))",
            "Nullable(Tuple(a UInt8))",
            "SimpleAggregateFunction(max, DateTime64(3))",
        ] {
            let column_type = ColumnType::parse(name).unwrap();
            assert_eq!(column_type.to_string(), name);
            assert_eq!(ColumnType::parse(&column_type.to_string()).unwrap(), column_type);
        }
    }

    #[test]
    fn other_spellings_mean_the_same() {
        for (spelling, canonical) in [
            (" Array ( UInt8 ) ", "Array(UInt8)"),
            ("INT", "Int32"),
            ("bigint", "Int64"),
            ("varchar(255)", "String"),
            ("timestamp", "DateTime"),
            ("Decimal", "Decimal(10, 0)"),
            ("Decimal(5)", "Decimal(5, 0)"),
            ("Decimal32(2)", "Decimal(9, 2)"),
            ("Decimal64(2)", "Decimal(18, 2)"),
            ("Decimal128(2)", "Decimal(38, 2)"),
            ("Decimal256(2)", "Decimal(76, 2)"),
            ("numeric(7,3)", "Decimal(7, 3)"),
            ("Enum('b' = 2, 'a' = 1)", "Enum8('a' = 1, 'b' = 2)"),
            ("Enum('a', 'b' = 500, 'c')", "Enum16('a' = 1, 'b' = 500, 'c' = 501)"),
            ("Enum8('it''s')", "Enum8('it\\'s' = 1)"),
            ("Tuple(\"a\" UInt8)", "Tuple(a UInt8)"),
        ] {
            assert_eq!(ColumnType::parse(spelling).unwrap().to_string(), canonical, "{spelling}");
        }
    }

    #[test]
    fn what_rows_cannot_fill_is_refused_by_name() {
        for (name, problem) in [
            ("", "expected a name, found the end"),
            ("JSON", "JSON cannot be filled from a module"),
            ("AggregateFunction(sum, UInt64)", "AggregateFunction cannot be filled"),
            ("Nothing", "holds no value"),
            ("Tuple()", "an empty Tuple holds no value"),
            ("FixedString(0)", "the length is 0"),
            ("FixedString(-1)", "the length is -1"),
            ("Unheard", "Unheard is not a type"),
            ("Array(Unheard)", "Unheard is not a type"),
            ("UInt8)", "unexpected `)` after the type"),
            ("Array(UInt8", "expected `)`, found the end"),
            ("Array(,)", "expected a name at byte 6, found `,`"),
            ("DateTime64(10)", "the precision is 10"),
            ("Decimal(77, 2)", "the precision is 77"),
            ("Decimal(4, 5)", "the scale is 5"),
            ("Enum8('a' = 128)", "the number 128 of 'a' does not fit"),
            ("Enum8('a' = 1, 'b' = 1)", "the number 1 stands twice"),
            ("Enum8('a", "has no closing '"),
            ("Enum8('a' = )", "expected a number at byte 12"),
            ("Nullable(Array(UInt8))", "put Nullable inside"),
            ("LowCardinality(Array(UInt8))", "put LowCardinality inside"),
            ("DateTime('UTC\\", "has no closing '"),
        ] {
            let error = ColumnType::parse(name).unwrap_err();
            assert_eq!(error.type_name, name);
            assert!(error.problem.contains(problem), "{name}: {}", error.problem);
        }
    }

    #[test]
    fn nesting_is_bounded_and_long_names_are_shortened() {
        let nested = |depth: usize| format!("{}UInt8{}", "Array(".repeat(depth), ")".repeat(depth));
        assert!(ColumnType::parse(&nested(MAXIMUM_NESTING)).is_ok());
        assert!(ColumnType::parse(&nested(MAXIMUM_NESTING + 1)).is_err());
        let error = ColumnType::parse(&nested(1_000_000)).unwrap_err();
        assert!(error.to_string().len() < 300);
        assert!(ColumnType::parse(&"ä".repeat(1000)).unwrap_err().type_name.ends_with("ä..."));
    }

    #[test]
    fn every_plain_type_is_found_by_its_name() {
        for plain in super::super::PLAIN_TYPES {
            assert_eq!(ColumnType::parse(plain.name()), Ok(ColumnType::Plain(plain)));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(Array|Tuple|Map|Enum8|Nullable|\\(|\\)|,|'|`|a|=|-|1|\\\\| |ä){0,24}") {
            if let Ok(column_type) = ColumnType::parse(&text) {
                proptest::prop_assert_eq!(ColumnType::parse(&column_type.to_string()), Ok(column_type));
            }
        }
    }
}

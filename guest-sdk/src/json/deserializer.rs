//! Deserializer: the values of a JSON text as serde asks for them.

use std::borrow::Cow;

use serde::de::{self, DeserializeSeed, Error as _, MapAccess, SeqAccess, Unexpected, Visitor};

use super::DEEPEST;
use super::error::{Error, Kind, quoted};
use super::reader::{Number, Reader};

/// One value of the document.
pub(super) struct Deserializer<'r, 'de> {
    reader: &'r mut Reader<'de>,
    /// Levels around this value.
    depth: usize,
}

impl<'r, 'de> Deserializer<'r, 'de> {
    #[inline]
    pub(super) fn new(reader: &'r mut Reader<'de>) -> Self {
        Self { reader, depth: 0 }
    }

    /// Why the value that comes next is not what was asked for.
    #[cold]
    #[inline(never)]
    fn mismatch(self, expected: &dyn de::Expected) -> Error {
        let reader = self.reader;
        let found = match reader.peek() {
            Some(b'{') => Unexpected::Map,
            Some(b'[') => Unexpected::Seq,
            Some(b't') => Unexpected::Bool(true),
            Some(b'f') => Unexpected::Bool(false),
            Some(b'n') => Unexpected::Unit,
            Some(b'"') => {
                return match reader.string() {
                    Ok(text) => Error::invalid_type(Unexpected::Str(&text), expected),
                    Err(error) => error,
                };
            }
            Some(b'-' | b'0'..=b'9') => {
                return match reader.number() {
                    Ok(Number::Unsigned(value)) => Error::invalid_type(Unexpected::Unsigned(value), expected),
                    Ok(Number::Negative(value)) => wrong_number(&format!("-{value}"), expected),
                    Ok(Number::Long(text) | Number::Float(text)) => wrong_number(text, expected),
                    Err(error) => error,
                };
            }
            _ => return reader.unexpected("no JSON value"),
        };
        Error::invalid_type(found, expected)
    }

    #[inline]
    fn integer(self, expected: &dyn de::Expected) -> Result<Number<'de>, Error> {
        if !matches!(self.reader.peek(), Some(b'-' | b'0'..=b'9')) {
            return Err(self.mismatch(expected));
        }
        match self.reader.number()? {
            Number::Float(text) => Err(wrong_number(text, expected)),
            integer => Ok(integer),
        }
    }

    /// Enters an array or object, whose opening bracket comes next.
    #[inline]
    fn enter(&mut self) -> Result<(), Error> {
        if self.depth == DEEPEST {
            return Err(self.reader.fault("nested too deep"));
        }
        self.depth += 1;
        self.reader.step();
        Ok(())
    }

    #[inline]
    fn object<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
        if self.reader.peek() != Some(b'{') {
            return Err(self.mismatch(&"an object"));
        }
        self.enter()?;
        let mut object =
            Object { reader: &mut *self.reader, depth: self.depth, first: true, ended: false, key: 0 };
        let value = visitor.visit_map(&mut object)?;
        // A visitor that stops early (to make an enum, say) leaves fields behind.
        while !object.ended {
            if object.next_key::<de::IgnoredAny>()?.is_some() {
                object.next_value::<de::IgnoredAny>()?;
            }
        }
        Ok(value)
    }

    #[inline]
    fn array<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Error> {
        if self.reader.peek() != Some(b'[') {
            return Err(self.mismatch(&"an array"));
        }
        self.enter()?;
        let mut array = Array { reader: &mut *self.reader, depth: self.depth, index: 0, ended: false };
        let value = visitor.visit_seq(&mut array)?;
        let taken = array.index;
        while !array.ended {
            array.next_element::<de::IgnoredAny>()?;
        }
        if array.index > taken {
            let expected = format!("{taken} elements");
            return Err(Error::invalid_length(array.index, &expected.as_str()));
        }
        Ok(value)
    }
}

#[cold]
#[inline(never)]
fn wrong_number(text: &str, expected: &dyn de::Expected) -> Error {
    Error::new(Kind::WrongType, format!("expected {expected}, found {}", quoted(text)))
}

#[cold]
#[inline(never)]
fn unfit(number: Number<'_>, low: impl std::fmt::Display, high: impl std::fmt::Display) -> Error {
    let text = match number {
        Number::Unsigned(value) => value.to_string(),
        Number::Negative(value) => format!("-{value}"),
        Number::Long(text) | Number::Float(text) => quoted(text),
    };
    Error::new(Kind::OutOfRange, format!("expected an integer from {low} to {high}, found {text}"))
}

macro_rules! integers {
    ($($method:ident $integer:ty => $visit:ident;)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let number = self.integer(&"an integer")?;
            let value = match number {
                Number::Unsigned(value) => <$integer>::try_from(value).ok(),
                Number::Negative(value) => <$integer>::try_from(-i128::from(value)).ok(),
                Number::Long(text) => text.parse().ok(),
                Number::Float(_) => None,
            };
            match value {
                Some(value) => visitor.$visit(value),
                None => Err(unfit(number, <$integer>::MIN, <$integer>::MAX)),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Deserializer<'_, 'de> {
    type Error = Error;

    integers! {
        deserialize_i8 i8 => visit_i8;
        deserialize_i16 i16 => visit_i16;
        deserialize_i32 i32 => visit_i32;
        deserialize_i64 i64 => visit_i64;
        deserialize_i128 i128 => visit_i128;
        deserialize_u8 u8 => visit_u8;
        deserialize_u16 u16 => visit_u16;
        deserialize_u32 u32 => visit_u32;
        deserialize_u64 u64 => visit_u64;
        deserialize_u128 u128 => visit_u128;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.reader.peek() {
            Some(b'{') => self.object(visitor),
            Some(b'[') => self.array(visitor),
            Some(b'"') => self.deserialize_str(visitor),
            Some(b't' | b'f') => self.deserialize_bool(visitor),
            Some(b'n') => self.deserialize_unit(visitor),
            Some(b'-' | b'0'..=b'9') => match self.reader.number()? {
                Number::Unsigned(value) => visitor.visit_u64(value),
                Number::Negative(value) => match i64::try_from(-i128::from(value)) {
                    Ok(value) => visitor.visit_i64(value),
                    Err(_) => visitor.visit_f64(-(value as f64)),
                },
                // Whoever takes anything takes the nearest float, as with `serde_json`.
                Number::Long(text) => visitor.visit_f64(float(text)?),
                Number::Float(text) => visitor.visit_f64(float(text)?),
            },
            _ => Err(self.reader.unexpected("no JSON value")),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.reader.peek() {
            Some(b't') => {
                self.reader.literal("true")?;
                visitor.visit_bool(true)
            }
            Some(b'f') => {
                self.reader.literal("false")?;
                visitor.visit_bool(false)
            }
            _ => Err(self.mismatch(&"true or false")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if !matches!(self.reader.peek(), Some(b'-' | b'0'..=b'9')) {
            return Err(self.mismatch(&"a number"));
        }
        visitor.visit_f64(match self.reader.number()? {
            Number::Unsigned(value) => value as f64,
            Number::Negative(value) => -(value as f64),
            Number::Long(text) | Number::Float(text) => float(text)?,
        })
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    #[inline]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.reader.peek() != Some(b'"') {
            return Err(self.mismatch(&"a string"));
        }
        match self.reader.string()? {
            Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.reader.peek() != Some(b'"') {
            return Err(self.mismatch(&"a string"));
        }
        match self.reader.string()? {
            Cow::Borrowed(text) => visitor.visit_borrowed_bytes(text.as_bytes()),
            Cow::Owned(text) => visitor.visit_byte_buf(text.into_bytes()),
        }
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.reader.peek() == Some(b'n') {
            self.reader.literal("null")?;
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.reader.peek() != Some(b'n') {
            return Err(self.mismatch(&"null"));
        }
        self.reader.literal("null")?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.array(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.array(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.array(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.object(visitor)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.object(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.reader.peek() {
            Some(b'"') => match self.reader.string()? {
                Cow::Borrowed(text) => visitor.visit_enum(de::value::BorrowedStrDeserializer::new(text)),
                Cow::Owned(text) => visitor.visit_enum(de::IntoDeserializer::into_deserializer(text)),
            },
            Some(b'{') => {
                self.enter()?;
                let value = visitor.visit_enum(Variant { reader: &mut *self.reader, depth: self.depth })?;
                self.reader.expect(b'}', "more than one variant")?;
                Ok(value)
            }
            _ => Err(self.mismatch(&"a string or an object")),
        }
    }

    #[inline]
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    #[inline]
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.reader.skip_value(self.depth)?;
        visitor.visit_unit()
    }
}

fn float(text: &str) -> Result<f64, Error> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err(Error::new(Kind::OutOfRange, format!("expected a 64-bit float, found {}", quoted(text)))),
    }
}

/// The fields of an object that has been entered.
struct Object<'r, 'de> {
    reader: &'r mut Reader<'de>,
    depth: usize,
    first: bool,
    ended: bool,
    /// Where the field name at hand starts: it is read again where an error asks for it.
    key: usize,
}

impl Object<'_, '_> {
    #[cold]
    fn located(&self, error: Error) -> Error {
        error.in_field(&self.reader.string_at(self.key))
    }
}

impl<'de> MapAccess<'de> for Object<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        match self.reader.peek() {
            Some(b'}') => {
                self.reader.step();
                self.ended = true;
                return Ok(None);
            }
            Some(b',') if !self.first => {
                self.reader.step();
                if self.reader.peek() != Some(b'"') {
                    return Err(self.reader.unexpected("no field name"));
                }
            }
            Some(b'"') if self.first => {}
            _ if self.first => return Err(self.reader.unexpected("no field name")),
            _ => return Err(self.reader.unexpected("no comma and no end")),
        }
        self.first = false;
        self.key = self.reader.position();
        let key = seed.deserialize(Key { reader: &mut *self.reader })?;
        self.reader.expect(b':', "no colon")?;
        Ok(Some(key))
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let value = Deserializer { reader: &mut *self.reader, depth: self.depth };
        seed.deserialize(value).map_err(|error| self.located(error))
    }
}

/// A field name: a string, which maps with number keys read as a number.
struct Key<'r, 'de> {
    reader: &'r mut Reader<'de>,
}

macro_rules! number_keys {
    ($($method:ident $number:ty => $visit:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let text = self.reader.string()?;
            match text.parse::<$number>() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(Error::invalid_type(Unexpected::Str(&text), &visitor)),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Key<'_, 'de> {
    type Error = Error;

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        Deserializer { reader: self.reader, depth: 0 }.deserialize_str(visitor)
    }

    number_keys! {
        deserialize_i8 i8 => visit_i8;
        deserialize_i16 i16 => visit_i16;
        deserialize_i32 i32 => visit_i32;
        deserialize_i64 i64 => visit_i64;
        deserialize_i128 i128 => visit_i128;
        deserialize_u8 u8 => visit_u8;
        deserialize_u16 u16 => visit_u16;
        deserialize_u32 u32 => visit_u32;
        deserialize_u64 u64 => visit_u64;
        deserialize_u128 u128 => visit_u128;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        Deserializer { reader: self.reader, depth: 0 }.deserialize_enum(name, variants, visitor)
    }

    #[inline]
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.reader.skip_string()?;
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier
    }
}

/// The elements of an array that has been entered.
struct Array<'r, 'de> {
    reader: &'r mut Reader<'de>,
    depth: usize,
    index: usize,
    ended: bool,
}

impl<'de> SeqAccess<'de> for Array<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.ended {
            return Ok(None);
        }
        match self.reader.peek() {
            Some(b']') => {
                self.reader.step();
                self.ended = true;
                return Ok(None);
            }
            Some(b',') if self.index > 0 => {
                self.reader.step();
                if self.reader.peek() == Some(b']') {
                    return Err(self.reader.fault("no JSON value"));
                }
            }
            _ if self.index == 0 => {}
            _ => return Err(self.reader.unexpected("no comma and no end")),
        }
        let index = self.index;
        self.index += 1;
        let value = Deserializer { reader: &mut *self.reader, depth: self.depth };
        seed.deserialize(value).map(Some).map_err(|error| error.in_element(index))
    }
}

/// An enum's variant with content: `{"variant": content}`.
struct Variant<'r, 'de> {
    reader: &'r mut Reader<'de>,
    depth: usize,
}

impl<'r, 'de> de::EnumAccess<'de> for Variant<'r, 'de> {
    type Error = Error;
    type Variant = Deserializer<'r, 'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self::Variant), Error> {
        if self.reader.peek() != Some(b'"') {
            return Err(self.reader.unexpected("no field name"));
        }
        let variant = seed.deserialize(Key { reader: &mut *self.reader })?;
        self.reader.expect(b':', "no colon")?;
        Ok((variant, Deserializer { reader: self.reader, depth: self.depth }))
    }
}

impl<'de> de::VariantAccess<'de> for Deserializer<'_, 'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        de::Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.array(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.object(visitor)
    }
}

//! Reader: the tokens of a JSON text, from left to right.
//!
//! Invariant: `next` never passes the end of the text, and outside of a string it stands at a
//! character boundary, since every byte that it steps over there is ASCII.
//!
//! The few functions that every token goes through are inlined whatever the compiler thinks: that
//! makes a module 5 % faster, while a higher threshold for all code makes it 40 % slower.

use std::borrow::Cow;

use super::DEEPEST;
use super::error::Error;

/// A number as written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number<'de> {
    /// An integer that fits.
    Unsigned(u64),
    /// A negative integer (or `-0`): its absolute value, if that fits.
    Negative(u64),
    /// An integer whose digits do not fit 64 bits.
    Long(&'de str),
    /// A number with a point or an exponent.
    Float(&'de str),
}

#[derive(Debug)]
pub(super) struct Reader<'de> {
    text: &'de str,
    next: usize,
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;

/// The high bit of each byte that is zero (exact up to the lowest such byte, which is what counts).
#[inline]
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGH_BITS
}

/// Eight bytes, the first the least significant.
#[inline]
fn word(bytes: &[u8], start: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(start..start + 8)?.try_into().ok()?))
}

/// How many bytes come before the first quote, backslash or control character of these eight.
#[inline]
const fn string_end(word: u64) -> usize {
    let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH_BITS;
    let quote = zero_bytes(word ^ (ONES * b'"' as u64));
    let backslash = zero_bytes(word ^ (ONES * b'\\' as u64));
    (control | quote | backslash).trailing_zeros() as usize / 8
}

/// The value and number of the digits at `start`, up to seven of them: those of eight bytes that
/// are looked at together, without a loop. (After eight digits, and near the end, it is (0, 0).)
#[inline]
fn leading_digits(bytes: &[u8], start: usize) -> (u64, usize) {
    let Some(word) = word(bytes, start) else { return (0, 0) };
    let digits = word ^ (ONES * b'0' as u64);
    let others = (digits.wrapping_add(ONES * 0x76) | digits) & HIGH_BITS;
    let length = others.trailing_zeros() as usize / 8;
    if length == 0 || length == 8 {
        return (0, 0);
    }
    // Leading zeros fill up to eight; then digits join to pairs, pairs to fours, fours to eight.
    let digits = digits << (64 - 8 * length);
    let pairs = (digits.wrapping_mul(10).wrapping_add(digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(100).wrapping_add(pairs >> 16)) & 0x0000_ffff_0000_ffff;
    let eight = fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xffff_ffff;
    (eight, length)
}

impl<'de> Reader<'de> {
    pub(super) fn new(text: &'de str) -> Self {
        Self { text, next: 0 }
    }

    /// Where the reader stands.
    #[inline]
    pub(super) fn position(&self) -> usize {
        self.next
    }

    #[inline]
    fn bytes(&self) -> &'de [u8] {
        self.text.as_bytes()
    }

    /// The text of a string token that starts (with its quote) at `start`, for messages.
    #[cold]
    pub(super) fn string_at(&self, start: usize) -> Cow<'de, str> {
        let mut reader = Reader { text: self.text, next: start };
        reader.string().unwrap_or_default()
    }

    #[cold]
    #[inline(never)]
    pub(super) fn fault(&self, message: &str) -> Error {
        Error::syntax(self.next, message)
    }

    /// Steps over white space and answers the byte that follows, without stepping over it.
    #[inline(always)]
    pub(super) fn peek(&mut self) -> Option<u8> {
        // Most tokens follow each other directly, and a loop in wasm costs a deadline check even
        // where it ends at once.
        match self.bytes().get(self.next) {
            Some(&byte) if byte > b' ' => Some(byte),
            Some(_) => self.peek_after_white_space(),
            None => None,
        }
    }

    #[inline(never)]
    fn peek_after_white_space(&mut self) -> Option<u8> {
        let bytes = self.bytes();
        while let Some(&byte) = bytes.get(self.next) {
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.next += 1;
        }
        None
    }

    /// Steps over the byte that [`peek`](Self::peek) answered.
    #[inline(always)]
    pub(super) fn step(&mut self) {
        self.next += 1;
    }

    /// Steps over `byte`, which must come next.
    #[inline(always)]
    pub(super) fn expect(&mut self, byte: u8, message: &str) -> Result<(), Error> {
        if self.peek() == Some(byte) {
            self.next += 1;
            Ok(())
        } else {
            Err(self.unexpected(message))
        }
    }

    /// What comes next is not what had to come.
    #[cold]
    #[inline(never)]
    pub(super) fn unexpected(&mut self, message: &str) -> Error {
        if self.peek().is_none() { self.fault("the document ends early") } else { self.fault(message) }
    }

    /// Nothing but white space may follow.
    #[inline]
    pub(super) fn end(&mut self) -> Result<(), Error> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.fault("something follows the document")),
        }
    }

    /// `true`, `false` or `null`.
    #[inline]
    pub(super) fn literal(&mut self, word: &str) -> Result<(), Error> {
        if self.bytes()[self.next..].starts_with(word.as_bytes()) {
            self.next += word.len();
            Ok(())
        } else {
            Err(self.fault("no JSON value"))
        }
    }

    /// Steps to the next quote, backslash or control character of a string.
    #[inline(always)]
    fn scan_string(&mut self) -> Option<u8> {
        // Short strings end within the first eight bytes, without a loop.
        match word(self.bytes(), self.next).map(string_end) {
            Some(8) => self.next += 8,
            Some(length) => {
                self.next += length;
                return Some(self.bytes()[self.next]);
            }
            None => {}
        }
        self.scan_long_string()
    }

    #[inline(never)]
    fn scan_long_string(&mut self) -> Option<u8> {
        let bytes = self.bytes();
        let mut next = self.next;
        while let Some(word) = word(bytes, next) {
            let length = string_end(word);
            next += length;
            if length < 8 {
                self.next = next;
                return Some(bytes[next]);
            }
        }
        while let Some(&byte) = bytes.get(next) {
            if byte == b'"' || byte == b'\\' || byte < 0x20 {
                self.next = next;
                return Some(byte);
            }
            next += 1;
        }
        self.next = next;
        None
    }

    /// A string; the reader stands at its opening quote. Borrowed unless it has escapes.
    #[inline(always)]
    pub(super) fn string(&mut self) -> Result<Cow<'de, str>, Error> {
        self.next += 1;
        let start = self.next;
        if self.scan_string() == Some(b'"') {
            let string = &self.text[start..self.next];
            self.next += 1;
            return Ok(Cow::Borrowed(string));
        }
        self.string_with_escapes(start).map(Cow::Owned)
    }

    /// The rest of a string whose first piece, from `start`, ended in something else than a quote.
    #[cold]
    fn string_with_escapes(&mut self, start: usize) -> Result<String, Error> {
        let mut string = self.text[start..self.next].to_owned();
        loop {
            let piece = self.next;
            let stop = self.scan_string();
            string.push_str(&self.text[piece..self.next]);
            match stop {
                Some(b'"') => {
                    self.next += 1;
                    return Ok(string);
                }
                Some(b'\\') => string.push(self.escape()?),
                Some(_) => return Err(self.fault("a control character in a string")),
                None => return Err(self.fault("the document ends early")),
            }
        }
    }

    /// An escape; the reader stands at its backslash.
    fn escape(&mut self) -> Result<char, Error> {
        let Some(&letter) = self.bytes().get(self.next + 1) else {
            self.next += 1;
            return Err(self.fault("the document ends early"));
        };
        let character = match letter {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return Err(self.fault("no such escape")),
        };
        self.next += 2;
        Ok(character)
    }

    fn unicode_escape(&mut self) -> Result<char, Error> {
        let start = self.next;
        let first = self.code_unit()?;
        let character = if (0xd800..0xdc00).contains(&first) && self.bytes().get(self.next) == Some(&b'\\') {
            let second = self.code_unit()?;
            let low = second.wrapping_sub(0xdc00);
            if low < 0x400 { char::from_u32(0x10000 + ((first - 0xd800) << 10 | low)) } else { None }
        } else {
            char::from_u32(first)
        };
        character.ok_or_else(|| {
            self.next = start;
            self.fault("half of a surrogate pair")
        })
    }

    /// `\uXXXX`.
    fn code_unit(&mut self) -> Result<u32, Error> {
        let digits = match self.bytes().get(self.next..self.next + 6) {
            Some([b'\\', b'u', digits @ ..]) => digits,
            _ => return Err(self.fault("no such escape")),
        };
        let mut value = 0;
        for &digit in digits {
            match (digit as char).to_digit(16) {
                Some(digit) => value = value << 4 | digit,
                None => return Err(self.fault("no such escape")),
            }
        }
        self.next += 6;
        Ok(value)
    }

    /// A number; the reader stands at its first digit or minus sign.
    #[inline]
    pub(super) fn number(&mut self) -> Result<Number<'de>, Error> {
        let bytes = self.bytes();
        let start = self.next;
        let negative = bytes.get(start) == Some(&b'-');
        let first = start + usize::from(negative);
        let (mut value, length) = leading_digits(bytes, first);
        let mut next = first + length;
        // Beyond 19 digits the value wraps, and is read again below.
        while let Some(digit) = digit(bytes, next) {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            next += 1;
        }
        self.next = next;
        let digits = next - first;
        if digits == 0 {
            return Err(self.unexpected_in_number());
        }
        if digits > 1 && bytes[first] == b'0' {
            self.next = first;
            return Err(self.fault("a number with a leading zero"));
        }
        if matches!(bytes.get(next), Some(b'.' | b'e' | b'E')) {
            self.fraction_and_exponent()?;
            return Ok(Number::Float(&self.text[start..self.next]));
        }
        if digits > 19 {
            match self.text[first..next].parse() {
                Ok(long) => value = long,
                Err(_) => return Ok(Number::Long(&self.text[start..next])),
            }
        }
        Ok(if negative { Number::Negative(value) } else { Number::Unsigned(value) })
    }

    #[cold]
    #[inline(never)]
    fn unexpected_in_number(&self) -> Error {
        if self.next == self.text.len() {
            self.fault("the document ends early")
        } else {
            self.fault("no JSON value")
        }
    }

    fn fraction_and_exponent(&mut self) -> Result<(), Error> {
        let bytes = self.bytes();
        if bytes.get(self.next) == Some(&b'.') {
            self.next += 1;
            self.digits()?;
        }
        if matches!(bytes.get(self.next), Some(b'e' | b'E')) {
            self.next += 1;
            if matches!(bytes.get(self.next), Some(b'+' | b'-')) {
                self.next += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Error> {
        let start = self.next;
        while digit(self.bytes(), self.next).is_some() {
            self.next += 1;
        }
        if self.next == start { Err(self.unexpected_in_number()) } else { Ok(()) }
    }

    /// Steps over one value of any kind, with `levels` around it, without recursion and without
    /// allocating.
    pub(super) fn skip_value(&mut self, levels: usize) -> Result<(), Error> {
        // One bit a level: whether it is an object.
        let mut objects: u128 = 0;
        let mut depth = 0;
        loop {
            // A value comes next.
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if levels + depth == DEEPEST {
                        return Err(self.fault("nested too deep"));
                    }
                    depth += 1;
                    objects = objects << 1 | u128::from(open == b'{');
                    self.next += 1;
                    let close = if open == b'{' { b'}' } else { b']' };
                    if self.peek() != Some(close) {
                        if open == b'{' {
                            self.skip_key()?;
                        }
                        continue;
                    }
                }
                Some(b'"') => self.skip_string()?,
                Some(b'-' | b'0'..=b'9') => {
                    self.number()?;
                }
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                _ => return Err(self.unexpected("no JSON value")),
            }
            // A value has ended, or its level is about to.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                let object = objects & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.next += 1;
                        if object {
                            self.skip_key()?;
                        }
                        break;
                    }
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    _ => return Err(self.unexpected("no comma and no end")),
                }
                self.next += 1;
                depth -= 1;
                objects >>= 1;
            }
        }
    }

    fn skip_key(&mut self) -> Result<(), Error> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("no field name"));
        }
        self.skip_string()?;
        self.expect(b':', "no colon")
    }

    /// Steps over a string, checking its escapes.
    pub(super) fn skip_string(&mut self) -> Result<(), Error> {
        self.next += 1;
        loop {
            match self.scan_string() {
                Some(b'"') => {
                    self.next += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.escape()?;
                }
                Some(_) => return Err(self.fault("a control character in a string")),
                None => return Err(self.fault("the document ends early")),
            }
        }
    }
}

#[inline]
fn digit(bytes: &[u8], index: usize) -> Option<u8> {
    bytes.get(index).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit <= 9)
}

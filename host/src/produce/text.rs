//! Text patterns: literal text with `{placeholders}`, drawn anew for each record.

use std::fmt::Write as _;

use super::random::Stream;

/// A parsed pattern, such as `P-{index:7}-{hex:4}`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct TextPattern {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// The record's index, padded with zeros to this width.
    Index(usize),
    /// That many characters, each drawn from these.
    Drawn(&'static [u8], usize),
}

const DIGITS: &[u8] = b"0123456789";
const HEX: &[u8] = b"0123456789abcdef";
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

impl TextPattern {
    /// The text for record `index`.
    pub(super) fn render(&self, index: u64, stream: &mut Stream) -> String {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Index(width) => {
                    // Writing into a String cannot fail.
                    let _ = write!(text, "{index:0width$}");
                }
                Piece::Drawn(alphabet, length) => text.extend((0..*length).map(|_| {
                    let at = stream.below(alphabet.len() as u64);
                    char::from(alphabet[usize::try_from(at).unwrap_or(0)])
                })),
            }
        }
        text
    }
}

impl TryFrom<String> for TextPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while let Some((literal, tail)) = rest.split_once('{') {
            let (placeholder, tail) =
                tail.split_once('}').ok_or_else(|| format!("`{text}` has a `{{` without its `}}`"))?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.to_owned()));
            }
            pieces.push(piece(placeholder).ok_or_else(|| {
                format!(
                    "`{{{placeholder}}}` is not a placeholder: known are {{index}}, {{index:WIDTH}}, \
                     {{digits:N}}, {{hex:N}} and {{letters:N}}, with numbers up to 1000"
                )
            })?);
            rest = tail;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.to_owned()));
        }
        Ok(Self { pieces })
    }
}

fn piece(placeholder: &str) -> Option<Piece> {
    if placeholder == "index" {
        return Some(Piece::Index(0));
    }
    let (name, number) = placeholder.split_once(':')?;
    let number = number.parse().ok().filter(|number| *number <= 1_000)?;
    match name {
        "index" => Some(Piece::Index(number)),
        "digits" => Some(Piece::Drawn(DIGITS, number)),
        "hex" => Some(Piece::Drawn(HEX, number)),
        "letters" => Some(Piece::Drawn(LETTERS, number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled() {
        let pattern = TextPattern::try_from("P-{index:5}/{digits:3}{hex:4}{letters:2}!{index}".to_owned());
        let text = pattern.unwrap().render(42, &mut Stream::new(1, 2, 3));
        let (head, tail) = text.split_at(8);
        assert_eq!((head, &tail[9..]), ("P-00042/", "!42"));
        assert!(tail[..3].bytes().all(|byte| byte.is_ascii_digit()), "{text}");
        assert!(tail[3..7].bytes().all(|byte| HEX.contains(&byte)), "{text}");
        assert!(tail[7..9].bytes().all(|byte| byte.is_ascii_lowercase()), "{text}");
    }

    #[test]
    fn mistakes_are_named() {
        for (pattern, part) in [("{indx}", "`{indx}`"), ("{digits}", "`{digits}`"), ("a{hex:2", "without")] {
            let error = TextPattern::try_from(pattern.to_owned()).unwrap_err();
            assert!(error.contains(part), "{pattern}: {error}");
        }
    }
}

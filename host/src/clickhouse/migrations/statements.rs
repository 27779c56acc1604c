//! Statements: where one ends and the next begins in a file of SQL.
//!
//! Follows ClickHouse's lexer as far as a `;` can hide: texts in `'`, `"` or backquotes with backslash
//! escapes, heredocs (`$tag$ ... $tag$`), comments (`--`, `#` at a word's start, and `/* */`, which
//! nest). Data behind `FORMAT` in an INSERT is not understood; use `VALUES` or `SELECT`.

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// As it stands in the file, comments within it included, without the `;`.
    pub sql: String,
    /// Line that its first word stands on, from 1.
    pub line: usize,
}

/// A text or comment that is not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unclosed {
    pub(super) what: &'static str,
    pub(super) line: usize,
}

/// Cuts a file into its statements; pieces of nothing but comments are dropped.
pub(super) fn split(text: &str) -> Result<Vec<Statement>, Unclosed> {
    let mut statements = Vec::new();
    // Where the statement at hand begins and where its first word is.
    let (mut start, mut first_word): (usize, Option<usize>) = (0, None);
    let mut position = 0;
    while let Some(character) = text[position..].chars().next() {
        let rest = &text[position..];
        let unclosed = |what| Unclosed { what, line: line_of(text, position) };
        let length = if let Some(length) = comment(rest).map_err(unclosed)? {
            length
        } else if character == ';' {
            if let Some(word) = first_word.take() {
                let sql = text[start..position].trim().to_owned();
                statements.push(Statement { sql, line: line_of(text, word) });
            }
            start = position + 1;
            1
        } else if character.is_whitespace() {
            character.len_utf8()
        } else {
            first_word.get_or_insert(position);
            match character {
                '\'' => quoted(rest, '\'').ok_or_else(|| unclosed("text in '"))?,
                '"' => quoted(rest, '"').ok_or_else(|| unclosed("name in \""))?,
                '`' => quoted(rest, '`').ok_or_else(|| unclosed("name in `"))?,
                '$' => heredoc(rest).map_err(unclosed)?,
                // A whole word, so that the `$` or `#` within one starts nothing.
                _ if is_word(character) => {
                    rest.find(|next| !is_word(next) && next != '$' && next != '#').unwrap_or(rest.len())
                }
                _ => character.len_utf8(),
            }
        };
        position += length;
    }
    if let Some(word) = first_word {
        statements.push(Statement { sql: text[start..].trim().to_owned(), line: line_of(text, word) });
    }
    Ok(statements)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn line_of(text: &str, position: usize) -> usize {
    text[..position].matches('\n').count() + 1
}

/// Length of the comment that `rest` begins with, if it does.
fn comment(rest: &str) -> Result<Option<usize>, &'static str> {
    if rest.starts_with("--") || rest.starts_with('#') {
        return Ok(Some(rest.find('\n').unwrap_or(rest.len())));
    }
    if !rest.starts_with("/*") {
        return Ok(None);
    }
    let (mut depth, mut position) = (0, 0);
    while position < rest.len() {
        let here = &rest[position..];
        if here.starts_with("/*") {
            (depth, position) = (depth + 1, position + 2);
        } else if here.starts_with("*/") {
            (depth, position) = (depth - 1, position + 2);
            if depth == 0 {
                return Ok(Some(position));
            }
        } else {
            position += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    Err("comment in /* */")
}

/// Length of the text in quotes that `rest` begins with. A doubled quote is two texts in a row,
/// which is as good for finding the end.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    while let Some((index, character)) = characters.next() {
        if character == '\\' {
            characters.next();
        } else if character == quote {
            return Some(index + 1);
        }
    }
    None
}

/// Length of the heredoc that `rest` begins with, or of the lone `$`.
fn heredoc(rest: &str) -> Result<usize, &'static str> {
    let tag = match rest[1..].find(|character| !is_word(character)) {
        Some(end) if rest[1 + end..].starts_with('$') => &rest[..end + 2],
        _ => return Ok(1),
    };
    let end = rest[tag.len()..].find(tag).ok_or("heredoc")?;
    Ok(end + 2 * tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(String, usize)> {
        split(text).unwrap().into_iter().map(|statement| (statement.sql, statement.line)).collect()
    }

    #[test]
    fn a_semicolon_ends_a_statement_only_where_it_is_one() {
        for whole in [
            "SELECT 1",
            "SELECT ';', 'it''s; ', 'a\\';'",
            "SELECT `a;\\`;b`, \"c;\"",
            "SELECT $$a;'b$$, $tag$ ; $$ ; $tag$",
            "SELECT 1 -- one; two",
            "SELECT 1 # one; two",
            "SELECT /* a; /* b; */ c; */ 1",
            "SELECT a$b, 'x'",
            "SELECT 'ä;', x_ö",
        ] {
            assert_eq!(cut(whole), [(whole.to_owned(), 1)], "{whole}");
            assert_eq!(cut(&format!("{whole}\n;SELECT 2;")), [(whole.into(), 1), ("SELECT 2".into(), 2)]);
        }
    }

    #[test]
    fn pieces_without_a_word_are_none_and_lines_are_counted() {
        assert_eq!(cut(""), []);
        assert_eq!(cut(" ; -- nothing; \n;; /* nothing */ ;"), []);
        let text = "-- What for.\nCREATE TABLE a\n(x UInt8);\n\n-- And; why.\n  ALTER TABLE a; -- end";
        assert_eq!(
            cut(text),
            [
                ("-- What for.\nCREATE TABLE a\n(x UInt8)".into(), 2),
                ("-- And; why.\n  ALTER TABLE a".into(), 6)
            ]
        );
    }

    #[test]
    fn what_is_not_closed_is_told() {
        for (text, what) in [
            ("SELECT 1;\nSELECT 'a", "text in '"),
            ("SELECT 1;\nSELECT `a\\`", "name in `"),
            ("SELECT 1;\nSELECT \"a", "name in \""),
            ("SELECT 1;\n/* a /* b */", "comment in /* */"),
            ("SELECT 1;\nSELECT $a$ $b$", "heredoc"),
        ] {
            assert_eq!(split(text), Err(Unclosed { what, line: 2 }), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_cut_or_refused(text in "(a|;|'|`|\"|\\\\|-|/|\\*|#|\\$|\n| |ä){0,32}") {
            if let Ok(statements) = split(&text) {
                for Statement { sql, .. } in statements {
                    proptest::prop_assert!(text.contains(&sql) && !sql.trim().is_empty());
                }
            }
        }
    }
}

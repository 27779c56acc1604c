//! Reads just enough of a statement to know what to do with it: where the data of an INSERT starts
//! and in which format it is, which format an answer has, and that there is one statement only.
//!
//! The data of an INSERT must not reach the SQL parser, which has a limit on length and gives up on
//! binary, so the text is cut here. Everything else is left to ClickHouse, errors included.

use std::ops::Range;

use crate::embedded::libchdb::Exception;

/// What a statement turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement {
    /// Nothing but spaces and comments.
    Empty,
    /// An INSERT whose data follows.
    Insert(Insert),
    /// Anything else, INSERT ... SELECT among it.
    Query {
        /// The format that it asks for.
        format: Option<String>,
    },
}

/// The head of an INSERT.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Insert {
    /// The statement without FORMAT, VALUES and data.
    pub(super) sql: Vec<u8>,
    /// Format of the data; none where the statement does not say.
    pub(super) format: Option<String>,
    /// Where in the text the data starts.
    pub(super) data_start: usize,
}

/// Reads `text`, of which only the head of an INSERT has to be SQL.
pub(super) fn read(text: &[u8]) -> Result<Statement, Exception> {
    let mut tokens = Tokens { text, position: 0 };
    let Some(first) = tokens.next() else { return Ok(Statement::Empty) };
    if tokens.is_word(&first, "INSERT")
        && let Some(insert) = read_insert(tokens.clone())
    {
        return Ok(Statement::Insert(insert));
    }
    read_query(Tokens { text, position: 0 })
}

fn read_insert(mut tokens: Tokens<'_>) -> Option<Insert> {
    let text = tokens.text;
    let mut token = tokens.next()?;
    if tokens.is_word(&token, "INTO") {
        token = tokens.next()?;
    }
    if tokens.is_word(&token, "TABLE") {
        token = tokens.next()?;
    }
    if tokens.is_word(&token, "FUNCTION") {
        tokens.next()?;
    }
    // `token` is a name now, whatever it looks like: a table may be called `values`. A name after a
    // dot belongs to it.
    let mut depth = 0_usize;
    let mut after_dot = false;
    let mut first_of_group = false;
    while let Some(token) = tokens.next() {
        match token.kind {
            Kind::Symbol(b'(') => {
                depth += 1;
                first_of_group = true;
                continue;
            }
            Kind::Symbol(b')') => depth = depth.saturating_sub(1),
            Kind::Word if after_dot => {}
            Kind::Word
                if first_of_group && (tokens.is_word(&token, "SELECT") || tokens.is_word(&token, "WITH")) =>
            {
                return None;
            }
            Kind::Word if depth == 0 => {
                let head = text[..token.range.start].to_vec();
                if tokens.is_word(&token, "VALUES") {
                    let format = Some("Values".to_owned());
                    return Some(Insert { sql: head, format, data_start: token.range.end });
                }
                if tokens.is_word(&token, "FORMAT") {
                    return read_format(head, tokens);
                }
                if ["SELECT", "WITH", "FROM", "WATCH"].iter().any(|word| tokens.is_word(&token, word)) {
                    return None;
                }
            }
            // Settled by ClickHouse's own parser.
            Kind::Symbol(b';') if depth == 0 => return None,
            _ => {}
        }
        first_of_group = false;
        after_dot = token.kind == Kind::Symbol(b'.');
    }
    Some(Insert { sql: text.to_vec(), format: None, data_start: text.len() })
}

/// Reads `Name [SETTINGS name = value, ...]` after FORMAT.
fn read_format(mut sql: Vec<u8>, mut tokens: Tokens<'_>) -> Option<Insert> {
    let text = tokens.text;
    let name = tokens.next().filter(|token| token.kind == Kind::Word)?;
    let mut end = name.range.end;
    let mut ahead = tokens.clone();
    if let Some(settings) = ahead.next().filter(|token| ahead.is_word(token, "SETTINGS")) {
        loop {
            let setting = ahead.next()?;
            let equals = ahead.next()?;
            if setting.kind != Kind::Word || equals.kind != Kind::Symbol(b'=') {
                return None;
            }
            let mut value = ahead.next()?;
            if matches!(value.kind, Kind::Symbol(b'-' | b'+')) {
                value = ahead.next()?;
            }
            end = value.range.end;
            let mut comma = ahead.clone();
            match comma.next() {
                Some(token) if token.kind == Kind::Symbol(b',') => ahead = comma,
                _ => break,
            }
        }
        sql.extend_from_slice(&text[settings.range.start..end]);
    }
    let format = String::from_utf8_lossy(&text[name.range]).into_owned();
    Some(Insert { sql, format: Some(format), data_start: end + separator_bytes(&text[end..]) })
}

/// What stands between a format's name and the data: an optional semicolon, then spaces up to and
/// with the first line end. The same rule as ClickHouse's.
fn separator_bytes(text: &[u8]) -> usize {
    let mut at = 0;
    let next_is = |at: usize, bytes: &[u8]| text.get(at).is_some_and(|byte| bytes.contains(byte));
    at += usize::from(next_is(at, b";"));
    while next_is(at, b" \t\x0c") {
        at += 1;
    }
    at += usize::from(next_is(at, b"\r"));
    at + usize::from(next_is(at, b"\n"))
}

fn read_query(mut tokens: Tokens<'_>) -> Result<Statement, Exception> {
    let mut depth = 0_usize;
    let mut format = None;
    while let Some(token) = tokens.next() {
        match token.kind {
            Kind::Symbol(b'(' | b'[' | b'{') => depth += 1,
            Kind::Symbol(b')' | b']' | b'}') => depth = depth.saturating_sub(1),
            Kind::Symbol(b';') if depth == 0 => {
                let mut rest = tokens.clone();
                if rest.any(|token| token.kind != Kind::Symbol(b';')) {
                    let message = format!(
                        "Syntax error (Multi-statements are not allowed): failed at position {}",
                        token.range.start + 1
                    );
                    return Err(Exception::new(62, "SYNTAX_ERROR", message));
                }
            }
            Kind::Word if depth == 0 && tokens.is_word(&token, "FORMAT") => {
                let mut ahead = tokens.clone();
                format = ahead
                    .next()
                    .filter(|name| name.kind == Kind::Word)
                    .map(|name| String::from_utf8_lossy(&tokens.text[name.range]).into_owned());
            }
            _ => {}
        }
    }
    Ok(Statement::Query { format })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A bare word or a number.
    Word,
    /// A string, or a quoted name.
    Quoted,
    Symbol(u8),
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    range: Range<usize>,
}

/// The tokens of a statement; comments and spaces are skipped, strings are one token.
#[derive(Clone)]
struct Tokens<'a> {
    text: &'a [u8],
    position: usize,
}

impl Tokens<'_> {
    fn is_word(&self, token: &Token, word: &str) -> bool {
        token.kind == Kind::Word && self.text[token.range.clone()].eq_ignore_ascii_case(word.as_bytes())
    }

    /// Moves behind the next `end`, or to the end of the text.
    fn skip_past(&mut self, end: &[u8]) {
        let rest = &self.text[self.position..];
        let found = rest.windows(end.len()).position(|window| window == end);
        self.position += found.map_or(rest.len(), |at| at + end.len());
    }

    fn skip_spaces_and_comments(&mut self) {
        loop {
            match &self.text[self.position..] {
                [space, ..] if space.is_ascii_whitespace() || *space == 0x0b => self.position += 1,
                [b'-', b'-', ..] | [b'#', b'!' | b' ', ..] => self.skip_past(b"\n"),
                [b'/', b'*', ..] => {
                    self.position += 2;
                    self.skip_past(b"*/");
                }
                _ => return,
            }
        }
    }

    /// Moves behind a string that starts here. A backslash escapes; a doubled quote reads as two
    /// strings side by side, which is as good here.
    fn skip_quoted(&mut self, quote: u8) {
        self.position += 1;
        while let Some(&byte) = self.text.get(self.position) {
            self.position += if byte == b'\\' { 2 } else { 1 };
            if byte == quote {
                break;
            }
        }
        self.position = self.position.min(self.text.len());
    }

    /// Moves behind a `$tag$ ... $tag$` string that starts here, if one does.
    fn skip_heredoc(&mut self) -> bool {
        let rest = &self.text[self.position..];
        let tag = rest[1..].iter().position(|&byte| !is_word_byte(byte) || byte == b'$');
        match tag {
            Some(length) if rest[1 + length] == b'$' => {
                let tag = rest[..length + 2].to_vec();
                self.position += tag.len();
                self.skip_past(&tag);
                true
            }
            _ => false,
        }
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        self.skip_spaces_and_comments();
        let start = self.position;
        let byte = *self.text.get(start)?;
        let kind = match byte {
            b'\'' | b'"' | b'`' => {
                self.skip_quoted(byte);
                Kind::Quoted
            }
            b'$' if self.skip_heredoc() => Kind::Quoted,
            _ if is_word_byte(byte) => {
                let rest = &self.text[start..];
                self.position += rest.iter().position(|&byte| !is_word_byte(byte)).unwrap_or(rest.len());
                Kind::Word
            }
            _ => {
                self.position += 1;
                Kind::Symbol(byte)
            }
        };
        Some(Token { kind, range: start..self.position })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(text: &str) -> (String, Option<String>, String) {
        match read(text.as_bytes()).unwrap() {
            Statement::Insert(insert) => {
                (String::from_utf8(insert.sql).unwrap(), insert.format, text[insert.data_start..].to_owned())
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    fn format(text: &str) -> Option<String> {
        match read(text.as_bytes()).unwrap() {
            Statement::Query { format } => format,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_data_of_an_insert_is_cut_off() {
        let expect = |text: &str, sql: &str, format: &str, data: &str| {
            assert_eq!(insert(text), (sql.into(), Some(format.into()), data.into()), "{text}");
        };
        expect("INSERT INTO t(`a`,`b`) FORMAT RowBinary", "INSERT INTO t(`a`,`b`) ", "RowBinary", "");
        expect("INSERT INTO t FORMAT RowBinary\n\n\u{1}", "INSERT INTO t ", "RowBinary", "\n\u{1}");
        expect("insert into d.t format CSV; \r\n 1", "insert into d.t ", "CSV", " 1");
        expect("INSERT INTO t FORMAT JSONEachRow {\"a\":1}", "INSERT INTO t ", "JSONEachRow", "{\"a\":1}");
        expect("INSERT INTO t (a) VALUES (';'), (2);", "INSERT INTO t (a) ", "Values", " (';'), (2);");
        expect("INSERT INTO values.format VALUES(1)", "INSERT INTO values.format ", "Values", "(1)");
        expect("INSERT INTO format FORMAT CSV\n1", "INSERT INTO format ", "CSV", "1");
        expect(
            "INSERT INTO `a b`.\"VALUES\" /* VALUES */ VALUES (1)",
            "INSERT INTO `a b`.\"VALUES\" /* VALUES */ ",
            "Values",
            " (1)",
        );
        expect(
            "-- FORMAT X\nINSERT t SETTINGS a='VALUES', b=1 FORMAT X\n",
            "-- FORMAT X\nINSERT t SETTINGS a='VALUES', b=1 ",
            "X",
            "",
        );
        expect(
            "INSERT INTO t FORMAT X SETTINGS a = -1, b='c d' \ndata",
            "INSERT INTO t SETTINGS a = -1, b='c d'",
            "X",
            "data",
        );
        expect(
            "INSERT INTO TABLE FUNCTION file('x', 'CSV') VALUES (1)",
            "INSERT INTO TABLE FUNCTION file('x', 'CSV') ",
            "Values",
            " (1)",
        );
        expect(
            "INSERT INTO t (* EXCEPT(values)) VALUES (1)",
            "INSERT INTO t (* EXCEPT(values)) ",
            "Values",
            " (1)",
        );
        assert_eq!(insert("INSERT INTO t (a)"), ("INSERT INTO t (a)".into(), None, String::new()));
    }

    #[test]
    fn an_insert_of_a_select_is_a_query() {
        for text in [
            "INSERT INTO t SELECT 1",
            "INSERT INTO t (a) WITH 1 AS x SELECT x",
            "INSERT INTO t (SELECT 1)",
            "INSERT INTO t (a) SELECT a FROM input('a Int8') FORMAT CSV\n1",
            "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
        ] {
            assert!(matches!(read(text.as_bytes()).unwrap(), Statement::Query { .. }), "{text}");
        }
    }

    #[test]
    fn the_format_of_an_answer_is_found() {
        assert_eq!(format("SELECT 1 FORMAT JSON"), Some("JSON".into()));
        assert_eq!(format("SELECT 1 format JSON;"), Some("JSON".into()));
        assert_eq!(
            format("SELECT 'FORMAT JSON', $$ FORMAT CSV $$, (SELECT format FROM t) -- FORMAT XML"),
            None
        );
        assert_eq!(format("SELECT {format:String} FORMAT Null SETTINGS max_threads=1"), Some("Null".into()));
        assert_eq!(format("SHOW CREATE TABLE t"), None);
    }

    #[test]
    fn one_statement_only() {
        assert_eq!(read(b"SELECT 1; SELECT 2").unwrap_err().code, 62);
        assert_eq!(format("SELECT ';' ; ; -- ; SELECT\n"), None);
        assert_eq!(read(b" /* ; */ -- x").unwrap(), Statement::Empty);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, head in "(INSERT INTO t |SELECT |)(FORMAT |VALUES|\\$a|'|`|/\\*|\\(|SETTINGS a=|;|--| |\n){0,6}") {
            let text = [head.as_bytes(), &bytes].concat();
            if let Ok(Statement::Insert(insert)) = read(&text) {
                proptest::prop_assert!(insert.data_start <= text.len());
                proptest::prop_assert!(text.starts_with(b"INSERT"));
            }
        }

        /// What a string or a comment holds is never taken for a part of the statement.
        #[test]
        fn strings_and_comments_hide_their_text(inner in "(FORMAT X|VALUES|SELECT|;| |a|\\(){0,5}") {
            for quoted in [format!("'{inner}'"), format!("`{inner}`"), format!("/*{inner}*/"), format!("--{inner}\n")] {
                let text = format!("INSERT INTO t (a {quoted}) SETTINGS x={quoted} FORMAT CSV\n{inner}");
                let insert_ = insert(&text);
                proptest::prop_assert_eq!(insert_.1.as_deref(), Some("CSV"));
                proptest::prop_assert_eq!(insert_.2, inner.clone());
            }
        }
    }
}

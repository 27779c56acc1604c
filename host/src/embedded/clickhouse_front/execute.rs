//! One request against the engine, on a connection of its own.
//!
//! A connection made for the request (half a millisecond) is what restores settings, the current
//! database and temporary tables afterwards: nothing of a request can outlive it.

use bytes::Bytes;

use super::compression;
use super::request::Call;
use super::statement::{self, Insert, Statement};
use crate::embedded::libchdb::{Answer, Connection, Engine, Exception};

/// ClickHouse's format for an answer where nobody names one.
const DEFAULT_FORMAT: &str = "TabSeparated";

/// A statement that succeeded.
pub(super) struct Executed {
    /// What the engine answered; nothing for an empty request.
    pub(super) answer: Option<Answer>,
    /// Format of the answer.
    pub(super) format: String,
}

/// Limits of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Largest body, compressed and unpacked.
    pub(super) body_bytes: usize,
    /// Largest answer, as ClickHouse counts `max_result_bytes`.
    pub(super) result_bytes: u64,
}

/// Runs the request. Blocks until ClickHouse is done.
pub(super) fn execute(
    engine: &Engine,
    call: &Call,
    body: &Bytes,
    limits: Limits,
) -> Result<Executed, Exception> {
    // All blocks are checked before the first byte reaches the engine.
    let unpacked = match call.decompress {
        true => Some(compression::decompress(body, limits.body_bytes)?),
        false => None,
    };
    let pieces: Vec<&[u8]> = match &unpacked {
        Some(blocks) => blocks.iter().map(Vec::as_slice).collect(),
        None => vec![body.as_ref()],
    };
    match statement::read(&call.query)? {
        // The usual INSERT: the statement in the URL, the data in the body, which is never copied.
        Statement::Insert(insert) if format_of(&insert, call).is_some() => {
            run_insert(engine, call, &call.query, insert, &pieces, limits)
        }
        _ => {
            let text = [&[call.query.as_slice()], pieces.as_slice()].concat().concat();
            match statement::read(&text)? {
                Statement::Empty if call.read_only => {
                    Ok(Executed { answer: None, format: DEFAULT_FORMAT.to_owned() })
                }
                Statement::Empty => Err(Exception::new(62, "SYNTAX_ERROR", "Empty query")),
                Statement::Insert(insert) if format_of(&insert, call).is_some() => {
                    run_insert(engine, call, &text, insert, &[], limits)
                }
                Statement::Insert(_) => run_query(engine, call, &text, None, limits),
                Statement::Query { format } => run_query(engine, call, &text, format, limits),
            }
        }
    }
}

/// The format of an INSERT's data.
fn format_of(insert: &Insert, call: &Call) -> Option<String> {
    insert.format.clone().or_else(|| call.default_format.clone())
}

fn run_insert(
    engine: &Engine,
    call: &Call,
    text: &[u8],
    insert: Insert,
    body: &[&[u8]],
    limits: Limits,
) -> Result<Executed, Exception> {
    let Some(format) = format_of(&insert, call) else { return run_query(engine, call, text, None, limits) };
    if format.eq_ignore_ascii_case("Values") && !call.parameters.is_empty() {
        // Only the SQL parser knows parameters among values.
        let text = [&[text], body].concat().concat();
        return run_query(engine, call, &text, None, limits);
    }
    let mut connection = open(engine, call, limits)?;
    let pieces = std::iter::once(&text[insert.data_start..]).chain(body.iter().copied());
    let answer = connection.insert(&insert.sql, &format, &call.parameters, pieces)?;
    Ok(Executed { answer: Some(answer), format: DEFAULT_FORMAT.to_owned() })
}

fn run_query(
    engine: &Engine,
    call: &Call,
    text: &[u8],
    format: Option<String>,
    limits: Limits,
) -> Result<Executed, Exception> {
    let default_format = call.default_format.as_deref().unwrap_or(DEFAULT_FORMAT);
    let mut connection = open(engine, call, limits)?;
    let answer = connection.query(text, default_format, &call.parameters)?;
    Ok(Executed { answer: Some(answer), format: format.unwrap_or_else(|| default_format.to_owned()) })
}

/// A connection with the request's database and settings.
fn open(engine: &Engine, call: &Call, limits: Limits) -> Result<Connection, Exception> {
    let mut connection = engine.connect().map_err(|error| {
        Exception::new(1002, "UNKNOWN_EXCEPTION", format!("Cannot open a connection: {error}"))
    })?;
    if let Some(database) = &call.database {
        connection.query(format!("USE {}", quoted(database, '`')).as_bytes(), DEFAULT_FORMAT, &[])?;
    }
    // The library takes a bare expression for a SELECT; a server answers a syntax error. An answer
    // above the limit is an exception, not memory. The request's own settings come after, and win.
    let mut settings = format!(
        "SET implicit_select = 0, max_result_bytes = {}, result_overflow_mode = 'throw'",
        limits.result_bytes
    );
    for (name, value) in &call.settings {
        settings.push_str(&format!(", {name} = {}", quoted(value, '\'')));
    }
    connection.query(settings.as_bytes(), DEFAULT_FORMAT, &[])?;
    if call.read_only {
        connection.query(b"SET readonly = 2", DEFAULT_FORMAT, &[])?;
    }
    Ok(connection)
}

fn quoted(text: &str, quote: char) -> String {
    let mut quoted = String::from(quote);
    for character in text.chars() {
        if character == quote || character == '\\' {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push(quote);
    quoted
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_value_cannot_leave_its_quotes() {
        assert_eq!(quoted(r"it's \' ", '\''), r"'it\'s \\\' '");
        assert_eq!(quoted("a`b", '`'), r"`a\`b`");
    }
}

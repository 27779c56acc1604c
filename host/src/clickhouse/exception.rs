//! Exception: what an error of ClickHouse, or of the way to it, says about trying again.
//!
//! Codes are those of ClickHouse's `ErrorCodes.cpp`. The rule that decides in doubt: *an error is
//! permanent only if it is about the data that was sent.* A permanent error has the batch cut into
//! smaller ones until the record at fault is alone and becomes a dead letter; calling an outage or a
//! mistake in a table's definition permanent would therefore dead-letter every good record that comes
//! by. Calling a data error retryable only stops the pipeline, which says so, and loses nothing. So
//! every code that is not listed is retried.

use std::error::Error as _;

use clickhouse::error::Error;

use super::table_name::NoTableName;
use crate::domain::retry::Retryability;
use crate::pipeline::ports::InsertError;

/// What kind of error it is, and so who mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The server is away, overloaded or unsure: waiting mends it.
    Server,
    /// The table or database is not what it was: its owner mends it, and the rows go on as they are.
    Schema,
    /// The server knows us and says no: user, password, rights, quotas.
    Access,
    /// The table has the rows, and a materialized view behind it refuses them: its owner mends it, and
    /// the same token then brings them to the view alone. Cut into pieces, under tokens of their own,
    /// the table would take them again.
    View,
    /// The rows themselves.
    Data,
    /// A code that this table does not know.
    Unknown,
}

impl ErrorKind {
    /// Whether to send the same bytes again.
    pub fn retryability(self) -> Retryability {
        match self {
            Self::Data => Retryability::Permanent,
            Self::Server | Self::Schema | Self::Access | Self::View | Self::Unknown => Retryability::Retry,
        }
    }

    /// What to do about it, for the end of a message.
    pub fn cure(self) -> &'static str {
        match self {
            Self::Server => "it is tried again until ClickHouse takes it",
            Self::Schema => {
                "mend the table (`sluice check` says what differs); the rows wait and go on by themselves"
            }
            Self::Access => "check clickhouse.user, its password and its rights; the rows wait",
            Self::View => {
                "mend the materialized view or drop it; the rows wait, and go on to it without a repetition in \
                 the table"
            }
            Self::Data => "the records at fault go to the dead-letter topic",
            Self::Unknown => "it is tried again; if it stays, look for the cause in ClickHouse's log",
        }
    }
}

/// Code, name in ClickHouse, kind, and why it is that.
pub const CODES: &[(i32, &str, ErrorKind, &str)] = &[
    // Server: outages, overload, replication, and whatever leaves it open whether the rows are there.
    (3, "UNEXPECTED_END_OF_FILE", ErrorKind::Server, "the request was cut off on its way"),
    (74, "CANNOT_READ_FROM_FILE_DESCRIPTOR", ErrorKind::Server, "a disk of the server"),
    (75, "CANNOT_WRITE_TO_FILE_DESCRIPTOR", ErrorKind::Server, "a disk of the server"),
    (76, "CANNOT_OPEN_FILE", ErrorKind::Server, "a disk of the server"),
    (95, "CANNOT_READ_FROM_SOCKET", ErrorKind::Server, "a connection of the server broke"),
    (96, "CANNOT_WRITE_TO_SOCKET", ErrorKind::Server, "a connection of the server broke"),
    (107, "FILE_DOESNT_EXIST", ErrorKind::Server, "a part was merged away under the insert"),
    (159, "TIMEOUT_EXCEEDED", ErrorKind::Server, "the server was too slow this time"),
    (160, "TOO_SLOW", ErrorKind::Server, "the server expects to be too slow this time"),
    (173, "CANNOT_ALLOCATE_MEMORY", ErrorKind::Server, "the server is short of memory"),
    (198, "DNS_ERROR", ErrorKind::Server, "the server does not find a host"),
    (202, "TOO_MANY_SIMULTANEOUS_QUERIES", ErrorKind::Server, "overload"),
    (203, "NO_FREE_CONNECTION", ErrorKind::Server, "overload"),
    (209, "SOCKET_TIMEOUT", ErrorKind::Server, "the network or a replica is slow"),
    (210, "NETWORK_ERROR", ErrorKind::Server, "the network"),
    (216, "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING", ErrorKind::Server, "the attempt before is still running"),
    (225, "NO_ZOOKEEPER", ErrorKind::Server, "Keeper is away"),
    (236, "ABORTED", ErrorKind::Server, "the server is shutting down"),
    (241, "MEMORY_LIMIT_EXCEEDED", ErrorKind::Server, "the server is short of memory at the moment"),
    (242, "TABLE_IS_READ_ONLY", ErrorKind::Server, "the replica lost Keeper, and comes back when it has it"),
    (243, "NOT_ENOUGH_SPACE", ErrorKind::Server, "the disk is full"),
    (244, "UNEXPECTED_ZOOKEEPER_ERROR", ErrorKind::Server, "Keeper"),
    (252, "TOO_MANY_PARTS", ErrorKind::Server, "merges lag behind; but see `of_exception`"),
    (279, "ALL_CONNECTION_TRIES_FAILED", ErrorKind::Server, "no replica answers"),
    (285, "TOO_FEW_LIVE_REPLICAS", ErrorKind::Server, "a quorum needs more replicas"),
    (
        286,
        "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE",
        ErrorKind::Server,
        "the insert before waits for its quorum",
    ),
    (289, "REPLICA_IS_NOT_IN_QUORUM", ErrorKind::Server, "the replica catches up"),
    (319, "UNKNOWN_STATUS_OF_INSERT", ErrorKind::Server, "the rows may be there; the token decides"),
    (341, "UNFINISHED", ErrorKind::Server, "something else has to end first"),
    (364, "RECEIVED_ERROR_TOO_MANY_REQUESTS", ErrorKind::Server, "the object store or a proxy is overloaded"),
    (369, "ALL_REPLICAS_ARE_STALE", ErrorKind::Server, "replicas catch up"),
    (373, "SESSION_IS_LOCKED", ErrorKind::Server, "the session is in use"),
    (394, "QUERY_WAS_CANCELLED", ErrorKind::Server, "an operator or the server killed the query"),
    (412, "NETLINK_ERROR", ErrorKind::Server, "the server's system"),
    (415, "ALL_REPLICAS_LOST", ErrorKind::Server, "no replica is left"),
    (416, "REPLICA_STATUS_CHANGED", ErrorKind::Server, "the replica changed its state meanwhile"),
    (425, "SYSTEM_ERROR", ErrorKind::Server, "the server's system"),
    (439, "CANNOT_SCHEDULE_TASK", ErrorKind::Server, "no thread is free"),
    (473, "DEADLOCK_AVOIDED", ErrorKind::Server, "another statement holds the table"),
    (499, "S3_ERROR", ErrorKind::Server, "the object store"),
    (700, "USER_SESSION_LIMIT_EXCEEDED", ErrorKind::Server, "overload"),
    (733, "TABLE_IS_BEING_RESTARTED", ErrorKind::Server, "the table comes back"),
    (745, "SERVER_OVERLOADED", ErrorKind::Server, "overload"),
    (999, "KEEPER_EXCEPTION", ErrorKind::Server, "Keeper"),
    (1000, "POCO_EXCEPTION", ErrorKind::Server, "network or system, below ClickHouse's own code"),
    (1001, "STD_EXCEPTION", ErrorKind::Server, "system, below ClickHouse's own code"),
    // Schema: changed under us, or not there yet. The rows are as good as they were.
    (10, "NOT_FOUND_COLUMN_IN_BLOCK", ErrorKind::Schema, "a materialized view lacks a column"),
    (16, "NO_SUCH_COLUMN_IN_TABLE", ErrorKind::Schema, "the table lost a column"),
    (20, "NUMBER_OF_COLUMNS_DOESNT_MATCH", ErrorKind::Schema, "a materialized view and its target differ"),
    (43, "ILLEGAL_TYPE_OF_ARGUMENT", ErrorKind::Schema, "an expression of the table or a view"),
    (44, "ILLEGAL_COLUMN", ErrorKind::Schema, "the column became MATERIALIZED or ALIAS"),
    (46, "UNKNOWN_FUNCTION", ErrorKind::Schema, "an expression of the table or a view"),
    (47, "UNKNOWN_IDENTIFIER", ErrorKind::Schema, "an expression of the table or a view"),
    (48, "NOT_IMPLEMENTED", ErrorKind::Schema, "the table's engine takes no inserts"),
    (60, "UNKNOWN_TABLE", ErrorKind::Schema, "the table is not there"),
    (81, "UNKNOWN_DATABASE", ErrorKind::Schema, "the database is not there"),
    (115, "UNKNOWN_SETTING", ErrorKind::Schema, "the server is older than a setting"),
    (218, "TABLE_IS_DROPPED", ErrorKind::Schema, "the table was dropped just now"),
    (774, "TABLE_IS_PERMANENTLY_READ_ONLY", ErrorKind::Schema, "the table's setting table_readonly"),
    // Access.
    (164, "READONLY", ErrorKind::Access, "the user or server is read-only, or settings may not be changed"),
    (192, "UNKNOWN_USER", ErrorKind::Access, "user"),
    (193, "WRONG_PASSWORD", ErrorKind::Access, "password"),
    (194, "REQUIRED_PASSWORD", ErrorKind::Access, "password"),
    (195, "IP_ADDRESS_NOT_ALLOWED", ErrorKind::Access, "the user may not come from here"),
    (201, "QUOTA_EXCEEDED", ErrorKind::Access, "the user's quota; it is renewed with time"),
    (291, "DATABASE_ACCESS_DENIED", ErrorKind::Access, "rights"),
    (492, "ACCESS_ENTITY_NOT_FOUND", ErrorKind::Access, "user or role"),
    (497, "ACCESS_DENIED", ErrorKind::Access, "rights"),
    (516, "AUTHENTICATION_FAILED", ErrorKind::Access, "user or password"),
    // Data: the bytes that we sent cannot be read as the columns that we named, or break a rule.
    // The sink asks the table again before it believes them (`sink`): a changed column looks the same.
    (6, "CANNOT_PARSE_TEXT", ErrorKind::Data, "the rows cannot be read"),
    (25, "CANNOT_PARSE_ESCAPE_SEQUENCE", ErrorKind::Data, "the rows cannot be read"),
    (26, "CANNOT_PARSE_QUOTED_STRING", ErrorKind::Data, "the rows cannot be read"),
    (27, "CANNOT_PARSE_INPUT_ASSERTION_FAILED", ErrorKind::Data, "the rows cannot be read"),
    (32, "ATTEMPT_TO_READ_AFTER_EOF", ErrorKind::Data, "the rows end within a row"),
    (33, "CANNOT_READ_ALL_DATA", ErrorKind::Data, "the rows end within a row"),
    (38, "CANNOT_PARSE_DATE", ErrorKind::Data, "a value cannot be read"),
    (41, "CANNOT_PARSE_DATETIME", ErrorKind::Data, "a value cannot be read"),
    (53, "TYPE_MISMATCH", ErrorKind::Data, "a value does not fit its column"),
    (69, "ARGUMENT_OUT_OF_BOUND", ErrorKind::Data, "a value is out of range"),
    (70, "CANNOT_CONVERT_TYPE", ErrorKind::Data, "a value does not fit its column"),
    (72, "CANNOT_PARSE_NUMBER", ErrorKind::Data, "a value cannot be read"),
    (117, "INCORRECT_DATA", ErrorKind::Data, "the rows cannot be read"),
    (128, "TOO_LARGE_ARRAY_SIZE", ErrorKind::Data, "an array is longer than ClickHouse takes"),
    (131, "TOO_LARGE_STRING_SIZE", ErrorKind::Data, "a string is longer than ClickHouse takes"),
    (
        153,
        "ILLEGAL_DIVISION",
        ErrorKind::Data,
        "an expression of the table or a view divides by a zero of the row",
    ),
    (190, "SIZES_OF_ARRAYS_DONT_MATCH", ErrorKind::Data, "arrays of one Nested column differ in length"),
    (248, "INVALID_PARTITION_VALUE", ErrorKind::Data, "a value makes no partition key"),
    (321, "VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE", ErrorKind::Data, "a value is out of range"),
    (349, "CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN", ErrorKind::Data, "a null where the column has none"),
    (
        395,
        "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO",
        ErrorKind::Data,
        "a rule of the table or a view refuses the row",
    ),
    (407, "DECIMAL_OVERFLOW", ErrorKind::Data, "a decimal is out of range"),
    (467, "CANNOT_PARSE_BOOL", ErrorKind::Data, "a value cannot be read"),
    (469, "VIOLATED_CONSTRAINT", ErrorKind::Data, "a CONSTRAINT of the table refuses the row"),
    (675, "CANNOT_PARSE_IPV4", ErrorKind::Data, "a value cannot be read"),
    (676, "CANNOT_PARSE_IPV6", ErrorKind::Data, "a value cannot be read"),
    (691, "UNKNOWN_ELEMENT_OF_ENUM", ErrorKind::Data, "a value is not among those of the Enum"),
];

/// Longest part of a server's message that ours repeats, in bytes.
const SHOWN_BYTES: usize = 600;

/// An error of a statement, judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {}", kind.cure())]
pub struct ServerError {
    /// What kind of error, and so who mends it.
    pub kind: ErrorKind,
    /// ClickHouse's exception code, where it answered with one.
    pub code: Option<i32>,
    /// What happened, in the server's or the transport's words, shortened.
    pub message: String,
}

impl ServerError {
    /// Whether ClickHouse answered with this code.
    pub fn has_code(&self, code: i32) -> bool {
        self.code == Some(code)
    }
}

impl From<NoTableName> for ServerError {
    fn from(error: NoTableName) -> Self {
        Self { kind: ErrorKind::Schema, code: None, message: error.to_string() }
    }
}

impl From<Error> for ServerError {
    fn from(error: Error) -> Self {
        match &error {
            Error::BadResponse(answer) => of_answer(answer),
            Error::TimedOut => Self {
                kind: ErrorKind::Server,
                code: None,
                message: "ClickHouse did not answer in time (clickhouse.request_timeout)".into(),
            },
            Error::Network(_) => Self {
                kind: ErrorKind::Server,
                code: None,
                message: format!("cannot reach ClickHouse: {}", causes(&error)),
            },
            other => Self { kind: ErrorKind::Unknown, code: None, message: causes(other) },
        }
    }
}

impl From<ServerError> for InsertError {
    fn from(error: ServerError) -> Self {
        Self { retryability: error.kind.retryability(), code: error.code, message: error.to_string() }
    }
}

fn of_answer(answer: &str) -> ServerError {
    let message = shortened(answer);
    match exception_code(answer) {
        Some(code) => ServerError { kind: of_exception(code, answer), code: Some(code), message },
        // A proxy on the way limits the size of a request: a smaller batch fits.
        None if answer.starts_with("413 ") || answer.contains("413 Request Entity Too Large") => {
            ServerError { kind: ErrorKind::Data, code: None, message }
        }
        // A proxy whose server is away, or something that is not ClickHouse.
        None => ServerError {
            kind: ErrorKind::Server,
            code: None,
            message: format!("an answer that is not ClickHouse's: {message}"),
        },
    }
}

/// What an exception says. Its text decides where the code has two meanings:
///
/// - 252: more partitions in one INSERT than `max_partitions_per_insert_block` will never be taken, and
///   a smaller batch has fewer;
/// - 117: a type in the header of the rows that is not the column's, which is said before a row is read;
/// - whatever is about data, but of a view: see [`ErrorKind::View`].
pub fn of_exception(code: i32, text: &str) -> ErrorKind {
    if code == 252 && text.contains("partitions for single INSERT block") {
        return ErrorKind::Data;
    }
    // The start of the message, which no value of a row can be.
    if code == 117 && text.starts_with("Code: 117. DB::Exception: Type of ") {
        return ErrorKind::Schema;
    }
    let kind = CODES.iter().find(|(known, ..)| *known == code).map(|(_, _, kind, _)| *kind);
    match kind.unwrap_or(ErrorKind::Unknown) {
        ErrorKind::Data if is_of_view(text) => ErrorKind::View,
        kind => kind,
    }
}

/// Whether an exception ends in `: while pushing to view NAME. (CODE)`. A message may repeat values of
/// the rows before that, in quotes: they do not count.
fn is_of_view(text: &str) -> bool {
    let view = text.rsplit_once(": while pushing to view ").and_then(|(_, rest)| rest.split_once(". ("));
    view.is_some_and(|(name, _)| !name.ends_with('\''))
}

/// The number in `Code: 241. DB::Exception: ...`, which is how ClickHouse begins an error.
fn exception_code(answer: &str) -> Option<i32> {
    let number = answer.trim_start().strip_prefix("Code: ")?;
    let end = number.find(|character: char| !character.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

fn causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    shortened(&text)
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().find(|(index, _)| *index >= SHOWN_BYTES) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// The table of docs/CLICKHOUSE_ERRORS.md.
    fn documented() -> String {
        let mut text = String::from("| code | name | Sluice | why |\n| --- | --- | --- | --- |\n");
        let mut codes = CODES.to_vec();
        codes.sort_by_key(|(code, ..)| *code);
        for (code, name, kind, reason) in codes {
            let does = match kind {
                ErrorKind::Server => "waits",
                ErrorKind::Schema => "waits for the table",
                ErrorKind::Access => "waits for the rights",
                ErrorKind::View => "waits for the view",
                ErrorKind::Data => "dead-letters",
                ErrorKind::Unknown => unreachable!("no code is listed as unknown"),
            };
            writeln!(text, "| {code} | `{name}` | {does} | {reason} |").unwrap();
        }
        text
    }

    #[test]
    fn the_documented_codes_are_these() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CLICKHOUSE_ERRORS.md");
        let written = std::fs::read_to_string(file).expect("docs/CLICKHOUSE_ERRORS.md");
        let due = documented();
        assert!(
            written.ends_with(&format!("\n\n{due}")),
            "docs/CLICKHOUSE_ERRORS.md must end with:\n\n{due}"
        );
    }

    fn judged(answer: &str) -> ServerError {
        Error::BadResponse(answer.into()).into()
    }

    #[test]
    fn every_code_stands_once_and_only_data_is_permanent() {
        for (index, (code, name, kind, reason)) in CODES.iter().enumerate() {
            assert!(CODES[..index].iter().all(|(other, ..)| other != code), "{name} stands twice");
            assert!(!reason.is_empty());
            assert_eq!(kind.retryability() == Retryability::Permanent, *kind == ErrorKind::Data);
        }
        for code in [3, 107, 159, 164, 202, 203, 209, 210, 241, 242, 252, 285, 319, 425, 999, 60, 16] {
            assert_eq!(of_exception(code, "").retryability(), Retryability::Retry, "{code}");
        }
        for code in [6, 27, 33, 41, 53, 69, 72, 469] {
            assert_eq!(of_exception(code, "").retryability(), Retryability::Permanent, "{code}");
        }
        assert_eq!(of_exception(424_242, "").retryability(), Retryability::Retry);
    }

    #[test]
    fn answers_are_judged_by_their_code() {
        let error = judged("Code: 241. DB::Exception: Memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)\n");
        assert_eq!((error.kind, error.code), (ErrorKind::Server, Some(241)));
        assert!(error.has_code(241) && !error.has_code(24));
        let insert: InsertError = judged("Code: 469. DB::Exception: Constraint `c` is violated").into();
        assert_eq!((insert.retryability, insert.code), (Retryability::Permanent, Some(469)));
        assert!(insert.message.contains("Constraint `c` is violated; the records at fault go to"));
        assert_eq!(judged("Code: 77777").kind, ErrorKind::Unknown);
    }

    #[test]
    fn too_many_partitions_is_not_too_many_parts() {
        let parts =
            judged("Code: 252. DB::Exception: Too many parts (3000). Merges are slower (TOO_MANY_PARTS)");
        assert_eq!(parts.kind, ErrorKind::Server);
        let partitions =
            judged("Code: 252. DB::Exception: Too many partitions for single INSERT block (101)");
        assert_eq!(partitions.kind, ErrorKind::Data);
    }

    #[test]
    fn what_a_view_refuses_is_not_the_rows_fault_for_the_table_has_them() {
        let refused = "Code: 469. DB::Exception: Constraint `c` for table shop.t is violated at row 1. \
                       Expression: (n < 10). Column values: n = 20";
        let of = |end: &str| judged(&format!("{refused}{end} (VIOLATED_CONSTRAINT) (version 26.7)")).kind;
        assert_eq!(of("."), ErrorKind::Data);
        assert_eq!(of(": while pushing to view shop.daily."), ErrorKind::View);
        assert_eq!(of(": while pushing to view shop.`it's`."), ErrorKind::View);
        // A value of a row that says so.
        assert_eq!(of(", s = 'x: while pushing to view shop.daily'."), ErrorKind::Data);
        let outage = "Code: 241. DB::Exception: Memory limit: while pushing to view shop.daily. (MEMORY)";
        assert_eq!(judged(outage).kind, ErrorKind::Server);
    }

    #[test]
    fn answers_of_proxies_are_outages_unless_the_request_is_too_large() {
        for answer in ["502 Bad Gateway", "<html>503 Service Temporarily Unavailable</html>", "", "Code: x"] {
            assert_eq!((judged(answer).kind, judged(answer).code), (ErrorKind::Server, None), "{answer}");
        }
        for answer in ["413 Payload Too Large", "<html><title>413 Request Entity Too Large</title></html>"] {
            assert_eq!(judged(answer).kind, ErrorKind::Data, "{answer}");
        }
        assert!(judged(&"ä".repeat(5000)).message.len() < 700);
    }

    #[test]
    fn transport_errors_are_outages() {
        let network: ServerError = Error::Network("connection refused".into()).into();
        assert_eq!(network.kind, ErrorKind::Server);
        assert_eq!(network.message.matches("connection refused").count(), 1);
        assert_eq!(ServerError::from(Error::TimedOut).kind, ErrorKind::Server);
        assert_eq!(ServerError::from(Error::NotEnoughData).kind.retryability(), Retryability::Retry);
    }
}

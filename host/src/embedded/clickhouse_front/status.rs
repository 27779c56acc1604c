//! ClickHouse's exceptions as HTTP statuses.

use axum::http::StatusCode;

/// The status that a ClickHouse server answers for an exception of `code`, as its
/// `exceptionCodeToHTTPStatus` has it.
pub(super) fn of_exception(code: i32) -> StatusCode {
    match code {
        // Cannot be parsed, or is wrong in itself.
        6 | 8 | 15 | 25 | 26 | 27 | 36 | 37 | 38 | 41 | 44 | 53 | 62 | 72 | 117 | 123 => {
            StatusCode::BAD_REQUEST
        }
        167 | 168 | 223 | 321 | 376 | 427 | 441 | 675 | 676 => StatusCode::BAD_REQUEST,
        // Names something that is not there.
        46 | 47 | 50 | 56 | 60 | 63 | 73 | 78 | 81 | 115 | 152 | 336 | 511 => StatusCode::NOT_FOUND,
        194 => StatusCode::UNAUTHORIZED,
        192 | 193 | 497 | 512 | 516 => StatusCode::FORBIDDEN,
        159 => StatusCode::REQUEST_TIMEOUT,
        229 => StatusCode::PAYLOAD_TOO_LARGE,
        381 => StatusCode::LENGTH_REQUIRED,
        48 => StatusCode::NOT_IMPLEMENTED,
        76 | 209 | 439 => StatusCode::SERVICE_UNAVAILABLE,
        779 => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

//! An HTTP request as ClickHouse reads it: URL parameters, headers, form fields.

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, Request};
use bytes::Bytes;

use crate::embedded::libchdb::{Exception, Parameter};

/// What a request asks for, apart from its body.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// The statement, or its start; it goes on in the body. Ends with a line end unless empty.
    pub(super) query: Vec<u8>,
    /// Current database.
    pub(super) database: Option<String>,
    /// Format where the statement names none.
    pub(super) default_format: Option<String>,
    /// Settings in the order given.
    pub(super) settings: Vec<(String, String)>,
    /// Server-side parameters.
    pub(super) parameters: Vec<Parameter>,
    /// Echoed in the answer.
    pub(super) query_id: Option<String>,
    /// Who asks; `default` where nobody says.
    pub(super) user: String,
    /// With which password.
    pub(super) password: String,
    /// The body is in ClickHouse's compressed blocks.
    pub(super) decompress: bool,
    /// A GET changes nothing.
    pub(super) read_only: bool,
}

impl Call {
    /// Reads method, URL and headers.
    pub(super) fn read(method: &Method, query_string: &str, headers: &HeaderMap) -> Result<Self, Exception> {
        let mut call = Self { user: "default".into(), read_only: method == Method::GET, ..Self::default() };
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        call.database = header("X-ClickHouse-Database");
        call.default_format = header("X-ClickHouse-Format");
        call.query_id = header("X-ClickHouse-Query-Id");
        if let Some((user, password)) = header(AUTHORIZATION.as_str()).as_deref().and_then(basic_credentials)
        {
            call.user = user;
            call.password = password;
        }
        if let Some(user) = header("X-ClickHouse-User") {
            call.user = user;
        }
        if let Some(password) = header("X-ClickHouse-Key") {
            call.password = password;
        }
        for pair in query_string.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            call.accept(&text_of("a URL parameter's name", percent_decode(name))?, percent_decode(value))?;
        }
        Ok(call)
    }

    /// Takes the fields of a form for parameters, as ClickHouse does.
    pub(super) async fn read_form(&mut self, headers: &HeaderMap, body: Bytes) -> Result<(), Exception> {
        let mut request = Request::new(Body::from(body));
        if let Some(content_type) = headers.get(CONTENT_TYPE) {
            request.headers_mut().insert(CONTENT_TYPE, content_type.clone());
        }
        // The body has been read, within the front's own limit.
        DefaultBodyLimit::disable().apply(&mut request);
        let wrong = |reason: String| {
            Exception::new(36, "BAD_ARGUMENTS", format!("Cannot read the multipart form: {reason}"))
        };
        let mut form =
            Multipart::from_request(request, &()).await.map_err(|error| wrong(error.to_string()))?;
        while let Some(field) = form.next_field().await.map_err(|error| wrong(error.to_string()))? {
            let name = field.name().unwrap_or_default().to_owned();
            if field.file_name().is_some() {
                return Err(not_implemented("External tables (a file in a form)"));
            }
            let value = field.bytes().await.map_err(|error| wrong(error.to_string()))?;
            self.accept(&name, value.to_vec())?;
        }
        Ok(())
    }

    fn accept(&mut self, name: &str, value: Vec<u8>) -> Result<(), Exception> {
        if let Some(name) = name.strip_prefix("param_") {
            self.parameters.push(Parameter { name: name.to_owned(), value });
            return Ok(());
        }
        if name == "query" {
            self.query = value;
            if !self.query.is_empty() {
                self.query.push(b'\n');
            }
            return Ok(());
        }
        let value = text_of(name, value)?;
        let is_set = !matches!(value.as_str(), "" | "0" | "false");
        match name {
            "database" => self.database = Some(value).filter(|name| !name.is_empty()),
            "default_format" => self.default_format = Some(value).filter(|name| !name.is_empty()),
            "query_id" => self.query_id = Some(value),
            "user" => self.user = value,
            "password" => self.password = value,
            "decompress" => self.decompress = is_set,
            // Answers are complete before their first byte is sent, so these hold anyway.
            "wait_end_of_query" | "buffer_size" | "quota_key" | "stacktrace" => {}
            "compress" if is_set => return Err(not_implemented("compress=1 (compressed answers)")),
            "session_id" | "session_timeout" | "session_check" if is_set => {
                return Err(not_implemented("Sessions (session_id)"));
            }
            "role" if is_set => return Err(not_implemented("Roles (role)")),
            "client_protocol_version" if is_set => {
                return Err(not_implemented("client_protocol_version above 0"));
            }
            "compress" | "session_id" | "session_timeout" | "session_check" | "role" => {}
            "client_protocol_version" => {}
            _ => self.settings.push((setting_name(name)?, value)),
        }
        Ok(())
    }
}

/// Whether the body is a form.
pub(super) fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
}

fn not_implemented(what: &str) -> Exception {
    Exception::new(48, "NOT_IMPLEMENTED", format!("{what} cannot be had from the embedded ClickHouse"))
}

/// A name that can stand in SQL without quotes.
fn setting_name(name: &str) -> Result<String, Exception> {
    let is_name = !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    is_name
        .then(|| name.to_owned())
        .ok_or_else(|| Exception::new(115, "UNKNOWN_SETTING", format!("Unknown setting '{name}'")))
}

fn text_of(name: &str, value: Vec<u8>) -> Result<String, Exception> {
    String::from_utf8(value)
        .map_err(|_| Exception::new(36, "BAD_ARGUMENTS", format!("{name} is not valid UTF-8")))
}

/// Undoes the URL's escapes. Not a library's, because a parameter's value may be any bytes.
fn percent_decode(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = match (byte, tail) {
            (b'%', [high, low, ..]) => {
                hex_digit(*high).zip(hex_digit(*low)).map(|(high, low)| high << 4 | low)
            }
            _ => None,
        };
        rest = match escaped {
            Some(value) => {
                decoded.push(value);
                &tail[2..]
            }
            None => {
                decoded.push(if byte == b'+' { b' ' } else { byte });
                tail
            }
        };
    }
    decoded
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn basic_credentials(header: &str) -> Option<(String, String)> {
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let credentials = String::from_utf8(base64_decode(encoded.trim())?).ok()?;
    let (user, password) = credentials.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn base64_decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count & 0xff) as u8);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(query_string: &str) -> Result<Call, Exception> {
        Call::read(&Method::POST, query_string, &HeaderMap::new())
    }

    #[test]
    fn url_parameters_are_told_apart() {
        let call = read("query=SELECT+%7Ba:String%7D&param_a=%00%FF%2B&database=d&max_threads=2&decompress=1&default_format=CSV&wait_end_of_query=1&query_id=q").unwrap();
        assert_eq!(call.query, b"SELECT {a:String}\n");
        assert_eq!(call.parameters, [Parameter { name: "a".into(), value: vec![0, 255, b'+'] }]);
        assert_eq!(call.database.as_deref(), Some("d"));
        assert_eq!(call.default_format.as_deref(), Some("CSV"));
        assert_eq!(call.settings, [("max_threads".to_owned(), "2".to_owned())]);
        assert_eq!(call.query_id.as_deref(), Some("q"));
        assert!(call.decompress && !call.read_only);
        assert_eq!(read("").unwrap().query, b"");
    }

    #[test]
    fn what_cannot_be_had_is_refused_and_not_ignored() {
        assert_eq!(read("session_id=a").unwrap_err().code, 48);
        assert_eq!(read("compress=1").unwrap_err().code, 48);
        assert!(read("compress=0").is_ok());
        assert_eq!(read("a%20b=1").unwrap_err().code, 115);
        assert_eq!(read("max_threads=%FF").unwrap_err().code, 36);
    }

    #[test]
    fn credentials_come_from_any_of_their_places() {
        let mut headers = HeaderMap::new();
        let credentials = |headers: &HeaderMap, query_string| {
            let call = Call::read(&Method::GET, query_string, headers).unwrap();
            (call.user, call.password)
        };
        assert_eq!(credentials(&headers, ""), ("default".into(), String::new()));
        assert_eq!(credentials(&headers, "user=u&password=p"), ("u".into(), "p".into()));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Basic dXNlcjpwYXNzOndvcmQ="));
        assert_eq!(credentials(&headers, ""), ("user".into(), "pass:word".into()));
        headers.insert("X-ClickHouse-User", HeaderValue::from_static("x"));
        headers.insert("X-ClickHouse-Key", HeaderValue::from_static("y"));
        assert_eq!(credentials(&headers, ""), ("x".into(), "y".into()));
    }

    #[test]
    fn escapes_that_are_none_stay_as_they_are() {
        assert_eq!(percent_decode("100%"), b"100%");
        assert_eq!(percent_decode("%zz%4"), b"%zz%4");
        assert_eq!(percent_decode("%41%"), b"A%");
        assert_eq!(base64_decode("TQ==").unwrap(), b"M");
        assert_eq!(base64_decode("TWE="), Some(b"Ma".to_vec()));
        assert_eq!(base64_decode("TWFu"), Some(b"Man".to_vec()));
        assert_eq!(base64_decode("T?"), None);
    }
}

//! A file of lines as messages: one line, one payload, as it stands.
//!
//! State: the open file, the line number, the first error. The iterator ends at an error, which
//! [`Lines::error`] then holds, so that it can feed a sender that knows nothing of files.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde_json::Value;

use super::message::{FieldPath, Message, key_of};

/// How lines become messages.
#[derive(Clone, Debug, Default)]
pub struct LineOptions {
    /// Field that becomes the key; a line that is not JSON, or lacks it, has no key.
    pub key: Option<FieldPath>,
    /// Accept lines that are not JSON.
    pub raw: bool,
    /// Start over at the end of the file, without end.
    pub repeat: bool,
}

/// Why a file of lines cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; check the path")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not JSON.
    #[error("{path}, line {line}: not JSON: {detail}; mend the line, or send lines as they are with --raw")]
    NotJson {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What the parser said.
        detail: String,
    },
    /// There is nothing to repeat.
    #[error("{path} has no lines; there is nothing to produce")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Messages from a file of lines.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    options: LineOptions,
    line: u64,
    error: Option<LineError>,
}

impl Lines {
    /// Opens the file.
    ///
    /// # Errors
    /// [`LineError::Read`].
    pub fn open(path: &Path, options: LineOptions) -> Result<Self, LineError> {
        let file = File::open(path).map_err(|source| LineError::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), options, line: 0, error: None })
    }

    /// Reads the whole file (at most `limit` lines) and checks every line, so that a bad one stops
    /// everything before anything is sent. Answers the number of lines.
    ///
    /// # Errors
    /// Any [`LineError`].
    pub fn check(path: &Path, options: &LineOptions, limit: Option<u64>) -> Result<u64, LineError> {
        let once = LineOptions { repeat: false, ..options.clone() };
        let mut lines = Self::open(path, once)?;
        let mut count = 0;
        while limit.is_none_or(|limit| count < limit) {
            match lines.read()? {
                Some(_) => count += 1,
                None => break,
            }
        }
        if count == 0 && limit != Some(0) {
            return Err(LineError::Empty { path: path.to_owned() });
        }
        Ok(count)
    }

    /// What ended the iterator early, if anything did.
    pub fn error(&self) -> Option<&LineError> {
        self.error.as_ref()
    }

    fn read_failed(&self, source: std::io::Error) -> LineError {
        LineError::Read { path: self.path.clone(), source }
    }

    fn read_line(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let mut bytes = Vec::new();
        let read = self.reader.read_until(b'\n', &mut bytes).map_err(|error| self.read_failed(error))?;
        if read == 0 {
            return Ok(None);
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        self.line += 1;
        Ok(Some(bytes))
    }

    fn read(&mut self) -> Result<Option<Message>, LineError> {
        let mut bytes = self.read_line()?;
        if bytes.is_none() && self.options.repeat {
            if self.line == 0 {
                return Err(LineError::Empty { path: self.path.clone() });
            }
            self.line = 0;
            let file = File::open(&self.path).map_err(|error| self.read_failed(error))?;
            self.reader = BufReader::new(file);
            bytes = self.read_line()?;
        }
        let Some(bytes) = bytes else { return Ok(None) };
        let key = self.key(&bytes)?;
        Ok(Some(Message { key, payload: Some(bytes), ..Message::default() }))
    }

    fn key(&self, bytes: &[u8]) -> Result<Option<Vec<u8>>, LineError> {
        let parsed = match &self.options.key {
            None if self.options.raw => return Ok(None),
            // Checks the syntax without building anything.
            None => serde_json::from_slice::<IgnoredAny>(bytes).map(|_| None),
            Some(path) => serde_json::from_slice::<Value>(bytes).map(|value| key_of(&value, path)),
        };
        match parsed {
            Ok(key) => Ok(key),
            Err(_) if self.options.raw => Ok(None),
            Err(error) => Err(LineError::NotJson {
                path: self.path.clone(),
                line: self.line,
                detail: error.to_string(),
            }),
        }
    }
}

impl Iterator for Lines {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        if self.error.is_some() {
            return None;
        }
        self.read().unwrap_or_else(|error| {
            self.error = Some(error);
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn options(raw: bool) -> LineOptions {
        LineOptions { key: Some("id".into()), raw, repeat: false }
    }

    #[test]
    fn lines_become_payloads_and_keys() {
        let file = file(b"{\"id\":\"a\"}\n{\"id\":7, \"x\": 1}\r\n{}");
        assert_eq!(Lines::check(file.path(), &options(false), None).unwrap(), 3);
        let mut lines = Lines::open(file.path(), options(false)).unwrap();
        let messages: Vec<Message> = lines.by_ref().collect();
        let keys: Vec<_> = messages.iter().map(|message| message.key.as_deref()).collect();
        assert_eq!(keys, [Some(&b"a"[..]), Some(b"7"), None]);
        assert_eq!(messages[1].payload.as_deref(), Some(&b"{\"id\":7, \"x\": 1}\r"[..]), "bytes as they are");
        assert!(lines.error().is_none());
    }

    #[test]
    fn a_line_that_is_not_json_is_refused_with_its_number() {
        let file = file(b"{\"id\":\"a\"}\n{\"id\":\n{}\n");
        let error = Lines::check(file.path(), &options(false), None).unwrap_err().to_string();
        assert!(error.contains("line 2: not JSON") && error.contains("--raw"), "{error}");
        assert_eq!(Lines::check(file.path(), &options(false), Some(1)).unwrap(), 1, "only what is sent");
        let mut lines = Lines::open(file.path(), options(false)).unwrap();
        assert_eq!(lines.by_ref().count(), 1);
        assert!(matches!(lines.error(), Some(LineError::NotJson { line: 2, .. })));
    }

    #[test]
    fn raw_lines_go_as_they_are() {
        let file = file(b"not json\n\n{\"id\":\"\xff\"}\n{\"id\":\"k\"}\n");
        let messages: Vec<Message> = Lines::open(file.path(), options(true)).unwrap().collect();
        let payloads: Vec<_> = messages.iter().filter_map(|message| message.payload.as_deref()).collect();
        assert_eq!(payloads, [&b"not json"[..], b"", b"{\"id\":\"\xff\"}", b"{\"id\":\"k\"}"]);
        assert_eq!(messages[3].key.as_deref(), Some(&b"k"[..]), "raw lines that are JSON still have keys");
    }

    #[test]
    fn a_file_can_be_repeated_without_end() {
        let file = file(b"1\n2\n");
        let options = LineOptions { repeat: true, ..LineOptions::default() };
        let first: Vec<Message> = Lines::open(file.path(), options.clone()).unwrap().take(5).collect();
        assert_eq!(first[4].payload.as_deref(), Some(&b"1"[..]));
        let empty = self::file(b"");
        let mut lines = Lines::open(empty.path(), options).unwrap();
        assert!(lines.next().is_none(), "an empty file does not loop for ever");
        assert!(matches!(lines.error(), Some(LineError::Empty { .. })));
    }
}

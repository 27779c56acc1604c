//! Protocol: what a host and its compiler process say to each other over pipes.
//!
//! The host writes the file's length (8 bytes, little endian) and the file, and reads one line of JSON and,
//! where there is code, the code. Length and digest say whether all of it came: a compiler that is ended
//! half-way must not leave half a program behind. Both ends are the same executable, so nothing here has
//! to stay as it is between versions.

use std::io::{self, BufRead, Read, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::translate::Untranslatable;

/// Longest line of JSON.
const HEAD_BYTES: u64 = 64 << 10;

/// Code, or why there is none.
pub(super) type Answer = Result<Vec<u8>, Untranslatable>;

/// The line before the code.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Head {
    Code { bytes: u64, sha256: String },
    Refused(Untranslatable),
}

/// Writes a file for the compiler.
pub(super) fn write_file(mut out: impl Write, file: &[u8]) -> io::Result<()> {
    out.write_all(&(file.len() as u64).to_le_bytes())?;
    out.write_all(file)?;
    out.flush()
}

/// Reads a file of at most `most` bytes.
pub(super) fn read_file(mut from: impl Read, most: u64) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > most {
        return Err(io::Error::other(format!("a file of {length} bytes; {most} are allowed")));
    }
    let mut file = Vec::new();
    from.take(length).read_to_end(&mut file)?;
    if file.len() as u64 == length { Ok(file) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes what came of the file.
pub(super) fn write_answer(mut out: impl Write, answer: Result<Vec<u8>, Untranslatable>) -> io::Result<()> {
    let (head, code) = match answer {
        Ok(code) => {
            let sha256 = hex::encode(Sha256::digest(&code));
            (Head::Code { bytes: code.len() as u64, sha256 }, code)
        }
        Err(refused) => (Head::Refused(refused), Vec::new()),
    };
    let mut line = serde_json::to_vec(&head)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.write_all(&code)?;
    out.flush()
}

/// Reads an answer to its end; code above `most` bytes is none. `None` for anything but one whole answer.
pub(super) fn read_answer(mut from: impl BufRead, most: u64) -> io::Result<Option<Answer>> {
    let mut line = Vec::new();
    from.by_ref().take(HEAD_BYTES).read_until(b'\n', &mut line)?;
    let Some(line) = line.strip_suffix(b"\n") else { return Ok(None) };
    let (bytes, sha256) = match serde_json::from_slice(line) {
        Ok(Head::Refused(refused)) => return Ok(Some(Err(refused))),
        Ok(Head::Code { bytes, sha256 }) if bytes <= most => (bytes, sha256),
        Ok(Head::Code { .. }) | Err(_) => return Ok(None),
    };
    let mut code = Vec::new();
    // One more, which must not be there.
    from.take(bytes + 1).read_to_end(&mut code)?;
    let is_whole = code.len() as u64 == bytes && hex::encode(Sha256::digest(&code)) == sha256;
    Ok(is_whole.then_some(Ok(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(of: Answer) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_answer(&mut bytes, of).unwrap();
        bytes
    }

    #[test]
    fn a_file_arrives_whole_or_not_at_all() {
        let mut bytes = Vec::new();
        write_file(&mut bytes, b"wasm").unwrap();
        assert_eq!(read_file(&bytes[..], 4).unwrap(), b"wasm");
        assert!(read_file(&bytes[..], 3).is_err(), "larger than allowed");
        assert!((0..bytes.len()).all(|end| read_file(&bytes[..end], 4).is_err()), "the parent is gone");
    }

    #[test]
    fn code_arrives_whole_or_not_at_all() {
        let whole = answer(Ok(b"code\n".to_vec()));
        assert_eq!(read_answer(&whole[..], 5).unwrap(), Some(Ok(b"code\n".to_vec())));
        assert_eq!(read_answer(&whole[..], 4).unwrap(), None, "larger than allowed");
        for end in 0..whole.len() {
            assert_eq!(read_answer(&whole[..end], 5).unwrap(), None, "cut after {end} bytes");
        }
        for index in 0..whole.len() {
            let mut other = whole.clone();
            other[index] ^= 1;
            assert!(!matches!(read_answer(&other[..], 5), Ok(Some(Ok(_)))), "byte {index} is another");
        }
        let longer = [&whole[..], b"!"].concat();
        assert_eq!(read_answer(&longer[..], 5).unwrap(), None);
    }

    #[test]
    fn a_refusal_arrives_with_its_words() {
        let refused = Untranslatable::Imports("`wasi:clocks`\n".to_owned());
        assert_eq!(read_answer(&answer(Err(refused.clone()))[..], 0).unwrap(), Some(Err(refused)));
    }
}

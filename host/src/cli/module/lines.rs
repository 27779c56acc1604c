//! Lines: a file of payloads, one a line, as chunks of records.
//!
//! Offset and line number are one less and one more than each other, so that what is said of a record leads
//! to its line. Empty lines are no records. Records have no key, no headers and no timestamp.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};

use crate::domain::chunk::{Chunk, ChunkBuilder};

/// Topic of the records, which have none.
pub(super) const TOPIC: &str = "input";

/// Chunks of the records of a file, read as they are asked for.
pub(super) struct Lines {
    reader: BufReader<File>,
    name: String,
    /// Lines read so far.
    number: i64,
    /// Read, but too much for the chunk before.
    pending: Option<(i64, Vec<u8>)>,
}

impl Lines {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
        Ok(Self { reader: BufReader::new(file), name, number: 0, pending: None })
    }

    /// Line of record `index` of one of these chunks, from 1.
    pub(super) fn number(chunk: &Chunk, index: usize) -> i64 {
        chunk.offset(index) + 1
    }

    /// The next line that is not empty, with its offset.
    fn line(&mut self) -> Result<Option<(i64, Vec<u8>)>> {
        if let Some(line) = self.pending.take() {
            return Ok(Some(line));
        }
        loop {
            let mut line = Vec::new();
            let read = self.reader.read_until(b'\n', &mut line);
            if read.with_context(|| format!("cannot read {}", self.name))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            let end = line.trim_ascii_end().len();
            line.truncate(end);
            if !line.is_empty() {
                return Ok(Some((self.number - 1, line)));
            }
        }
    }

    fn chunk(&mut self) -> Result<Option<Chunk>> {
        let Some((first, line)) = self.line()? else { return Ok(None) };
        let mut builder = ChunkBuilder::new(TOPIC.into(), 0, first);
        builder.push(first, -1, None, Some(&line), []);
        while let Some((offset, line)) = self.line()? {
            if builder.refuses(offset, line.len()) {
                self.pending = Some((offset, line));
                break;
            }
            builder.push(offset, -1, None, Some(&line), []);
        }
        Ok(Some(builder.build()))
    }
}

impl Iterator for Lines {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Result<Chunk>> {
        self.chunk().transpose()
    }
}

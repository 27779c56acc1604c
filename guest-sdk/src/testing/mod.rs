//! Runs a module natively: what `cargo test` needs to test a rule.
//!
//! Records go through the same columns and the same adapter as in wasm; rows come back decoded
//! from their RowBinary by the column types that the module declares. Mistakes of the test itself
//! (settings that the module refuses, say) panic with what is wrong.
//!
//! ```
//! use sluice_sdk::testing::{self, record};
//! use sluice_sdk::{NoSettings, Record, Rejection, Validator};
//!
//! struct NotEmpty;
//!
//! impl Validator for NotEmpty {
//!     type Settings = NoSettings;
//!
//!     fn new(_: NoSettings) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!
//!     fn validate(&self, record: &Record<'_>) -> Result<(), Rejection> {
//!         match record.payload() {
//!             Some([]) => Err(Rejection::new("empty", "there is nothing in it")),
//!             _ => Ok(()),
//!         }
//!     }
//! }
//!
//! let verdicts = testing::validate::<NotEmpty>("{}", [record("x"), record("")]);
//! assert_eq!(verdicts[0], Ok(()));
//! assert_eq!(verdicts[1].as_ref().unwrap_err().code, "empty");
//! ```

mod decode;
mod type_name;

use std::ops::Index;

use crate::bindings::types::{self, Records};
use crate::{Column, Mapper, OutputDeclaration, Record, Rejection, Validator, mapper, settings, validator};

/// A record to test with. Offsets count up unless one is given; there is no timestamp and no key.
#[derive(Clone, Debug, Default)]
pub struct TestRecord {
    payload: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    timestamp: Option<i64>,
    offset: Option<u64>,
}

/// A record with a payload.
pub fn record(payload: impl AsRef<[u8]>) -> TestRecord {
    TestRecord { payload: Some(payload.as_ref().to_vec()), ..TestRecord::default() }
}

/// A record without a payload.
pub fn tombstone() -> TestRecord {
    TestRecord::default()
}

impl TestRecord {
    /// With a key.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.key = Some(key.as_ref().to_vec());
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), Some(value.as_ref().to_vec())));
        self
    }

    /// With one more header, whose value is absent.
    #[must_use]
    pub fn null_header(mut self, name: &str) -> Self {
        self.headers.push((name.to_owned(), None));
        self
    }

    /// With Kafka's timestamp, in milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn timestamp(mut self, milliseconds: i64) -> Self {
        self.timestamp = Some(milliseconds);
        self
    }

    /// At an offset, which must be beyond those of the records before.
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }
}

/// Judges `records` by the validator `V` with `settings` (a JSON object): a verdict for each.
///
/// # Panics
/// When the settings are refused, or offsets do not increase.
pub fn validate<V: Validator>(
    settings: &str,
    records: impl IntoIterator<Item = TestRecord>,
) -> Vec<Result<(), Rejection>> {
    let rule = new_validator::<V>(settings).unwrap_or_else(|error| panic!("init refused: {error}"));
    let records = Chunk::new(records);
    let mut verdicts = vec![Ok(()); records.selected.len()];
    for rejection in validator::validate(&rule, &records.columns, &records.selected) {
        let index = rejection.index as usize;
        verdicts[index] = Err(raise(rejection));
    }
    verdicts
}

/// Makes the validator `V` from `settings` (a JSON object), as the host does.
///
/// # Errors
/// The text with which the module is refused.
pub fn new_validator<V: Validator>(settings: &str) -> Result<V, String> {
    V::new(settings::read(settings)?)
}

/// Makes the mapper `M` from `settings` (a JSON object), as the host does.
///
/// # Errors
/// The text with which the module is refused.
pub fn new_mapper<M: Mapper>(settings: &str) -> Result<M, String> {
    let mapper = M::new(settings::read(settings)?)?;
    mapper::declare::<M>()?;
    Ok(mapper)
}

/// The columns of the outputs of `M`: output, column, type, in order.
pub fn columns<M: Mapper>() -> Vec<(String, String, String)> {
    let outputs = mapper::declare::<M>().unwrap_or_else(|error| panic!("init refused: {error}"));
    outputs
        .into_iter()
        .flat_map(|output| {
            let name = output.name;
            output.columns.into_iter().map(move |column| (name.clone(), column.name, column.type_name))
        })
        .collect()
}

/// Maps `records` by the mapper `M` with `settings` (a JSON object).
///
/// # Panics
/// When the settings are refused, offsets do not increase, or rows are not what the declared
/// columns say (a `#[row(type = "...")]` that does not fit its field).
pub fn map<M: Mapper>(settings: &str, records: impl IntoIterator<Item = TestRecord>) -> Mapped {
    let module = new_mapper::<M>(settings).unwrap_or_else(|error| panic!("init refused: {error}"));
    let outputs = mapper::declare::<M>().unwrap_or_else(|error| panic!("init refused: {error}"));
    let records = Chunk::new(records);
    let mapped = mapper::map(&module, &records.columns, &records.selected);
    let mut verdicts = vec![Ok(()); records.selected.len()];
    for rejection in mapped.rejections {
        let index = rejection.index as usize;
        verdicts[index] = Err(raise(rejection));
    }
    assert_eq!(mapped.outputs.len(), outputs.len(), "as many outputs as declared");
    let rows: Vec<_> =
        outputs.iter().zip(mapped.outputs).map(|(output, rows)| decode_rows(output, &rows)).collect();
    Mapped { verdicts, outputs: outputs.into_iter().map(|output| output.name).zip(rows).collect() }
}

/// Runs `body` and answers the lines that it wrote with [`log!`](crate::log!), too.
#[cfg(not(target_family = "wasm"))]
pub fn logged<T>(body: impl FnOnce() -> T) -> (T, Vec<(crate::Level, String)>) {
    crate::log::collected::logged(body)
}

/// Calls `body` with `record`, for what these functions do not cover.
pub fn with_record<T>(record: TestRecord, body: impl FnOnce(&Record<'_>) -> T) -> T {
    let chunk = Chunk::new([record]);
    body(&Record::new(&chunk.columns, 0))
}

/// What a mapper made of the records of a test.
#[derive(Clone, Debug, PartialEq)]
pub struct Mapped {
    /// For each record, whether it was rejected.
    pub verdicts: Vec<Result<(), Rejection>>,
    outputs: Vec<(String, Vec<Vec<TestRow>>)>,
}

impl Mapped {
    /// All rows of an output, in order.
    ///
    /// # Panics
    /// When there is no such output.
    pub fn rows(&self, output: &str) -> Vec<&TestRow> {
        self.output(output).iter().flatten().collect()
    }

    /// The rows of an output that one record gave.
    ///
    /// # Panics
    /// When there is no such output or record.
    pub fn rows_of(&self, output: &str, record: usize) -> &[TestRow] {
        &self.output(output)[record]
    }

    fn output(&self, name: &str) -> &[Vec<TestRow>] {
        match self.outputs.iter().find(|output| output.0 == name) {
            Some((_, rows)) => rows,
            None => panic!("the mapper has no output `{name}`"),
        }
    }
}

/// A row, decoded: `row["column"]` is the value as text, much as ClickHouse shows it (`NULL`,
/// `[1, 2]`, `2026-01-31 13:45:00.000`); points in time are in UTC, decimals have all their digits.
#[derive(Clone, Debug, PartialEq)]
pub struct TestRow {
    /// The row as it was encoded.
    pub bytes: Vec<u8>,
    values: Vec<(String, String)>,
}

impl Index<&str> for TestRow {
    type Output = str;

    fn index(&self, column: &str) -> &str {
        match self.values.iter().find(|value| value.0 == column) {
            Some((_, value)) => value,
            None => panic!("the row has no column `{column}`"),
        }
    }
}

fn decode_rows(output: &OutputDeclaration, rows: &types::Rows) -> Vec<Vec<TestRow>> {
    let mut bounds = std::iter::once(0).chain(rows.row_ends.iter().copied());
    let mut start = bounds.next().unwrap_or_default() as usize;
    let records = rows.rows_per_record.iter().map(|&count| {
        (0..count)
            .map(|_| {
                let end = bounds.next().expect("as many row ends as rows") as usize;
                let bytes = &rows.bytes[start..end];
                start = end;
                decode_row(&output.columns, bytes)
            })
            .collect()
    });
    let records = records.collect();
    assert_eq!(start, rows.bytes.len(), "every byte belongs to a row");
    records
}

fn decode_row(columns: &[Column], bytes: &[u8]) -> TestRow {
    let mut rest = bytes;
    let values = columns
        .iter()
        .map(|column| {
            let value = type_name::parse(&column.type_name).and_then(|kind| decode::value(&kind, &mut rest));
            match value {
                Some(value) => (column.name.clone(), value),
                None => panic!("column `{}`: its bytes are no {}", column.name, column.type_name),
            }
        })
        .collect();
    assert!(rest.is_empty(), "{} bytes follow the last column of a row", rest.len());
    TestRow { bytes: bytes.to_vec(), values }
}

fn raise(rejection: types::Rejection) -> Rejection {
    Rejection {
        code: rejection.code.into(),
        field: rejection.field.map(Into::into),
        reason: rejection.reason.into(),
    }
}

/// Records as columns, all of them selected.
struct Chunk {
    columns: Records,
    selected: Vec<u32>,
}

impl Chunk {
    fn new(records: impl IntoIterator<Item = TestRecord>) -> Self {
        let mut columns = Records {
            topic: "test".to_owned(),
            partition: 0,
            base_offset: 0,
            offset_deltas: Vec::new(),
            timestamps: Vec::new(),
            payloads: Vec::new(),
            payload_ends: Vec::new(),
            payload_nulls: Vec::new(),
            keys: Vec::new(),
            key_ends: Vec::new(),
            key_nulls: Vec::new(),
            header_ends: Vec::new(),
            header_names: Vec::new(),
            header_name_ends: Vec::new(),
            header_values: Vec::new(),
            header_value_ends: Vec::new(),
            header_value_nulls: Vec::new(),
        };
        let mut next_offset = 0;
        let mut selected = Vec::new();
        for (index, record) in (0..).zip(records) {
            let offset = record.offset.unwrap_or(next_offset);
            assert!(offset >= next_offset, "offset {offset} does not increase");
            next_offset = offset + 1;
            if index == 0 {
                columns.base_offset = offset;
            }
            let delta = offset - columns.base_offset;
            columns.offset_deltas.push(u32::try_from(delta).expect("offsets within 32 bits of the first"));
            columns.timestamps.push(record.timestamp.unwrap_or(-1));
            push(
                record.payload.as_deref(),
                &mut columns.payloads,
                &mut columns.payload_ends,
                &mut columns.payload_nulls,
            );
            push(record.key.as_deref(), &mut columns.keys, &mut columns.key_ends, &mut columns.key_nulls);
            for (name, value) in &record.headers {
                push(
                    Some(name.as_bytes()),
                    &mut columns.header_names,
                    &mut columns.header_name_ends,
                    &mut Vec::new(),
                );
                push(
                    value.as_deref(),
                    &mut columns.header_values,
                    &mut columns.header_value_ends,
                    &mut columns.header_value_nulls,
                );
            }
            columns.header_ends.push(columns.header_name_ends.len() as u32);
            selected.push(index);
        }
        Self { columns, selected }
    }
}

fn push(value: Option<&[u8]>, bytes: &mut Vec<u8>, ends: &mut Vec<u32>, nulls: &mut Vec<u32>) {
    match value {
        Some(value) => bytes.extend_from_slice(value),
        None => nulls.push(ends.len() as u32),
    }
    ends.push(u32::try_from(bytes.len()).expect("a chunk below 4 GiB"));
}

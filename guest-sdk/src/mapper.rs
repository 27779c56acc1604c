//! Mappers: one function from a record to rows of one or more outputs.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::bindings::types;
use crate::validator::lower;
use crate::{Column, OutputDeclaration, Record, Rejection, Rows};

/// Turns a record into rows. Exported by [`mapper!`](crate::mapper!).
pub trait Mapper: Sized {
    /// The module's settings, as for a [`Validator`](crate::Validator::Settings).
    type Settings: DeserializeOwned;

    /// What it fills: [`Output<MyRow<'static>>`](Output), or, for several outputs, a struct of
    /// those that derives [`Outputs`](macro@crate::Outputs).
    type Outputs: Outputs;

    /// Makes the mapper, once for each wasm instance.
    ///
    /// # Errors
    /// A sentence for the operator, which refuses the module: the settings make no sense.
    fn new(settings: Self::Settings) -> Result<Self, String>;

    /// Maps one record. A record for which nothing is emitted is filtered, on purpose.
    ///
    /// # Errors
    /// Why the record cannot be mapped. It becomes a dead letter, and rows emitted for it are
    /// taken back.
    fn map(&self, record: &Record<'_>, outputs: &mut Self::Outputs) -> Result<(), Rejection>;
}

/// A row of an output. Derive it: `#[derive(Row)] #[row(output = "...")]`.
///
/// Without its output, and with a field that no column has the type of, it does not compile:
///
/// ```compile_fail
/// #[derive(sluice_sdk::Row)]
/// struct OrderRow {
///     id: u64,
/// }
/// ```
///
/// ```compile_fail,E0277
/// #[derive(sluice_sdk::Row)]
/// #[row(output = "orders")]
/// struct OrderRow {
///     id: std::time::Duration,
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a row",
    note = "derive it: #[derive(Row)] #[row(output = \"...\")]"
)]
pub trait Row {
    /// The same row type with `'static` for its lifetimes: what [`Output`] is named by.
    type Static;

    /// The output that rows of this type belong to; the pipeline binds it to a table.
    const OUTPUT: &'static str;

    /// The columns, in the order in which [`encode`](Self::encode) writes them.
    fn columns() -> Vec<Column>;

    /// Appends the row in RowBinary.
    fn encode(&self, bytes: &mut Vec<u8>);
}

impl<R: Row> Row for &R {
    type Static = R::Static;
    const OUTPUT: &'static str = R::OUTPUT;

    fn columns() -> Vec<Column> {
        R::columns()
    }

    #[inline]
    fn encode(&self, bytes: &mut Vec<u8>) {
        R::encode(self, bytes);
    }
}

/// The rows of one output for one chunk. Rows are encoded straight into the buffer that the host
/// takes over.
#[derive(Debug)]
pub struct Output<R> {
    bytes: Vec<u8>,
    row_ends: Vec<u32>,
    rows_per_record: Vec<u32>,
    /// Rows before the record at hand.
    settled_rows: usize,
    row: PhantomData<fn(R)>,
}

impl<R: Row<Static = R>> Output<R> {
    /// Adds a row for the record at hand.
    #[inline]
    pub fn emit<T: Row<Static = R>>(&mut self, row: T) {
        row.encode(&mut self.bytes);
        // A wasm memory has no room for more bytes than a u32 counts.
        self.row_ends.push(self.bytes.len() as u32);
    }
}

/// All outputs of a mapper: [`Output`] itself, or a struct that derives
/// [`Outputs`](macro@crate::Outputs). The methods are for the adapter.
pub trait Outputs: Sized {
    /// Appends the declarations, in order.
    #[doc(hidden)]
    fn declare(outputs: &mut Vec<OutputDeclaration>);

    /// Empty outputs for a chunk of so many records and payload bytes.
    #[doc(hidden)]
    fn with_capacity(records: usize, bytes: usize) -> Self;

    /// Closes the record at hand: keeps its rows, or takes them back.
    #[doc(hidden)]
    fn end_record(&mut self, keep: bool);

    /// Appends the rows of each output, in order.
    #[doc(hidden)]
    fn finish(self, rows: &mut Vec<Rows>);
}

impl<R: Row<Static = R>> Outputs for Output<R> {
    fn declare(outputs: &mut Vec<OutputDeclaration>) {
        outputs.push(OutputDeclaration { name: R::OUTPUT.to_owned(), columns: R::columns() });
    }

    fn with_capacity(records: usize, bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            row_ends: Vec::with_capacity(records),
            rows_per_record: Vec::with_capacity(records),
            settled_rows: 0,
            row: PhantomData,
        }
    }

    #[inline]
    fn end_record(&mut self, keep: bool) {
        if !keep {
            let end = self.settled_rows.checked_sub(1).map_or(0, |last| self.row_ends[last] as usize);
            self.row_ends.truncate(self.settled_rows);
            self.bytes.truncate(end);
        }
        self.rows_per_record.push((self.row_ends.len() - self.settled_rows) as u32);
        self.settled_rows = self.row_ends.len();
    }

    fn finish(self, rows: &mut Vec<Rows>) {
        rows.push(Rows { bytes: self.bytes, row_ends: self.row_ends, rows_per_record: self.rows_per_record });
    }
}

/// The outputs that a mapper declares.
///
/// # Errors
/// When two of them have the same name.
pub fn declare<M: Mapper>() -> Result<Vec<OutputDeclaration>, String> {
    let mut outputs: Vec<OutputDeclaration> = Vec::new();
    M::Outputs::declare(&mut outputs);
    for (index, output) in outputs.iter().enumerate() {
        if outputs[..index].iter().any(|earlier| earlier.name == output.name) {
            return Err(format!("two outputs are called `{}`: give each row type its own", output.name));
        }
    }
    Ok(outputs)
}

/// Maps the selected records of a chunk.
pub fn map<M: Mapper>(mapper: &M, records: &types::Records, selected: &[u32]) -> types::Mapped {
    // Rows are rarely longer than the messages that they came from. Reserved pages that stay
    // unused cost nothing; moving a buffer as it grows does.
    let mut outputs = M::Outputs::with_capacity(selected.len(), records.payloads.len() / 2);
    let mut rejections = Vec::new();
    for &index in selected {
        let verdict = mapper.map(&Record::new(records, index as usize), &mut outputs);
        outputs.end_record(verdict.is_ok());
        if let Err(rejection) = verdict {
            rejections.push(lower(index, rejection));
        }
    }
    let mut rows = Vec::new();
    outputs.finish(&mut rows);
    types::Mapped { outputs: rows, rejections }
}

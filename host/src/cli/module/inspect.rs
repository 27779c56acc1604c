//! `sluice module inspect`: what a file is, or why it would be refused.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;

use crate::clickhouse::table_name::Quoted;
use crate::domain::provenance::ProvenanceColumn;
use crate::domain::row::{ColumnType, Output};
use crate::domain::verdict::Stage;
use crate::wasm::{CONTRACT_VERSION, GoldenCases, cases_path};

use super::Ending;
use super::source::{Loaded, SourceArguments, Workshop};

/// Say what a module is: kind, contract, revision, outputs, a table that fits; or why it is refused.
///
/// Exits with 1 where Sluice would refuse it.
#[derive(clap::Args, Debug)]
pub(super) struct InspectArguments {
    /// The .wasm file.
    file: PathBuf,
    #[command(flatten)]
    source: SourceArguments,
}

/// Runs the command.
pub(super) fn run(arguments: &InspectArguments) -> Result<Ending> {
    let workshop = Workshop::open(&arguments.source)?;
    let mut out = std::io::stdout().lock();
    match workshop.load_file(&arguments.file)? {
        Ok(loaded) => {
            describe(&loaded, &mut out)?;
            let cases = cases_path(&arguments.file);
            let text = match GoldenCases::read(&cases)
                .and_then(|bytes| bytes.map(|bytes| GoldenCases::parse(&bytes)).transpose())
            {
                Ok(None) => format!("none; write some into {}", cases.display()),
                Ok(Some(found)) => {
                    format!("{} in {}; sluice module test runs them", found.len(), cases.display())
                }
                Err(fault) => {
                    writeln!(out, "cases     refused: it {fault}")?;
                    return Ok(Ending::Found);
                }
            };
            writeln!(out, "cases     {text}")?;
            for output in loaded.module.outputs() {
                writeln!(out, "\nA table for output {}:\n\n{}", output.name, create_table(output))?;
            }
            Ok(Ending::Well)
        }
        Err(fault) => {
            writeln!(out, "file      {}\nrefused   it {fault}", arguments.file.display())?;
            Ok(Ending::Found)
        }
    }
}

fn describe(loaded: &Loaded, out: &mut impl Write) -> Result<()> {
    let Loaded { module, file } = loaded;
    let kind = if file.stage == Stage::Map { "mapper" } else { "validator" };
    let form = if file.bytes.get(6) == Some(&1) { "a component" } else { "a core module, wrapped on load" };
    let interface = module.interface();
    let list = |names: &[String]| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    writeln!(out, "module    {}, {} bytes", file.name, file.bytes.len())?;
    writeln!(out, "kind      {kind}, {form}")?;
    writeln!(out, "contract  this host speaks {CONTRACT_VERSION}")?;
    writeln!(out, "imports   {}", list(&interface.imports))?;
    writeln!(out, "exports   {}", list(&interface.exports))?;
    writeln!(out, "settings  {}", module.settings())?;
    writeln!(out, "revision  {} ({})", file.revision, hex::encode(file.revision.0))?;
    for output in module.outputs() {
        writeln!(out, "output    {}", output.name)?;
        let width = output.columns.iter().map(|column| column.name.chars().count()).max().unwrap_or(0);
        for column in &output.columns {
            writeln!(out, "            {:width$}  {}", column.name, column.column_type)?;
        }
    }
    Ok(())
}

/// A table that takes the rows of `output`, with what exactly-once delivery asks of it.
fn create_table(output: &Output) -> String {
    let own =
        output.columns.iter().map(|column| format!("    {} {}", Quoted(&column.name), column.column_type));
    let provenance = ProvenanceColumn::ALL
        .into_iter()
        .map(|column| format!("    {} {}", column.name(), column.types()[0]));
    let columns: Vec<String> = own.chain(provenance).collect();
    format!(
        "CREATE TABLE {}\n(\n{}\n)\nENGINE = MergeTree\nORDER BY {}\n\
         SETTINGS non_replicated_deduplication_window = 10000;",
        Quoted(&output.name),
        columns.join(",\n"),
        order(output)
    )
}

/// By the first column that can be ordered by, or by the record. A guess: queries decide.
fn order(output: &Output) -> String {
    let can_be_key = |column_type: &ColumnType| {
        matches!(
            column_type.stored(),
            ColumnType::Plain(_) | ColumnType::String | ColumnType::DateTime(_) | ColumnType::DateTime64(..)
        )
    };
    let column = output.columns.iter().find(|column| can_be_key(&column.column_type));
    column.map_or("(_topic, _partition, _offset)".to_owned(), |column| Quoted(&column.name).to_string())
}

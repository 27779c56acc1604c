//! `sluice module test`: a module's golden cases, or what it says of lines of a file.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::domain::verdict::RecordVerdict;
use crate::pipeline::modules::CasesReport;
use crate::wasm::{GoldenCases, SingleModule, cases_path, said};

use super::Ending;
use super::lines::Lines;
use super::source::{SourceArguments, Workshop};

/// Run a module's golden cases; with --input, say what it makes of every line of a file.
///
/// Exits with 1 where a case fails, or Sluice would refuse the module.
#[derive(clap::Args, Debug)]
pub(super) struct TestArguments {
    /// The .wasm file.
    file: PathBuf,
    /// Golden cases in place of those beside the file (name.cases.jsonl). Run with --input only if named.
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Payloads, one a line.
    #[arg(long)]
    input: Option<PathBuf>,
    #[command(flatten)]
    source: SourceArguments,
}

/// Runs the command.
pub(super) fn run(arguments: &TestArguments) -> Result<Ending> {
    let workshop = Workshop::open(&arguments.source)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let loaded = match workshop.load_file(&arguments.file)? {
        Ok(loaded) => loaded,
        Err(fault) => {
            writeln!(out, "module {} {fault}", arguments.file.display())?;
            out.flush()?;
            return Ok(Ending::Found);
        }
    };
    let module = workshop.single(&loaded);
    let mut ending = Ending::Well;
    if arguments.cases.is_some() || arguments.input.is_none() {
        let path = arguments.cases.clone().unwrap_or_else(|| cases_path(&arguments.file));
        ending = cases(&path, &module, &mut out)?;
    }
    if let Some(path) = &arguments.input {
        input(path, &module, &mut out)?;
    }
    out.flush()?;
    Ok(ending)
}

fn cases(path: &Path, module: &SingleModule, out: &mut impl Write) -> Result<Ending> {
    let Some(bytes) =
        GoldenCases::read(path).with_context(|| format!("module {}", module.module().identity().name))?
    else {
        bail!(
            "there is no {}; write golden cases into it (docs/MODULES.md says how), or give payloads with --input",
            path.display()
        );
    };
    let cases = match GoldenCases::parse(&bytes) {
        Ok(cases) => cases,
        Err(fault) => {
            writeln!(out, "module {} {fault}", module.module().identity().name)?;
            return Ok(Ending::Found);
        }
    };
    let CasesReport { passed, failed, failures } = cases.run(module);
    for text in &failed {
        writeln!(out, "{text}")?;
    }
    if failures > failed.len() {
        writeln!(out, "and {} more", failures - failed.len())?;
    }
    writeln!(out, "{}: {passed} passed, {failures} failed", path.display())?;
    Ok(if failures == 0 { Ending::Well } else { Ending::Found })
}

/// Says what the module makes of every line, and how often it said what.
fn input(path: &Path, module: &SingleModule, out: &mut impl Write) -> Result<()> {
    let outputs = module.module().outputs();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut total = 0;
    for chunk in Lines::open(path)? {
        let chunk = chunk?;
        let all: Vec<u32> = (0..chunk.len() as u32).collect();
        let verdicts = module.run(&chunk, &all);
        for (index, verdict) in verdicts.by_record(chunk.len()).iter().enumerate() {
            total += 1;
            let kind = match verdict {
                RecordVerdict::Rejected(rejection) => format!("rejected {}", rejection.code),
                RecordVerdict::Accepted(rows) if !rows.is_empty() && rows.iter().all(Vec::is_empty) => {
                    "filtered".to_owned()
                }
                RecordVerdict::Accepted(_) => "accepted".to_owned(),
            };
            *counts.entry(kind).or_default() += 1;
            writeln!(out, "line {}: {}", Lines::number(&chunk, index), said(outputs, verdict))?;
        }
    }
    let counts: Vec<String> = counts.into_iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    writeln!(out, "{}: {total} records: {}", path.display(), counts.join(", "))?;
    Ok(())
}

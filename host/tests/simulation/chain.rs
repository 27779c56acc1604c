//! Chain: verdicts by payload, without wasm.
//!
//! | payload | verdict |
//! | --- | --- |
//! | `m` | a row |
//! | `d` | two rows, and one in the second table where there is one |
//! | `q` | a row that the first table refuses for good, and one in the second |
//! | `f` | filtered |
//! | `x` | rejected |
//! | `t` | a row, or a timeout or a refusal of memory that a second run would not repeat |
//! | `v` | a row that differs from chain to chain, or rejected |
//! | `u` | a row that differs from run to run, or rejected: a module that is not pure |

use std::sync::{Arc, Mutex};

use sluice::domain::chunk::Chunk;
use sluice::domain::intent::ForcedKind;
use sluice::domain::provenance::Provenance;
use sluice::domain::row::{ColumnDefinition, ColumnType, Output};
use sluice::domain::verdict::{ChunkVerdicts, OutputRows, Rejection, RejectionKind, Revision, Stage};
use sluice::pipeline::binding::{BoundChain, TableBinding};
use sluice::pipeline::ports::{Chain, ChainRunner, Forced, ModuleIdentity};

use crate::kafka::OUTPUTS;
use crate::plan::{Plan, Random};

/// Rows that a record of this kind gives, by table, if it gives any.
pub(crate) fn rows_of(kind: u8, outputs: usize) -> [u32; OUTPUTS] {
    let second = u32::from(outputs > 1);
    match kind {
        b'd' => [2, second],
        b'q' => [1, second],
        b'f' | b'x' => [0, 0],
        _ => [1, 0],
    }
}

/// See the module documentation.
pub(crate) struct FakeChain {
    number: u8,
    modules: Vec<ModuleIdentity>,
    outputs: Vec<Output>,
    random: Arc<Mutex<Random>>,
}

impl FakeChain {
    /// One of the chains of a schedule.
    pub(crate) fn new(number: u8, plan: &Plan) -> Self {
        let module = |name: &str, stage, revision| ModuleIdentity { name: name.into(), stage, revision };
        Self {
            number,
            modules: vec![
                module("rules", Stage::Validate, Revision([1 + number; 32])),
                module("rows", Stage::Map, Revision([100; 32])),
            ],
            outputs: (0..plan.outputs)
                .map(|output| Output { name: format!("output{output}"), columns: Vec::new().into() })
                .collect(),
            random: Arc::new(Mutex::new(Random::new(plan.seed ^ u64::from(number)))),
        }
    }

    /// The chain with its tables.
    pub(crate) fn bound(self: &Arc<Self>) -> Arc<BoundChain> {
        Arc::new(BoundChain { chain: self.clone(), tables: tables(self.outputs.len()) })
    }

    /// Revisions of its modules.
    pub(crate) fn revisions(&self) -> Vec<Revision> {
        self.modules.iter().map(|module| module.revision).collect()
    }

    fn rejection(&self, module: usize, kind: RejectionKind) -> Box<Rejection> {
        let ModuleIdentity { name, stage, revision } = &self.modules[module];
        Box::new(Rejection {
            stage: *stage,
            module: name.clone(),
            revision: Some(*revision),
            kind,
            code: kind.as_str().into(),
            field: None,
            reason: "as the payload asks for".into(),
        })
    }

    /// What the chain says of a record; `hasty` where it may run out of time or memory.
    fn verdict(&self, kind: u8, hasty: bool) -> Result<u8, Box<Rejection>> {
        let random = &mut *self.random.lock().expect("never poisoned");
        match kind {
            b'x' => Err(self.rejection(0, RejectionKind::Rejected)),
            b'v' if self.number == 1 => Err(self.rejection(0, RejectionKind::Rejected)),
            b'v' => Ok(self.number),
            b'u' if random.chance(0.5) => Err(self.rejection(1, RejectionKind::Rejected)),
            b'u' => Ok(random.below(2) as u8),
            b't' if hasty && random.chance(0.5) => {
                let kind = *random.pick(&[RejectionKind::Timeout, RejectionKind::Memory]);
                Err(self.rejection(random.below(2) as usize, kind))
            }
            _ => Ok(0),
        }
    }

    /// Verdicts on every record of a chunk.
    pub(crate) fn judge(&self, chunk: &Chunk, forced: &[Forced], hasty: bool) -> ChunkVerdicts {
        let mut outputs = vec![OutputRows::default(); self.outputs.len()];
        let mut rejections = Vec::new();
        for index in 0..chunk.len() {
            let kind = chunk.record(index).payload.map_or(0, |payload| payload[0]);
            let verdict = match forced.iter().find(|forced| forced.index as usize == index) {
                Some(forced) => Err(self.rejection(forced.module, forced.kind.rejection_kind())),
                None => self.verdict(kind, hasty),
            };
            let rows = if verdict.is_ok() { rows_of(kind, self.outputs.len()) } else { [0; OUTPUTS] };
            for (output, filled) in outputs.iter_mut().enumerate() {
                for _ in 0..rows[output] {
                    filled.bytes.extend([kind, *verdict.as_ref().unwrap_or(&0)]);
                    filled.row_ends.push(filled.bytes.len() as u32);
                }
                filled.rows_per_record.push(rows[output]);
            }
            rejections.extend(verdict.err().map(|rejection| (index as u32, *rejection)));
        }
        ChunkVerdicts { chain: self.revision(), outputs, rejections }
    }
}

fn tables(outputs: usize) -> Vec<TableBinding> {
    thread_local! {
        static BINDINGS: Vec<TableBinding> = bindings();
    }
    BINDINGS.with(|bindings| bindings[..outputs].to_vec())
}

fn bindings() -> Vec<TableBinding> {
    let definition = |(name, type_name): (&str, &str)| ColumnDefinition {
        name: name.into(),
        column_type: ColumnType::parse(type_name).expect("a type"),
    };
    let columns: Vec<ColumnDefinition> =
        [("_topic", "String"), ("_partition", "Int32"), ("_offset", "Int64"), ("_revision", "String")]
            .map(definition)
            .into();
    let provenance = Provenance::of(&columns).expect("columns as they must be");
    let own = [("kind", "String"), ("said", "String")].map(definition);
    let columns: Arc<[ColumnDefinition]> = own.into_iter().chain(columns).collect();
    let table = |output| TableBinding {
        table: format!("table{output}").into(),
        columns: columns.clone(),
        provenance: provenance.clone(),
        shows_every_row: true,
    };
    (0..OUTPUTS).map(table).collect()
}

impl Chain for FakeChain {
    fn revision(&self) -> Revision {
        Revision([50 + self.number; 32])
    }

    fn modules(&self) -> &[ModuleIdentity] {
        &self.modules
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn runner(&self) -> Box<dyn ChainRunner> {
        let (modules, outputs) = (self.modules.clone(), self.outputs.clone());
        Box::new(FakeRunner(Self { number: self.number, modules, outputs, random: self.random.clone() }))
    }
}

struct FakeRunner(FakeChain);

impl ChainRunner for FakeRunner {
    fn run(&mut self, chunk: &Chunk) -> ChunkVerdicts {
        self.0.judge(chunk, &[], true)
    }

    fn run_again(&mut self, chunk: &Chunk, forced: &[Forced]) -> ChunkVerdicts {
        self.0.judge(chunk, forced, false)
    }
}

/// Whether a second run might not repeat a rejection.
pub(crate) fn is_forced(rejection: &Rejection) -> bool {
    ForcedKind::of(rejection.kind).is_some()
}

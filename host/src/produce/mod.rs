//! Producing test traffic: a seeded generator driven by a description, files of lines, and a
//! sender that confirms every delivery.
//!
//! An adapter of its own, used by `sluice produce`, `sluice demo` and tests. It imports nothing
//! but [`crate::domain`]. Nothing here knows what a record means: that is in the description file
//! (`docs/GENERATOR.md`).

mod check;
mod description;
mod expected;
mod fault;
mod generator;
mod lines;
mod message;
mod random;
mod sender;
mod text;
mod topic;

pub use description::{
    AddedHeader, Alteration, Alternative, BaseTime, CellPath, Description, DescriptionError, Expectation,
    ExpectedRejection, Fault, FillField, IntegerMaker, Maker, NestField, ObjectMaker, OptionalMaker,
    PercentageMaker, RawField, SetField, Span, Table, TimestampMaker, UtcOffset, WeightedValue,
};
pub use expected::ExpectedVerdict;
pub use generator::{Generated, Generator, GeneratorOptions};
pub use lines::{LineError, LineOptions, Lines};
pub use message::{FieldPath, Message, key_of};
pub use sender::{Compression, ProduceError, ProducerOptions, Progress, Summary, send};
pub use text::TextPattern;

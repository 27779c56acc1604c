//! The parts that run inside or beside the process for `demo` and tests.

pub mod broker;

//! The pure core of the host and the bodies of the fuzz targets, without the rest of the host.

#[allow(dead_code, missing_docs, reason = "the targets use a part of it")]
#[path = "../../src/domain/mod.rs"]
pub mod domain;
pub mod targets;

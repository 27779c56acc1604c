//! Composition root: the only file that names concrete adapters.

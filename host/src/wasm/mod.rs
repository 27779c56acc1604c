//! The wasm host: engine, limits, chain, registry.

//! Bindings generated from `guest-sdk/wit/module.wit`, alone in their file; nothing is written by hand.
//!
//! Lists go in borrowed (`ownership: Borrowing`), so the columns of a chunk are copied once, into the
//! guest's memory. The worlds share the types of `mapper`, which uses all of them: for types that a
//! world does not use wasmtime 48 generates code that lacks a lifetime. Of the import only its type is used:
//! `log.rs` links it by hand, so that a line that is dropped is not copied first.

#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "generated from the contract, whose WIT file documents it; the host calls a part of it"
)]

pub(super) mod mapper {
    wasmtime::component::bindgen!({
        path: "../guest-sdk/wit",
        world: "mapper",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

pub(super) mod validator {
    wasmtime::component::bindgen!({
        path: "../guest-sdk/wit",
        world: "validator",
        ownership: Borrowing { duplicate_if_necessary: true },
        with: {
            "sluice:module/types": super::mapper::sluice::module::types,
            "sluice:module/log": super::mapper::sluice::module::log,
        },
    });
}

pub(super) use mapper::sluice::module::{log, types};

//! Generated from `wit/module.wit`, alone in its file. The two worlds share one set of types and one log.

#![allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code: the canonical ABI passes pointers"
)]

pub mod validator {
    wit_bindgen::generate!({
        path: "wit",
        world: "validator",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "sluice_sdk::bindings::validator",
        generate_unused_types: true,
        runtime_path: "::sluice_sdk::bindings::runtime",
    });
}

pub mod mapper {
    wit_bindgen::generate!({
        path: "wit",
        world: "mapper",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "sluice_sdk::bindings::mapper",
        with: {
            "sluice:module/types@0.1.0": crate::bindings::validator::sluice::module::types,
            "sluice:module/log@0.1.0": crate::bindings::validator::sluice::module::log,
        },
        runtime_path: "::sluice_sdk::bindings::runtime",
    });
}

/// What generated exports call, under a path that authors' crates can name without depending on
/// `wit-bindgen` themselves.
pub use wit_bindgen::rt as runtime;

pub use validator::sluice::module::types;

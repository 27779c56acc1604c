//! Write Sluice modules in Rust.
//!
//! A *validator* is one function over a record, a *mapper* one function from a record to rows:
//!
//! - [`Validator`] and [`validator!`]: accept a record, or refuse it with a [`Rejection`];
//! - [`Mapper`] and [`mapper!`]: [`emit`](Output::emit) rows whose columns `#[derive(Row)]` gives;
//! - [`Record`]: payload, key, headers, timestamp, topic, partition, offset, and
//!   [`json`](Record::json), which reads a payload and says what is wrong with it, field by field;
//! - [`Value`]: the Rust types of ClickHouse's column types;
//! - [`log!`]: a line in the host's log;
//! - [`testing`]: runs a module natively, so that its rules are tested with `cargo test`.
//!
//! A module is a pure function of its settings and a record: its sandbox has no clock, no
//! randomness, no files and no network, only a log that it may write to, and what it is told of one record must not depend on
//! another. One value of the author's type serves a whole wasm instance; records are borrowed from
//! the chunk as it was received.

// The derive macros name this crate by its outside name.
extern crate self as sluice_sdk;

#[doc(hidden)]
pub mod bindings;
pub mod json;
mod log;
mod mapper;
mod record;
mod rejection;
mod settings;
pub mod testing;
mod timestamp;
mod validator;
mod value;

pub use bindings::mapper::exports::sluice::module::map::Output as OutputDeclaration;
pub use bindings::validator::sluice::module::types::{Column, Rows};
pub use log::Level;
pub use mapper::{Mapper, Output, Outputs, Row};
pub use record::{Headers, Record};
pub use rejection::{At, Rejection};
pub use settings::NoSettings;
pub use sluice_sdk_derive::{Enum8, Enum16, Outputs, Row, Tuple};
pub use timestamp::{Timestamp, TimestampError};
pub use validator::Validator;
pub use value::{
    Date, Date32, DateTime, DateTime64, Decimal, Dictionary, FixedString, LowCardinality, Map, OutOfRange,
    Scalar, ServerZone, Utc, Uuid, Value, Zone,
};

/// What the macros expand to; not for authors.
#[doc(hidden)]
pub mod adapter {
    pub use crate::log::log;
    pub use crate::mapper::{declare, map};
    pub use crate::settings::Slot;
    pub use crate::validator::validate;
}

/// Exports a [`Validator`] as this crate's module: `validator!(MyRule);`, or, for a rule without
/// settings, a function over a record: `validator!(fn my_rule);`.
///
/// Exports exist in wasm builds only, so a crate with a module in it is an ordinary crate natively.
#[macro_export]
macro_rules! validator {
    (fn $function:path) => {
        const _: () = {
            struct Rule;
            impl $crate::Validator for Rule {
                type Settings = $crate::NoSettings;
                fn new(_: $crate::NoSettings) -> ::core::result::Result<Self, ::std::string::String> {
                    ::core::result::Result::Ok(Self)
                }
                fn validate(
                    &self,
                    record: &$crate::Record<'_>,
                ) -> ::core::result::Result<(), $crate::Rejection> {
                    $function(record)
                }
            }
            $crate::validator!(Rule);
        };
    };
    ($rule:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::bindings::validator::exports::sluice::module::validate;

            ::std::thread_local! {
                static INSTANCE: $crate::adapter::Slot<$rule> = const { $crate::adapter::Slot::new() };
            }

            struct Export;

            impl validate::Guest for Export {
                fn init(config: ::std::string::String) -> ::core::result::Result<(), ::std::string::String> {
                    INSTANCE.with(|slot| slot.fill(&config, <$rule as $crate::Validator>::new))
                }

                fn validate(
                    batch: validate::Records,
                    selected: ::std::vec::Vec<u32>,
                ) -> ::std::vec::Vec<validate::Rejection> {
                    INSTANCE.with(|slot| $crate::adapter::validate(slot.get(), &batch, &selected))
                }
            }

    $crate::bindings::validator::export!(Export with_types_in $crate::bindings::validator);
        };

        #[cfg(not(target_family = "wasm"))]
        const _: fn() = || {
            fn is_a_validator<T: $crate::Validator>() {}
            is_a_validator::<$rule>();
        };
    };
}

/// Exports a [`Mapper`] as this crate's module: `mapper!(MyMapper);`.
///
/// Exports exist in wasm builds only, so a crate with a module in it is an ordinary crate natively.
#[macro_export]
macro_rules! mapper {
    ($mapper:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::bindings::mapper::exports::sluice::module::map;

            ::std::thread_local! {
                static INSTANCE: $crate::adapter::Slot<$mapper> = const { $crate::adapter::Slot::new() };
            }

            struct Export;

            impl map::Guest for Export {
                fn init(
                    config: ::std::string::String,
                ) -> ::core::result::Result<::std::vec::Vec<map::Output>, ::std::string::String> {
                    INSTANCE.with(|slot| slot.fill(&config, <$mapper as $crate::Mapper>::new))?;
                    $crate::adapter::declare::<$mapper>()
                }

                fn map(batch: map::Records, selected: ::std::vec::Vec<u32>) -> map::Mapped {
                    INSTANCE.with(|slot| $crate::adapter::map(slot.get(), &batch, &selected))
                }
            }

    $crate::bindings::mapper::export!(Export with_types_in $crate::bindings::mapper);
        };

        #[cfg(not(target_family = "wasm"))]
        const _: fn() = || {
            fn is_a_mapper<T: $crate::Mapper>() {}
            is_a_mapper::<$mapper>();
        };
    };
}

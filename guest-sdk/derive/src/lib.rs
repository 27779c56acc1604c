//! The derive macros of `sluice-sdk`: `Row`, `Outputs`, `Tuple`, `Enum8` and `Enum16`.
//!
//! They only arrange calls of the traits in `sluice-sdk`; what a type looks like on the wire is
//! decided there. Whatever an author gets wrong is a compile error at the attribute or field.

mod enumeration;
mod outputs;
mod row;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Columns and RowBinary encoding of a struct: each field is a column, in order.
///
/// `#[row(output = "name")]` on the struct names the output that its rows belong to.
/// On a field, `#[row(rename = "column")]` gives the column another name than the field, and
/// `#[row(type = "ClickHouseType")]` another type name than the field's type has by itself (the
/// bytes stay those of the field's type).
#[proc_macro_derive(Row, attributes(row))]
pub fn derive_row(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    row::derive_row(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// A struct as one value of a named `Tuple(...)`. Fields take the attributes that `Row` takes.
#[proc_macro_derive(Tuple, attributes(row))]
pub fn derive_tuple(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    row::derive_tuple(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// The outputs of a mapper that fills several: a struct whose fields are all `Output<SomeRow>`.
#[proc_macro_derive(Outputs)]
pub fn derive_outputs(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    outputs::derive(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// An enum without fields as an `Enum8(...)` column. Its discriminants are the stored numbers, the
/// variants' names the stored names unless `#[row(rename = "name")]` says otherwise.
#[proc_macro_derive(Enum8, attributes(row))]
pub fn derive_enum8(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    enumeration::derive(&input, 8).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// As `Enum8`, for an `Enum16(...)` column.
#[proc_macro_derive(Enum16, attributes(row))]
pub fn derive_enum16(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    enumeration::derive(&input, 16).unwrap_or_else(syn::Error::into_compile_error).into()
}

//! `#[derive(Outputs)]`: every field of the struct is one `Output<SomeRow>`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Fields, Result};

pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, "`Outputs` is for structs"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new_spanned(&input.ident, "`Outputs` needs named fields"));
    };
    if fields.named.is_empty() {
        return Err(Error::new_spanned(&input.ident, "`Outputs` needs at least one `Output<SomeRow>`"));
    }
    let ident = &input.ident;
    let names: Vec<_> = fields.named.iter().map(|field| &field.ident).collect();
    let types: Vec<_> = fields.named.iter().map(|field| &field.ty).collect();
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics ::sluice_sdk::Outputs for #ident #type_generics #where_clause {
            fn declare(outputs: &mut ::std::vec::Vec<::sluice_sdk::OutputDeclaration>) {
                #(<#types as ::sluice_sdk::Outputs>::declare(outputs);)*
            }

            fn with_capacity(records: usize, bytes: usize) -> Self {
                Self { #(#names: <#types as ::sluice_sdk::Outputs>::with_capacity(records, bytes)),* }
            }

            #[inline]
            fn end_record(&mut self, keep: bool) {
                #(::sluice_sdk::Outputs::end_record(&mut self.#names, keep);)*
            }

            fn finish(self, rows: &mut ::std::vec::Vec<::sluice_sdk::Rows>) {
                #(::sluice_sdk::Outputs::finish(self.#names, rows);)*
            }
        }
    })
}

//! `#[derive(Enum8)]` and `#[derive(Enum16)]`: an enum without fields, stored as its discriminant.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Error, Fields, LitStr, Result, ext::IdentExt};

pub(crate) fn derive(input: &DeriveInput, bits: u8) -> Result<TokenStream> {
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, format!("`Enum{bits}` is for enums")));
    };
    if data.variants.is_empty() {
        return Err(Error::new_spanned(&input.ident, format!("`Enum{bits}` needs at least one variant")));
    }
    let mut names = Vec::new();
    let mut idents = Vec::new();
    for variant in &data.variants {
        if !matches!(variant.fields, Fields::Unit) {
            return Err(Error::new_spanned(variant, "a variant of a ClickHouse enum has no fields"));
        }
        let mut name = variant.ident.unraw().to_string();
        for attribute in variant.attrs.iter().filter(|attribute| attribute.path().is_ident("row")) {
            attribute.parse_nested_meta(|meta| {
                if !meta.path.is_ident("rename") {
                    return Err(meta.error("variants take `rename = \"...\"`"));
                }
                name = meta.value()?.parse::<LitStr>()?.value();
                Ok(())
            })?;
        }
        if names.contains(&name) {
            return Err(Error::new_spanned(variant, format!("another variant is already called `{name}`")));
        }
        names.push(name);
        idents.push(&variant.ident);
    }
    let escaped = names.iter().map(|name| name.replace('\\', "\\\\").replace('\'', "\\'"));
    let ident = &input.ident;
    let integer = format_ident!("i{bits}");
    let prefix = format!("Enum{bits}");
    let out_of_range = format!("a discriminant does not fit Enum{bits}");
    Ok(quote! {
        const _: () = {
            #(::std::assert!(
                #ident::#idents as i64 >= #integer::MIN as i64 && #ident::#idents as i64 <= #integer::MAX as i64,
                #out_of_range
            );)*
        };

        #[automatically_derived]
        impl ::sluice_sdk::Value for #ident {
            fn type_name() -> ::std::string::String {
                let mut variants = [#((#escaped, #ident::#idents as i64)),*];
                variants.sort_by_key(|variant| variant.1);
                let variants: ::std::vec::Vec<::std::string::String> =
                    variants.iter().map(|(name, number)| ::std::format!("'{name}' = {number}")).collect();
                ::std::format!("{}({})", #prefix, variants.join(", "))
            }

            #[inline]
            fn encode(&self, bytes: &mut ::std::vec::Vec<u8>) {
                let number = match self {
                    #(Self::#idents => #ident::#idents as i64 as #integer),*
                };
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }

        #[automatically_derived]
        impl ::sluice_sdk::Scalar for #ident {}
    })
}

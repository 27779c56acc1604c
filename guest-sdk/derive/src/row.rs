//! `#[derive(Row)]` and `#[derive(Tuple)]`: named fields, in order, as columns or tuple elements.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{
    Data, DeriveInput, Error, Field, Fields, GenericParam, Generics, Ident, LitStr, Result, Type,
    ext::IdentExt, parse_quote,
};

/// A field of the struct, as a column or tuple element.
struct Element<'a> {
    ident: &'a Ident,
    name: String,
    field_type: &'a Type,
    type_name: Option<LitStr>,
}

impl<'a> Element<'a> {
    fn new(field: &'a Field, ident: &'a Ident) -> Result<Self> {
        let mut element =
            Self { ident, name: ident.unraw().to_string(), field_type: &field.ty, type_name: None };
        for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("row")) {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("rename") {
                    element.name = non_empty(&meta.value()?.parse()?)?;
                } else if meta.path.is_ident("type") {
                    let type_name: LitStr = meta.value()?.parse()?;
                    non_empty(&type_name)?;
                    element.type_name = Some(type_name);
                } else {
                    return Err(meta.error("fields take `rename = \"...\"` and `type = \"...\"`"));
                }
                Ok(())
            })?;
        }
        Ok(element)
    }

    fn type_name(&self) -> TokenStream {
        let field_type = self.field_type;
        match &self.type_name {
            Some(type_name) => quote!(::std::string::String::from(#type_name)),
            None => quote!(<#field_type as ::sluice_sdk::Value>::type_name()),
        }
    }
}

fn non_empty(literal: &LitStr) -> Result<String> {
    if literal.value().is_empty() {
        return Err(Error::new_spanned(literal, "must not be empty"));
    }
    Ok(literal.value())
}

fn elements<'a>(input: &'a DeriveInput, derive: &str) -> Result<Vec<Element<'a>>> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, format!("`{derive}` is for structs")));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new_spanned(&input.ident, format!("`{derive}` needs named fields")));
    };
    if fields.named.is_empty() {
        return Err(Error::new_spanned(&input.ident, format!("`{derive}` needs at least one field")));
    }
    let elements = fields
        .named
        .iter()
        .filter_map(|field| Some(Element::new(field, field.ident.as_ref()?)))
        .collect::<Result<Vec<_>>>()?;
    for (index, element) in elements.iter().enumerate() {
        if elements[..index].iter().any(|earlier| earlier.name == element.name) {
            return Err(Error::new_spanned(
                element.ident,
                format!("another field is already called `{}`", element.name),
            ));
        }
    }
    Ok(elements)
}

pub(crate) fn derive_row(input: &DeriveInput) -> Result<TokenStream> {
    let elements = elements(input, "Row")?;
    let output = output_name(input)?;
    let ident = &input.ident;
    let generics = bounded(input, &elements);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let static_arguments = input.generics.params.iter().map(|parameter| match parameter {
        GenericParam::Lifetime(_) => quote!('static),
        GenericParam::Type(parameter) => {
            let ident = &parameter.ident;
            quote!(#ident)
        }
        GenericParam::Const(parameter) => {
            let ident = &parameter.ident;
            quote!(#ident)
        }
    });
    let names = elements.iter().map(|element| &element.name);
    let type_names = elements.iter().map(Element::type_name);
    let fields = elements.iter().map(|element| element.ident);
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics ::sluice_sdk::Row for #ident #type_generics #where_clause {
            type Static = #ident<#(#static_arguments),*>;
            const OUTPUT: &'static str = #output;

            fn columns() -> ::std::vec::Vec<::sluice_sdk::Column> {
                ::std::vec![#(::sluice_sdk::Column {
                    name: ::std::string::String::from(#names),
                    type_name: #type_names,
                }),*]
            }

            #[inline]
            fn encode(&self, bytes: &mut ::std::vec::Vec<u8>) {
                #(::sluice_sdk::Value::encode(&self.#fields, bytes);)*
            }
        }
    })
}

/// The generics of the struct, with a bound on the type of each field where there are type
/// parameters: `Option<T>` asks more of `T` than `T` itself does.
fn bounded(input: &DeriveInput, elements: &[Element<'_>]) -> Generics {
    let mut generics = input.generics.clone();
    if generics.type_params().next().is_some() {
        let clause = generics.make_where_clause();
        for element in elements {
            let field_type = element.field_type;
            clause.predicates.push(parse_quote!(#field_type: ::sluice_sdk::Value));
        }
    }
    generics
}

fn output_name(input: &DeriveInput) -> Result<String> {
    let mut output = None;
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("row")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("output") {
                return Err(meta.error("structs take `output = \"...\"`"));
            }
            output = Some(non_empty(&meta.value()?.parse()?)?);
            Ok(())
        })?;
    }
    output.ok_or_else(|| {
        Error::new_spanned(
            &input.ident,
            "say which output these rows belong to: #[row(output = \"...\")], the name that the pipeline \
             binds to a table",
        )
    })
}

pub(crate) fn derive_tuple(input: &DeriveInput) -> Result<TokenStream> {
    let elements = elements(input, "Tuple")?;
    let ident = &input.ident;
    let generics = bounded(input, &elements);
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    let names = elements.iter().map(|element| {
        let plain = element.name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
            && !element.name.starts_with(|letter: char| letter.is_ascii_digit());
        if plain { element.name.clone() } else { format!("`{}`", element.name) }
    });
    let type_names = elements.iter().map(Element::type_name);
    let fields = elements.iter().map(|element| element.ident);
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics ::sluice_sdk::Value for #ident #type_generics #where_clause {
            fn type_name() -> ::std::string::String {
                let elements: ::std::vec::Vec<::std::string::String> =
                    ::std::vec![#(::std::format!("{} {}", #names, #type_names)),*];
                ::std::format!("Tuple({})", elements.join(", "))
            }

            #[inline]
            fn encode(&self, bytes: &mut ::std::vec::Vec<u8>) {
                #(::sluice_sdk::Value::encode(&self.#fields, bytes);)*
            }
        }
    })
}

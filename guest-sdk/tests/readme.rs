//! The README shows modules that exist: each is an example, which is compiled, tested and built for
//! wasm (`wasm_modules.rs`).

#[test]
fn the_readme_shows_the_examples_as_they_are() {
    let readme = include_str!("../README.md");
    for (name, example) in [
        ("minimum_total", include_str!("../examples/minimum_total.rs")),
        ("allowed_countries", include_str!("../examples/allowed_countries.rs")),
        ("known_currencies", include_str!("../examples/known_currencies.rs")),
        ("order_rows", include_str!("../examples/order_rows.rs")),
    ] {
        let (documentation, code) = example.split_once("\n\n").expect("an example opens with what it is");
        assert!(documentation.starts_with("//! "), "{name}");
        assert!(readme.contains(&format!("```rust\n{code}```\n")), "copy examples/{name}.rs into the README");
    }
}

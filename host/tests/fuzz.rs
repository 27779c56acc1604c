//! Bytes at random against the decoders of what others write (`host/fuzz/src/targets.rs`).
//!
//! This is not guided by coverage: inputs are mutated at random from the corpus and from what was taken
//! so far. It is the same at each run; `FUZZ_SEED` and `FUZZ_RUNS` give another and a longer one. `make fuzz` runs
//! the same targets with libFuzzer, guided by coverage.

#[path = "../fuzz/src/targets.rs"]
pub mod targets;

use std::panic::catch_unwind;
use std::path::Path;

use rand::prelude::*;
use sluice::domain;

/// Longest input in bytes.
const LONGEST: usize = 4096;
/// Inputs that were taken which are kept to go on from.
const KEPT: usize = 512;
/// Bytes that decoders treat specially: ends of ranges, of varints, of text.
const SPECIAL: [u8; 10] = [0, 1, 0x7f, 0x80, 0x81, 0xff, b'\n', b'(', b')', b','];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn mutate(random: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    let at = random.random_range(0..=input.len());
    match random.random_range(0..8) {
        0 | 1 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        2 if at < input.len() => input[at] = *SPECIAL.choose(random).expect("some"),
        3 => input.insert(at, random.random()),
        4 if at < input.len() => {
            let end = (at + random.random_range(1..=8)).min(input.len());
            input.drain(at..end);
        }
        5 => {
            // The end of another, so that parts of both are met together.
            input.truncate(at);
            input.extend(&other[random.random_range(0..=other.len())..]);
        }
        6 if at < input.len() => {
            let end = (at + random.random_range(1..=32)).min(input.len());
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
        _ => input.truncate(at),
    }
    input.truncate(LONGEST);
}

/// Runs a target on its corpus, then on what becomes of it. Answers how many inputs were taken.
fn fuzz(name: &str, target: fn(&[u8]) -> bool) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let mut pool: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("a file")).collect();
    assert!(!pool.is_empty(), "{name} has no corpus");
    for (file, input) in files.iter().zip(&pool) {
        let is_refused = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("refused-"));
        assert_eq!(target(input), !is_refused, "{} says otherwise", file.display());
    }
    let (seed, runs) = (setting("FUZZ_SEED", 1), setting("FUZZ_RUNS", 20_000));
    let mut random = StdRng::seed_from_u64(seed);
    let mut taken = 0;
    for run in 0..runs {
        let mut input = pool.choose(&mut random).expect("some").clone();
        let other = pool.choose(&mut random).expect("some").clone();
        for _ in 0..random.random_range(1..=6) {
            mutate(&mut random, &mut input, &other);
        }
        let is_taken = catch_unwind(|| target(&input)).unwrap_or_else(|_| {
            panic!("{name}, FUZZ_SEED={seed}, run {run}, breaks on the bytes {}", hex::encode(&input))
        });
        if is_taken {
            taken += 1;
            if pool.len() < KEPT {
                pool.push(input);
            } else {
                let place = random.random_range(files.len()..KEPT);
                pool[place] = input;
            }
        }
    }
    taken
}

#[test]
fn intents_as_text() {
    // The checksum keeps nearly everything out, but not what was not changed after all.
    fuzz("intent_text", targets::intent_text);
}

#[test]
fn intents_behind_their_checksum() {
    let taken = fuzz("intent_payload", targets::intent_payload);
    assert!(taken > 100, "only {taken} inputs came through, so little was tried");
}

#[test]
fn answers_of_guests() {
    let taken = fuzz("answer", targets::answer);
    assert!(taken > 100, "only {taken} inputs came through, so little was tried");
}

#[test]
fn rows_of_declared_columns() {
    let taken = fuzz("row", targets::row);
    assert!(taken > 100, "only {taken} inputs came through, so little was tried");
}

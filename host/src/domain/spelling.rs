//! Spelling: what somebody probably meant who wrote a word that is not known.

/// The word of `known` that `word` was probably meant to be, if any.
pub fn closest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let score = |candidate: &str| strsim::jaro_winkler(word, candidate);
    known
        .into_iter()
        .filter(|candidate| score(candidate) > 0.8)
        .max_by(|left, right| score(left).total_cmp(&score(right)))
}

/// Cure for a word that is not among `known`.
pub fn one_of<'k>(word: &str, known: impl IntoIterator<Item = &'k str> + Clone) -> String {
    match closest(word, known.clone()) {
        Some(candidate) => format!("did you mean `{candidate}`?"),
        None => {
            let mut known: Vec<_> = known.into_iter().map(|known| format!("`{known}`")).collect();
            known.sort();
            match known.as_slice() {
                [] => "remove it".to_owned(),
                [only] => format!("it can be {only}"),
                [others @ .., last] => format!("it can be {} or {last}", others.join(", ")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_nearly_known_is_guessed_and_of_others_all_are_named() {
        assert_eq!(one_of("paylod", ["payload", "key"]), "did you mean `payload`?");
        assert_eq!(one_of("xyz", ["payload", "key"]), "it can be `key` or `payload`");
        assert_eq!(closest("xyz", ["payload", "key"]), None);
    }
}

//! Names that are almost right.

/// Returns the name that is spelled almost like `name`.
pub fn nearest_name<'n>(name: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    /// Likeness of `sek` and `seq`, the shortest that are taken for each other.
    const LEAST_LIKENESS: f64 = 0.8;
    let wanted = plain(name);
    let likeness = |name: &str| strsim::jaro_winkler(&wanted, &plain(name));
    let best = names.into_iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    best.filter(|best| likeness(best) >= LEAST_LIKENESS)
}

/// A name as it is compared: `createdAt` is `created_at`.
pub fn plain(name: &str) -> String {
    name.to_lowercase().replace(['_', '-', ' '], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_spelled_almost_so_is_the_one_that_was_meant() {
        let names = ["id", "run", "created_at", "sequence_no", "stepId", "payload"];
        for (written, meant) in [
            ("createdAt", Some("created_at")),
            ("sequence", Some("sequence_no")),
            ("step_id", Some("stepId")),
            ("paylaod", Some("payload")),
            ("actor", None),
        ] {
            assert_eq!(nearest_name(written, names), meant, "{written}");
        }
        assert_eq!(nearest_name("sek", ["seq"]), Some("seq"));
    }
}

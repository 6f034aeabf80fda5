//! What fetchers take, as they announce it: rules that leave records out before the writer hears of them. Pure.

use std::collections::BTreeSet;

use lake_proto::queue::v1::Taken;
use lake_shared::identity::Kind;

/// Most names that a sentence tells.
const NAMES_MAX: usize = 20;

/// The allow-lists of all fetchers that are heard; what one of them takes is taken. `None`: everything is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    is_heard: bool,
    domains: Option<BTreeSet<String>>,
    case_types: Option<BTreeSet<String>>,
    form_xmlns: Option<BTreeSet<String>>,
}

impl Rules {
    pub(super) fn of<'a>(taken: impl Iterator<Item = &'a Taken>) -> Self {
        let taken: Vec<&Taken> = taken.collect();
        let list = |of: fn(&Taken) -> &[String]| {
            let is_bounded = !taken.is_empty() && taken.iter().all(|taken| !of(taken).is_empty());
            is_bounded.then(|| taken.iter().flat_map(|taken| of(taken)).cloned().collect())
        };
        Self {
            is_heard: !taken.is_empty(),
            domains: list(|taken| &taken.domains),
            case_types: list(|taken| &taken.case_types),
            form_xmlns: list(|taken| &taken.form_xmlns),
        }
    }

    /// Why records of a project are left out; empty: they are not, or no project is named.
    pub(super) fn leave_out(&self, domain: &str) -> Vec<String> {
        let is_left_out = !domain.is_empty() && self.domains.as_ref().is_some_and(|taken| !taken.contains(domain));
        let sentence =
            || format!("project {domain} is not in take.domains of the fetchers: none of its records is read");
        is_left_out.then(sentence).into_iter().collect()
    }

    /// What is not known, as neither the project nor the type of the record is. Only projects are named that are seen.
    pub(super) fn unknown(&self, domain: &str, kind: Option<Kind>, is_seen: impl Fn(&str) -> bool) -> Vec<String> {
        if !self.is_heard {
            let sentence =
                "whether section [take] of the fetchers leaves out its project or its type: no fetcher is heard now";
            return vec![sentence.into()];
        }
        let mut sentences = Vec::new();
        if let Some(taken) = self.domains.as_ref().filter(|_| domain.is_empty()) {
            let seen = taken.iter().filter(|domain| is_seen(domain));
            sentences.push(format!("whether its project is taken: the fetchers take only {}", names(seen)));
        }
        let lists = [(Kind::Case, "case type", &self.case_types), (Kind::Form, "xmlns", &self.form_xmlns)];
        for (of, what, list) in lists {
            if let Some(taken) = list.as_ref().filter(|_| kind.is_none_or(|kind| kind == of)) {
                sentences.push(format!("whether its {what} is taken: the fetchers take only {}", names(taken.iter())));
            }
        }
        sentences
    }
}

/// The first names, and how many more there are.
fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&String> = names.collect();
    let told: Vec<&str> = names.iter().take(NAMES_MAX).map(|name| name.as_str()).collect();
    match names.len().saturating_sub(NAMES_MAX) {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(domains: &[&str], case_types: &[&str]) -> Taken {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Taken { domains: owned(domains), case_types: owned(case_types), form_xmlns: Vec::new() }
    }

    #[test]
    fn a_project_that_no_fetcher_takes_is_left_out() {
        let both = [taken(&["a", "b"], &[]), taken(&["c"], &["t"])];
        let rules = Rules::of(both.iter());
        assert_eq!(rules.leave_out("c"), Vec::<String>::new());
        assert!(rules.leave_out("d")[0].contains("project d is not in take.domains"));
        assert_eq!(rules.leave_out(""), Vec::<String>::new());
        let unknown = rules.unknown("", Some(Kind::Case), |domain| domain != "b");
        assert_eq!(unknown, ["whether its project is taken: the fetchers take only a, c"], "one takes all types");
        let everything = [taken(&["a"], &["t"]), taken(&[], &["u"])];
        let rules = Rules::of(everything.iter());
        assert_eq!(rules.leave_out("d"), Vec::<String>::new());
        assert_eq!(rules.unknown("d", Some(Kind::Form), |_| true), Vec::<String>::new());
        assert_eq!(rules.unknown("d", None, |_| true), ["whether its case type is taken: the fetchers take only t, u"]);
    }

    #[test]
    fn without_a_fetcher_nothing_is_known() {
        let rules = Rules::of(std::iter::empty());
        assert_eq!(rules.leave_out("d"), Vec::<String>::new());
        assert!(rules.unknown("d", None, |_| true)[0].contains("no fetcher is heard"));
    }

    #[test]
    fn long_lists_are_cut() {
        let many: Vec<String> = (10..40).map(|number| number.to_string()).collect();
        let told = names(many.iter());
        assert!(told.starts_with("10, 11") && told.ends_with("29 and 10 more"), "{told}");
    }
}

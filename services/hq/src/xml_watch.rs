//! Watches how many live forms have no XML in any blob store. One now and then is lost; many at once mean that a store is missing in the
//! configuration, or that the one that is named is another one, and the lake would fill with forms without answers.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::metric_names;

/// Live forms that are looked back upon.
const FORMS_WATCHED: usize = 200;
/// So many of them without XML begin a spell.
const MISSING_MANY: usize = 20;
/// So few end it.
const MISSING_FEW: usize = 4;

/// The XML of the last live forms.
#[derive(Debug, Default)]
pub struct XmlWatch(Mutex<Watched>);

#[derive(Debug, Default)]
struct Watched {
    /// Whether it was missing, the newest last.
    forms: VecDeque<bool>,
    missing: usize,
    alarm: bool,
}

impl XmlWatch {
    /// Takes note whether the XML of a live form was missing. The log is told when a spell begins and when it ends.
    pub fn note(&self, missing: bool) {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (forms, count, before) = (watched.forms.len() + 1, watched.add(missing), watched.alarm);
        watched.alarm = if before { count > MISSING_FEW } else { count >= MISSING_MANY };
        let forms = forms.min(FORMS_WATCHED);
        metrics::gauge!(metric_names::FORM_XML_MISSING_SHARE).set(count as f64 / forms as f64);
        match (before, watched.alarm) {
            (false, true) => {
                tracing::error!(missing = count, forms, "many forms have no XML in any blob store: {ADVICE}")
            }
            (true, false) => tracing::info!(missing = count, forms, "the XML of forms is found again"),
            _ => {}
        }
    }

    /// For `/ready`.
    ///
    /// # Errors
    /// In a spell: how many are missing, and what to do.
    pub fn check(&self) -> Result<(), String> {
        let watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !watched.alarm {
            return Ok(());
        }
        Err(format!(
            "{} of the last {} forms have no XML in any blob store: {ADVICE}",
            watched.missing,
            watched.forms.len()
        ))
    }
}

/// What an operator does in a spell.
const ADVICE: &str = "compare hq.blobs.stores with HQ's settings, as HQ may read from a second store; their answers are missing in the lake \
                      until HQ publishes the forms again";

impl Watched {
    /// How many are missing with this one.
    fn add(&mut self, missing: bool) -> usize {
        self.forms.push_back(missing);
        self.missing += usize::from(missing);
        if self.forms.len() > FORMS_WATCHED && self.forms.pop_front() == Some(true) {
            self.missing -= 1;
        }
        self.missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(watch: &XmlWatch, count: usize, missing: bool) {
        (0..count).for_each(|_| watch.note(missing));
    }

    #[test]
    fn many_missing_ones_are_told_until_they_are_few() {
        let watch = XmlWatch::default();
        note(&watch, 1_000, false);
        note(&watch, MISSING_MANY - 1, true);
        assert_eq!(watch.check(), Ok(()), "some are always lost");
        note(&watch, 1, true);
        let told = watch.check().err().unwrap_or_default();
        assert!(told.starts_with("20 of the last 200 forms") && told.contains("hq.blobs.stores"), "{told}");
        note(&watch, FORMS_WATCHED - MISSING_MANY, false);
        assert!(watch.check().is_err());
        note(&watch, MISSING_MANY - MISSING_FEW, false);
        assert_eq!(watch.check(), Ok(()));
    }

    #[test]
    fn a_store_that_was_forgotten_is_told_at_once() {
        let watch = XmlWatch::default();
        note(&watch, MISSING_MANY, true);
        assert!(watch.check().is_err());
    }
}

//! Domains with more location types than get columns.

use std::sync::atomic::AtomicUsize;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::*;

/// Counts what is logged as a warning.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn a_domain_with_too_many_types_has_some_columns_and_is_told_once() {
    let warnings = Warnings::default();
    let _subscriber = tracing::subscriber::set_default(warnings.clone());
    let hq = gated_hq(1_000);
    for domain in ["a", "b"] {
        (0..500).for_each(|id| hq.memory.change(&[location_type(domain, 10 + id, &format!("type {id}"))]));
    }
    let caches = Caches::new(&hq.hq(), &EnricherOptions { location_types_max: 20, ..EnricherOptions::default() });
    let types = async |domain: &str| {
        let locations = caches.trees.domain_locations(&domain.into(), i64::MIN).await.unwrap();
        (locations.type_columns().len(), locations.types_left_out())
    };
    assert_eq!((types("demo").await, warnings.0.load(Ordering::SeqCst)), ((1, 0), 0));
    for _ in 0..3 {
        for domain in ["a", "b"] {
            assert_eq!(types(domain).await, (20, 481));
            // Once refreshed, once read as a whole again.
            caches.invalidate(&invalidation("location", domain, &["l1"]));
            assert_eq!(types(domain).await, (20, 481));
            caches.invalidate(&invalidation("location", domain, &[]));
        }
    }
    assert_eq!(warnings.0.load(Ordering::SeqCst), 2, "one for each domain");
}

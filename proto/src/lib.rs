//! The contracts between the services of CommCare Lake, generated from the `.proto` files beside this crate.

/// Messages between fetcher, enricher and writer.
pub mod queue {
    /// Version 1 of the queue messages.
    #[allow(missing_docs, reason = "generated; the documentation stands in queue.proto")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/lake.queue.v1.rs"));
    }
}

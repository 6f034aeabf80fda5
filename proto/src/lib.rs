//! The contracts between the services of CommCare Lake, generated from the `.proto` files beside this crate.

/// Messages between fetcher, enricher and writer.
pub mod queue {
    /// Version 1 of the queue messages.
    #[allow(missing_docs, reason = "generated; the documentation stands in queue.proto")]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/lake.queue.v1.rs"));
    }
}

/// The interface by which operators see and steer the lake.
pub mod admin {
    /// Version 1 of the interface.
    #[allow(missing_docs, clippy::all, reason = "generated; the documentation stands in the .proto files")]
    pub mod v1 {
        tonic::include_proto!("lake.admin.v1");

        /// The contract itself, encoded, for reflection.
        pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lake.admin.v1.bin"));
    }
}

/// How KEDA asks for the replicas of a stage.
#[allow(missing_docs, clippy::all, reason = "generated; the documentation stands in externalscaler.proto")]
pub mod external_scaler {
    tonic::include_proto!("externalscaler");

    /// The contract itself, encoded, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/externalscaler.bin"));
}

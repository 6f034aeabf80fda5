//! Reading CommCare HQ as HQ itself would: its change feed's messages, documents, form XML, locations and users.
//! Knows nothing of Kafka clients, queues or Delta.

pub mod blobs;
pub mod change_meta;
pub mod connect;
pub mod document_rules;
pub mod documents;
pub mod locations;
pub mod postgres;
pub mod sharding;
pub mod source;
pub mod timestamp;
pub mod users;
pub mod xform;

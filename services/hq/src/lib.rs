//! Reading CommCare HQ as HQ itself would: its change feed's messages, documents, form XML, locations and users.
//! Knows nothing of Kafka clients, queues or Delta.

pub mod change_meta;
pub mod document_rules;
pub mod documents;
pub mod locations;
pub mod sharding;
pub mod source;
pub mod timestamp;

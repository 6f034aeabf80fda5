//! Why something is in quarantine: every reason of every service, with what it means and what to do next.

use std::fmt;

/// Declares the reasons, so that none can be without a code, a meaning and a next step, or be missing in [`Reason::ALL`].
macro_rules! reasons {
    ($($reason:ident = $code:literal { meaning: $meaning:literal, next_step: $next_step:literal })+) => {
        /// Why something cannot be handled. The codes are stored in the metastore and are labels of metrics: they never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $meaning] $reason,)+
        }

        impl Reason {
            /// All reasons, in the order in which a record passes through the services.
            pub const ALL: &[Self] = &[$(Self::$reason,)+];

            /// Stable code, for example `record_too_large`.
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$reason => $code,)+
                }
            }

            /// For people: what is wrong, and what the lake shows of the record meanwhile.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$reason => $meaning,)+
                }
            }

            /// For people: what an operator does about it.
            pub const fn next_step(self) -> &'static str {
                match self {
                    $(Self::$reason => $next_step,)+
                }
            }
        }
    };
}

reasons! {
    ChangeMalformedJson = "change_malformed_json" {
        meaning: "A message of HQ's change feed is not JSON, so the record that changed is not known.",
        next_step: "Find out what publishes such messages to the topic. `lakectl quarantine replay --reason change_malformed_json` reads the records again whose messages this version understands; save the others in HQ again if their ids can be told from the payload (`lakectl quarantine get`)."
    }
    ChangeNotAnObject = "change_not_an_object" {
        meaning: "A message of HQ's change feed is JSON but not an object, so the record that changed is not known.",
        next_step: "Find out what publishes such messages to the topic. `lakectl quarantine replay --reason change_not_an_object` reads the records again whose messages this version understands; save the others in HQ again if their ids can be told from the payload (`lakectl quarantine get`)."
    }
    ChangeMissingDocumentId = "change_missing_document_id" {
        meaning: "A message of HQ's change feed names no document_id, so the record that changed is not known.",
        next_step: "Find out what publishes such messages to the topic. `lakectl quarantine replay --reason change_missing_document_id` reads the records again whose messages this version understands; save the others in HQ again if their ids can be told from the payload (`lakectl quarantine get`)."
    }
    ChangeRequestMalformed = "change_request_malformed" {
        meaning: "A message on the stream of changes cannot be decoded, so the records that the lake itself asked for by it are not known.",
        next_step: "Check that writer and fetcher have compatible versions and that nothing else publishes to lake.changes. Then `lakectl quarantine replay --reason change_request_malformed` reads the records again whose messages can be understood by then; otherwise start the operation anew that asked for them."
    }
    DocumentUnreadable = "document_unreadable" {
        meaning: "A JSON column of the record's row in HQ does not hold a JSON object. The lake's row has HQ's other columns; what the column brought before stays, marked in `_lake_incomplete`.",
        next_step: "Repair the column that the detail names in HQ's database, then replay it: `lakectl quarantine replay --reason document_unreadable`."
    }
    RowUndecodable = "row_undecodable" {
        meaning: "HQ's database cannot show a row of the record, or shows one that cannot be decoded, also when it is read alone. The lake keeps the state before this change.",
        next_step: "Repair the row as the detail says (damaged storage, text that is not valid in its encoding), then replay it: `lakectl quarantine replay --reason row_undecodable`."
    }
    RecordTooSlow = "record_too_slow" {
        meaning: "HQ's database cannot answer about the record in the time that a statement may take, not even alone and in pages. The lake keeps the state before this change.",
        next_step: "Raise hq.database.statement_timeout_ms, or leave the transactions of cases out (hq.database.transactions), then replay it: `lakectl quarantine replay --reason record_too_slow`."
    }
    RowsTooLarge = "rows_too_large" {
        meaning: "The rows of the record in HQ's database, its transactions included, take more memory than hq.database.record_bytes_max. The lake keeps the state before this change.",
        next_step: "Raise hq.database.record_bytes_max where the fetcher has the memory, or leave the transactions of cases out (hq.database.transactions), then replay it: `lakectl quarantine replay --reason rows_too_large`."
    }
    FetcherFailed = "fetcher_failed" {
        meaning: "A bug: a change message, or a record that is to be read, makes the fetcher fail. The lake keeps the state before this change.",
        next_step: "Report the detail and the payload as a fault of the lake; after the correction replay it: `lakectl quarantine replay --reason fetcher_failed`."
    }
    FormXmlMissing = "form_xml_missing" {
        meaning: "No blob store has the XML of a live form. The form's row has HQ's own columns; answers that the lake had before stay, marked in `_lake_incomplete`.",
        next_step: "Restore the blob, or add the store that has it to hq.blobs.stores, then replay it: `lakectl quarantine replay --reason form_xml_missing`."
    }
    FormXmlTooLarge = "form_xml_too_large" {
        meaning: "The XML of a form is larger than hq.blobs.size_max_bytes. The form's row has HQ's own columns; answers that the lake had before stay, marked in `_lake_incomplete`.",
        next_step: "Raise hq.blobs.size_max_bytes, and queue.payload_size_max with it, then replay it: `lakectl quarantine replay --reason form_xml_too_large`."
    }
    FormXmlRaises = "form_xml_raises" {
        meaning: "The XML of a form makes HQ's own conversion raise an exception. The form's row has HQ's own columns; answers that the lake had before stay, marked in `_lake_incomplete`.",
        next_step: "Nothing where HQ cannot show the form either (`lakectl quarantine discard --reason form_xml_raises`); otherwise report the XML as a fault of the lake, and after the correction replay it: `lakectl quarantine replay --reason form_xml_raises`."
    }
    FormXmlNotWellFormed = "form_xml_not_well_formed" {
        meaning: "The XML of a form is not well-formed, and HQ shows the form as empty. Its row has HQ's own columns; answers that the lake had before stay, marked in `_lake_incomplete`.",
        next_step: "Look for damage of the blob at the offset that the detail names; restore it, then replay it: `lakectl quarantine replay --reason form_xml_not_well_formed`."
    }
    RecordTooLarge = "record_too_large" {
        meaning: "The record, as a document or as a row, is larger than queue.payload_size_max or than what a service unpacks. The lake's row has HQ's own columns; properties and answers stay as they were, marked in `_lake_incomplete`.",
        next_step: "Raise queue.payload_size_max, or drop large fields by a transform, then replay it: `lakectl quarantine replay --reason record_too_large`."
    }
    RecordBatchMalformed = "record_batch_malformed" {
        meaning: "A message on the stream of records cannot be decoded, so the records in it are not known.",
        next_step: "Check that fetcher and enricher have compatible versions and that nothing else publishes to lake.records. Then `lakectl quarantine replay --reason record_batch_malformed` reads the records again whose messages can be understood by then; have HQ publish those of the others again."
    }
    RecordTypeMissing = "record_type_missing" {
        meaning: "A record came without a type, so it belongs to no table.",
        next_step: "Check that fetcher and enricher have compatible versions, then replay it: `lakectl quarantine replay --reason record_type_missing`."
    }
    DocumentMalformed = "document_malformed" {
        meaning: "The document of a record is not a JSON object.",
        next_step: "Check that fetcher and enricher have compatible versions, then replay it: `lakectl quarantine replay --reason document_malformed`."
    }
    RecordTooWide = "record_too_wide" {
        meaning: "The document of a record has more values than enricher.columns_max allows. The lake's row has HQ's own columns; properties and answers stay as they were, marked in `_lake_incomplete`.",
        next_step: "Raise enricher.columns_max, or drop fields by a transform, then replay it: `lakectl quarantine replay --reason record_too_wide`."
    }
    TombstoneTooLarge = "tombstone_too_large" {
        meaning: "A tombstone is larger than queue.payload_size_max, so the row of the deleted record stays in the lake.",
        next_step: "Raise queue.payload_size_max, then replay it: `lakectl quarantine replay --reason tombstone_too_large`."
    }
    EnricherFailed = "enricher_failed" {
        meaning: "A bug: making rows of the records of a message failed. The lake keeps the state before these changes.",
        next_step: "Report the detail and the payload as a fault of the lake; after the correction replay it: `lakectl quarantine replay --reason enricher_failed`."
    }
    RowBatchMalformed = "row_batch_malformed" {
        meaning: "A message on the stream of rows cannot be decoded, so its rows are not in the lake.",
        next_step: "Check that enricher and writer have compatible versions and that nothing else publishes to lake.rows. Then `lakectl quarantine replay --reason row_batch_malformed` reads the records again whose messages can be understood by then; have HQ publish those of the others again."
    }
    TooManyTypes = "too_many_types" {
        meaning: "The row is of a new type, and its project has as many types as tables.types_max allows. The lake keeps the state before this change.",
        next_step: "Find out what makes so many types; leave them out in section take, or raise tables.types_max, then replay them: `lakectl quarantine replay --reason too_many_types`."
    }
    RowImpossible = "row_impossible" {
        meaning: "The table store refuses the row, whatever else is in its batch.",
        next_step: "Read the detail (`lakectl quarantine get`): correct the record in HQ, or report it as a fault of the lake; then replay it: `lakectl quarantine replay --reason row_impossible`."
    }
    RowFails = "row_fails" {
        meaning: "Storing the row fails each time, and that of other rows does not: a fault of the lake that the row brings about.",
        next_step: "Report the detail and the payload as a fault of the lake; after the correction replay it: `lakectl quarantine replay --reason row_fails`."
    }
    TableUnusable = "table_unusable" {
        meaning: "The row's table can take no rows until it is repaired. The other tables of its project go on.",
        next_step: "Repair the table as the detail says, then replay them: `lakectl quarantine replay --reason table_unusable`."
    }
    QuarantineEntryMalformed = "quarantine_entry_malformed" {
        meaning: "A message on the stream of quarantine cannot be decoded; its bytes are kept as they came.",
        next_step: "Check that all services have compatible versions and that nothing else publishes to lake.quarantine; then `lakectl quarantine replay --reason quarantine_entry_malformed` puts the entries in their places that can be understood by then."
    }
}

impl Reason {
    /// The reason with this code; `None` for a code that this version does not know.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_lead_back_to_their_reason() {
        let codes: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
            assert!(reason.code().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{reason}");
        }
        assert_eq!(Reason::from_code("of_another_version"), None);
    }

    #[test]
    fn every_reason_says_what_it_means_and_what_to_do() {
        for &reason in Reason::ALL {
            for sentence in [reason.meaning(), reason.next_step()] {
                assert!(sentence.len() > 20 && sentence.ends_with('.'), "{reason}: {sentence}");
            }
        }
    }

    /// Codes are stored in metastores and are labels of metrics: each of them is written here a second time, so that changing one shows.
    #[test]
    fn codes_stay_as_they_are_stored() {
        let codes: Vec<&str> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(
            codes,
            [
                "change_malformed_json",
                "change_not_an_object",
                "change_missing_document_id",
                "change_request_malformed",
                "document_unreadable",
                "row_undecodable",
                "record_too_slow",
                "rows_too_large",
                "fetcher_failed",
                "form_xml_missing",
                "form_xml_too_large",
                "form_xml_raises",
                "form_xml_not_well_formed",
                "record_too_large",
                "record_batch_malformed",
                "record_type_missing",
                "document_malformed",
                "record_too_wide",
                "tombstone_too_large",
                "enricher_failed",
                "row_batch_malformed",
                "too_many_types",
                "row_impossible",
                "row_fails",
                "table_unusable",
                "quarantine_entry_malformed",
            ]
        );
    }
}

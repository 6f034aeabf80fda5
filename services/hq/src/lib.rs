//! Reading CommCare HQ as HQ itself would: its change feed's messages, documents, form XML, locations and users.
//! Knows nothing of Kafka clients, queues or Delta.
//!
//! # What can happen with HQ, and where it is dealt with
//!
//! A name in brackets is a test, or a file of tests; without a crate's name it is of this one (`tests`: the proofs on real parts).
//!
//! Messages
//!
//! * *A deletion names no type; a deleted case is announced as saved; forms that are not live come as ordinary saves.* The row decides
//!   ([`document_rules`]; `every_operation_of_hq_on_forms`, `…_on_cases`), and the tables follow (lake: `embedded::tests`).
//! * *The old version of an edited form is not announced.* Its state is another one, and it leaves the lake when it is read (the same tests).
//! * *Repeats and floods.* One read for each id of a batch (fetcher: `duplicates_of_an_id_coalesce_and_a_deletion_is_remembered`); a domain that
//!   floods waits alone (fetcher: `a_domain_that_floods_the_feed_waits_alone`).
//! * *Any order; `server_modified_on` that goes back.* What was read later is newer, by the database's clock in the snapshot; the version only breaks
//!   ties (writer: `order_guard`, `delta/tests/model`). A clock that steps back: ([`clock`]; `a_step_back_is_told_once_…`,
//!   tests: `a_clock_that_steps_back_…`, `clock_steps`).
//! * *Lost messages, silent purges and hard deletes, repairs by SQL.* The lake cannot know of them. A replay or a
//!   reconciliation that names the id gets what is true: a row, or none, which is a deletion (`every_operation_of_hq_on_cases`). A comparison of sums
//!   finds the ids ([`scan::compared`]; tests: `hq_compare`, `reconcile`).
//! * *Old forms of the message, unknown keys.* Only the id is needed ([`change_meta`]; `missing_fields_are_defaulted_and_unknown_ones_ignored`).
//!
//! Fetching
//!
//! * *A row is not there yet.* What a replica does not have is asked of the primary ([`postgres`]; `a_replica_does_not_count_for_what_is_newer_than_it`).
//! * *The XML is missing, broken, or HQ itself cannot convert it.* The form goes to quarantine, and its row is marked as incomplete and keeps the
//!   answers that it had ([`blobs`], `stores_are_asked_in_order`; simulated HQ: `forms_are_read_as_the_life_wrote_them`; writer:
//!   `delta/tests/incomplete`). Many at once are told to the operator (fetcher: `many_missing_ones_are_told_until_they_are_few`). A store that
//!   does not answer is waited for (`a_folder_that_goes_away_is_not_a_missing_blob`).
//! * *A message names a wrong domain.* The row's domain counts (`the_domain_of_the_row_counts`; fetcher: `the_domain_of_the_row_decides_…`).
//! * *The text of the id decides the shard.* It is never changed, and bound, never written into SQL (`check_vectors_hold`; tests: `hq_postgres`).
//! * *HQ is brought to another version, and columns go or get other names.* The tables are looked at again; what is needed and missing stops `/ready`
//!   (tests: `columns_that_go_or_get_another_name_are_looked_up_again`).
//! * *A case with 200,000 transactions, a row that the server cannot show.* Its batch is halved down to it; it is read in pages, or set aside, and HQ is
//!   asked as much as before (tests: `hq_poison`; fetcher: `fetch::tests::poison`).
//! * *pgbouncer, time-outs, a role that may only read.* (tests: `a_cancelled_or_timed_out_read_leaves_nothing_behind`,
//!   `what_somebody_must_act_on_is_refused_and_what_passes_is_not`)
//!
//! Content
//!
//! * *Properties with the names of fixed keys.* The fixed key wins, the property stays in `case_json` (`no_property_hides_a_fixed_key`; what of the
//!   nested copy is shown is the enricher's option `case_json`: `the_nested_copy_shows_what_is_hidden_at_the_top`).
//! * *Names that differ only by case, `a__b` beside `a.b`, any letters and marks.* A column is known by its path, its name is made unique
//!   (enricher: `paths_are_json_pointers`; writer: `names_that_differ_only_by_case_are_told_apart`).
//! * *Everything is text; `""` is not null; a value is now text, now object, now list.* Nothing is converted here (`values_stay_what_they_are`); text is
//!   the truth of a column (enricher: `flatten::tests`; writer: `schema_plan`).
//! * *Phone clocks, dates that are none.* The month is null, never an error (enricher: `a_form_has_the_month_it_was_filled_in`). The version of a row is
//!   the server's time (`a_form_without_server_modified_on_counts_from_its_receipt`).
//! * *A rebuild takes values back; an edit keeps id and receipt.* The document is replaced as a whole; nothing is merged.
//! * *Odd xmlns, case types, names of location types.* Escaped before they are a path (shared: `hostile_names_become_plain_tokens_and_come_back`;
//!   tests: `locations_come_with_their_types_…`).
//! * *Very large forms.* What no message of the queue holds travels in parts (tests: `large_records`). Limits on the blob (`what_is_too_large_is_not_read_packed_or_not`), on the XML (`xform_rules`: `limits`) and on the row (enricher:
//!   `columns_max`) put one record into quarantine; its row shows HQ's own fields and is marked ([`documents::own_fields`]; fetcher:
//!   `a_record_that_is_too_large_comes_without_its_properties_and_marked`).
//! * *`NaN`, `Infinity`, numbers of thirty digits, lists where objects belong, a hundred levels.* Read as HQ's Python reads them, no digit lost
//!   (`numbers_keep_what_python_reads`, `metadata_is_read_as_python_reads_it`, `properties_that_are_no_texts_keep_all_that_they_say`).
//! * *A location type is renamed.* Its columns follow its code, and its locations are emitted again (`a_type_keeps_its_column_when_it_is_renamed`;
//!   fetcher: `the_locations_of_a_renamed_type_come_again`).
//! * *U+0000 and halves of surrogate pairs.* ([`documents`]; `half_a_surrogate_pair_does_not_cost_the_case`, `odd_case_json_…`; an id with U+0000
//!   is not asked for; tests: `hq_records`)
//!
//! Users
//!
//! * *Ids without a user, retired users, web users, every version of the index.* ([`users`]; tests: `hq_users`)
//! * *A worker is assigned while they submit.* (enricher: `caches::users`, `a_new_record_is_not_given_what_was_remembered_before_it`,
//!   `what_hq_answers_just_after_a_change_is_soon_asked_for_again`)
//! * *The owner is a location.* (enricher: `a_case_whose_user_is_nowhere_belongs_to_the_location_that_owns_it`)
//!
//! Faults of the predecessor that must not come back
//!
//! * Deletes were filtered by type, so none was done: lake, `a_case_is_in_the_table_of_its_type_or_nowhere`.
//! * The month crashed: enricher, `a_form_has_the_month_it_was_filled_in`.
//! * `': []'` was replaced in the text of answers: enricher, `text_that_looks_like_json_stays_as_it_is`.
//! * A location that is gone crashed it: enricher, `a_user_whose_location_is_gone_has_no_place`.
//! * `supervisor_id` was missing: enricher, `the_supervisor_is_there_without_a_type_of_that_name`.
//! * Ids were written into SQL: lake, `an_id_is_never_part_of_a_statement`; tests, `cases_come_with_everything_that_belongs_to_them`.
//! * Deleted locations were looked for in a table that did not exist, and the sink of locations never worked: lake,
//!   `a_location_is_in_the_one_table_of_locations_until_it_is_deleted`.

pub mod blobs;
pub mod change_meta;
pub mod clock;
pub mod connect;
pub mod document_rules;
pub mod documents;
pub mod locations;
pub mod metric_names;
pub mod pace;
pub mod postgres;
pub mod scan;
pub mod sharding;
pub mod source;
pub mod source_error;
pub mod timestamp;
pub mod users;
pub mod xform;
pub mod xml_watch;

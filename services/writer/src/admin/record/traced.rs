//! What is known of a single record, and what that means. Pure.

use lake_proto::admin::v1 as proto;
use lake_shared::identity::Space;

use crate::admin::convert::{self, timestamp};
use crate::admin::{erasures, quarantine};
use crate::metastore::erasures::ErasureRecord;
use crate::metastore::steering::{DroppedRecord, OperationRecord};
use crate::metastore::{QuarantineRecord, RememberedTombstone};
use crate::table_store::LocatedRow;

/// What this interface never knows of a record.
const UNKNOWN: [&str; 3] = [
    "whether it is on its way: `lakectl lake pipeline` shows how much waits in HQ's change feed and in the queue",
    "what HQ has now: it was not asked; `lakectl quarantine replay` and a backfill have it read again",
    "what it was before: the versions of its table show that (`lakectl table history`, and reading at a version) as long as their files are kept, and deletions are remembered for tables.tombstone_retention_hours",
];

/// Where something could not be searched, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsearched {
    pub(super) space: Space,
    pub(super) reason: String,
}

/// What is known of a record.
#[derive(Clone, Debug, Default)]
pub(super) struct Traced {
    pub(super) rows: Vec<LocatedRow>,
    pub(super) tombstones: Vec<RememberedTombstone>,
    pub(super) quarantined: Vec<QuarantineRecord>,
    pub(super) operations: Vec<OperationRecord>,
    pub(super) dropped: Vec<DroppedRecord>,
    pub(super) erasures: Vec<ErasureRecord>,
    pub(super) spaces_searched: i64,
    pub(super) not_searched: Vec<Unsearched>,
    /// Why rows could not be searched at all.
    pub(super) elsewhere: Option<String>,
    /// Rules that leave it out.
    pub(super) left_out_by: Vec<String>,
    /// What is not known of such rules.
    pub(super) rules_unknown: Vec<String>,
}

impl Traced {
    /// Without the tombstones of other ids with the same hash, and the operations that have nothing to do with the id.
    pub(super) fn about(mut self, id: &str) -> Self {
        self.tombstones.retain(|remembered| remembered.tombstone.id == id);
        let rows = &self.rows;
        let tombstones = &self.tombstones;
        self.operations.retain(|record| {
            let target = &record.asked.target;
            if let Some(filter) = record.asked.selection() {
                return filter.document_id.as_deref() == Some(id);
            }
            let is_of_table = |table: &lake_shared::identity::TableKey| {
                let is_of_type = target.document_type.as_ref().is_none_or(|name| *name == table.document_type);
                table.space == target.space && is_of_type
            };
            rows.iter().any(|row| is_of_table(&row.table))
                || (target.document_type.is_none() && tombstones.iter().any(|gone| gone.space == target.space))
        });
        self
    }

    fn state(&self) -> String {
        let is_incomplete = self.rows.iter().any(|row| row.incomplete.is_some());
        let is_quarantined = !self.quarantined.is_empty();
        let meaning = self.tombstones.first().map(|remembered| meaning(&remembered.tombstone.reason));
        let is_kept_out = self.erasures.iter().any(|erasure| erasure.allowed_us.is_none());
        let place = match meaning {
            _ if !self.rows.is_empty() => "in_lake",
            _ if is_kept_out => "erased",
            Some(Meaning { is_left_out: true, .. }) => "left_out",
            Some(_) => "deleted",
            None if is_quarantined => return "quarantined".into(),
            None if !self.left_out_by.is_empty() => "left_out",
            None if self.elsewhere.is_some() || !self.not_searched.is_empty() => "not_searched",
            None => "not_found",
        };
        let added = if is_quarantined { ", quarantined" } else { "" };
        format!("{place}{}", if is_incomplete { ", incomplete" } else { added })
    }

    fn unknown(&self) -> Vec<String> {
        let elsewhere = self.elsewhere.iter().map(|reason| format!("where its row is: {reason}"));
        let always = UNKNOWN.iter().map(|&sentence| sentence.to_owned());
        elsewhere.chain(self.rules_unknown.iter().cloned()).chain(always).collect()
    }

    pub(super) fn into_message(self) -> proto::TraceRecordResponse {
        let unsearched = |of: &Unsearched| proto::UnsearchedSpace {
            space: Some(convert::space(&of.space)),
            reason: of.reason.clone(),
        };
        proto::TraceRecordResponse {
            state: self.state(),
            unknown: self.unknown(),
            rows: self.rows.iter().map(row).collect(),
            deletions: self.tombstones.iter().map(deletion).collect(),
            quarantined: self.quarantined.iter().map(quarantine::convert::entry).collect(),
            operations: self.operations.iter().map(convert::operation).collect(),
            dropped: self.dropped.iter().map(convert::dropped).collect(),
            erasures: self.erasures.iter().map(erasures::traced).collect(),
            spaces_searched: self.spaces_searched,
            left_out_by: self.left_out_by.clone(),
            not_searched: self.not_searched.iter().map(unsearched).collect(),
        }
    }
}

fn row(of: &LocatedRow) -> proto::TracedRow {
    proto::TracedRow {
        table: of.table_name.clone(),
        key: Some(convert::key(&of.table)),
        version: of.version.map(convert::count),
        file: of.file.clone(),
        row: of.row.into(),
        topic: of.topic.clone().filter(|topic| !topic.is_empty()),
        partition: of.partition.and_then(|partition| i32::try_from(partition).ok()),
        offset: of.offset,
        published_at: of.published_us.map(timestamp),
        fetched_at: of.fetched_us.map(timestamp),
        committed_at: of.committed_us.map(timestamp),
        saved_at: of.version_us.map(timestamp),
        observed_at: Some(timestamp(of.observed_us)),
        incomplete: of.incomplete.clone().unwrap_or_default(),
    }
}

fn deletion(of: &RememberedTombstone) -> proto::TracedDeletion {
    let Meaning { text, is_left_out } = meaning(&of.tombstone.reason);
    proto::TracedDeletion {
        space: Some(convert::space(&of.space)),
        reason: of.tombstone.reason.clone(),
        meaning: text.to_owned(),
        is_left_out,
        observed_at: Some(timestamp(of.tombstone.order.observed_us)),
        saved_at: of.tombstone.order.version_us.map(timestamp),
        remembered_at: Some(timestamp(of.remembered_us)),
    }
}

/// What the reason of a tombstone means.
struct Meaning {
    text: &'static str,
    /// Whether HQ has the record, and a rule leaves it out.
    is_left_out: bool,
}

fn meaning(reason: &str) -> Meaning {
    let (text, is_left_out) = match reason {
        "missing" => ("HQ has no such record any more, or has it in another project", false),
        "deleted" => ("it is deleted in HQ", false),
        "archived" => ("the form is archived in HQ, and the lake shows no archived forms", true),
        "deprecated" => ("the form was edited in HQ: this is the version before, which has an id of its own", true),
        "duplicate" => ("HQ keeps the form as a duplicate of another one", true),
        "error" | "submission_error" => ("HQ could not process the form and keeps it as an error", true),
        "unknown_state" => ("HQ has the form in a state that the lake does not know", true),
        "type_not_taken" => ("section [take] of the fetchers leaves its type out", true),
        "table_dropped" => ("its table was dropped by an operator, and takes no rows until it is allowed again", true),
        "" => ("an earlier version of the lake remembered it, without the reason", false),
        _ => ("another version of the lake gave this reason", false),
    };
    Meaning { text, is_left_out }
}

#[cfg(test)]
mod tests {
    use lake_proto::queue::v1::Quarantined;
    use lake_shared::identity::{Kind, TableKey};

    use super::*;
    use crate::consent::Consent;
    use crate::metastore::steering::{NewOperation, OperationKind, OperationState, OperationTarget};
    use crate::metastore::{QuarantineFilter, StoredTombstone};
    use crate::order_guard::TombstoneOrder;

    fn space(domain: &str) -> Space {
        Space { domain: domain.into(), kind: Kind::Case }
    }

    fn located(incomplete: Option<&str>) -> LocatedRow {
        LocatedRow {
            table: TableKey { space: space("demo"), document_type: "person".into() },
            table_name: "demo_case_sql_person".into(),
            version: Some(3),
            file: "f".into(),
            row: 7,
            observed_us: 1,
            version_us: None,
            topic: Some(String::new()),
            partition: None,
            offset: None,
            published_us: None,
            fetched_us: Some(2),
            committed_us: None,
            incomplete: incomplete.map(str::to_owned),
        }
    }

    fn gone(id: &str, reason: &str) -> RememberedTombstone {
        let order = TombstoneOrder { observed_us: 5, version_us: None };
        let tombstone = StoredTombstone { id_hash: 1, id: id.into(), order, reason: reason.into() };
        RememberedTombstone { space: space("demo"), tombstone, remembered_us: 6 }
    }

    fn quarantined() -> QuarantineRecord {
        QuarantineRecord {
            fingerprint: "f".into(),
            stage: "writer".into(),
            entry: Quarantined { reason: "row_fails".into(), ..Quarantined::default() },
            attempts: 1,
            payload_bytes: 0,
            first_us: 1,
            replayed: None,
        }
    }

    fn operation(kind: OperationKind, target: OperationTarget, selection: Option<QuarantineFilter>) -> OperationRecord {
        OperationRecord {
            id: format!("{kind:?} {target}"),
            asked: NewOperation {
                request_id: "r".into(),
                kind,
                target,
                asked_by: "ann".into(),
                consent: Consent::Given,
                details: selection.map(|filter| filter.to_json()).unwrap_or_default(),
            },
            state: OperationState::Pending,
            since_us: 0,
            reason: String::new(),
            attempts: 0,
            done: 0,
            total: None,
            created_us: 0,
            started_us: None,
            heartbeat_us: None,
            finished_us: None,
            per_second: None,
            cancel_requested: false,
            paused: false,
            result: "{}".into(),
            plan: String::new(),
        }
    }

    #[test]
    fn a_state_says_where_a_record_is() {
        let of = |rows: Vec<LocatedRow>, reasons: &[&str], is_quarantined: bool| {
            let tombstones = reasons.iter().map(|reason| gone("1", reason)).collect();
            let quarantined = if is_quarantined { vec![quarantined()] } else { Vec::new() };
            Traced { rows, tombstones, quarantined, ..Traced::default() }.about("1").state()
        };
        assert_eq!(of(Vec::new(), &[], false), "not_found");
        assert_eq!(of(Vec::new(), &[], true), "quarantined");
        assert_eq!(of(Vec::new(), &["deleted"], false), "deleted");
        assert_eq!(of(Vec::new(), &["deleted"], true), "deleted, quarantined");
        assert_eq!(of(Vec::new(), &["archived"], false), "left_out");
        assert_eq!(of(vec![located(None)], &[], false), "in_lake");
        assert_eq!(of(vec![located(Some("form_xml_missing"))], &[], true), "in_lake, incomplete");
        assert_eq!(of(vec![located(None)], &[], true), "in_lake, quarantined");
        let elsewhere = Traced { elsewhere: Some("ask b".into()), ..Traced::default() };
        assert_eq!(elsewhere.state(), "not_searched", "it may be there");
        let not_searched = vec![Unsearched { space: space("demo"), reason: "late".into() }];
        assert_eq!(Traced { not_searched, ..Traced::default() }.state(), "not_searched");
        let erasure = |allowed_us| ErasureRecord {
            space: space("demo"),
            id_hash: "0".into(),
            since_us: 1,
            asked_by: "ann".into(),
            operation_id: "o".into(),
            erased_us: Some(2),
            report: "{}".into(),
            allowed_us,
            allowed_by: String::new(),
        };
        let erased = |allowed_us, rows| Traced { rows, erasures: vec![erasure(allowed_us)], ..Traced::default() };
        assert_eq!(erased(None, Vec::new()).state(), "erased");
        assert_eq!(erased(None, vec![located(None)]).state(), "in_lake", "it is not gone yet");
        assert_eq!(erased(Some(3), Vec::new()).state(), "not_found", "it may come back");
        let of_another = Traced { tombstones: vec![gone("2", "deleted")], ..Traced::default() };
        assert_eq!(of_another.about("1").state(), "not_found", "another id with the same hash");
    }

    #[test]
    fn operations_are_told_that_have_to_do_with_it() {
        let table = OperationTarget::table(&located(None).table);
        let elsewhere = OperationTarget::space(space("other"));
        let filter = |id: &str| QuarantineFilter { document_id: Some(id.into()), ..QuarantineFilter::default() };
        let replay = |id: &str| {
            let filter = filter(id);
            operation(OperationKind::ReplayQuarantine, OperationTarget::quarantine(&filter), Some(filter))
        };
        let traced = Traced {
            rows: vec![located(None)],
            operations: vec![
                operation(OperationKind::CompactTable, table, None),
                operation(OperationKind::CleanUpSpace, elsewhere, None),
                operation(OperationKind::DropTables, OperationTarget::space(space("demo")), None),
                replay("1"),
                replay("2"),
            ],
            ..Traced::default()
        };
        let told = traced.about("1").into_message().operations;
        let told: Vec<i32> = told.iter().map(|operation| operation.kind).collect();
        let kinds = [
            proto::OperationKind::CompactTable,
            proto::OperationKind::DropTables,
            proto::OperationKind::ReplayQuarantine,
        ];
        assert_eq!(told, kinds.map(i32::from));
    }

    #[test]
    fn what_cannot_be_known_is_said() {
        let rules_unknown = vec!["rule".to_owned()];
        let traced = Traced { elsewhere: Some("ask b".into()), rules_unknown, ..Traced::default() }.into_message();
        assert_eq!(traced.unknown.len(), 2 + UNKNOWN.len());
        assert!(traced.unknown[0].contains("ask b") && traced.unknown[1] == "rule");
        let asked_for = Traced { rows: vec![located(None)], ..Traced::default() }.into_message().rows.remove(0);
        assert_eq!((asked_for.topic, asked_for.fetched_at.map(|at| at.nanos)), (None, Some(2_000)));
    }
}

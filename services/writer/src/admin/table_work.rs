//! What may be asked for about a table: work on it, and a look at its log.

use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::drop_tables_request::Target;
use lake_proto::admin::v1::restore_table_request::To;
use lake_shared::error_chain::Chain;
use lake_shared::identity::Space;
use tonic::Status;

use super::access::Caller;
use super::convert;
use super::problem::Problem;
use super::services::{self, Services};
use crate::consent::Consent;
use crate::metastore::steering::restore_point::RestorePoint;
use crate::metastore::steering::table_policy::{DeletionVectors, TablePolicy};
use crate::metastore::steering::{NewOperation, OperationKind, OperationTarget};
use crate::table_store::delta::inspect::InspectError;

/// Versions of a page where none are asked for.
const VERSIONS: u32 = 20;

/// Most versions of a page.
const VERSIONS_MAX: u32 = 100;

/// Longest time that superseded files may be kept, hours: a hundred years.
const RETENTION_HOURS_MAX: u64 = 876_600;

/// An operation, or why it was not begun.
type Asked = Result<proto::Operation, Status>;

impl Services {
    pub(super) async fn ask_compaction(&self, caller: &Caller, asked: proto::CompactTableRequest) -> Asked {
        let consent = consent(asked.dry_run, &asked.plan_id)?;
        self.ask_of_table(caller, OperationKind::CompactTable, &asked.name, &asked.request_id, consent).await
    }

    pub(super) async fn ask_checkpoint(&self, caller: &Caller, asked: proto::CheckpointTableRequest) -> Asked {
        self.ask_of_table(caller, OperationKind::CheckpointTable, &asked.name, &asked.request_id, Consent::Given).await
    }

    pub(super) async fn ask_vacuum(&self, caller: &Caller, asked: proto::VacuumTableRequest) -> Asked {
        let consent = consent(asked.dry_run, &asked.plan_id)?;
        self.ask_of_table(caller, OperationKind::VacuumTable, &asked.name, &asked.request_id, consent).await
    }

    pub(super) async fn ask_clean_up(&self, caller: &Caller, asked: proto::CleanUpSpaceRequest) -> Asked {
        let space = self.visible_space(caller, asked.space).await?;
        let (kind, target) = (OperationKind::CleanUpSpace, OperationTarget::space(space));
        Ok(convert::operation(&self.ask(caller, kind, target, &asked.request_id, Consent::Given).await?))
    }

    pub(super) async fn ask_drop(&self, caller: &Caller, asked: proto::DropTablesRequest) -> Asked {
        let consent = consent(asked.dry_run, &asked.plan_id)?;
        if consent == Consent::Given {
            let reason = "ask with dry_run first, look at what would be dropped, then give the id of that plan".into();
            return Err(Problem::Field { field: "plan_id", reason }.into());
        }
        let kind = OperationKind::DropTables;
        match asked.target {
            Some(Target::Name(name)) => self.ask_of_table(caller, kind, &name, &asked.request_id, consent).await,
            Some(Target::Space(space)) => {
                let target = OperationTarget::space(self.visible_space(caller, Some(space)).await?);
                Ok(convert::operation(&self.ask(caller, kind, target, &asked.request_id, consent).await?))
            }
            None => {
                let reason = "give the name of a table, or a space".into();
                Err(Problem::Field { field: "target", reason }.into())
            }
        }
    }

    pub(super) async fn ask_restoration(&self, caller: &Caller, asked: proto::RestoreTableRequest) -> Asked {
        let consent = consent(asked.dry_run, &asked.plan_id)?;
        if consent == Consent::Given {
            let reason = "ask with dry_run first, look at what would change, then give the id of that plan".into();
            return Err(Problem::Field { field: "plan_id", reason }.into());
        }
        let to = match asked.to {
            Some(To::Version(version)) => u64::try_from(version).ok().map(RestorePoint::Version),
            Some(To::Instant(at)) => convert::micros(&at).map(|at_us| RestorePoint::Instant { at_us }),
            None => None,
        };
        let to = to.ok_or_else(|| {
            let reason = "give the number of a version, or an instant".into();
            Problem::Field { field: "to", reason }
        })?;
        let record = self.visible_table(caller, &asked.name).await?;
        let new = NewOperation {
            request_id: asked.request_id,
            kind: OperationKind::RestoreTable,
            target: OperationTarget::table(&record.key),
            asked_by: caller.name.clone(),
            consent,
            details: to.details(),
        };
        Ok(convert::operation(&self.ask_for(new).await?))
    }

    pub(super) async fn ask_allowance(&self, caller: &Caller, asked: proto::AllowTablesRequest) -> Asked {
        let target =
            OperationTarget { space: services::space(asked.space)?, document_type: asked.r#type.map(Into::into) };
        let dropped = self.metastore.dropped(Some(&target.space)).await.map_err(Problem::from)?;
        let is_known = dropped
            .iter()
            .any(|record| target.document_type.is_none() || record.target.document_type == target.document_type);
        if !is_known || !caller.sees(target.space.domain.as_str()) {
            return Err(Problem::NotFound {
                what: "dropped table or project",
                id: target.to_string(),
                list: "ListDroppedTables",
            }
            .into());
        }
        let kind = OperationKind::AllowTables;
        Ok(convert::operation(&self.ask(caller, kind, target, &asked.request_id, Consent::Given).await?))
    }

    pub(super) async fn set_policy(
        &self,
        caller: &Caller,
        asked: proto::SetTablePolicyRequest,
    ) -> Result<proto::TablePolicy, Problem> {
        services::checked_request_id(&asked.request_id)?;
        let policy = policy(&asked.policy.unwrap_or_default())?;
        let record = self.visible_table(caller, &asked.name).await?;
        self.metastore.audit(&caller.name, "set_table_policy", &record.key.to_string(), &asked.request_id).await?;
        self.metastore.set_policy(&record.name, &policy, &caller.name).await?;
        Ok(convert::policy(&policy))
    }

    pub(super) async fn policy_of(&self, table: &str) -> Result<Option<proto::TablePolicy>, Problem> {
        let kept = self.metastore.policies().await?;
        Ok(kept.into_iter().find(|record| record.table == table).map(|record| convert::policy(&record.policy)))
    }

    pub(super) async fn table_versions(
        &self,
        caller: &Caller,
        asked: proto::ListTableVersionsRequest,
    ) -> Result<proto::ListTableVersionsResponse, Problem> {
        let limit = match services::page_size(asked.page_size)? {
            _ if asked.page_size == 0 => VERSIONS,
            asked => asked.min(VERSIONS_MAX),
        };
        let before = match asked.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| services::wrong_page_token())?),
        };
        let record = self.visible_table(caller, &asked.name).await?;
        let found = self.inspector.versions(&record.path, before, limit as usize).await;
        let found = found.map_err(|error| unreadable(&record.name, &error))?;
        let last = found.last().map(|last| last.version).filter(|last| *last > 0 && found.len() >= limit as usize);
        Ok(proto::ListTableVersionsResponse {
            versions: found.into_iter().map(convert::version).collect(),
            next_page_token: last.map_or_else(String::new, |last| last.to_string()),
        })
    }

    pub(super) async fn table_files(
        &self,
        caller: &Caller,
        asked: proto::ListTableFilesRequest,
    ) -> Result<proto::ListTableFilesResponse, Problem> {
        let limit = services::page_size(asked.page_size)? as usize;
        let record = self.visible_table(caller, &asked.name).await?;
        let found = self.inspector.files(&record.path, &asked.page_token, limit).await;
        let found = found.map_err(|error| unreadable(&record.name, &error))?;
        let (version, files) = found.unwrap_or_default();
        let last = files.last().filter(|_| files.len() >= limit).map(|last| last.path.clone());
        Ok(proto::ListTableFilesResponse {
            version: convert::count(version),
            files: files.into_iter().map(convert::file).collect(),
            next_page_token: last.unwrap_or_default(),
        })
    }

    async fn ask_of_table(
        &self,
        caller: &Caller,
        kind: OperationKind,
        name: &str,
        request_id: &str,
        consent: Consent,
    ) -> Asked {
        let target = match self.visible_table(caller, name).await {
            Ok(record) => OperationTarget::table(&record.key),
            // The same request again, after the table was dropped.
            Err(problem) => {
                let known = self.metastore.requested_operation(request_id).await.map_err(Problem::from)?;
                let known = known.filter(|record| {
                    (record.asked.kind, &record.asked.consent) == (kind, &consent)
                        && caller.sees(record.asked.target.space.domain.as_str())
                });
                known.ok_or(problem)?.asked.target
            }
        };
        Ok(convert::operation(&self.ask(caller, kind, target, request_id, consent).await?))
    }

    /// A space that the caller may see and that has tables.
    async fn visible_space(&self, caller: &Caller, asked: Option<proto::Space>) -> Result<Space, Problem> {
        let space = services::space(asked)?;
        let is_known = self.metastore.spaces().await?.contains(&space);
        if is_known && caller.sees(space.domain.as_str()) {
            return Ok(space);
        }
        let (what, id, list) = ("project with tables of that kind", space.to_string(), "ListTables");
        Err(Problem::NotFound { what, id, list })
    }
}

/// A policy as it is asked for.
fn policy(asked: &proto::TablePolicy) -> Result<TablePolicy, Problem> {
    let deletion_vectors = match proto::DeletionVectors::try_from(asked.deletion_vectors) {
        Ok(proto::DeletionVectors::Unspecified) => None,
        Ok(proto::DeletionVectors::Auto) => Some(DeletionVectors::Auto),
        Ok(proto::DeletionVectors::On) => Some(DeletionVectors::On),
        Ok(proto::DeletionVectors::Off) => Some(DeletionVectors::Off),
        Err(_) => {
            let reason = format!("{} is nothing that this version knows", asked.deletion_vectors);
            return Err(Problem::Field { field: "policy.deletion_vectors", reason });
        }
    };
    let hours = |hours: i64| {
        let known = u64::try_from(hours).ok().filter(|hours| (1..=RETENTION_HOURS_MAX).contains(hours));
        let reason = format!("give 1 to {RETENTION_HOURS_MAX} hours");
        known.ok_or(Problem::Field { field: "policy.retention_hours", reason })
    };
    let retention_hours = asked.retention_hours.map(hours).transpose()?;
    Ok(TablePolicy { deletion_vectors, compaction: asked.compaction, retention_hours })
}

pub(super) fn consent(dry_run: bool, plan_id: &str) -> Result<Consent, Problem> {
    if dry_run && !plan_id.is_empty() {
        let reason = "with dry_run a plan is made, so none can be given".into();
        return Err(Problem::Field { field: "plan_id", reason });
    }
    Ok(Consent::of(dry_run, plan_id))
}

fn unreadable(name: &str, error: &InspectError) -> Problem {
    Problem::Table { name: name.to_owned(), reason: Chain(error).to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn policies_are_taken_as_they_are_said() {
        let said = proto::TablePolicy {
            deletion_vectors: proto::DeletionVectors::Off.into(),
            compaction: Some(false),
            retention_hours: Some(24),
        };
        let taken = policy(&said).unwrap();
        assert_eq!(convert::policy(&taken), said);
        assert_eq!(policy(&proto::TablePolicy::default()).unwrap(), TablePolicy::default());
        for hours in [0, -1, i64::MAX] {
            let wrong = proto::TablePolicy { retention_hours: Some(hours), ..said };
            assert!(matches!(policy(&wrong), Err(Problem::Field { field: "policy.retention_hours", .. })));
        }
        let wrong = proto::TablePolicy { deletion_vectors: 9, ..said };
        assert!(matches!(policy(&wrong), Err(Problem::Field { field: "policy.deletion_vectors", .. })));
    }
}

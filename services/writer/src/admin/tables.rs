//! The service of tables.

use std::time::Duration;

use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::table_service_server::TableService;
use tonic::{Request, Response, Status, async_trait};

use super::access::Caller;
use super::options::Role;
use super::problem::Problem;
use super::services::{self, Services};
use super::{catalog, convert};
use crate::metastore::TableRecord;
use crate::metastore::steering::{DroppedRecord, TableFilter};

/// How long an answer waits for what the writer has in memory, which a commit may hold up.
const IN_MEMORY_WITHIN: Duration = Duration::from_secs(5);

impl Services {
    /// A table that the caller may see.
    pub(super) async fn visible_table(&self, caller: &Caller, name: &str) -> Result<TableRecord, Problem> {
        let found = self.metastore.table_named(name).await?;
        let seen = found.filter(|record| caller.sees(record.key.space.domain.as_str()));
        seen.ok_or_else(|| Problem::NotFound { what: "table", id: name.to_owned(), list: "ListTables" })
    }
}

#[async_trait]
impl TableService for Services {
    async fn list_tables(
        &self,
        request: Request<proto::ListTablesRequest>,
    ) -> Result<Response<proto::ListTablesResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let asked = request.into_inner();
        let page_size = services::page_size(asked.page_size)?;
        let filter = TableFilter {
            domains: caller.domains_among(&asked.domain),
            kind: services::kind(asked.kind)?,
            name_contains: asked.name_contains.to_lowercase(),
        };
        let found = self.metastore.table_page(&filter, &asked.page_token, page_size).await.map_err(Problem::from)?;
        let last = found.last().filter(|_| found.len() >= page_size as usize);
        let next_page_token = last.map_or_else(String::new, |last| last.name.clone());
        let tables = found.iter().map(convert::table).collect();
        Ok(Response::new(proto::ListTablesResponse { tables, next_page_token }))
    }

    async fn get_table(
        &self,
        request: Request<proto::GetTableRequest>,
    ) -> Result<Response<proto::GetTableResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let record = self.visible_table(&caller, &request.into_inner().name).await?;
        let described = tokio::time::timeout(IN_MEMORY_WITHIN, self.handle.describe(record.key.clone())).await;
        let described = described.ok().and_then(Result::ok);
        Ok(Response::new(proto::GetTableResponse {
            table: Some(convert::table(&record)),
            columns: convert::columns(record.state.schema.as_deref()),
            policy: self.policy_of(&record.name).await?,
            in_memory: described.as_ref().map(convert::in_memory),
            catalog: described.and_then(|described| described.catalog).as_ref().map(catalog::convert::entry),
        }))
    }

    async fn compact_table(
        &self,
        request: Request<proto::CompactTableRequest>,
    ) -> Result<Response<proto::CompactTableResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let operation = self.ask_compaction(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::CompactTableResponse { operation: Some(operation) }))
    }

    async fn clean_up_space(
        &self,
        request: Request<proto::CleanUpSpaceRequest>,
    ) -> Result<Response<proto::CleanUpSpaceResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let operation = self.ask_clean_up(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::CleanUpSpaceResponse { operation: Some(operation) }))
    }

    async fn vacuum_table(
        &self,
        request: Request<proto::VacuumTableRequest>,
    ) -> Result<Response<proto::VacuumTableResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let operation = self.ask_vacuum(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::VacuumTableResponse { operation: Some(operation) }))
    }

    async fn checkpoint_table(
        &self,
        request: Request<proto::CheckpointTableRequest>,
    ) -> Result<Response<proto::CheckpointTableResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let operation = self.ask_checkpoint(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::CheckpointTableResponse { operation: Some(operation) }))
    }

    async fn drop_tables(
        &self,
        request: Request<proto::DropTablesRequest>,
    ) -> Result<Response<proto::DropTablesResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Admin).await?;
        let operation = self.ask_drop(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::DropTablesResponse { operation: Some(operation) }))
    }

    async fn allow_tables(
        &self,
        request: Request<proto::AllowTablesRequest>,
    ) -> Result<Response<proto::AllowTablesResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Admin).await?;
        let operation = self.ask_allowance(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::AllowTablesResponse { operation: Some(operation) }))
    }

    async fn restore_table(
        &self,
        request: Request<proto::RestoreTableRequest>,
    ) -> Result<Response<proto::RestoreTableResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Admin).await?;
        let operation = self.ask_restoration(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::RestoreTableResponse { operation: Some(operation) }))
    }

    async fn list_dropped_tables(
        &self,
        request: Request<proto::ListDroppedTablesRequest>,
    ) -> Result<Response<proto::ListDroppedTablesResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let domain = request.into_inner().domain;
        let dropped = self.metastore.dropped(None).await.map_err(Problem::from)?;
        let is_asked = |record: &&DroppedRecord| {
            let of = record.target.space.domain.as_str();
            caller.sees(of) && (domain.is_empty() || domain == of)
        };
        let tables = dropped.iter().filter(is_asked).map(convert::dropped).collect();
        Ok(Response::new(proto::ListDroppedTablesResponse { tables }))
    }

    async fn set_table_policy(
        &self,
        request: Request<proto::SetTablePolicyRequest>,
    ) -> Result<Response<proto::SetTablePolicyResponse>, Status> {
        let retention = request.get_ref().policy.as_ref().and_then(|policy| policy.retention_hours);
        let least = if retention.is_some() { Role::Admin } else { Role::Operator };
        let caller = self.gate.enter(&request, least).await?;
        let policy = self.set_policy(&caller, request.into_inner()).await?;
        Ok(Response::new(proto::SetTablePolicyResponse { policy: Some(policy) }))
    }

    async fn list_table_versions(
        &self,
        request: Request<proto::ListTableVersionsRequest>,
    ) -> Result<Response<proto::ListTableVersionsResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let versions = self.table_versions(&caller, request.into_inner()).await?;
        Ok(Response::new(versions))
    }

    async fn list_table_files(
        &self,
        request: Request<proto::ListTableFilesRequest>,
    ) -> Result<Response<proto::ListTableFilesResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let files = self.table_files(&caller, request.into_inner()).await?;
        Ok(Response::new(files))
    }
}

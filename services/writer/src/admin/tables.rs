//! The service of tables.

use std::time::Duration;

use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::table_service_server::TableService;
use tonic::{Request, Response, Status, async_trait};

use super::access::Caller;
use super::convert;
use super::options::Role;
use super::problem::Problem;
use super::services::{self, Services};
use crate::metastore::TableRecord;
use crate::metastore::steering::{OperationKind, OperationTarget, TableFilter};

/// How long an answer waits for what the writer has in memory, which a commit may hold up.
const IN_MEMORY_WITHIN: Duration = Duration::from_secs(5);

impl Services {
    /// A table that the caller may see.
    async fn visible_table(&self, caller: &Caller, name: &str) -> Result<TableRecord, Problem> {
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
        Ok(Response::new(proto::GetTableResponse {
            table: Some(convert::table(&record)),
            columns: convert::columns(record.state.schema.as_deref()),
            in_memory: described.ok().and_then(Result::ok).map(convert::in_memory),
        }))
    }

    async fn compact_table(
        &self,
        request: Request<proto::CompactTableRequest>,
    ) -> Result<Response<proto::CompactTableResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let asked = request.into_inner();
        let target = OperationTarget::table(&self.visible_table(&caller, &asked.name).await?.key);
        let kept = self.ask(&caller, OperationKind::CompactTable, target, &asked.request_id).await?;
        Ok(Response::new(proto::CompactTableResponse { operation: Some(convert::operation(&kept)) }))
    }

    async fn clean_up_space(
        &self,
        request: Request<proto::CleanUpSpaceRequest>,
    ) -> Result<Response<proto::CleanUpSpaceResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let asked = request.into_inner();
        let space = services::space(asked.space)?;
        let is_known = self.metastore.spaces().await.map_err(Problem::from)?.contains(&space);
        if !is_known || !caller.sees(space.domain.as_str()) {
            let (what, id, list) = ("project with tables of that kind", space.to_string(), "ListTables");
            return Err(Problem::NotFound { what, id, list }.into());
        }
        let target = OperationTarget::space(space);
        let kept = self.ask(&caller, OperationKind::CleanUpSpace, target, &asked.request_id).await?;
        Ok(Response::new(proto::CleanUpSpaceResponse { operation: Some(convert::operation(&kept)) }))
    }
}

//! The service of the catalog.

use std::time::{SystemTime, UNIX_EPOCH};

use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::catalog_service_server::CatalogService;
use tonic::{Request, Response, Status, async_trait};

use super::convert::{count, operation};
use super::options::Role;
use super::problem::Problem;
use super::services::Services;
use crate::consent::Consent;
use crate::metastore::steering::{OperationKind, OperationTarget};

pub(super) mod convert;

#[async_trait]
impl CatalogService for Services {
    async fn get_catalog_status(
        &self,
        request: Request<proto::GetCatalogStatusRequest>,
    ) -> Result<Response<proto::GetCatalogStatusResponse>, Status> {
        self.gate.enter(&request, Role::Viewer).await?.whole_lake("look at the catalog")?;
        let status = self.handle.catalog_status().await.map_err(Problem::from)?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_us = i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX);
        Ok(Response::new(convert::status(&status, now_us)))
    }

    async fn get_catalog_diff(
        &self,
        request: Request<proto::GetCatalogDiffRequest>,
    ) -> Result<Response<proto::GetCatalogDiffResponse>, Status> {
        self.gate.enter(&request, Role::Viewer).await?.whole_lake("look at the catalog")?;
        let (entries, registered) = self.handle.catalog_diff().await.map_err(Problem::from)?;
        Ok(Response::new(proto::GetCatalogDiffResponse {
            entries: entries.iter().map(convert::entry).collect(),
            registered: count(registered),
        }))
    }

    async fn sync_catalog(
        &self,
        request: Request<proto::SyncCatalogRequest>,
    ) -> Result<Response<proto::SyncCatalogResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        caller.whole_lake("change the catalog")?;
        let asked = request.into_inner();
        if asked.dry_run && !asked.plan_id.is_empty() {
            let reason = "with dry_run a plan is made, so none can be given".into();
            return Err(Problem::Field { field: "plan_id", reason }.into());
        }
        let consent = Consent::of(asked.dry_run, &asked.plan_id);
        let (kind, target) = (OperationKind::SyncCatalog, OperationTarget::whole_lake());
        let asked = operation(&self.ask(&caller, kind, target, &asked.request_id, consent).await?);
        Ok(Response::new(proto::SyncCatalogResponse { operation: Some(asked) }))
    }
}

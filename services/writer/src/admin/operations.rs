//! The service of operations.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::operation_service_server::OperationService;
use lake_shared::error_chain::Chain;
use tonic::{Request, Response, Status, async_trait};

use super::access::Caller;
use super::convert;
use super::options::Role;
use super::problem::Problem;
use super::services::{self, Services};
use crate::metastore::Metastore;
use crate::metastore::steering::{OperationFilter, OperationRecord};

/// Time between two looks at a watched operation.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// An operation, each time that it changes.
type Watching = Pin<Box<dyn Stream<Item = Result<proto::WatchOperationResponse, Status>> + Send>>;

impl Services {
    /// An operation that the caller may see.
    async fn visible_operation(&self, caller: &Caller, id: &str) -> Result<OperationRecord, Problem> {
        let found = self.metastore.operation(id).await?;
        let seen = found.filter(|record| caller.sees(record.asked.target.space.domain.as_str()));
        seen.ok_or_else(|| absent(id))
    }
}

fn absent(id: &str) -> Problem {
    Problem::NotFound { what: "operation", id: id.to_owned(), list: "ListOperations" }
}

#[async_trait]
impl OperationService for Services {
    type WatchOperationStream = Watching;

    async fn list_operations(
        &self,
        request: Request<proto::ListOperationsRequest>,
    ) -> Result<Response<proto::ListOperationsResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let asked = request.into_inner();
        let page_size = services::page_size(asked.page_size)?;
        let states = convert::states_of(&asked.states).map_err(|state| Problem::Field {
            field: "states",
            reason: format!("{state} is no state that this version knows"),
        })?;
        let filter = OperationFilter { states, domains: caller.domains_among(&asked.domain) };
        let behind = services::behind(&asked.page_token)?;
        let found = self.metastore.operations(&filter, behind.as_ref(), page_size).await.map_err(Problem::from)?;
        let last = found.last().map(|last| (last.created_us, last.id.as_str()));
        Ok(Response::new(proto::ListOperationsResponse {
            next_page_token: services::next_page_token(last, found.len(), page_size),
            operations: found.iter().map(convert::operation).collect(),
        }))
    }

    async fn get_operation(
        &self,
        request: Request<proto::GetOperationRequest>,
    ) -> Result<Response<proto::GetOperationResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let found = self.visible_operation(&caller, &request.into_inner().id).await?;
        Ok(Response::new(proto::GetOperationResponse { operation: Some(convert::operation(&found)) }))
    }

    async fn watch_operation(
        &self,
        request: Request<proto::WatchOperationRequest>,
    ) -> Result<Response<Watching>, Status> {
        let caller = self.gate.enter(&request, Role::Viewer).await?;
        let first = self.visible_operation(&caller, &request.into_inner().id).await?;
        let permit = Arc::clone(&self.watchers).try_acquire_owned();
        let permit = permit.map_err(|_| Problem::Busy { what: "streams" })?;
        let watched = watch(Arc::clone(&self.metastore), first).take_until(self.shutdown.clone().cancelled_owned());
        // The place is free when the stream has ended or its reader has left.
        let watched = watched.map(move |response| {
            let _held = &permit;
            response
        });
        Ok(Response::new(Box::pin(watched)))
    }

    async fn cancel_operation(
        &self,
        request: Request<proto::CancelOperationRequest>,
    ) -> Result<Response<proto::CancelOperationResponse>, Status> {
        let caller = self.gate.enter(&request, Role::Operator).await?;
        let id = request.into_inner().id;
        let found = self.visible_operation(&caller, &id).await?;
        let audited = self.metastore.audit(&caller.name, "cancel_operation", &id, &found.asked.request_id).await;
        audited.map_err(Problem::from)?;
        let cancelled = self.metastore.cancel_operation(&id).await.map_err(Problem::from)?;
        let cancelled = cancelled.ok_or_else(|| absent(&id))?;
        Ok(Response::new(proto::CancelOperationResponse { operation: Some(convert::operation(&cancelled)) }))
    }
}

/// What is told next of a watched operation.
enum Next {
    /// This.
    Told(OperationRecord),
    /// What has changed after this.
    After(OperationRecord),
    Nothing,
}

/// An operation as it is and each time that it has changed, until it has ended. A metastore that does not answer is waited for.
fn watch(
    metastore: Arc<dyn Metastore>,
    first: OperationRecord,
) -> impl Stream<Item = Result<proto::WatchOperationResponse, Status>> {
    stream::unfold(Next::Told(first), move |next| {
        let metastore = Arc::clone(&metastore);
        async move {
            let told = match next {
                Next::Told(first) => first,
                Next::After(before) => match changed(&*metastore, &before).await {
                    Ok(changed) => changed,
                    Err(problem) => return Some((Err(problem.into()), Next::Nothing)),
                },
                Next::Nothing => return None,
            };
            let operation = Some(convert::operation(&told));
            let next = if told.state.is_end() { Next::Nothing } else { Next::After(told) };
            Some((Ok(proto::WatchOperationResponse { operation }), next))
        }
    })
}

async fn changed(metastore: &dyn Metastore, before: &OperationRecord) -> Result<OperationRecord, Problem> {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        match metastore.operation(&before.id).await {
            Ok(Some(now)) if now != *before => return Ok(now),
            Ok(Some(_)) => {}
            Ok(None) => return Err(absent(&before.id)),
            Err(error) => tracing::debug!(error = %Chain(&error), "a watched operation cannot be read now"),
        }
    }
}

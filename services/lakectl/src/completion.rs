//! Completion in the shell that knows the tables of the lake.

use std::ffi::OsStr;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use lake_proto::admin::v1 as proto;

use crate::client::Clients;
use crate::context::{self, Contexts};

/// How long somebody who has pressed a key waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Most names that are offered.
const OFFERED_MAX: i32 = 200;

/// Names of tables that begin with what is typed, of the selected context's lake, or of the one in `LAKECTL_CONTEXT` or `LAKECTL_SERVER`. None where that
/// cannot be asked: a completion must not print errors between the words.
pub(crate) fn table_names(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let names = runtime.block_on(async { tokio::time::timeout(ANSWER_WITHIN, tables(typed)).await });
    let names = names.ok().and_then(Result::ok).unwrap_or_default();
    names.into_iter().filter(|name| name.starts_with(typed)).map(CompletionCandidate::new).collect()
}

async fn tables(typed: &str) -> anyhow::Result<Vec<String>> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (context, server) = (variable("LAKECTL_CONTEXT"), variable("LAKECTL_SERVER"));
    let lake = Contexts::read(&context::file()?)?.lake(context.as_deref(), server.as_deref())?;
    let mut clients = Clients::connect(&lake).await?;
    let request = proto::ListTablesRequest {
        name_contains: typed.to_owned(),
        page_size: OFFERED_MAX,
        ..proto::ListTablesRequest::default()
    };
    let answer = clients.tables.list_tables(request).await?.into_inner();
    Ok(answer.tables.into_iter().map(|table| table.name).collect())
}

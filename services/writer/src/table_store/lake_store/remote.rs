//! The kinds of stores that a lake may be in, and how each is opened.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hdfs_native_object_store::HdfsObjectStoreBuilder;
use lake_shared::secret::Secret;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig};
use serde::Deserialize;
use url::Url;

use super::LakeStoreConfig;

/// What a root may be, for errors.
pub(super) const ROOTS: &str = "give a folder, file:///folder, s3://bucket/prefix, gs://bucket/prefix, abfss://container@account.dfs.core.windows.net/prefix or \
     hdfs://namenode:8020/folder";

/// Tries of one request after the first.
const RETRIES_MAX: usize = 4;
/// No further try of one request after this time.
const RETRY_WITHIN: Duration = Duration::from_secs(30);

/// Access to S3 or a store with its interface.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// Address of the store, for example `http://127.0.0.1:9000`; absent for AWS.
    pub endpoint: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Access key.
    pub access_key_id: Option<Secret>,
    /// Its secret.
    pub secret_access_key: Option<Secret>,
    /// Allow an endpoint without TLS.
    pub allow_http: bool,
    /// Whether the bucket is a part of the host's name (`bucket.host`) and not of the path.
    pub virtual_hosted: bool,
    /// File in PEM: the root by which the store's certificate is judged, beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Key of AWS KMS by which the store encrypts objects.
    pub kms_key_id: Option<String>,
}

/// Access to Google Cloud Storage.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GcsConfig {
    /// File with the key of a service account.
    pub service_account_file: Option<PathBuf>,
    /// Address of the store; absent for Google's.
    pub endpoint: Option<String>,
    /// Send no credentials, for emulators.
    pub anonymous: bool,
}

/// Access to Azure's blob storage.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AzureConfig {
    /// Key of the storage account.
    pub access_key: Option<Secret>,
    /// Address of the store; absent for Azure's.
    pub endpoint: Option<String>,
    /// Allow an endpoint without TLS.
    pub allow_http: bool,
}

/// Access to HDFS.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HdfsConfig {
    /// Properties of Hadoop's clients (`dfs.ha.namenodes.…` for instance), over those of the files in `HADOOP_CONF_DIR`.
    pub properties: BTreeMap<String, String>,
}

/// A scheme with the store behind it, once it is known that the address has all that it needs.
pub(super) fn checked(url: Url) -> Result<Url, String> {
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    match url.scheme() {
        "file" => Ok(url),
        "s3" | "gs" | "hdfs" if has_host => Ok(url),
        "s3" | "gs" => Err("the bucket is missing".into()),
        "hdfs" => Err("the name node is missing".into()),
        "abfss" | "abfs" if has_host && !url.username().is_empty() => Ok(url),
        "abfss" | "abfs" => Err("the container or the account is missing".into()),
        scheme => Err(format!("the scheme {scheme} is not supported")),
    }
}

/// Rules that types cannot express. The error names the key and what to do.
pub(super) fn validate(url: &Url, config: &LakeStoreConfig) -> Result<(), String> {
    let (s3, azure) = (config.s3.clone().unwrap_or_default(), config.azure.clone().unwrap_or_default());
    let gcs = config.gcs.clone().unwrap_or_default();
    let endpoints = [
        ("s3", "s3.", &s3.endpoint, s3.allow_http),
        ("abfss", "azure.", &azure.endpoint, azure.allow_http),
        // Without credentials there is nothing to hide.
        ("gs", "gcs.", &gcs.endpoint, gcs.anonymous),
    ];
    for (scheme, section, endpoint, allow_http) in endpoints {
        let Some(endpoint) = endpoint.as_ref().filter(|_| url.scheme() == scheme) else { continue };
        if endpoint.starts_with("http://") && !allow_http {
            let wanted = if scheme == "gs" { "anonymous" } else { "allow_http" };
            return Err(format!(
                "key `store.{section}endpoint`: it is without TLS; set store.{section}{wanted} = true if that is meant"
            ));
        }
        if Url::parse(endpoint).is_err() {
            return Err(format!("key `store.{section}endpoint`: it is not of the form https://host:port"));
        }
    }
    Ok(())
}

/// Opens a store that is not a local folder. Nothing is asked of it yet.
pub(super) fn open(url: &Url, config: &LakeStoreConfig) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    match url.scheme() {
        "gs" => gcs(url, &config.gcs.clone().unwrap_or_default()),
        "abfss" | "abfs" => azure(url, &config.azure.clone().unwrap_or_default()),
        "hdfs" => hdfs(url, &config.hdfs.clone().unwrap_or_default()),
        _ => s3(url, &config.s3.clone().unwrap_or_default()),
    }
}

/// Few tries: whoever asked tries again with back-off, and says what it waits for.
fn retries() -> RetryConfig {
    RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_WITHIN, ..RetryConfig::default() }
}

fn s3(url: &Url, s3: &S3Config) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    let mut builder = AmazonS3Builder::from_env()
        .with_url(format!("s3://{}", url.host_str().unwrap_or_default()))
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(retries());
    if let Some(path) = &s3.ca_file {
        builder = builder.with_client_options(trusting(path)?);
    }
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &s3.region {
        builder = builder.with_region(region);
    }
    if let Some(key) = &s3.access_key_id {
        builder = builder.with_access_key_id(key.expose());
    }
    if let Some(key) = &s3.secret_access_key {
        builder = builder.with_secret_access_key(key.expose());
    }
    if let Some(key) = &s3.kms_key_id {
        builder = builder.with_sse_kms_encryption(key);
    }
    if s3.virtual_hosted {
        builder = builder.with_virtual_hosted_style_request(true);
    }
    if s3.allow_http {
        builder = builder.with_allow_http(true);
    }
    Ok(Arc::new(builder.build()?))
}

/// A client that also trusts the root in a file.
fn trusting(path: &PathBuf) -> Result<ClientOptions, object_store::Error> {
    let unreadable = |source: std::io::Error| object_store::Error::Generic {
        store: "S3",
        source: format!("store.s3.ca_file: {} cannot be read ({source})", path.display()).into(),
    };
    let pem = std::fs::read(path).map_err(unreadable)?;
    Ok(ClientOptions::new().with_root_certificate(Certificate::from_pem(&pem)?))
}

fn gcs(url: &Url, gcs: &GcsConfig) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_url(format!("gs://{}", url.host_str().unwrap_or_default()))
        .with_retry(retries());
    if let Some(path) = &gcs.service_account_file {
        builder = builder.with_service_account_path(path.display().to_string());
    }
    if let Some(endpoint) = &gcs.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    if gcs.anonymous {
        builder = builder.with_skip_signature(true);
        builder = builder.with_client_options(ClientOptions::new().with_allow_http(true));
    }
    Ok(Arc::new(builder.build()?))
}

fn azure(url: &Url, azure: &AzureConfig) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    let account = url.host_str().unwrap_or_default().split('.').next().unwrap_or_default();
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_account(account)
        .with_container_name(url.username())
        .with_retry(retries());
    if let Some(key) = &azure.access_key {
        builder = builder.with_access_key(key.expose());
    }
    if let Some(endpoint) = &azure.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if azure.allow_http {
        builder = builder.with_allow_http(true);
    }
    Ok(Arc::new(builder.build()?))
}

fn hdfs(url: &Url, hdfs: &HdfsConfig) -> Result<Arc<dyn ObjectStore>, object_store::Error> {
    let name_node = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let name_node = format!("hdfs://{}{name_node}", url.host_str().unwrap_or_default());
    let properties = hdfs.properties.iter().map(|(key, value)| (key.clone(), value.clone()));
    let store = HdfsObjectStoreBuilder::new().with_url(name_node).with_config(properties).build()?;
    Ok(Arc::new(store))
}

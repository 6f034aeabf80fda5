//! JSON over HTTP to CouchDB and Elasticsearch, with errors as the port wants them.

use std::time::Duration;

use lake_shared::secret::Secret;
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url};
use serde_json::Value;

use crate::source::SourceError;

/// A server that users are asked for over HTTP.
pub(super) struct Server {
    client: Client,
    base: Url,
    user: Option<String>,
    password: Option<Secret>,
    /// For messages, without secrets: `Elasticsearch at es:9200`.
    name: String,
}

impl Server {
    pub fn new(
        product: &str,
        url: &Secret,
        user: Option<&String>,
        password: Option<&Secret>,
        timeout_ms: u64,
    ) -> Result<Self, SourceError> {
        let refused = |reason: &str| SourceError::Refused {
            action: format!("use the address of {product}"),
            reason: reason.into(),
        };
        let base = Url::parse(url.expose())
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| refused("it is not of the form http://host:port"))?;
        let timeout = Duration::from_millis(timeout_ms.max(1));
        let client = Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout)
            .build()
            .map_err(|error| refused(&error.without_url().to_string()))?;
        let host = base.host_str().unwrap_or_default();
        let name = match base.port_or_known_default() {
            Some(port) => format!("{product} at {host}:{port}"),
            None => format!("{product} at {host}"),
        };
        Ok(Self { client, base, user: user.cloned(), password: password.cloned(), name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends a body (or nothing) to a path below the address and reads the JSON of the answer. Path parts are escaped.
    pub async fn ask(
        &self,
        action: &str,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, SourceError> {
        let action = format!("{action} from {}", self.name);
        let unavailable = |error: reqwest::Error| SourceError::Unavailable {
            action: action.clone(),
            // An address may hold a password.
            reason: with_cause(&error.without_url()),
        };
        let response = self.request(path, query, body).send().await.map_err(unavailable)?;
        let status = response.status();
        let text = response.bytes().await.map_err(unavailable)?;
        if !status.is_success() {
            return Err(status_error(action, status, &String::from_utf8_lossy(&text)));
        }
        serde_json::from_slice(&text).map_err(|error| SourceError::Refused {
            action,
            reason: format!("the answer is not JSON ({error}); is the address right?"),
        })
    }

    fn request(&self, path: &[&str], query: &[(&str, &str)], body: Option<&Value>) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.request(if body.is_some() { Method::POST } else { Method::GET }, url);
        if let Some(user) = &self.user {
            request = request.basic_auth(user, self.password.as_ref().map(Secret::expose));
        }
        match body {
            Some(body) => request.json(body),
            None => request,
        }
    }
}

/// reqwest's own text says only that sending failed.
fn with_cause(error: &reqwest::Error) -> String {
    lake_shared::error_chain::Chain(error).to_string()
}

fn status_error(action: String, status: StatusCode, text: &str) -> SourceError {
    const SHOWN_MAX: usize = 300;
    let said: String = text.chars().take(SHOWN_MAX).collect();
    let passing =
        status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    if passing {
        return SourceError::Unavailable { action, reason: format!("{status}: {said}") };
    }
    let advice = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "check user and password",
        StatusCode::NOT_FOUND => "check the name of the index or database",
        _ => "check the version of the server against the configuration",
    };
    SourceError::Refused { action, reason: format!("{status}: {said}; {advice}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_name_of_a_server_has_no_password() {
        let server = Server::new("CouchDB", &"http://admin:secret@couch:5984".into(), None, None, 1).unwrap();
        assert_eq!(server.name(), "CouchDB at couch:5984");
        for url in ["", "couch:5984", "ftp://couch", "postgres://x:secret@y/z"] {
            let Err(error) = Server::new("CouchDB", &url.into(), None, None, 1) else { panic!("{url} was taken") };
            assert!(matches!(error, SourceError::Refused { .. }) && !error.to_string().contains("secret"));
        }
    }

    #[test]
    fn path_parts_are_escaped() {
        let server = Server::new("Elasticsearch", &"http://es:9200/prefix/".into(), None, None, 1).unwrap();
        let request = server.request(&["a/../b", "_mget"], &[("q", "x&y")], None).build().unwrap();
        assert_eq!(request.url().as_str(), "http://es:9200/prefix/a%2F..%2Fb/_mget?q=x%26y");
    }

    #[test]
    fn statuses_say_what_to_do_next() {
        for status in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY] {
            assert!(matches!(status_error("ask".into(), status, ""), SourceError::Unavailable { .. }));
        }
        for status in [StatusCode::UNAUTHORIZED, StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST] {
            assert!(matches!(status_error("ask".into(), status, ""), SourceError::Refused { .. }));
        }
    }
}

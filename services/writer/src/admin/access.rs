//! Who asks, and what they may ask for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tonic::{Request, Status};

use super::options::{AdminOptions, Role};
use super::problem::{self, Problem};

/// How long the answer to a wrong token is held back, one after the other: so many tries a second are all that anybody has.
const WRONG_TOKEN_COSTS: Duration = Duration::from_millis(500);

/// Most wrong tokens whose answers wait; further ones are refused without a look.
const WRONG_TOKENS_WAITING_MAX: usize = 64;

/// Name of who asks where no tokens are configured.
const WITHOUT_TOKENS: &str = "local";

/// Who asks.
#[derive(Debug)]
pub(super) struct Caller {
    /// Name of the token.
    pub(super) name: String,
    role: Role,
    domains: Option<BTreeSet<String>>,
}

impl Caller {
    /// The projects that are seen; `None`: all.
    pub(super) fn domains(&self) -> Option<Vec<String>> {
        self.domains.as_ref().map(|domains| domains.iter().cloned().collect())
    }

    /// Those that are seen, or the one of them that is asked for, where it is (empty: no one in particular).
    pub(super) fn domains_among(&self, asked: &str) -> Option<Vec<String>> {
        match (asked, &self.domains) {
            ("", _) => self.domains(),
            (asked, Some(domains)) if !domains.contains(asked) => Some(Vec::new()),
            (asked, _) => Some(vec![asked.to_owned()]),
        }
    }

    /// Whether a project is seen.
    pub(super) fn sees(&self, domain: &str) -> bool {
        self.domains.as_ref().is_none_or(|domains| domains.contains(domain))
    }

    /// Refuses what concerns all projects to who sees only some.
    pub(super) fn whole_lake(&self, action: &str) -> Result<(), Status> {
        if self.domains.is_none() {
            return Ok(());
        }
        Err(problem::status(&Problem::OtherProjects { name: self.name.clone(), action: action.to_owned() }))
    }
}

/// Lets callers in.
pub(super) struct Gate {
    callers: HashMap<[u8; 32], Arc<Caller>>,
    /// One wrong token at a time.
    refusing: Semaphore,
    waiting: Semaphore,
}

impl Gate {
    pub(super) fn new(options: &AdminOptions) -> Self {
        let caller = |token: &super::AdminToken| {
            let (name, role, domains) = (token.name.clone(), token.role, token.domains.clone());
            Some((token.digest()?, Arc::new(Caller { name, role, domains })))
        };
        Self {
            callers: options.tokens.iter().filter_map(caller).collect(),
            refusing: Semaphore::new(1),
            waiting: Semaphore::new(WRONG_TOKENS_WAITING_MAX),
        }
    }

    /// Who asks, if that is known and they may do what the role may.
    pub(super) async fn enter<T>(&self, request: &Request<T>, least: Role) -> Result<Arc<Caller>, Status> {
        if self.callers.is_empty() {
            return Ok(Arc::new(Caller { name: WITHOUT_TOKENS.into(), role: Role::Admin, domains: None }));
        }
        let Some(caller) = bearer(request).and_then(|token| self.callers.get(&digest(token))) else {
            return Err(self.refuse().await);
        };
        if caller.role < least {
            let name = caller.name.clone();
            return Err(problem::status(&Problem::Role { name, has: caller.role, needs: least }));
        }
        Ok(Arc::clone(caller))
    }

    async fn refuse(&self) -> Status {
        let refused = problem::status(&Problem::Token);
        let Ok(_waiting) = self.waiting.try_acquire() else { return refused };
        let _alone = self.refusing.acquire().await;
        tokio::time::sleep(WRONG_TOKEN_COSTS).await;
        refused
    }
}

fn bearer<T>(request: &Request<T>) -> Option<&str> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tonic::Code;

    use super::super::AdminToken;
    use super::*;

    /// SHA-256 of the text `secret`.
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn gate(role: Role, domains: Option<&[&str]>) -> Gate {
        let domains = domains.map(|domains| domains.iter().map(|domain| (*domain).to_owned()).collect());
        let tokens = vec![AdminToken { name: "ann".into(), sha256: SECRET.into(), role, domains }];
        Gate::new(&AdminOptions {
            address: "127.0.0.1:1".parse().unwrap(),
            status_page: true,
            scaler: false,
            tls: None,
            tokens,
        })
    }

    fn request(authorization: &str) -> Request<()> {
        let mut request = Request::new(());
        request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        request
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_opens_what_its_role_may() {
        let gate = gate(Role::Operator, None);
        for authorization in ["Bearer secret", "bearer secret"] {
            let caller = gate.enter(&request(authorization), Role::Operator).await.unwrap();
            assert_eq!((caller.name.as_str(), caller.sees("any"), caller.domains()), ("ann", true, None));
        }
        let refused = gate.enter(&request("Bearer secret"), Role::Admin).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("operator") && refused.message().contains("admin"), "{refused}");
        for wrong in ["Bearer wrong", "Bearer", "Basic secret", "secret"] {
            let refused = gate.enter(&request(wrong), Role::Viewer).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated);
            assert!(!refused.message().contains("wrong"), "the token is not repeated");
        }
        assert_eq!(gate.enter(&Request::new(()), Role::Viewer).await.unwrap_err().code(), Code::Unauthenticated);
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_take_their_time_and_right_ones_do_not() {
        let gate = gate(Role::Viewer, None);
        let began = tokio::time::Instant::now();
        let wrong = request("Bearer wrong");
        futures::future::join_all((0..4).map(|_| gate.enter(&wrong, Role::Viewer))).await;
        assert!(began.elapsed() >= 4 * WRONG_TOKEN_COSTS);
        let began = tokio::time::Instant::now();
        let (_, right) = tokio::join!(gate.enter(&wrong, Role::Viewer), async {
            gate.enter(&request("Bearer secret"), Role::Viewer).await.unwrap();
            began.elapsed()
        });
        assert_eq!(right, Duration::ZERO);
    }

    #[tokio::test]
    async fn a_token_of_some_projects_sees_no_other() {
        let gate = gate(Role::Admin, Some(&["demo", "malaria"]));
        let caller = gate.enter(&request("Bearer secret"), Role::Viewer).await.unwrap();
        assert!(caller.sees("demo") && !caller.sees("other"));
        assert_eq!(caller.domains_among(""), Some(vec!["demo".into(), "malaria".into()]));
        assert_eq!(caller.domains_among("demo"), Some(vec!["demo".into()]));
        assert_eq!(caller.domains_among("other"), Some(Vec::new()));
        assert_eq!(caller.whole_lake("pause everything").unwrap_err().code(), Code::PermissionDenied);
    }

    #[tokio::test]
    async fn without_tokens_everybody_on_the_machine_may_ask() {
        let gate = Gate::new(&AdminOptions {
            address: "127.0.0.1:1".parse().unwrap(),
            status_page: true,
            scaler: false,
            tls: None,
            tokens: Vec::new(),
        });
        let caller = gate.enter(&Request::new(()), Role::Admin).await.unwrap();
        assert!(caller.whole_lake("pause everything").is_ok());
        assert_eq!(caller.domains_among("demo"), Some(vec!["demo".into()]));
    }
}

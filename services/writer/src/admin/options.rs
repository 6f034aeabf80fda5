//! Section `[admin]`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// Section `[admin]`: the gRPC interface for operators. Without the section there is none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminOptions {
    /// Where it listens, for example `127.0.0.1:9700`.
    pub address: SocketAddr,
    /// Whether the HTTP port of the process serves the page for people. Whoever reaches that port sees names and sizes of all tables.
    #[serde(default = "yes")]
    pub status_page: bool,
    /// Whether KEDA may ask how many fetchers and enrichers there should be. It has no token: whoever reaches the address may ask it, and learns
    /// these two numbers. With `client_ca` it needs a certificate as everybody does.
    #[serde(default)]
    pub scaler: bool,
    /// Section `[admin.tls]`; needed where the address can be reached from other machines.
    #[serde(default)]
    pub tls: Option<AdminTls>,
    /// Who may ask for what; needed where the address can be reached from other machines. Without any, everybody on this machine may ask for
    /// everything.
    #[serde(default)]
    pub tokens: Vec<AdminToken>,
}

/// Section `[admin.tls]`: files in PEM. They may be replaced while the writer runs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminTls {
    /// The certificate, with those between it and the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The root by which certificates of clients are judged; with it, a client must have one.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// A bearer token.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminToken {
    /// Who has it; stands in operations and in the audit.
    pub name: String,
    /// SHA-256 of the token, in 64 hexadecimal digits: the token itself is kept nowhere.
    pub sha256: String,
    /// What it allows.
    pub role: Role,
    /// The projects that it allows to see and steer; without it, all.
    #[serde(default)]
    pub domains: Option<BTreeSet<String>>,
}

/// What a token allows. Each role has the rights of those before it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// To look.
    Viewer,
    /// To have work done that destroys nothing that readers need, to pause and to resume.
    Operator,
    /// Everything.
    Admin,
}

const fn yes() -> bool {
    true
}

impl AdminOptions {
    /// Rules that types cannot express.
    ///
    /// # Errors
    ///
    /// The key that breaks a rule and what to do.
    pub fn validate(&self) -> Result<(), String> {
        if !self.address.ip().is_loopback() {
            let reached = "it can be reached from other machines";
            if self.tls.is_none() {
                return Err(format!("key `admin.address`: {reached}, so `[admin.tls]` is needed"));
            }
            if self.tokens.is_empty() {
                return Err(format!("key `admin.address`: {reached}, so `[[admin.tokens]]` are needed"));
            }
        }
        let (mut names, mut hashes) = (BTreeSet::new(), BTreeSet::new());
        for token in &self.tokens {
            let name = &token.name;
            if token.digest().is_none() {
                return Err(format!("key `admin.tokens`: sha256 of `{name}` is not 64 hexadecimal digits"));
            }
            if name.is_empty() || !names.insert(name) {
                return Err(format!("key `admin.tokens`: the name `{name}` is empty or comes twice"));
            }
            if !hashes.insert(token.digest()) {
                return Err(format!("key `admin.tokens`: the token of `{name}` is also that of another name"));
            }
        }
        Ok(())
    }
}

impl AdminToken {
    /// The digest; `None` where the text is none.
    pub(crate) fn digest(&self) -> Option<[u8; 32]> {
        let text = self.sha256.as_bytes();
        if text.len() != 64 || !text.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut digest = [0; 32];
        for (byte, digits) in digest.iter_mut().zip(text.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(digest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn token(name: &str, first: &str) -> AdminToken {
        let sha256 = format!("{first}{}", "a".repeat(64 - first.len()));
        AdminToken { name: name.into(), sha256, role: Role::Viewer, domains: None }
    }

    fn options(address: &str) -> AdminOptions {
        AdminOptions {
            address: address.parse().unwrap(),
            status_page: true,
            scaler: false,
            tls: None,
            tokens: Vec::new(),
        }
    }

    #[test]
    fn what_other_machines_reach_is_protected() {
        assert!(options("127.0.0.1:9700").validate().is_ok() && options("[::1]:9700").validate().is_ok());
        let open = options("0.0.0.0:9700");
        assert!(open.validate().unwrap_err().contains("[admin.tls]"));
        let tls = Some(AdminTls { certificate: "c".into(), key: "k".into(), client_ca: None });
        let encrypted = AdminOptions { tls, ..open };
        assert!(encrypted.validate().unwrap_err().contains("[[admin.tokens]]"));
        assert!(AdminOptions { tokens: vec![token("ann", "1")], ..encrypted }.validate().is_ok());
    }

    #[test]
    fn tokens_are_hashes_each_with_its_name() {
        let with = |tokens: Vec<AdminToken>| AdminOptions { tokens, ..options("127.0.0.1:1") }.validate();
        assert_eq!(with(vec![token("ann", "01"), token("bob", "F2")]), Ok(()));
        assert!(with(vec![token("ann", "01"), token("ann", "02")]).unwrap_err().contains("twice"));
        assert!(with(vec![token("ann", "0a"), token("bob", "0A")]).unwrap_err().contains("another name"));
        for wrong in ["secret", "", "+1", "é"] {
            let token = AdminToken { sha256: format!("{wrong:b<64}").replace('b', "z"), ..token("ann", "1") };
            assert!(with(vec![token]).unwrap_err().contains("64 hexadecimal digits"), "{wrong}");
        }
        assert_eq!(token("ann", "0102ff").digest().unwrap()[..4], [1, 2, 255, 170]);
    }
}

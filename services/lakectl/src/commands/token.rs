//! Tokens for the configuration of writers.

use anyhow::Result;
use rand::Rng;
use sha2::{Digest, Sha256};

use crate::command_line::{RoleName, TokenVerb};
use crate::exit;
use crate::output;

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;

pub(super) fn run(verb: TokenVerb) -> Result<u8> {
    let TokenVerb::New { name, role, domain } = verb;
    let mut bytes = [0; TOKEN_BYTES];
    rand::rng().fill_bytes(&mut bytes);
    let token = format!("lake_{}", hexadecimal(&bytes));
    eprintln!(
        "The token, which is shown only now; whoever is to have it: lakectl context add NAME --server ADDRESS --token-stdin"
    );
    output::print(&format!("{token}\n"))?;
    eprintln!("\nFor the configuration of every writer:\n\n{}", lines(&name, role, &domain, &token));
    Ok(exit::DONE)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lines of a writer's configuration.
fn lines(name: &str, role: RoleName, domains: &[String], token: &str) -> String {
    let role = match role {
        RoleName::Viewer => "viewer",
        RoleName::Operator => "operator",
        RoleName::Admin => "admin",
    };
    let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut lines = format!(
        "[[admin.tokens]]\nname = {}\nsha256 = \"{}\"\nrole = \"{role}\"\n",
        text(name),
        hexadecimal(&Sha256::digest(token.as_bytes()))
    );
    if !domains.is_empty() {
        let domains: Vec<String> = domains.iter().map(|domain| text(domain)).collect();
        lines += &format!("domains = [{}]\n", domains.join(", "));
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_configuration_holds_only_the_hash() {
        let lines = lines("an\"n", RoleName::Operator, &["demo".into()], "secret");
        let parsed: toml::Table = lines.parse().unwrap();
        let token = &parsed["admin"]["tokens"][0];
        assert_eq!(token["name"].as_str(), Some("an\"n"));
        assert_eq!(token["sha256"].as_str(), Some("2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"));
        assert_eq!((token["role"].as_str(), token["domains"][0].as_str()), (Some("operator"), Some("demo")));
        assert!(!lines.contains("secret"));
    }
}

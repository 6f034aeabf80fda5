//! Contexts.

use std::io::Read;

use anyhow::{Context as _, Result};

use crate::command_line::{ContextVerb, Global};
use crate::context::{self, Context, Contexts, Token};
use crate::exit::{self, ContextTrouble};
use crate::output::{self, Columns};
use crate::view;

const COLUMNS: Columns = Columns { table: &["name", "server", "selected", "has_token"], wide: &[] };

pub(super) fn run(global: &Global, verb: ContextVerb) -> Result<u8> {
    let file = context::file()?;
    let mut contexts = Contexts::read(&file)?;
    match verb {
        ContextVerb::Add { name, server, ca, client_certificate, client_key, token_stdin } => {
            let token = if token_stdin { Some(token_from(std::io::stdin().lock())?) } else { None };
            let context = Context { server, ca, client_certificate, client_key, token };
            contexts.contexts.insert(name.clone(), context);
            contexts.selected.get_or_insert(name);
            contexts.write(&file)?;
        }
        ContextVerb::Select { name } => {
            contexts.choose(Some(&name))?;
            contexts.selected = Some(name);
            contexts.write(&file)?;
        }
        ContextVerb::Remove { name } => {
            if contexts.contexts.remove(&name).is_none() {
                return Err(ContextTrouble(format!("there is no context `{name}`")).into());
            }
            contexts.selected = contexts.selected.filter(|selected| *selected != name);
            contexts.write(&file)?;
        }
        ContextVerb::List => {
            let shown = |(name, context): (&String, &Context)| view::Context {
                name: name.clone(),
                server: context.server.clone(),
                selected: contexts.selected.as_ref() == Some(name),
                has_token: context.token.is_some(),
            };
            let shown: Vec<view::Context> = contexts.contexts.iter().map(shown).collect();
            output::print(&output::list(global.output, &COLUMNS, &shown)?)?;
        }
    }
    Ok(exit::DONE)
}

fn token_from(mut input: impl Read) -> Result<Token> {
    let mut text = String::new();
    input.read_to_string(&mut text).context("the token cannot be read from standard input")?;
    let token = text.trim();
    anyhow::ensure!(!token.is_empty(), "standard input holds no token");
    Ok(Token(token.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_token_is_read_without_its_line_end() {
        assert_eq!(token_from(&b"secret\n"[..]).unwrap().0, "secret");
        assert!(token_from(&b" \n"[..]).is_err());
    }
}

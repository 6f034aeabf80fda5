//! Plan, then apply: what destroys something can be planned first, and is then done only if it is still what the plan said.

use sha2::{Digest, Sha256};

/// What has to be so that something is destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consent {
    /// Nothing is: the answer says what would be.
    DryRun,
    /// It has to be exactly what the plan with this id said.
    ToPlan(String),
    /// Whatever it is.
    Given,
}

/// What is to be done is not what the plan said.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("plan {asked} is stale: what would be done now is another plan, {now}")]
pub struct StalePlan {
    /// The plan that was to be kept to.
    pub asked: String,
    /// The one that would be made now.
    pub now: String,
}

/// What work that destroys something has done, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Id of the plan, made of all that is destroyed: another plan has another id.
    pub plan: String,
    /// Whether it was done, not only planned.
    pub done: bool,
    /// Tables that are looked at.
    pub tables: u64,
    /// Rows that leave.
    pub rows: u64,
    /// Files that are deleted.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Consent {
    /// From what is kept of it: whether nothing is to be done, and the id of a plan, which is empty where there is none.
    pub fn of(dry_run: bool, plan: &str) -> Self {
        match (dry_run, plan) {
            (true, _) => Self::DryRun,
            (false, "") => Self::Given,
            (false, plan) => Self::ToPlan(plan.to_owned()),
        }
    }

    /// The plan that is to be kept to; empty where there is none.
    pub fn plan(&self) -> &str {
        match self {
            Self::ToPlan(plan) => plan,
            Self::DryRun | Self::Given => "",
        }
    }

    /// Whether what this plan says may be done.
    ///
    /// # Errors
    /// When another plan was to be kept to.
    pub fn allows(&self, plan: &str) -> Result<bool, StalePlan> {
        match self {
            Self::DryRun => Ok(false),
            Self::Given => Ok(true),
            Self::ToPlan(asked) if asked == plan => Ok(true),
            Self::ToPlan(asked) => Err(StalePlan { asked: asked.clone(), now: plan.to_owned() }),
        }
    }
}

/// Id of the plan to do something with these objects, each described by a text; their order does not matter.
pub(crate) fn plan_id(action: &str, mut objects: Vec<String>) -> String {
    objects.sort_unstable();
    let mut digest = Sha256::new();
    for text in std::iter::once(action).chain(objects.iter().map(String::as_str)) {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_kept_to_exactly() {
        let plan = |objects: &[&str]| plan_id("vacuum", objects.iter().map(|&object| object.to_owned()).collect());
        let id = plan(&["a", "b"]);
        assert_eq!((id.len(), &id), (16, &plan(&["b", "a"])));
        for other in [plan(&["a"]), plan(&["ab"]), plan(&["a", "b", ""]), plan_id("drop", vec!["a".into(), "b".into()])]
        {
            assert_ne!(id, other);
            assert_eq!(Consent::ToPlan(other.clone()).allows(&id), Err(StalePlan { asked: other, now: id.clone() }));
        }
        assert_eq!(Consent::ToPlan(id.clone()).allows(&id), Ok(true));
        assert_eq!((Consent::DryRun.allows(&id), Consent::Given.allows(&id)), (Ok(false), Ok(true)));
    }

    #[test]
    fn what_is_kept_of_it_says_it_again() {
        for consent in [Consent::DryRun, Consent::Given, Consent::ToPlan("p".into())] {
            assert_eq!(Consent::of(consent == Consent::DryRun, consent.plan()), consent);
        }
    }
}

//! Going back to an older version, where the template is kept in the Rollout itself; and what to type where it is not.
//!
//! Pure. A template that is kept elsewhere would come back by itself, so nothing is written there: the answer says whose
//! it is, and by which command it changes.

use std::fmt::Write as _;

use super::facts::Facts;
use super::verbs::Nothing;
use super::view::short;
use crate::api::{PodTemplate, names};

/// The template of the version to go back to: `to`, or the one before. `owners` are the field managers of the template.
///
/// # Errors
/// When the template is kept elsewhere, or when there is no such version; the message says what to do.
pub fn undo(facts: &Facts, to: Option<&str>, owners: &[String]) -> Result<PodTemplate, Nothing> {
    let identity = &facts.rollout.identity;
    let (name, namespace) = (&identity.name, &identity.namespace);
    let status = &facts.status;
    if let Some(repo) = identity.annotations.get(names::DEPLOY_REPO) {
        let commit = identity.annotations.get(names::SOURCE_COMMIT);
        let commit = commit.map_or("COMMIT", |commit| short(commit));
        return Err(Nothing(format!(
            "{name} is declared in git (DeployRepo {repo}), which would undo this at once; there: git revert {commit}"
        )));
    }
    let workload = facts.rollout.spec.as_ref().ok().and_then(|spec| spec.workload_ref.as_ref());
    if let Some(workload) = workload {
        return Err(Nothing(format!(
            "the template of {name} is kept in Deployment {}; there: kubectl rollout undo deployment/{} -n {namespace}",
            workload.name, workload.name
        )));
    }
    if let Some(owner) = owners.iter().find(|owner| !owner.starts_with("kubectl")) {
        return Err(Nothing(format!(
            "the template of {name} belongs to {owner}, which would undo this; change it where {owner} has it from"
        )));
    }
    let known = |revision: &&String| facts.revisions.contains_key(*revision) && **revision != status.revision;
    let before = status.stable_revision.iter().chain(&status.promoted_revisions);
    let mut listed: Vec<&String> = before.filter(known).collect();
    for revision in facts.revisions.keys().filter(known) {
        if !listed.contains(&revision) {
            listed.push(revision);
        }
    }
    let chosen = match to {
        None => listed.first(),
        Some(to) => listed.iter().find(|revision| revision.starts_with(to)),
    };
    let Some(state) = chosen.and_then(|revision| facts.revisions.get(*revision)) else {
        let mut message = match to {
            Some(to) if status.revision.starts_with(to) => format!("{name} has revision {to} already"),
            Some(to) => format!("the template of revision {to} is not known any more"),
            None => format!("no older version of {name} is known"),
        };
        if !listed.is_empty() {
            let names: Vec<&str> = listed.iter().map(|revision| revision.as_str()).collect();
            let _ = write!(message, "; known are {}", names.join(", "));
        }
        return Err(Nothing(message));
    };
    Ok(state.template.clone())
}

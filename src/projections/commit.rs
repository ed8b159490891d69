//! How a rollout goes, shown beside the commit that asked for it: a commit status, or a deployment, on the forge.

use std::fmt;

use super::{DeliveryError, Event};
use crate::api::TransitionEvent;
use crate::forge::{CommitStatus, Deployment, EndedDeployment, ForgeClient, State};

/// A forge that is told.
#[derive(Clone)]
pub struct ForgeSink {
    client: ForgeClient,
    /// Where deployments go; none for commit statuses.
    environment: Option<String>,
}

impl ForgeSink {
    /// Tells by a status on the commit, one for each Rollout of each cluster.
    pub fn commit_status(client: ForgeClient) -> Self {
        Self { client, environment: None }
    }

    /// Tells by deployments to an environment, one for each release.
    pub fn deployment(client: ForgeClient, environment: String) -> Self {
        Self { client, environment: Some(environment) }
    }

    pub(super) async fn deliver(&self, event: &Event) -> Result<(), DeliveryError> {
        if let Some(environment) = self.environment.as_ref().filter(|_| gives_up(event)) {
            return self.end(event, environment).await;
        }
        let Some(commit) = event.source_commit.as_deref().filter(|commit| is_full_name(commit)) else {
            // Nobody knows which commit asked for it: there is nothing to show it beside.
            return Ok(());
        };
        let description = described(event);
        let target = event.page.as_deref();
        if let Some(environment) = &self.environment {
            let Some(state) = deployment_state(event) else { return Ok(()) };
            let key = format!("{}/{}", event.uid, event.release);
            let deployment = Deployment { commit, environment, key: &key, state, description: &description, target };
            return Ok(self.client.deploy(deployment).await?);
        }
        let Some(state) = commit_state(event) else { return Ok(()) };
        let context = format!("sluice/{}", event.source());
        let status = CommitStatus { context: &context, state, description: &description, target };
        Ok(self.client.set_status(commit, status).await?)
    }

    /// The release was given up for what git asks for now: its deployment is one of the commit that asked for it.
    async fn end(&self, event: &Event, environment: &str) -> Result<(), DeliveryError> {
        let before = event.source_commit_before.as_deref();
        let Some(commit) = before.filter(|commit| is_full_name(commit)) else { return Ok(()) };
        let key = format!("{}/{}", event.uid, event.release);
        let description = described(event);
        let ended = EndedDeployment { commit, environment, key: &key, description: &description };
        Ok(self.client.end_deployment(ended).await?)
    }
}

impl fmt::Debug for ForgeSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForgeSink").field("client", &self.client).field("environment", &self.environment).finish()
    }
}

fn described(event: &Event) -> String {
    format!("{}: {}", event.summary(), event.message)
}

fn is_full_name(commit: &str) -> bool {
    matches!(commit.len(), 40 | 64) && commit.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// How it goes for the commit that the cluster was asked to follow. None where that is not said.
pub(super) fn commit_state(event: &Event) -> Option<State> {
    match event.event {
        TransitionEvent::Promoted => Some(State::Success),
        TransitionEvent::Aborted if is_revert(event) => Some(State::Success),
        TransitionEvent::Aborted | TransitionEvent::Denied => Some(State::Failure),
        TransitionEvent::FirstDeploy
        | TransitionEvent::Started
        | TransitionEvent::StepCompleted
        | TransitionEvent::Paused
        | TransitionEvent::Resumed
        | TransitionEvent::Held
        | TransitionEvent::Promoting
        | TransitionEvent::PlanChanged
        // The commit is the one that takes the other's place, and its own beginning follows.
        | TransitionEvent::Superseded => Some(State::Pending),
        // It may have been at rest: what was said before still holds.
        TransitionEvent::Recovered
        | TransitionEvent::HandedBack
        | TransitionEvent::DriftCorrected
        | TransitionEvent::Restarting
        | TransitionEvent::Restarted => None,
    }
}

/// How the release goes, where it is a deployment of this very commit.
pub(super) fn deployment_state(event: &Event) -> Option<State> {
    match event.event {
        // What was denied never began; and what ends by another commit is no deployment of that one.
        TransitionEvent::Denied | TransitionEvent::Superseded => None,
        TransitionEvent::Aborted if is_revert(event) => None,
        _ => commit_state(event),
    }
}

/// A release ends, neither good nor bad, because git asks for something else.
fn gives_up(event: &Event) -> bool {
    event.event == TransitionEvent::Superseded || is_revert(event)
}

/// Git asks for what was there before, and has it.
fn is_revert(event: &Event) -> bool {
    event.event == TransitionEvent::Aborted && event.reason == "Revert"
}

//! GitHub and GitHub Enterprise: the REST API, version 2022-11-28.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::connection::Connection;
use super::{
    CommitStatus, Deployment, EndedDeployment, ForgeError, Location, NewPullRequest, PullRequest, PullRequestState,
    State,
};

/// What our deployments are called among all of a repository.
const TASK: &str = "deploy:sluice";
/// The field of a deployment's payload that holds the key.
const KEY: &str = "sluice";

#[derive(Clone)]
pub(super) struct GitHub {
    connection: Connection,
    owner: String,
    name: String,
}

#[derive(Deserialize)]
struct Pull {
    number: u64,
    html_url: Option<String>,
    state: String,
    merged_at: Option<String>,
    head: End,
    base: End,
}

#[derive(Deserialize)]
struct End {
    #[serde(rename = "ref")]
    branch: String,
    /// None when the fork is gone.
    repo: Option<Repository>,
}

#[derive(Deserialize)]
struct Repository {
    id: u64,
}

#[derive(Deserialize)]
struct Status {
    context: String,
    state: String,
    description: Option<String>,
    target_url: Option<String>,
}

#[derive(Deserialize)]
struct Deployed {
    id: u64,
    sha: String,
    #[serde(default)]
    payload: Value,
}

#[derive(Deserialize)]
struct DeploymentStatus {
    id: u64,
    state: String,
}

impl Pull {
    fn is_of_one_repository(&self) -> bool {
        let id = |end: &End| end.repo.as_ref().map(|repository| repository.id);
        id(&self.head).is_some() && id(&self.head) == id(&self.base)
    }

    fn read(self) -> PullRequest {
        let state = match (self.state.as_str(), self.merged_at.is_some()) {
            (_, true) => PullRequestState::Merged,
            ("open", _) => PullRequestState::Open,
            _ => PullRequestState::Closed,
        };
        let page = super::page(self.html_url);
        PullRequest { number: self.number, page, head: self.head.branch, base: self.base.branch, state }
    }
}

impl Deployed {
    /// The payload comes back as it was sent, or as a text that holds it.
    fn has_key(&self, key: &str) -> bool {
        let inner = self.payload.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        inner.as_ref().unwrap_or(&self.payload).get(KEY).and_then(Value::as_str) == Some(key)
    }
}

impl GitHub {
    pub(super) fn new(location: &Location, token: &str, authorities: Option<&str>) -> Result<Self, ForgeError> {
        let connection = connection(location, token, authorities)?;
        Ok(Self { connection, owner: location.owner().to_owned(), name: location.name().to_owned() })
    }

    fn path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        ["repos", &self.owner, &self.name].into_iter().chain(rest.iter().copied()).collect()
    }

    pub(super) async fn find_pull_request(&self, head: &str) -> Result<Option<PullRequest>, ForgeError> {
        let call = self.connection.get("looking for a pull request", &self.path(&["pulls"]));
        // The forks of one owner are told apart afterwards; no owner has many of one repository.
        let call = call.query("state", "open").query("head", &format!("{}:{head}", self.owner)).query("per_page", "20");
        let found: Vec<Pull> = call.send().await?;
        Ok(found.into_iter().find(|pull| pull.head.branch == head && pull.is_of_one_repository()).map(Pull::read))
    }

    pub(super) async fn open_pull_request(&self, new: NewPullRequest<'_>) -> Result<PullRequest, ForgeError> {
        let body = json!({"title": new.title, "body": new.body, "head": new.head, "base": new.base});
        let pull: Pull = self.connection.post("opening a pull request", &self.path(&["pulls"]), body).send().await?;
        Ok(pull.read())
    }

    pub(super) async fn pull_request(&self, number: u64) -> Result<PullRequest, ForgeError> {
        let path = ["pulls", &number.to_string()];
        let pull: Pull = self.connection.get("reading a pull request", &self.path(&path)).send().await?;
        Ok(pull.read())
    }

    pub(super) async fn set_status(&self, commit: &str, status: CommitStatus<'_>) -> Result<(), ForgeError> {
        let doing = "setting a commit status";
        let call = self.connection.get(doing, &self.path(&["commits", commit, "statuses"]));
        let known: Vec<Status> = call.query("per_page", "100").send().await?;
        // The newest comes first.
        let newest = known.into_iter().find(|known| known.context == status.context);
        let state = state(status.state, "pending");
        let is_said = |known: Status| {
            known.state == state
                && known.description.as_deref().unwrap_or_default() == status.description
                && known.target_url.as_deref().filter(|url| !url.is_empty()) == status.target
        };
        if newest.is_some_and(is_said) {
            return Ok(());
        }
        let body = json!({
            "state": state,
            "context": status.context,
            "description": status.description,
            "target_url": status.target,
        });
        let call = self.connection.post(doing, &self.path(&["statuses", commit]), body);
        call.send::<IgnoredAny>().await.map(drop)
    }

    pub(super) async fn deploy(&self, deployment: Deployment<'_>) -> Result<(), ForgeError> {
        let doing = "setting a deployment";
        let Deployment { commit, environment, key, .. } = deployment;
        let known = self.deployment(doing, commit, environment, key).await?;
        let id = match &known {
            Some(known) => known.id,
            None => {
                let body = json!({
                    "ref": deployment.commit,
                    "environment": deployment.environment,
                    "task": TASK,
                    "payload": {KEY: deployment.key},
                    "description": deployment.description,
                    // It happens already: nothing is merged for it, and nothing is waited for.
                    "auto_merge": false,
                    "required_contexts": [],
                });
                self.connection.post(doing, &self.path(&["deployments"]), body).send::<Deployed>().await?.id
            }
        };
        let state = state(deployment.state, "in_progress");
        if known.is_some() && self.deployment_state(doing, id).await?.as_deref() == Some(state) {
            return Ok(());
        }
        let id = id.to_string();
        let path = ["deployments", &id, "statuses"];
        let body = json!({"state": state, "description": deployment.description, "log_url": deployment.target});
        self.connection.post(doing, &self.path(&path), body).send::<IgnoredAny>().await.map(drop)
    }

    pub(super) async fn end_deployment(&self, ended: EndedDeployment<'_>) -> Result<(), ForgeError> {
        let doing = "ending a deployment";
        let EndedDeployment { commit, environment, key, description } = ended;
        let Some(known) = self.deployment(doing, commit, environment, key).await? else { return Ok(()) };
        let state = self.deployment_state(doing, known.id).await?;
        if state.is_some_and(|state| !matches!(state.as_str(), "in_progress" | "queued" | "pending")) {
            return Ok(());
        }
        let body = json!({"state": "inactive", "description": description});
        let id = known.id.to_string();
        let path = ["deployments", &id, "statuses"];
        self.connection.post(doing, &self.path(&path), body).send::<IgnoredAny>().await.map(drop)
    }

    /// The one of ours with this key.
    async fn deployment(
        &self,
        doing: &'static str,
        commit: &str,
        environment: &str,
        key: &str,
    ) -> Result<Option<Deployed>, ForgeError> {
        let call = self.connection.get(doing, &self.path(&["deployments"]));
        let call = call.query("sha", commit).query("environment", environment);
        let known: Vec<Deployed> = call.query("task", TASK).query("per_page", "100").send().await?;
        Ok(known.into_iter().find(|known| known.has_key(key)))
    }

    /// What was said last of a deployment; none when nothing was.
    async fn deployment_state(&self, doing: &'static str, id: u64) -> Result<Option<String>, ForgeError> {
        let path = ["deployments", &id.to_string(), "statuses"];
        let said: Vec<DeploymentStatus> =
            self.connection.get(doing, &self.path(&path)).query("per_page", "100").send().await?;
        Ok(said.into_iter().max_by_key(|said| said.id).map(|newest| newest.state))
    }

    pub(super) async fn newest_deployment(&self, environment: &str) -> Result<Option<String>, ForgeError> {
        let call = self.connection.get("looking for a deployment", &self.path(&["deployments"]));
        let call = call.query("environment", environment).query("task", TASK).query("per_page", "1");
        let known: Vec<Deployed> = call.send().await?;
        Ok(known.into_iter().next().map(|newest| newest.sha))
    }
}

/// A connection as GitHub wants it, also for what an App asks before it has a token.
pub(super) fn connection(
    location: &Location,
    token: &str,
    authorities: Option<&str>,
) -> Result<Connection, ForgeError> {
    let connection = Connection::new(location.api(), "Bearer", token, authorities)?;
    Ok(connection
        .with_header("accept", "application/vnd.github+json")
        .with_header("x-github-api-version", "2022-11-28"))
}

fn state(state: State, pending: &'static str) -> &'static str {
    match state {
        State::Pending => pending,
        State::Success => "success",
        State::Failure => "failure",
    }
}

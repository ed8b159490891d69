//! Gitea and Forgejo: the REST API, version 1. It has no deployments.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::connection::Connection;
use super::{
    CommitStatus, Deployment, EndedDeployment, ForgeError, Location, NewPullRequest, PullRequest, PullRequestState,
    State,
};

/// Pull requests in one answer: each comes with both of its repositories and its whole text.
const PAGE: usize = 10;
/// How many open pull requests are looked at: there is no way to ask for a branch.
const MOST_PAGES: usize = 100;

#[derive(Clone)]
pub(super) struct Gitea {
    connection: Connection,
    owner: String,
    name: String,
}

#[derive(Deserialize)]
struct Pull {
    number: u64,
    html_url: Option<String>,
    state: String,
    #[serde(default)]
    merged: bool,
    head: End,
    base: End,
}

#[derive(Deserialize)]
struct End {
    #[serde(rename = "ref")]
    branch: String,
    #[serde(default)]
    repo_id: i64,
}

#[derive(Deserialize)]
struct Status {
    id: u64,
    context: String,
    status: String,
    description: Option<String>,
    target_url: Option<String>,
}

impl Pull {
    fn read(self) -> PullRequest {
        let state = match (self.state.as_str(), self.merged) {
            (_, true) => PullRequestState::Merged,
            ("open", _) => PullRequestState::Open,
            _ => PullRequestState::Closed,
        };
        let page = super::page(self.html_url);
        PullRequest { number: self.number, page, head: self.head.branch, base: self.base.branch, state }
    }
}

fn deployment_context(environment: &str) -> String {
    format!("deployment/{environment}")
}

impl Gitea {
    pub(super) fn new(location: &Location, token: &str, authorities: Option<&str>) -> Result<Self, ForgeError> {
        let connection = Connection::new(location.api(), "token", token, authorities)?;
        Ok(Self { connection, owner: location.owner().to_owned(), name: location.name().to_owned() })
    }

    fn path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        ["repos", &self.owner, &self.name].into_iter().chain(rest.iter().copied()).collect()
    }

    pub(super) async fn find_pull_request(&self, head: &str) -> Result<Option<PullRequest>, ForgeError> {
        let doing = "looking for a pull request";
        for page in 1..=MOST_PAGES {
            let call = self.connection.get(doing, &self.path(&["pulls"])).query("state", "open");
            let call = call.query("sort", "recentupdate").query("page", &page.to_string());
            let found: Vec<Pull> = call.query("limit", &PAGE.to_string()).send().await?;
            // A server may give fewer than are asked for, never more.
            let is_last = found.is_empty();
            let own = |pull: &Pull| pull.head.repo_id == pull.base.repo_id;
            if let Some(pull) = found.into_iter().find(|pull| pull.head.branch == head && own(pull)) {
                return Ok(Some(pull.read()));
            }
            if is_last {
                return Ok(None);
            }
        }
        Err(ForgeError::Unexpected { doing, what: "there are more open pull requests than are looked at" })
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
        self.say("setting a commit status", commit, status).await
    }

    pub(super) async fn deploy(&self, deployment: Deployment<'_>) -> Result<(), ForgeError> {
        let status = CommitStatus {
            context: &deployment_context(deployment.environment),
            state: deployment.state,
            description: deployment.description,
            target: deployment.target,
        };
        self.say("setting a deployment", deployment.commit, status).await
    }

    pub(super) async fn end_deployment(&self, ended: EndedDeployment<'_>) -> Result<(), ForgeError> {
        let doing = "ending a deployment";
        let context = deployment_context(ended.environment);
        let newest = self.newest_status(doing, ended.commit, &context).await?;
        if newest.is_none_or(|newest| newest.status != "pending") {
            return Ok(());
        }
        // The nearest that there is to "neither good nor bad".
        let body = json!({"state": "warning", "context": context, "description": ended.description});
        let call = self.connection.post(doing, &self.path(&["statuses", ended.commit]), body);
        call.send::<IgnoredAny>().await.map(drop)
    }

    /// What was said last of a commit in this context.
    async fn newest_status(
        &self,
        doing: &'static str,
        commit: &str,
        context: &str,
    ) -> Result<Option<Status>, ForgeError> {
        let call = self.connection.get(doing, &self.path(&["commits", commit, "statuses"]));
        let known: Vec<Status> = call.query("sort", "highestindex").query("limit", "50").send().await?;
        Ok(known.into_iter().filter(|known| known.context == context).max_by_key(|known| known.id))
    }

    async fn say(&self, doing: &'static str, commit: &str, status: CommitStatus<'_>) -> Result<(), ForgeError> {
        let newest = self.newest_status(doing, commit, status.context).await?;
        let state = match status.state {
            State::Pending => "pending",
            State::Success => "success",
            State::Failure => "failure",
        };
        let is_said = |known: Status| {
            known.status == state
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
            "target_url": status.target.unwrap_or_default(),
        });
        self.connection.post(doing, &self.path(&["statuses", commit]), body).send::<IgnoredAny>().await.map(drop)
    }
}

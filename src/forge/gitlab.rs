//! gitlab.com and GitLab: the REST API, version 4.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;

use super::connection::Connection;
use super::{
    CommitStatus, Deployment, EndedDeployment, ForgeError, Location, NewPullRequest, PullRequest, PullRequestState,
    State,
};

#[derive(Clone)]
pub(super) struct GitLab {
    connection: Connection,
    /// Groups and name, one part of a path.
    project: String,
}

#[derive(Deserialize)]
struct MergeRequest {
    iid: u64,
    web_url: Option<String>,
    state: String,
    source_branch: String,
    target_branch: String,
    /// None when the fork is gone.
    source_project_id: Option<u64>,
    target_project_id: u64,
}

#[derive(Deserialize)]
struct Status {
    id: u64,
    name: String,
    status: String,
    description: Option<String>,
    target_url: Option<String>,
}

#[derive(Deserialize)]
struct Deployed {
    id: u64,
    sha: String,
    status: String,
}

impl MergeRequest {
    fn read(self) -> PullRequest {
        let state = match self.state.as_str() {
            // Locked is what it is while it is being merged.
            "opened" | "locked" => PullRequestState::Open,
            "merged" => PullRequestState::Merged,
            _ => PullRequestState::Closed,
        };
        let page = super::page(self.web_url);
        PullRequest { number: self.iid, page, head: self.source_branch, base: self.target_branch, state }
    }
}

impl GitLab {
    pub(super) fn new(location: &Location, token: &str, authorities: Option<&str>) -> Result<Self, ForgeError> {
        // Personal, group and project tokens are taken this way, and those of OAuth.
        let connection = Connection::new(location.api(), "Bearer", token, authorities)?;
        Ok(Self { connection, project: location.full_name() })
    }

    fn path<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        ["projects", &self.project].into_iter().chain(rest.iter().copied()).collect()
    }

    pub(super) async fn find_pull_request(&self, head: &str) -> Result<Option<PullRequest>, ForgeError> {
        let call = self.connection.get("looking for a merge request", &self.path(&["merge_requests"]));
        let call = call.query("state", "opened").query("source_branch", head).query("per_page", "20");
        let found: Vec<MergeRequest> = call.send().await?;
        let own = |request: &MergeRequest| request.source_project_id == Some(request.target_project_id);
        Ok(found.into_iter().find(|request| request.source_branch == head && own(request)).map(MergeRequest::read))
    }

    pub(super) async fn open_pull_request(&self, new: NewPullRequest<'_>) -> Result<PullRequest, ForgeError> {
        let body = json!({
            "title": new.title,
            "description": new.body,
            "source_branch": new.head,
            "target_branch": new.base,
            "remove_source_branch": true,
        });
        let call = self.connection.post("opening a merge request", &self.path(&["merge_requests"]), body);
        Ok(call.send::<MergeRequest>().await?.read())
    }

    pub(super) async fn pull_request(&self, number: u64) -> Result<PullRequest, ForgeError> {
        let path = ["merge_requests", &number.to_string()];
        let request: MergeRequest = self.connection.get("reading a merge request", &self.path(&path)).send().await?;
        Ok(request.read())
    }

    pub(super) async fn set_status(&self, commit: &str, status: CommitStatus<'_>) -> Result<(), ForgeError> {
        let doing = "setting a commit status";
        let call = self.connection.get(doing, &self.path(&["repository", "commits", commit, "statuses"]));
        let known: Vec<Status> =
            call.query("name", status.context).query("all", "true").query("per_page", "100").send().await?;
        let newest = known.into_iter().filter(|known| known.name == status.context).max_by_key(|known| known.id);
        let state = state(status.state);
        if let Some(newest) = newest {
            let same = newest.description.as_deref().unwrap_or_default() == status.description
                && newest.target_url.as_deref().filter(|url| !url.is_empty()) == status.target;
            // One that runs cannot be made to run: GitLab refuses what is no change of state, whatever the text.
            let runs = matches!(newest.status.as_str(), "pending" | "running") && status.state == State::Pending;
            if runs || (newest.status == state && same) {
                return Ok(());
            }
        }
        let body = json!({
            "state": state,
            "name": status.context,
            "description": status.description,
            "target_url": status.target,
        });
        self.connection.post(doing, &self.path(&["statuses", commit]), body).send::<IgnoredAny>().await.map(drop)
    }

    pub(super) async fn deploy(&self, deployment: Deployment<'_>) -> Result<(), ForgeError> {
        let doing = "setting a deployment";
        let newest = self.newest(doing, deployment.environment).await?;
        let state = state(deployment.state);
        let newest = newest.filter(|newest| newest.sha == deployment.commit);
        if newest.as_ref().is_some_and(|newest| newest.status == state) {
            return Ok(());
        }
        let running = newest.filter(|newest| matches!(newest.status.as_str(), "created" | "running" | "blocked"));
        if let Some(running) = running {
            let path = ["deployments", &running.id.to_string()];
            let call = self.connection.put(doing, &self.path(&path), json!({"status": state}));
            return call.send::<IgnoredAny>().await.map(drop);
        }
        let body = json!({
            "environment": deployment.environment,
            "sha": deployment.commit,
            "ref": deployment.commit,
            "tag": false,
            "status": state,
        });
        self.connection.post(doing, &self.path(&["deployments"]), body).send::<IgnoredAny>().await.map(drop)
    }

    pub(super) async fn end_deployment(&self, ended: EndedDeployment<'_>) -> Result<(), ForgeError> {
        let doing = "ending a deployment";
        // Others may have begun in the same environment since.
        let call = self.connection.get(doing, &self.path(&["deployments"])).query("environment", ended.environment);
        let call = call.query("status", "running").query("order_by", "id").query("sort", "desc");
        let running: Vec<Deployed> = call.query("per_page", "100").send().await?;
        let running = running.into_iter().find(|known| known.sha == ended.commit && known.status == "running");
        let Some(running) = running else { return Ok(()) };
        let path = ["deployments", &running.id.to_string()];
        let call = self.connection.put(doing, &self.path(&path), json!({"status": "canceled"}));
        call.send::<IgnoredAny>().await.map(drop)
    }

    pub(super) async fn newest_deployment(&self, environment: &str) -> Result<Option<String>, ForgeError> {
        Ok(self.newest("looking for a deployment", environment).await?.map(|newest| newest.sha))
    }

    async fn newest(&self, doing: &'static str, environment: &str) -> Result<Option<Deployed>, ForgeError> {
        let call = self.connection.get(doing, &self.path(&["deployments"])).query("environment", environment);
        let known: Vec<Deployed> =
            call.query("order_by", "id").query("sort", "desc").query("per_page", "1").send().await?;
        Ok(known.into_iter().next())
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Pending => "running",
        State::Success => "success",
        State::Failure => "failed",
    }
}

//! What people and programs do on the forge through its REST API, each with an account of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::wait::wait_for;

/// The forge looks at a new pull request in the background, and merges none that it has not looked at.
const LOOKED_AT: Duration = Duration::from_secs(30);

/// The API, as one account.
#[derive(Clone)]
pub(super) struct Api {
    client: reqwest::Client,
    url: String,
    authorization: String,
}

impl Api {
    /// `url` is the forge's, without a path.
    pub(super) fn new(client: reqwest::Client, url: String, token: &str) -> Self {
        Self { client, url, authorization: format!("token {token}") }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.call(Method::GET, path, None).await?;
        serde_json::from_value(answer).with_context(|| format!("GET {path} answered something else"))
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: Value) -> Result<T> {
        let answer = self.call(Method::POST, path, Some(body)).await?;
        serde_json::from_value(answer).with_context(|| format!("POST {path} answered something else"))
    }

    /// Fails with the forge's own words unless it answers with a success; an empty answer is `null`.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let mut request = self
            .client
            .request(method.clone(), format!("{}/api/v1{path}", self.url))
            .header("authorization", &self.authorization);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let shown = format!("{method} {path}");
        let answer = request.send().await.with_context(|| shown.clone())?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| shown.clone())?;
        if !status.is_success() {
            bail!("{shown} answered {status}: {}", text.trim());
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("{shown} answered something that is no JSON"))
    }
}

/// A user of the forge. What it does and owns, it does and owns under its name.
#[derive(Clone)]
pub struct Account {
    name: String,
    token: String,
    api: Api,
    ssh: SocketAddr,
}

impl Account {
    pub(super) fn new(name: &str, token: &str, api: Api, ssh: SocketAddr) -> Self {
        Self { name: name.to_owned(), token: token.to_owned(), api, ssh }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its token, which is also its password for git over HTTPS.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Makes an empty repository that nobody else may read.
    pub async fn create_repository(&self, name: &str) -> Result<Repository> {
        let body = json!({"name": name, "private": true, "default_branch": "main"});
        self.api.post::<Value>("/user/repos", body).await?;
        Ok(self.repository(&self.name, name))
    }

    /// A repository as this account reaches it, be it its own or another's.
    #[must_use]
    pub fn repository(&self, owner: &str, name: &str) -> Repository {
        Repository { account: self.clone(), path: format!("{owner}/{name}") }
    }
}

/// A repository of the forge, as one account reaches it.
#[derive(Clone)]
pub struct Repository {
    account: Account,
    /// `owner/name`.
    path: String,
}

/// A pull request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PullRequest {
    /// Its number in the repository.
    pub number: u64,
    /// Its title.
    pub title: String,
    /// What its author wrote.
    pub body: String,
    /// `open` or `closed`.
    pub state: String,
    /// Whether it was merged.
    pub merged: bool,
    /// The commit that merged it.
    pub merge_commit_sha: Option<String>,
    /// What is to be merged.
    pub head: Tip,
    /// Into what.
    pub base: Tip,
}

/// A branch of a pull request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Tip {
    /// The branch.
    #[serde(rename = "ref")]
    pub branch: String,
    /// The commit.
    pub sha: String,
}

/// What somebody said of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CommitStatus {
    /// Later ones have higher ones.
    pub id: u64,
    /// Who said it, or about what; a later status of the same context takes its place.
    pub context: String,
    /// `pending`, `success`, `error` or `failure`.
    #[serde(rename = "status")]
    pub state: String,
    /// In words.
    pub description: String,
    /// Where to read more.
    pub target_url: String,
}

/// How a pull request becomes part of its base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// By a merge commit.
    Commit,
    /// As one commit.
    Squash,
    /// Commit by commit on top of the base.
    Rebase,
}

impl Repository {
    /// Its URL over HTTPS, without a secret.
    #[must_use]
    pub fn https_url(&self) -> String {
        format!("{}/{}.git", self.account.api.url, self.path)
    }

    /// Its URL over HTTPS with the account's name and token, as a person may give it to git.
    #[must_use]
    pub fn https_url_with_token(&self) -> String {
        let Account { name, token, .. } = &self.account;
        self.https_url().replacen("https://", &format!("https://{name}:{token}@"), 1)
    }

    /// Its URL over SSH.
    #[must_use]
    pub fn ssh_url(&self) -> String {
        format!("ssh://git@{}/{}.git", self.account.ssh, self.path)
    }

    /// Lets another account read, and write unless `read_only`.
    pub async fn add_collaborator(&self, name: &str, read_only: bool) -> Result<()> {
        let body = json!({"permission": if read_only { "read" } else { "write" }});
        self.api().call(Method::PUT, &self.at(&format!("/collaborators/{name}")), Some(body)).await.map(drop)
    }

    /// Lets the holder of a key read over SSH, and write unless `read_only`; gives the key's number.
    pub async fn add_deploy_key(&self, title: &str, public: &str, read_only: bool) -> Result<u64> {
        #[derive(Deserialize)]
        struct DeployKey {
            id: u64,
        }
        let body = json!({"title": title, "key": public, "read_only": read_only});
        Ok(self.api().post::<DeployKey>(&self.at("/keys"), body).await?.id)
    }

    /// The key opens nothing any more.
    pub async fn remove_deploy_key(&self, number: u64) -> Result<()> {
        self.api().call(Method::DELETE, &self.at(&format!("/keys/{number}")), None).await.map(drop)
    }

    /// From now on only these accounts push to the branches that fit `pattern`, and no one forces. Pull requests
    /// are merged as before.
    pub async fn protect_branch(&self, pattern: &str, pushers: &[&str]) -> Result<()> {
        let body = json!({
            "rule_name": pattern, "enable_push": !pushers.is_empty(), "enable_push_whitelist": true,
            "push_whitelist_usernames": pushers, "enable_force_push": false,
        });
        self.api().post::<Value>(&self.at("/branch_protections"), body).await.map(drop)
    }

    /// Opens a pull request that merges the branch `head` into `base`.
    pub async fn open_pull_request(&self, head: &str, base: &str, title: &str, body: &str) -> Result<PullRequest> {
        let body = json!({"head": head, "base": base, "title": title, "body": body});
        // A branch that was pushed a moment ago is looked at in the forge's own time.
        wait_for(&format!("the forge to know the branch {head}"), LOOKED_AT, async || {
            match self.api().post(&self.at("/pulls"), body.clone()).await {
                Err(error) if error.to_string().contains("404") => Err(error),
                decided => Ok(decided),
            }
        })
        .await?
    }

    /// All pull requests, open and closed, the newest first.
    pub async fn pull_requests(&self) -> Result<Vec<PullRequest>> {
        self.api().get(&self.at("/pulls?state=all&limit=50")).await
    }

    /// One pull request.
    pub async fn pull_request(&self, number: u64) -> Result<PullRequest> {
        self.api().get(&self.at(&format!("/pulls/{number}"))).await
    }

    /// Merges a pull request, and gives it as it is then.
    pub async fn merge(&self, number: u64, how: Merge) -> Result<PullRequest> {
        let how = match how {
            Merge::Commit => "merge",
            Merge::Squash => "squash",
            Merge::Rebase => "rebase",
        };
        let path = self.at(&format!("/pulls/{number}/merge"));
        wait_for(&format!("pull request {number} to be merged"), LOOKED_AT, async || {
            match self.api().call(Method::POST, &path, Some(json!({"Do": how}))).await {
                Err(error) if error.to_string().contains("try again later") => Err(error),
                decided => Ok(decided),
            }
        })
        .await??;
        self.pull_request(number).await
    }

    /// Closes a pull request without merging it.
    pub async fn close(&self, number: u64) -> Result<()> {
        let body = json!({"state": "closed"});
        self.api().call(Method::PATCH, &self.at(&format!("/pulls/{number}")), Some(body)).await.map(drop)
    }

    /// What was said of a commit, the newest first.
    pub async fn commit_statuses(&self, sha: &str) -> Result<Vec<CommitStatus>> {
        let mut statuses: Vec<CommitStatus> = self.api().get(&self.at(&format!("/commits/{sha}/statuses"))).await?;
        // The forge orders them by the second, and those of one second anyhow.
        statuses.sort_by_key(|status| std::cmp::Reverse(status.id));
        Ok(statuses)
    }

    /// From now on each push is told to `url`, signed with `secret`.
    pub async fn add_webhook(&self, url: &str, secret: &str) -> Result<()> {
        let body = json!({
            "type": "gitea", "active": true, "events": ["push"],
            "config": {"url": url, "content_type": "json", "secret": secret},
        });
        self.api().post::<Value>(&self.at("/hooks"), body).await.map(drop)
    }

    /// Gives it another name; the forge redirects who asks for the old one.
    pub async fn rename(&mut self, name: &str) -> Result<()> {
        self.api().call(Method::PATCH, &self.at(""), Some(json!({"name": name}))).await?;
        let owner = self.path.split('/').next().unwrap_or_default();
        self.path = format!("{owner}/{name}");
        Ok(())
    }

    fn api(&self) -> &Api {
        &self.account.api
    }

    fn at(&self, path: &str) -> String {
        format!("/repos/{}{path}", self.path)
    }
}

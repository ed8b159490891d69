//! The APIs of GitHub, GitLab and Gitea: pull requests, commit statuses and deployments. One file a forge.
//!
//! Every operation is idempotent, or looks before it writes: asking again after a lost answer is always safe. The
//! room knows no cluster and no git; what it is asked for it is given. A credential goes to the scheme, host and port
//! of the API alone, and stands in no error and no `Debug`. Nothing that a forge says is repeated, but for the address
//! of a pull request.

mod app;
mod connection;
mod error;
mod gitea;
mod github;
mod gitlab;
mod location;
#[cfg(test)]
mod tests;

use std::fmt;

use reqwest::Url;

pub use app::{AppTokens, GIT_USER, GitHubApp};
pub use error::ForgeError;
pub use location::Location;

use crate::api::ForgeKind;
use gitea::Gitea;
use github::GitHub;
use gitlab::GitLab;

/// The longest description of a status that every forge takes, in letters.
const LONGEST_DESCRIPTION: usize = 140;
/// The longest address that is passed on to people.
const LONGEST_ADDRESS: usize = 2000;

/// A repository on a forge, with the credentials for its API. Cheap to clone.
#[derive(Clone)]
pub struct ForgeClient {
    location: Location,
    forge: Forge,
}

#[derive(Clone)]
enum Forge {
    GitHub(GitHub),
    GitLab(GitLab),
    Gitea(Gitea),
}

/// A pull request, on GitLab a merge request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullRequest {
    /// Its number in the repository.
    pub number: u64,
    /// Its page for people, when the forge gives a sensible one.
    pub page: Option<String>,
    /// The branch with the changes.
    pub head: String,
    /// The branch that they are for.
    pub base: String,
    /// What became of it.
    pub state: PullRequestState,
}

/// What became of a pull request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullRequestState {
    /// Nothing yet.
    Open,
    /// Its changes are in the base branch.
    Merged,
    /// It was closed without that.
    Closed,
}

/// A pull request to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewPullRequest<'a> {
    /// In one line.
    pub title: &'a str,
    /// In Markdown.
    pub body: &'a str,
    /// The branch with the changes, in the same repository.
    pub head: &'a str,
    /// The branch that they are for.
    pub base: &'a str,
}

/// What is said of a commit under one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitStatus<'a> {
    /// The name: a later status of the same name takes its place.
    pub context: &'a str,
    /// How it goes.
    pub state: State,
    /// In one line; cut to what every forge takes.
    pub description: &'a str,
    /// A page with more.
    pub target: Option<&'a str>,
}

/// That a commit is put somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deployment<'a> {
    /// The commit, 40 or 64 hexadecimal digits.
    pub commit: &'a str,
    /// Where: `production`.
    pub environment: &'a str,
    /// What tells it from other deployments of the same commit in the same place.
    pub key: &'a str,
    /// How it goes.
    pub state: State,
    /// In one line; cut to what every forge takes.
    pub description: &'a str,
    /// A page with more.
    pub target: Option<&'a str>,
}

/// A deployment that another one took the place of: see [`Deployment`] for what its fields are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedDeployment<'a> {
    /// The commit that was on its way.
    pub commit: &'a str,
    /// Where to.
    pub environment: &'a str,
    /// What tells it from others.
    pub key: &'a str,
    /// Why it ended, in one line.
    pub description: &'a str,
}

/// How something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is on its way.
    Pending,
    /// It went well.
    Success,
    /// It did not.
    Failure,
}

impl ForgeClient {
    /// A client for one repository. The token is one of the forge, or that of a GitHub App's installation.
    /// `authorities` are the PEM certificates to believe; those of the system when absent.
    ///
    /// # Errors
    /// When the token or the authorities cannot be used.
    pub fn new(location: Location, token: &str, authorities: Option<&str>) -> Result<Self, ForgeError> {
        let forge = match location.kind() {
            ForgeKind::GitHub => Forge::GitHub(GitHub::new(&location, token, authorities)?),
            ForgeKind::GitLab => Forge::GitLab(GitLab::new(&location, token, authorities)?),
            ForgeKind::Gitea => Forge::Gitea(Gitea::new(&location, token, authorities)?),
        };
        Ok(Self { location, forge })
    }

    /// Where the repository is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The open pull request from this branch of the same repository, if there is one.
    pub async fn find_pull_request(&self, head: &str) -> Result<Option<PullRequest>, ForgeError> {
        match &self.forge {
            Forge::GitHub(forge) => forge.find_pull_request(head).await,
            Forge::GitLab(forge) => forge.find_pull_request(head).await,
            Forge::Gitea(forge) => forge.find_pull_request(head).await,
        }
    }

    /// Opens a pull request, unless one is open from the same branch: that one is the answer then, as it is.
    pub async fn open_pull_request(&self, new: NewPullRequest<'_>) -> Result<PullRequest, ForgeError> {
        if let Some(open) = self.find_pull_request(new.head).await? {
            return Ok(open);
        }
        let opened = match &self.forge {
            Forge::GitHub(forge) => forge.open_pull_request(new).await,
            Forge::GitLab(forge) => forge.open_pull_request(new).await,
            Forge::Gitea(forge) => forge.open_pull_request(new).await,
        };
        match opened {
            // "There is one already": somebody opened it since we looked.
            Err(error @ ForgeError::Refused { code: 409 | 422, .. }) => {
                self.find_pull_request(new.head).await?.ok_or(error)
            }
            result => result,
        }
    }

    /// A pull request by its number.
    pub async fn pull_request(&self, number: u64) -> Result<PullRequest, ForgeError> {
        match &self.forge {
            Forge::GitHub(forge) => forge.pull_request(number).await,
            Forge::GitLab(forge) => forge.pull_request(number).await,
            Forge::Gitea(forge) => forge.pull_request(number).await,
        }
    }

    /// Says something of a commit, unless that is what was said last.
    pub async fn set_status(&self, commit: &str, status: CommitStatus<'_>) -> Result<(), ForgeError> {
        check_commit(commit)?;
        let description = cut(status.description);
        let status = CommitStatus { description: &description, ..status };
        match &self.forge {
            Forge::GitHub(forge) => forge.set_status(commit, status).await,
            Forge::GitLab(forge) => forge.set_status(commit, status).await,
            Forge::Gitea(forge) => forge.set_status(commit, status).await,
        }
    }

    /// Makes a deployment if there is none with this commit, environment and key, and says how it goes, unless that
    /// is what was said last. GitLab keeps no key: there it is the newest one of the commit, until it has ended. Gitea
    /// has no deployments: there it is a status of the commit, `deployment/<environment>`.
    pub async fn deploy(&self, deployment: Deployment<'_>) -> Result<(), ForgeError> {
        check_commit(deployment.commit)?;
        let description = cut(deployment.description);
        let deployment = Deployment { description: &description, ..deployment };
        match &self.forge {
            Forge::GitHub(forge) => forge.deploy(deployment).await,
            Forge::GitLab(forge) => forge.deploy(deployment).await,
            Forge::Gitea(forge) => forge.deploy(deployment).await,
        }
    }

    /// Says that a deployment ended without a result, for another one took its place. One that is not there, or that is
    /// not on its way any more, is left as it is.
    pub async fn end_deployment(&self, ended: EndedDeployment<'_>) -> Result<(), ForgeError> {
        check_commit(ended.commit)?;
        let description = cut(ended.description);
        let ended = EndedDeployment { description: &description, ..ended };
        match &self.forge {
            Forge::GitHub(forge) => forge.end_deployment(ended).await,
            Forge::GitLab(forge) => forge.end_deployment(ended).await,
            Forge::Gitea(forge) => forge.end_deployment(ended).await,
        }
    }

    /// The commit that was last put into an environment, as the forge knows it. Gitea knows none.
    pub async fn newest_deployment(&self, environment: &str) -> Result<Option<String>, ForgeError> {
        match &self.forge {
            Forge::GitHub(forge) => forge.newest_deployment(environment).await,
            Forge::GitLab(forge) => forge.newest_deployment(environment).await,
            Forge::Gitea(_) => Ok(None),
        }
    }
}

impl fmt::Debug for ForgeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ForgeClient({:?})", self.location)
    }
}

/// A name of a commit goes into paths, where a branch's name would mean something else tomorrow.
fn check_commit(commit: &str) -> Result<(), ForgeError> {
    if matches!(commit.len(), 40 | 64) && commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(ForgeError::Declaration { field: "the commit", reason: "is not a full name of one" })
}

/// One line of at most [`LONGEST_DESCRIPTION`] letters.
fn cut(text: &str) -> String {
    let line = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = line.collect::<Vec<_>>().join(" ");
    if line.chars().count() <= LONGEST_DESCRIPTION {
        return line;
    }
    let mut short: String = line.chars().take(LONGEST_DESCRIPTION - 1).collect();
    short.push('…');
    short
}

/// The address of a page as a forge gives it, if it is one that people can be shown.
fn page(address: Option<String>) -> Option<String> {
    let address = address.filter(|address| address.len() <= LONGEST_ADDRESS)?;
    let url = Url::parse(&address).ok()?;
    let plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    plain.then(|| url.into())
}

//! Where a repository is in the API of its forge, and in its web pages.

use std::fmt;

use reqwest::Url;

use super::ForgeError;
use crate::api::ForgeKind;
use crate::egress;

/// A repository on a forge: the address of the API, and the path to the repository in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    kind: ForgeKind,
    api: Url,
    /// Owner (on GitLab: groups) and name.
    path: Vec<String>,
}

impl Location {
    /// From the declared kind and API, and from the repository's address: `https://`, `http://` or `ssh://`.
    ///
    /// # Errors
    /// When a field cannot be used; it is named.
    pub fn new(kind: ForgeKind, api: Option<&str>, repository: &str) -> Result<Self, ForgeError> {
        let refuse = |field, reason| Err(ForgeError::Declaration { field, reason });
        let Ok(repository) = Url::parse(repository) else { return refuse("spec.url", "is not an address") };
        let api = match api {
            Some(given) => Url::parse(given).ok(),
            None => default_api(kind, &repository),
        };
        let Some(mut api) = api else { return refuse("spec.forge.api", "is not an address, and none can be derived") };
        if let Err(reason) = egress::check(&api) {
            return refuse("spec.forge.api", reason);
        }
        if api.query().is_some() || api.fragment().is_some() {
            return refuse("spec.forge.api", "is a base address: without \"?\" and \"#\"");
        }
        let trimmed = api.path().trim_end_matches('/').to_owned();
        api.set_path(&trimmed);
        // A forge below a folder of its host has that folder in both addresses.
        let folder = trimmed.strip_suffix(suffix(kind)).unwrap_or_default();
        let path = repository.path().trim_end_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path);
        let path = path.strip_prefix(folder).filter(|rest| rest.starts_with('/')).unwrap_or(path);
        let path: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let depth_fits = match kind {
            ForgeKind::GitLab => path.len() >= 2,
            ForgeKind::GitHub | ForgeKind::Gitea => path.len() == 2,
        };
        if !depth_fits || path.iter().any(|part| part == "." || part == "..") {
            return refuse("spec.url", "does not end in the owner and the name of a repository on this kind of forge");
        }
        Ok(Self { kind, api, path })
    }

    /// The kind of forge.
    pub fn kind(&self) -> ForgeKind {
        self.kind
    }

    pub(super) fn api(&self) -> &Url {
        &self.api
    }

    pub(super) fn owner(&self) -> &str {
        self.path.first().map_or("", String::as_str)
    }

    pub(super) fn name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }

    /// `group/sub-group/name`.
    pub(super) fn full_name(&self) -> String {
        self.path.join("/")
    }

    /// The page of a commit, for people.
    pub fn commit_page(&self, commit: &str) -> String {
        let mut page = self.api.clone();
        let folder = page.path().strip_suffix(suffix(self.kind)).unwrap_or_default().to_owned();
        page.set_path(&folder);
        if let Some(host) = page.host_str().and_then(|host| host.strip_prefix("api.")).map(str::to_owned)
            && self.kind == ForgeKind::GitHub
        {
            // Only a host that is none would be refused, and this one came from an address.
            let _ = page.set_host(Some(&host));
        }
        if let Ok(mut parts) = page.path_segments_mut() {
            let between: &[&str] = if self.kind == ForgeKind::GitLab { &["-", "commit"] } else { &["commit"] };
            parts.pop_if_empty().extend(&self.path).extend(between).push(commit);
        }
        page.into()
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} at {}", self.kind, self.full_name(), self.api)
    }
}

/// What the address of an API ends with when the forge is one's own.
fn suffix(kind: ForgeKind) -> &'static str {
    match kind {
        ForgeKind::GitHub => "/api/v3",
        ForgeKind::GitLab => "/api/v4",
        ForgeKind::Gitea => "/api/v1",
    }
}

/// The API on the host of the repository.
fn default_api(kind: ForgeKind, repository: &Url) -> Option<Url> {
    let host = repository.host_str()?.to_ascii_lowercase();
    // Hosts that serve SSH only.
    let host = match host.as_str() {
        "ssh.github.com" => "github.com",
        "altssh.gitlab.com" => "gitlab.com",
        host => host,
    };
    if kind == ForgeKind::GitHub && host == "github.com" {
        return Url::parse("https://api.github.com").ok();
    }
    if kind == ForgeKind::GitHub && host.ends_with(".ghe.com") {
        return Url::parse(&format!("https://api.{host}")).ok();
    }
    // The port of an SSH server says nothing about the web.
    let (scheme, port) = match repository.scheme() {
        "ssh" => ("https", None),
        scheme => (scheme, repository.port()),
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    Url::parse(&format!("{scheme}://{host}{port}{}", suffix(kind))).ok()
}

/// A part of a path as it was meant: `%20` is a space.
fn decoded(part: &str) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| part.to_owned())
}

#[cfg(test)]
mod tests {
    use super::Location;
    use crate::api::ForgeKind::{self, GitHub, GitLab, Gitea};

    fn location(kind: ForgeKind, api: Option<&str>, url: &str) -> Location {
        Location::new(kind, api, url).unwrap()
    }

    #[test]
    fn the_api_follows_from_the_address_of_the_repository() {
        for (kind, url, api, name) in [
            (GitHub, "https://github.com/shop/deploy.git", "https://api.github.com/", "shop/deploy"),
            (GitHub, "ssh://git@github.com/shop/deploy", "https://api.github.com/", "shop/deploy"),
            (GitHub, "ssh://git@ssh.github.com:443/shop/deploy", "https://api.github.com/", "shop/deploy"),
            (GitHub, "https://shop.ghe.com/a/b", "https://api.shop.ghe.com/", "a/b"),
            (GitHub, "https://git.example/shop/deploy", "https://git.example/api/v3", "shop/deploy"),
            (GitLab, "https://gitlab.com/a/b/c/deploy.git/", "https://gitlab.com/api/v4", "a/b/c/deploy"),
            (GitLab, "ssh://git@git.example:2222/a/b", "https://git.example/api/v4", "a/b"),
            (Gitea, "http://git.example:3000/a/b", "http://git.example:3000/api/v1", "a/b"),
            (Gitea, "https://GIT.example:443/a/b%20c", "https://git.example/api/v1", "a/b c"),
        ] {
            let found = location(kind, None, url);
            assert_eq!((found.api().as_str(), found.full_name().as_str()), (api, name), "{url}");
        }
    }

    #[test]
    fn a_forge_in_a_folder_of_its_host_is_understood() {
        let api = Some("https://git.example/gitlab/api/v4/");
        let found = location(GitLab, api, "https://git.example/gitlab/a/b.git");
        assert_eq!((found.api().as_str(), found.full_name().as_str()), ("https://git.example/gitlab/api/v4", "a/b"));
        assert_eq!(found.commit_page("c0ffee"), "https://git.example/gitlab/a/b/-/commit/c0ffee");
        // The same by SSH has no folder in its address.
        assert_eq!(location(GitLab, api, "ssh://git@git.example/a/b.git").full_name(), "a/b");
    }

    #[test]
    fn a_commit_has_a_page_for_people() {
        let page = |kind, url: &str| location(kind, None, url).commit_page("c0ffee");
        assert_eq!(page(GitHub, "ssh://git@github.com/a/b"), "https://github.com/a/b/commit/c0ffee");
        assert_eq!(page(GitHub, "https://git.example/a/b"), "https://git.example/a/b/commit/c0ffee");
        assert_eq!(page(GitHub, "https://shop.ghe.com/a/b"), "https://shop.ghe.com/a/b/commit/c0ffee");
        assert_eq!(page(Gitea, "http://git.example:3000/a/b"), "http://git.example:3000/a/b/commit/c0ffee");
        assert_eq!(page(GitLab, "https://gitlab.com/a/b/c"), "https://gitlab.com/a/b/c/-/commit/c0ffee");
    }

    #[test]
    fn what_cannot_be_used_names_its_field() {
        for (kind, api, url, field) in [
            (GitHub, None, "https://github.com/deploy", "spec.url"),
            (Gitea, None, "https://git.example/a/b/c", "spec.url"),
            (GitLab, None, "https://git.example/a", "spec.url"),
            (GitLab, None, "nonsense", "spec.url"),
            (GitLab, None, "https://git.example/a/%2e%2e/b", "spec.url"),
            (Gitea, Some("https://user:secret@git.example/api/v1"), "https://git.example/a/b", "spec.forge.api"),
            (Gitea, Some("http://169.254.169.254/api/v1"), "https://git.example/a/b", "spec.forge.api"),
            (Gitea, Some("https://git.example/api/v1?x=y"), "https://git.example/a/b", "spec.forge.api"),
            (Gitea, None, "http://169.254.169.254/a/b", "spec.forge.api"),
        ] {
            let error = Location::new(kind, api, url).unwrap_err().to_string();
            assert!(error.starts_with(field) && !error.contains("secret"), "{url}: {error}");
        }
    }
}

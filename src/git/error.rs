//! What can go wrong with git, told apart by what a person would do about it.
//!
//! Git's own words are read in one place only, here; they never leave it before every secret is taken out.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// The result of anything in this room.
pub type Result<T> = std::result::Result<T, GitError>;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GitError {
    /// The address cannot be used at all.
    #[error("the repository's address {address:?} cannot be used: {reason}")]
    InvalidAddress {
        /// The address, without what must not be shown.
        address: String,
        /// Why, and what to write instead.
        reason: String,
    },
    /// A branch, path or cluster name that git would misread.
    #[error("{field} {value:?} cannot be used: {reason}")]
    InvalidName {
        /// Which of our fields.
        field: &'static str,
        /// Its value.
        value: String,
        /// Why.
        reason: String,
    },
    /// Credentials that cannot work with this address.
    #[error("the credentials for {remote} cannot be used: {reason}")]
    InvalidCredentials {
        /// The repository.
        remote: String,
        /// Why, naming the key, never its value.
        reason: String,
    },
    /// The server cannot be reached, or breaks off.
    #[error("{remote} cannot be reached: {detail}")]
    Unreachable {
        /// The repository.
        remote: String,
        /// In git's words.
        detail: String,
    },
    /// The server knows us and says no, or does not know us.
    #[error("{remote} refused the credentials: {detail}")]
    Denied {
        /// The repository.
        remote: String,
        /// In git's words.
        detail: String,
    },
    /// The SSH host key is unknown or another one than before.
    #[error("{remote} has not the host key that known_hosts gives: {detail}")]
    HostKey {
        /// The repository.
        remote: String,
        /// In ssh's words.
        detail: String,
    },
    /// The certificate of an HTTPS server is not one we believe.
    #[error(
        "{remote} shows a certificate that is not trusted: {detail}; an authority of your own belongs into the key \
         ca.crt of the Secret"
    )]
    Certificate {
        /// The repository.
        remote: String,
        /// In git's words.
        detail: String,
    },
    /// The server sends us elsewhere. Credentials are bound to the address given, so they do not follow.
    #[error("{remote} has moved: give its new address (many servers want it to end in .git)")]
    Moved {
        /// The repository.
        remote: String,
    },
    /// Something does not exist.
    #[error("there is no {what} {name:?} in {remote}")]
    NotFound {
        /// What.
        what: Missing,
        /// Its name.
        name: String,
        /// The repository.
        remote: String,
    },
    /// The server did not take a push.
    #[error("{remote} did not take the push to {branch}: {why}{detail}")]
    Rejected {
        /// The repository.
        remote: String,
        /// The branch.
        branch: String,
        /// Why.
        why: Rejection,
        /// In the server's words, after a colon.
        detail: String,
    },
    /// The log branch is not what we left: somebody else wrote it, or rewrote it. Nothing is forced.
    #[error(
        "the log branch {branch} is not as we left it: {found}; {expected} should be its tip. Nothing is forced: \
         set the branch back to that commit, or begin a new log with another spec.log.cluster"
    )]
    Forked {
        /// The branch.
        branch: String,
        /// The tip we know.
        expected: String,
        /// What is there instead.
        found: String,
    },
    /// It took too long and was ended.
    #[error("{doing} took longer than {} s and was ended", limit.as_secs())]
    Timeout {
        /// What was being done.
        doing: String,
        /// The limit.
        limit: Duration,
    },
    /// More than we are ready to read.
    #[error("{what} is larger than the limit of {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// A manifest is not text.
    #[error("the file {path:?} is not UTF-8 text")]
    NotText {
        /// The file.
        path: String,
    },
    /// What the ledger holds cannot be understood.
    #[error("{path} in the log branch cannot be read: {reason}")]
    Unreadable {
        /// The file in the branch.
        path: String,
        /// Why.
        reason: String,
    },
    /// Our own copy is damaged; it is thrown away and made again.
    #[error("the local copy of {remote} is damaged: {detail}")]
    Corrupt {
        /// The repository.
        remote: String,
        /// In git's words.
        detail: String,
    },
    /// Somebody else leads by now, and writes the log.
    #[error("this process does not lead any more: it wrote nothing more to the log branch")]
    NotLeading,
    /// Our own disk is full or does not let us write.
    #[error("the local git directory cannot be used: {detail}")]
    Storage {
        /// In the system's words.
        detail: String,
    },
    /// There is no git, or it is too old.
    #[error("the git executable cannot be used: {detail}")]
    Executable {
        /// Why.
        detail: String,
    },
    /// Git failed in a way not foreseen.
    #[error("{doing} failed: {detail}")]
    Failed {
        /// What was being done.
        doing: String,
        /// In git's words.
        detail: String,
    },
}

/// What was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The repository itself.
    Repository,
    /// A branch.
    Branch,
    /// A path in it.
    Path,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Missing::Repository => "repository",
            Missing::Branch => "branch",
            Missing::Path => "path",
        })
    }
}

/// Why a push was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The branch has commits that ours does not descend from.
    NonFastForward,
    /// A hook, or the protection of the branch.
    Hook,
    /// Anything else the server says.
    Other,
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Rejection::NonFastForward => "it has other commits than ours",
            Rejection::Hook => "a hook or a branch protection refused it",
            Rejection::Other => "the server refused it",
        })
    }
}

impl GitError {
    /// One word, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            GitError::InvalidAddress { .. } => "InvalidAddress",
            GitError::InvalidName { .. } => "InvalidName",
            GitError::InvalidCredentials { .. } => "InvalidCredentials",
            GitError::Unreachable { .. } => "RepositoryUnreachable",
            GitError::Denied { .. } => "AccessDenied",
            GitError::HostKey { .. } => "HostKeyChanged",
            GitError::Certificate { .. } => "CertificateNotTrusted",
            GitError::Moved { .. } => "RepositoryMoved",
            GitError::NotFound { what: Missing::Repository, .. } => "RepositoryNotFound",
            GitError::NotFound { what: Missing::Branch, .. } => "BranchNotFound",
            GitError::NotFound { what: Missing::Path, .. } => "PathNotFound",
            GitError::Rejected { .. } => "PushRejected",
            GitError::Forked { .. } => "LogForked",
            GitError::Timeout { .. } => "Timeout",
            GitError::TooLarge { .. } => "TooLarge",
            GitError::NotText { .. } => "NotText",
            GitError::Unreadable { .. } => "LogUnreadable",
            GitError::Corrupt { .. } => "CacheDamaged",
            GitError::NotLeading => "NotLeading",
            GitError::Storage { .. } => "StorageFailed",
            GitError::Executable { .. } => "GitMissing",
            GitError::Failed { .. } => "GitFailed",
        }
    }

    /// Whether it may go away by itself. What is not transient waits for a person, but is looked at again
    /// all the same, for the cure is often on the server's side.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            GitError::Unreachable { .. }
                | GitError::Timeout { .. }
                | GitError::Corrupt { .. }
                | GitError::NotLeading
                | GitError::Storage { .. }
                | GitError::Failed { .. }
        )
    }
}

/// Takes what must not be shown out of foreign text, and makes it one bounded line.
#[derive(Clone, Default)]
pub(super) struct Scrubber {
    secrets: Vec<String>,
}

const LONGEST_DETAIL: usize = 400;
/// Shorter secrets are not looked for: taking every "a" out of a message hides the message.
const SHORTEST_SECRET: usize = 4;

impl Scrubber {
    /// For these, and for what they become on the way through HTTP and addresses.
    pub(super) fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let secrets = secrets.into_iter().filter(|secret| secret.len() >= SHORTEST_SECRET);
        let mut secrets: Vec<_> = secrets.flat_map(|secret| [encoded(&secret), vec![secret]].concat()).collect();
        // A secret that holds another one goes first, or the rest of it would stay behind.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { secrets }
    }

    pub(super) fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            text = text.replace(secret.as_str(), "***");
        }
        let mut line = String::new();
        for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&without_userinfo(word));
            if line.len() > LONGEST_DETAIL {
                let cut = line.char_indices().map(|(at, _)| at).take_while(|at| *at <= LONGEST_DETAIL).last();
                line.truncate(cut.unwrap_or(0));
                line.push('…');
                break;
            }
        }
        line
    }
}

/// A secret as servers and addresses spell it: in percent and in Base64, alone and as a part of something longer.
fn encoded(secret: &str) -> Vec<String> {
    let percent = |digits: fn(u8) -> String| -> String {
        let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        secret.bytes().map(|byte| if unreserved(byte) { char::from(byte).to_string() } else { digits(byte) }).collect()
    };
    let mut forms = vec![percent(|byte| format!("%{byte:02X}")), percent(|byte| format!("%{byte:02x}"))];
    for (engine, before) in
        [STANDARD_NO_PAD, URL_SAFE_NO_PAD].iter().flat_map(|engine| (0..3).map(move |n| (engine, n)))
    {
        // Where it begins among three bytes decides how it is spelled; its ends depend on what stands around it.
        let text = engine.encode([vec![0; before], secret.as_bytes().to_vec()].concat());
        let (begin, end) = ((before * 8).div_ceil(6), (before + secret.len()) * 8 / 6);
        forms.extend(text.get(begin..end).map(str::to_owned));
    }
    forms
}

/// `https://user:word@host` becomes `https://***@host`, wherever the text comes from.
fn without_userinfo(word: &str) -> String {
    let Some(start) = word.find("://").map(|at| at + 3) else { return word.to_owned() };
    let authority = word[start..].find(['/', '?', '#']).map_or(word.len(), |end| start + end);
    match word[start..authority].rfind('@') {
        // `ssh://git@host` names no secret.
        Some(at) if word[start..start + at].contains(':') => {
            format!("{}***{}", &word[..start], &word[start + at..])
        }
        _ => word.to_owned(),
    }
}

/// Reads the stderr of a failed git. `doing` and `remote` are for the message.
pub(super) fn classify(doing: &str, remote: &str, stderr: &str, scrubber: &Scrubber) -> GitError {
    let text = stderr.to_ascii_lowercase();
    let has = |needles: &[&str]| needles.iter().any(|needle| text.contains(needle));
    let remote = remote.to_owned();
    let detail = detail(stderr, scrubber);
    if has(&["host key verification failed", "remote host identification has changed", "no matching host key"]) {
        return GitError::HostKey { remote, detail };
    }
    if has(&[
        "ssl certificate problem",
        "certificate verification failed",
        "certificate expiration date",
        "certificate subject name",
    ]) {
        return GitError::Certificate { remote, detail };
    }
    let no_room = [
        "no space left on device",
        "disk quota exceeded",
        "read-only file system",
        "file too large",
        "couldn't write '",
    ];
    if has(&no_room) {
        // The server's full disk speaks as "remote: ..."; ours does not.
        let ours = |line: &str| !line.starts_with("remote:") && no_room.iter().any(|sign| line.contains(sign));
        return if text.lines().any(ours) {
            GitError::Storage { detail }
        } else {
            GitError::Unreachable { remote, detail }
        };
    }
    if text.lines().any(|line| !line.starts_with("remote:") && line.ends_with(": permission denied")) {
        return GitError::Storage { detail };
    }
    if has(&["returned error: 301", "returned error: 302", "returned error: 307", "returned error: 308"]) {
        return GitError::Moved { remote };
    }
    if has(&[
        "authentication failed",
        "could not read username",
        "could not read password",
        "terminal prompts disabled",
        "returned error: 401",
        "returned error: 403",
        "permission denied (",
        "permission denied, please",
        "permission to ",
        "invalid credentials",
        "access denied",
        "error in libcrypto",
        "you do not have permission",
        "not allowed to push",
    ]) {
        return GitError::Denied { remote, detail };
    }
    if has(&["couldn't find remote ref"]) {
        let name = text.rsplit("couldn't find remote ref").next().unwrap_or_default().trim();
        let name = name.lines().next().unwrap_or_default().trim_start_matches("refs/heads/");
        return GitError::NotFound { what: Missing::Branch, name: scrubber.clean(name), remote };
    }
    if has(&[
        "could not resolve host",
        "could not resolve hostname",
        "name or service not known",
        "temporary failure in name resolution",
        "failed to connect",
        "connection refused",
        "connection reset",
        "connection timed out",
        "operation timed out",
        "operation too slow",
        "connection closed by",
        "network is unreachable",
        "no route to host",
        "empty reply from server",
        "recv failure",
        "send failure",
        "ssl_error",
        "tls connection",
        "gnutls",
        "the remote end hung up",
        "hung up unexpectedly",
        "early eof",
        "unexpected disconnect",
        "rpc failed",
        "returned error: 429",
        "returned error: 5",
        "couldn't connect to server",
        "bad line length",
        "expected flush after",
        // A web page in the server's place, taken for a server of the old kind.
        "no dav locking support",
    ]) && !has(&["does not appear to be a git repository"])
    {
        return GitError::Unreachable { remote, detail };
    }
    if has(&[
        "returned error: 404",
        "repository not found",
        "does not appear to be a git repository",
        "project you were looking for could not be found",
    ]) || (text.contains("repository '") && text.contains("not found"))
    {
        return GitError::NotFound { what: Missing::Repository, name: remote.clone(), remote };
    }
    if has(&[
        ".lock': file exists",
        "is corrupt",
        "object file",
        "bad object",
        "not a git repository",
        "unable to read tree",
        "not a tree object",
        "not a valid commit",
        "not a valid object name",
        "could not get object info",
        "invalid object",
        "missing blob",
        "bad config",
        "index file smaller than expected",
        "bad signature 0x",
        "packfile",
        "unable to parse",
    ]) {
        return GitError::Corrupt { remote, detail };
    }
    GitError::Failed { doing: doing.to_owned(), detail }
}

/// The lines that say why: git's verdict first, the server's words if there is none.
pub(super) fn detail(stderr: &str, scrubber: &Scrubber) -> String {
    let telling = |line: &&str| {
        let line = line.trim_start();
        ["fatal:", "error:", "ssh:", "remote:", "@", "Permission denied", "Host key", "kex_", "Connection"]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let mut lines: Vec<&str> = stderr.lines().filter(telling).filter(|line| !line.contains("@@@@@")).collect();
    if lines.is_empty() {
        lines = stderr.lines().collect();
    }
    let text = scrubber.clean(&lines.join(" "));
    if text.is_empty() { "no reason given".to_owned() } else { text }
}

#[cfg(test)]
mod unit {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::{GitError, Missing, Scrubber, classify};

    #[test]
    fn each_kind_of_trouble_has_its_own_name() {
        let plain = Scrubber::default();
        let reason = |stderr: &str| classify("fetching", "https://git.example/r", stderr, &plain).reason();
        for (stderr, expected) in [
            ("fatal: unable to access 'https://x/': Could not resolve host: x", "RepositoryUnreachable"),
            ("fatal: unable to access 'https://x/': The requested URL returned error: 503", "RepositoryUnreachable"),
            ("fatal: unable to access 'https://x/': The requested URL returned error: 403", "AccessDenied"),
            ("fatal: unable to access 'https://x/': The requested URL returned error: 301", "RepositoryMoved"),
            ("fatal: Authentication failed for 'https://x/'", "AccessDenied"),
            ("fatal: could not read Username for 'https://x': terminal prompts disabled", "AccessDenied"),
            ("git@x: Permission denied (publickey).\nfatal: Could not read from remote repository.", "AccessDenied"),
            ("Host key verification failed.\r\nfatal: Could not read from remote repository.", "HostKeyChanged"),
            ("fatal: unable to access 'https://x/': server certificate verification failed.", "CertificateNotTrusted"),
            ("fatal: unable to access 'https://x/': SSL certificate problem: expired", "CertificateNotTrusted"),
            ("fatal: repository 'https://x/' not found", "RepositoryNotFound"),
            ("fatal: '/x' does not appear to be a git repository\nfatal: Could not read", "RepositoryNotFound"),
            ("fatal: couldn't find remote ref refs/heads/nope", "BranchNotFound"),
            ("error: object file objects/ab/cd is empty", "CacheDamaged"),
            ("fatal: Unable to create '/c/shallow.lock': File exists.", "CacheDamaged"),
            ("fatal: write error: No space left on device", "StorageFailed"),
            ("error: unable to create temporary file: Read-only file system", "StorageFailed"),
            ("fatal: write error: Disk quota exceeded", "StorageFailed"),
            ("error: cannot update ref 'refs/x': couldn't write '/c/refs/x.lock'", "StorageFailed"),
            ("remote: fatal: write error: No space left on device", "RepositoryUnreachable"),
            ("something new", "GitFailed"),
        ] {
            assert_eq!(reason(stderr), expected, "{stderr}");
        }
        let error = classify("fetching", "https://x/r", "fatal: couldn't find remote ref refs/heads/nope\n", &plain);
        assert!(
            matches!(error, GitError::NotFound { what: Missing::Branch, ref name, .. } if name == "nope"),
            "{error}"
        );
    }

    #[test]
    fn a_secret_does_not_pass_in_another_spelling() {
        let secret = "ab/cd+ef=?0123";
        let scrubber = Scrubber::new([secret.to_owned()]);
        for around in ["", "u", "us", "sluice:"] {
            let whole = format!("{around}{secret}");
            for text in [STANDARD.encode(&whole), URL_SAFE_NO_PAD.encode(&whole), STANDARD.encode(format!("{whole}@"))]
            {
                let clean = scrubber.clean(&format!("Basic {text} is wrong"));
                assert!(clean.contains("***") && clean.len() < 35, "{text}: {clean}");
            }
        }
        assert_eq!(scrubber.clean("?token=ab%2Fcd%2Bef%3D%3F0123"), "?token=***");
        assert_eq!(scrubber.clean("?token=ab%2fcd%2bef%3d%3f0123"), "?token=***");
    }

    #[test]
    fn secrets_and_user_parts_of_addresses_never_pass() {
        let scrubber = Scrubber::new(["pass".to_owned(), "pass-and-more".to_owned(), "x".to_owned()]);
        let clean = scrubber.clean("fatal: https://bob:hunter2@x/r said\n pass-and-more\tand pass, ssh://git@x/r");
        assert_eq!(clean, "fatal: https://***@x/r said *** and ***, ssh://git@x/r");
        assert!(scrubber.clean(&"ü word ".repeat(400)).len() < 420);
    }
}

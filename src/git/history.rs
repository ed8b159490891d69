//! A ledger's history as a stream, oldest commit first: what the tools of an auditor read. Nothing is written.
//!
//! Three long-lived processes of git answer one question at a time: which commit comes next, what an object holds,
//! and in which files two trees differ. So a history of any length needs memory for one commit. Commits are parsed
//! here from their bytes, for git's own formats hide what somebody may have put into one.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};

use super::command::{Git, Process};
use super::error::{GitError, Result, classify};
use super::ledger_entry::{NO_MORE, StateFile, state_path};

/// No commit of ours comes near it.
const LARGEST_COMMIT: u64 = 1024 * 1024;
/// No file of ours comes near it.
pub(super) const LARGEST_FILE: u64 = 16 * 1024 * 1024;
/// Ends the answer to one question about two trees. Git repeats a line that it cannot read as object names.
const ANSWERED: &str = "answered\n";
const PREFIX: &str = "Rollout-";

/// A part of a history: the commits up to a tip, along first parents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The branch that they are read for, as `rollout-log/<cluster>`.
    pub branch: String,
    /// The last commit.
    pub tip: String,
    /// Only those that came after this commit.
    pub after: Option<String>,
}

/// One commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its name.
    pub id: String,
    /// The branch that it was read for.
    pub branch: Arc<str>,
    /// Its tree.
    pub tree: String,
    /// The tree of the commit before it in the stream; none before the first one.
    pub tree_before: Option<String>,
    /// Its parents.
    pub parents: Vec<String>,
    /// Who wrote it.
    pub author: Person,
    /// Who committed it.
    pub committer: Person,
    /// It carries a signature. Whether that is right is another question.
    pub signed: bool,
    /// Names of headers that a commit of the ledger does not have.
    pub more_headers: Vec<String>,
    /// The whole message, byte for byte.
    pub message: Vec<u8>,
    /// Trailers that its message does not repeat from the entry before of the same Rollout.
    pub repeated: Vec<(String, String)>,
    /// The source commit of the entry before of the same Rollout, where this one tells another.
    pub source_commit_before: Option<String>,
}

/// Somebody, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Person {
    /// `Name <mail>`.
    pub who: String,
    /// Seconds since 1970; none when it is not a number.
    pub seconds: Option<i64>,
    /// The time zone as it was written, `+0000`.
    pub zone: String,
}

/// A file that a commit changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its path.
    pub path: String,
    /// Before; none when it was added.
    pub before: Option<TreeEntry>,
    /// After; none when it was removed.
    pub after: Option<TreeEntry>,
}

/// What a tree says of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// `100644` for a plain file.
    pub mode: String,
    /// The object with its content.
    pub object: String,
}

/// What an object holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file.
    File(Vec<u8>),
    /// A file larger than is read.
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// Not a file, or not here.
    None,
}

/// The trailers of a message, in their order, without their prefix `Rollout-`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trailers(Vec<(String, String)>);

/// Reads segments one after the other, oldest commit first.
pub struct History {
    git: Git,
    segments: std::vec::IntoIter<Segment>,
    current: Option<(Arc<str>, Process, BufReader<ChildStdout>)>,
    objects: Conversation,
    trees: Conversation,
    tree_before: Option<String>,
    empty_tree: String,
}

impl Commit {
    /// The message as text.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.message)
    }

    /// The first line of the message.
    pub fn subject(&self) -> String {
        self.text().lines().next().unwrap_or_default().to_owned()
    }

    /// The text between subject and trailers.
    pub fn body(&self) -> String {
        let text = self.text();
        let rest = text.split_once('\n').map(|(_, rest)| rest.trim()).unwrap_or_default();
        let end = if rest.starts_with(PREFIX) { Some(0) } else { rest.rfind(&format!("\n\n{PREFIX}")) };
        rest[..end.unwrap_or(rest.len())].to_owned()
    }

    /// The trailers, with those that are as in the entry before.
    pub fn trailers(&self) -> Trailers {
        let mut trailers = Trailers::parse(&self.text());
        trailers.0.extend(self.repeated.iter().cloned());
        trailers.0.retain(|(_, value)| value != NO_MORE);
        trailers
    }

    /// When it was written, by its author's date.
    pub fn at(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(self.author.seconds?, 0)
    }

    fn parse(id: &str, branch: Arc<str>, tree_before: Option<String>, bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(2).position(|pair| pair == b"\n\n")?;
        let headers = String::from_utf8_lossy(&bytes[..end]);
        let mut commit = Self {
            id: id.to_owned(),
            branch,
            tree: String::new(),
            tree_before,
            parents: Vec::new(),
            author: Person::default(),
            committer: Person::default(),
            signed: false,
            more_headers: Vec::new(),
            message: bytes[end + 2..].to_vec(),
            repeated: Vec::new(),
            source_commit_before: None,
        };
        // A line that begins with a space goes on with the one before it.
        for line in headers.lines().filter(|line| !line.starts_with(' ')) {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("tree", tree) => commit.tree = tree.to_owned(),
                ("parent", parent) => commit.parents.push(parent.to_owned()),
                ("author", person) => commit.author = Person::parse(person),
                ("committer", person) => commit.committer = Person::parse(person),
                ("gpgsig" | "gpgsig-sha256", _) => commit.signed = true,
                (other, _) => commit.more_headers.push(other.to_owned()),
            }
        }
        Some(commit)
    }
}

impl Person {
    fn parse(text: &str) -> Self {
        let mut words = text.rsplitn(3, ' ');
        let (zone, seconds) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        Self { who: words.next().unwrap_or_default().to_owned(), seconds: seconds.parse().ok(), zone: zone.to_owned() }
    }
}

impl std::fmt::Display for Person {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.who, self.seconds.unwrap_or_default(), self.zone)
    }
}

impl Trailers {
    /// Those of the last paragraph of a message. Values are decoded: what stands as a JSON string is that string.
    pub fn parse(message: &str) -> Self {
        let last = message.trim_end().rsplit("\n\n").next().unwrap_or_default();
        let trailers = last.lines().filter_map(|line| {
            let (name, value) = line.strip_prefix(PREFIX)?.split_once(": ")?;
            let decoded = value.starts_with('"').then(|| serde_json::from_str::<String>(value).ok()).flatten();
            Some((name.to_owned(), decoded.unwrap_or_else(|| value.to_owned())))
        });
        Self(trailers.collect())
    }

    /// The value of the first one with this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The values of all with this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// All of them as an object; those that stand more than once as a list.
    pub fn to_json(&self) -> Value {
        let mut object = serde_json::Map::new();
        for (name, value) in &self.0 {
            match object.get_mut(name) {
                None => {
                    object.insert(name.clone(), Value::from(value.as_str()));
                }
                Some(Value::Array(values)) => values.push(Value::from(value.as_str())),
                Some(first) => *first = Value::from(vec![first.take(), Value::from(value.as_str())]),
            }
        }
        Value::Object(object)
    }
}

impl Change {
    /// The object with the new content, if it is a plain file.
    pub fn file(&self) -> Option<&str> {
        self.after.as_ref().filter(|entry| entry.mode == "100644").map(|entry| entry.object.as_str())
    }
}

impl Content {
    /// The bytes of a file.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::File(bytes) => Some(bytes),
            Self::TooLarge { .. } | Self::None => None,
        }
    }
}

impl History {
    /// Of the repository that `git` is called for.
    pub(super) async fn of(git: &Git, segments: Vec<Segment>) -> Result<Self> {
        let empty = git.call("reading the history", ["hash-object", "-t", "tree", "--stdin"]).input("").line().await?;
        let objects = Conversation::start(git, &["cat-file", "--batch"])?;
        let arguments = ["diff-tree", "--stdin", "-r", "-z", "--raw", "--no-renames", "--full-index", "--no-ext-diff"];
        let trees = Conversation::start(git, &arguments)?;
        Ok(Self {
            git: git.clone(),
            segments: segments.into_iter(),
            current: None,
            objects,
            trees,
            tree_before: None,
            empty_tree: empty,
        })
    }

    /// The next commit; none at the end.
    pub async fn next(&mut self) -> Result<Option<Commit>> {
        loop {
            let Some((branch, _, ids)) = &mut self.current else {
                let Some(segment) = self.segments.next() else { return Ok(None) };
                self.open(segment).await?;
                continue;
            };
            let mut line = String::new();
            ids.read_line(&mut line).await.map_err(super::command::storage)?;
            let id = line.trim();
            if id.is_empty() {
                if let Some((_, process, _)) = self.current.take() {
                    let failed =
                        |said: String| classify("reading the history", &self.git.remote, &said, &self.git.scrubber);
                    process.finish().await?.map_err(failed)?;
                }
                continue;
            }
            let branch = branch.clone();
            let mut commit = self.commit(id, branch).await?;
            self.tree_before = Some(commit.tree.clone());
            self.complete(&mut commit).await?;
            return Ok(Some(commit));
        }
    }

    /// Begins a segment. Its first commit is compared with the one it comes after.
    async fn open(&mut self, segment: Segment) -> Result<()> {
        let mut arguments = vec!["rev-list", "--reverse", "--first-parent", "--topo-order", &segment.tip];
        let not = segment.after.as_ref().map(|after| format!("^{after}"));
        arguments.extend(not.as_deref());
        arguments.push("--");
        if let Some(after) = &segment.after {
            let branch = Arc::from(segment.branch.as_str());
            self.tree_before = Some(self.commit(after, branch).await?.tree);
        }
        let mut process = self.git.call("reading the history", arguments).start()?;
        let stdout = process.stdout.take().ok_or_else(|| ended(&self.git))?;
        self.current = Some((segment.branch.into(), process, BufReader::new(stdout)));
        Ok(())
    }

    /// Adds what a message leaves out, by the state that the commit holds: that tells it always.
    async fn complete(&mut self, commit: &mut Commit) -> Result<()> {
        let told = Trailers::parse(&commit.text());
        let mut id = told.get("Id").unwrap_or_default().splitn(3, '/').skip(1);
        let (Some(namespace), Some(name)) = (id.next(), id.next()) else { return Ok(()) };
        let path = state_path(namespace, name);
        if let Some(state) = self.state(&commit.id, &path).await? {
            let left_out =
                state.repeated().into_iter().filter(|(name, value)| told.get(name).is_none() && !value.is_empty());
            commit.repeated = left_out.map(|(name, value)| (name.to_owned(), value)).collect();
        }
        if told.get("Source-Commit").is_some()
            && let Some(previous) = told.get("Prev")
        {
            commit.source_commit_before = self.state(previous, &path).await?.and_then(|state| state.source_commit);
        }
        Ok(())
    }

    async fn state(&mut self, commit: &str, path: &str) -> Result<Option<StateFile>> {
        let state = self.read(&format!("{commit}:{path}")).await?;
        Ok(state.bytes().and_then(|bytes| serde_json::from_slice(bytes).ok()))
    }

    async fn commit(&mut self, id: &str, branch: Arc<str>) -> Result<Commit> {
        let damaged =
            || GitError::Unreadable { path: format!("the commit {id}"), reason: "it is no commit".to_owned() };
        let content = self.objects.object(id, "commit", LARGEST_COMMIT).await?;
        let bytes = content.bytes().ok_or_else(damaged)?;
        Commit::parse(id, branch, self.tree_before.clone(), bytes).ok_or_else(damaged)
    }

    /// The files in which a commit differs from the one before it in the stream. In the first one: all of them.
    pub async fn changes(&mut self, commit: &Commit) -> Result<Vec<Change>> {
        let before = commit.tree_before.as_ref().unwrap_or(&self.empty_tree);
        if *before == commit.tree {
            return Ok(Vec::new());
        }
        self.trees.ask(&format!("{before} {}\n{ANSWERED}", commit.tree)).await?;
        self.trees.line().await?;
        let mut changes = Vec::new();
        loop {
            // `:100644 100644 <before> <after> M` NUL path NUL, or the end.
            let first = self.trees.answers.fill_buf().await.map_err(super::command::storage)?.first().copied();
            if first != Some(b':') {
                let end = self.trees.line().await?;
                return if end == ANSWERED.as_bytes() { Ok(changes) } else { Err(ended(&self.git)) };
            }
            let (what, path) = (self.trees.until(0).await?, self.trees.until(0).await?);
            let what = String::from_utf8_lossy(&what).into_owned();
            let words: Vec<&str> = what.trim_start_matches(':').split(' ').collect();
            let [mode_before, mode_after, before, after, _] = words.as_slice() else { return Err(ended(&self.git)) };
            let entry = |mode: &str, object: &str| {
                (mode != "000000").then(|| TreeEntry { mode: mode.to_owned(), object: object.to_owned() })
            };
            changes.push(Change {
                path: String::from_utf8_lossy(&path).into_owned(),
                before: entry(mode_before, before),
                after: entry(mode_after, after),
            });
        }
    }

    /// What a file holds, by the name of its object or as `commit:path`.
    pub async fn read(&mut self, name: &str) -> Result<Content> {
        if name.contains('\n') {
            return Ok(Content::None);
        }
        self.objects.object(name, "blob", LARGEST_FILE).await
    }
}

/// A git that answers questions.
struct Conversation {
    git: Git,
    _process: Process,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Conversation {
    fn start(git: &Git, arguments: &[&str]) -> Result<Self> {
        let mut process = git.call("reading the history", arguments).start()?;
        let (questions, answers) = (process.stdin.take(), process.stdout.take());
        let (Some(questions), Some(answers)) = (questions, answers) else { return Err(ended(git)) };
        Ok(Self { git: git.clone(), _process: process, questions, answers: BufReader::new(answers) })
    }

    async fn ask(&mut self, question: &str) -> Result<()> {
        let lost = |_| ended(&self.git);
        self.questions.write_all(question.as_bytes()).await.map_err(lost)?;
        self.questions.flush().await.map_err(lost)
    }

    async fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = self.until(b'\n').await?;
        line.push(b'\n');
        Ok(line)
    }

    /// Up to this byte, without it.
    async fn until(&mut self, end: u8) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.answers.read_until(end, &mut bytes).await.map_err(super::command::storage)?;
        if bytes.pop() == Some(end) { Ok(bytes) } else { Err(ended(&self.git)) }
    }

    /// An object of this kind.
    async fn object(&mut self, name: &str, kind: &str, most: u64) -> Result<Content> {
        self.ask(&format!("{name}\n")).await?;
        let header = self.line().await?;
        let header = String::from_utf8_lossy(&header);
        // `<object> <kind> <size>`, or `<name> missing`, or `<name> ambiguous`.
        let mut words = header.trim_end().rsplitn(3, ' ');
        let (size, found) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (Ok(size), true) = (size.parse::<u64>(), ["blob", "tree", "commit", "tag"].contains(&found)) else {
            return Ok(Content::None);
        };
        let mut bytes = Vec::new();
        let read = (&mut self.answers).take(size);
        let mut read = read;
        let wanted = found == kind && size <= most;
        let got = if wanted {
            read.read_to_end(&mut bytes).await.map(|got| u64::try_from(got).unwrap_or_default())
        } else {
            tokio::io::copy(&mut read, &mut tokio::io::sink()).await
        };
        if got.map_err(super::command::storage)? != size || self.until(b'\n').await.is_err() {
            return Err(ended(&self.git));
        }
        Ok(match wanted {
            true => Content::File(bytes),
            false if found == kind => Content::TooLarge { bytes: size },
            false => Content::None,
        })
    }
}

/// An object that is damaged ends the process that was to read it.
fn ended(git: &Git) -> GitError {
    let detail = "git ended early: run git fsck in the repository".to_owned();
    GitError::Failed { doing: format!("reading the history in {}", git.remote), detail }
}

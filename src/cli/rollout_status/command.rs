//! The command line of the plugin, and the shell around its pure parts.

use std::io::{self, Write};
use std::time::Duration as StdDuration;

use chrono::Utc;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::facts::{Facts, Gap, NEEDED};
use super::render::{self, Columns};
use super::undo::undo;
use super::until::{End, Until, Watchman};
use super::verbs::{Nothing, Verb, word};
use super::view::{API_VERSION, View};
use crate::api::{Duration, InterventionStatus, ReleaseState};
use crate::cli::fetch::{self, Client, Connection, FetchError, Lens};
use crate::cli::terminal::{Line, Terminal, Tone};
use crate::cli::{Exit, completion};
use crate::cluster::kinds::Kind;
use crate::cluster::objects::Key;

/// How often a view is drawn anew although nothing changed: times run on.
const TICK: StdDuration = StdDuration::from_secs(1);
/// How long completion may ask for names before it does without.
const COMPLETION_LIMIT: StdDuration = StdDuration::from_secs(2);
/// The script that kubectl runs to complete the plugin's arguments.
const KUBECTL_HELPER: &str = "#!/bin/sh\n\
    # Put this on the PATH as kubectl_complete-rollout_status and make it executable:\n\
    # kubectl then completes `kubectl rollout-status`.\n\
    exec kubectl-rollout_status __complete \"$@\"\n";

/// What a Rollout does, why it waits, what comes next, and how to stop it.
///
/// Exit codes: 0 reached (or shown), 1 wrong usage, not found or no answer, 2 aborted or stalled, 3 timed out,
/// 4 waits for a person (with --fail-on-pause), 5 superseded by a newer revision.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-rollout_status",
    bin_name = "kubectl rollout-status",
    version,
    subcommand_precedence_over_arg = true,
    disable_help_subcommand = true
)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Never colour the output
    #[arg(long, global = true)]
    no_color: bool,
    #[command(flatten)]
    look: Look,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to look at, and for how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Look {
    /// The Rollout; all of the namespace when absent
    name: Option<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only Rollouts with these labels
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "name")]
    selector: Option<String>,
    /// Go on looking
    #[arg(short, long)]
    watch: bool,
    /// Watch until: promoted, paused, aborted, step=N (from 1) or finished
    #[arg(long, value_name = "STATE", requires = "name")]
    until: Option<Until>,
    /// Give up after this time; 0 is never
    #[arg(long, value_name = "DURATION", default_value = "0")]
    timeout: Duration,
    /// Watch this revision or commit (or the start of one), and no other
    #[arg(long, value_name = "REVISION", requires = "until")]
    revision: Option<String>,
    /// With --until: end with code 4 when only a person can let it go on
    #[arg(long, requires = "until")]
    fail_on_pause: bool,
    /// How the result is printed
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// With more columns.
    Wide,
    /// For programs; one document a line with --watch.
    Json,
    /// For programs that like YAML.
    Yaml,
    /// The name alone.
    Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum Command {
    /// Show Rollouts; the same as without a command
    Get(Look),
    /// Let it go on: approve a pause, skip a timed one, or (with --full) go past everything
    Promote {
        #[command(flatten)]
        speech: Speech,
        /// Past all remaining steps and gates
        #[arg(long)]
        full: bool,
    },
    /// Bring all traffic back to the stable version
    Abort(Speech),
    /// Take no further step
    Pause(Speech),
    /// End a pause
    Resume(Speech),
    /// Try an aborted revision once more
    Retry(Speech),
    /// Replace all pods by new ones of the same version
    Restart(Speech),
    /// Go back to an older version, where the pod template is kept in the Rollout itself
    Undo {
        /// The Rollout
        name: String,
        /// The revision to go back to, or the start of one; the one before when absent
        #[arg(long, value_name = "REVISION")]
        to: Option<String>,
    },
    /// Print a completion script
    Completion {
        /// The shell it is for; kubectl for the helper that completes `kubectl rollout-status`
        #[arg(value_enum)]
        shell: Script,
    },
    /// Completes arguments for kubectl
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words so far, the last one unfinished
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
struct Speech {
    /// The Rollout
    name: String,
    /// Why, for the log
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
    /// How long to wait for the operator's answer
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Script {
    Bash,
    Zsh,
    Fish,
    Kubectl,
}

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Wrong usage beyond what the parser sees.
    #[error("{0}")]
    Usage(String),
    /// No such Rollout.
    #[error("rollouts.sluice.dev \"{name}\" not found in namespace {namespace}")]
    NotFound {
        /// The name.
        name: String,
        /// The namespace.
        namespace: String,
    },
    /// There is nothing to say.
    #[error(transparent)]
    Nothing(#[from] Nothing),
    /// The API server.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Standard output.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// A document that cannot be written.
    #[error("output: {0}")]
    Document(String),
}

/// Runs what was typed.
///
/// # Errors
/// What went wrong, for standard error; the exit code is 1 then.
pub async fn run(arguments: Arguments) -> Result<Exit, CommandError> {
    let Arguments { connection, no_color, look, command } = arguments;
    let terminal = Terminal::of_stdout(no_color);
    if command.is_some() && look != Look::default_arguments() {
        let message = "options of the view go after `get`, and a Rollout that is called like a command is shown \
                       with `get NAME`";
        return Err(CommandError::Usage(message.to_owned()));
    }
    match command {
        None => show(&connection, terminal, look).await,
        Some(Command::Get(look)) => show(&connection, terminal, look).await,
        Some(Command::Promote { speech, full }) => {
            say(&connection, if full { Verb::PromoteFull } else { Verb::Promote }, &speech).await
        }
        Some(Command::Abort(speech)) => say(&connection, Verb::Abort, &speech).await,
        Some(Command::Pause(speech)) => say(&connection, Verb::Pause, &speech).await,
        Some(Command::Resume(speech)) => say(&connection, Verb::Resume, &speech).await,
        Some(Command::Retry(speech)) => say(&connection, Verb::Retry, &speech).await,
        Some(Command::Restart(speech)) => say(&connection, Verb::Restart, &speech).await,
        Some(Command::Undo { name, to }) => take_back(&connection, &name, to.as_deref()).await,
        Some(Command::Completion { shell }) => {
            let mut out = io::stdout().lock();
            let name = "kubectl-rollout_status";
            let mut script = |shell| completion::script(Arguments::command(), name, shell, &mut out);
            match shell {
                Script::Bash => script(Shell::Bash)?,
                Script::Zsh => script(Shell::Zsh)?,
                Script::Fish => script(Shell::Fish)?,
                Script::Kubectl => out.write_all(KUBECTL_HELPER.as_bytes())?,
            }
            Ok(Exit::Reached)
        }
        Some(Command::Complete { words }) => complete(&connection, &words).await,
    }
}

impl Look {
    /// As the parser leaves it when nothing is given.
    fn default_arguments() -> Self {
        Self { timeout: Duration::from_secs(0), ..Self::default() }
    }

    fn watches(&self) -> bool {
        self.watch || self.until.is_some()
    }

    fn deadline(&self) -> Option<Instant> {
        (!self.timeout.is_zero()).then(|| Instant::now() + self.timeout.std())
    }
}

/// A name as people write it: `web`, `rollout/web`, `ro/web`.
fn bare(name: &str) -> &str {
    let kinds = ["rollout/", "rollouts/", "ro/", "rollout.sluice.dev/", "rollouts.sluice.dev/"];
    kinds.iter().find_map(|kind| name.strip_prefix(kind)).unwrap_or(name)
}

async fn show(connection: &Connection, terminal: Terminal, look: Look) -> Result<Exit, CommandError> {
    if look.all_namespaces && look.name.is_some() {
        return Err(CommandError::Usage("a Rollout cannot be shown by name across all namespaces".to_owned()));
    }
    let (client, namespace) = connection.open().await?;
    match &look.name {
        Some(name) => {
            let lens = Lens::open(&client, Some(&namespace), &NEEDED).await?;
            let key = Key::new(namespace, bare(name));
            if look.watches() {
                watch_one(&lens, &key, terminal, &look).await
            } else {
                show_one(&lens, &key, terminal, &look)
            }
        }
        None => show_many(&client, &namespace, terminal, &look).await,
    }
}

fn facts(lens: &Lens, key: &Key) -> Option<Facts> {
    Facts::of(lens.index(), key, &lens.gaps(), Utc::now())
}

fn not_found(key: &Key) -> CommandError {
    CommandError::NotFound { name: key.name.clone(), namespace: key.namespace.clone() }
}

fn show_one(lens: &Lens, key: &Key, terminal: Terminal, look: &Look) -> Result<Exit, CommandError> {
    let facts = facts(lens, key).ok_or_else(|| not_found(key))?;
    let view = View::of(&facts, Utc::now());
    match look.output {
        None | Some(Output::Wide) => terminal.append(&render::detail(&view))?,
        Some(Output::Json) => print(&json(&view)?)?,
        Some(Output::Yaml) => print(&yaml(&view)?)?,
        Some(Output::Name) => print(&name(&view))?,
    }
    Ok(Exit::Reached)
}

fn name(view: &View) -> String {
    format!("rollout.sluice.dev/{}\n", view.name)
}

fn json(document: &impl Serialize) -> Result<String, CommandError> {
    let text = serde_json::to_string_pretty(document).map_err(|error| CommandError::Document(error.to_string()))?;
    Ok(format!("{text}\n"))
}

fn json_line(document: &impl Serialize) -> Result<String, CommandError> {
    let text = serde_json::to_string(document).map_err(|error| CommandError::Document(error.to_string()))?;
    Ok(format!("{text}\n"))
}

fn yaml(document: &impl Serialize) -> Result<String, CommandError> {
    serde_saphyr::to_string(document).map_err(|error| CommandError::Document(error.to_string()))
}

fn print(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Many Rollouts as one document.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ViewList<'a> {
    api_version: &'static str,
    kind: &'static str,
    items: &'a [View],
}

async fn show_many(client: &Client, namespace: &str, terminal: Terminal, look: &Look) -> Result<Exit, CommandError> {
    let namespace = (!look.all_namespaces).then_some(namespace);
    // The plain table needs nothing but the Rollouts.
    let brief = matches!(look.output, None | Some(Output::Name));
    let lens = Lens::open(client, namespace, if brief { &[Kind::Rollout] } else { &NEEDED }).await?;
    let columns = Columns { namespace: look.all_namespaces, wide: look.output == Some(Output::Wide) };
    let deadline = look.deadline();
    let mut shown: Vec<String> = Vec::new();
    let mut first = true;
    loop {
        let mut views = views(client, &lens, namespace, look, brief).await?;
        views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        if views.is_empty() && first {
            let place = namespace.map_or_else(|| "any namespace".to_owned(), |name| format!("namespace {name}"));
            complain(&format!("No Rollouts found in {place}."));
        }
        if !look.watch {
            match look.output {
                None | Some(Output::Wide) if views.is_empty() => {}
                None | Some(Output::Wide) => terminal.append(&render::list(&views, columns))?,
                Some(Output::Name) => print(&views.iter().map(name).collect::<String>())?,
                Some(Output::Json) => print(&json(&list(&views))?)?,
                Some(Output::Yaml) => print(&yaml(&list(&views))?)?,
            }
            return Ok(Exit::Reached);
        }
        let human = matches!(look.output, None | Some(Output::Wide));
        if human && terminal.interactive {
            terminal.redraw(&render::list(&views, columns))?;
        } else {
            let keys: Vec<String> = views.iter().map(render::transition_key).collect();
            for (view, _) in views.iter().zip(&keys).filter(|(_, key)| !shown.contains(key)) {
                emit(view, terminal, look.output)?;
            }
            shown = keys;
        }
        first = false;
        if wait(&lens, deadline).await == Woken::Late {
            return Ok(Exit::TimedOut);
        }
    }
}

fn list(items: &[View]) -> ViewList<'_> {
    ViewList { api_version: API_VERSION, kind: "RolloutStatusViewList", items }
}

async fn views(
    client: &Client,
    lens: &Lens,
    namespace: Option<&str>,
    look: &Look,
    brief: bool,
) -> Result<Vec<View>, CommandError> {
    let selected = match &look.selector {
        Some(labels) => Some(fetch::selected(client, namespace, labels).await?),
        None => None,
    };
    let now = Utc::now();
    let mut gaps = lens.gaps();
    if brief {
        gaps.push(Gap { kind: Kind::ReplicaSet, why: "not asked for".to_owned() });
    }
    let keys = lens.index().keys(Kind::Rollout);
    let wanted = keys.into_iter().filter(|key| selected.as_ref().is_none_or(|selected| selected.contains(key)));
    Ok(wanted.filter_map(|key| Facts::of(lens.index(), &key, &gaps, now)).map(|facts| View::of(&facts, now)).collect())
}

/// One transition, in the form asked for.
fn emit(view: &View, terminal: Terminal, output: Option<Output>) -> Result<(), CommandError> {
    match output {
        None | Some(Output::Wide) => Ok(terminal.append(&[render::transition(view)])?),
        Some(Output::Json) => print(&json_line(view)?),
        Some(Output::Yaml) => print(&format!("---\n{}", yaml(view)?)),
        Some(Output::Name) => print(&name(view)),
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    News,
    Late,
}

/// Waits for a change or the next tick, but not past the deadline.
async fn wait(lens: &Lens, deadline: Option<Instant>) -> Woken {
    let late = async {
        match deadline {
            Some(deadline) => sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = late => Woken::Late,
        () = lens.changed() => Woken::News,
        () = sleep(TICK) => Woken::News,
    }
}

async fn watch_one(lens: &Lens, key: &Key, terminal: Terminal, look: &Look) -> Result<Exit, CommandError> {
    let human = matches!(look.output, None | Some(Output::Wide));
    let redraws = human && terminal.interactive;
    let deadline = look.deadline();
    let mut watchman: Option<Watchman> = None;
    let mut shown = None;
    let mut complaint = None;
    let mut seen = false;
    if redraws {
        print("\x1b[2J")?;
    }
    loop {
        let Some(facts) = facts(lens, key) else {
            if !seen {
                return Err(not_found(key));
            }
            complain(&format!("error: Rollout {key} was deleted"));
            return Ok(Exit::Error);
        };
        seen = true;
        let view = View::of(&facts, Utc::now());
        if redraws {
            let mut lines = render::detail(&view);
            if let Some(trouble) = lens.trouble() {
                lines.push(Line::new());
                lines.push(Line::new().with(Tone::Attention, format!("not up to date: {trouble}")));
            }
            terminal.redraw(&lines)?;
        } else {
            let transition = render::transition_key(&view);
            if shown.as_ref() != Some(&transition) {
                emit(&view, terminal, look.output)?;
                shown = Some(transition);
            }
            let trouble = lens.trouble();
            if let Some(trouble) = trouble.as_ref().filter(|trouble| complaint.as_ref() != Some(*trouble)) {
                complain(&format!("warning: not up to date: {trouble}"));
            }
            complaint = trouble;
        }
        if let Some(until) = look.until {
            let watchman =
                watchman.get_or_insert_with(|| Watchman::new(until, look.fail_on_pause, look.revision.clone(), &facts));
            if let Some(end) = watchman.judge(&facts) {
                return Ok(finish(&end, &facts, &view));
            }
        }
        if wait(lens, deadline).await == Woken::Late {
            let watched = watchman.as_ref().map(|watchman| format!(" for {}", watchman.watched())).unwrap_or_default();
            let waits = view.waiting.as_ref().map(|waiting| format!("; waiting: {}", waiting.message));
            complain(&format!("error: timed out after {}{watched}{}", look.timeout, waits.unwrap_or_default()));
            return Ok(Exit::TimedOut);
        }
    }
}

/// Says how a watch ended. After an abort the last line of standard error is the failed metric.
fn finish(end: &End, facts: &Facts, view: &View) -> Exit {
    if end.exit == Exit::Reached {
        complain(&end.message);
        return end.exit;
    }
    complain(&format!("error: {}", end.message));
    let aborted = facts.status.release.as_ref().is_some_and(|release| release.state == ReleaseState::Aborted);
    if let Some(failed) = view.failed_metric.as_ref().filter(|_| aborted && end.exit == Exit::Failed) {
        complain(&failed.sentence());
    }
    end.exit
}

async fn say(connection: &Connection, verb: Verb, speech: &Speech) -> Result<Exit, CommandError> {
    let (client, namespace) = connection.open().await?;
    let key = Key::new(namespace, bare(&speech.name));
    let lens = Lens::open(&client, Some(&key.namespace), &NEEDED).await?;
    let facts = facts(&lens, &key).ok_or_else(|| not_found(&key))?;
    let word = word(verb, &facts)?;
    let actor = fetch::who_am_i(&client).await?;
    let action = verb.name();
    let spec = word.spec(&key.name, &actor, &speech.reason);
    let intervention = fetch::intervene(&client, &facts.rollout.identity, action, spec).await?;
    let outcome = fetch::outcome(&client, &key.namespace, &intervention, speech.wait.std()).await?;
    match outcome {
        Some(status) if status.outcome.as_deref() == Some(InterventionStatus::APPLIED) => {
            let message = status.message.filter(|message| !message.is_empty()).unwrap_or(word.meaning);
            print(&format!(
                "rollout.sluice.dev/{} {action}: applied, by {actor} ({intervention}): {message}\n",
                key.name
            ))?;
            Ok(Exit::Reached)
        }
        Some(status) => {
            let why = status.message.unwrap_or_default();
            complain(&format!("error: {action} of {} was refused ({intervention}): {why}", key.name));
            Ok(Exit::Error)
        }
        None => {
            complain(&format!(
                "error: the operator has not taken {intervention} within {}; it still may: kubectl get intervention {intervention} -n {}",
                speech.wait, key.namespace
            ));
            Ok(Exit::TimedOut)
        }
    }
}

async fn take_back(connection: &Connection, name: &str, to: Option<&str>) -> Result<Exit, CommandError> {
    let (client, namespace) = connection.open().await?;
    let key = Key::new(namespace, bare(name));
    let lens = Lens::open(&client, Some(&key.namespace), &NEEDED).await?;
    let facts = facts(&lens, &key).ok_or_else(|| not_found(&key))?;
    let identity = &facts.rollout.identity;
    let owners = fetch::template_owners(&client, identity).await?;
    let template = undo(&facts, to, &owners)?;
    fetch::set_template(&client, identity, &template).await?;
    let (name, revision) = (&key.name, template.revision());
    print(&format!(
        "rollout.sluice.dev/{name} asks for revision {revision} again; watch: kubectl rollout-status {name} -n {} --until promoted --revision {revision}\n",
        key.namespace
    ))?;
    Ok(Exit::Reached)
}

/// Completion for kubectl: a line for each proposal, then `:` and what the shell shall do with them.
async fn complete(connection: &Connection, words: &[String]) -> Result<Exit, CommandError> {
    let (last, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let mut connection = connection.clone();
    let mut positional = Vec::new();
    let mut rest = before.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "-n" | "--namespace" => connection.namespace = rest.next().cloned(),
            "--context" => connection.context = rest.next().cloned(),
            "--kubeconfig" => connection.kubeconfig = rest.next().map(Into::into),
            word if word.starts_with('-') => {}
            word => positional.push(word),
        }
    }
    let command = Arguments::command();
    let verbs: Vec<&str> =
        command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(clap::Command::get_name).collect();
    let mut proposals: Vec<String> = Vec::new();
    if last.starts_with('-') {
        let of = positional.first().and_then(|verb| command.find_subcommand(verb)).unwrap_or(&command);
        let options = of.get_arguments().chain(command.get_arguments().filter(|option| option.is_global_set()));
        proposals.extend(options.filter_map(|option| option.get_long()).map(|long| format!("--{long}")));
    } else {
        let named = match positional.as_slice() {
            [] => {
                proposals.extend(verbs.iter().map(|verb| (*verb).to_owned()));
                true
            }
            ["completion"] => {
                proposals.extend(["bash", "zsh", "fish", "kubectl"].map(str::to_owned));
                false
            }
            [verb] => verbs.contains(verb),
            _ => false,
        };
        if named {
            let names = async {
                let (client, namespace) = connection.open().await.ok()?;
                fetch::rollout_names(&client, &namespace).await.ok()
            };
            // Without an answer there are no names to propose, and nothing to say about it in a prompt.
            proposals.extend(timeout(COMPLETION_LIMIT, names).await.ok().flatten().unwrap_or_default());
        }
    }
    proposals.retain(|proposal| proposal.starts_with(last));
    proposals.sort();
    proposals.dedup();
    let text: String = proposals.into_iter().map(|proposal| format!("{proposal}\n")).collect();
    // 4: do not propose files.
    print(&format!("{text}:4\n"))?;
    Ok(Exit::Reached)
}

//! What the API server itself refuses, with the field and the cure in its answer.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::tools::project;
use crate::world::World;

const NAMESPACE: &str = "admission";

pub(super) async fn bad_objects_are_refused_with_the_field_and_the_cure(world: &World) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    world.apply(&namespace.to_string()).await?;
    for file in files("accepted")? {
        let output = kubectl(world, "apply", &file).await?;
        ensure!(output.code == Some(0), "{} is refused: {}", file.display(), output.stderr);
        kubectl(world, "delete", &file).await?;
    }
    let refused = files("refused")?;
    ensure!(refused.len() > 30, "only {} files are to be refused", refused.len());
    let mut wrong = Vec::new();
    for file in refused {
        let text = fs::read_to_string(&file)?;
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# expect: "));
        let expected = expected.with_context(|| format!("{} does not say what to expect", file.display()))?;
        let (field, message) = expected.split_once(": ").unwrap_or(("", expected));
        let output = kubectl(world, "apply", &file).await?;
        if output.code == Some(0) || !output.stderr.contains(field) || !output.stderr.contains(message) {
            wrong.push(format!("{}: expected `{expected}`, got `{}{}`", file.display(), output.stdout, output.stderr));
        }
        kubectl(world, "delete", &file).await?;
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// Client-side, as most people do it; the namespace is the story's own.
async fn kubectl(world: &World, verb: &str, file: &std::path::Path) -> Result<crate::command::Output> {
    let command = world.cluster.kubectl()?.args([verb, "-n", NAMESPACE, "-f"]).arg(file);
    let command = if verb == "delete" { command.args(["--ignore-not-found", "--wait=true"]) } else { command };
    command.output().await
}

fn files(folder: &str) -> Result<Vec<PathBuf>> {
    let folder = project().join("tests/data").join(folder);
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

//! Container images without a registry: small ones written by hand, the operator's built from the project's Dockerfile.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command::Command;
use crate::tools::{Tools, project};

/// The image that holds a pod's network.
pub const PAUSE: &str = "docker.io/sluice-e2e/pause:1";
/// The demo application's repository; its tags are versions.
pub const DEMO: &str = "docker.io/sluice-e2e/demo";
/// The operator's image.
pub const OPERATOR: &str = "docker.io/sluice-e2e/sluice:dev";

/// The tag of Debian's image that the Dockerfile starts from.
const BASE: &str = "docker.io/library/debian:bookworm-slim";

/// The demo application's versions and their knobs: `v3` fails every third request, `slow` takes half a second.
const VERSIONS: &[(&str, &[(&str, &str)])] = &[
    ("v1", &[]),
    ("v2", &[]),
    ("v3", &[("ERROR_RATE", "0.3")]),
    ("v4", &[]),
    ("v5", &[]),
    ("v6", &[]),
    ("slow", &[("LATENCY_MS", "500")]),
];

/// One image of an archive: a static program, and what it is started with.
struct Static<'a> {
    reference: String,
    command: &'a [&'a str],
    environment: BTreeMap<&'a str, String>,
}

/// Writes an archive with the pause image and every version of the demo application; gives its path.
pub async fn demo_archive(tools: &Tools) -> Result<PathBuf> {
    let program = tools.program("demo-app")?;
    let mut images =
        vec![Static { reference: PAUSE.to_owned(), command: &["/demo-app", "pause"], environment: BTreeMap::new() }];
    for (version, knobs) in VERSIONS {
        let mut environment = BTreeMap::from([("VERSION", (*version).to_owned())]);
        environment.extend(knobs.iter().map(|(name, value)| (*name, (*value).to_owned())));
        images.push(Static { reference: format!("{DEMO}:{version}"), command: &["/demo-app"], environment });
    }
    let archive = project().join("target/images/demo.tar");
    write_archive(&program, "demo-app", &images, &archive).await?;
    Ok(archive)
}

/// Writes an OCI archive of images that share one layer with one program.
async fn write_archive(program: &Path, name: &str, images: &[Static<'_>], archive: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (root, layout) = (folder.path().join("root"), folder.path().join("layout"));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&root)?;
    fs::create_dir_all(&blobs)?;
    fs::copy(program, root.join(name)).with_context(|| program.display().to_string())?;
    let layer_file = folder.path().join("layer.tar");
    tar(&root, &layer_file).await?;
    let layer = store(&blobs, &fs::read(&layer_file)?)?;

    let mut manifests = Vec::new();
    for image in images {
        let environment: Vec<String> =
            image.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let config = store(
            &blobs,
            &serde_json::to_vec(&json!({
                "architecture": architecture(),
                "os": "linux",
                "config": {"Entrypoint": image.command, "Env": environment, "User": "65532:65532", "WorkingDir": "/"},
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            }))?,
        )?;
        let with_type = |mut descriptor: Value, kind: &str| {
            descriptor["mediaType"] = json!(format!("application/vnd.oci.image.{kind}"));
            descriptor
        };
        let manifest = store(
            &blobs,
            &serde_json::to_vec(&json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": with_type(config, "config.v1+json"),
                "layers": [with_type(layer.clone(), "layer.v1.tar")],
            }))?,
        )?;
        let mut manifest = with_type(manifest, "manifest.v1+json");
        manifest["annotations"] =
            json!({"io.containerd.image.name": image.reference, "org.opencontainers.image.ref.name": image.reference});
        manifests.push(manifest);
    }
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(layout.join("index.json"), serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": manifests}))?)?;
    if let Some(parent) = archive.parent() {
        fs::create_dir_all(parent)?;
    }
    tar(&layout, archive).await
}

/// Keeps a blob under its digest and gives its descriptor, without the type.
fn store(blobs: &Path, bytes: &[u8]) -> Result<Value> {
    let digest = format!("{:x}", Sha256::digest(bytes));
    fs::write(blobs.join(&digest), bytes)?;
    Ok(json!({"digest": format!("sha256:{digest}"), "size": bytes.len()}))
}

/// Packs a folder so that the same content gives the same bytes.
async fn tar(folder: &Path, archive: &Path) -> Result<()> {
    Command::new("tar")
        .args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(folder)
        .arg(".")
        .ok()
        .await
        .map(drop)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Builds the operator's image with the project's Dockerfile around the program `binary`; gives the archive's path.
pub async fn operator_archive(tools: &Tools, binary: &Path) -> Result<PathBuf> {
    let archive = project().join("target/images/operator.tar");
    let buildah = Buildah { storage: tools.cache().join("buildah") };
    buildah.base(tools).await?;
    let context = tempfile::tempdir()?;
    fs::copy(binary, context.path().join("sluice"))
        .with_context(|| format!("{} is missing: build it with `make build`", binary.display()))?;
    buildah
        .command()
        // Layers are kept between runs: only the program itself is new.
        .args(["bud", "--isolation=chroot", "--pull-never", "--layers", "--build-arg=BINARY=sluice"])
        .args(["--tag", OPERATOR, "--file"])
        .arg(project().join("Dockerfile"))
        .arg(context.path())
        .within(Duration::from_secs(600))
        .ok()
        .await
        .context("cannot build the operator's image")?;
    if archive.exists() {
        fs::remove_file(&archive)?;
    }
    buildah
        .command()
        .args(["push", OPERATOR])
        .arg(format!("oci-archive:{}:{OPERATOR}", archive.display()))
        .within(Duration::from_secs(600))
        .ok()
        .await?;
    Ok(archive)
}

/// Buildah with storage of its own: images of this machine's user are not touched.
struct Buildah {
    storage: PathBuf,
}

impl Buildah {
    fn command(&self) -> Command {
        Command::new("buildah")
            .arg("--root")
            .arg(self.storage.join("root"))
            .arg("--runroot")
            .arg(self.storage.join("run"))
    }

    /// Makes the image that the Dockerfile starts from, where it is not there yet: Debian's packages by `mmdebstrap`,
    /// with those the Dockerfile would otherwise fetch.
    async fn base(&self, tools: &Tools) -> Result<()> {
        if self.command().args(["inspect", "--type=image", BASE]).output().await?.code == Some(0) {
            return Ok(());
        }
        let packages = tools.cache().join("debian-base.tar");
        let partial = packages.with_extension("partial.tar");
        if !packages.exists() {
            Command::new("mmdebstrap")
                .args(["--variant=minbase", "--include=git,openssh-client,ca-certificates", "bookworm"])
                .arg(&partial)
                .within(Duration::from_secs(600))
                .ok()
                .await
                .context("cannot make the base image")?;
            fs::rename(&partial, &packages)?;
        }
        let container = self.command().args(["from", "scratch"]).ok().await?;
        let container = container.trim();
        self.command()
            .args(["add", "--quiet", container])
            .arg(&packages)
            .arg("/")
            .within(Duration::from_secs(300))
            .ok()
            .await?;
        self.command()
            .args(["commit", "--quiet", "--rm", container, BASE])
            .within(Duration::from_secs(300))
            .ok()
            .await?;
        Ok(())
    }
}

/// The size of an archive's image as a registry would store it.
pub async fn compressed_size(archive: &Path) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    Command::new("tar").args(["--extract", "--file"]).arg(archive).arg("--directory").arg(folder.path()).ok().await?;
    let read = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let blob = |digest: &Value| folder.path().join("blobs").join(digest.as_str().unwrap_or_default().replace(':', "/"));
    let index = read(folder.path().join("index.json"))?;
    let manifest = read(blob(&index["manifests"][0]["digest"]))?;
    let layers = manifest["layers"].as_array().ok_or_else(|| anyhow!("{} has no layers", archive.display()))?;
    Ok(layers.iter().filter_map(|layer| layer["size"].as_u64()).sum())
}

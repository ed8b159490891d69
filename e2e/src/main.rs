//! `e2e`: builds the tools, boots clusters, runs the demo and the stories.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::{Parser, Subcommand};
use e2e::cluster::{Cluster, Options, stop_all, stop_ownerless};
use e2e::git_server::GitServer;
use e2e::progress::{heading, line, timed};
use e2e::tools::Tools;
use e2e::world::World;
use e2e::{cluster, demo, images, soak, stories};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Boots a real cluster from registry packages and runs the stories on it")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the tools of a cluster, where they are not built yet
    Tools,
    /// Print where a built tool is
    Program {
        /// The tool's name, as `helm`
        name: String,
    },
    /// Build the operator's image into target/images/operator.tar
    Image,
    /// The whole story, once, with what a person would see
    Demo {
        /// Leave the cluster running
        #[arg(long)]
        keep: bool,
    },
    /// Run the stories; with KUBECONFIG set on that cluster, those that can
    Test {
        /// Only those whose name contains one of these words
        words: Vec<String>,
    },
    /// Many releases at once, for as long as one likes, while pods and leaders die
    Soak {
        /// How long new releases begin
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// Replays what was chosen
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Boot a cluster and keep it until `e2e down`
    Up,
    /// Take down every cluster that was kept or left behind
    Down,
    /// Write the pods to scrape to a file, for Prometheus
    #[command(hide = true)]
    Targets {
        #[arg(long)]
        kubeconfig: PathBuf,
        #[arg(long)]
        file: PathBuf,
    },
    /// Answer for the names of Services
    #[command(hide = true)]
    Names {
        #[arg(long)]
        kubeconfig: PathBuf,
        #[arg(long)]
        address: SocketAddr,
    },
    /// Serve repositories, for a cluster that was kept
    #[command(hide = true)]
    GitServer {
        #[arg(long)]
        root: PathBuf,
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        settings: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    e2e::crypto();
    let filter = std::env::var("E2E_LOG").unwrap_or_else(|_| "warn".to_owned());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    // A panic must not leave a cluster behind, whether it unwinds or not.
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        show(panic);
        stop_all();
    }));
    let task = Arguments::parse().task;
    let result = tokio::select! {
        result = perform(task) => result,
        name = interrupted() => Err(anyhow!("interrupted by {name}")),
    };
    stop_all();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Tools => {
            tokio::task::spawn_blocking(Tools::ready).await??;
        }
        Task::Program { name } => println!("{}", Tools::as_built()?.program(&name)?.display()),
        Task::Image => {
            let tools = tokio::task::spawn_blocking(Tools::ready).await??;
            heading("operator's image");
            let archive = timed("built", images::operator_archive(&tools, &binary("sluice")?)).await?;
            let size = images::compressed_size(&archive).await?;
            line(format_args!("{} ({}.{} MB compressed)", archive.display(), size / 1_000_000, size / 100_000 % 10));
        }
        Task::Demo { keep } => demo::run(keep).await?,
        Task::Test { words } => {
            let chosen = stories::select(&words)?;
            let tools = tokio::task::spawn_blocking(Tools::ready).await??;
            let world = match std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
                Some(kubeconfig) => World::connect(&tools, Path::new(&kubeconfig)).await?,
                None => World::start(&tools).await?,
            };
            let tally = stories::run(&world, &chosen).await?;
            drop(world);
            println!("\n{}", tally.closing_line());
            if !tally.failed.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Task::Soak { minutes, seed } => {
            let tools = tokio::task::spawn_blocking(Tools::ready).await??;
            let world = World::start(&tools).await?;
            let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
            let length = soak::Length::Time(Duration::from_secs(minutes.saturating_mul(60)));
            if let Err(error) = soak::run(&world, seed, length).await {
                let logs = world.cluster.save_logs("soak").await?;
                line(format_args!("the logs are in {}", logs.display()));
                return Err(error);
            }
        }
        Task::Up => {
            let tools = tokio::task::spawn_blocking(Tools::ready).await??;
            let images = vec![images::demo_archive(&tools).await?];
            let cluster = Cluster::start(&tools, Options { images }).await?;
            line(format_args!("export KUBECONFIG={}", cluster.kubeconfig().display()));
            line(format_args!("the Gateway listens on {}", cluster.gateway_address()));
            cluster.keep()?;
        }
        Task::Down => {
            let count = tokio::task::spawn_blocking(stop_ownerless).await??;
            line(format_args!("clusters taken down: {count}"));
        }
        Task::Names { kubeconfig, address } => {
            cluster::serve_names(cluster::client_of(&kubeconfig).await?, address).await?;
        }
        Task::GitServer { root, address, settings } => {
            let _server = GitServer::restore(root, address, &settings).await?;
            std::future::pending::<()>().await;
        }
        Task::Targets { kubeconfig, file } => {
            cluster::write_targets(cluster::client_of(&kubeconfig).await?, &file).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A program of the project, built beside this one.
fn binary(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// Returns when somebody wants the harness to end.
async fn interrupted() -> &'static str {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "Ctrl-C",
        _ = terminate.recv() => "SIGTERM",
    }
}

//! The `sluice` program: the operator, and what people type beside it.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use sluice::cli::{self, Exit};
use sluice::controllers::{OperatorArgs, operator};
use sluice::telemetry;

/// Progressive delivery for Kubernetes that git can audit.
#[derive(Parser)]
#[command(name = "sluice", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator
    Operator(OperatorArgs),
    /// Check manifests as the operator and its API server would, before any cluster sees them
    Lint(cli::lint::Arguments),
    /// Show what would happen to Rollouts in manifests, step by step, with times
    Plan(cli::plan::Arguments),
    /// Run a Rollout in a simulated world, with faults on request, and write a real log of it
    Rehearse(cli::rehearse::Arguments),
    /// Show a ledger as a timeline
    Log(cli::log::Arguments),
    /// Check a ledger: that every entry is whole, in its place and by its writer
    Verify(cli::verify::Arguments),
    /// Judge every analysis that a ledger records again, from its evidence
    Replay(cli::replay::Arguments),
    /// Print the custom resource definitions
    Crds(cli::crds::Arguments),
    /// Ask an HTTP address until it answers well
    Probe(cli::probe::Arguments),
    /// Print a completion script
    Completion {
        /// The shell it is for
        #[arg(value_enum)]
        shell: Shell,
    },
}

fn main() -> ExitCode {
    // The one TLS provider, before anything may ask for it.
    let installed = rustls::crypto::ring::default_provider().install_default();
    debug_assert!(installed.is_ok(), "nothing installs a provider before main");
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return cli::exit::usage(&error).into(),
    };
    match run(arguments.command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            Exit::Error.into()
        }
    }
}

fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Completion { shell } => {
            cli::completion::script(Arguments::command(), "sluice", shell, &mut io::stdout().lock())?;
            Ok(Exit::Reached)
        }
        Command::Operator(arguments) => {
            let filter = std::env::var("SLUICE_LOG").unwrap_or_else(|_| telemetry::DEFAULT_LOG_FILTER.to_owned());
            telemetry::init_logs(&filter)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(operator::run(arguments))?;
            Ok(Exit::Reached)
        }
        Command::Crds(arguments) => {
            cli::crds::run(&arguments, &mut io::stdout().lock())?;
            Ok(Exit::Reached)
        }
        Command::Probe(arguments) => Ok(cli::probe::run(&arguments, &mut io::stdout().lock())?),
        Command::Lint(arguments) => Ok(cli::lint::run(&arguments)?),
        Command::Plan(arguments) => Ok(cli::plan::run(&arguments)?),
        Command::Rehearse(arguments) => Ok(cli::rehearse::run(&arguments)?),
        Command::Log(arguments) => Ok(cli::log::run(&arguments)?),
        Command::Verify(arguments) => Ok(cli::verify::run(&arguments)?),
        Command::Replay(arguments) => Ok(cli::replay::run(&arguments)?),
    }
}

//! The kubectl plugin: `kubectl rollout-status`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use sluice::cli::rollout_status::command::{Arguments, CommandError, run};
use sluice::cli::{Exit, exit};

fn main() -> ExitCode {
    // The one TLS provider, before anything may ask for it.
    let installed = rustls::crypto::ring::default_provider().install_default();
    debug_assert!(installed.is_ok(), "nothing installs a provider before main");
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return exit::usage(&error).into(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&CommandError::Output(error)).into(),
    };
    match runtime.block_on(run(arguments)) {
        Ok(exit) => exit.into(),
        // Whoever closed the pipe has read enough.
        Err(CommandError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Reached.into(),
        Err(error) => failed(&error).into(),
    }
}

fn failed(error: &CommandError) -> Exit {
    let _ = writeln!(io::stderr(), "error: {error}");
    Exit::Error
}

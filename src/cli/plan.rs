//! `sluice plan`: what would happen, step by step, with times.

use std::path::PathBuf;

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What `sluice plan` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// A file with manifests, a directory of them, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub filename: PathBuf,
    /// How the result is printed
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub output: Output,
}

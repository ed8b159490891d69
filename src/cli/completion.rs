//! Completion scripts, made from the same definitions that parse the arguments.

use std::io::{self, Write};

use clap_complete::Shell;

/// The script that teaches `shell` to complete `program`.
///
/// # Errors
/// When it cannot be written.
pub fn script(mut command: clap::Command, program: &str, shell: Shell, out: &mut impl Write) -> io::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, program, &mut text);
    out.write_all(&text)
}

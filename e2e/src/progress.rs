//! What a person at the terminal sees while the harness works: headings, steps and times, in plain lines.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::tools::project;

/// A title above the lines of one phase.
pub fn heading(text: &str) {
    println!("\n== {text}");
}

/// One line of progress.
pub fn line(text: impl std::fmt::Display) {
    println!("   {text}");
}

/// A duration as a person says it: `0.4 s`, `12 s`, `3 min 05 s`.
#[must_use]
pub fn spoken(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=9 => format!("{:.1} s", duration.as_secs_f64()),
        10..=99 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// Keeps the figures of a task in `target/<task>/summary.json`; gives the file.
pub fn keep_figures(task: &str, figures: &serde_json::Value) -> anyhow::Result<PathBuf> {
    let folder = project().join("target").join(task);
    fs::create_dir_all(&folder)?;
    let file = folder.join("summary.json");
    fs::write(&file, serde_json::to_string_pretty(figures)?)?;
    Ok(file)
}

/// Runs `work`, and prints what it was and how long it took.
pub async fn timed<T>(what: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let begun = Instant::now();
    let result = work.await;
    match &result {
        Ok(_) => line(format_args!("{what}  ({})", spoken(begun.elapsed()))),
        Err(_) => line(format_args!("{what}  FAILED after {}", spoken(begun.elapsed()))),
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_a_person_says_them() {
        assert_eq!(spoken(Duration::from_millis(430)), "0.4 s");
        assert_eq!(spoken(Duration::from_secs(12)), "12 s");
        assert_eq!(spoken(Duration::from_secs(185)), "3 min 05 s");
    }
}

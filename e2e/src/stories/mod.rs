//! What users live through, each as a story on a whole cluster with live traffic.
//!
//! A story asserts what a user would see: weights measured by traffic, commits, conditions, exit codes. It waits
//! for conditions, each with a bound, and leaves its namespace behind for the logs.

mod admission;
mod endings;
mod faults;
mod forge;
mod git;
mod ledger;
mod people;
mod releases;
pub(crate) mod strategies;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::progress::{heading, line, spoken};
use crate::world::World;

/// One story.
pub struct Story {
    /// Its name, as a sentence.
    pub name: &'static str,
    bound: Duration,
    /// It breaks or needs components of the harness's own, so it runs only on a cluster that the harness booted.
    breaks_components: bool,
    run: for<'w> fn(&'w World) -> LocalBoxFuture<'w, Result<()>>,
}

macro_rules! story {
    ($bound:expr, $module:ident :: $name:ident) => {
        Story {
            name: stringify!($name),
            bound: Duration::from_secs($bound),
            breaks_components: false,
            run: |world| Box::pin($module::$name(world)),
        }
    };
}

/// All of them, in the order in which they run.
pub fn all() -> Vec<Story> {
    vec![
        story!(180, admission::bad_objects_are_refused_with_the_field_and_the_cure),
        story!(180, releases::a_good_release_is_promoted_step_by_step),
        story!(180, releases::a_bad_release_is_aborted_by_its_metrics_and_its_revert_makes_it_ready),
        story!(240, strategies::blue_green_switches_at_once_and_back_when_the_new_side_fails),
        story!(240, strategies::a_canary_without_routes_moves_by_its_pods),
        story!(180, git::a_revert_stops_a_release_half_way),
        story!(240, git::git_is_down_during_an_abort),
        story!(240, git::a_fresh_cluster_does_not_roll_out_what_was_aborted),
        story!(180, git::a_repository_that_cannot_be_read_says_so_and_recovers),
        story!(240, forge::a_pull_request_is_merged_and_released_over_https_and_over_ssh),
        story!(240, forge::a_verdict_opens_a_pull_request_and_its_merge_makes_the_rollout_ready),
        story!(180, ledger::the_ledger_has_a_repository_of_its_own_a_key_and_a_mirror),
        story!(180, ledger::history_is_forced_back_in_the_middle_of_a_canary),
        Story {
            breaks_components: true,
            ..story!(300, ledger::two_clusters_on_one_path_have_a_log_each_and_revert_together)
        },
        story!(300, endings::a_deployment_is_adopted_and_handed_back),
        story!(300, endings::nothing_is_left_steered_by_an_uninstallation_or_a_deletion),
        story!(180, releases::two_rollouts_move_at_the_same_time),
        story!(900, faults::twenty_releases_five_at_once_while_pods_and_leaders_die),
        story!(180, faults::a_hand_edit_of_the_route_is_put_back),
        story!(180, faults::an_invalid_rollout_stalls_and_recovers),
        story!(240, people::people_pause_resume_abort_retry_and_promote),
        story!(300, faults::the_leader_is_killed_at_each_transition),
        Story { breaks_components: true, ..story!(300, faults::prometheus_is_away_for_two_minutes) },
    ]
}

/// How the stories ended.
#[derive(Debug, Default)]
pub struct Tally {
    /// Stories that ended well.
    pub passed: usize,
    /// The names of the others.
    pub failed: Vec<&'static str>,
}

impl Tally {
    /// The closing line, which is alone on its line.
    #[must_use]
    pub fn closing_line(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failed.len())
    }
}

/// The stories whose name contains one of the words; all of them when there are no words. A word that fits no story
/// is an error: a run that tests nothing must not look like one that passed.
pub fn select(words: &[String]) -> Result<Vec<Story>> {
    let mut stories = all();
    if let Some(word) = words.iter().find(|word| !stories.iter().any(|story| story.name.contains(word.as_str()))) {
        let names: Vec<&str> = stories.iter().map(|story| story.name).collect();
        return Err(anyhow!("no story's name contains {word}; there are\n  {}", names.join("\n  ")));
    }
    stories.retain(|story| words.is_empty() || words.iter().any(|word| story.name.contains(word.as_str())));
    Ok(stories)
}

/// Runs stories in order and goes on after one that fails. Its logs are kept, and what it broke is mended.
pub async fn run(world: &World, stories: &[Story]) -> Result<Tally> {
    heading(&format!("stories: {}", stories.len()));
    let mut tally = Tally::default();
    for story in stories {
        if story.breaks_components && !world.cluster.is_own() {
            line(format_args!("{} breaks components: not run on somebody else's cluster", story.name));
            continue;
        }
        let begun = Instant::now();
        match bounded(world, story).await {
            Ok(()) => {
                tally.passed += 1;
                line(format_args!("ok      {}  ({})", story.name, spoken(begun.elapsed())));
            }
            Err(error) => {
                tally.failed.push(story.name);
                line(format_args!("FAILED  {}  ({}): {error:#}", story.name, spoken(begun.elapsed())));
                match world.cluster.save_logs(story.name).await {
                    Ok(folder) => line(format_args!("        its logs are in {}", folder.display())),
                    Err(error) => line(format_args!("        its logs could not be saved: {error:#}")),
                }
            }
        }
        world.mend().await?;
    }
    Ok(tally)
}

async fn bounded(world: &World, story: &Story) -> Result<()> {
    let run = AssertUnwindSafe((story.run)(world)).catch_unwind();
    match tokio::time::timeout(story.bound, run).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow!("it panicked; the message is above")),
        Err(_) => Err(anyhow!("it did not end within {}", spoken(story.bound))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stories_are_chosen_by_a_part_of_their_name() {
        let names = |words: &[&str]| -> Result<Vec<&'static str>> {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            Ok(select(&words)?.iter().map(|story| story.name).collect())
        };
        assert_eq!(names(&[]).unwrap().len(), all().len());
        assert_eq!(names(&["git_is_down"]).unwrap(), ["git_is_down_during_an_abort"]);
        let error = names(&["typo"]).unwrap_err().to_string();
        assert!(error.contains("typo") && error.contains("git_is_down"), "{error}");
    }

    #[test]
    fn no_two_stories_have_the_same_name() {
        let mut names: Vec<&str> = all().iter().map(|story| story.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all().len());
    }

    #[test]
    fn the_closing_line_counts() {
        let tally = Tally { passed: 2, failed: vec!["git_is_down"] };
        assert_eq!(tally.closing_line(), "2 passed, 1 failed");
    }
}

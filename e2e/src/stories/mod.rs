//! What users live through, each as a story on a whole cluster with live traffic.
//!
//! A story asserts what a user would see: weights measured by traffic, commits, conditions, exit codes. It waits
//! for conditions, each with a bound, and leaves its namespace behind for the logs.

mod faults;
mod git;
mod people;
mod releases;

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::progress::{line, spoken};
use crate::world::World;

/// One story.
pub struct Story {
    /// Its name, as a sentence.
    pub name: &'static str,
    bound: Duration,
    run: for<'w> fn(&'w World) -> Pin<Box<dyn Future<Output = Result<()>> + 'w>>,
}

macro_rules! story {
    ($bound:expr, $module:ident :: $name:ident) => {
        Story { name: stringify!($name), bound: Duration::from_secs($bound), run: |world| Box::pin($module::$name(world)) }
    };
}

/// All of them, in the order in which they run.
pub fn all() -> Vec<Story> {
    vec![
        story!(180, releases::a_good_release_is_promoted_step_by_step),
        story!(180, releases::a_bad_release_is_aborted_by_its_metrics_and_its_revert_makes_it_ready),
        story!(180, git::a_revert_stops_a_release_half_way),
        story!(240, git::git_is_down_during_an_abort),
        story!(240, git::a_fresh_cluster_does_not_roll_out_what_was_aborted),
        story!(180, git::a_repository_that_cannot_be_read_says_so_and_recovers),
        story!(180, releases::two_rollouts_move_at_the_same_time),
        story!(180, faults::a_hand_edit_of_the_route_is_put_back),
        story!(180, faults::an_invalid_rollout_stalls_and_recovers),
        story!(240, people::people_pause_resume_abort_retry_and_promote),
        story!(300, faults::the_leader_is_killed_at_each_transition),
        story!(300, faults::prometheus_is_away_for_two_minutes),
    ]
}

/// Runs the stories whose name contains `filter`; goes on after a failure. Gives how many passed and failed.
pub async fn run(world: &World, filter: &str) -> (usize, usize) {
    let (mut passed, mut failed) = (0, 0);
    for story in all().into_iter().filter(|story| story.name.contains(filter)) {
        let begun = Instant::now();
        let result = match tokio::time::timeout(story.bound, (story.run)(world)).await {
            Ok(result) => result,
            Err(_) => Err(anyhow!("it did not end within {:?}", story.bound)),
        };
        match result {
            Ok(()) => {
                passed += 1;
                line(format_args!("ok      {} ({})", story.name, spoken(begun.elapsed())));
            }
            Err(error) => {
                failed += 1;
                line(format_args!("FAILED  {} ({}): {error:#}", story.name, spoken(begun.elapsed())));
                match world.cluster.save_logs(story.name).await {
                    Ok(folder) => line(format_args!("        its logs are in {}", folder.display())),
                    Err(error) => line(format_args!("        its logs could not be saved: {error:#}")),
                }
            }
        }
    }
    (passed, failed)
}

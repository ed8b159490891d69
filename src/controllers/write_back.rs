//! When a verdict aborts, git is put back: a pull request or a commit in which only the Rollout's own fields change.

#[allow(dead_code, reason = "used from the loop, which follows")]
mod positions;
#[allow(dead_code, reason = "used from the loop, which follows")]
mod restore;
#[allow(dead_code, reason = "used from the loop, which follows")]
mod splice;

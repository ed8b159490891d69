//! What a ledger says after some commit, from our own copy of it: for those who are told of each entry.
//!
//! Nobody is asked, and nothing is written. The copy belongs to the ledger's writer, who is not held up: git reads beside
//! it.

use super::RemoteAddress;
use super::archive::{chain, is_object_name};
use super::cache::GitCache;
use super::command::Git;
use super::epoch::Epoch;
use super::error::Result;
use super::history::{Commit, History, Segment};
use super::ledger::{exists, is_ancestor};
use crate::api::names;

impl GitCache {
    /// The commits up to the tip of a ledger that came after another one, oldest first and at most `most`: across
    /// epochs, as far as the copy has them, and from the very first one when there is no other one. None while the copy
    /// does not hold the tip.
    ///
    /// A commit that is in none of these epochs is not known any more. Then it begins with the present epoch; in the
    /// first one there is no such beginning, and nothing is answered.
    pub async fn entries(&self, address: &RemoteAddress, wanted: Segment, most: usize) -> Result<Option<Vec<Commit>>> {
        let stores = self.stores(address);
        let (git, is_there) = {
            let store = stores.ledger.lock().await;
            (store.git(), store.directory.join("HEAD").exists())
        };
        if !is_there || !is_object_name(&wanted.tip) || !exists(&git, &wanted.tip).await? {
            return Ok(None);
        }
        let segments = segments(&git, wanted).await?;
        let mut commits = Vec::new();
        if !segments.is_empty() {
            let mut history = History::of(&git, segments).await?;
            while commits.len() < most
                && let Some(commit) = history.next().await?
            {
                commits.push(commit);
            }
        }
        Ok(Some(commits))
    }
}

async fn segments(git: &Git, wanted: Segment) -> Result<Vec<Segment>> {
    let Some(after) = &wanted.after else { return Ok(chain(git, &wanted.branch, &wanted.tip).await?.segments) };
    let is_here = is_object_name(after) && exists(git, after).await?;
    // Nearly always: so a long history is not searched for its beginning each time.
    if is_here && is_ancestor(git, after, &wanted.tip).await? {
        return Ok(vec![wanted]);
    }
    let mut segments = chain(git, &wanted.branch, &wanted.tip).await?.segments;
    for index in (0..segments.len()).rev() {
        let Some(segment) = segments.get_mut(index).filter(|_| is_here) else { break };
        if is_ancestor(git, after, &segment.tip).await? {
            segment.after = Some(after.clone());
            return Ok(segments.split_off(index));
        }
    }
    let cluster = wanted.branch.trim_start_matches(names::LOG_BRANCH_PREFIX).split('@').next().unwrap_or_default();
    let begins_here = Epoch::parse(cluster, &wanted.branch).is_some_and(|epoch| epoch != Epoch::First);
    Ok(if begins_here { vec![Segment { after: None, ..wanted }] } else { Vec::new() })
}

//! Labels, annotations and generated names, in one place so that writer and reader cannot disagree.

use sha2::{Digest, Sha256};

/// On ReplicaSets and their pods, and in the selectors of Services: the revision a pod belongs to.
pub const REVISION: &str = "sluice.dev/revision";
/// On everything a Rollout owns: the Rollout's name.
pub const ROLLOUT: &str = "sluice.dev/rollout";
/// On applied objects: the commit that last changed the object's declaration.
pub const SOURCE_COMMIT: &str = "sluice.dev/source-commit";
/// On applied objects whose declaration changed when the branch was not simply moved forward: the commit it was moved
/// from, as a [`SourceHistory`](super::SourceHistory).
pub const SOURCE_HISTORY: &str = "sluice.dev/source-history";
/// On applied objects: SHA-256 of the declaration, so that an unchanged one is not written again.
pub const SOURCE_DIGEST: &str = "sluice.dev/source-digest";
/// On applied objects: `namespace/name` of the DeployRepo that applied it.
pub const DEPLOY_REPO: &str = "sluice.dev/deploy-repo";
/// On applied objects: `disabled` keeps the object when it leaves the repository.
pub const PRUNE: &str = "sluice.dev/prune";
/// On DeployRepos: a new value asks the operator to look at the branch now.
pub const REQUESTED_AT: &str = "sluice.dev/requested-at";
/// On ReplicaSets: the full SHA-256 (version 1 of the algorithm) of the pod template.
pub const TEMPLATE_HASH_V1: &str = "sluice.dev/template-hash-v1";
/// The finalizer of Rollouts: one that is deleted stays until what it steered is handed back.
pub const HAND_BACK: &str = "sluice.dev/hand-back";
/// The field manager of everything the rollout controller writes.
pub const FIELD_MANAGER: &str = "sluice";
/// The field manager of the sync, apart from the controller's so that each owns only its own fields.
pub const SYNC_FIELD_MANAGER: &str = "sluice-sync";
/// Where the ledger's branches live; the cluster's name follows.
pub const LOG_BRANCH_PREFIX: &str = "rollout-log/";

/// Longest name of a ReplicaSet that leaves the pods' names (a dash and five letters more) untruncated:
/// the API server cuts a generated name's base at 58 characters.
pub const MAX_REPLICA_SET_NAME: usize = 57;
/// Letters of a revision's name.
pub const REVISION_LENGTH: usize = 10;
/// Longest name of a Rollout whose ReplicaSets (`name-revision`) still fit.
pub const MAX_ROLLOUT_NAME: usize = MAX_REPLICA_SET_NAME - REVISION_LENGTH - 1;

/// The name of the ReplicaSet of one revision.
pub fn replica_set(rollout: &str, revision: &str) -> String {
    format!("{rollout}-{revision}")
}

/// The name of the AnalysisRun for one (revision, attempt, stage): derived, so that a second creation after
/// a lost answer is recognised instead of doubled. `uid` keeps a re-created Rollout's runs apart.
/// At most 63 letters: a long rollout name is cut and told apart by a hash.
pub fn analysis_run(rollout: &str, uid: &str, revision: &str, attempt: i32, stage: &str) -> String {
    let digest = hex(&Sha256::digest(format!("{uid}/{revision}/{attempt}/{stage}")));
    let tail = format!("-{revision}-{attempt}-{stage}-{}", &digest[..6]);
    let room = 63usize.saturating_sub(tail.len());
    let head: String = rollout.chars().take(room).collect();
    format!("{}{tail}", head.trim_end_matches(['-', '.']))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

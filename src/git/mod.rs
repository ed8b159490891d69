//! The only room that runs git: the bare cache, reading sources, writing ledgers.
//!
//! It runs the `git` executable (2.39 or newer) and nothing else, in directories of its own, with an
//! environment of its own. It knows no cluster: what it reads it returns, what it writes it is given.

mod address;
mod archive;
mod cache;
mod change;
mod command;
mod descent;
mod entries;
mod epoch;
mod error;
mod history;
mod import;
mod ledger;
mod ledger_entry;
mod push_policy;
mod signing;
mod source;
#[cfg(test)]
mod tests;
mod verify;

pub use address::{Access, Credentials, RemoteAddress};
pub use archive::{Archive, ArchivedBranch, ArchivedLedger, Chain};
pub use cache::{GitCache, Repository, Timeouts, check_executable};
pub use change::FileChange;
pub use descent::Descent;
pub use epoch::Epoch;
pub use error::{GitError, Missing, Rejection, Result};
pub use history::{Change, Commit, Content, History, Person, Segment, Trailers, TreeEntry};
pub use ledger::{Appended, Fork, Ledger, LedgerContents, LedgerPolicy, LocalLedger, RecordedRollout};
pub use ledger_entry::{Evidence, LedgerEntry, Place, state_document};
pub use push_policy::PushPolicy;
pub use signing::Signer;
pub use source::{Before, ReadLimits, Source, SourceFile};
pub use verify::{ALLOWED_SIGNERS, Fault, Report, Signature, VerifyOptions, verify};

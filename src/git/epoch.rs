//! The branches one ledger is made of: the first one, and the epochs after it. Pure.
//!
//! A later epoch is a branch of its own, so that old ones can be archived whole and a fork never needs a force. The
//! name begins with that of the first branch and an `@`, which no cluster's name can hold: a branch below the first
//! one (`rollout-log/prod/2026q4`) could not exist beside it.

use chrono::{DateTime, Datelike, Utc};

use super::ledger_entry::SCHEMA;
use crate::api::names;

/// One branch of a ledger. Later ones are greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Epoch {
    /// `rollout-log/<cluster>`.
    #[default]
    First,
    /// `rollout-log/<cluster>@<year>q<quarter>`, and `.<number>` from the second of a quarter on.
    Later {
        /// The year.
        year: i32,
        /// The quarter, 1 to 4.
        quarter: u32,
        /// Which one of this quarter, from 1.
        number: u32,
    },
}

impl Epoch {
    /// The first epoch of the quarter in which this moment lies, by UTC.
    pub fn of(at: DateTime<Utc>) -> Self {
        Self::Later { year: at.year(), quarter: at.month0() / 3 + 1, number: 1 }
    }

    /// The one that is begun after this one at this moment; always greater than this one.
    pub fn next(self, at: DateTime<Utc>) -> Self {
        let of = Self::of(at);
        match self {
            Self::Later { year, quarter, number } if of <= self => {
                Self::Later { year, quarter, number: number.saturating_add(1) }
            }
            _ => of,
        }
    }

    /// `2026q4`, `2026q4.2`; nothing for the first one.
    pub fn name(self) -> Option<String> {
        match self {
            Self::First => None,
            Self::Later { year, quarter, number: 1 } => Some(format!("{year}q{quarter}")),
            Self::Later { year, quarter, number } => Some(format!("{year}q{quarter}.{number}")),
        }
    }

    /// The branch of a cluster's ledger.
    pub fn branch(self, cluster: &str) -> String {
        let first = format!("{}{cluster}", names::LOG_BRANCH_PREFIX);
        match self.name() {
            None => first,
            Some(name) => format!("{first}@{name}"),
        }
    }

    /// Which epoch of this cluster's ledger a branch is, if it is one.
    pub fn parse(cluster: &str, branch: &str) -> Option<Self> {
        let name = match branch.strip_prefix(names::LOG_BRANCH_PREFIX)?.strip_prefix(cluster)? {
            "" => return Some(Self::First),
            rest => rest.strip_prefix('@')?,
        };
        let (year, rest) = name.split_once('q')?;
        let (quarter, number) = rest.split_once('.').unwrap_or((rest, "1"));
        let (year, quarter, number) = (year.parse().ok()?, quarter.parse().ok()?, number.parse().ok()?);
        let epoch = Self::Later { year, quarter, number };
        // One spelling each: `2026q04` is nobody's.
        ((1..=4).contains(&quarter) && epoch.name().as_deref() == Some(name)).then_some(epoch)
    }
}

/// The message of the commit that begins an epoch after the first one. `previous` is the branch before and its last
/// tip as the writer knows it; `fork` is what was found in its place.
pub(super) fn message(
    cluster: &str,
    name: &str,
    (previous, tip): (&str, &str),
    fork: Option<&str>,
    operator: &str,
) -> String {
    let (why, fork) = match fork {
        None => (format!("{previous} ends with its quarter; this branch goes on from there."), String::new()),
        Some(found) => (
            format!("{previous} is not as it was left; this branch goes on from what was written last."),
            format!("Rollout-Fork: {found}\n"),
        ),
    };
    format!(
        "{cluster}: epoch {name}\n\n{why}\n\nRollout-Schema: {SCHEMA}\nRollout-Epoch: {name}\n\
         Rollout-Prev-Epoch: {previous} {tip}\n{fork}Rollout-Operator: {operator}\n",
    )
}

#[cfg(test)]
mod unit {
    use super::Epoch;
    use chrono::{DateTime, Utc};

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn names_and_branches_lead_back_to_the_epoch() {
        let second = Epoch::Later { year: 2026, quarter: 4, number: 2 };
        for (epoch, branch) in [
            (Epoch::First, "rollout-log/prod"),
            (Epoch::of(at("2026-11-25T20:00:00Z")), "rollout-log/prod@2026q4"),
            (Epoch::of(at("2027-01-01T00:00:00Z")), "rollout-log/prod@2027q1"),
            (second, "rollout-log/prod@2026q4.2"),
        ] {
            assert_eq!(epoch.branch("prod"), branch);
            assert_eq!(Epoch::parse("prod", branch), Some(epoch));
        }
        for foreign in [
            "main",
            "rollout-log/production",
            "rollout-log/prod.2026q4",
            "rollout-log/prod@",
            "rollout-log/prod@2026q5",
            "rollout-log/prod@2026q04",
            "rollout-log/prod@2026q4.1",
            "rollout-log/prod@2026q4.02",
            "rollout-log/prod/2026q4",
        ] {
            assert_eq!(Epoch::parse("prod", foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_next_epoch_is_always_later_whatever_the_clock_says() {
        let november = at("2026-11-25T20:00:00Z");
        let mut epoch = Epoch::First;
        for (moment, name) in [
            (november, "2026q4"),
            (november, "2026q4.2"),
            (at("2026-02-01T00:00:00Z"), "2026q4.3"),
            (at("2027-05-01T00:00:00Z"), "2027q2"),
        ] {
            let next = epoch.next(moment);
            assert!(next > epoch);
            assert_eq!(next.name().as_deref(), Some(name));
            epoch = next;
        }
    }
}

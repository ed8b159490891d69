//! When the ledger is pushed: rarely enough for the server, at once for what people wait for.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Decides when the next push may go out.
///
/// At most six in any minute, for that is what large servers advise. Ordinary transitions are gathered for ten
/// seconds and leave one of the six for an abort or a promotion, which goes out at once.
#[derive(Clone, Debug, Default)]
pub struct PushPolicy {
    recent: VecDeque<Instant>,
}

impl PushPolicy {
    /// Least time between two pushes of ordinary transitions.
    pub const GATHER: Duration = Duration::from_secs(10);
    /// The span in which pushes are counted.
    pub const SPAN: Duration = Duration::from_secs(60);
    /// Pushes in that span.
    pub const MOST: usize = 6;

    /// When the next push may go out; `now` when at once.
    pub fn due(&self, now: Instant, urgent: bool) -> Instant {
        let most = if urgent { Self::MOST } else { Self::MOST - 1 };
        let crowded = self.recent.len().checked_sub(most).and_then(|at| self.recent.get(at));
        let by_count = crowded.map(|push| *push + Self::SPAN);
        let by_gap = self.recent.back().filter(|_| !urgent).map(|push| *push + Self::GATHER);
        [by_count, by_gap].into_iter().flatten().fold(now, Instant::max)
    }

    /// A push went out, whatever came of it.
    pub fn pushed(&mut self, now: Instant) {
        self.recent.push_back(now);
        while self.recent.len() > Self::MOST {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod unit {
    use super::PushPolicy;
    use std::time::{Duration, Instant};

    #[test]
    fn ordinary_transitions_are_gathered_and_urgent_ones_are_not() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut policy = PushPolicy::default();
        assert_eq!(policy.due(at(0), false), at(0), "the first goes out at once");
        policy.pushed(at(0));
        assert_eq!(policy.due(at(3), false), at(10));
        assert_eq!(policy.due(at(3), true), at(3));
        assert_eq!(policy.due(at(30), false), at(30));
    }

    #[test]
    fn never_more_than_six_in_any_minute() {
        let start = Instant::now();
        for urgent_every in [1, 2, 3, 7, 1000] {
            let mut policy = PushPolicy::default();
            let mut pushes = Vec::new();
            let mut now = start;
            for turn in 0..200u64 {
                now = policy.due(now + Duration::from_millis(700), turn % urgent_every == 0);
                policy.pushed(now);
                pushes.push(now);
            }
            for window in pushes.windows(PushPolicy::MOST + 1) {
                assert!(window[PushPolicy::MOST] - window[0] >= PushPolicy::SPAN, "every {urgent_every}");
            }
        }
    }

    #[test]
    fn a_steady_stream_of_ordinary_ones_leaves_room_for_an_abort() {
        let start = Instant::now();
        let mut policy = PushPolicy::default();
        let mut now = start;
        for _ in 0..50 {
            now = policy.due(now, false);
            policy.pushed(now);
        }
        let just_after = now + Duration::from_millis(1);
        assert_eq!(policy.due(just_after, true), just_after);
    }
}

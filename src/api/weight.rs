//! How a canary weight in percent is written into one rule of a route.

/// The (stable, canary) weights that stand for `percent` of a rule in which the two have `base` together.
///
/// `base` is what the two had together when other backends share the rule, and 100 when they are alone.
/// Rounds to the nearest, but a share strictly between 0 and 100 never becomes all or nothing when the base
/// has room for both; a base of 1 stays with stable until 100. `percent` is clamped to 0..=100, and the two always
/// sum to `base`.
pub fn split(base: i32, percent: i32) -> (i32, i32) {
    let base = base.max(1);
    let percent = percent.clamp(0, 100);
    let exact = (i64::from(base) * i64::from(percent) + 50) / 100;
    let mut canary = i32::try_from(exact).unwrap_or(base);
    if percent > 0 && percent < 100 {
        // A base of 1 has no room for both: stable keeps it until the canary is to have everything.
        canary = if base >= 2 { canary.clamp(1, base - 1) } else { 0 };
    }
    (base - canary, canary)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn sums_to_the_base_and_keeps_both_sides() {
        for base in 1..=200 {
            for percent in 0..=100 {
                let (stable, canary) = split(base, percent);
                assert_eq!(stable + canary, base);
                assert!(stable >= 0 && canary >= 0);
                if base >= 2 && percent > 0 && percent < 100 {
                    assert!(stable > 0 && canary > 0, "base {base}, {percent} %");
                }
            }
        }
        assert_eq!(split(100, 20), (80, 20));
        assert_eq!(split(100, 0), (100, 0));
        assert_eq!(split(90, 100), (0, 90));
        assert_eq!(split(0, 100), (0, 1), "a rule never sums to 0");
        assert_eq!((split(1, 50), split(1, 99)), ((1, 0), (1, 0)), "half of 1 is not all of it");
    }
}

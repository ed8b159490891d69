//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// How often a condition is looked at. Short beside anything that is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// Looks until `look` succeeds, and gives what it gave. After `bound` it fails with `what` was waited for and the
/// last reason why it was not so.
pub async fn wait_for<T, F>(what: &str, bound: Duration, mut look: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<T>,
{
    let begun = Instant::now();
    let mut last = anyhow!("it was never looked at");
    loop {
        let left = bound.saturating_sub(begun.elapsed());
        match tokio::time::timeout(left, look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(reason)) => last = reason,
            Err(_) => return Err(last).with_context(|| format!("waited {bound:?} for {what}")),
        }
        if begun.elapsed() > bound {
            return Err(last).with_context(|| format!("waited {bound:?} for {what}"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_gives_what_was_found() {
        let mut looks = 0;
        let found = wait_for("three", Duration::from_secs(5), async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(anyhow!("only {looks}")) }
        })
        .await
        .unwrap();
        assert_eq!(found, 3);
    }

    #[tokio::test]
    async fn it_ends_in_time_and_says_what_for_and_why() {
        let error = wait_for::<(), _>("rain", Duration::from_millis(250), async || Err(anyhow!("the sky is blue")))
            .await
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("rain") && text.contains("the sky is blue"), "{text}");
        // Also when a look itself never ends.
        let begun = Instant::now();
        wait_for::<(), _>("ever", Duration::from_millis(250), std::future::pending).await.unwrap_err();
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

//! Telling somebody about a push, the way the known hosts do.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::Webhook;

const BODY: &str = "{}";

/// Tells it in the background: a host never keeps a push waiting for whom it tells, nor tells it twice.
pub(super) fn tell(client: &reqwest::Client, webhook: &Webhook) {
    let mut request = client
        .post(&webhook.url)
        .header("content-type", "application/json")
        .header("x-github-event", "push")
        .body(BODY);
    if let Some(signature) = webhook.token.as_deref().and_then(signature) {
        request = request.header("x-hub-signature-256", signature);
    }
    let url = webhook.url.clone();
    tokio::spawn(async move {
        match request.send().await {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => tracing::warn!(url, status = %answer.status(), "the webhook was refused"),
            Err(error) => tracing::warn!(url, "the webhook was not delivered: {error}"),
        }
    });
}

fn signature(token: &str) -> Option<String> {
    // A key of any length will do.
    let mut mac = Hmac::<Sha256>::new_from_slice(token.as_bytes()).ok()?;
    mac.update(BODY.as_bytes());
    let digest: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("sha256={digest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_of_openssl() {
        // printf '{}' | openssl dgst -sha256 -hmac hush
        let wanted = "sha256=505c20ac604f662945b662a1f13a9ca2f03bf0b1986f505d5aef48e10da8c918";
        assert_eq!(signature("hush").as_deref(), Some(wanted));
    }
}

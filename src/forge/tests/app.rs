//! A GitHub that gives tokens to Apps.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{TimeDelta, Utc};
use rustls::SignatureScheme;
use serde_json::{Value, json};

use super::*;
use crate::forge::{AppTokens, ForgeError, GitHubApp};

/// A key that opens nothing: made for this test.
const KEY: &str = include_str!("app_key.pem");
const PUBLIC_KEY: &[u8] = include_bytes!("app_key.public.der");

fn app() -> GitHubApp {
    GitHubApp { app: "4711".into(), installation: "99".into(), private_key: KEY.into() }
}

fn location(stub: &Stub, name: &str) -> Location {
    Location::new(ForgeKind::GitHub, None, &format!("http://{}/shop/{name}", stub.address)).unwrap()
}

/// Gives a token, if the word holds, that lasts for so long.
async fn github(lasts: TimeDelta) -> Stub {
    Stub::start(move |asked| {
        assert!(asked.is("POST", "/api/v3/app/installations/99/access_tokens"), "{asked:?}");
        let word = asked.header("authorization").strip_prefix("Bearer ").unwrap();
        let (signed, signature) = word.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        let (_, rsa) =
            algorithms.mapping.iter().find(|(scheme, _)| *scheme == SignatureScheme::RSA_PKCS1_SHA256).unwrap();
        assert!(rsa.iter().any(|rsa| rsa.verify_signature(PUBLIC_KEY, signed.as_bytes(), &signature).is_ok()));
        let part = |text: &str| serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        assert_eq!(part(header), json!({"alg": "RS256", "typ": "JWT"}));
        let claims = part(claims);
        let now = Utc::now().timestamp();
        let (begin, end) = (claims["iat"].as_i64().unwrap(), claims["exp"].as_i64().unwrap());
        assert!(begin < now && end > now + 60 && end <= now + 600, "{claims}");
        assert_eq!(claims["iss"], "4711");
        let name = asked.body["repositories"][0].as_str().unwrap();
        json(201, json!({"token": format!("{TOKEN}-{name}"), "expires_at": (Utc::now() + lasts).to_rfc3339()}))
    })
    .await
}

#[tokio::test]
async fn a_token_is_asked_for_once_an_hour_and_opens_one_repository() {
    let stub = github(TimeDelta::hours(1)).await;
    let tokens = AppTokens::default();
    for _ in 0..3 {
        let password = tokens.password(&app(), &location(&stub, "deploy"), None).await.unwrap();
        assert_eq!(password, format!("{TOKEN}-deploy"));
    }
    assert_eq!(stub.asked().len(), 1);
    assert_eq!(tokens.password(&app(), &location(&stub, "log"), None).await.unwrap(), format!("{TOKEN}-log"));
    assert_eq!(stub.asked().len(), 2, "another repository has a token of its own");
    let many = (0..8).map(|_| {
        let (tokens, location) = (tokens.clone(), location(&stub, "third"));
        tokio::spawn(async move { tokens.password(&app(), &location, None).await.unwrap() })
    });
    futures::future::join_all(many).await;
    assert_eq!(stub.asked().len(), 3, "those who wait for the same token ask once");
    assert!(!format!("{tokens:?} {:?}", app()).contains(CANARY));
}

#[tokio::test]
async fn a_token_that_ends_soon_is_not_used_again() {
    let stub = github(TimeDelta::minutes(5)).await;
    let tokens = AppTokens::default();
    for _ in 0..2 {
        tokens.password(&app(), &location(&stub, "deploy"), None).await.unwrap();
    }
    assert_eq!(stub.asked().len(), 2);
}

#[tokio::test]
async fn what_is_wrong_with_the_secret_names_its_key_and_asks_nobody() {
    let stub = github(TimeDelta::hours(1)).await;
    let tokens = AppTokens::default();
    let elliptic = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
                    -----END PRIVATE KEY-----\n";
    for (app, expected) in [
        (GitHubApp { app: "my app".into(), ..app() }, "githubAppID is neither a number nor a client's id"),
        (GitHubApp { installation: "../1".into(), ..app() }, "githubAppInstallationID is not a number"),
        (GitHubApp { private_key: CANARY.into(), ..app() }, "githubAppPrivateKey is not a private key in PEM format"),
        (GitHubApp { private_key: elliptic.into(), ..app() }, "githubAppPrivateKey is not an RSA key"),
    ] {
        let error = tokens.password(&app, &location(&stub, "deploy"), None).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
    assert!(stub.asked().is_empty());
}

#[tokio::test]
async fn an_app_that_is_refused_says_so_and_asks_again() {
    let stub = Stub::start(|_| json(401, json!({"message": "A JSON web token could not be decoded"}))).await;
    let tokens = AppTokens::default();
    for _ in 0..2 {
        let error = tokens.password(&app(), &location(&stub, "deploy"), None).await.unwrap_err();
        assert!(matches!(error, ForgeError::Denied { .. }), "{error}");
    }
    assert_eq!(stub.asked().len(), 2);
}

//! GitHub Apps: from an App's private key to a token of its installation, which opens the API and git.
//!
//! The key signs a short word that the App is who it says (a JWT); with that GitHub gives a token for an hour, for one
//! repository. Tokens are kept until shortly before they end, so that a look at a branch each minute asks for one an
//! hour.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{ForgeError, Location, github};

/// How long before its end a token is not used any more: a fetch that begins with it must end with it.
const MARGIN: TimeDelta = TimeDelta::minutes(10);
/// How long a JWT holds. GitHub takes at most ten minutes.
const LIFETIME: TimeDelta = TimeDelta::minutes(9);
/// GitHub's clock may be behind ours.
const CLOCK_SKEW: TimeDelta = TimeDelta::minutes(1);

/// A GitHub App's installation. Its `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct GitHubApp {
    /// `githubAppID`.
    pub app: String,
    /// `githubAppInstallationID`.
    pub installation: String,
    /// `githubAppPrivateKey`: the RSA key as GitHub gives it, in PEM format.
    pub private_key: String,
}

impl fmt::Debug for GitHubApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GitHubApp(***)")
    }
}

/// The tokens of installations. Cheap to clone; all clones are the same tokens.
#[derive(Clone, Default)]
pub struct AppTokens(Arc<Mutex<HashMap<Identity, Slot>>>);

/// What a token is for. Another key makes another one, so a key that was changed is used at once.
type Identity = [u8; 32];
/// One at a time asks for the same token; nobody waits for another one's.
type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

#[derive(Clone, Deserialize)]
struct Token {
    token: String,
    expires_at: DateTime<Utc>,
}

impl Token {
    fn holds(&self) -> bool {
        self.expires_at - Utc::now() > MARGIN
    }
}

impl fmt::Debug for AppTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppTokens(***)")
    }
}

impl AppTokens {
    /// The password for git over HTTPS, with the user [`GIT_USER`], and the token for the API: for one repository.
    /// `authorities` are the PEM certificates to believe; those of the system when absent.
    ///
    /// # Errors
    /// When a key of the Secret cannot be used, or GitHub gives no token.
    pub async fn password(
        &self,
        app: &GitHubApp,
        location: &Location,
        authorities: Option<&str>,
    ) -> Result<String, ForgeError> {
        let slot = {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody asks for any more go; one in use is locked or held by its user.
            slots.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot.try_lock().is_ok_and(|token| token.as_ref().is_some_and(Token::holds))
            });
            Arc::clone(slots.entry(identity(app, location)).or_default())
        };
        let mut kept = slot.lock().await;
        if let Some(token) = kept.as_ref().filter(|token| token.holds()) {
            return Ok(token.token.clone());
        }
        let token = request(app, location, authorities).await?;
        Ok(kept.insert(token).token.clone())
    }
}

/// The user that goes with the password of an installation in git over HTTPS.
pub const GIT_USER: &str = "x-access-token";

fn identity(app: &GitHubApp, location: &Location) -> Identity {
    let mut digest = Sha256::new();
    let full_name = location.full_name();
    for part in [location.api().as_str(), &full_name, &app.app, &app.installation, &app.private_key] {
        digest.update(part.len().to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

async fn request(app: &GitHubApp, location: &Location, authorities: Option<&str>) -> Result<Token, ForgeError> {
    let doing = "asking for a token of the GitHub App";
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !number(&app.installation) {
        return Err(ForgeError::Declaration { field: "githubAppInstallationID", reason: "is not a number" });
    }
    let word = sign(app, Utc::now())?;
    let connection = github::connection(location, &word, authorities)?;
    let path = ["app", "installations", &app.installation, "access_tokens"];
    // No more than is needed: one repository.
    connection.post(doing, &path, json!({"repositories": [location.name()]})).send().await
}

/// The App's word that it is who it says.
fn sign(app: &GitHubApp, now: DateTime<Utc>) -> Result<String, ForgeError> {
    let refuse = |reason| ForgeError::Declaration { field: "githubAppPrivateKey", reason };
    // A client's id is one too: `Iv1.…`.
    if app.app.is_empty() || !app.app.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.') {
        return Err(ForgeError::Declaration { field: "githubAppID", reason: "is neither a number nor a client's id" });
    }
    let key = PrivateKeyDer::from_pem_slice(app.private_key.as_bytes());
    let key = key.map_err(|_| refuse("is not a private key in PEM format"))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|_| refuse("cannot be used"))?;
    let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).ok_or(refuse("is not an RSA key"))?;
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let (begin, end) = ((now - CLOCK_SKEW).timestamp(), (now + LIFETIME).timestamp());
    let word = format!(
        "{}.{}",
        part(json!({"alg": "RS256", "typ": "JWT"})),
        part(json!({"iat": begin, "exp": end, "iss": app.app}))
    );
    let signature = signer.sign(word.as_bytes()).map_err(|_| refuse("cannot sign"))?;
    Ok(format!("{word}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

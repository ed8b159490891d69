//! One request of a git client, answered by `git http-backend` as a CGI program.

use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Host, Settings, isolated, webhook};

/// The repositories of the stories are small: whatever is larger than this is a mistake.
const LARGEST_BODY: usize = 64 << 20;
/// No fetch or push of a story takes longer.
const LONGEST: Duration = Duration::from_secs(60);

pub(super) async fn answer(State(host): State<Arc<Host>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let Some((name, service)) = path.strip_prefix('/').and_then(|path| path.split_once(".git/")) else {
        return (StatusCode::NOT_FOUND, "no repository is meant\n").into_response();
    };
    if name.contains(['/', '.']) || !host.path(name).is_dir() {
        return (StatusCode::NOT_FOUND, "there is no such repository\n").into_response();
    }
    let settings = host.settings().get(name).cloned().unwrap_or_default();
    if !admitted(&settings, request.headers()) {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")];
        return (StatusCode::UNAUTHORIZED, challenge, "a user and a password are needed\n").into_response();
    }
    match exchange(&host, name, service, &settings, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(repository = name, service, "{error:#}");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response()
        }
    }
}

fn admitted(settings: &Settings, headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).map(axum::http::HeaderValue::as_bytes);
    settings.authorization.as_ref().is_none_or(|wanted| given == Some(wanted.as_bytes()))
}

async fn exchange(host: &Host, name: &str, service: &str, settings: &Settings, request: Request) -> Result<Response> {
    let told = settings.webhook.as_ref().filter(|_| service == "git-receive-pack");
    let before = if told.is_some() { refs(host, name).await? } else { String::new() };
    let response = parse(&run(host, request).await?.stdout)?;
    if let Some(webhook) = told
        // A push that a hook refused is answered with 200 as well: what counts is whether anything moved.
        && refs(host, name).await? != before
    {
        webhook::tell(&host.client, webhook);
    }
    Ok(response)
}

async fn run(host: &Host, request: Request) -> Result<Output> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, LARGEST_BODY).await.context("cannot read the request")?;
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_PROJECT_ROOT", &host.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "story")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start `git http-backend`")?;
    let pipe = child.stdin.take();
    let feed = async {
        if let Some(mut pipe) = pipe {
            // A backend that ends before it has read everything has said why.
            let _ = pipe.write_all(&body).await;
        }
    };
    let finished = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(LONGEST, finished)
        .await
        .map_err(|_| anyhow!("`git http-backend` was still running after {LONGEST:?}"))?
        .context("`git http-backend`")?;
    if output.stdout.is_empty() {
        bail!("`git http-backend` answered nothing: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

/// Every ref with the commit it points to.
async fn refs(host: &Host, name: &str) -> Result<String> {
    isolated(&host.path(name)).args(["for-each-ref", "--format=%(objectname) %(refname)"]).ok().await
}

/// Reads the answer of a CGI program: headers, among them perhaps `Status`, an empty line, the body.
fn parse(answer: &[u8]) -> Result<Response> {
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .ok_or_else(|| anyhow!("`git http-backend` answered without headers"))?;
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    let mut response = Response::builder();
    for line in std::str::from_utf8(head).context("`git http-backend` answered with strange headers")?.lines() {
        let (name, value) = line.split_once(':').ok_or_else(|| anyhow!("`{line}` is not a header"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split_whitespace().next().unwrap_or_default();
            response = response.status(code.parse::<u16>().with_context(|| format!("`{line}` has no status"))?);
        } else {
            response = response.header(name, value);
        }
    }
    response.body(Body::from(body.to_vec())).context("`git http-backend` answered with strange headers")
}

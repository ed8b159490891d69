//! A GitHub Enterprise, as its documentation has it.

use std::sync::{Arc, Mutex};

use axum::response::Response;
use serde_json::{Value, json};

use super::*;

#[derive(Default)]
struct Repository {
    pulls: Vec<Value>,
    statuses: Vec<Value>,
    deployments: Vec<Value>,
    deployment_statuses: Vec<Value>,
}

fn pull(number: usize, head: &str, base: &str, head_repo: u64) -> Value {
    json!({
        "number": number, "state": "open", "merged_at": null,
        "html_url": format!("https://forge.example/pr/{number}"),
        "head": {"ref": head, "repo": {"id": head_repo}},
        "base": {"ref": base, "repo": {"id": 7}},
    })
}

fn answer(repository: &Mutex<Repository>, asked: &Asked) -> Response {
    assert_eq!(asked.header("authorization"), format!("Bearer {TOKEN}"));
    assert_eq!(asked.header("accept"), "application/vnd.github+json");
    assert_eq!(asked.header("x-github-api-version"), "2022-11-28");
    assert!(!asked.header("user-agent").is_empty(), "GitHub refuses whoever gives no name");
    let mut repository = repository.lock().unwrap();
    let Some(path) = asked.path.strip_prefix("/api/v3/repos/shop/deploy/") else {
        return json(404, json!({"message": "Not Found"}));
    };
    let parts: Vec<&str> = path.split('/').collect();
    let method = asked.method.as_str();
    match (method, parts.as_slice()) {
        ("GET", ["pulls"]) => {
            let (owner, head) = asked.query("head").unwrap().split_once(':').unwrap();
            assert_eq!((owner, asked.query("state")), ("shop", Some("open")));
            let found = repository.pulls.iter().filter(|pull| pull["head"]["ref"] == head && pull["state"] == "open");
            json(200, found.cloned().collect())
        }
        ("POST", ["pulls"]) => {
            let head = asked.text("head");
            if repository.pulls.iter().any(|pull| pull["head"]["ref"] == head && pull["state"] == "open") {
                let message = format!("A pull request already exists for shop:{head}.");
                let errors = json!([{"resource": "PullRequest", "code": "custom", "message": message}]);
                return json(422, json!({"message": "Validation Failed", "errors": errors}));
            }
            let pull = pull(repository.pulls.len() + 1, head, asked.text("base"), 7);
            repository.pulls.push(pull.clone());
            json(201, pull)
        }
        ("GET", ["pulls", number]) => match repository.pulls.get(number.parse::<usize>().unwrap() - 1) {
            Some(pull) => json(200, pull.clone()),
            None => json(404, json!({"message": "Not Found"})),
        },
        ("GET", ["commits", COMMIT, "statuses"]) => json(200, repository.statuses.iter().rev().cloned().collect()),
        ("POST", ["statuses", COMMIT]) => {
            assert!(asked.text("description").chars().count() <= 140);
            repository.statuses.push(asked.body.clone());
            json(201, asked.body.clone())
        }
        ("GET", ["deployments"]) => {
            let fits = |deployment: &&Value| {
                ["sha", "environment", "task"]
                    .iter()
                    .all(|field| asked.query(field).is_none_or(|wanted| deployment[*field] == wanted))
            };
            json(200, repository.deployments.iter().rev().filter(fits).cloned().collect())
        }
        ("POST", ["deployments"]) => {
            assert_eq!(asked.body["required_contexts"], json!([]), "or GitHub waits for all statuses to be green");
            assert_eq!(asked.body["auto_merge"], json!(false), "or GitHub merges the default branch into the commit");
            let mut deployment = asked.body.clone();
            deployment["id"] = json!(repository.deployments.len() + 1);
            deployment["sha"] = asked.body["ref"].clone();
            repository.deployments.push(deployment.clone());
            json(201, deployment)
        }
        ("GET", ["deployments", id, "statuses"]) => {
            let found = repository.deployment_statuses.iter().rev().filter(|status| status["deployment"] == *id);
            json(200, found.cloned().collect())
        }
        ("POST", ["deployments", id, "statuses"]) => {
            let mut status = asked.body.clone();
            status["id"] = json!(repository.deployment_statuses.len() + 1);
            status["deployment"] = json!(id);
            repository.deployment_statuses.push(status.clone());
            json(201, status)
        }
        _ => json(404, json!({"message": "Not Found"})),
    }
}

async fn start() -> (Stub, ForgeClient, Arc<Mutex<Repository>>) {
    let repository = Arc::new(Mutex::new(Repository::default()));
    let own = Arc::clone(&repository);
    let stub = Stub::start(move |asked| answer(&own, asked)).await;
    let client = stub.client(ForgeKind::GitHub, "shop/deploy.git");
    (stub, client, repository)
}

#[tokio::test]
async fn pull_requests() {
    let (stub, client, repository) = start().await;
    let close = |number: u64, merged: bool| {
        let pull = &mut repository.lock().unwrap().pulls[usize::try_from(number).unwrap() - 1];
        pull["state"] = json!("closed");
        pull["merged_at"] = if merged { json!("2026-11-25T20:00:00Z") } else { Value::Null };
    };
    pull_requests_are_opened_once(&stub, &client, close).await;
}

#[tokio::test]
async fn a_pull_request_from_a_fork_is_somebody_elses() {
    let (_stub, client, repository) = start().await;
    repository.lock().unwrap().pulls.push(pull(1, "sluice/revert-1", "main", 8));
    assert_eq!(client.find_pull_request("sluice/revert-1").await.unwrap(), None);
}

#[tokio::test]
async fn one_that_was_opened_at_the_same_moment_is_taken() {
    let looked = std::sync::atomic::AtomicBool::new(false);
    let stub = Stub::start(move |asked| match asked.method.as_str() {
        "POST" => json(422, json!({"message": "Validation Failed"})),
        _ if looked.swap(true, std::sync::atomic::Ordering::SeqCst) => json(200, json!([pull(3, "b", "main", 7)])),
        _ => json(200, json!([])),
    });
    let client = stub.await.client(ForgeKind::GitHub, "shop/deploy");
    assert_eq!(client.open_pull_request(new("b")).await.unwrap().number, 3);
}

#[tokio::test]
async fn statuses() {
    let (stub, client, repository) = start().await;
    let newest = || {
        let statuses = &repository.lock().unwrap().statuses;
        let newest = statuses.iter().rev().find(|status| status["context"] == "sluice/prod/shop/web").unwrap();
        (newest["state"].as_str().unwrap().to_owned(), newest["description"].as_str().unwrap().to_owned())
    };
    statuses_are_set_when_they_differ(&stub, &client, ["pending", "success", "failure"], newest).await;
}

#[tokio::test]
async fn a_deployment_that_is_on_its_way_becomes_inactive_and_no_other_one() {
    let (stub, client, repository) = start().await;
    client.end_deployment(ended("a.1")).await.unwrap();
    assert_eq!(stub.writes(), 0, "none is made for that");
    client.deploy(deployment("a.1", State::Pending)).await.unwrap();
    client.deploy(deployment("a.2", State::Success)).await.unwrap();
    for key in ["a.1", "a.1", "a.2"] {
        client.end_deployment(ended(key)).await.unwrap();
    }
    let repository = repository.lock().unwrap();
    let said: Vec<_> =
        repository.deployment_statuses.iter().map(|status| (&status["deployment"], &status["state"])).collect();
    let expected = [("1", "in_progress"), ("2", "success"), ("1", "inactive")].map(|(a, b)| (json!(a), json!(b)));
    assert_eq!(said, expected.iter().map(|(a, b)| (a, b)).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_deployment_is_made_once_for_each_key() {
    let (stub, client, repository) = start().await;
    assert_eq!(client.newest_deployment("prod/eu").await.unwrap(), None);
    for (key, state) in [("a.1", State::Pending), ("a.1", State::Pending), ("a.1", State::Success)] {
        client.deploy(deployment(key, state)).await.unwrap();
    }
    assert_eq!(stub.writes(), 3, "one deployment and two statuses");
    client.deploy(deployment("a.2", State::Failure)).await.unwrap();
    // Some answers hold the payload as a text.
    for deployment in &mut repository.lock().unwrap().deployments {
        deployment["payload"] = json!(deployment["payload"].to_string());
    }
    client.deploy(deployment("a.2", State::Failure)).await.unwrap();
    {
        let repository = repository.lock().unwrap();
        assert_eq!(repository.deployments.len(), 2);
        let said: Vec<_> =
            repository.deployment_statuses.iter().map(|status| (&status["deployment"], &status["state"])).collect();
        let expected = [("1", "in_progress"), ("1", "success"), ("2", "failure")].map(|(a, b)| (json!(a), json!(b)));
        assert_eq!(said, expected.iter().map(|(a, b)| (a, b)).collect::<Vec<_>>());
    }
    assert_eq!(client.newest_deployment("prod/eu").await.unwrap().as_deref(), Some(COMMIT));
    assert_eq!(client.newest_deployment("elsewhere").await.unwrap(), None);
}

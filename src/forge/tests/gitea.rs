//! A Gitea, as its documentation has it.

use std::sync::{Arc, Mutex};

use axum::response::Response;
use serde_json::{Value, json};

use super::*;

#[derive(Default)]
struct Repository {
    pulls: Vec<Value>,
    statuses: Vec<Value>,
}

fn pull(number: usize, head: &str, base: &str, head_repo: u64) -> Value {
    json!({
        "number": number, "state": "open", "merged": false,
        "html_url": format!("https://forge.example/pr/{number}"),
        "head": {"ref": head, "repo_id": head_repo},
        "base": {"ref": base, "repo_id": 7},
    })
}

fn answer(repository: &Mutex<Repository>, asked: &Asked) -> Response {
    assert_eq!(asked.header("authorization"), format!("token {TOKEN}"));
    let mut repository = repository.lock().unwrap();
    let Some(path) = asked.path.strip_prefix("/api/v1/repos/shop/deploy/") else {
        return json(404, json!({"message": "The target couldn't be found."}));
    };
    let parts: Vec<&str> = path.split('/').collect();
    match (asked.method.as_str(), parts.as_slice()) {
        ("GET", ["pulls"]) => {
            assert_eq!(asked.query("state"), Some("open"));
            let number = |name: &str| asked.query(name).unwrap().parse::<usize>().unwrap();
            // The server's own limit is lower than what is asked for.
            let (page, limit) = (number("page"), number("limit").min(3));
            let open = repository.pulls.iter().filter(|pull| pull["state"] == "open");
            json(200, open.skip((page - 1) * limit).take(limit).cloned().collect())
        }
        ("POST", ["pulls"]) => {
            let head = asked.text("head");
            if repository.pulls.iter().any(|pull| pull["head"]["ref"] == head && pull["state"] == "open") {
                return json(409, json!({"message": "pull request already exists for these targets"}));
            }
            let pull = pull(repository.pulls.len() + 1, head, asked.text("base"), 7);
            repository.pulls.push(pull.clone());
            json(201, pull)
        }
        ("GET", ["pulls", number]) => match repository.pulls.get(number.parse::<usize>().unwrap() - 1) {
            Some(pull) => json(200, pull.clone()),
            None => json(404, json!({"message": "The target couldn't be found."})),
        },
        ("GET", ["commits", COMMIT, "statuses"]) => {
            assert_eq!(asked.query("sort"), Some("highestindex"));
            json(200, repository.statuses.iter().rev().cloned().collect())
        }
        ("POST", ["statuses", COMMIT]) => {
            let mut status = asked.body.clone();
            status["id"] = json!(repository.statuses.len() + 1);
            status["status"] = status["state"].take();
            repository.statuses.push(status.clone());
            json(201, status)
        }
        _ => json(404, json!({"message": "The target couldn't be found."})),
    }
}

async fn start() -> (Stub, ForgeClient, Arc<Mutex<Repository>>) {
    let repository = Arc::new(Mutex::new(Repository::default()));
    let own = Arc::clone(&repository);
    let stub = Stub::start(move |asked| answer(&own, asked)).await;
    let client = stub.client(ForgeKind::Gitea, "shop/deploy.git");
    (stub, client, repository)
}

#[tokio::test]
async fn pull_requests() {
    let (stub, client, repository) = start().await;
    let close = |number: u64, merged: bool| {
        let pull = &mut repository.lock().unwrap().pulls[usize::try_from(number).unwrap() - 1];
        pull["state"] = json!("closed");
        pull["merged"] = json!(merged);
    };
    pull_requests_are_opened_once(&stub, &client, close).await;
}

#[tokio::test]
async fn a_pull_request_is_found_among_many() {
    let (_stub, client, repository) = start().await;
    let many = (1..=20).map(|number| pull(number, &format!("b{number}"), "main", 7));
    repository.lock().unwrap().pulls = many.chain([pull(21, "b22", "main", 8)]).collect();
    assert_eq!(client.find_pull_request("b20").await.unwrap().unwrap().number, 20);
    assert_eq!(client.find_pull_request("b22").await.unwrap(), None, "one from a fork is somebody else's");
}

#[tokio::test]
async fn statuses() {
    let (stub, client, repository) = start().await;
    let newest = || {
        let statuses = &repository.lock().unwrap().statuses;
        let newest = statuses.iter().rev().find(|status| status["context"] == "sluice/prod/shop/web").unwrap();
        (newest["status"].as_str().unwrap().to_owned(), newest["description"].as_str().unwrap().to_owned())
    };
    statuses_are_set_when_they_differ(&stub, &client, ["pending", "success", "failure"], newest).await;
}

#[tokio::test]
async fn a_deployment_is_a_status_there() {
    let (stub, client, repository) = start().await;
    for state in [State::Pending, State::Pending, State::Success] {
        client.deploy(deployment("a.1", state)).await.unwrap();
    }
    assert_eq!(stub.writes(), 2);
    let statuses = repository.lock().unwrap().statuses.clone();
    assert_eq!(statuses.last().unwrap()["context"], "deployment/prod/eu");
    assert_eq!(statuses.last().unwrap()["status"], "success");
    assert_eq!(client.newest_deployment("prod/eu").await.unwrap(), None);
    // What has ended stays as it ended, and what is on its way ends as neither good nor bad.
    client.end_deployment(ended("a.1")).await.unwrap();
    assert_eq!(stub.writes(), 2);
    client.deploy(deployment("a.2", State::Pending)).await.unwrap();
    client.end_deployment(ended("a.2")).await.unwrap();
    client.end_deployment(ended("a.2")).await.unwrap();
    assert_eq!(stub.writes(), 4);
    assert_eq!(repository.lock().unwrap().statuses.last().unwrap()["status"], "warning");
}

//! A GitLab, as its documentation has it, and with the one thing that it has not: no state may follow itself.

use std::sync::{Arc, Mutex};

use axum::response::Response;
use serde_json::{Value, json};

use super::*;

#[derive(Default)]
struct Project {
    requests: Vec<Value>,
    statuses: Vec<Value>,
    deployments: Vec<Value>,
}

fn request(iid: usize, source: &str, target: &str, from: u64) -> Value {
    json!({
        "iid": iid, "state": "opened", "web_url": format!("https://forge.example/pr/{iid}"),
        "source_branch": source, "target_branch": target, "source_project_id": from, "target_project_id": 7,
    })
}

fn answer(project: &Mutex<Project>, asked: &Asked) -> Response {
    assert_eq!(asked.header("authorization"), format!("Bearer {TOKEN}"));
    let mut project = project.lock().unwrap();
    // Groups and name are one part of the path.
    let Some(path) = asked.path.strip_prefix("/api/v4/projects/shop%2Fteam%2Fdeploy/") else {
        return json(404, json!({"message": "404 Project Not Found"}));
    };
    let parts: Vec<&str> = path.split('/').collect();
    match (asked.method.as_str(), parts.as_slice()) {
        ("GET", ["merge_requests"]) => {
            let source = asked.query("source_branch").unwrap();
            assert_eq!(asked.query("state"), Some("opened"));
            let found = project.requests.iter();
            let found = found.filter(|request| request["source_branch"] == source && request["state"] == "opened");
            json(200, found.cloned().collect())
        }
        ("POST", ["merge_requests"]) => {
            let source = asked.text("source_branch");
            assert!(!asked.text("title").is_empty() && !asked.text("description").is_empty());
            if project.requests.iter().any(|known| known["source_branch"] == source && known["state"] == "opened") {
                return json(409, json!({"message": ["Another open merge request already exists: !1"]}));
            }
            let request = request(project.requests.len() + 1, source, asked.text("target_branch"), 7);
            project.requests.push(request.clone());
            json(201, request)
        }
        ("GET", ["merge_requests", iid]) => match project.requests.get(iid.parse::<usize>().unwrap() - 1) {
            Some(request) => json(200, request.clone()),
            None => json(404, json!({"message": "404 Not found"})),
        },
        ("GET", ["repository", "commits", COMMIT, "statuses"]) => {
            let name = asked.query("name").unwrap();
            assert_eq!(asked.query("all"), Some("true"));
            json(200, project.statuses.iter().filter(|status| status["name"] == name).cloned().collect())
        }
        ("POST", ["statuses", COMMIT]) => {
            let (state, name) = (asked.text("state").to_owned(), asked.text("name").to_owned());
            let id = project.statuses.len() + 1;
            let running = project.statuses.iter_mut().rev().find(|known| known["name"] == name.as_str());
            if let Some(running) = running.filter(|known| known["status"] == "running") {
                if state == "running" {
                    return json(400, json!({"message": "Cannot transition status via :run from :running"}));
                }
                running["status"] = json!(state);
                running["description"] = asked.body["description"].clone();
                return json(201, running.clone());
            }
            let mut status = asked.body.clone();
            status["id"] = json!(id);
            status["status"] = json!(state);
            project.statuses.push(status.clone());
            json(201, status)
        }
        ("GET", ["deployments"]) => {
            assert_eq!((asked.query("order_by"), asked.query("sort")), (Some("id"), Some("desc")));
            let found = project.deployments.iter().rev();
            json(
                200,
                found.filter(|known| known["environment"] == asked.query("environment").unwrap()).cloned().collect(),
            )
        }
        ("POST", ["deployments"]) => {
            for field in ["environment", "sha", "ref", "status"] {
                assert!(!asked.text(field).is_empty(), "{field} is required");
            }
            assert!(asked.body["tag"].is_boolean());
            let mut deployment = asked.body.clone();
            deployment["id"] = json!(project.deployments.len() + 1);
            project.deployments.push(deployment.clone());
            json(201, deployment)
        }
        ("PUT", ["deployments", id]) => {
            let deployment = &mut project.deployments[id.parse::<usize>().unwrap() - 1];
            if deployment["status"] == asked.text("status") {
                return json(400, json!({"message": {"status": ["cannot transition"]}}));
            }
            deployment["status"] = asked.body["status"].clone();
            json(200, deployment.clone())
        }
        _ => json(404, json!({"error": "404 Not Found"})),
    }
}

async fn start() -> (Stub, ForgeClient, Arc<Mutex<Project>>) {
    let project = Arc::new(Mutex::new(Project::default()));
    let own = Arc::clone(&project);
    let stub = Stub::start(move |asked| answer(&own, asked)).await;
    let client = stub.client(ForgeKind::GitLab, "shop/team/deploy.git");
    (stub, client, project)
}

#[tokio::test]
async fn merge_requests() {
    let (stub, client, project) = start().await;
    let close = |iid: u64, merged: bool| {
        let request = &mut project.lock().unwrap().requests[usize::try_from(iid).unwrap() - 1];
        request["state"] = json!(if merged { "merged" } else { "closed" });
    };
    pull_requests_are_opened_once(&stub, &client, close).await;
    project.lock().unwrap().requests = vec![request(1, "b", "main", 8)];
    assert_eq!(client.find_pull_request("b").await.unwrap(), None, "one from a fork is somebody else's");
}

#[tokio::test]
async fn statuses() {
    let (stub, client, project) = start().await;
    let newest = || {
        let statuses = &project.lock().unwrap().statuses;
        let newest = statuses.iter().rev().find(|status| status["name"] == "sluice/prod/shop/web").unwrap();
        (newest["status"].as_str().unwrap().to_owned(), newest["description"].as_str().unwrap().to_owned())
    };
    statuses_are_set_when_they_differ(&stub, &client, ["running", "success", "failed"], newest).await;
    // A second step while it runs: GitLab would refuse it, so it is not asked.
    client.set_status(COMMIT, status(State::Pending, "step 1")).await.unwrap();
    let writes = stub.writes();
    client.set_status(COMMIT, status(State::Pending, "step 2")).await.unwrap();
    assert_eq!(stub.writes(), writes);
}

#[tokio::test]
async fn a_deployment_goes_on_until_it_has_ended() {
    let (stub, client, project) = start().await;
    for state in [State::Pending, State::Pending, State::Success, State::Success] {
        client.deploy(deployment("a.1", state)).await.unwrap();
    }
    assert_eq!(stub.writes(), 2, "made, and changed once");
    // The next one of the same commit is a new one.
    client.deploy(deployment("a.2", State::Pending)).await.unwrap();
    client.deploy(deployment("a.2", State::Failure)).await.unwrap();
    let states: Vec<_> =
        project.lock().unwrap().deployments.iter().map(|deployment| deployment["status"].clone()).collect();
    assert_eq!(states, [json!("success"), json!("failed")]);
    assert_eq!(client.newest_deployment("prod/eu").await.unwrap().as_deref(), Some(COMMIT));
    assert_eq!(client.newest_deployment("elsewhere").await.unwrap(), None);
    // One that another took the place of, which has begun already.
    client.end_deployment(ended("a.2")).await.unwrap();
    client.deploy(deployment("a.3", State::Pending)).await.unwrap();
    let other = Deployment { commit: "fedcba9876543210fedcba9876543210fedcba98", ..deployment("b.1", State::Pending) };
    client.deploy(other).await.unwrap();
    let writes = stub.writes();
    for _ in 0..2 {
        client.end_deployment(ended("a.3")).await.unwrap();
    }
    assert_eq!(stub.writes(), writes + 1);
    let states: Vec<_> =
        project.lock().unwrap().deployments.iter().map(|deployment| deployment["status"].clone()).collect();
    assert_eq!(states, [json!("success"), json!("failed"), json!("canceled"), json!("running")]);
}

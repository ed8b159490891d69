//! One [`Effect`] of the engine, carried out as one write with a precondition.

use serde_json::{Value, json};

use super::kinds::Kind;
use super::objects::{Key, RolloutObject};
use super::write::{WriteError, Writer, conflict};
use crate::api::{RouteKey, names};
use crate::engine::Effect;
use crate::traffic::header_route::set_header_routes;
use crate::traffic::{RouteProblem, gateway_api};

impl Writer {
    /// Performs one effect on behalf of a Rollout.
    pub async fn perform(&self, rollout: &RolloutObject, effect: &Effect) -> Result<(), WriteError> {
        let namespace = &rollout.identity.namespace;
        let name = &rollout.identity.name;
        let set_key = |revision: &str| Key::new(namespace.clone(), names::replica_set(name, revision));
        match effect {
            Effect::CreateReplicaSet { revision, template, replicas } => {
                let body = replica_set(rollout, revision, &template.0, *replicas)?;
                self.create(Kind::ReplicaSet, &rollout.identity, &set_key(revision), body).await
            }
            Effect::Scale { revision, replicas } => {
                let key = set_key(revision);
                let set = self.index().replica_set(&key).ok_or_else(|| conflict(&key))?;
                let patch = json!([
                    {"op": "test", "path": "/metadata/uid", "value": set.identity.uid},
                    {"op": "test", "path": "/spec/replicas", "value": set.replicas},
                    {"op": "replace", "path": "/spec/replicas", "value": replicas},
                ]);
                self.json_patch(Kind::ReplicaSet, &key, None, patch).await
            }
            Effect::ScaleWorkload { workload, replicas } => {
                let key = Key::new(namespace.clone(), workload.clone());
                let seen = self.index().deployment(&key).ok_or_else(|| conflict(&key))?;
                self.scale_deployment(&key, &seen, *replicas).await
            }
            Effect::DeleteReplicaSet { revision } => {
                let key = set_key(revision);
                let set = self.index().replica_set(&key).ok_or_else(|| conflict(&key))?;
                self.delete(Kind::ReplicaSet, &key, &set.identity).await
            }
            Effect::EvictPod { pod, uid, .. } => self.evict(&Key::new(namespace.clone(), pod.clone()), uid).await,
            Effect::SelectRevision { service, revision } => {
                let key = Key::new(namespace.clone(), service.clone());
                let seen = self.index().service(&key).ok_or_else(|| conflict(&key))?;
                let path = format!("/spec/selector/{}", names::REVISION.replace('/', "~1"));
                let patch = json!([
                    {"op": "test", "path": "/metadata/resourceVersion", "value": seen.identity.resource_version},
                    {"op": "add", "path": path, "value": revision},
                ]);
                self.json_patch(Kind::Service, &key, None, patch).await
            }
            Effect::SelectEveryRevision { service } => {
                let key = Key::new(namespace.clone(), service.clone());
                let seen = self.index().service(&key).ok_or_else(|| conflict(&key))?;
                let path = format!("/spec/selector/{}", names::REVISION.replace('/', "~1"));
                let patch = json!([
                    {"op": "test", "path": "/metadata/resourceVersion", "value": seen.identity.resource_version},
                    {"op": "remove", "path": path},
                ]);
                self.json_patch(Kind::Service, &key, None, patch).await
            }
            Effect::SetWeight { route, percent } => {
                self.steer(rollout, route, |seen, stable, canary| {
                    gateway_api::set_weight(seen, namespace, stable, canary, *percent)
                })
                .await
            }
            Effect::SetHeaderRoutes { route, header_routes } => {
                self.steer(rollout, route, |seen, stable, canary| {
                    set_header_routes(seen, namespace, stable, canary, header_routes)
                })
                .await
            }
            Effect::StartAnalysis { name, stage, revision, attempt, analysis } => {
                let key = Key::new(namespace.clone(), name.clone());
                let metrics = super::observe::resolve(self.index(), rollout, revision, stage, analysis)
                    .map_err(|problems| WriteError::Unprepared(first_message(&problems)))?;
                let body = json!({
                    "apiVersion": Kind::AnalysisRun.resource().api_version,
                    "kind": Kind::AnalysisRun.name(),
                    "metadata": {
                        "name": name, "namespace": namespace,
                        "labels": {names::ROLLOUT: rollout.identity.name, names::REVISION: revision},
                        "ownerReferences": [owner(rollout)],
                    },
                    "spec": {"rollout": rollout.identity.name, "revision": revision, "attempt": attempt,
                             "stage": stage, "metrics": metrics},
                });
                self.create(Kind::AnalysisRun, &rollout.identity, &key, body).await
            }
            Effect::AddFinalizer => self.set_finalizer(&rollout.identity, true).await,
            Effect::RemoveFinalizer { .. } => self.set_finalizer(&rollout.identity, false).await,
            Effect::EndAnalysis { name } => {
                let key = Key::new(namespace.clone(), name.clone());
                let run = self.index().analysis_run(&key).ok_or_else(|| conflict(&key))?;
                let patch = json!([
                    {"op": "test", "path": "/metadata/uid", "value": run.identity.uid},
                    {"op": "add", "path": "/spec/terminate", "value": true},
                ]);
                self.json_patch(Kind::AnalysisRun, &key, None, patch).await
            }
        }
    }
}

impl Writer {
    /// Patches a route as it was seen, given the names of the two Services.
    async fn steer(
        &self,
        rollout: &RolloutObject,
        route: &RouteKey,
        patch: impl FnOnce(&Value, &str, &str) -> Result<Option<Value>, RouteProblem>,
    ) -> Result<(), WriteError> {
        let key = Key::new(rollout.identity.namespace.clone(), route.name.clone());
        let seen = self.index().route(route.kind, &key).ok_or_else(|| conflict(&key))?;
        let spec = rollout.spec.as_ref().map_err(|error| WriteError::Unprepared(error.to_string()))?;
        let left = rollout.status.as_ref().and_then(|status| status.leaves(spec));
        let named = left.as_ref().unwrap_or(spec).references();
        let (Some(stable), Some(canary)) = (named.stable_service, named.canary_service) else {
            return Err(WriteError::Unprepared("the strategy names no Services".to_owned()));
        };
        let patch =
            patch(&seen.value, &stable, &canary).map_err(|problem| WriteError::Unprepared(problem.to_string()))?;
        match patch {
            Some(patch) => self.json_patch(Kind::Route(route.kind), &key, None, patch).await,
            None => Ok(()),
        }
    }
}

fn first_message(problems: &[crate::engine::Problem]) -> String {
    problems.first().map_or_else(|| "unknown problem".to_owned(), |problem| problem.message.clone())
}

fn owner(rollout: &RolloutObject) -> Value {
    json!({
        "apiVersion": Kind::Rollout.resource().api_version,
        "kind": Kind::Rollout.name(),
        "name": rollout.identity.name,
        "uid": rollout.identity.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The ReplicaSet of one revision.
fn replica_set(rollout: &RolloutObject, revision: &str, template: &Value, replicas: i32) -> Result<Value, WriteError> {
    let spec = rollout.spec.as_ref().map_err(|error| WriteError::Unprepared(error.to_string()))?;
    let mut template = template.clone();
    let labels = template
        .as_object_mut()
        .and_then(|template| template.entry("metadata").or_insert_with(|| json!({})).as_object_mut())
        .and_then(|metadata| metadata.entry("labels").or_insert_with(|| json!({})).as_object_mut())
        .ok_or_else(|| WriteError::Unprepared("spec.template.metadata: is not an object".to_owned()))?;
    labels.insert(names::REVISION.to_owned(), json!(revision));
    let mut match_labels = spec.selector.match_labels.clone();
    match_labels.insert(names::REVISION.to_owned(), revision.to_owned());
    let mut own_labels = match_labels.clone();
    own_labels.insert(names::ROLLOUT.to_owned(), rollout.identity.name.clone());
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": names::replica_set(&rollout.identity.name, revision),
            "namespace": rollout.identity.namespace,
            "labels": own_labels,
            "annotations": {names::TEMPLATE_HASH_V1: crate::api::PodTemplate(template_without_ours(&template)).hash_v1()},
            "ownerReferences": [owner(rollout)],
        },
        "spec": {
            "replicas": replicas,
            "minReadySeconds": spec.min_ready_seconds.unwrap_or_default(),
            "selector": {"matchLabels": match_labels},
            "template": template,
        },
    }))
}

fn template_without_ours(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(names::REVISION);
    }
    template
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::Router;
    use axum::body::Bytes;
    use axum::http::{Method, StatusCode, Uri};
    use axum::response::{IntoResponse, Response};

    use super::*;
    use crate::api::{HeaderRoute, PodTemplate, RolloutStatus, RouteKey, RouteKind};
    use crate::cluster::client::client;
    use crate::cluster::index::Index;
    use crate::cluster::write::{Gate, WriteObserver};
    use kube::Client;
    use kube::core::DynamicObject;
    use std::sync::Arc;

    /// What the API server is told to answer, in order; each request is noted.
    #[derive(Clone, Default)]
    struct Script {
        answers: Arc<Mutex<Vec<(u16, Value)>>>,
        requests: Arc<Mutex<Vec<(Method, String, Value)>>>,
    }

    impl Script {
        async fn start(self) -> Client {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let handler = move |method: Method, uri: Uri, body: Bytes| {
                let script = self.clone();
                async move { script.answer(method, &uri, &body) }
            };
            tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
            client(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap()
        }

        fn answer(&self, method: Method, uri: &Uri, body: &Bytes) -> Response {
            let body = serde_json::from_slice(body).unwrap_or_default();
            self.requests.lock().unwrap().push((method, uri.to_string(), body));
            let (code, answer) = self.answers.lock().unwrap().remove(0);
            (StatusCode::from_u16(code).unwrap(), axum::Json(answer)).into_response()
        }
    }

    struct Lease(AtomicBool);
    impl Gate for Lease {
        fn may_write(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }
    struct Nobody;
    impl WriteObserver for Nobody {
        fn wrote(&self, _: &'static str, _: &'static str, _: &'static str) {}
    }

    fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
        (
            code,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
            "code": code, "reason": reason, "message": message}),
        )
    }

    fn set(uid: &str, owner: &str, replicas: i32) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web-abc", "namespace": "shop", "uid": uid, "resourceVersion": "5",
                "labels": {"sluice.dev/rollout": "web", "sluice.dev/revision": "abc"},
                "ownerReferences": [{"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "name": "web", "uid": owner, "controller": true}]},
            "spec": {"replicas": replicas, "template": {}}})
    }

    fn rollout() -> RolloutObject {
        RolloutObject::of(
            &serde_json::from_value(json!({
                "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
                "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "3", "generation": 1},
                "spec": {"selector": {"matchLabels": {"app": "web"}},
                    "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"futureField": 1}},
                    "strategy": {"canary": {"stableService": "web-stable", "canaryService": "web-canary",
                        "trafficRouting": {"gatewayAPI": {"httpRoutes": [{"name": "web"}]}}}}}
            }))
            .unwrap(),
        )
    }

    async fn writer(answers: Vec<(u16, Value)>) -> (Writer, Script, Arc<Lease>) {
        let script = Script { answers: Arc::new(Mutex::new(answers)), ..Script::default() };
        let lease = Arc::new(Lease(AtomicBool::new(true)));
        let client = script.clone().start().await;
        (Writer::new(client, Arc::new(Index::default()), lease.clone(), Arc::new(Nobody)), script, lease)
    }

    fn create() -> Effect {
        let template = rollout().spec.unwrap().template;
        Effect::CreateReplicaSet { revision: "abc".to_owned(), template, replicas: 2 }
    }

    #[tokio::test]
    async fn a_replica_set_is_created_strictly_and_seen_at_once() {
        let (writer, script, _) = writer(vec![(201, set("s1", "u1", 2))]).await;
        writer.perform(&rollout(), &create()).await.unwrap();
        let requests = script.requests.lock().unwrap();
        let (method, uri, body) = &requests[0];
        assert_eq!(method, Method::POST);
        assert!(uri.starts_with("/apis/apps/v1/namespaces/shop/replicasets?"), "{uri}");
        assert!(uri.contains("fieldManager=sluice") && uri.contains("fieldValidation=Strict"), "{uri}");
        assert_eq!(body["spec"]["selector"]["matchLabels"], json!({"app": "web", "sluice.dev/revision": "abc"}));
        assert_eq!(body["spec"]["template"]["spec"], json!({"futureField": 1}), "fields newer than us survive");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u1");
        let template = PodTemplate(json!({"metadata": {"labels": {"app": "web"}}, "spec": {"futureField": 1}}));
        assert_eq!(body["metadata"]["annotations"][names::TEMPLATE_HASH_V1], template.hash_v1());
        let seen = writer.index().replica_set(&Key::new("shop", "web-abc")).unwrap();
        assert_eq!(seen.replicas, 2, "our own write is visible before the watch brings it");
    }

    #[tokio::test]
    async fn a_second_creation_finds_the_first_and_a_foreign_object_is_refused() {
        let exists = || status(409, "AlreadyExists", "exists");
        let (writer, _, _) =
            writer(vec![exists(), (200, set("s1", "u1", 2)), exists(), (200, set("s2", "another", 2))]).await;
        writer.perform(&rollout(), &create()).await.unwrap();
        let error = writer.perform(&rollout(), &create()).await.unwrap_err();
        assert!(matches!(&error, WriteError::Refused { reason, .. } if reason == "NotOurs"), "{error}");
    }

    fn deployment(version: &str, replicas: i32, ready: i32) -> DynamicObject {
        serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "shop", "uid": "d1", "resourceVersion": version},
            "spec": {"replicas": replicas, "template": {}}, "status": {"readyReplicas": ready}}))
        .unwrap()
    }

    #[tokio::test]
    async fn a_deployment_is_scaled_by_its_scale_and_that_is_seen_at_once() {
        let scale = |version: &str, replicas: i32| {
            json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": replicas},
                "metadata": {"name": "web", "namespace": "shop", "uid": "d1", "resourceVersion": version}})
        };
        let (writer, script, _) = writer(vec![(200, scale("6", 0)), (200, scale("8", 5))]).await;
        let key = Key::new("shop", "web");
        let to = |replicas| Effect::ScaleWorkload { workload: "web".to_owned(), replicas };
        let error = writer.perform(&rollout(), &to(0)).await.unwrap_err();
        assert!(matches!(error, WriteError::Conflict { .. }), "it is not there: {error}");
        writer.index().apply(Kind::Deployment, &deployment("5", 4, 4));
        writer.perform(&rollout(), &to(0)).await.unwrap();
        let (method, uri, body) = script.requests.lock().unwrap()[0].clone();
        assert_eq!(method, Method::PATCH);
        assert!(uri.starts_with("/apis/apps/v1/namespaces/shop/deployments/web/scale?"), "{uri}");
        let patch = json!([{"op": "test", "path": "/metadata/uid", "value": "d1"},
            {"op": "test", "path": "/spec/replicas", "value": 4},
            {"op": "add", "path": "/spec/replicas", "value": 0}]);
        assert_eq!(body, patch);
        assert_eq!(writer.index().deployment(&key).unwrap().replicas, 0);
        // What was on its way before tells nothing new.
        writer.index().apply(Kind::Deployment, &deployment("5", 4, 4));
        assert_eq!(writer.index().deployment(&key).unwrap().replicas, 0);
        // Scaled up again at once: of the new pods none is ready, whatever the status still says.
        writer.perform(&rollout(), &to(5)).await.unwrap();
        let seen = writer.index().deployment(&key).unwrap();
        assert_eq!((seen.replicas, seen.ready), (5, 0));
        // The API server leaves a 0 out of a Scale.
        let patch = script.requests.lock().unwrap()[1].2.clone();
        assert_eq!(patch[1], json!({"op": "test", "path": "/spec", "value": {}}));
    }

    #[tokio::test]
    async fn a_pod_is_evicted_by_its_uid_and_a_disruption_budget_makes_it_wait() {
        let budget = "Cannot evict pod as it would violate the pod's disruption budget.";
        let (writer, script, _) = writer(vec![
            status(429, "TooManyRequests", budget),
            (201, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})),
            status(409, "Conflict", "the UID in the precondition does not match"),
        ])
        .await;
        let evict = Effect::EvictPod { revision: "abc".to_owned(), pod: "p".to_owned(), uid: "p1".to_owned() };
        let error = writer.perform(&rollout(), &evict).await.unwrap_err();
        assert!(matches!(&error, WriteError::Later { message, .. } if message == budget), "{error}");
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop", "uid": "p1",
            "resourceVersion": "3", "labels": {"sluice.dev/revision": "abc"}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true, "name": "web-abc", "uid": "s"}]}});
        writer.index().apply(Kind::Pod, &serde_json::from_value(pod).unwrap());
        writer.perform(&rollout(), &evict).await.unwrap();
        let (method, uri, body) = script.requests.lock().unwrap()[1].clone();
        assert_eq!((method, uri.as_str()), (Method::POST, "/api/v1/namespaces/shop/pods/p/eviction?"));
        assert_eq!(body["deleteOptions"]["preconditions"], json!({"uid": "p1"}));
        let seen = &writer.index().pods_of(&Key::new("shop", "web"))[0];
        assert!(seen.identity.deleting, "it is ending, before the watch says so");
        let error = writer.perform(&rollout(), &evict).await.unwrap_err();
        assert!(matches!(error, WriteError::Conflict { .. }), "another pod of that name: {error}");
    }

    #[tokio::test]
    async fn every_change_is_tested_against_what_was_seen() {
        let (writer, script, _) = writer(vec![
            (200, set("s1", "u1", 5)),
            status(422, "Invalid", "the server rejected our request due to an error in our request"),
            status(403, "Forbidden", "may not"),
        ])
        .await;
        let object = serde_json::from_value(set("s1", "u1", 2)).unwrap();
        writer.index().apply(Kind::ReplicaSet, &object);
        let scale = Effect::Scale { revision: "abc".to_owned(), replicas: 5 };
        writer.perform(&rollout(), &scale).await.unwrap();
        assert_eq!(
            script.requests.lock().unwrap()[0].2,
            json!([{"op": "test", "path": "/metadata/uid", "value": "s1"},
                   {"op": "test", "path": "/spec/replicas", "value": 2},
                   {"op": "replace", "path": "/spec/replicas", "value": 5}])
        );
        let error = writer.perform(&rollout(), &scale).await.unwrap_err();
        assert!(matches!(error, WriteError::Conflict { .. }), "{error}");
        let error = writer.perform(&rollout(), &scale).await.unwrap_err();
        assert!(matches!(error, WriteError::Refused { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_weight_is_written_to_the_kind_and_version_that_was_read() {
        let kind = RouteKind::Tcp;
        let route = |version: &str, stable: i32, canary: i32| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1alpha2", "kind": kind.name(),
                "metadata": {"name": "web", "namespace": "shop", "uid": "r1", "resourceVersion": version},
                "spec": {"rules": [{"backendRefs": [
                    {"name": "web-stable", "port": 80, "weight": stable},
                    {"name": "web-canary", "port": 80, "weight": canary}]}]}})
        };
        let (writer, script, _) = writer(vec![(200, route("6", 80, 20))]).await;
        writer.index().set_served(Kind::Route(kind), Kind::Route(kind).resources().pop());
        writer.index().apply(Kind::Route(kind), &serde_json::from_value(route("5", 100, 0)).unwrap());
        let effect = Effect::SetWeight { route: RouteKey::new(kind, "web"), percent: 20 };
        writer.perform(&rollout(), &effect).await.unwrap();
        // The answer is known at once: the same again asks for nothing.
        writer.perform(&rollout(), &effect).await.unwrap();
        let requests = script.requests.lock().unwrap().clone();
        assert_eq!(requests.len(), 1);
        let (method, uri, body) = &requests[0];
        assert_eq!(method, Method::PATCH);
        let path = "/apis/gateway.networking.k8s.io/v1alpha2/namespaces/shop/tcproutes/web?";
        assert!(uri.starts_with(path), "{uri}");
        assert_eq!(body[0], json!({"op": "test", "path": "/metadata/resourceVersion", "value": "5"}));
        // An HTTPRoute of that name was never seen.
        let other = Effect::SetWeight { route: RouteKey::new(RouteKind::Http, "web"), percent: 20 };
        assert!(matches!(writer.perform(&rollout(), &other).await, Err(WriteError::Conflict { .. })));
    }

    #[tokio::test]
    async fn a_header_route_is_written_strictly() {
        let kind = RouteKind::Grpc;
        let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind.name(),
            "metadata": {"name": "web", "namespace": "shop", "uid": "r1", "resourceVersion": "5"},
            "spec": {"rules": [{"backendRefs": [{"name": "web-stable"}, {"name": "web-canary", "weight": 0}]}]}});
        let unknown = "strict decoding error: unknown field \"spec.rules[0].name\"";
        let (writer, script, _) = writer(vec![status(400, "BadRequest", unknown)]).await;
        writer.index().apply(Kind::Route(kind), &serde_json::from_value(route).unwrap());
        let vip: HeaderRoute = serde_json::from_value(json!({"name": "vip", "match": [
            {"headerName": "X-Vip", "headerValue": {"exact": "1"}}]}))
        .unwrap();
        let effect = Effect::SetHeaderRoutes { route: RouteKey::new(kind, "web"), header_routes: vec![vip] };
        let error = writer.perform(&rollout(), &effect).await.unwrap_err();
        assert!(matches!(error, WriteError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(unknown), "a Gateway API without names of rules is told: {error}");
        let requests = script.requests.lock().unwrap();
        let (_, uri, body) = &requests[0];
        assert!(uri.contains("fieldValidation=Strict"), "{uri}");
        assert_eq!(body[2]["path"], "/spec/rules/0");
        assert_eq!(body[2]["value"]["backendRefs"], json!([{"name": "web-canary", "weight": 1}]));
    }

    #[tokio::test]
    async fn without_the_lease_nothing_is_sent() {
        let (writer, script, lease) = writer(vec![]).await;
        lease.0.store(false, Ordering::SeqCst);
        let error = writer.perform(&rollout(), &create()).await.unwrap_err();
        assert!(matches!(error, WriteError::NotLeader), "{error}");
        assert!(script.requests.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_status_is_replaced_only_at_the_version_that_was_seen() {
        let answer = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "4"}, "spec": {}});
        let (writer, script, _) = writer(vec![(200, answer)]).await;
        writer.replace_status(&rollout().identity, &RolloutStatus::default()).await.unwrap();
        let requests = script.requests.lock().unwrap();
        let (method, uri, body) = &requests[0];
        assert_eq!(method, Method::PATCH);
        assert!(uri.starts_with("/apis/sluice.dev/v1alpha1/namespaces/shop/rollouts/web/status?"), "{uri}");
        assert_eq!(body[1], json!({"op": "test", "path": "/metadata/resourceVersion", "value": "3"}));
        assert_eq!(body[2]["path"], "/status");
    }
}

//! How many pods each side has while routes move the traffic, and which revisions need no steps.

use super::*;
use crate::api::{InterventionAction, RollbackWindow};

const OLD: &str = "i:1";
const NEW: &str = "i:2";

fn pods(world: &World, image: &str) -> i32 {
    world.replica_sets.get(&template(image).revision()).map_or(0, |set| set.replicas)
}

/// Ready pods of the stable version, and what its share of the traffic asks for.
fn stable_carries_its_share(world: &World) {
    let set = &world.replica_sets[&template(OLD).revision()];
    let ready = set.pods.iter().filter(|pod| pod.ready_for(TimeDelta::zero(), world.now)).count();
    let share = usize::try_from(100 - canary_share(world)).unwrap();
    assert!(ready * 100 >= 10 * share || share == 0, "{ready} pods of 10 carry {share} %");
}

fn dynamic() -> World {
    let steps = json!([{"setWeight": 30}, {"pause": {}}, {"setWeight": 80}, {"pause": {}}]);
    let mut spec = spec(OLD, json!({"dynamicStableScale": true, "minPodsPerReplicaSet": 3, "steps": steps}));
    spec.replicas = Some(10);
    let mut world = deployed(spec);
    world.edit_spec(|spec| spec.template = template(NEW));
    world
}

fn paused_at(world: &mut World, share: i32) {
    until(world, |world| {
        stable_carries_its_share(world);
        world.status.phase == Phase::Paused && canary_share(world) == share
    });
}

#[test]
fn with_dynamic_stable_scale_both_together_are_what_is_asked_for() {
    let mut world = dynamic();
    paused_at(&mut world, 30);
    until(&mut world, |world| pods(world, OLD) == 7);
    assert_eq!(pods(&world, NEW), 3);
    say(&mut world, "1", InterventionAction::Approve);
    paused_at(&mut world, 80);
    assert_eq!((pods(&world, OLD), pods(&world, NEW)), (3, 8), "three at least, while there is any traffic");
    say(&mut world, "2", InterventionAction::Approve);
    world.run(TimeDelta::hours(1));
    assert_eq!((pods(&world, OLD), pods(&world, NEW), world.status.phase), (0, 10, Phase::Ready));
}

#[test]
fn an_abort_after_stable_has_shrunk_goes_back_as_its_pods_come_up() {
    let mut world = dynamic();
    paused_at(&mut world, 30);
    say(&mut world, "1", InterventionAction::Approve);
    paused_at(&mut world, 80);
    world.knobs.pod_ready_delay = TimeDelta::seconds(20);
    say(&mut world, "2", InterventionAction::Abort);
    until(&mut world, |world| {
        stable_carries_its_share(world);
        canary_share(world) == 0
    });
    world.run(TimeDelta::hours(1));
    assert_eq!((pods(&world, OLD), pods(&world, NEW), world.status.phase), (10, 0, Phase::Aborted));
}

#[test]
fn beyond_the_rollback_window_a_revision_goes_through_the_steps() {
    for (revisions, first_reason) in [(0, "NewRevision"), (1, "NewRevision"), (2, "Rollback")] {
        let mut world = deployed(spec(OLD, json!({})));
        for image in [NEW, "i:3"] {
            world.edit_spec(|spec| spec.template = template(image));
            world.run(TimeDelta::hours(1));
        }
        world.edit_spec(|spec| {
            spec.rollback_window = Some(RollbackWindow { revisions });
            spec.template = template(OLD);
        });
        world.run(TimeDelta::seconds(1));
        let started = world.recorded.iter().rfind(|it| it.event == Event::Started).unwrap();
        assert_eq!(started.reason, first_reason, "{revisions}");
        world.run(TimeDelta::hours(1));
        assert_eq!(world.status.stable_revision, Some(template(OLD).revision()));
    }
}

//! Pods that are alike, that are on the node's network, that live for a moment, and that come and go under load.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    installed::{Installed, NAMESPACE},
    kubectl::{kubectl, text},
    shop::{Followed, Shop},
    truth::{Exchanges, assert_parents, assert_told, told},
};
use crate::truth::logged;

#[test]
fn pods_of_one_image_and_one_on_the_nodes_network_are_told_apart() {
    let installed = Installed::as_shipped();
    let shop = Shop::new();
    let store = shop.service("store");
    shop.deploy("store", 1, &[]);
    let call = |next: &str, name: &str| {
        ["--next", next, "--cron", "5", "--calls", "100", "--name", name].map(str::to_owned)
    };
    let on_the_node = call(&store, "onnode");
    shop.pod("onnode", &on_the_node.each_ref().map(String::as_str), |pod| {
        pod["spec"]["hostNetwork"] = json!(true);
    });
    shop.wait_called("onnode", 100);
    let address = text(&shop.pods("onnode")[0], "/status/hostIP").to_owned();
    let caller = call(&format!("http://{address}:8080"), "caller");
    shop.deploy("caller", 1, &caller.each_ref().map(String::as_str));
    let user = call(&store, "user");
    shop.deploy("user", 5, &user.each_ref().map(String::as_str));
    shop.wait_called("user", 500);
    shop.wait_called("caller", 100);
    let truth = logged(&shop, &["store", "onnode", "caller", "user"]);
    // It makes a call for each request, too.
    let expected = 2 * (5 * 100 + 100 + 100 + 100);
    assert_eq!(truth.values().sum::<usize>(), expected);
    let spans = installed.finish(expected);
    println!("{} exchanges of 8 pods", assert_told(&spans, &truth));
    assert_eq!(assert_parents(&spans).requests, [expected / 2, 0]);
}

/// Twelve that make one request each, which are over when this returns.
fn brief_pods(shop: &Shop, store: &str) -> Vec<String> {
    let names: Vec<String> = (0..12).map(|number| format!("brief-{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        // After a quarter of a second, or at once.
        let after = if number % 2 == 0 { "250" } else { "1" };
        let call = ["--next", store, "--cron", after, "--calls", "1", "--once", "--name", name];
        shop.pod(name, &call, |pod| {
            pod["spec"]["restartPolicy"] = json!("Never");
            pod["spec"]["containers"][0].as_object_mut().expect("one").remove("readinessProbe");
        });
    }
    for name in &names {
        let pod = format!("pod/{name}");
        kubectl(&[
            "--namespace",
            &shop.name,
            "wait",
            &pod,
            "--for=jsonpath={.status.phase}=Succeeded",
            "--timeout=60s",
        ]);
    }
    names
}

/// The first request of a pod is captured, whenever it comes.
#[test]
fn a_pod_that_lives_for_a_moment_is_told_with_its_names() {
    let installed = Installed::as_shipped();
    let shop = Shop::new();
    let store = shop.service("store");
    shop.deploy("store", 1, &[]);
    let names = brief_pods(&shop, &store);
    let apps: Vec<&str> = names.iter().map(String::as_str).chain(["store"]).collect();
    let truth = logged(&shop, &apps);
    assert_eq!(truth.values().sum::<usize>(), 2 * names.len());
    let spans = installed.finish(2 * names.len());
    println!("{} exchanges of {} pods of a moment", assert_told(&spans, &truth), names.len());
    assert_eq!(assert_parents(&spans).requests, [names.len(), 0]);
}

/// By what the container runtime says of it, before the API has told its id.
#[test]
fn a_container_is_chosen_by_its_name_before_its_first_process() {
    let installed = Installed::with(|config| config.replace("namespace: \"*\"", "container: brief-*"), "");
    installed.wait_ready();
    let shop = Shop::new();
    let store = shop.service("store");
    shop.deploy("store", 1, &[]);
    let names = brief_pods(&shop, &store);
    let apps: Vec<&str> = names.iter().map(String::as_str).collect();
    let truth = logged(&shop, &apps);
    assert_eq!(truth.values().sum::<usize>(), names.len());
    let spans = installed.finish(names.len());
    println!("{} exchanges of {} containers", assert_told(&spans, &truth), names.len());
}

#[test]
fn a_pod_is_deleted_under_load() {
    change_under_load(|shop| {
        let pods = shop.living("web");
        let name = text(&pods[0], "/metadata/name");
        kubectl(&["--namespace", &shop.name, "delete", "pod", name]);
    });
}

#[test]
fn a_deployment_is_rolled_out_anew_under_load() {
    change_under_load(|shop| {
        kubectl(&["--namespace", &shop.name, "rollout", "restart", "deployment/web"]);
    });
}

/// What was answered was told, once, of the right pod; what was under way when its pod ended may be told, not twice.
fn change_under_load(change: impl FnOnce(&Shop)) {
    const CALLS: usize = 3000;
    let installed = Installed::as_shipped();
    let shop = Shop::new();
    let web = shop.service("web");
    shop.deploy("web", 3, &[]);
    let calls = CALLS.to_string();
    shop.deploy("user", 1, &["--next", &web, "--cron", "8", "--calls", &calls, "--fresh", "--name", "user"]);
    let mut followed = Followed::default();
    followed.wait_called(&shop, &["web", "user"], CALLS / 10);
    change(&shop);
    followed.wait_called(&shop, &["web", "user"], CALLS);
    let (truth, doubtful) = parted(followed.finish());
    let expected = truth.values().sum::<usize>();
    println!(
        "{} pods, {expected} exchanges, {} calls that were not answered",
        followed.len(),
        doubtful.len()
    );
    assert!(followed.len() > 4, "nothing changed");
    assert!(doubtful.len() < CALLS / 10, "{doubtful:?}");
    let spans = installed.finish(expected);
    let (doubted, clear): (Vec<_>, Vec<_>) =
        spans.into_iter().partition(|span| doubtful.contains_key(span.path()));
    assert_told(&clear, &truth);
    assert_parents(&clear);
    println!("{} spans of those calls", doubted.len());
    for (line, count) in told(&doubted) {
        let (place, _) = line.split_at(line.match_indices(' ').nth(6).expect("seven").0);
        assert!(count == 1 && followed.places().any(|known| known == place), "{count} {line}");
    }
}

/// What was answered, and the paths of what was not.
fn parted(all: Exchanges) -> (Exchanges, BTreeMap<String, usize>) {
    let path = |line: &str| line.rsplit(' ').nth(1).expect("a path").to_owned();
    let failed = all.iter().filter(|(line, _)| line.contains(" CLIENT ") && !line.ends_with(" 200"));
    let doubtful: BTreeMap<String, usize> = failed.map(|(line, count)| (path(line), *count)).collect();
    let clear = all.into_iter().filter(|(line, _)| !doubtful.contains_key(&path(line)));
    (clear.collect(), doubtful)
}

/// Connections that were open before, and new ones.
#[test]
fn the_agent_starts_again_under_load() {
    const CALLS: usize = 3000;
    let installed = Installed::as_shipped();
    let shop = Shop::new();
    let web = shop.service("web");
    shop.deploy("web", 2, &[]);
    let calls = CALLS.to_string();
    let call = ["--next", &web, "--cron", "12", "--calls", &calls];
    shop.deploy("steady", 1, &[&call[..], &["--name", "steady"]].concat());
    shop.deploy("fresh", 1, &[&call[..], &["--name", "fresh", "--fresh"]].concat());
    shop.wait_called("fresh", CALLS / 10);
    shop.wait_called("steady", CALLS / 10);
    let called = || ["steady", "fresh"].map(|app| (app, shop.called(app)));
    let before = called();
    kubectl(&["--namespace", NAMESPACE, "delete", "pod", &installed.pod().name]);
    installed.wait_ready();
    let after = called();
    assert!(after[0].1 + CALLS / 10 < CALLS, "it took too long: {after:?}");
    shop.wait_called("fresh", CALLS);
    shop.wait_called("steady", CALLS);
    let truth = logged(&shop, &["steady", "fresh", "web"]);
    assert_eq!(truth.values().sum::<usize>(), 4 * CALLS);
    // Those that were under way when the agent ended or began count for the time between.
    let is_clear = |path: &str| {
        let mut words = path.rsplit('/');
        let number: usize = words.next().and_then(|word| word.parse().ok()).expect("a number");
        let app = words.next().expect("a name");
        let until = before.iter().find(|(name, _)| *name == app).expect("one of them").1;
        let from = after.iter().find(|(name, _)| *name == app).expect("one of them").1 + 1;
        number < until || number > from
    };
    let clear: Exchanges = truth
        .iter()
        .filter(|(line, _)| is_clear(line.rsplit(' ').nth(1).expect("a path")))
        .map(|(line, count)| (line.clone(), *count))
        .collect();
    let expected = clear.values().sum::<usize>();
    let spans = installed.finish(expected);
    let (seen, between): (Vec<_>, Vec<_>) = spans.into_iter().partition(|span| is_clear(span.path()));
    assert_told(&seen, &clear);
    assert_eq!(assert_parents(&seen).requests, [expected / 2, 0]);
    for (line, count) in told(&between) {
        assert!(truth.get(&line).is_some_and(|times| count <= *times), "{count} {line}");
    }
    println!(
        "{expected} exchanges before and after, {} of {} between, {before:?} {after:?}",
        between.len(),
        4 * CALLS - expected
    );
}

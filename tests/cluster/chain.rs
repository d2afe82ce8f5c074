//! A client's pod, a Service with two replicas, a third service behind it, and pods that want to be left alone.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    installed::Installed,
    kubectl::text,
    shop::Shop,
    truth::{assert_parents, assert_told, logged},
};

const CALLS: usize = 400;

#[test]
fn each_exchange_is_told_of_its_pod_and_those_of_others_are_not() {
    let installed = Installed::as_shipped();
    let shop = Shop::new();
    let (store, web, quiet) = (shop.service("store"), shop.service("web"), shop.service("quiet"));
    let alone = |template: &mut serde_json::Value| {
        template["metadata"]["annotations"] = json!({"tracer.dev/trace": "false"});
    };
    shop.deploy("store", 1, &[]);
    let passing = ["--pass", "traceparent", "--child"];
    shop.deploy("web", 2, &[&["--next", &store], &passing[..]].concat());
    shop.deploy_with("quiet", 1, &[&["--next", &web], &passing[..]].concat(), alone);
    let calls = CALLS.to_string();
    let calling = |next, name| {
        let each = ["--next", next, "--cron", "5", "--calls", &calls, "--fresh", "--begin", "--name", name];
        each.map(str::to_owned)
    };
    let (user, other) = (calling(&web, "user"), calling(&quiet, "other"));
    shop.deploy_with("other", 1, &other.each_ref().map(String::as_str), alone);
    shop.deploy("user", 1, &user.each_ref().map(String::as_str));
    shop.wait_called("user", CALLS);
    shop.wait_called("other", CALLS);
    let truth = logged(&shop, &["user", "web", "store"]);
    let expected = truth.values().sum();
    // The user's calls, and both sides of what web does for it and for those who are left alone.
    assert_eq!(expected, CALLS + 2 * CALLS * 3);
    for pod in shop.pods("web") {
        let name = text(&pod, "/metadata/name");
        assert!(shop.log(name).contains("SERVER "), "{name} was never asked");
    }
    let spans = installed.finish(expected);
    println!("{} exchanges of 4 pods, none of 2 others", assert_told(&spans, &truth));
    let parents = assert_parents(&spans);
    println!("{parents:?}");
    assert_eq!((parents.requests, parents.calls), ([3 * CALLS, 0], [2 * CALLS, 0]));
    // The user's call, web's two and the store's are of one trace; of who is left alone there is a part.
    let mut traces = BTreeMap::<&str, usize>::new();
    spans.iter().for_each(|span| *traces.entry(&span.trace).or_default() += 1);
    let of = |spans: usize| traces.values().filter(|count| **count == spans).count();
    assert_eq!((of(4), of(3), traces.len()), (CALLS, CALLS, 2 * CALLS));
}

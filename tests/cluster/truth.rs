//! Exchanges by where they were: as pods logged them and the API places those, and as spans tell it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tracer_tests::{
    collector::Span,
    process::{assert_same, count},
};

use super::{
    kubectl::{get, text},
    shop::Shop,
};

/// Each exchange with its place, and how often it was.
pub(crate) type Exchanges = BTreeMap<String, usize>;

/// What the pods that are called so logged.
pub(crate) fn logged(shop: &Shop, apps: &[&str]) -> Exchanges {
    let pods = apps.iter().flat_map(|app| shop.pods(app)).collect::<Vec<_>>();
    count(pods.iter().flat_map(|pod| {
        let log = shop.log(text(pod, "/metadata/name"));
        exchanges(&place(pod), &log)
    }))
}

/// The lines of a log that tell of exchanges, with where they were.
pub(crate) fn exchanges(place: &str, log: &str) -> Vec<String> {
    let told = log.lines().filter(|line| line.starts_with("CLIENT ") || line.starts_with("SERVER "));
    told.map(|line| format!("{place} {line}")).collect()
}

/// Namespace, Deployment, pod, its uid, container, its id, node: as the API has them.
pub(crate) fn place(pod: &Value) -> String {
    let namespace = text(pod, "/metadata/namespace");
    let id = text(pod, "/status/containerStatuses/0/containerID");
    [
        namespace,
        &deployment(namespace, pod),
        text(pod, "/metadata/name"),
        text(pod, "/metadata/uid"),
        text(pod, "/spec/containers/0/name"),
        id.split_once("://").map_or(id, |(_, id)| id),
        text(pod, "/spec/nodeName"),
    ]
    .join(" ")
}

fn deployment(namespace: &str, pod: &Value) -> String {
    if text(pod, "/metadata/ownerReferences/0/kind") != "ReplicaSet" {
        return "-".to_owned();
    }
    let set = text(pod, "/metadata/ownerReferences/0/name");
    let set = get(&["--namespace", namespace, "replicaset", set]);
    text(&set, "/metadata/ownerReferences/0/name").to_owned()
}

/// What spans tell of the same.
pub(crate) fn told(spans: &[Span]) -> Exchanges {
    count(spans.iter().map(line))
}

pub(crate) fn line(span: &Span) -> String {
    let keys = [
        "k8s.namespace.name",
        "k8s.deployment.name",
        "k8s.pod.name",
        "k8s.pod.uid",
        "k8s.container.name",
        "container.id",
        "k8s.node.name",
    ];
    let place = keys.map(|key| span.of(key)).join(" ");
    format!("{place} {} {} {}", span.kind, span.path(), span.attribute("http.response.status_code"))
}

/// All that was logged was told, of the right place, and nothing else. Returns how many exchanges there were.
pub(crate) fn assert_told(spans: &[Span], truth: &Exchanges) -> usize {
    assert_same(&told(spans), truth);
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    assert_eq!(ids.len(), spans.len(), "a span came in twice");
    spans.len()
}

/// How many parents there are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parents {
    /// Of requests that a pod made which is traced too, with a parent and without.
    pub(crate) requests: [usize; 2],
    /// Of calls that are made for a request.
    pub(crate) calls: [usize; 2],
}

/// No parent is wrong: that of a request is the call in the other pod, that of a call is the request in the same; no
/// call is the parent of two requests.
pub(crate) fn assert_parents(spans: &[Span]) -> Parents {
    let by_id: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let paths = |kind: &'static str| {
        let those = spans.iter().filter(move |span| span.kind == kind);
        those.map(Span::path).collect::<BTreeSet<&str>>()
    };
    let (called, asked) = (paths("CLIENT"), paths("SERVER"));
    let mut parents = Parents::default();
    let mut taken = BTreeSet::new();
    for span in spans {
        let is_request = span.kind == "SERVER";
        let reason =
            if is_request { Some(span.path()) } else { span.path().rsplit_once('/').map(|(path, _)| path) };
        let among = if is_request { &called } else { &asked };
        let Some(reason) = reason.filter(|reason| among.contains(reason)) else {
            // It may have come with a header of somebody who is not traced.
            assert!(!by_id.contains_key(span.parent.as_str()), "a parent of what has none: {}", line(span));
            continue;
        };
        let counts = if is_request { &mut parents.requests } else { &mut parents.calls };
        counts[usize::from(span.parent.is_empty())] += 1;
        if span.parent.is_empty() {
            continue;
        }
        let parent = by_id.get(span.parent.as_str());
        let parent = parent.unwrap_or_else(|| panic!("a parent that is none: {}", line(span)));
        let right = match is_request {
            true => parent.kind == "CLIENT" && taken.insert(&span.parent),
            false => parent.kind == "SERVER" && parent.of("k8s.pod.uid") == span.of("k8s.pod.uid"),
        };
        assert!(right && parent.path() == reason, "{}: not by {}", line(span), line(parent));
        assert_eq!(span.trace, parent.trace, "{}", line(span));
    }
    parents
}

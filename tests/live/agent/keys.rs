//! Every key of the configuration does something, and a test shows it: one that is in the schema and not in this
//! table fails, so does one whose test is gone.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;

/// Each with the test that shows what it does: one of these, or one of another suite (FILE::NAME).
const KEYS: &[(&str, &str)] = &[
    ("select.include.pid", "agent::selection::each_kind_of_condition_chooses"),
    ("select.include.command", "agent::selection::each_kind_of_condition_chooses"),
    ("select.include.exe", "agent::selection::each_kind_of_condition_chooses"),
    ("select.include.port", "agent::selection::each_kind_of_condition_chooses"),
    ("select.include.cgroup", "agent::selection::each_kind_of_condition_chooses"),
    ("select.exclude.pid", "agent::selection::each_kind_of_condition_excludes"),
    ("select.exclude.command", "agent::selection::each_kind_of_condition_excludes"),
    ("select.exclude.exe", "agent::selection::each_kind_of_condition_excludes"),
    ("select.exclude.port", "agent::selection::rules_do_not_mix_and_exclusions_win"),
    ("select.exclude.cgroup", "agent::selection::each_kind_of_condition_excludes"),
    ("select.include.namespace", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.include.pod", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.include.workload", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.include.label", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.include.annotation", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.include.container", "agent::selection::containers_are_chosen_as_they_come"),
    ("select.include.namespace_label", "kubernetes/select.rs::namespaces_choose_by_their_labels"),
    ("select.exclude.namespace", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.exclude.pod", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.exclude.workload", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.exclude.label", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.exclude.annotation", "kubernetes/select.rs::each_kind_of_rule_chooses_and_excludes"),
    ("select.exclude.container", "agent::selection::containers_are_chosen_as_they_come"),
    ("select.exclude.namespace_label", "kubernetes/select.rs::namespaces_choose_by_their_labels"),
    ("protocols", "agent::values::protocols_that_are_not_named_are_not_reported"),
    ("stitching.parents", "agent::values::parents_are_found_by_what_is_said"),
    ("stitching.correlation_headers", "agent::values::a_header_of_ones_own_finds_parents"),
    ("redaction.query_values", "agent::redaction::query_values_that_are_named_are_told"),
    ("redaction.request_headers", "agent::redaction::headers_that_are_named_are_told"),
    ("redaction.response_headers", "agent::redaction::headers_that_are_named_are_told"),
    ("redaction.grpc_messages", "agent::redaction::messages_of_grpc_are_told_if_that_is_said"),
    ("routes.patterns", "agent::metrics::requests_are_counted_as_nginx_logged_them"),
    ("routes.per_service", "agent::values::a_service_has_so_many_routes"),
    ("sampling.share", "agent::sampling::agents_keep_the_same_traces"),
    ("sampling.errors", "agent::sampling::every_error_is_sent"),
    ("sampling.slowest", "agent::sampling::the_slowest_are_sent"),
    ("sampling.first", "agent::sampling::the_first_of_each_route_and_status_is_sent"),
    ("sampling.sampled_flag", "agent::sampling::the_flag_of_the_caller_counts_as_it_is_said"),
    ("sampling.per_second", "agent::sampling::a_limit_per_second_holds"),
    ("metrics.histograms", "agent::receivers::buckets_are_exponential_where_that_is_said"),
    ("metrics.series", "agent::values::series_beyond_the_bound_share_one"),
    ("export.otlp.url", "agent::scrape::receivers_of_otlp_have_the_numbers_of_the_page"),
    ("export.otlp.protocol", "agent::scrape::receivers_of_otlp_have_the_numbers_of_the_page"),
    ("export.otlp.headers", "agent::receivers::headers_are_sent_and_shown_to_nobody"),
    ("export.otlp.compression", "agent::receivers::headers_are_sent_and_shown_to_nobody"),
    ("export.otlp.timeout", "agent::receivers::a_receiver_has_so_long"),
    ("export.otlp.certificate", "agent::receivers::certificates_are_used"),
    ("export.otlp.client_certificate", "agent::receivers::certificates_are_used"),
    ("export.otlp.client_key", "agent::receivers::certificates_are_used"),
    ("export.otlp.traces", "agent::receivers::each_gets_what_is_meant_for_it_and_when"),
    ("export.otlp.metrics", "agent::receivers::each_gets_what_is_meant_for_it_and_when"),
    ("export.otlp.interval", "agent::receivers::each_gets_what_is_meant_for_it_and_when"),
    ("export.print", "agent::values::spans_are_printed_as_it_is_said"),
    ("budgets.memory", "agent::values::the_memory_sizes_the_ring_and_is_kept"),
    ("budgets.cpu", "agent::budget::less_is_captured_past_the_share"),
    ("kubernetes.enabled", "kubernetes/keys.rs::the_api_is_asked_where_it_is_said_and_the_node_that_is_said"),
    (
        "kubernetes.kubeconfig",
        "kubernetes/keys.rs::the_api_is_asked_where_it_is_said_and_the_node_that_is_said",
    ),
    ("kubernetes.node", "kubernetes/keys.rs::the_api_is_asked_where_it_is_said_and_the_node_that_is_said"),
    ("kubernetes.peers", "kubernetes/keys.rs::as_many_are_watched_as_is_said"),
    ("kubernetes.cluster", "kubernetes/keys.rs::what_is_said_of_a_pod_stands_on_its_spans"),
    ("kubernetes.labels", "kubernetes/keys.rs::what_is_said_of_a_pod_stands_on_its_spans"),
    ("kubernetes.annotations", "kubernetes/keys.rs::what_is_said_of_a_pod_stands_on_its_spans"),
    ("kubernetes.service_name_from_labels", "kubernetes/keys.rs::what_is_said_of_a_pod_stands_on_its_spans"),
    ("serve.address", "agent::values::it_answers_where_it_is_told_to"),
    ("log.level", "agent::values::it_says_as_much_as_it_is_told_to"),
    ("log.format", "agent::values::it_says_as_much_as_it_is_told_to"),
];

/// The paths of all keys that have no keys below them.
fn leaves(schema: &Value, node: &Value, path: &str, found: &mut BTreeSet<String>) {
    let node = match node["$ref"].as_str() {
        Some(name) => schema.pointer(name.trim_start_matches('#')).expect("a definition"),
        None => node,
    };
    let has_keys = |node: &Value| {
        let node = node["$ref"]
            .as_str()
            .map_or(node, |name| schema.pointer(name.trim_start_matches('#')).expect("a definition"));
        node["properties"].is_object()
    };
    if let Some(keys) = node["properties"].as_object() {
        for (key, below) in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            leaves(schema, below, &path, found);
        }
        return;
    }
    let mut alternatives = node["anyOf"].as_array().into_iter().flatten().chain([&node["items"]]);
    match alternatives.find(|alternative| has_keys(alternative)) {
        Some(below) => leaves(schema, below, path, found),
        None => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn each_key_has_a_test_that_shows_what_it_does() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config.schema.json"));
    let schema: Value = serde_json::from_str(&text.expect("the schema")).expect("JSON");
    let mut keys = BTreeSet::new();
    leaves(&schema, &schema, "", &mut keys);
    let known: BTreeSet<String> = KEYS.iter().map(|(key, _)| (*key).to_owned()).collect();
    let untested: Vec<_> = keys.difference(&known).collect();
    assert!(untested.is_empty(), "keys without a test that shows what they do: {untested:?}");
    let gone: Vec<_> = known.difference(&keys).collect();
    assert!(gone.is_empty(), "there are no such keys: {gone:?}");
    let own = std::env::current_exe().expect("this program");
    let list = Command::new(own).args(["--list", "--format", "terse"]).output().expect("the tests");
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let tests: BTreeSet<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    assert!(tests.len() > 50, "{list}");
    for (key, test) in KEYS {
        let is_there = match test.split_once(".rs::") {
            None => tests.contains(test),
            Some((file, name)) => is_test_of(&format!("{file}.rs"), name),
        };
        assert!(is_there, "{key}: there is no test {test}");
    }
}

/// Whether a file of the tests has such a test, which is not ignored.
fn is_test_of(file: &str, name: &str) -> bool {
    let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("\n#[test]\nfn {name}()")))
}

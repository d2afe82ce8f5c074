use super::*;

fn wrong_at(text: &str) -> (u64, u64, String) {
    let wrong = Config::parse(text).unwrap_err();
    (wrong.line, wrong.column, wrong.what)
}

#[test]
fn the_example_says_what_the_defaults_are() {
    let example = Config::parse(EXAMPLE).unwrap();
    let Config { select, .. } = example.clone();
    assert_eq!((select.include.len(), select.exclude.len()), (3, 1));
    assert_eq!(example, Config { select, ..Config::default() });
    assert_eq!(Config::parse("").unwrap(), Config::default());
    assert_eq!(Config::parse("select:\nexport:\n  otlp:\n").unwrap(), Config::default());
}

#[test]
fn a_value_alone_is_a_list() {
    let text = "select:\n  include:\n    - command: nginx\n      port: [80, 81]\n    - command: [1, b]\n";
    let config = Config::parse(text).unwrap();
    let rules = config.select.include;
    assert_eq!(rules[0].command.0, [Pattern("nginx".into())]);
    assert_eq!(rules[0].port.0, [80, 81]);
    assert_eq!(rules[1].command.0, [Pattern("1".into()), Pattern("b".into())]);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let near = wrong_at("select:\n  inclde: []\n");
    assert_eq!(near, (2, 3, "there is no key `inclde` here; did you mean `include`?".into()));
    let far = wrong_at("budgets:\n  colour: red\n");
    assert_eq!(far, (2, 3, "there is no key `colour` here; there are memory, cpu".into()));
    let value = wrong_at("stitching:\n  parents: headers\n");
    assert_eq!(value, (2, 12, "there is no value `headers` here; did you mean `header`?".into()));
    assert_eq!(wrong_at("sampling: [1]\n"), (1, 11, "keys and values were expected here".into()));
    let (line, column, what) = wrong_at("select:\n  include:\n    - port: [80, 99999]\n");
    assert_eq!((line, column), (3, 18), "{what}");
    for (text, place, word) in [
        ("sampling:\n  share: 2\n", (2, 10), "share from 0 to 1"),
        ("budgets:\n  memory: 96Mo\n", (2, 11), "no unit of size"),
        ("budgets:\n  cpu: much\n", (2, 8), "share of a core"),
        ("serve:\n  address: localhost\n", (2, 12), "no IP address"),
        ("protocols: [http, smtp]\n", (1, 19), "no protocol that is read; there are"),
        ("redaction:\n  request_headers: [\"a b\"]\n", (2, 21), "no name of a header"),
        ("export:\n  otlp:\n    - protocol: grpc\n", (3, 7), "url"),
        ("sampling:\n  share: 0.1\n  share: 0.2\n", (3, 3), "duplicate"),
        ("select:\n\tinclude: []\n", (2, 2), "tab"),
        ("log: {level: loud}\n", (1, 14), "there are error, warn, info, debug"),
    ] {
        let (line, column, what) = wrong_at(text);
        assert_eq!((line, column), place, "{text}: {what}");
        assert!(what.contains(word), "{text}: {what}");
    }
}

#[test]
fn what_does_not_fit_together_is_wrong() {
    for (text, line, word) in [
        ("select:\n  include:\n    - {}\n", 2, "names nothing"),
        ("log: {}\nbudgets:\n  memory: 1Mi\n", 3, "48Mi or more"),
        (
            "export:\n  otlp:\n    - {url: \"http://a\", traces: false, metrics: false}\n",
            2,
            "nothing is sent",
        ),
    ] {
        let (found, _, what) = wrong_at(text);
        assert_eq!(found, line, "{what}");
        assert!(what.contains(word), "{what}");
    }
}

#[test]
fn secrets_are_not_told() {
    let text = "export:\n  otlp:\n    - url: http://a\n      headers: {authorization: hidden}\n";
    let config = Config::parse(text).unwrap();
    assert!(!format!("{config:?}").contains("hidden"));
    let broken =
        wrong_at("export:\n  otlp:\n    - url: http://a\n      headers: {authorization: hidden, b: [c]}\n");
    assert!(!broken.2.contains("hidden"), "{}", broken.2);
}

#[test]
fn units_are_those_that_people_write() {
    let value = |text: &str| text.parse::<Percent>().map(|percent| percent.0);
    assert_eq!((value("10%"), value("100m"), value("0.1")), (Ok(1000), Ok(1000), Ok(1000)));
    assert!(value("-1").is_err() && value("").is_err() && value("%").is_err());
    assert_eq!("25%".parse::<Share>(), Ok(Share(0.25)));
    assert_eq!(parse_size("96Mi"), parse_size("96MiB"));
}

/// `tracer config schema > deploy/config.schema.json` mends it.
#[test]
fn the_schema_in_the_repository_is_that_of_the_types() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config.schema.json");
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), Config::schema());
}

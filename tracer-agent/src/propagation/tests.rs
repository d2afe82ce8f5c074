use super::*;

const W3C: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn read(fields: &[(&str, &str)]) -> Propagated {
    let mut reader = Reader::new(CORRELATION);
    for (name, value) in fields {
        reader.take(name, || Some(Text::new(value)));
    }
    reader.read().map_or(Propagated::default(), |propagated| *propagated)
}

/// `trace/span/flags` as the fields say it, `-` where they say nothing, `!` where they are malformed.
fn said(fields: &[(&str, &str)]) -> String {
    let read = read(fields);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match read.context {
        Some(context) => {
            assert_eq!(read.malformed, 0);
            let span = context.span.map_or("-".to_owned(), |span| hex(&span));
            format!("{}/{span}/{}", hex(&context.trace), context.flags)
        }
        None if read.malformed > 0 => "!".to_owned(),
        None => "-".to_owned(),
    }
}

/// What specifications, and those who implement them, give as examples.
#[test]
fn families_are_read_as_specified() {
    let t = "0af7651916cd43dd8448eb211c80319c";
    let p = "b7ad6b7169203331";
    let one = |name: &str, value: &str, expected: &str| {
        assert_eq!(said(&[(name, value)]), expected, "{name}: {value}");
        assert_eq!(said(&[(&name.to_uppercase(), value)]), expected, "{name}: {value}");
    };
    let w3c = |value: &str, expected: &str| one("traceparent", value, expected);
    w3c(&format!("00-{t}-{p}-01"), &format!("{t}/{p}/1"));
    w3c(&format!("00-{t}-{p}-00"), &format!("{t}/{p}/0"));
    w3c(&format!("00-{t}-{p}-fe"), &format!("{t}/{p}/2"));
    w3c(&format!("cc-{t}-{p}-01-future"), &format!("{t}/{p}/1"));
    for wrong in [
        format!("00-{t}-{p}-01-x"),
        format!("cc-{t}-{p}-01.x"),
        format!("ff-{t}-{p}-01"),
        format!("00-{:032}-{p}-01", 0),
        format!("00-{t}-{:016}-01", 0),
        format!("00-{}-{p}-01", t.to_uppercase()),
        format!("0-{t}-{p}-01"),
        format!("00-{t}-{p}-1"),
        format!("00-{t}-{p}-01 "),
        "x".repeat(5000),
        "\u{e9}".repeat(28),
    ] {
        let wrong = if wrong.ends_with(' ') { wrong.replace("01 ", "0 1") } else { wrong };
        w3c(&wrong, "!");
    }
    assert_eq!(said(&[("traceparent", W3C), ("traceparent", W3C)]), "!");
    let b3 = |value: &str, expected: &str| one("b3", value, expected);
    let (trace, span) = ("80f198ee56343ba864fe8b2a57d3eff7", "e457b5a2e4d86bd1");
    b3(&format!("{trace}-{span}-1-05e3ac9a4f6e3b90"), &format!("{trace}/{span}/1"));
    b3(&format!("{trace}-{span}-d"), &format!("{trace}/{span}/1"));
    b3(&format!("{trace}-{span}-0"), &format!("{trace}/{span}/0"));
    b3("64fe8b2a57d3eff7-e457b5a2e4d86bd1", &format!("000000000000000064fe8b2a57d3eff7/{span}/1"));
    b3("0", "-");
    b3("d", "-");
    for wrong in [
        trace.to_owned(),
        format!("{trace}-{span}-2"),
        format!("{trace}-{span}-"),
        format!("{}-{span}", &trace[1..]),
        format!("{:032}-{span}", 0),
        format!("{trace}-{span}-1-{span}-x"),
    ] {
        b3(&wrong, "!");
    }
    let several = |sampled: (&str, &str)| said(&[("X-B3-TraceId", trace), ("x-b3-spanid", span), sampled]);
    assert_eq!(several(("X-B3-Sampled", "0")), format!("{trace}/{span}/0"));
    assert_eq!(several(("X-B3-Flags", "1")), format!("{trace}/{span}/1"));
    assert_eq!(several(("X-B3-Sampled", "x")), format!("{trace}/{span}/1"));
    assert_eq!(said(&[("x-b3-spanid", span)]), "!");
    assert_eq!(said(&[("x-b3-sampled", "1")]), "-");
    let jaeger = |value: &str, expected: &str| one("uber-trace-id", value, expected);
    jaeger("deadbeef:beef:0:1", "000000000000000000000000deadbeef/000000000000beef/1");
    jaeger("1deadbeefdeadbeef:abc:0:3", "0000000000000001deadbeefdeadbeef/0000000000000abc/1");
    jaeger(&format!("{trace}%3A{span}%3a0%3A0"), &format!("{trace}/{span}/0"));
    jaeger("DEADBEEF:1:0:01", "000000000000000000000000deadbeef/0000000000000001/1");
    for wrong in ["0:1:0:1", "deadbeef:1:1", "xyz:1:0:1", ":1:0:1", "a:12345678901234567:0:1", ""] {
        jaeger(wrong, "!");
    }
    let amazon = |value: &str, expected: &str| one("x-amzn-trace-id", value, expected);
    let root = "Root=1-5759e988-bd862e3fe1be46a994272793";
    let id = "5759e988bd862e3fe1be46a994272793";
    amazon(&format!("{root};Parent=53995c3f42cd8ad8;Sampled=1"), &format!("{id}/53995c3f42cd8ad8/1"));
    amazon(&format!("Sampled=0; Parent=53995c3f42cd8ad8 ;{root}"), &format!("{id}/53995c3f42cd8ad8/0"));
    amazon(&format!("Self=1-67891233-1245;{root};CalledFrom=app"), &format!("{id}/-/1"));
    amazon(&format!("{root};Parent=53995c3f42cd8ad8;Sampled=?"), &format!("{id}/53995c3f42cd8ad8/1"));
    amazon("Self=1-67891233-1245", "-");
    for wrong in ["Root=2-5759e988-bd862e3fe1be46a994272793", "Root=1-5759e98-bd862e3fe1be46a994272793a"] {
        amazon(wrong, "!");
    }
    amazon("Root=1-00000000-000000000000000000000000", "!");
    amazon("Parent=53995c3f42cd8ad8;Sampled=1", "!");
    let datadog = |trace: &str, span: &str, tags: &str| {
        said(&[("x-datadog-trace-id", trace), ("x-datadog-parent-id", span), ("x-datadog-tags", tags)])
    };
    let tid = "_dd.p.dm=-1,_dd.p.tid=4bf92f3577b34da6";
    assert_eq!(
        datadog("11803532876627986230", "67667974448284343", tid),
        "4bf92f3577b34da6a3ce929d0e0e4736/00f067aa0ba902b7/1"
    );
    assert_eq!(
        datadog("18446744073709551615", "1", ""),
        "0000000000000000ffffffffffffffff/0000000000000001/1"
    );
    assert_eq!(datadog("3735928559", "0", "_dd.p.tid=4BF9"), "000000000000000000000000deadbeef/-/1");
    for wrong in ["0", "18446744073709551616", "deadbeef", ""] {
        assert_eq!(datadog(wrong, "1", ""), "!", "{wrong}");
    }
    let cloud = |value: &str, expected: &str| one("x-cloud-trace-context", value, expected);
    let g = "4bf92f3577b34da6a3ce929d0e0e4736";
    cloud(&format!("{g}/67667974448284343;o=1"), &format!("{g}/00f067aa0ba902b7/1"));
    cloud(&format!("{g}/789"), &format!("{g}/0000000000000315/1"));
    for short in [format!("{g};o=1"), format!("{g}/0;o="), format!("{g}/"), g.to_owned()] {
        cloud(&short, &format!("{g}/-/1"));
    }
    cloud(&format!("{g}/18446744073709551615;o=0"), &format!("{g}/ffffffffffffffff/0"));
    for wrong in [format!("{g}/18446744073709551616"), format!("{g}/00f067aa0ba902b7"), format!("{g}/1;o=x")]
    {
        cloud(&wrong, "!");
    }
}

/// The ids are those that OpenTelemetry's Collector makes.
#[test]
fn skywalking_is_folded_as_the_collector_does() {
    let trace = |text: &str| skywalking_trace(text).map(|id| format!("{:032x}", u128::from_be_bytes(id)));
    for (text, id) in [
        ("de5980b8-fce3-4a37-aab9-b4ac3af7eedd", "de5980b8fce34a37aab9b4ac3af7eedd"),
        ("de5980b8fce34a37aab9b4ac3af7eedd.1.16563474296430001", "de5980b8fde34a371be41bcd5e2fd4dd"),
        ("de5980b8fce34a37aab9b4ac3af7eedd.133.16563474296430001", "de5980b879e34a371be41bcd5e2fd4dd"),
        ("56a5e1c519ae4c76a2b8b11d92cead7f.12.16563474296430001", "56a5e1c515ae4c7613e51e7cf616977f"),
    ] {
        assert_eq!(trace(text).as_deref(), Some(id), "{text}");
    }
    for wrong in [
        "de59",
        ".,<>?/-=+MNop",
        "de5980b8fce34a37aab9b4ac3af7eedd.1.x123456",
        "de5980b8fce34a37aab9b4ac3af7eedd.163474",
    ] {
        assert_eq!(trace(wrong), None, "{wrong}");
    }
    let span = |segment: &str, number| {
        skywalking_span(segment, number).map(|id| format!("{:016x}", u64::from_be_bytes(id)))
    };
    let segment = "4f2f27748b8e44ecaf18fe0347194e86.33.16560607369950066";
    assert_eq!(span(segment, 123).as_deref(), Some("e9c455a82542306a"));
    assert_eq!(span(segment, 0).as_deref(), Some("92c455a82542306a"));
    assert_eq!(span("4f2f27748b8e44ecaf18fe0347194e86", 123).as_deref(), Some("9b37d977cc970a6a"));
    assert_eq!(span("16560607369950066", 12), None);
    let header = "1-YTRlYzZmYzhjY2FiNGJiNGI2ODIwNjQ2OThjYzk3ZTYuNzQuMTYyMTgzODExMDQ1NTAwMDk=-YTRlYzZmYzhjY2FiNGJiNGI2\
ODIwNjQ2OThjYzk3ZTYuNzQuMTYyMTgzODExMDQ1NTAwMDg=-2-b25lbW9yZS1h-ZTFkMmZiYjYzYmJhNDMwNDk5YWY4OTVjMDQwZTMyZmVAMTkyLjE2\
OC4xLjEwMQ==-L29uZW1vcmUtYS9nZXQ=-MTkyLjE2OC4xLjEwMjo4MA==";
    assert_eq!(said(&[("sw8", header)]), "a4ec6fc886ab4bb4cf12975a1052aee6/68fef89296f9e552/1");
    assert_eq!(said(&[("sw8", &header.replace("1-Y", "2-Y"))]), "!");
    assert_eq!(said(&[("sw8", "1-2-3")]), "!");
}

#[test]
fn w3c_has_the_first_word_and_others_are_told_beside_it() {
    let both =
        read(&[("b3", "64fe8b2a57d3eff7-e457b5a2e4d86bd1"), ("traceparent", W3C), ("uber-trace-id", "x")]);
    let context = both.context.expect("a context");
    assert_eq!(context.trace[0], 0x0a);
    assert_eq!(both.others.len(), 1);
    assert_eq!(both.others[0].trace[8], 0x64);
    assert_eq!(both.malformed, 1);
    // The same in other words is no other trace; half of an id is enough.
    let same = read(&[
        ("b3", "8448eb211c80319c-b7ad6b7169203331"),
        ("traceparent", W3C),
        ("uber-trace-id", "0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1"),
    ]);
    assert!(same.others.is_empty() && same.malformed == 0);
}

#[test]
fn states_go_with_their_context() {
    let state = |value: &str| read(&[("traceparent", W3C), ("tracestate", value)]).state;
    assert_eq!(state("foo=1 \t , \t bar=2,,"), "foo=1,bar=2");
    for wrong in ["FOO=1", "foo =1", "foo.bar=1", "foo=bar=baz", "foo=,bar=3"] {
        assert_eq!(state(wrong), "", "{wrong}");
    }
    assert_eq!(read(&[("tracestate", "a=1")]), Propagated::default());
    let two = read(&[("tracestate", "a=1"), ("traceparent", W3C), ("tracestate", "b=2")]);
    assert_eq!(two.state, "a=1,b=2");
}

#[test]
fn ids_of_requests_stand_for_traces() {
    let trace = |value: &str| read(&[("X-Request-ID", value)]).correlation.first().copied();
    let id = trace("7b1f6b6e-8f0a-4a51-9d0c-1a2b3c4d5e6f").expect("a trace");
    assert_eq!(id[0], 0x7b);
    // Envoy changes one digit of it.
    for version in ["9", "a", "b"] {
        assert_eq!(trace(&format!("7b1f6b6e-8f0a-{version}a51-9d0c-1a2b3c4d5e6f")), Some(id));
    }
    assert!(trace("req-0001").is_some() && trace("req-0001") != trace("req-0002"));
    for many in
        ["", "1", "null", "undefined", "healthcheck", "a b c d e f 1", &"0".repeat(32), &"7".repeat(201)]
    {
        assert_eq!(trace(many), None, "{many}");
    }
    assert!(read(&[("x-request-id", "req-0001"), ("x-request-id", "req-0002")]).correlation.is_empty());
    let both = read(&[("x-request-id", "req-0001"), ("x-correlation-id", "req-0002")]).correlation;
    assert_eq!(both.to_vec(), [trace("req-0002").expect("a trace"), trace("req-0001").expect("a trace")]);
    let mut other = Reader::new(&["x-my-id"]);
    other.take("X-My-Id", || Some(Text::new("req-0001")));
    assert_eq!(other.read().and_then(|read| read.correlation.first().copied()), trace("req-0001"));
}

//! What holds for HTTP/2 besides the laws: connections that were joined, bytes that only look like it,
//! memory, and what calls say.

use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::Value;
use tracer_agent::{
    capture::Record,
    pipeline::{Limits, Pipeline},
    protocol::Shown,
    stats,
};
use tracer_common::connection::{Direction, Role};
use tracer_tests::{
    dialogue::{Dialogue, Outcome, Segment, closed, invented, parsed, run},
    http,
    http2::{
        self, CLIENT, END_HEADERS, END_STREAM, PREFACE, SERVER, Talk, acknowledged, data, frame, headers,
        hpack::{Encoder, How, number},
        kind, message, ping, request, reset, response, settings,
    },
    process::line,
};

use super::{play, whole};

/// The tracer starts at the record with this index, and knows this of the connection.
fn joined(dialogue: &Dialogue, from: usize, role: Role) -> Outcome {
    let mut records = vec![Dialogue { role, ..dialogue.clone() }.opened()];
    records.extend(dialogue.segments(|left| left)[from..].iter().map(Segment::record));
    records.extend(dialogue.over(900_000_000));
    let outcome = run(&records, Limits::default());
    outcome.assert_ledger_sums();
    outcome
}

/// Those of `held` that belong to the requests from this turn on.
fn asked_since(dialogue: &Dialogue, from: usize, held: &[String]) -> Vec<String> {
    let lines = dialogue.exchanges.iter().zip(&dialogue.asked).filter(|(_, turn)| **turn >= from);
    let lines: Vec<&String> = lines.map(|(line, _)| line).collect();
    held.iter()
        .filter(|span| lines.contains(&&line(&parsed(std::slice::from_ref(*span))[0])))
        .cloned()
        .collect()
}

/// Each exchange that begins after the tracer has is told, and nothing wrong is said of it.
#[test]
fn joining_between_any_two_frames() {
    for dialogue in http2::dialogues() {
        for dialogue in [dialogue.clone(), dialogue.of_client()] {
            let held = whole(&dialogue);
            for role in [dialogue.role, Role::Unknown] {
                for from in 1..dialogue.turns.len() {
                    let at = format!("{} as {role:?}, from record {from}", dialogue.name);
                    let outcome = joined(&dialogue, from, role);
                    let seen = outcome.exchanges();
                    let expected = asked_since(&dialogue, from, &held);
                    assert_eq!(invented(&parsed(&seen), &parsed(&expected)), None, "invented: {at}");
                    assert!(
                        !seen.iter().any(|span| span.contains(r#""tracer.capture":"gap""#)),
                        "{at}: {seen:?}"
                    );
                    // Both sides have to be heard; who asks may have to show too.
                    let heard = |direction| dialogue.turns[from..].iter().any(|turn| turn.0 == direction);
                    if role == dialogue.role && heard(Direction::Sent) && heard(Direction::Received) {
                        assert_eq!(seen.len(), expected.len(), "missing: {at}: {:?}", outcome.lines());
                    }
                }
            }
        }
    }
}

/// Many requests for a few paths, in tables of this size.
fn long(table: usize) -> Dialogue {
    let mut talk = Talk::new().writing(|asking, answering| {
        asking.resize(table);
        answering.resize(table);
    });
    let mut lines = Vec::new();
    for n in 0..100u32 {
        let path = format!("/items/of-kind-{}", n.wrapping_mul(2_654_435_761) >> 29);
        let (stream, size) = (2 * n + 1, 100 + n as usize);
        talk = talk
            .head(CLIENT, stream, &request("GET", &path, &[("user-agent", "test/1.0")]), END_STREAM)
            .head(SERVER, stream, &response(200, &[("content-type", "text/plain")]), 0)
            .last(SERVER, stream, &vec![b'x'; size]);
        lines.push(format!("GET {path} 200 {size}"));
    }
    talk.dialogue("long", &lines.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What the table held before is known when it is sent again, and not before.
#[test]
fn names_become_known_as_far_as_they_are_sent_again() {
    for (table, learns) in [(300, true), (4096, false)] {
        let dialogue = long(table);
        let held = whole(&dialogue);
        let mut vague = false;
        // After all that a steady encoder has to say.
        for from in 60..120 {
            let outcome = joined(&dialogue, from, dialogue.role);
            let seen = outcome.exchanges();
            let expected = asked_since(&dialogue, from, &held);
            assert_eq!(invented(&parsed(&seen), &parsed(&expected)), None, "table {table}, from {from}");
            assert_eq!(seen.len(), expected.len(), "table {table}, from {from}");
            let knows = |span: &&String| span.contains("url.path") && span.contains("example.com");
            let late = &seen[seen.len() / 2..];
            let known = late.iter().filter(knows).count();
            assert_eq!(known, if learns { late.len() } else { 0 }, "table {table}, from {from}");
            assert!(seen.iter().all(|span| knows(&span) || span.contains(r#""tracer.capture":"joined""#)));
            vague |= !seen.iter().all(|span| knows(&span));
        }
        assert!(vague, "a table of {table} hides nothing");
    }
}

fn is_http2(outcome: &Outcome) -> bool {
    outcome.pipeline.ledger().verdicts.keys().any(|verdict| {
        matches!(verdict.outcome, stats::Outcome::Read("http2") | stats::Outcome::Left("http2", ..))
    })
}

/// The records of something else, from the start of a connection and in the midst of one.
fn assert_not_http2(dialogue: &Dialogue, cut: impl FnMut(usize) -> usize) -> Result<(), TestCaseError> {
    let segments = dialogue.segments(cut);
    for before in [0, 1000] {
        for role in [Role::Server, Role::Unknown] {
            let dialogue = Dialogue { role, ..dialogue.clone() };
            let mut records = vec![dialogue.opened()];
            records.extend(segments.iter().cloned().map(|mut segment| {
                segment.position += before;
                segment.opposite += before;
                segment.record()
            }));
            records.push(closed(900_000_000, dialogue.positions().map(|position| position + before)));
            let outcome = run(&records, Limits::default());
            outcome.assert_ledger_sums();
            let odd = outcome.spans.iter().find(|span| span.contains(r#""network.protocol.version":"2""#));
            prop_assert_eq!(odd, None, "{} as {:?} after {} bytes", dialogue.name, role, before);
            prop_assert!(!is_http2(&outcome), "{} as {role:?} after {before} bytes", dialogue.name);
        }
    }
    Ok(())
}

fn foreign(name: &'static str, turns: &[(&str, &[u8])]) -> Dialogue {
    Dialogue::server(name, &[], turns)
}

#[test]
fn what_others_say_is_not_taken_for_it() {
    let zeros = vec![0; 2000];
    let tls =
        |length: u16, fill: u8| [&[23, 3, 3][..], &length.to_be_bytes(), &vec![fill; length.into()]].concat();
    // An upload of a recorded connection, with answers of another protocol.
    let recorded: Vec<u8> = long(4096).turns.into_iter().skip(4).flat_map(|(_, bytes)| bytes).collect();
    let stored = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n", recorded.len());
    let stored = [stored.as_bytes(), &recorded, b"\r\n"].concat();
    let mut all = http::others();
    all.retain(|dialogue| dialogue.name != "HTTP/2");
    all.extend([
        foreign("zeros", &[("client", &zeros), ("server", &zeros), ("client", &zeros)]),
        foreign("SSH", &[("server", b"SSH-2.0-OpenSSH_9.2\r\n"), ("client", b"SSH-2.0-x\r\n"), ("client", &zeros[..30])]),
        foreign("records of TLS", &[("client", &tls(300, 0)), ("server", &tls(9000, 0)), ("client", &tls(40, 9))]),
        foreign("a recording in Redis", &[("client", &stored), ("server", b"+OK\r\n"), ("client", &stored), ("server", b"+OK\r\n")]),
        foreign("a recording and silence", &[("client", &recorded)]),
        foreign("a recording and zeros", &[("client", &recorded), ("server", &zeros)]),
        foreign(
            "numbers",
            &[
                ("client", b"\0\0\0\x02"),
                ("client", b"\0\0\0\0\0\x0d\0\0\0\0\0\0\0\0\0\0\x0d\0\0\0\x09\0\0\0\x01\x6d"),
                (
                    "server",
                    b"\0\0\0\x13\0\0\0\x11\0\x67\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0a\0\0\0\x04\0\0\0\0\0\0\0\x02\0\x2b",
                ),
            ],
        ),
        foreign("MySQL", &[
            ("client", b"\x0f\0\0\0\x03select sleep(1)"),
            ("server", b"\x01\0\0\x01\x01\x17\0\0\x02\x03def\0\0\0\x05?\0\x0c\x3f\0\x01\0\0\0\x08\x81\0\0\0\0\x05\0\0\x03\xfe\0\0\x02\0"),
            ("client", b"\x05\0\0\0\x17\x01\0\0\0\0\x01\0\0\0"),
            ("server", b"\x07\0\0\x01\0\0\0\x02\0\0\0"),
        ]),
        foreign("PostgreSQL", &[
            ("client", b"P\0\0\0\x08\0x\0\0B\0\0\0\x0c\0\0\0\0\0\0\0\0D\0\0\0\x06P\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04"),
            ("server", b"1\0\0\0\x042\0\0\0\x04n\0\0\0\x04C\0\0\0\x0dSELECT 0\0Z\0\0\0\x05I"),
        ]),
    ]);
    for dialogue in &all {
        let length: u64 = dialogue.positions().iter().sum();
        for size in [usize::MAX, 16_384, 100, 9, 1] {
            let size = size.max(length as usize / 10_000);
            assert_not_http2(dialogue, |left| left.min(size)).unwrap();
        }
    }
}

/// Many records of one side, while the other is waited for.
#[test]
fn many_records_of_one_side() {
    assert_not_http2(&foreign("a download", &[("server", &[0; 50_000])]), |_| 1).unwrap();
}

/// What binary protocols are made of: small numbers, lengths, zeros.
fn word() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (0u32..40).prop_map(|number| number.to_be_bytes().to_vec()),
        (0u32..40).prop_map(|number| number.to_le_bytes().to_vec()),
        (0u16..40).prop_map(|number| number.to_be_bytes().to_vec()),
        (0u64..40).prop_map(|number| number.to_be_bytes().to_vec()),
        any::<u8>().prop_map(|byte| vec![byte]),
        vec(any::<u8>(), 0..30).prop_map(|bytes| [&(bytes.len() as u32).to_be_bytes(), &bytes[..]].concat()),
    ]
}

/// Headers of frames that no others follow where they should.
fn frame_like() -> impl Strategy<Value = Vec<u8>> {
    (0u32..300, 0u8..12, 0u8..48, 0u32..20, vec(any::<u8>(), 0..40)).prop_map(
        |(length, kind, flags, stream, rest)| {
            let mut bytes = frame(kind, flags, stream, &[]);
            bytes[..3].copy_from_slice(&length.to_be_bytes()[1..]);
            bytes.extend(rest);
            bytes
        },
    )
}

type Turns = Vec<(bool, Vec<Vec<u8>>)>;

fn spoken(name: &'static str, turns: Turns) -> Dialogue {
    let turns = turns
        .into_iter()
        .map(|(sent, words)| (if sent { Direction::Sent } else { Direction::Received }, words.concat()));
    Dialogue { turns: turns.collect(), ..foreign(name, &[]) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn numbers_are_not_taken_for_it(turns in vec((any::<bool>(), vec(word(), 1..40)), 1..12)) {
        assert_not_http2(&spoken("numbers", turns), |left| left)?;
    }

    /// One side is full of headers of frames; the other is not.
    #[test]
    fn half_of_it_is_not_taken_for_it(turns in vec((vec(frame_like(), 1..20), vec(any::<u8>(), 1..60)), 1..8), sends in any::<bool>()) {
        let turns = turns.into_iter().flat_map(|(frames, other)| [(sends, frames), (!sends, vec![other])]);
        assert_not_http2(&spoken("frames", turns.collect()), |left| left)?;
    }

    /// Where records are not whole frames nothing has to be found at once; what is told is right.
    #[test]
    fn joining_anywhere(which in any::<Index>(), from in any::<Index>(), size in 10usize..100) {
        let all = http2::dialogues();
        let dialogue = which.get(&all);
        let held = whole(dialogue);
        let segments = dialogue.segments(|left| left.min(size));
        let from = from.index(segments.len());
        let seen = play(dialogue, &segments[from..]).exchanges();
        let odd = invented(&parsed(&seen), &parsed(&held)).map(Value::to_string);
        prop_assert_eq!(odd, None, "invented: {} in pieces of {}, from record {}", dialogue.name, size, from);
    }
}

/// A block that takes nothing from a table, and leaves nothing there.
fn plain(fields: &[(&str, String)]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    encoder.how = How::Plain;
    encoder.block(fields)
}

/// What one side says without end, and how much is held of it at most.
fn held_at_most(limits: &Limits, bytes: impl Iterator<Item = Vec<u8>>) -> usize {
    let dialogue = Talk::new().dialogue("hostile", &[]);
    let mut pipeline = Pipeline::new(limits.clone());
    let mut most = 0;
    let mut handle = |record: &[u8]| {
        pipeline.handle_record(&Record::parse(record).unwrap());
        while pipeline.poll_output().is_some() {}
        most = most.max(pipeline.held());
    };
    handle(&dialogue.opened());
    dialogue.segments(|left| left).iter().for_each(|segment| handle(&segment.record()));
    let [opposite, mut position] = dialogue.positions();
    for (time, bytes) in bytes.enumerate() {
        let direction = Direction::Received;
        let length = bytes.len() as u64;
        handle(&Segment { direction, position, opposite, bytes, time: 10_000 + time as u64 }.record());
        position += length;
    }
    most
}

#[test]
fn hostile_bytes_are_held_within_the_limits() {
    let limits = Limits { memory: 4 << 20, ..Limits::default() };
    let mut asking = Encoder::default();
    let first = asking.block(&request("GET", "/", &[]));
    let large = vec![("x-large", "l".repeat(16_000))];

    let endless = std::iter::once(frame(kind::HEADERS, END_STREAM, 1, &first))
        .chain(std::iter::repeat_n(frame(kind::CONTINUATION, 0, 1, &plain(&large)), 2000));
    let streams = (0..100_000u32).map(|n| {
        let path = format!("/open/{n}/{}", "p".repeat(200));
        headers(2 * n + 1, 0, &plain(&request("POST", &path, &[])), usize::MAX)
    });
    // The peer never allowed such a table.
    let mut tables = Encoder::default();
    tables.resize(1 << 20);
    let tables = (0..3000u32).map(move |n| {
        let value = format!("{n}{}", "t".repeat(1000));
        let fields = [request("GET", "/", &[]), vec![("x-entry", value)]].concat();
        headers(2 * n + 1, END_STREAM, &tables.block(&fields), usize::MAX)
    });
    let pings = std::iter::repeat_n(ping(0).repeat(1000), 1000);
    // One large entry, and nothing but its index from then on.
    let bombs = (0..200u32).map(|n| {
        let mut bomb = Vec::new();
        if n == 0 {
            asking.field(&mut bomb, How::Inserting, "user-agent", &"u".repeat(3900));
        }
        bomb.extend(plain(&request("GET", "/", &[])));
        bomb.extend(vec![0x80 | 62; 16_000]);
        headers(2 * n + 1, END_STREAM, &bomb, usize::MAX)
    });
    // A text that says it is longer than anything.
    let mut lengths = vec![0x40];
    number(&mut lengths, 0, 7, 1 << 27);
    let lengths = (0..1000u32)
        .map(|n| headers(2 * n + 1, END_STREAM, &[&lengths[..], &[b'x'; 8000]].concat(), usize::MAX));
    let messages = std::iter::once(headers(
        1,
        0,
        &plain(&request("POST", "/a.B/C", &[("content-type", "application/grpc")])),
        usize::MAX,
    ))
    .chain(std::iter::repeat_n(data(1, &message(b"").repeat(3000), 0), 300));
    let frames = std::iter::repeat_n(frame(0xee, 0xff, 0x7fff_ffff, &[0; 100]).repeat(100), 1000);

    for (name, most) in [
        ("endless fields", held_at_most(&limits, endless)),
        ("open streams", held_at_most(&limits, streams)),
        ("tables", held_at_most(&limits, tables)),
        ("pings", held_at_most(&limits, pings)),
        ("one entry many times", held_at_most(&limits, bombs)),
        ("lengths", held_at_most(&limits, lengths)),
        ("messages", held_at_most(&limits, messages)),
        ("frames of no known type", held_at_most(&limits, frames)),
    ] {
        assert!(most <= limits.memory + (1 << 20), "{name}: {most} bytes are held");
    }
}

/// What is allocated is what is said to be held, about.
#[test]
fn what_is_held_is_what_is_counted() {
    let limits = Limits { memory: 8 << 20, ..Limits::default() };
    let streams = (0..100_000u32)
        .map(|n| headers(2 * n + 1, 0, &plain(&request("POST", &format!("/open/{n}"), &[])), usize::MAX));
    let used = allocation_counter::measure(|| {
        held_at_most(&limits, streams);
    });
    assert!(used.bytes_max < 3 * limits.memory as u64, "{} bytes for {}", used.bytes_max, limits.memory);
}

/// The spans of a dialogue, with all that they say.
fn spans(dialogue: &Dialogue, limits: Limits) -> Vec<Value> {
    let mut records = vec![dialogue.opened()];
    records.extend(dialogue.segments(|left| left).iter().map(Segment::record));
    records.extend(dialogue.over(900_000_000));
    parsed(&run(&records, limits).spans)
}

fn named(name: &str) -> Dialogue {
    http2::dialogues().into_iter().find(|dialogue| dialogue.name == name).expect("a dialogue")
}

#[test]
fn calls_say_what_they_are() {
    let dialogue = named("calls");
    let [add, get] = &spans(&dialogue, Limits::default())[..] else { panic!("two calls") };
    assert_eq!((&add["name"], &get["name"]), (&"shop.Cart/Add".into(), &"shop.Cart/Get".into()));
    for (key, value) in [
        ("rpc.system.name", Value::from("grpc")),
        ("rpc.method", "shop.Cart/Add".into()),
        ("rpc.response.status_code", "OK".into()),
        ("tracer.rpc.timeout", "150ms".into()),
        ("tracer.request.message.size", 6.into()),
        ("tracer.response.message.size", 5.into()),
        ("user_agent.original", "grpc-go/1.80.0".into()),
        ("server.address", "example.com".into()),
        ("network.protocol.version", "2".into()),
        ("tracer.parent.evidence", "header".into()),
    ] {
        assert_eq!(add["attributes"][key], value, "{key}");
    }
    assert_eq!(add["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(add["parentSpanId"], "b7ad6b7169203331");
    assert_eq!((&add["status"]["code"], &get["status"]["code"]), (&"UNSET".into(), &"UNSET".into()));
    assert_eq!(get["attributes"]["error.type"], Value::Null, "not found is no error of a server");
    assert!(!get.to_string().contains("cart\""), "what a server says stays with it: {get}");
    let shown = Limits { shown: Shown { grpc_message: true, ..Shown::default() }, ..Limits::default() };
    assert_eq!(spans(&dialogue, shown)[1]["attributes"]["tracer.rpc.message"], "no such cart");
    let get = &spans(&dialogue.of_client(), Limits::default())[1];
    assert_eq!(
        (&get["status"]["code"], &get["attributes"]["error.type"]),
        (&"ERROR".into(), &"NOT_FOUND".into())
    );
}

#[test]
fn messages_have_times() {
    let calls = spans(&named("calls with streams of messages"), Limits::default());
    let times = |method: &str, name: &str| -> Vec<u64> {
        let span = calls.iter().find(|span| span["name"] == method).expect("a call");
        let events = span["events"].as_array().expect("events").iter();
        let events = events.filter(|event| event["name"] == format!("tracer.{name}"));
        events
            .map(|event| event["timeUnixNano"].as_str().and_then(|time| time.parse().ok()).expect("a time"))
            .collect()
    };
    let [first, last] = [
        times("shop.Stock/Watch", "response.first_message"),
        times("shop.Stock/Watch", "response.last_message"),
    ];
    assert!(first.len() == 1 && last.len() == 1 && first < last, "{first:?} {last:?}");
    assert_eq!(times("shop.Stock/Watch", "request.first_message").len(), 1);
    assert_eq!(times("shop.Stock/Watch", "request.last_message"), [0u64; 0], "there was but one");
    assert_eq!(times("shop.Stock/Load", "request.last_message").len(), 1);
    let sizes = |method: &str| {
        let span = calls.iter().find(|span| span["name"] == method).expect("a call");
        ["request", "response"].map(|side| span["attributes"][format!("tracer.{side}.message.size")].clone())
    };
    assert_eq!(sizes("shop.Stock/Watch"), [3, 206].map(Value::from));
    assert_eq!(sizes("shop.Stock/Load"), [16, 6].map(Value::from));
}

#[test]
fn a_proxy_answers_in_its_own_words() {
    for span in spans(&named("calls that a proxy answers"), Limits::default()) {
        let status = &span["attributes"]["http.response.status_code"];
        assert!(*status == 502 || *status == 503, "{span}");
        assert_eq!(span["attributes"]["error.type"], status.to_string()[..]);
        assert_eq!(span["attributes"]["rpc.response.status_code"], Value::Null);
        assert_eq!(span["status"]["code"], "ERROR");
    }
}

#[test]
fn an_upgrade_is_one_exchange_with_an_interim_response() {
    let spans = spans(&named("an upgrade to HTTP2"), Limits::default());
    let interim = |span: &Value| -> Vec<Value> {
        let events = span["events"].as_array().expect("events").iter();
        let events = events.filter(|event| event["name"] == "tracer.response.interim");
        events.map(|event| event["attributes"]["http.response.status_code"].clone()).collect()
    };
    let up = spans.iter().find(|span| span["attributes"]["url.path"] == "/up").expect("the first");
    assert_eq!(interim(up), [Value::from(101)]);
    assert_eq!(spans.len(), 2);
}

#[test]
fn a_response_that_is_pushed_answers_nothing() {
    let dialogue = named("a response that is pushed");
    let outcome = play(&dialogue, &dialogue.segments(|left| left));
    assert_eq!((outcome.spans.len(), outcome.pipeline.ledger().orphans), (2, 1));
}

/// What was asked before the tracer came is counted, not told.
#[test]
fn answers_to_what_was_asked_before_are_counted() {
    let dialogue = named("streams that end in another order");
    let from = dialogue.asked[3];
    let outcome = joined(&dialogue, from, dialogue.role);
    assert_eq!((outcome.spans.len(), outcome.pipeline.ledger().orphans), (1, 3), "{:?}", outcome.lines());
}

/// A frame that breaks the rules ends what is known, and costs only a little.
#[test]
fn broken_frames_do_not_stop_it() {
    let bad = [
        ("a block that starts in its midst", frame(kind::CONTINUATION, END_HEADERS, 1, b"\x82")),
        (
            "a block that goes on on another stream",
            [frame(kind::HEADERS, 0, 1, b"\x82"), frame(kind::CONTINUATION, END_HEADERS, 3, b"\x86")]
                .concat(),
        ),
        ("more padding than there is", data(1, b"\xffabc", 8)),
        ("fields that are all padding", frame(kind::HEADERS, END_HEADERS | 8, 7, b"\xffabc")),
        ("content of no stream", data(0, b"abc", 0)),
        ("a reset of the wrong length", frame(kind::RST_STREAM, 0, 1, b"abc")),
        ("an index of nothing", frame(kind::HEADERS, END_HEADERS | END_STREAM, 7, b"\x82\xff\xff\x01")),
        ("settings of no whole number", frame(kind::SETTINGS, 0, 0, b"abcd")),
    ];
    for (name, bytes) in bad {
        for who in [CLIENT, SERVER] {
            let dialogue = Talk::new()
                .get(1, "/1")
                .say(who, bytes.clone())
                .close(1, 200)
                .dialogue(name, &[])
                .with_tail();
            let outcome = play(&dialogue, &dialogue.segments(|left| left));
            let tail = outcome.lines().into_iter().filter(|line| line.contains("/tail")).collect::<Vec<_>>();
            assert_eq!(
                tail,
                ["GET /tail1 200 2", "GET /tail2 200 2"],
                "{name} of the {who}: {:?}",
                outcome.lines()
            );
        }
    }
}

/// Any record is lost, or half of it was not copied: the same as the laws ask, of each of them.
#[test]
fn nothing_is_invented_beside_any_gap() {
    for (dialogue, size) in
        http2::dialogues().into_iter().flat_map(|dialogue| [(dialogue.clone(), 9), (dialogue, 1000)])
    {
        let held = parsed(&whole(&dialogue));
        let segments = dialogue.segments(|left| left.min(size));
        for at in 0..segments.len() {
            for copied in [None, Some(segments[at].bytes.len() / 2)] {
                let mut records = vec![dialogue.opened()];
                records.extend(segments.iter().enumerate().filter_map(|(index, segment)| {
                    if index != at {
                        Some(segment.record())
                    } else {
                        copied.map(|copied| segment.record_of(copied))
                    }
                }));
                records.extend(dialogue.over(900_000_000));
                let outcome = run(&records, Limits::default());
                outcome.assert_ledger_sums();
                let (seen, what) = (parsed(&outcome.exchanges()), &segments[at]);
                let odd = invented(&seen, &held);
                assert_eq!(odd, None, "{copied:?} of {what:?} in {}: {:?}", dialogue.name, outcome.lines());
            }
        }
    }
}

/// A gap says nothing of streams that begin after it, also while it is waited for.
#[test]
fn streams_after_a_gap_are_whole() {
    let dialogue = Talk::new().get(1, "/1").close(1, 200).dialogue("a gap", &["GET /1 200 0"]).with_tail();
    let held = whole(&dialogue);
    for lost in [1, 2, 5] {
        let mut segments = dialogue.segments(|left| left);
        segments.remove(lost);
        let seen = play(&dialogue, &segments).exchanges();
        let tail: Vec<_> = held.iter().filter(|span| span.contains("/tail")).collect();
        assert!(tail.iter().all(|span| seen.contains(span)), "without {lost}: {seen:#?}");
    }
}

/// What a server says that has a word for the end of a stream comes after all that it said before.
#[test]
fn the_end_of_a_stream_is_told_once() {
    let talk = Talk::bare()
        .say(CLIENT, [PREFACE, &settings(&[])].concat())
        .say(SERVER, [settings(&[]), acknowledged()].concat())
        .get(1, "/1")
        .close(1, 200)
        .say(SERVER, reset(1, 2))
        .say(CLIENT, reset(1, 8))
        .close(1, 500)
        .last(SERVER, 1, b"more");
    whole(&talk.dialogue("after the end", &["GET /1 200 0"]));
}

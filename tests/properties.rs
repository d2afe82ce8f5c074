//! Laws that hold for every protocol of the registry.

#[path = "properties/cgroup.rs"]
mod cgroup;
#[path = "properties/encoder.rs"]
mod encoder;
#[path = "properties/http2.rs"]
mod http2;
#[path = "properties/stitch.rs"]
mod stitch;

use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::Value;
use tracer_agent::{
    capture::{MAGIC, Reader, Record, encode, frame, own},
    pipeline::{Limits, Pipeline},
    protocol::PROTOCOLS,
    stats::Bucket,
};
use tracer_common::{
    connection::{Direction, Role},
    record::{Closed, Data, Ended, Header, Opened, Shut, kind},
};
use tracer_tests::{
    dialogue::{Dialogue, Outcome, Segment, closed, ended, invented, parsed, run, samples, shut},
    http,
};

fn dialogues() -> Vec<Dialogue> {
    PROTOCOLS.iter().flat_map(|protocol| samples(protocol.name())).collect()
}

fn play(dialogue: &Dialogue, segments: &[Segment]) -> Outcome {
    play_parts(dialogue, [segments, &[]])
}

/// So much time passes between the two parts that nothing is waited for any more.
fn play_parts(dialogue: &Dialogue, parts: [&[Segment]; 2]) -> Outcome {
    let mut records = vec![dialogue.opened()];
    records.extend(parts[0].iter().map(Segment::record));
    if !parts[1].is_empty() {
        records.push(own::tick(500_000_000));
    }
    let later = |segment: &Segment| Segment { time: segment.time + 500_000_000, ..segment.clone() }.record();
    records.extend(parts[1].iter().map(later));
    records.extend(dialogue.over(900_000_000));
    let outcome = run(&records, Limits::default());
    outcome.assert_ledger_sums();
    outcome
}

fn whole(dialogue: &Dialogue) -> Vec<String> {
    let outcome = play(dialogue, &dialogue.segments(|left| left));
    // A client names what it asked for by its whole URL, where that is known.
    assert_eq!(in_order(outcome.lines()), in_order(dialogue.exchanges.clone()), "{}", dialogue.name);
    outcome.exchanges()
}

/// Whether it is one of those that were held, but for messages that could not be counted.
fn contains(held: &[String], line: &String) -> bool {
    held.contains(line)
        || line.contains("rpc.") && invented(&parsed(std::slice::from_ref(line)), &parsed(held)).is_none()
}

fn in_order(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

#[test]
fn dialogues_have_the_exchanges_that_were_held() {
    for dialogue in dialogues() {
        let exchanges = whole(&dialogue);
        assert!(exchanges.iter().all(|line| !line.contains("tracer.partial")), "{}", dialogue.name);
    }
}

#[test]
fn one_byte_pieces_give_the_same_exchanges() {
    for dialogue in dialogues() {
        let pieces = play(&dialogue, &dialogue.segments(|_| 1));
        assert_eq!(pieces.exchanges(), whole(&dialogue), "{}", dialogue.name);
    }
}

#[test]
fn a_client_sees_the_same_exchanges_as_its_server() {
    for dialogue in dialogues() {
        let server = whole(&dialogue).len();
        let client = whole(&dialogue.of_client());
        assert_eq!(client.len(), server);
        assert!(client.iter().all(|line| line.contains(r#""kind":"CLIENT""#)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn cut_anywhere(which in any::<Index>(), sizes in vec(1usize..40, 1..40)) {
        let all = dialogues();
        let dialogue = which.get(&all);
        let mut sizes = sizes.into_iter().cycle();
        let segments = dialogue.segments(|_| sizes.next().unwrap_or(1));
        prop_assert_eq!(play(dialogue, &segments).exchanges(), whole(dialogue));
    }

    /// Records of the two directions, and of two neighbours, can come out of order.
    #[test]
    fn swap_neighbours(which in any::<Index>(), sizes in vec(1usize..60, 1..20), at in vec(any::<Index>(), 1..6)) {
        let all = dialogues();
        let dialogue = which.get(&all);
        let mut sizes = sizes.into_iter().cycle();
        let mut segments = dialogue.segments(|_| sizes.next().unwrap_or(1));
        prop_assume!(segments.len() > 1);
        // Where a direction starts is told by its first record.
        let first = |segment: &Segment| segment.position == 0;
        let mut swapped = std::collections::BTreeSet::new();
        for index in at {
            let index = index.index(segments.len() - 1);
            let same = segments[index].direction == segments[index + 1].direction;
            if same && first(&segments[index]) {
                continue;
            }
            // Each record moves by one place at most.
            if swapped.insert(index) && !swapped.contains(&(index + 1)) && (index == 0 || !swapped.contains(&(index - 1))) {
                segments.swap(index, index + 1);
            }
        }
        let (seen, held) = (play(dialogue, &segments).exchanges(), whole(dialogue));
        if dialogue.asked.is_empty() {
            prop_assert_eq!(seen, held);
        } else {
            // Which of two streams was the first to end is not known.
            prop_assert_eq!(in_order(seen), in_order(held));
        }
    }

    /// Nothing is invented: what is whole is one of the exchanges that were held, and those that
    /// follow a gap come back.
    #[test]
    fn drop_a_segment(which in any::<Index>(), dropped in any::<Index>(), size in 1usize..80) {
        let all = dialogues();
        let dialogue = which.get(&all).clone();
        prop_assume!(dialogue.tail.is_some());
        let in_order = dialogue.asked.is_empty();
        // Where records are shorter than a frame's header, their ends prove nothing.
        let size = if in_order { size } else { size.max(9) };
        let body = dialogue.segments(|left| left.min(size)).len();
        // Something to come back to.
        let dialogue = dialogue.with_tail();
        let held = whole(&dialogue);
        let mut turns = 0..;
        // Streams are found again where records start and end with frames.
        let cut = |left: usize| if !in_order && turns.next() >= Some(body) { left } else { left.min(size) };
        let mut segments = dialogue.segments(cut);
        let missing = segments.remove(dropped.index(body));
        // Where streams are not in order, what begins while a hole is waited for may be in doubt as well, and
        // the hole may show by the first exchange that follows.
        let (before, after) = segments.split_at(segments.len() - if in_order { 0 } else { 3 });
        let outcome = play_parts(&dialogue, [before, after]);
        let seen = outcome.exchanges();
        if in_order {
            for line in seen.iter().filter(|line| line.contains("http.response.status_code")) {
                if !line.contains("tracer.partial") && !line.contains("tracer.outcome") {
                    // A hole in a body leaves the exchange as it was.
                    prop_assert!(contains(&held, line), "invented: {}", line);
                }
            }
            prop_assert_eq!(seen.last(), held.last(), "did not come back");
        } else {
            let odd = invented(&parsed(&seen), &parsed(&held)).map(Value::to_string);
            prop_assert_eq!(odd, None, "invented, without {:?} in {}", missing, dialogue.name);
            let last = held.iter().find(|line| line.contains("/tail2"));
            // What hides an upgrade from HTTP/1 hides all that follows.
            let first = dialogue.turns.iter().find(|(direction, _)| *direction == missing.direction);
            let hidden = dialogue.name.starts_with("an upgrade")
                && missing.position < first.map_or(0, |(_, bytes)| bytes.len() as u64);
            let back = hidden || seen.iter().any(|line| Some(line) == last);
            prop_assert!(back, "did not come back, without {:?} in {}: {:?}", missing, dialogue.name, outcome.lines());
        }
        // Without its first bytes a connection is one that was open before.
        prop_assert!(outcome.pipeline.ledger().holes > 0 || missing.position == 0);
    }

    /// Bytes that were not copied leave a body as long as it is, and never a head.
    #[test]
    fn copy_only_a_part(which in any::<Index>(), at in any::<Index>(), keep in 0usize..50, size in 1usize..80) {
        let all = dialogues();
        let dialogue = which.get(&all);
        let segments = dialogue.segments(|left| left.min(size));
        let held = whole(dialogue);
        let short = at.index(segments.len());
        let mut records = vec![dialogue.opened()];
        records.extend(segments.iter().enumerate().map(|(index, segment)| {
            if index == short { segment.record_of(keep.min(segment.bytes.len())) } else { segment.record() }
        }));
        records.extend(dialogue.over(900_000_000));
        let outcome = run(&records, Limits::default());
        outcome.assert_ledger_sums();
        let seen = outcome.exchanges();
        if dialogue.asked.is_empty() {
            for line in seen {
                let partial = line.contains("tracer.partial") || line.contains("tracer.outcome");
                prop_assert!(partial || contains(&held, &line), "invented: {}", line);
            }
        } else {
            let odd = invented(&parsed(&seen), &parsed(&held)).map(Value::to_string);
            prop_assert_eq!(odd, None, "invented, with {} of {:?} in {}", keep, segments[short], dialogue.name);
        }
    }

    /// Records that no kernel would write.
    #[test]
    fn any_records_at_all(records in vec((0usize..9, any::<[u64; 4]>(), vec(any::<u8>(), 0..60)), 1..40)) {
        let mut pipeline = Pipeline::new(Limits { memory: 1 << 20, ..Limits::default() });
        for (kind, numbers, payload) in records {
            let bytes = record(kind, numbers, &payload);
            if let Ok(record) = Record::parse(&bytes) {
                pipeline.handle_record(&record);
            }
            while pipeline.poll_output().is_some() {}
        }
        pipeline.handle_record(&Record::Finished { now: u64::MAX });
        while pipeline.poll_output().is_some() {}
        let ledger = pipeline.ledger();
        prop_assert_eq!(ledger.bytes.sum(), ledger.told);
    }

    /// A file that is cut or changed anywhere is read up to there, and said to be damaged.
    #[test]
    fn damaged_files(at in any::<Index>(), change in 1u8..=255, cut in any::<bool>()) {
        let dialogue = &dialogues()[0];
        let mut file = MAGIC.to_vec();
        for segment in dialogue.segments(|left| left.min(50)) {
            let record = segment.record();
            file.extend_from_slice(&frame(&record));
            file.extend_from_slice(&record);
        }
        let whole = Reader::new(&file).unwrap().count();
        let at = MAGIC.len() + at.index(file.len() - MAGIC.len());
        if cut { file.truncate(at) } else { file[at] ^= change }
        let read: Vec<_> = Reader::new(&file).unwrap().take(1000).collect();
        let good = read.iter().take_while(|record| record.is_ok()).count();
        prop_assert!(good < whole);
        // A file that is cut between two records has no damage, and no end either.
        prop_assert!(read.iter().skip(good).take(1).all(Result::is_err));
    }

    #[test]
    fn any_bytes_at_all(turns in vec((any::<bool>(), vec(any::<u8>(), 1..300)), 1..20), role in 0u8..3) {
        let dialogue = noise(turns, role);
        let outcome = play(&dialogue, &dialogue.segments(|left| left));
        prop_assert_eq!(outcome.spans.len(), 0);
    }

    /// Pieces of the real thing in any order: whatever comes out, the books balance.
    #[test]
    fn pieces_of_messages(turns in vec((any::<bool>(), 0usize..PIECES.len()), 1..40), role in 0u8..3, size in 1usize..30) {
        let turns = turns.into_iter().map(|(sent, piece)| (sent, PIECES[piece].to_vec())).collect();
        let dialogue = noise(turns, role);
        play(&dialogue, &dialogue.segments(|left| left.min(size)));
    }
}

/// Numbers are small or anything, so that they meet and that they overflow.
fn record(kind: usize, numbers: [u64; 4], payload: &[u8]) -> Vec<u8> {
    let [a, b, c, d] = numbers.map(|number| if number % 3 == 0 { number } else { number % 64 });
    let header = Header::default();
    let cookie = d % 3;
    match kind {
        0 => encode(kind::OPENED, a, 1, &Opened { header, cookie, role: b as u8, ..Default::default() }, &[]),
        1 => encode(
            kind::CLOSED,
            a,
            1,
            &Closed { header, cookie, positions: [b, c], bases: [a as u32, 0], ..Default::default() },
            &[],
        ),
        2 => encode(
            kind::ENDED,
            a,
            1,
            &Ended { header, cookie, result: -(b as i32 & 1), direction: c as u8 & 1, ..Default::default() },
            &[],
        ),
        3 => encode(
            kind::SHUT,
            a,
            1,
            &Shut { header, cookie, direction: b as u8 & 1, ..Default::default() },
            &[],
        ),
        4 => own::tick(a),
        _ => {
            let data = Data {
                header,
                cookie,
                position: b,
                opposite: c,
                length: payload.len() as u32 + (a as u32 & 0xff),
                captured: payload.len() as u32,
                bases: [(a as u32) & 3, 0],
                direction: (a as u8 >> 3) & 1,
                ..Default::default()
            };
            // Some of them speak.
            let spoken = PIECES[(d % 64) as usize % PIECES.len()];
            let payload = if d % 2 == 0 && spoken.len() <= payload.len() {
                [spoken, &payload[spoken.len()..]].concat()
            } else {
                payload.to_vec()
            };
            encode(kind::DATA, a, 1, &data, &payload)
        }
    }
}

const PIECES: [&[u8]; 28] = [
    b"GET / HTTP/1.1\r\n",
    b"POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    b"Host: a\r\n",
    b"\r\n\r\n",
    b"\r\n",
    b"\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    b"Content-Length: 18446744073709551615\r\n",
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"0\r\n\r\n",
    b"5\r\nabcde\r\n",
    b"\0\xff\x16\x03\x01",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    b"\0\0\0\x04\0\0\0\0\0",
    b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84",
    b"\0\0\x03\x01\x00\0\0\0\x03\x82\x86\x84",
    b"\0\0\x01\x01\x04\0\0\0\x01\x88",
    b"\0\0\x02\x09\x04\0\0\0\x03\xbe\x3f",
    b"\0\0\x02\0\x01\0\0\0\x01ok",
    b"\0\0\x03\0\x08\0\0\0\x03\xffok",
    b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08",
    b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0",
    b"\0\0\x05\x05\x04\0\0\0\x01\0\0\0\x02\x82",
    b"\0\xff\xff\0\0\0\0\0\x05",
];

fn noise(turns: Vec<(bool, Vec<u8>)>, role: u8) -> Dialogue {
    let turns = turns
        .into_iter()
        .map(|(sent, bytes)| (if sent { Direction::Sent } else { Direction::Received }, bytes))
        .collect();
    let dialogue = Dialogue::server("noise", &[], &[]);
    Dialogue { role: Role::from_wire(role), turns, ..dialogue }
}

/// A head that never ends, and a body that never comes, in one direction of many connections.
#[test]
fn memory_is_bounded() {
    let limits = Limits { memory: 8 << 20, ..Limits::default() };
    let mut records = Vec::new();
    for connection in 0..200u64 {
        let mut position = 0;
        let mut head = b"GET /".to_vec();
        for piece in 0..40 {
            head.resize(4096, b'a');
            let segment = Segment {
                direction: Direction::Received,
                // A hole after the first piece: what follows is held.
                position: position + (piece > 0) as u64 * 100,
                opposite: 0,
                bytes: std::mem::take(&mut head),
                time: connection * 1_000 + piece,
            };
            position += 4096;
            let mut record = segment.record();
            // The cookie follows the header.
            record[24..32].copy_from_slice(&connection.to_le_bytes());
            records.push(record);
        }
    }
    let mut pipeline = tracer_agent::pipeline::Pipeline::new(limits.clone());
    let mut most = 0;
    for record in &records {
        pipeline.handle_record(&tracer_agent::capture::Record::parse(record).unwrap());
        most = most.max(pipeline.held());
    }
    assert!(most <= limits.memory + (2 << 20), "held {most} of {}", limits.memory);
    let ledger = pipeline.ledger();
    assert!(ledger.evicted > 0 && ledger.bytes.get(Bucket::OverLimit) > 0, "{ledger:?}");
}

/// Also in one-byte pieces; a cost that grew with the square of the length would show as minutes here.
#[test]
fn a_long_head_in_small_pieces_is_whole() {
    for length in [1_000, 64_000] {
        let head =
            format!("GET /{} HTTP/1.1\r\nX: {}\r\n\r\n", "p".repeat(length / 2), "v".repeat(length / 2));
        let dialogue = Dialogue::server(
            "long",
            &[],
            &[("client", head.as_bytes()), ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")],
        );
        assert_eq!(play(&dialogue, &dialogue.segments(|_| 1)).spans.len(), 1);
    }
}

/// Content whose end only the end of the connection tells is whole if that came in order.
#[test]
fn until_close_needs_an_end_in_order() {
    let dialogue = dialogues().into_iter().find(|dialogue| dialogue.name.contains("until close")).unwrap();
    let mut records = vec![dialogue.opened()];
    records.extend(dialogue.segments(|left| left).iter().map(Segment::record));
    let outcome = |end: Vec<Vec<u8>>| {
        let mut all = records.clone();
        all.extend(end);
        let spans = run(&all, Limits::default()).exchanges();
        assert_eq!(spans.len(), 1);
        spans[0].clone()
    };
    assert!(!outcome(dialogue.over(5_000)).contains("tracer.outcome"));
    let [sent, received] = dialogue.positions();
    let gone = ended(5_000, Direction::Received, received, -104);
    let left = outcome(vec![gone, closed(5_001, [sent, received])]);
    assert!(left.contains(r#""tracer.outcome":"aborted""#), "{left}");
    let silent = outcome(vec![closed(5_001, [sent, received])]);
    assert!(silent.contains(r#""tracer.outcome":"connection_closed""#), "{silent}");
}

/// What `records` are made to, with the dialogue's opening before them.
fn spans(dialogue: &Dialogue, records: Vec<Vec<u8>>) -> Vec<String> {
    let mut all = vec![dialogue.opened()];
    all.extend(records);
    let outcome = run(&all, Limits::default());
    outcome.assert_ledger_sums();
    outcome.exchanges()
}

/// A response that was lost before the end of the connection is missing, not refused.
#[test]
fn a_lost_response_is_no_failure_of_the_server() {
    let dialogue = Dialogue::server(
        "lost",
        &["GET /lost 200 5"],
        &[
            ("client", b"GET /lost HTTP/1.1\r\nConnection: close\r\n\r\n"),
            ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ],
    );
    let whole = dialogue.segments(|left| left);
    let pieces = dialogue.segments(|left| left.min(30));
    let tail_lost: Vec<Vec<u8>> = pieces[..pieces.len() - 1].iter().map(Segment::record).collect();
    for seen in [vec![whole[0].record()], tail_lost] {
        for end in [dialogue.over(5_000), vec![closed(5_001, dialogue.positions())]] {
            let spans = spans(&dialogue, seen.iter().cloned().chain(end).collect());
            assert_eq!(spans.len(), 1);
            assert!(spans[0].contains(r#""tracer.partial":"response""#), "{}", spans[0]);
            assert!(!spans[0].contains("tracer.outcome") && !spans[0].contains("error.type"), "{}", spans[0]);
        }
    }
    let early = spans(&dialogue, vec![whole[0].record(), shut(5_000, 0), closed(5_001, [0, 46])]);
    assert!(early[0].contains(r#""tracer.outcome":"connection_closed""#), "{}", early[0]);
}

/// A client whose upload is refused reads the refusal after its send has failed.
#[test]
fn a_failed_send_does_not_hide_the_response() {
    let dialogue = Dialogue::server(
        "refused",
        &["POST /up 413 2"],
        &[
            ("client", b"POST /up HTTP/1.1\r\nContent-Length: 1000\r\n\r\nsome"),
            ("server", b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"),
        ],
    );
    let dialogue = dialogue.of_client();
    let [sent, received] = dialogue.positions();
    let parts = dialogue.segments(|left| left);
    let records = vec![
        parts[0].record(),
        ended(2_000, Direction::Sent, sent, -32),
        // Neither of these says that the connection is over.
        ended(2_001, Direction::Received, 0, -14),
        ended(2_002, Direction::Sent, sent, -115),
        parts[1].record(),
        ended(3_000, Direction::Received, received, 0),
        closed(3_001, [sent, received]),
    ];
    let spans = spans(&dialogue, records);
    assert_eq!(spans.len(), 1);
    assert!(spans[0].contains(r#""http.response.status_code":413"#), "{}", spans[0]);
}

/// Two requests at once, then a third; the first response is missing. The second response starts just
/// where the third request was read, and is not its own.
#[test]
fn a_gap_in_pipelined_responses_pairs_nothing_wrongly() {
    let dialogue = Dialogue::server(
        "pipelined gap",
        &[],
        &[
            ("client", b"GET /r1 HTTP/1.1\r\n\r\nGET /r2 HTTP/1.1\r\n\r\n"),
            ("server", b"HTTP/1.1 201 A\r\nContent-Length: 0\r\n\r\n"),
            ("client", b"GET /r3 HTTP/1.1\r\n\r\n"),
            ("server", b"HTTP/1.1 502 B\r\nContent-Length: 0\r\n\r\n"),
            ("server", b"HTTP/1.1 203 C\r\nContent-Length: 0\r\n\r\n"),
        ],
    );
    let mut records: Vec<Vec<u8>> = dialogue.segments(|left| left).iter().map(Segment::record).collect();
    records.remove(1);
    records.extend(dialogue.over(5_000));
    for span in spans(&dialogue, records) {
        assert!(!span.contains("/r3") || !span.contains("502"), "{span}");
    }
}

/// Messages that are refused are what somebody who looks for an error wants to see.
#[test]
fn heads_that_servers_refuse_are_seen() {
    let dialogue = Dialogue::server(
        "refused heads",
        &[
            "GET /odd 200 0",
            "GET /caf%E9 404 2",
            "POST /twice 400 0 partial=request ambiguous",
            "POST /zip 501 0 partial=request ambiguous",
            "GET /next 200 0",
        ],
        &[
            ("client", b"GET /odd HTTP/1.1\r\nX@Y: 1\r\n\r\n"),
            ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ("client", b"GET /caf\xe9 HTTP/1.1\r\n\r\n"),
            ("server", b"HTTP/1.1 404 No\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nno"),
            ("client", b"POST /twice HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            ("server", b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n"),
            ("client", b"POST /zip HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n"),
            ("server", b"HTTP/1.1 501 No\r\nContent-Length: 0\r\n\r\n"),
            ("client", b"GET /next HTTP/1.1\r\n\r\n"),
            ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ],
    );
    whole(&dialogue);
}

/// The kernel's sums are read while more bytes come in: the first position of a connection is then too
/// high by those, and its base too low by as much.
#[test]
fn a_torn_read_at_the_start_changes_nothing() {
    for dialogue in dialogues() {
        let segments = dialogue.segments(|left| left.min(40));
        for torn in [0, 1] {
            let mut records = vec![dialogue.opened()];
            records.extend(segments.iter().map(Segment::record));
            records.extend(dialogue.over(900_000_000));
            // Either in what opens the connection, or in its first bytes.
            tear(&mut records[torn], segments[0].direction, torn == 1);
            let outcome = run(&records, Limits::default());
            assert_eq!(outcome.exchanges(), whole(&dialogue), "{} torn in record {torn}", dialogue.name);
        }
    }
}

/// Moves a base of a record down by 615, and for bytes their position up.
fn tear(record: &mut [u8], direction: Direction, data: bool) {
    let bases = if data { std::mem::offset_of!(Data, bases) } else { std::mem::offset_of!(Opened, bases) };
    let at = bases + 4 * direction.index();
    let base = u32::from_le_bytes(record[at..at + 4].try_into().unwrap()).wrapping_sub(615);
    record[at..at + 4].copy_from_slice(&base.to_le_bytes());
    if data {
        let at = std::mem::offset_of!(Data, position);
        let position = u64::from_le_bytes(record[at..at + 8].try_into().unwrap()) + 615;
        record[at..at + 8].copy_from_slice(&position.to_le_bytes());
    }
}

/// Where a message ends for one recipient, another may begin: such a one is marked, and the next found.
#[test]
fn ambiguous_messages_are_marked() {
    for dialogue in http::ambiguous() {
        let exchanges = whole(&dialogue);
        let pieces = play(&dialogue, &dialogue.segments(|_| 1));
        assert_eq!(pieces.exchanges(), exchanges, "{}", dialogue.name);
    }
}

#[test]
fn what_is_no_known_protocol_is_no_exchange() {
    for dialogue in http::others().into_iter().chain([http::inside_a_tunnel()]) {
        whole(&dialogue);
        whole(&dialogue.of_client());
    }
}

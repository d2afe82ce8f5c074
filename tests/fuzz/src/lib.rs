//! What is fuzzed: every entrance of bytes that somebody else has made. Each function takes any input and
//! fails only by a panic: `cargo xtask fuzz` explores, and the tests here replay what was found.

use tracer_agent::{
    capture::{MAGIC, Reader, Record, encode, own},
    connection::stream::{After, Ending, Mark, Stream},
    export::{json, text},
    pipeline::{Limits, Pipeline},
    protocol::{Input, Kind, PROTOCOLS, Progress, Session, Shown, Side, What},
};
use tracer_common::{
    connection::{Direction, Role},
    record::{Closed, Data, Ended, Header, Opened, OpenedUnix, Shut, kind},
};
use zerocopy::FromZeros;

/// A capture file, and a record as the ring would give it.
pub fn record(bytes: &[u8]) {
    // As the ring would give them: each with its length, and without a checksum that a fuzzer cannot guess.
    let mut pipeline = Pipeline::new(Limits { memory: 1 << 20, ..Limits::default() });
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (bytes, after) = after.split_at(usize::from(u16::from_le_bytes(*length)).min(after.len()));
        rest = after;
        match Record::parse(bytes) {
            Ok(record) => pipeline.handle_record(&record),
            Err(_) => pipeline.handle_damage(),
        }
        while pipeline.poll_output().is_some() {}
    }
    finish(pipeline);
    let file = [&MAGIC[..], bytes].concat();
    let mut pipeline = Pipeline::new(Limits { memory: 1 << 20, ..Limits::default() });
    for record in Reader::new(&file).expect("the start is right") {
        let Ok(record) = record else { break };
        pipeline.handle_record(&record);
        while pipeline.poll_output().is_some() {}
    }
    finish(pipeline);
}

/// A session of a protocol of the registry, with bytes, gaps and ends on both sides.
pub fn protocol(bytes: &[u8]) {
    let Some(([first, second], rest)) = bytes.split_first_chunk::<2>() else { return };
    let protocol = PROTOCOLS[usize::from(*first) % PROTOCOLS.len()];
    let fresh = [second & 1 == 0, second & 2 == 0];
    let kind = if second & 4 == 0 { Kind::Server } else { Kind::Client };
    let shown = Shown { grpc_message: second & 8 != 0, ..Shown::default() };
    let mut session = protocol.session(fresh, kind, shown);
    let mut streams = [Stream::default(), Stream::default()];
    let mut time = 0;
    for Turn { side, gap, bytes } in Turns(rest) {
        time += 1;
        let at = side.index();
        let (position, opposite) = (streams[at].end(), streams[1 - at].end());
        let length = bytes.len() as u64 + gap;
        let mark = Mark { end: position + length, time, opposite, process: 1, thread: 1 };
        streams[at].insert(position, bytes, length, mark);
        if length == 0 {
            streams[at].finish(Ending::Eof);
        }
        // Both sides, as far as they go: each step takes something, or is one of a few that do not.
        let mut idle = 0;
        while idle < 8 {
            let mut went_on = false;
            for side in Side::BOTH {
                went_on |= step(&mut session, &mut streams, side);
            }
            idle = if went_on { 0 } else { idle + 1 };
        }
        assert!(session.held() < 64 << 20);
    }
}

/// Returns whether anything was taken.
fn step(session: &mut Box<dyn Session>, streams: &mut [Stream; 2], side: Side) -> bool {
    let stream = &streams[side.index()];
    let (bytes, after) = stream.readable();
    if bytes.is_empty() && after == After::More {
        return false;
    }
    let marks = stream.marks();
    let opposite = marks.at(stream.front()).map_or(0, |mark| mark.opposite);
    let other = &streams[side.other().index()];
    let (settled, other) = (other.end() >= opposite, (other.front(), other.end()));
    let (position, available) = (stream.front(), bytes.len() as u64);
    let gap = if let After::Gap(gap) = after { gap.length } else { 0 };
    let mut events = Vec::new();
    let input = Input { position, bytes, after, marks, settled, other };
    let progress = session.read(side, &input, &mut events);
    for event in &events {
        assert!(event.start <= event.end, "an event that ends before it starts: {event:?}");
        if let What::Data { length } = event.what {
            assert!(length <= available.max(gap), "more content than there were bytes");
        }
    }
    session.content_ahead(side);
    match progress {
        Progress::Read { length, .. } => {
            assert!(
                length <= available.max(if available == 0 { gap } else { 0 }),
                "took more than there was"
            );
            streams[side.index()].advance(length);
            length > 0
        }
        // The protocol that follows reads on.
        Progress::Switch(_) => match session.successor() {
            Some((_, successor)) => {
                *session = successor;
                true
            }
            None => false,
        },
        _ => false,
    }
}

struct Turn<'a> {
    side: Side,
    /// Bytes that are missing behind the others.
    gap: u64,
    bytes: &'a [u8],
}

/// A byte with the side and whether there is a gap, a length, the bytes.
struct Turns<'a>(&'a [u8]);

impl<'a> Iterator for Turns<'a> {
    type Item = Turn<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let ([control, length], rest) = self.0.split_first_chunk::<2>()?;
        let length = usize::from(*length) | usize::from(control >> 4) << 8;
        let (bytes, rest) = rest.split_at(length.min(rest.len()));
        self.0 = rest;
        let side = if control & 1 == 0 { Side::Request } else { Side::Response };
        let gap = if control & 2 == 0 { 0 } else { 1 << (control >> 4) };
        Some(Turn { side, gap, bytes })
    }
}

/// The writing of what [`protocol`] reads; turns that are longer than one can be become several.
pub fn turns(first: [u8; 2], turns: &[(Side, &[u8])]) -> Vec<u8> {
    let mut out = first.to_vec();
    for (side, bytes) in turns {
        for part in bytes.chunks(0xfff) {
            out.push(*side as u8 | ((part.len() >> 8) as u8) << 4);
            out.push(part.len() as u8);
            out.extend_from_slice(part);
        }
    }
    out
}

/// Records of all kinds in any order, for a few connections.
pub fn pipeline(bytes: &[u8]) {
    let limits = Limits { memory: 1 << 20, ..Limits::default() };
    let mut pipeline = Pipeline::new(limits.clone());
    let mut time = 1_000;
    // Where the directions of the connections stand, so that most records go on from there.
    let mut positions = [[0u64; 2]; 4];
    let mut rest = bytes;
    while let Some(([what, connection, length], after)) = rest.split_first_chunk::<3>() {
        let (payload, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        time += 1_000_000;
        let bytes = one(*what, *connection, payload, time, &mut positions);
        pipeline.handle_record(&Record::parse(&bytes).expect("a record as the probes write it"));
        while let Some(span) = pipeline.poll_output() {
            json::line(&span);
            text::line(&span, true);
        }
        while pipeline.poll_quiet().is_some() {}
        // One connection may be over the limit before the oldest go.
        assert!(pipeline.held() <= limits.memory + (17 << 20), "{} bytes are held", pipeline.held());
    }
    pipeline.handle_record(&Record::Finished { now: time });
    finish(pipeline);
}

fn one(what: u8, connection: u8, payload: &[u8], time: u64, positions: &mut [[u64; 2]; 4]) -> Vec<u8> {
    let header = Header::default();
    let index = usize::from(connection & 3);
    let cookie = index as u64 + 1;
    let direction = if connection & 4 == 0 { Direction::Sent } else { Direction::Received };
    let at = direction.index();
    let number = payload.iter().take(4).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    match what % 16 {
        0 => {
            let role = Role::from_wire(connection >> 3 & 3) as u8;
            encode(kind::OPENED, time, 1, &Opened { header, cookie, role, ..Default::default() }, &[])
        }
        1 => {
            let opened = OpenedUnix {
                cookie,
                fresh: connection >> 3 & 1,
                role: connection >> 4 & 3,
                path_length: number as u32,
                ..OpenedUnix::new_zeroed()
            };
            encode(kind::OPENED_UNIX, time, 1, &opened, &[])
        }
        2 => {
            let positions = positions[index];
            encode(kind::CLOSED, time, 1, &Closed { header, cookie, positions, ..Default::default() }, &[])
        }
        3 => {
            let result = -(i32::from(connection >> 3) * 4);
            let (position, direction) = (positions[index][at], direction as u8);
            let ended = Ended { header, cookie, position, result, direction, ..Default::default() };
            encode(kind::ENDED, time, 1, &ended, &[])
        }
        4 => {
            let shut = Shut {
                header,
                cookie,
                positions: positions[index],
                direction: direction as u8,
                reset: connection >> 3 & 1,
                ..Default::default()
            };
            encode(kind::SHUT, time, 1, &shut, &[])
        }
        5 => own::tick(time + number),
        kind => {
            // Now and then something is missing before, or behind, or told twice.
            let (before, behind) = match kind {
                6 => (number % 5000, 0),
                7 => (0, number % 100_000),
                _ => (0, 0),
            };
            let again = if kind == 8 { number % 50 } else { 0 };
            let position = (positions[index][at] + before).saturating_sub(again);
            let length = payload.len() as u64 + behind;
            let data = Data {
                header,
                cookie,
                position,
                opposite: positions[index][1 - at],
                length: length as u32,
                captured: payload.len() as u32,
                bases: if kind == 9 { [number as u32, 0] } else { [0; 2] },
                direction: direction as u8,
                omitted: connection >> 4,
                ..Default::default()
            };
            positions[index][at] = position + length;
            encode(tracer_common::record::kind::DATA, time, 1, &data, payload)
        }
    }
}

fn finish(pipeline: Pipeline) {
    let ledger = pipeline.ledger();
    if pipeline.is_finished() {
        assert_eq!(ledger.bytes.sum(), ledger.told, "bytes in buckets, and bytes told");
    }
    let _ = ledger.to_string();
    for open in pipeline.open_exchanges() {
        text::open(open);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).expect("a corpus") {
            let path = entry.expect("an entry").path();
            println!("{}", path.display());
            run(&std::fs::read(path).expect("an input"));
            count += 1;
        }
        assert!(count > 0, "{} is empty", folder.display());
    }

    #[test]
    fn corpus_of_record() {
        replay("record", record);
    }

    #[test]
    fn corpus_of_protocol() {
        replay("protocol", protocol);
    }

    #[test]
    fn corpus_of_pipeline() {
        replay("pipeline", pipeline);
    }
}

//! The core by itself: `cargo bench -p tracer-tests`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tracer_agent::{
    capture::{Record, own},
    connection::stream::{After, Mark, Stream},
    pipeline::{Limits, Pipeline},
    protocol::{Input, Kind, PROTOCOLS, Progress, Shown, Side},
};
use tracer_common::connection::Direction;
use tracer_tests::{dialogue::Dialogue, http};

fn keep_alive() -> Dialogue {
    http::dialogues().swap_remove(0)
}

/// Segments of 500 bytes in order, and with every other one late.
fn stream(criterion: &mut Criterion) {
    const SEGMENTS: u64 = 1000;
    const LENGTH: u64 = 500;
    let bytes = vec![b'x'; LENGTH as usize];
    let mut group = criterion.benchmark_group("stream");
    group.throughput(Throughput::Elements(SEGMENTS));
    for (name, late) in [("in order", false), ("every other late", true)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut stream = Stream::default();
                for number in 0..SEGMENTS {
                    let place = if late { number ^ 1 } else { number };
                    let position = place * LENGTH;
                    let mark =
                        Mark { end: position + LENGTH, time: number, opposite: 0, process: 1, thread: 1 };
                    stream.expect_at(0);
                    stream.insert(position, &bytes, LENGTH, mark);
                    let readable = stream.readable().0.len() as u64;
                    stream.advance(readable);
                }
                stream.front()
            });
        });
    }
    group.finish();
}

/// A request's and a response's head, with nothing else to do.
fn parser(criterion: &mut Criterion) {
    let dialogue = keep_alive();
    let mut group = criterion.benchmark_group("parser");
    let bytes: usize = dialogue.turns.iter().map(|(_, bytes)| bytes.len()).sum();
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("http", |bencher| {
        bencher.iter(|| {
            let mut session = PROTOCOLS[0].session([true; 2], Kind::Server, Shown::default());
            let mut streams = [Stream::default(), Stream::default()];
            let mut events = Vec::new();
            for (direction, bytes) in &dialogue.turns {
                let side = if *direction == Direction::Received { Side::Request } else { Side::Response };
                let opposite = streams[side.other().index()].end();
                let stream = &mut streams[side.index()];
                let end = stream.end() + bytes.len() as u64;
                stream.insert(
                    stream.end(),
                    bytes,
                    bytes.len() as u64,
                    Mark { end, time: 1, opposite, process: 1, thread: 1 },
                );
                loop {
                    let (bytes, after) = stream.readable();
                    if bytes.is_empty() && after == After::More {
                        break;
                    }
                    let input = Input {
                        position: stream.front(),
                        bytes,
                        after,
                        marks: stream.marks(),
                        settled: true,
                        other: (opposite, opposite),
                    };
                    match session.read(side, &input, &mut events) {
                        Progress::Read { length, .. } => stream.advance(length),
                        _ => break,
                    }
                }
            }
            events.len()
        });
    });
    group.finish();
}

/// Records of many exchanges on one connection, as the ring would give them.
fn records(exchanges: usize) -> Vec<Vec<u8>> {
    let request: &[u8] =
        b"GET /items HTTP/1.1\r\nHost: example.com\r\nUser-Agent: bench/1\r\nAccept: */*\r\n\r\n";
    let response: &[u8] = b"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nConnection: keep-alive\r\n\r\nhello\n";
    let turns: Vec<(&str, &[u8])> =
        (0..exchanges).flat_map(|_| [("client", request), ("server", response)]).collect();
    let dialogue = Dialogue::server("bench", &[], &turns);
    let mut records = vec![own::seed(0, [1; 32]), dialogue.opened()];
    records.extend(dialogue.segments(|left| left).iter().map(|segment| segment.record()));
    records
}

fn play(records: &[Vec<u8>]) -> usize {
    let mut pipeline = Pipeline::new(Limits::default());
    let mut spans = 0;
    for record in records {
        if let Ok(record) = Record::parse(record) {
            pipeline.handle_record(&record);
        }
        while pipeline.poll_output().is_some() {
            spans += 1;
        }
    }
    spans
}

fn pipeline(criterion: &mut Criterion) {
    const EXCHANGES: usize = 5000;
    let records = records(EXCHANGES);
    let mut spans = 0;
    let allocated = allocation_counter::measure(|| spans = play(&records));
    assert_eq!(spans, EXCHANGES);
    println!(
        "pipeline: {:.2} allocations and {:.0} bytes for each exchange",
        allocated.count_total as f64 / EXCHANGES as f64,
        allocated.bytes_total as f64 / EXCHANGES as f64
    );
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(records.len() as u64));
    group.bench_function("records", |bencher| {
        bencher.iter_batched(|| (), |()| play(&records), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, stream, parser, pipeline);
criterion_main!(benches);

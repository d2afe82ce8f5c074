//! Writes the inputs to begin with into the corpora: what the other tests know.

use std::path::Path;

use tracer_agent::{
    capture::MAGIC,
    protocol::{PROTOCOLS, Side},
};
use tracer_common::connection::Direction;
use tracer_fuzz::turns;
use tracer_tests::{
    dialogue::{Dialogue, samples},
    http,
};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = root.join(target);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(format!("seed-{}", name.replace([' ', '/', ','], "-"))), bytes)
            .expect("a file");
    };
    let others = [http::ambiguous(), http::others()].concat();
    for (index, protocol) in PROTOCOLS.iter().enumerate() {
        let more = if index == 0 { &others[..] } else { &[] };
        for dialogue in samples(protocol.name()).iter().chain(more) {
            let side =
                |direction| if direction == Direction::Received { Side::Request } else { Side::Response };
            let list: Vec<_> =
                dialogue.turns.iter().map(|(direction, bytes)| (side(*direction), &bytes[..])).collect();
            // What begins as another protocol is read by that one.
            let upgraded = dialogue.name.starts_with("an upgrade");
            let index = if upgraded { 0 } else { index as u8 };
            write("protocol", dialogue.name, &turns([index, 0], &list));
            write("pipeline", dialogue.name, &records(dialogue));
            if index > 0 {
                // Joined, by a client that shows what it can.
                write("protocol", &format!("{} joined", dialogue.name), &turns([index, 15], &list[4..]));
            }
        }
    }
    let captures = root.join("../../captures/http");
    for entry in std::fs::read_dir(captures).expect("captures") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a capture");
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut records = Vec::new();
        let mut rest = &bytes[MAGIC.len()..];
        while let Some((frame, after)) = rest.split_first_chunk::<8>() {
            let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
            records.extend_from_slice(&(length as u16).to_le_bytes());
            records.extend_from_slice(&after[..length]);
            rest = &after[length..];
        }
        write("record", &name, &records[..records.len().min(4096)]);
    }
}

fn records(dialogue: &Dialogue) -> Vec<u8> {
    let mut out = vec![0, 2 << 3, 0];
    for (direction, bytes) in &dialogue.turns {
        for part in bytes.chunks(255) {
            out.extend([15, if *direction == Direction::Sent { 0 } else { 4 }, part.len() as u8]);
            out.extend_from_slice(part);
        }
    }
    out.extend([4, 0, 0, 2, 0, 0]);
    out
}

//! Every capture file through the pipeline: the spans are as they were.

use std::path::{Path, PathBuf};

use tracer_agent::{
    capture::Reader,
    export::json,
    pipeline::{Limits, Pipeline},
};

fn captures(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the folder of captures cannot be read") {
        let path = entry.expect("an entry cannot be read").path();
        if path.is_dir() {
            captures(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "capture") {
            found.push(path);
        }
    }
}

#[test]
fn captures_give_the_spans_that_they_gave() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let mut files = Vec::new();
    captures(&root, &mut files);
    files.sort();
    assert!(!files.is_empty(), "there are no captures in {}", root.display());
    for file in files {
        let bytes = std::fs::read(&file).expect("a capture cannot be read");
        let name =
            file.strip_prefix(&root).unwrap().with_extension("").display().to_string().replace('/', "__");
        insta::assert_snapshot!(name, replay(&bytes));
    }
}

fn replay(bytes: &[u8]) -> String {
    let mut pipeline = Pipeline::new(Limits::default());
    let mut out = String::new();
    for record in Reader::new(bytes).expect("a capture that is none") {
        pipeline.handle_record(&record.expect("a damaged capture"));
        while let Some(span) = pipeline.poll_output() {
            out.push_str(&json::line(&span));
            out.push('\n');
        }
    }
    for open in pipeline.open_exchanges() {
        out.push_str(&tracer_agent::export::text::open(open));
        out.push('\n');
    }
    assert_eq!(pipeline.ledger().difference(), 0, "the ledger does not sum: {}", pipeline.ledger());
    out.push_str(&pipeline.ledger().to_string());
    out
}

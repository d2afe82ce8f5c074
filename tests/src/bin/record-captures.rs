//! Writes tests/captures anew, from real sockets, as root: `cargo xtask captures`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tracer_tests::{
    dialogue::Dialogue,
    http, http2,
    process::{Folder, program, python, run, workload},
};

/// Those of calls.py whose capture is small.
const CALLS: [&str; 10] = [
    "peek",
    "trunc",
    "many_pieces",
    "sendfile",
    "splice_to",
    "splice_from",
    "spliced_last",
    "half_close",
    "positional",
    "waitall",
];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let _ = std::fs::remove_dir_all(&root);
    let folder = Folder::new("captures");
    let dialogues =
        [http::dialogues(), http::ambiguous(), http::others(), vec![http::inside_a_tunnel()]].concat();
    let all = dialogues.iter().map(|dialogue| ("http", dialogue));
    let newer = http2::dialogues();
    for (name, dialogue) in all.chain(newer.iter().map(|dialogue| ("http2", dialogue))) {
        let script = folder.path("script.json");
        let scripts = serde_json::Value::from(vec![Dialogue::script(dialogue)]);
        std::fs::write(&script, scripts.to_string()).expect("a file");
        let script = script.display().to_string();
        let player = program("player").display().to_string();
        record(&root.join(name), dialogue.name, &[&player, &script, "all", "recvmsg"]);
    }
    let pieces = [("1", "read"), ("7", "readv"), ("random", "recvmmsg")];
    let script = folder.path("script.json");
    let keep_alive = serde_json::Value::from(vec![http::dialogues()[0].script()]);
    std::fs::write(&script, keep_alive.to_string()).expect("a file");
    let script = script.display().to_string();
    let player = program("player").display().to_string();
    for (cut, calls) in pieces {
        record(&root.join("calls"), &format!("{calls} in pieces of {cut}"), &[&player, &script, cut, calls]);
    }
    record(&root.join("calls"), "unix socket", &[&player, &script, "all", "read", "unix"]);
    let (python, calls) = (python().display().to_string(), workload("calls.py").display().to_string());
    for case in CALLS {
        let place = folder.path("").display().to_string();
        record(&root.join("calls"), case, &[&python, &calls, &place, case]);
    }
}

/// On a machine of another name, with an environment of its own: a capture tells of both.
fn record(folder: &Path, name: &str, command: &[&str]) {
    std::fs::create_dir_all(folder).expect("a folder");
    let file: PathBuf =
        folder.join(name.replace([' ', ','], "-").replace(['/', '\''], "")).with_extension("capture");
    let tracer = program("tracer");
    run(Command::new("unshare")
        .args(["--uts", "sh", "-c", "hostname machine && exec \"$@\"", "sh"])
        .arg(tracer)
        .args(["record", "--output", "none", "--strict", "--out"])
        .arg(&file)
        .arg("--")
        .args(command)
        .stdin(Stdio::null()));
}

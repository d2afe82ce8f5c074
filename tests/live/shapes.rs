//! HTTP in all its shapes over real sockets: cut into pieces in several ways and moved by all calls, the
//! exchanges are the same each time.

use std::{collections::BTreeMap, path::PathBuf};

use tracer_tests::{
    dialogue::Dialogue,
    http, http2,
    process::{Folder, Traced, Tracer, assert_same, count, program},
};

const CALLS: [&str; 4] = ["read", "readv", "recvmsg", "recvmmsg"];

fn script(folder: &Folder, dialogues: &[Dialogue]) -> PathBuf {
    let path = folder.path("script.json");
    let scripts: Vec<_> = dialogues.iter().map(Dialogue::script).collect();
    std::fs::write(&path, serde_json::Value::from(scripts).to_string()).expect("a file");
    path
}

fn play(file: &std::path::Path, cut: &str, calls: &str, more: &[&str]) -> Traced {
    let player = program("player");
    // What counts is what is seen, not how fast: with both ends here, a player is faster than any network.
    let mut arguments = vec!["--ring".into(), "64MiB".into(), "--".into(), player.into_os_string()];
    arguments.extend([file.into(), cut.into(), calls.into()]);
    arguments.extend(more.iter().map(Into::into));
    let traced = Tracer::start("trace", &arguments).wait();
    assert!(traced.status.success(), "{cut} {calls}: {}", traced.errors);
    traced.assert_complete();
    // For whoever looks for the reason of a failure.
    println!("{}", traced.ledger());
    traced
}

fn truth(dialogues: &[Dialogue]) -> BTreeMap<String, usize> {
    count(dialogues.iter().flat_map(|dialogue| dialogue.exchanges.clone()))
}

fn of_clients(dialogues: &[Dialogue]) -> Vec<Dialogue> {
    dialogues.iter().cloned().map(Dialogue::of_client).collect()
}

fn assert_played(traced: &Traced, dialogues: &[Dialogue]) {
    assert_same(&traced.exchanges("SERVER"), &truth(dialogues));
    assert_same(&traced.exchanges("CLIENT"), &truth(&of_clients(dialogues)));
}

#[test]
fn shapes_are_the_same_in_every_cut_and_by_every_call() {
    let folder = Folder::new("shapes");
    let dialogues = [http::dialogues(), vec![http::inside_a_tunnel()]].concat();
    let file = script(&folder, &dialogues);
    for calls in CALLS {
        for cut in ["1", "7", "random", "all"] {
            println!("{calls} in pieces of {cut}");
            assert_played(&play(&file, cut, calls, &[]), &dialogues);
        }
    }
}

/// Frames are cut anywhere, also in their headers.
#[test]
fn frames_are_the_same_in_every_cut_and_by_every_call() {
    let folder = Folder::new("frames");
    let dialogues = http2::dialogues();
    let file = script(&folder, &dialogues);
    for calls in CALLS {
        for cut in ["1", "7", "random", "all"] {
            println!("{calls} in pieces of {cut}");
            assert_played(&play(&file, cut, calls, &[]), &dialogues);
        }
    }
}

/// Where a recipient stops to read after a message that it does not understand, a new one is found where
/// a call begins: so these are not cut into bytes.
#[test]
fn ambiguous_messages_are_marked_by_every_call() {
    let folder = Folder::new("ambiguous");
    let dialogues = http::ambiguous();
    let file = script(&folder, &dialogues);
    for calls in CALLS {
        assert_played(&play(&file, "all", calls, &[]), &dialogues);
    }
}

#[test]
fn large_messages_are_seen_by_every_call() {
    let folder = Folder::new("large-shapes");
    let dialogues = http::large();
    let file = script(&folder, &dialogues);
    for calls in CALLS {
        for cut in ["random", "5000", "all"] {
            println!("{calls} in pieces of {cut}");
            assert_played(&play(&file, cut, calls, &[]), &dialogues);
        }
    }
}

#[test]
fn what_is_not_http_is_no_exchange() {
    let folder = Folder::new("others");
    let dialogues = http::others();
    let file = script(&folder, &dialogues);
    for cut in ["1", "random", "all"] {
        let traced = play(&file, cut, "read", &[]);
        assert_eq!(traced.lines, Vec::<String>::new(), "in pieces of {cut}");
    }
}

/// Unix sockets are joined as if they had been open before: only methods that are known are told from
/// noise there.
#[test]
fn shapes_are_the_same_over_unix_sockets() {
    let folder = Folder::new("unix-shapes");
    let skipped = ["odd methods", "reset"];
    let dialogues: Vec<Dialogue> = http::dialogues()
        .into_iter()
        .filter(|dialogue| !skipped.iter().any(|name| dialogue.name.contains(name)))
        .collect();
    let file = script(&folder, &dialogues);
    for calls in CALLS {
        for cut in ["1", "random", "all"] {
            println!("{calls} in pieces of {cut}");
            let traced = play(&file, cut, calls, &["unix"]);
            assert_played(&traced, &dialogues);
            let path = format!("{}.sock", file.display());
            for span in &traced.spans {
                assert_eq!(span["attributes"]["network.transport"], "unix");
                assert_eq!(span["attributes"]["network.peer.address"], path.as_str());
            }
        }
    }
}

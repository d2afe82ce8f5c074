//! A server does not notice the tracer: not its coming and going, and not its death.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tracer_tests::process::{Folder, Server, Tracer, wait_for};

use super::loaded;

const ROUNDS: usize = 50;

/// Those at the start are for what the kernel keeps ready afterwards.
const WARM: usize = 5;

/// How long the client waits for any byte.
const BOUND: Duration = Duration::from_secs(5);

const PATHS: [&str; 4] = ["/index.html", "/large.bin", "/ok/fixed", "/missing/fixed"];

/// A response, without the date.
fn ask(connection: &mut BufReader<TcpStream>, path: &str) -> Vec<u8> {
    write!(connection.get_mut(), "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
        .expect("the server takes requests");
    let mut response = Vec::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).expect("a line within the bound");
        assert!(!line.is_empty(), "the server closed the connection");
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().expect("a length");
        }
        if !line.starts_with("Date: ") {
            response.extend_from_slice(line.as_bytes());
        }
        if line == "\r\n" {
            break;
        }
    }
    let head = response.len();
    response.resize(head + length, 0);
    connection.read_exact(&mut response[head..]).expect("the content within the bound");
    response
}

fn connect(address: &str) -> BufReader<TcpStream> {
    let connection = TcpStream::connect(address).expect("a connection");
    connection.set_nodelay(true).expect("no delay");
    connection.set_read_timeout(Some(BOUND)).expect("a bound");
    connection.set_write_timeout(Some(BOUND)).expect("a bound");
    BufReader::new(connection)
}

/// KiB that the kernel uses for itself, by kind.
fn kernel_memory() -> Vec<(&'static str, u64)> {
    let text = fs::read_to_string("/proc/meminfo").expect("the machine's memory");
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("a number")
    };
    ["SUnreclaim", "Percpu", "VmallocUsed"].into_iter().map(|name| (name, of(name))).collect()
}

#[test]
fn a_server_does_not_notice_a_tracer_that_comes_and_goes() {
    let folder = Folder::new("harmless");
    let locations = "location /ok/ { return 200 \"ok $request_uri\\n\"; } location /missing/ { return 404; }";
    let server = Server::nginx_with(&folder, locations);
    let large: Vec<u8> = (0..1_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.path("www/large.bin"), large).expect("a file");
    // What it answers without a tracer.
    let mut connection = connect(&server.address);
    let truth: Arc<Vec<Vec<u8>>> = Arc::new(PATHS.iter().map(|path| ask(&mut connection, path)).collect());
    drop(connection);
    let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|first| {
            let (address, truth) = (server.address.clone(), truth.clone());
            let (over, asked) = (over.clone(), asked.clone());
            std::thread::spawn(move || {
                let mut connection = connect(&address);
                let mut at = first;
                while !over.load(Relaxed) {
                    at = (at + 1) % PATHS.len();
                    let response = ask(&mut connection, PATHS[at]);
                    assert!(response == truth[at], "another answer to {}", PATHS[at]);
                    asked.fetch_add(1, Relaxed);
                    if asked.load(Relaxed).is_multiple_of(1000) {
                        connection = connect(&address);
                    }
                }
            })
        })
        .collect();
    let mut memory = Vec::new();
    for round in 0..ROUNDS {
        let mut tracer = Tracer::of(&[server.process.id()], &[]);
        let (seen, count) = (tracer.probes(), asked.load(Relaxed));
        assert!(seen.iter().any(|(kind, _)| kind == "link_id"), "no probes to look for: {seen:?}");
        wait_for("requests under the tracer", || (asked.load(Relaxed) > count + 20).then_some(()));
        if round % 2 == 0 {
            tracer.kill();
        } else {
            tracer.finish().assert_balanced();
        }
        wait_for("the kernel to drop the probes", || {
            let left = loaded();
            seen.iter().all(|probe| !left.contains(probe)).then_some(())
        });
        if round + 1 == WARM {
            memory = kernel_memory();
        }
    }
    over.store(true, Relaxed);
    for client in clients {
        client.join().expect("every answer is the same, and in time");
    }
    println!("{} requests; kernel memory {memory:?}, then {:?} KiB", asked.load(Relaxed), kernel_memory());
    // Maps go when nobody reads them any more, a moment after the programs.
    wait_for("the kernel's memory to be as before", || {
        let now = kernel_memory();
        memory.iter().zip(&now).all(|((_, before), (_, now))| *now < before + 16 * 1024).then_some(())
    });
    let logged = server.at_rest();
    let answered = asked.load(Relaxed) + PATHS.len() as u64;
    assert_eq!(logged.values().sum::<usize>() as u64, answered);
}

/// Fields of `/proc/PID/task/THREAD/status`.
fn status(path: &std::path::Path) -> std::collections::BTreeMap<String, String> {
    let text = fs::read_to_string(path.join("status")).expect("a thread");
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

#[test]
fn privileges_are_given_up_by_every_thread() {
    let folder = Folder::new("privileges");
    let server = Server::python(&folder);
    let collector = tracer_tests::collector::Collector::start();
    // CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE; CAP_KILL only for a command.
    let (two, three) = ("0000000000080004", "0000000000080024");
    let process = server.process.id().to_string();
    let url = collector.url();
    let cases = [
        (vec!["--pid", process.as_str(), "--otlp", &url], two),
        (vec!["--otlp", &url, "--", "sleep", "1000"], three),
    ];
    for (arguments, kept) in cases {
        let tracer = Tracer::start("trace", &arguments);
        let threads: Vec<_> = fs::read_dir(format!("/proc/{}/task", tracer.id()))
            .expect("threads")
            .map(|thread| status(&thread.expect("a thread").path()))
            .collect();
        let names: Vec<&str> = threads.iter().map(|thread| thread["Name"].as_str()).collect();
        assert!(names.contains(&"print") && names.contains(&"send"), "{names:?}");
        for thread in &threads {
            for set in ["CapEff", "CapPrm", "CapBnd"] {
                assert_eq!(thread[set], kept, "{set} of {}", thread["Name"]);
            }
            assert_eq!(thread["CapInh"], "0000000000000000");
            assert_eq!((thread["NoNewPrivs"].as_str(), thread["Seccomp"].as_str()), ("1", "2"));
        }
        let child =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", tracer.id())).expect("children");
        for child in child.split_whitespace() {
            let child = status(std::path::Path::new(&format!("/proc/{child}")));
            assert_eq!(
                (child["NoNewPrivs"].as_str(), child["Seccomp"].as_str()),
                ("0", "0"),
                "of the command"
            );
        }
        tracer.signal(rustix::process::Signal::INT);
        tracer.signal(rustix::process::Signal::TERM);
        tracer.wait();
    }
}

/// What it says may go nowhere.
#[test]
fn words_that_nobody_hears_stop_nothing() {
    let folder = Folder::new("deaf");
    let server = Server::python(&folder);
    let url = format!("http://{}/ok/deaf", server.address);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a device that is full");
    let output = std::process::Command::new(tracer_tests::process::program("tracer"))
        .args(["trace", "--output", "json", "--otlp", "http://127.0.0.1:9", "--"])
        .args(["curl", "-s", "-o", "/dev/null", &url])
        .stderr(full)
        .output()
        .expect("the tracer");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1);
}

//! `tracer run`, the agent: what it says of itself is compared with what servers logged and clients counted.

#[path = "agent/budget.rs"]
mod budget;
#[path = "agent/ends.rs"]
mod ends;
#[path = "agent/keys.rs"]
mod keys;
#[path = "agent/losses.rs"]
mod losses;
#[path = "agent/metrics.rs"]
mod metrics;
#[path = "agent/receivers.rs"]
mod receivers;
#[path = "agent/redaction.rs"]
mod redaction;
#[path = "agent/reload.rs"]
mod reload;
#[path = "agent/sampling.rs"]
mod sampling;
#[path = "agent/scrape.rs"]
mod scrape;
#[path = "agent/selection.rs"]
mod selection;
#[path = "agent/values.rs"]
mod values;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use tracer_tests::process::{Folder, Server, count, python, wait_for, workload};

/// moods.py, on a port of its own or on this one.
fn moods(folder: &Folder, name: &str, port: Option<u16>) -> Server {
    let log = folder.path(&format!("{name}.log"));
    let mut command = Command::new(python());
    command.arg(workload("moods.py")).arg(&log).args(port.map(|port| port.to_string()));
    Server::start(command, log)
}

fn port(server: &Server) -> u16 {
    server.address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}

/// Words of the lines of a log that moods.py wrote, once there are so many.
fn lines(server: &Server, least: usize) -> Vec<Vec<String>> {
    server.wait_logged(least);
    let text = fs::read_to_string(&server.log).expect("the log");
    text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

/// By the words at these places.
fn by(lines: &[Vec<String>], places: &[usize]) -> BTreeMap<String, usize> {
    count(lines.iter().map(|words| places.iter().map(|at| words[*at].as_str()).collect::<Vec<_>>().join(" ")))
}

/// A connection that stays, with requests one after the other.
struct Client {
    connection: BufReader<TcpStream>,
}

impl Client {
    fn new(address: &str) -> Self {
        let connection = TcpStream::connect(address).expect("a connection");
        connection.set_nodelay(true).expect("no delay");
        connection.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        Self { connection: BufReader::new(connection) }
    }

    /// Returns the status. `more` are lines of the head, each with its end.
    fn ask(&mut self, method: &str, path: &str, more: &str, body: &[u8]) -> u16 {
        self.send(method, path, more, body);
        self.read(method)
    }

    fn get(&mut self, path: &str) -> u16 {
        self.ask("GET", path, "", b"")
    }

    fn send(&mut self, method: &str, path: &str, more: &str, body: &[u8]) {
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{length}{more}\r\n");
        let request = [head.as_bytes(), body].concat();
        self.connection.get_mut().write_all(&request).expect("a request");
    }

    fn read(&mut self, method: &str) -> u16 {
        let (mut status, mut length, mut chunked) = (0, 0, false);
        for number in 0.. {
            let mut line = String::new();
            assert!(self.connection.read_line(&mut line).expect("an answer in time") > 0, "it was closed");
            let line = line.trim_end().to_ascii_lowercase();
            match line.split_once(": ") {
                _ if number == 0 => {
                    status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
                }
                Some(("content-length", value)) => length = value.parse().expect("a length"),
                Some(("transfer-encoding", _)) => chunked = true,
                _ if line.is_empty() => break,
                _ => {}
            }
        }
        if chunked {
            let mut line = String::new();
            while line != "0\r\n" {
                line.clear();
                self.connection.read_line(&mut line).expect("a chunk");
            }
            self.connection.read_line(&mut line).expect("the end");
        } else if method != "HEAD" {
            let mut body = vec![0; length];
            self.connection.read_exact(&mut body).expect("the content");
        }
        status
    }
}

/// Lets requests to /hang/ID go on.
fn let_go(server: &Server) {
    fs::write(format!("{}.go", server.log.display()), "").expect("a file");
}

/// Waits until the bytes that the kernel moved have all ended somewhere.
fn assert_balanced(agent: &tracer_tests::agent::Agent) {
    wait_for("the books to balance", || {
        let (moved, buckets) = agent.metrics().books();
        (moved == buckets && moved > 0).then_some(())
    });
}

//! What TCP says of connections: counted by the agent as the processes themselves count it, in a network of
//! their own whose cable can be cut.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use rustix::process::Signal;
use serde_json::Value;
use tracer_tests::process::{Folder, Process, capture, free_port, program, python, run, wait_for, workload};

/// An agent that answers.
struct Agent {
    process: Process,
    address: String,
    folder: Folder,
}

impl Agent {
    fn of(processes: &[u32]) -> Self {
        let folder = Folder::new("agent");
        let address = format!("127.0.0.1:{}", free_port());
        let rules: String = processes.iter().map(|id| format!("    - pid: {id}\n")).collect();
        let text = format!(
            "select:\n  include:\n{rules}export:\n  print: json\nserve:\n  address: {address}\nlog:\n  level: info\n"
        );
        fs::write(folder.path("agent.yaml"), text).expect("a file");
        let mut command = Command::new(program("tracer"));
        command.arg("run").arg("--config").arg(folder.path("agent.yaml"));
        if let Some(capture) = capture() {
            command.args(["--capture", &capture]);
        }
        command.stdin(Stdio::null()).stdout(File::create(folder.path("spans.json")).expect("a file"));
        command.stderr(File::create(folder.path("log")).expect("a file"));
        let agent = Self { process: Process::start(&mut command), address, folder };
        wait_for("the agent to trace", || {
            let log = fs::read_to_string(agent.folder.path("log")).expect("its log");
            log.contains("answers on").then_some(())
        });
        agent
    }

    /// All series that it tells of, by name with labels.
    fn metrics(&self) -> BTreeMap<String, f64> {
        let mut connection = TcpStream::connect(&self.address).expect("the agent answers");
        let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        connection.write_all(request.as_bytes()).expect("a request");
        let mut text = String::new();
        connection.read_to_string(&mut text).expect("an answer");
        let lines = text.lines().filter(|line| line.contains('{'));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// Ends it, and takes the spans.
    fn finish(mut self) -> Vec<Value> {
        self.process.signal(Signal::TERM);
        assert!(self.process.wait().success());
        let text = fs::read_to_string(self.folder.path("spans.json")).expect("the spans");
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }
}

/// The sum of all series of a name that have these labels.
fn sum(metrics: &BTreeMap<String, f64>, name: &str, labels: &[&str]) -> f64 {
    let start = format!("{name}{{");
    let series = metrics.iter().filter(|(series, _)| series.starts_with(&start));
    series
        .filter(|(series, _)| labels.iter().all(|label| series.contains(label)))
        .map(|(_, value)| value)
        .sum()
}

/// Half of `workloads/servers/cable.py`, in a network namespace that goes with it.
struct Half {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Half {
    fn start(side: &str) -> Self {
        let mut command = Command::new("unshare");
        command.arg("-n").arg(python()).arg(workload("cable.py")).arg(side);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare and python");
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut half = Self { child, said };
        assert_eq!(half.line(), "ready");
        half
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.said.read_line(&mut line).expect("a line") > 0, "it has ended");
        line.trim_end().to_owned()
    }

    fn go_on(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("a pipe"), "go on").expect("it listens");
    }

    fn inside(&self, command: &str) {
        let mut words = Command::new("nsenter");
        words.args(["-t", &self.child.id().to_string(), "-n"]).args(command.split(' '));
        run(&mut words);
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn connects_and_what_was_sent_again_are_counted_as_the_kernel_does() {
    let (mut client, mut server) = (Half::start("client"), Half::start("server"));
    let cable = format!(
        "link add c0 address 02:00:00:00:00:01 netns {} type veth peer name s0 address 02:00:00:00:00:02 netns {}",
        client.child.id(),
        server.child.id()
    );
    run(Command::new("ip").args(cable.split(' ')));
    for (half, device, address) in [(&client, "c0", "10.9.0.1/24"), (&server, "s0", "10.9.0.2/24")] {
        half.inside(&format!("ip address add {address} dev {device}"));
        half.inside(&format!("ip link set {device} up"));
    }
    client.inside("ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev c0 nud permanent");
    server.go_on();
    assert_eq!(server.line(), "listening");
    let agent = Agent::of(&[client.child.id(), server.child.id()]);
    client.go_on();
    let truth: Value = serde_json::from_str(&client.line()).expect("JSON");
    let count = |name: &str| truth[name].as_f64().unwrap_or_else(|| panic!("{name}: {truth}"));
    // Each connection that bytes moved on, or their end, at both ends.
    let (asked, accepted) = (count("asked"), count("ok"));
    let all = ["ok", "refused", "timeout", "abandoned", "unreachable"].map(count).iter().sum::<f64>();
    let metrics = wait_for("the connections to be over", || {
        let metrics = agent.metrics();
        let over = |side| sum(&metrics, "tracer_tcp_rtt_seconds_count", &[side]);
        let connects = sum(&metrics, "tracer_tcp_connects_total", &[]);
        (over("tracer_side=\"client\"") == asked
            && over("tracer_side=\"server\"") == accepted
            && connects == all)
            .then(|| metrics.clone())
    });
    let ours = ["tracer_side=\"client\"", "server_address=\"10.9.0.2\""];
    for outcome in ["ok", "refused", "timeout", "abandoned"] {
        let told = format!("tracer_tcp_outcome=\"{outcome}\"");
        let labels = [ours[0], ours[1], &told];
        assert_eq!(sum(&metrics, "tracer_tcp_connects_total", &labels), count(outcome), "{outcome}: {truth}");
    }
    let lost = ["server_address=\"10.9.0.77\"", "tracer_tcp_outcome=\"unreachable\""];
    assert_eq!(sum(&metrics, "tracer_tcp_connects_total", &lost), count("unreachable"), "{truth}");
    // Those of connections that came to be, and those of connects that did not.
    assert!(count("sockets") >= 2.0 && count("retransmits") > count("sockets"), "{truth}");
    assert_eq!(sum(&metrics, "tracer_tcp_retransmits_total", &[ours[0]]), count("retransmits"), "{truth}");
    let name = "tracer_tcp_connect_duration_seconds";
    assert_eq!(sum(&metrics, &format!("{name}_count"), &ours), accepted);
    let took = sum(&metrics, &format!("{name}_sum"), &ours);
    assert!(took >= 1.0 && took < count("connecting"), "{took} s: {truth}");
    let seconds = sum(&metrics, "tracer_tcp_rtt_seconds_sum", &ours);
    assert!(seconds > 0.0 && seconds < count("connecting"), "{seconds} s: {truth}");

    let spans = agent.finish();
    let of = |path: &str| {
        let mut found =
            spans.iter().filter(|span| span["kind"] == "CLIENT" && span.to_string().contains(path));
        found.next().unwrap_or_else(|| panic!("{path}: {spans:?}"))["attributes"].clone()
    };
    let (first, second, third) = (of("/first"), of("/second"), of("/third"));
    let duration = first["tracer.connect.duration"].as_f64().expect("a duration");
    assert!((1.0..count("longest") + 0.001).contains(&duration), "{duration}: {truth}");
    assert_eq!(first["tracer.connect.retransmits"], 1);
    assert!(first["tracer.tcp.retransmits"].is_null());
    for later in [&second, &third] {
        assert!(later["tracer.connect.duration"].is_null());
    }
    assert!(second["tracer.tcp.retransmits"].is_null());
    // One can have been sent again before the call had ended that sent it first.
    let again = third["tracer.tcp.retransmits"].as_f64().expect("a number");
    assert!((1.0..=count("third")).contains(&again), "{again}: {truth}");
    let servers = spans.iter().filter(|span| span["kind"] == "SERVER");
    assert!(servers.clone().count() > 0);
    assert!(servers.into_iter().all(|span| span["attributes"]["tracer.connect.duration"].is_null()));
}

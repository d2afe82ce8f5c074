//! What is measured: servers, and the load on them.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::process::{Process, wait_until};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// nginx, keep-alive, a small GET
    Nginx,
    /// nginx, bodies of 1 MB
    NginxLarge,
    /// The same with everything copied, to show what it saves not to
    NginxLargeCopied,
    /// net/http of Go, keep-alive, a small GET
    Go,
    /// nginx over HTTP/2 without TLS, a small GET, several at once on each connection
    NginxH2,
    /// grpc-go, small unary calls, several at once on each connection
    Grpc,
    /// redis, GET: a protocol that is not known
    Redis,
    /// The same with everything copied
    RedisCopied,
}

pub(super) const ALL: [Kind; 8] = [
    Kind::Nginx,
    Kind::NginxLarge,
    Kind::NginxLargeCopied,
    Kind::Go,
    Kind::NginxH2,
    Kind::Grpc,
    Kind::Redis,
    Kind::RedisCopied,
];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Nginx => "nginx",
            Kind::NginxLarge => "nginx-large",
            Kind::NginxLargeCopied => "nginx-large-copied",
            Kind::Go => "go",
            Kind::NginxH2 => "nginx-h2",
            Kind::Grpc => "grpc",
            Kind::Redis => "redis",
            Kind::RedisCopied => "redis-copied",
        }
    }

    /// Arguments of the tracer.
    pub(super) fn options(self) -> &'static [&'static str] {
        match self {
            Kind::NginxLargeCopied | Kind::RedisCopied => &["--copy-all"],
            _ => &[],
        }
    }

    /// Exchanges that one request is to the tracer.
    pub(super) fn spans(self) -> u64 {
        u64::from(!matches!(self, Kind::Redis | Kind::RedisCopied))
    }

    /// Requests of one measurement; fewer where instructions are counted.
    pub(super) fn requests(self, counted: bool) -> u64 {
        match (self, counted) {
            (Kind::Nginx | Kind::Go | Kind::NginxH2 | Kind::Grpc, true) => 6_000,
            (Kind::Nginx | Kind::Go | Kind::NginxH2 | Kind::Grpc, false) => 40_000,
            (Kind::NginxLarge | Kind::NginxLargeCopied, true) => 160,
            (Kind::NginxLarge | Kind::NginxLargeCopied, false) => 1_600,
            (Kind::Redis | Kind::RedisCopied, true) => 20_000,
            (Kind::Redis | Kind::RedisCopied, false) => 100_000,
        }
    }

    pub(super) fn start(self, folder: &Path, programs: &Path) -> Result<Server> {
        match self {
            Kind::Nginx | Kind::NginxLarge | Kind::NginxLargeCopied => nginx(folder, ""),
            Kind::NginxH2 => nginx(folder, " http2"),
            Kind::Go => go(programs, "server-go", &[], &folder.join("go.log")),
            Kind::Grpc => {
                fs::write(folder.join("call"), CALL)?;
                go(programs, "grpc-go", &["server"], Path::new("/dev/null"))
            }
            Kind::Redis | Kind::RedisCopied => redis(folder),
        }
    }

    /// What loads the server: eight connections, one processor.
    pub(super) fn load(self, folder: &Path, address: &str, requests: u64) -> Command {
        let requests = requests.to_string();
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let mut command;
        if matches!(self, Kind::Redis | Kind::RedisCopied) {
            command = Command::new("redis-benchmark");
            command.args(["-h", host, "-p", port, "-t", "get", "-c", "8", "-n", &requests, "-q"]);
        } else if matches!(self, Kind::NginxH2 | Kind::Grpc) {
            command = Command::new("h2load");
            command.args(["-c", "2", "-m", "4", "-n", &requests]);
            let path = if self == Kind::Grpc { "lab.Echo/Unary" } else { "" };
            if self == Kind::Grpc {
                command.arg("-d").arg(folder.join("call"));
                command.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
            }
            command.arg(format!("http://{address}/{path}"));
        } else {
            let path = match self {
                Kind::NginxLarge | Kind::NginxLargeCopied => "large",
                Kind::Go => "ok/1",
                _ => "",
            };
            command = Command::new("hey");
            let url = format!("http://{address}/{path}");
            command.args(["-cpus", "1", "-c", "8", "-n", &requests, &url]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// A few requests all the time.
    pub(super) fn slow_load(self, folder: &Path, address: &str) -> Command {
        let load = self.load(folder, address, 1_000_000_000);
        if load.get_program() != "hey" {
            // New connections, of which everything is seen.
            let arguments: Vec<_> = load.get_args().skip(6).map(std::ffi::OsStr::to_owned).collect();
            let mut slow = Command::new("h2load");
            slow.args(["-c", "1000", "-r", "50", "-n", "1000"]).args(arguments);
            slow.stdout(Stdio::null()).stderr(Stdio::null());
            return slow;
        }
        let mut slow = Command::new("hey");
        slow.args(["-cpus", "1", "-c", "1", "-q", "100", "-z", "20s"]).args(load.get_args().last());
        slow.stdout(Stdio::null()).stderr(Stdio::null());
        slow
    }
}

/// A message of gRPC: what the server is told to answer.
const CALL: &[u8] = b"\0\0\0\0\x25status=0 count=1 size=100 sleep=0    ";

pub(super) struct Server {
    pub(super) process: Process,
    pub(super) address: String,
}

/// One worker; bodies go through its memory, not by sendfile.
fn nginx(folder: &Path, protocol: &str) -> Result<Server> {
    let port = free_port()?;
    fs::create_dir_all(folder.join("www"))?;
    fs::write(folder.join("www/large"), vec![b'l'; 1 << 20])?;
    let folder_text = folder.display();
    let text = format!(
        "worker_processes 1; daemon off; user root; pid {folder_text}/nginx.pid; error_log {folder_text}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; sendfile off; output_buffers 2 256k;\n\
         client_body_temp_path {folder_text}/body; proxy_temp_path {folder_text}/proxy;\n\
         fastcgi_temp_path {folder_text}/fastcgi; uwsgi_temp_path {folder_text}/uwsgi;\n\
         scgi_temp_path {folder_text}/scgi;\n\
         server {{ listen 127.0.0.1:{port}{protocol}; root {folder_text}/www;\n\
         location = / {{ return 200 \"hello\\n\"; }} }} }}\n"
    );
    let configuration = folder.join("nginx.conf");
    fs::write(&configuration, text)?;
    let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    ready(Command::new(program).arg("-c").arg(configuration), port)
}

fn redis(folder: &Path) -> Result<Server> {
    let port = free_port()?;
    let number = port.to_string();
    let mut command = Command::new("redis-server");
    command.args(["--port", &number, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
    ready(command.arg(folder).stdout(Stdio::null()), port)
}

fn ready(command: &mut Command, port: u16) -> Result<Server> {
    let process = Process::start(command)?;
    let address = format!("127.0.0.1:{port}");
    wait_until("a server to listen", || TcpStream::connect(&address).is_ok())?;
    Ok(Server { process, address })
}

/// A program of Go, which logs into a file and says first where it listens.
fn go(programs: &Path, program: &str, arguments: &[&str], log: &Path) -> Result<Server> {
    use std::io::BufRead;
    let mut command = Command::new(programs.join(program));
    command.args(arguments).arg(log).env("GOMAXPROCS", "1").stdout(Stdio::piped());
    let mut process = Process::start(&mut command)?;
    let mut line = String::new();
    let out = process.0.stdout.take().context("no pipe")?;
    std::io::BufReader::new(out).read_line(&mut line)?;
    let Some(address) = line.trim().rsplit(' ').next().filter(|word| word.contains(':')) else {
        bail!("the Go server did not say where it listens: {line:?}");
    };
    Ok(Server { process, address: address.to_owned() })
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

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
    /// redis, GET: a protocol that is not known
    Redis,
    /// The same with everything copied
    RedisCopied,
}

pub(super) const ALL: [Kind; 6] =
    [Kind::Nginx, Kind::NginxLarge, Kind::NginxLargeCopied, Kind::Go, Kind::Redis, Kind::RedisCopied];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Nginx => "nginx",
            Kind::NginxLarge => "nginx-large",
            Kind::NginxLargeCopied => "nginx-large-copied",
            Kind::Go => "go",
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
            (Kind::Nginx | Kind::Go, true) => 6_000,
            (Kind::Nginx | Kind::Go, false) => 40_000,
            (Kind::NginxLarge | Kind::NginxLargeCopied, true) => 160,
            (Kind::NginxLarge | Kind::NginxLargeCopied, false) => 1_600,
            (Kind::Redis | Kind::RedisCopied, true) => 20_000,
            (Kind::Redis | Kind::RedisCopied, false) => 100_000,
        }
    }

    pub(super) fn start(self, folder: &Path, programs: &Path) -> Result<Server> {
        match self {
            Kind::Nginx | Kind::NginxLarge | Kind::NginxLargeCopied => nginx(folder),
            Kind::Go => go(folder, programs),
            Kind::Redis | Kind::RedisCopied => redis(folder),
        }
    }

    /// What loads the server: eight connections, one processor.
    pub(super) fn load(self, address: &str, requests: u64) -> Command {
        let requests = requests.to_string();
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let mut command;
        if matches!(self, Kind::Redis | Kind::RedisCopied) {
            command = Command::new("redis-benchmark");
            command.args(["-h", host, "-p", port, "-t", "get", "-c", "8", "-n", &requests, "-q"]);
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
}

pub(super) struct Server {
    pub(super) process: Process,
    pub(super) address: String,
}

/// One worker; bodies go through its memory, not by sendfile.
fn nginx(folder: &Path) -> Result<Server> {
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
         server {{ listen 127.0.0.1:{port}; root {folder_text}/www;\n\
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

fn go(folder: &Path, programs: &Path) -> Result<Server> {
    use std::io::BufRead;
    let mut command = Command::new(programs.join("server-go"));
    command.arg(folder.join("go.log")).env("GOMAXPROCS", "1").stdout(Stdio::piped());
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

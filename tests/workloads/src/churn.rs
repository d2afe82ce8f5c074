//! For the soak: servers and clients that come and go, and a load that stays. Whoever ends says how much it did.
//!
//! - `churn serve` listens on four ports, and says at SIGTERM how many requests it answered: `served N`
//! - `churn load PORTS RATE CONNECTIONS`: so many requests a second over 16 connections that stay, and so many
//!   connections a second with one request each; at SIGTERM `asked N on M connections, E failed`
//! - `churn brief REQUESTS` is a server for one client, another process that it starts: `served N asked N`
//! - `churn ask PORT REQUESTS` is that client; each two requests are a connection

use std::{
    future::Future,
    io::Result,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    task::JoinSet,
};

const STAYING: usize = 16;

/// How often the load is given something to do.
const BEAT: Duration = Duration::from_millis(10);
const BEATS: u64 = 100;

/// No answer takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

static NUMBER: AtomicU64 = AtomicU64::new(0);
static SERVED: AtomicU64 = AtomicU64::new(0);
static ASKED: AtomicU64 = AtomicU64::new(0);
static CONNECTED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<u64>().map_err(std::io::Error::other);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match words[..] {
        ["serve"] => runtime.block_on(serve()),
        ["load", ports, rate, connections] => {
            let ports = ports.split(',').map(|port| number(port).map(|port| port as u16));
            let ports = ports.collect::<Result<Vec<u16>>>()?;
            runtime.block_on(load(&ports, number(rate)?, number(connections)?))
        }
        ["brief", requests] => runtime.block_on(brief(requests)),
        ["ask", port, requests] => runtime.block_on(ask(number(port)? as u16, number(requests)?)),
        _ => Err(std::io::Error::other("serve, load, brief or ask")),
    }
}

async fn serve() -> Result<()> {
    let mut ended = signal(SignalKind::terminate())?;
    let mut ports = Vec::new();
    for _ in 0..4 {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        ports.push(listener.local_addr()?.port().to_string());
        tokio::spawn(accept(listener));
    }
    println!("listening on {}", ports.join(","));
    ended.recv().await;
    println!("served {}", SERVED.load(Relaxed));
    Ok(())
}

async fn accept(listener: TcpListener) {
    while let Ok((connection, _)) = listener.accept().await {
        tokio::spawn(answer_all(connection));
    }
}

async fn answer_all(mut connection: TcpStream) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut request = Vec::with_capacity(1024);
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            if connection.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        // GET /users/NUMBER/orders: each has content of a size of its own, and some fail.
        let number = request.split(|byte| *byte == b'/').nth(2).unwrap_or_default();
        let number = std::str::from_utf8(number).ok().and_then(|number| number.parse::<usize>().ok());
        let number = number.unwrap_or_default();
        let (status, size) = if number % 50 == 49 { (503, 10) } else { (200, number % 2000) };
        let mut answer = format!("HTTP/1.1 {status} -\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        answer.resize(answer.len() + size, b'x');
        connection.write_all(&answer).await?;
        SERVED.fetch_add(1, Relaxed);
    }
}

/// A connection, as a client has it.
struct Client {
    connection: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    async fn new(port: u16) -> Result<Self> {
        let connection = TcpStream::connect(("127.0.0.1", port)).await?;
        connection.set_nodelay(true)?;
        CONNECTED.fetch_add(1, Relaxed);
        Ok(Self { connection, answer: Vec::with_capacity(4096) })
    }

    /// One request with its whole answer.
    async fn ask(&mut self) -> Result<()> {
        let number = NUMBER.fetch_add(1, Relaxed);
        let request = format!("GET /users/{number}/orders HTTP/1.1\r\nHost: churn\r\n\r\n");
        self.connection.write_all(request.as_bytes()).await?;
        self.answer.clear();
        loop {
            if self.connection.read_buf(&mut self.answer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let Some(end) = self.answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&self.answer[..end]);
            let length = head.rsplit(' ').next().and_then(|length| length.parse::<usize>().ok());
            if self.answer.len() >= end + 4 + length.unwrap_or_default() {
                ASKED.fetch_add(1, Relaxed);
                return Ok(());
            }
        }
    }
}

async fn counted(work: impl Future<Output = Result<()>>) {
    if !matches!(tokio::time::timeout(PATIENCE, work).await, Ok(Ok(()))) {
        FAILED.fetch_add(1, Relaxed);
    }
}

async fn load(ports: &[u16], rate: u64, connections: u64) -> Result<()> {
    let mut ended = signal(SignalKind::terminate())?;
    let due = Arc::new(Semaphore::new(0));
    let mut work = JoinSet::new();
    for place in 0..STAYING {
        let (due, port) = (due.clone(), ports[place % ports.len()]);
        work.spawn(async move {
            let Ok(mut client) = Client::new(port).await else {
                FAILED.fetch_add(1, Relaxed);
                return;
            };
            // Until nothing is due any more.
            while let Ok(permit) = due.acquire().await {
                permit.forget();
                counted(client.ask()).await;
            }
        });
    }
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for count in 0u64.. {
        tokio::select! {
            _ = beat.tick() => {}
            _ = ended.recv() => break,
        }
        // Of each second as many as are wanted; what cannot be done in time is not done later.
        let share = |rate: u64| (count + 1) * rate / BEATS - count * rate / BEATS;
        let room = (rate / 10).saturating_sub(due.available_permits() as u64);
        due.add_permits(share(rate).min(room) as usize);
        while work.try_join_next().is_some() {}
        if work.len() > STAYING + 2000 {
            continue;
        }
        for _ in 0..share(connections) {
            let port = ports[CONNECTED.load(Relaxed) as usize % ports.len()];
            work.spawn(counted(async move { Client::new(port).await?.ask().await }));
        }
    }
    due.close();
    while work.join_next().await.is_some() {}
    let [asked, connected, failed] = [&ASKED, &CONNECTED, &FAILED].map(|count| count.load(Relaxed));
    println!("asked {asked} on {connected} connections, {failed} failed");
    Ok(())
}

async fn brief(requests: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port().to_string();
    tokio::spawn(accept(listener));
    let mut client = Command::new(std::env::current_exe()?);
    let client =
        client.args(["ask", &port, requests]).stdout(Stdio::piped()).spawn()?.wait_with_output().await?;
    println!("served {} {}", SERVED.load(Relaxed), String::from_utf8_lossy(&client.stdout).trim());
    if client.status.success() { Ok(()) } else { Err(std::io::Error::other("the client failed")) }
}

async fn ask(port: u16, requests: u64) -> Result<()> {
    for _ in 0..requests.div_ceil(2) {
        let mut client = Client::new(port).await?;
        for _ in 0..2 {
            client.ask().await?;
        }
    }
    println!("asked {}", ASKED.load(Relaxed));
    Ok(())
}

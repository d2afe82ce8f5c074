//! A gRPC echo server and client (tonic, raw byte messages) whose exact logs are compared with what
//! the tracer tells: one line per call, at the server `lab.Echo/KIND STATUS RECEIVED SENT` (or
//! `cancelled` for the status), at the client `lab.Echo/KIND STATUS SENT RECEIVED`.

mod raw;

use std::{
    convert::Infallible,
    error::Error as _,
    fs::File,
    future::pending,
    io::Write,
    mem::replace,
    ops::Range,
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use clap::{Args, Parser};
use futures_util::stream::{Stream, StreamExt, iter, try_unfold, unfold};
use http_body_util::BodyExt;
use tokio::{net::TcpListener, signal, sync::mpsc, time};
use tonic::{
    CancellationHandle, Code, Request, Response, Status, Streaming,
    body::Body,
    client::Grpc,
    codegen::{BoxFuture, Context, Poll, Service, http},
    metadata::AsciiMetadataKey,
    server::NamedService,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::service_fn;

use self::raw::Raw;

#[derive(Parser)]
enum Command {
    Server { log: PathBuf },
    Client(Options),
}

#[derive(Args)]
struct Options {
    address: String,
    log: PathBuf,
    #[arg(long, default_value_t = 1)]
    calls: usize,
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    #[arg(long, default_value = "status", value_parser = ["status", "deadline", "cancel", "metadata"])]
    mode: String,
    /// Each call has a header that no other has.
    #[arg(long)]
    churn: bool,
    /// After so many calls, say `paused` and wait for a line.
    #[arg(long)]
    pause_after: Option<usize>,
    /// So many calls more are open from the start to the end.
    #[arg(long, default_value_t = 0)]
    held: usize,
}

type Messages = Streaming<Bytes>;
type Answer = Result<Bytes, Status>;

const KINDS: [&str; 4] = ["Unary", "ServerStream", "ClientStream", "Bidi"];
const DEADLINE: Duration = Duration::from_millis(150);

#[tokio::main]
async fn main() -> Result<()> {
    let open = |path| File::options().append(true).create(true).open(path).map(|file| Log(Arc::new(file)));
    match Command::parse() {
        Command::Server { log } => serve(open(&log)?).await,
        Command::Client(options) => {
            let channel = Endpoint::from_shared(format!("http://{}", options.address))?.connect_lazy();
            Client { channel, log: open(&options.log)?, options }.run().await
        }
    }
}

#[derive(Clone)]
struct Log(Arc<File>);

impl Log {
    fn line(&self, kind: &str, status: impl std::fmt::Display, first: usize, second: usize) {
        let line = format!("lab.Echo/{kind} {status} {first} {second}\n"); // which is one write
        (&*self.0).write_all(line.as_bytes()).expect("the log takes a line");
    }
}

// ---- server ----

async fn serve(log: Log) -> Result<()> {
    let mut terminated = signal::unix::signal(signal::unix::SignalKind::terminate())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening {}", listener.local_addr()?);
    let server = Server::builder()
        .http2_max_header_list_size(1 << 18)
        .add_service(Echo(log))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    tokio::select! {
        ended = server => Ok(ended?),
        _ = terminated.recv() => Ok(()), // what is open ends, and is logged, with the runtime
        _ = signal::ctrl_c() => Ok(()),
    }
}

/// A call at the server, logged when it is dropped: as cancelled unless it has ended.
struct Served {
    log: Log,
    kind: &'static str,
    /// What the first message tells to do: status, count, size, sleep.
    plan: [usize; 4],
    received: usize,
    sent: usize,
    ended: bool,
}

impl Served {
    async fn serve(mut self, mut messages: Messages) -> Result<Response<impl Stream<Item = Answer>>, Status> {
        while self.receive(&mut messages).await? && self.kind != "Bidi" {}
        if self.plan[3] > 0 {
            // Longer than any deadline: until the call is cancelled, which drops it here.
            pending::<()>().await;
        }
        if self.plan[0] != 0 && self.due() == 0 {
            return Err(self.end()); // nothing but trailers
        }
        Ok(Response::new(try_unfold((self, messages), async |(mut call, mut messages): (Self, _)| {
            if call.kind == "Bidi" && call.sent == call.received {
                call.receive(&mut messages).await?;
            }
            if call.sent == call.due() {
                return Err(call.end()); // tonic takes any status, also if all is well
            }
            call.sent += 1;
            Ok(Some((vec![0; call.plan[2]].into(), (call, messages))))
        })))
    }

    async fn receive(&mut self, messages: &mut Messages) -> Result<bool, Status> {
        let Some(message) = messages.message().await? else { return Ok(false) };
        self.received += 1;
        if self.received == 1 {
            let fields = message.split(|byte| b"= ".contains(byte)).skip(1).step_by(2);
            for (told, field) in self.plan.iter_mut().zip(fields) {
                *told = str::from_utf8(field).ok().and_then(|value| value.parse().ok()).unwrap_or(0);
            }
        }
        Ok(true)
    }

    /// How many answers what was received is worth.
    fn due(&self) -> usize {
        match (self.kind, self.plan) {
            ("ServerStream", [_, count, ..]) => count,
            ("Bidi", _) => self.received,
            (_, [status, ..]) => usize::from(status == 0),
        }
    }

    fn end(mut self) -> Status {
        self.ended = true;
        match self.plan[0] {
            0 => Status::ok(""),
            status => Status::new((status as i32).into(), format!("told {status}")),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let status = if self.ended { self.plan[0].to_string() } else { "cancelled".to_owned() };
        self.log.line(self.kind, status, self.received, self.sent);
    }
}

#[derive(Clone)]
struct Echo(Log);

impl NamedService for Echo {
    const NAME: &'static str = "lab.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Each kind of call is a stream of messages both ways, as it is on the wire.
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let log = self.0.clone();
        let name = request.uri().path().strip_prefix("/lab.Echo/");
        let kind = KINDS.into_iter().find(|kind| name == Some(kind));
        // Where a client reset its stream, tonic would tell of an orderly end, were the error not another.
        let request = request.map(|body| body.map_err(|error| Status::aborted(error.to_string())));
        Box::pin(async move {
            let Some(kind) = kind else { return Ok(Status::unimplemented("no such call").into_http()) };
            let served = |request: Request<Messages>| {
                let log = log.clone();
                let call = Served { log, kind, plan: [0; 4], received: 0, sent: 0, ended: false };
                call.serve(request.into_inner())
            };
            Ok(tonic::server::Grpc::new(Raw).streaming(service_fn(served), request).await)
        })
    }
}

// ---- client ----

fn plan(status: usize, size: usize, sleep: usize) -> Bytes {
    let told = format!("status={status} count=3 size={size} sleep={sleep}");
    format!("{told:size$}").into()
}

/// Characters that the Huffman code of HPACK does not make shorter; other ones for each seed.
fn text(length: usize, seed: usize) -> String {
    let mixed = |at: usize| (seed * length + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (0..length).map(|at| char::from(b"!#$&()*+;<>?@XZ[]^{|}~"[mixed(at) % 22])).collect()
}

struct Client {
    channel: Channel,
    log: Log,
    options: Options,
}

impl Client {
    async fn run(self) -> Result<()> {
        let Options { calls: total, concurrency, pause_after, held, .. } = self.options;
        let calls = |numbers: Range<usize>| iter(numbers).for_each_concurrent(concurrency, |n| self.call(n));
        let mut open = Vec::new();
        for _ in 0..held {
            let mut call = Call::new("Bidi");
            open.push((call.open(&self, &plan(0, 10, 0)).await, call));
        }
        let first = pause_after.unwrap_or(0).min(total);
        calls(0..first).await;
        if pause_after.is_some() {
            println!("paused");
            std::io::stdin().read_line(&mut String::new())?;
        }
        calls(first..total).await;
        for (answers, mut call) in open {
            call.messages = None;
            let ended = async { call.finish(answers?).await }.await;
            self.done(&call, ended);
        }
        println!("done");
        Ok(())
    }

    async fn call(&self, number: usize) {
        let mode = self.options.mode.as_str();
        let mut call = Call::new(if mode == "cancel" { "Bidi" } else { KINDS[number % 4] });
        for key in (0..4).filter(|_| mode == "metadata") {
            call.header(format!("lab-big-{key}"), text(4096, number * 4 + key));
        }
        if self.options.churn {
            call.header("lab-churn".to_owned(), format!("{number:08}{}", text(192, number)));
        }
        let ended = match mode {
            "cancel" => call.run(self, plan(0, 100, 0)).await,
            "deadline" => {
                call.request.set_timeout(DEADLINE);
                match time::timeout(DEADLINE, call.run(self, plan(0, 100, 5000))).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(status)) if status.source().is_none() => Err(status),
                    _ => Err(Status::deadline_exceeded("not told by the server: given up here, or reset")),
                }
            }
            _ => call.run(self, plan(number / 4 % 17, 100, 0)).await,
        };
        call.cancellation.clone().cancel(); // before the drop of `messages`, which half-closes
        self.done(&call, ended);
    }

    fn done(&self, call: &Call, ended: Result<(), Status>) {
        let code = ended.map_or_else(|status| status.code(), |()| Code::Ok);
        self.log.line(call.kind, code as i32, call.sent.load(Relaxed), call.received);
    }
}

/// A call at the client.
struct Call {
    kind: &'static str,
    request: Request<()>,
    cancellation: CancellationHandle,
    messages: Option<mpsc::UnboundedSender<Bytes>>,
    sent: Arc<AtomicUsize>,
    received: usize,
}

impl Call {
    fn new(kind: &'static str) -> Self {
        let mut request = Request::new(());
        let cancellation = request.cancellation_handle();
        Call { kind, request, cancellation, messages: None, sent: Arc::default(), received: 0 }
    }

    fn header(&mut self, key: String, value: String) {
        let key: AsciiMetadataKey = key.parse().expect("a key");
        self.request.metadata_mut().insert(key, value.parse().expect("a value"));
    }

    /// If that fails, receiving tells why.
    fn send(&self, message: &Bytes) {
        let _ = self.messages.as_ref().map(|messages| messages.send(message.clone()));
    }

    async fn receive(&mut self, answers: &mut Messages) -> Result<bool, Status> {
        let message = answers.message().await?;
        self.received += usize::from(message.is_some());
        Ok(message.is_some())
    }

    async fn finish(&mut self, mut answers: Messages) -> Result<(), Status> {
        while self.receive(&mut answers).await? {}
        Ok(())
    }

    /// Opens a call; a stream both ways exchanges one message.
    async fn open(&mut self, client: &Client, message: &Bytes) -> Result<Messages, Status> {
        let (messages, receiver) = mpsc::unbounded_channel::<Bytes>();
        self.messages = Some(messages);
        let stream = unfold((receiver, self.sent.clone()), async |(mut receiver, sent)| {
            let message = receiver.recv().await?;
            sent.fetch_add(1, Relaxed); // now that it is taken
            Some((message, (receiver, sent)))
        });
        let request = replace(&mut self.request, Request::new(())).map(|()| stream);
        let messages = if self.kind == "ClientStream" { 3 } else { 1 };
        (0..messages).for_each(|_| self.send(message));
        if self.kind != "Bidi" {
            self.messages = None;
        }
        let mut grpc = Grpc::new(client.channel.clone());
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let path = format!("/lab.Echo/{}", self.kind).parse().expect("a path");
        // The other methods differ only in what they make of the messages: one of them, or a stream.
        let mut answers = grpc.streaming(request, path, Raw).await?.into_inner();
        if self.kind == "Bidi" {
            self.receive(&mut answers).await?;
        }
        Ok(answers)
    }

    async fn run(&mut self, client: &Client, message: Bytes) -> Result<(), Status> {
        let mut answers = self.open(client, &message).await?;
        if client.options.mode == "cancel" {
            self.cancellation.clone().cancel();
        } else if self.kind == "Bidi" {
            for _ in 1..3 {
                self.send(&message);
                self.receive(&mut answers).await?;
            }
            self.messages = None;
        }
        self.finish(answers).await
    }
}

//! A gRPC service (tonic, raw byte messages) that calls the next of its kind while it serves a call. What
//! calls what is in the names of the methods, whatever the metadata says: `X` calls `X_0`.

mod raw;

use std::{
    convert::Infallible,
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Result;
use bytes::Bytes;
use clap::Parser;
use tokio::{net::TcpListener, signal};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    client::Grpc,
    codegen::{BoxFuture, Context, Poll, Service, http},
    metadata::MetadataMap,
    server::NamedService,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::service_fn;

use self::raw::Raw;

#[derive(Parser)]
struct Options {
    /// Any free one if 0.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The address of the next one.
    #[arg(long)]
    next: Option<String>,
    /// The family of incoming metadata that goes on.
    #[arg(long, default_value = "none", value_parser =
        ["none", "traceparent", "b3", "b3multi", "uber-trace-id", "x-request-id", "all"])]
    pass: String,
    /// Each `traceparent` that goes on has a new span id.
    #[arg(long)]
    child: bool,
    #[arg(long, default_value = "/dev/null")]
    log: PathBuf,
    /// Calls of methods with `fail_NAME_` in their names fail.
    #[arg(long, default_value = "rust")]
    name: String,
}

/// Metadata, with the family it belongs to.
const KEYS: [(&str, &str); 9] = [
    ("traceparent", "traceparent"),
    ("traceparent", "tracestate"),
    ("b3", "b3"),
    ("b3multi", "x-b3-traceid"),
    ("b3multi", "x-b3-spanid"),
    ("b3multi", "x-b3-parentspanid"),
    ("b3multi", "x-b3-sampled"),
    ("uber-trace-id", "uber-trace-id"),
    ("x-request-id", "x-request-id"),
];
const ANSWER: &[u8] = b"chain.Echo says this";

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut terminated = signal::unix::signal(signal::unix::SignalKind::terminate())?;
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    let next = match &options.next {
        Some(address) => Some(Endpoint::from_shared(format!("http://{address}"))?.connect_lazy()),
        None => None,
    };
    let log = File::options().append(true).create(true).open(&options.log)?;
    println!("listening on {}", listener.local_addr()?);
    let server = Server::builder()
        .add_service(Echo(Arc::new(Chain { options, next, log, random: File::open("/dev/urandom")? })))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    tokio::select! {
        ended = server => Ok(ended?),
        _ = terminated.recv() => Ok(()), // the log has all already
        _ = signal::ctrl_c() => Ok(()),
    }
}

struct Chain {
    options: Options,
    /// None at the end of the chain.
    next: Option<Channel>,
    log: File,
    random: File,
}

impl Chain {
    async fn serve(&self, method: &str, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        let ended = self.call(method, request).await;
        self.line("SERVER", method, &ended);
        ended.map(|()| Response::new(ANSWER.into()))
    }

    /// Does what is to be done for a call.
    async fn call(&self, method: &str, request: Request<Bytes>) -> Result<(), Status> {
        if method.contains(&format!("fail_{}_", self.options.name)) {
            return Err(Status::internal("told to fail"));
        }
        let Some(next) = &self.next else { return Ok(()) };
        let method = format!("{method}_0");
        let (metadata, extensions, message) = request.into_parts();
        let request = Request::from_parts(self.passed(&metadata), extensions, message);
        let ended = call(next.clone(), &method, request).await;
        self.line("CLIENT", &method, &ended);
        ended.map_err(|status| Status::unavailable(format!("the next: {:?}", status.code())))
    }

    /// What of the incoming metadata goes on.
    fn passed(&self, incoming: &MetadataMap) -> MetadataMap {
        let Options { pass, child, .. } = &self.options;
        let mut outgoing = MetadataMap::new();
        for (_, key) in KEYS.into_iter().filter(|(family, _)| pass == family || pass == "all") {
            for value in incoming.get_all(key) {
                let own = (*child && key == "traceparent").then(|| self.own(value.to_str().ok()?)).flatten();
                let own = own.and_then(|value| value.parse().ok());
                outgoing.append(key, own.unwrap_or_else(|| value.clone()));
            }
        }
        outgoing
    }

    fn own(&self, traceparent: &str) -> Option<String> {
        let mut id = [0; 8];
        (&self.random).read_exact(&mut id).ok()?;
        let parts: Vec<&str> = traceparent.split('-').collect();
        let [version, trace, _, flags] = parts[..] else { return None };
        Some(format!("{version}-{trace}-{:016x}-{flags}", u64::from_ne_bytes(id)))
    }

    fn line(&self, side: &str, method: &str, ended: &Result<(), Status>) {
        let code = ended.as_ref().map_or_else(Status::code, |()| Code::Ok);
        let line = format!("{side} {method} {}\n", code as i32); // which is one write
        (&self.log).write_all(line.as_bytes()).expect("the log takes a line");
    }
}

async fn call(next: Channel, method: &str, request: Request<Bytes>) -> Result<(), Status> {
    let mut grpc = Grpc::new(next);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = format!("/{method}").parse().expect("a path");
    grpc.unary(request, path, Raw).await.map(|_| ())
}

#[derive(Clone)]
struct Echo(Arc<Chain>);

impl NamedService for Echo {
    const NAME: &'static str = "chain.Echo";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Any method of the service is served.
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let chain = self.0.clone();
        let method: Arc<str> = request.uri().path().trim_start_matches('/').into();
        Box::pin(async move {
            let served = |request| {
                let (chain, method) = (chain.clone(), method.clone());
                async move { chain.serve(&method, request).await }
            };
            Ok(tonic::server::Grpc::new(Raw).unary(service_fn(served), request).await)
        })
    }
}

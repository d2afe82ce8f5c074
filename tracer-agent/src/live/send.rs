//! OTLP to a collector, from a thread of its own, through a queue with a bound: a collector that is
//! slow, or not there, costs spans (counted) and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Buf, BufMut, Bytes};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::sync::mpsc;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};

use crate::{
    export::otlp::{Batch, Encoded},
    span::Span,
};

/// Batches that wait.
const QUEUE: usize = 16;

/// A batch is sent when it has so many spans or bytes, or is so old.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
const BATCH_AGE: Duration = Duration::from_secs(1);

const GRPC_METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The first and the longest pause before a request is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(8);

/// After so long a batch is given up.
const BATCH_MOST: Duration = Duration::from_secs(60);

/// By which the exports of other tracers are known.
const USER_AGENT: &str = concat!("tracer-otlp/", env!("CARGO_PKG_VERSION"));

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    Grpc,
    #[value(name = "http/protobuf")]
    Http,
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    url: String,
    protocol: Protocol,
}

impl Endpoint {
    /// `url` is the base that spans, metrics and logs have in common, or with `exact` (as the variable
    /// for traces has it) that of the spans. Without a protocol the port tells, as far as it is one of
    /// the two that OTLP has.
    pub fn new(url: &str, protocol: Option<Protocol>, exact: bool) -> Result<Self> {
        let parsed = reqwest::Url::parse(url).with_context(|| format!("`{url}` is not a URL"))?;
        if parsed.scheme() == "https" {
            bail!("`{url}`: TLS is not supported yet, name an endpoint with http://");
        }
        if parsed.scheme() != "http" || parsed.host_str().is_none() {
            bail!("`{url}` is not a URL of the form http://HOST:PORT");
        }
        let protocol = protocol.unwrap_or(match parsed.port() {
            Some(4317) => Protocol::Grpc,
            _ => Protocol::Http,
        });
        let base = url.trim_end_matches('/');
        let url = match protocol {
            Protocol::Http if !exact => format!("{base}/v1/traces"),
            Protocol::Http => url.to_owned(),
            Protocol::Grpc => base.to_owned(),
        };
        Ok(Self { url, protocol })
    }
}

/// A URL without the password that can be in it.
fn shown(url: &str) -> String {
    let Ok(mut url) = reqwest::Url::parse(url) else { return String::new() };
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string().trim_end_matches('/').to_owned()
}

/// What became of the spans.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    /// The queue was full.
    dropped: AtomicU64,
    /// The collector said that it did not take them.
    rejected: AtomicU64,
    /// They could not be sent.
    failed: AtomicU64,
}

pub struct Sender {
    batch: Batch,
    /// When the first span of the batch came.
    since: Option<Instant>,
    queue: Option<mpsc::Sender<Encoded>>,
    thread: JoinHandle<()>,
    counts: Arc<Counts>,
    url: String,
}

impl Sender {
    pub fn start(endpoint: Endpoint) -> Result<Self> {
        let (queue, batches) = mpsc::channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let url = shown(&endpoint.url);
        let transport = Transport::new(&endpoint)?;
        let theirs = counts.clone();
        let thread = std::thread::Builder::new()
            .name("send".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(async { run(batches, transport.open(), &theirs).await }),
                    Err(error) => tracing::error!("nothing can be sent: {error}"),
                }
            })
            .context("no thread can be started")?;
        Ok(Self { batch: Batch::default(), since: None, queue: Some(queue), thread, counts, url })
    }

    pub fn send(&mut self, span: &Span) {
        if self.add(span) {
            self.flush();
        }
    }

    /// As [`Self::send`], but waits for room.
    pub fn send_waiting(&mut self, span: &Span) {
        if self.add(span) {
            self.flush_waiting();
        }
    }

    /// Sends what has waited for long enough.
    pub fn flush_due(&mut self) {
        if self.since.is_some_and(|since| since.elapsed() >= BATCH_AGE) {
            self.flush();
        }
    }

    /// Returns whether the batch is full.
    fn add(&mut self, span: &Span) -> bool {
        self.since.get_or_insert_with(Instant::now);
        self.batch.add(span);
        self.batch.spans() >= BATCH || self.batch.held() >= BATCH_BYTES
    }

    fn flush(&mut self) {
        self.hand_over(|queue, batch| queue.try_send(batch).is_ok());
    }

    /// As far as a batch has come, when there is time to wait for room.
    pub fn flush_waiting(&mut self) {
        self.hand_over(|queue, batch| queue.blocking_send(batch).is_ok());
    }

    fn hand_over(&mut self, give: impl FnOnce(&mpsc::Sender<Encoded>, Encoded) -> bool) {
        self.since = None;
        if self.batch.spans() == 0 {
            return;
        }
        let batch = self.batch.take();
        let spans = batch.spans as u64;
        if !self.queue.as_ref().is_some_and(|queue| give(queue, batch)) {
            self.counts.dropped.fetch_add(spans, Relaxed);
        }
    }

    /// Sends what is left, for at most as long. Returns a line that tells what became of the spans.
    pub fn finish(mut self, most: Duration) -> String {
        self.flush();
        let queued = self.queue.take().map_or(0, |queue| queue.max_capacity() - queue.capacity());
        let until = Instant::now() + most;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let late = if self.thread.is_finished() {
            String::new()
        } else {
            format!(", about {queued} batches not in time")
        };
        let count = |count: &AtomicU64| count.load(Relaxed);
        format!(
            "otlp: {}: {} spans sent, {} dropped (queue full), {} failed, {} rejected{late}",
            self.url,
            count(&self.counts.sent),
            count(&self.counts.dropped),
            count(&self.counts.failed),
            count(&self.counts.rejected),
        )
    }
}

async fn run(mut batches: mpsc::Receiver<Encoded>, mut route: Route, counts: &Counts) {
    while let Some(batch) = batches.recv().await {
        deliver(&mut route, &batch, counts, &batches).await;
    }
}

/// Sends a batch, again and again while that makes sense and the queue is open.
async fn deliver(route: &mut Route, batch: &Encoded, counts: &Counts, queue: &mpsc::Receiver<Encoded>) {
    let amount = batch.spans as u64;
    let mut pause = RETRY_FIRST;
    let until = Instant::now() + BATCH_MOST;
    loop {
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, route.export(&batch.bytes)).await;
        match answer.unwrap_or_else(|_| Answer::Again("no answer in time".to_owned())) {
            Answer::Taken { rejected } => {
                let rejected = (rejected.max(0) as u64).min(amount);
                counts.rejected.fetch_add(rejected, Relaxed);
                counts.sent.fetch_add(amount - rejected, Relaxed);
                return;
            }
            Answer::Refused(reason) => {
                tracing::warn!("the collector refuses spans: {reason}");
                counts.failed.fetch_add(amount, Relaxed);
                return;
            }
            Answer::Again(reason) => {
                tracing::debug!("the collector does not take spans now: {reason}");
                if (queue.is_closed() && pause > RETRY_FIRST) || Instant::now() >= until {
                    counts.failed.fetch_add(amount, Relaxed);
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}

enum Answer {
    Taken { rejected: i64 },
    Refused(String),
    Again(String),
}

/// Partial success: the collector says how many spans it did not take, and why.
fn taken(response: ExportTraceServiceResponse) -> Answer {
    let partial = response.partial_success.unwrap_or_default();
    if !partial.error_message.is_empty() {
        tracing::warn!("the collector says: {}", partial.error_message);
    }
    Answer::Taken { rejected: partial.rejected_spans }
}

/// A way to a collector that is not taken yet.
enum Transport {
    Grpc(Box<tonic::transport::Endpoint>),
    Http { client: reqwest::Client, url: String },
}

impl Transport {
    fn new(endpoint: &Endpoint) -> Result<Self> {
        match endpoint.protocol {
            Protocol::Grpc => tonic::transport::Endpoint::from_shared(endpoint.url.clone())
                .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
                .map(|endpoint| Self::Grpc(Box::new(endpoint)))
                .map_err(|error| anyhow!("`{}`: {error}", endpoint.url)),
            Protocol::Http => {
                let client = reqwest::Client::builder().user_agent(USER_AGENT).no_proxy().build()?;
                Ok(Self::Http { client, url: endpoint.url.clone() })
            }
        }
    }

    /// In the runtime that will send: connections are made with the first request.
    fn open(self) -> Route {
        match self {
            Self::Grpc(endpoint) => Route::Grpc(Grpc::new(endpoint.connect_lazy())),
            Self::Http { client, url } => Route::Http { client, url },
        }
    }
}

enum Route {
    Grpc(Grpc<Channel>),
    Http { client: reqwest::Client, url: String },
}

impl Route {
    async fn export(&mut self, request: &Bytes) -> Answer {
        match self {
            Self::Grpc(client) => {
                if let Err(error) = client.ready().await {
                    return Answer::Again(error.to_string());
                }
                let path = PathAndQuery::from_static(GRPC_METHOD);
                match client.unary(Request::new(request.clone()), path, Ready).await {
                    Ok(response) => taken(response.into_inner()),
                    Err(status) if may_retry(status.code()) => Answer::Again(status.to_string()),
                    Err(status) => Answer::Refused(status.to_string()),
                }
            }
            Self::Http { client, url } => {
                let response = client
                    .post(url.as_str())
                    .header("content-type", "application/x-protobuf")
                    .body(request.clone())
                    .send()
                    .await;
                let response = match response {
                    Ok(response) => response,
                    Err(error) => return Answer::Again(error.to_string()),
                };
                let status = response.status();
                if !status.is_success() {
                    let reason = format!("status {status}");
                    // OTLP, "Failures": these may be tried again, and no others.
                    return match status.as_u16() {
                        429 | 502 | 503 | 504 => Answer::Again(reason),
                        _ => Answer::Refused(reason),
                    };
                }
                match response.bytes().await {
                    Ok(body) => taken(ExportTraceServiceResponse::decode(body).unwrap_or_default()),
                    Err(error) => Answer::Again(error.to_string()),
                }
            }
        }
    }
}

/// Requests that are encoded already.
#[derive(Clone, Copy, Default)]
struct Ready;

impl Codec for Ready {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Ready {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(request);
        Ok(())
    }
}

impl Decoder for Ready {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let bytes = bytes.copy_to_bytes(bytes.remaining());
        let response = ExportTraceServiceResponse::decode(bytes);
        response.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// OTLP, "Failures": the codes that may be tried again.
fn may_retry(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

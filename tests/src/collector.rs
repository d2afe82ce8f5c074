//! Collectors that behave as they are told: what they took is the truth that exports are compared with.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use opentelemetry_proto::tonic::collector::{
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use prost::Message;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

mod points;
mod spans;

pub use self::{points::Points, spans::Span};

/// What a collector does with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Manner {
    Take,
    /// Takes the request, and says that so many of its spans were not taken.
    Reject(u64),
    /// Answers with this status; `Retry-After` with it.
    Status(u16, Option<&'static str>),
    /// Reads, and never answers.
    Silent,
    /// Reads ten bytes a second.
    Slow,
}

/// What came in.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Ids of the spans that were taken, with how often.
    pub spans: BTreeMap<String, u64>,
    /// Spans that were said to be taken.
    pub taken: u64,
    pub rejected: u64,
    /// How many requests were answered with each status.
    pub answers: BTreeMap<u16, u64>,
    /// What the last request said of itself.
    pub headers: BTreeMap<String, String>,
    /// Requests of metrics.
    pub metrics: u64,
}

/// OTLP over HTTP.
pub struct Collector {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    manner: Mutex<Manner>,
    received: Mutex<Received>,
    points: Mutex<Points>,
    /// Whole, where that is asked for: many spans are much memory.
    spans: Mutex<Option<Vec<Span>>>,
    connections: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            manner: Mutex::new(Manner::Take),
            received: Mutex::default(),
            points: Mutex::default(),
            spans: Mutex::default(),
            connections: Mutex::default(),
            ended: AtomicBool::new(false),
        })
    }

    fn manner(&self) -> Manner {
        self.manner.lock().expect("no panic there").clone()
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().expect("no panic there")
    }

    fn take_metrics(&self, request: &ExportMetricsServiceRequest) {
        self.points.lock().expect("no panic there").take(request);
        self.received().metrics += 1;
    }

    /// Returns what is to be answered.
    fn take(&self, request: &ExportTraceServiceRequest, rejected: u64) -> ExportTraceServiceResponse {
        if let Some(spans) = &mut *self.spans.lock().expect("no panic there") {
            spans.extend(Span::all(request));
        }
        let mut received = self.received();
        let spans = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        let mut count = 0;
        for span in spans.flat_map(|scope| &scope.spans) {
            count += 1;
            let id = span.span_id.iter().map(|byte| format!("{byte:02x}")).collect();
            *received.spans.entry(id).or_default() += 1;
        }
        let rejected = rejected.min(count);
        received.taken += count - rejected;
        received.rejected += rejected;
        let partial_success = (rejected > 0).then(|| ExportTracePartialSuccess {
            rejected_spans: rejected as i64,
            error_message: "for a test".to_owned(),
        });
        ExportTraceServiceResponse { partial_success }
    }
}

impl Collector {
    pub fn start() -> Self {
        Self::bind(IpAddr::V4(Ipv4Addr::LOCALHOST), Shared::new())
    }

    /// Where others reach it too. It keeps the spans whole.
    pub fn start_at(address: IpAddr) -> Self {
        let shared = Shared::new();
        *shared.spans.lock().expect("no panic there") = Some(Vec::new());
        Self::bind(address, shared)
    }

    fn bind(address: IpAddr, shared: Arc<Shared>) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        Self { address, thread: Some(accept(listener, shared.clone())), shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().expect("no panic there") = manner;
    }

    pub fn received(&self) -> Received {
        self.shared.received().clone()
    }

    /// The latest of each point that came in.
    pub fn points(&self) -> Points {
        self.shared.points.lock().expect("no panic there").clone()
    }

    /// All that came in, of one that keeps them.
    pub fn spans(&self) -> Vec<Span> {
        self.shared.spans.lock().expect("no panic there").clone().expect("it keeps spans")
    }

    /// As a process that is killed: nothing listens any more, connections are gone. What it took stays known.
    pub fn kill(&mut self) {
        self.shared.ended.store(true, Relaxed);
        for connection in self.shared.connections.lock().expect("no panic there").drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// On the same port as before.
    pub fn restart(&mut self) {
        self.kill();
        self.shared.ended.store(false, Relaxed);
        let listener =
            super::process::wait_for("the port to be free", || TcpListener::bind(self.address).ok());
        self.thread = Some(accept(listener, self.shared.clone()));
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Each connection has a thread of its own.
fn accept(listener: TcpListener, shared: Arc<Shared>) -> JoinHandle<()> {
    listener.set_nonblocking(true).expect("a listener");
    std::thread::spawn(move || {
        while !shared.ended.load(Relaxed) {
            match listener.accept() {
                Ok((connection, _)) => {
                    connection.set_nonblocking(false).expect("a connection");
                    let copy = connection.try_clone().expect("a connection");
                    shared.connections.lock().expect("no panic there").push(copy);
                    let shared = shared.clone();
                    std::thread::spawn(move || serve(connection, &shared));
                }
                Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
            }
        }
    })
}

/// One connection, request by request, until something is wrong with it.
fn serve(mut connection: TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(connection.try_clone().expect("a connection"));
    while let Some(response) = answer(&mut reader, shared) {
        if connection.write_all(response.as_slice()).is_err() {
            return;
        }
    }
}

fn answer(reader: &mut BufReader<TcpStream>, shared: &Shared) -> Option<Vec<u8>> {
    if shared.manner() == Manner::Slow {
        crawl(reader, shared);
        return None;
    }
    let mut headers = BTreeMap::new();
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 0 {
        let text = line.trim_end().to_owned();
        line.clear();
        match text.split_once(": ") {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
            None if text.is_empty() => break,
            None => {
                headers.insert("request".to_owned(), text);
            }
        }
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    if headers.get("content-encoding").is_some_and(|coding| coding == "gzip") {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).expect("gzip");
        body = plain;
    }
    let is_metrics = headers.get("request").is_some_and(|line| line.contains("/v1/metrics"));
    shared.received().headers = headers;
    let request = match is_metrics {
        true => {
            let request = ExportMetricsServiceRequest::decode(&body[..]).expect("a request of metrics");
            if shared.manner() == Manner::Take {
                shared.take_metrics(&request);
            }
            ExportTraceServiceRequest::default()
        }
        false => ExportTraceServiceRequest::decode(&body[..]).expect("a request of spans"),
    };
    let (status, more, body) = match shared.manner() {
        Manner::Take | Manner::Slow => (200, None, shared.take(&request, 0).encode_to_vec()),
        Manner::Reject(spans) => (200, None, shared.take(&request, spans).encode_to_vec()),
        Manner::Status(status, after) => (status, after, Vec::new()),
        Manner::Silent => {
            // Until the other side has enough of it.
            let _ = reader.read(&mut [0]);
            return None;
        }
    };
    *shared.received().answers.entry(status).or_default() += 1;
    let after = more.map_or(String::new(), |after| format!("Retry-After: {after}\r\n"));
    let head = format!(
        "HTTP/1.1 {status} -\r\nContent-Type: application/x-protobuf\r\n{after}Content-Length: {}\r\n\r\n",
        body.len()
    );
    Some([head.into_bytes(), body].concat())
}

/// Ten bytes a second, while that is the manner: what was read is lost to the request.
fn crawl(reader: &mut BufReader<TcpStream>, shared: &Shared) {
    while shared.manner() == Manner::Slow {
        // Past the buffer: what it holds would be read at once.
        if !matches!(reader.get_mut().read(&mut [0; 10]), Ok(1..)) {
            return;
        }
        std::thread::park_timeout(Duration::from_secs(1));
    }
    let _ = reader.get_mut().shutdown(std::net::Shutdown::Both);
}

/// OTLP over gRPC, in a runtime of its own.
pub struct GrpcCollector {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let headers = request.metadata().iter().filter_map(|entry| match entry {
            tonic::metadata::KeyAndValueRef::Ascii(key, value) => {
                Some((key.to_string(), value.to_str().ok()?.to_owned()))
            }
            tonic::metadata::KeyAndValueRef::Binary(..) => None,
        });
        self.0.received().headers = headers.collect();
        let request = request.into_inner();
        match self.0.manner() {
            Manner::Take | Manner::Slow => Ok(tonic::Response::new(self.0.take(&request, 0))),
            Manner::Reject(spans) => Ok(tonic::Response::new(self.0.take(&request, spans))),
            Manner::Status(status, after) => {
                *self.0.received().answers.entry(status).or_default() += 1;
                let code = tonic::Code::from_i32(status.into());
                // google.rpc.Status { details: [Any { RetryInfo { retry_delay { seconds } } }] }, by hand.
                let details = after.map_or(Vec::new(), |after| {
                    let seconds: u8 = after.parse().expect("few seconds");
                    let url = b"type.googleapis.com/google.rpc.RetryInfo";
                    let info = [0x0a, 2, 0x08, seconds];
                    let mut any = vec![0x0a, url.len() as u8];
                    any.extend_from_slice(url);
                    any.extend_from_slice(&[0x12, info.len() as u8]);
                    any.extend_from_slice(&info);
                    let mut details = vec![0x1a, any.len() as u8];
                    details.extend_from_slice(&any);
                    details
                });
                Err(tonic::Status::with_details(code, "for a test", details.into()))
            }
            Manner::Silent => {
                std::future::pending::<()>().await;
                Err(tonic::Status::unknown("never"))
            }
        }
    }
}

#[tonic::async_trait]
impl MetricsService for Service {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, tonic::Status> {
        self.0.take_metrics(&request.into_inner());
        Ok(tonic::Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl GrpcCollector {
    pub fn start() -> Self {
        Self::start_as(None)
    }

    /// Behind TLS, with a certificate and its key, for clients with a certificate of an authority.
    pub fn start_with_tls(certificate: &[u8], key: &[u8], authority: &[u8]) -> Self {
        let identity = Identity::from_pem(certificate, key);
        Self::start_as(Some(
            ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(authority)),
        ))
    }

    fn start_as(tls: Option<ServerTlsConfig>) -> Self {
        let shared = Shared::new();
        let service = TraceServiceServer::new(Service(shared.clone()))
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip);
        let metrics = MetricsServiceServer::new(Service(shared.clone()))
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let incoming = tonic::transport::server::TcpIncoming::bind(any).expect("a port");
                tell.send(incoming.local_addr().expect("an address")).expect("somebody waits");
                let mut server = tonic::transport::Server::builder();
                if let Some(tls) = tls {
                    server = server.tls_config(tls).expect("certificates that fit together");
                }
                let server = server.add_service(service).add_service(metrics);
                tokio::select! {
                    served = server.serve_with_incoming(incoming) => served.expect("a server"),
                    _ = ended => {}
                }
            });
        });
        let address = told.recv().expect("a port");
        Self { address, shared, end: Some(end), thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().expect("no panic there") = manner;
    }

    /// The latest of each point that came in.
    pub fn points(&self) -> Points {
        self.shared.points.lock().expect("no panic there").clone()
    }

    pub fn received(&self) -> Received {
        self.shared.received().clone()
    }
}

impl Drop for GrpcCollector {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

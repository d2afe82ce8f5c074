//! A service of a chain on tokio, with axum and reqwest; `chain/threads.py` is the same in Python.

use std::{
    fs::File,
    io::{Read, Write},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri},
    response::{IntoResponse, Response},
    serve::ListenerExt,
};
use clap::{Parser, ValueEnum};
use futures_util::{future::join_all, stream::unfold};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time,
};

const BODY: &str = "it has been answered";
const CHUNKS: usize = 5;
const FAN: usize = 20;
/// After which an answer has long been written.
const LATE: Duration = Duration::from_millis(5);
const TRACEPARENT: &str = "traceparent";

#[derive(Parser)]
struct Options {
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Base URL of a service to call.
    #[arg(long)]
    next: Vec<String>,
    /// The headers to pass on.
    #[arg(long = "pass", value_enum, default_value_t = Family::None)]
    family: Family,
    /// Pass on a new span id with each call.
    #[arg(long)]
    child: bool,
    #[arg(long, default_value = "/dev/null")]
    log: PathBuf,
    #[arg(long, value_enum, default_value_t = Mode::Single)]
    mode: Mode,
    /// A call every so many milliseconds.
    #[arg(long)]
    cron: Option<u64>,
    /// As many of these.
    #[arg(long, default_value_t = u64::MAX)]
    calls: u64,
    /// Each of these begins a trace, and says so by a traceparent.
    #[arg(long)]
    begin: bool,
    /// Ends after the last of these.
    #[arg(long)]
    once: bool,
    /// A new connection for each call.
    #[arg(long)]
    fresh: bool,
    /// Fails where a path has fail-NAME.
    #[arg(long, default_value = "")]
    name: String,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    Single,
    Fan,
    Sequence,
    Retry,
    Late,
    Stream,
}

#[derive(Clone, Copy, ValueEnum)]
enum Family {
    None,
    Traceparent,
    B3,
    B3multi,
    UberTraceId,
    XRequestId,
    All,
}

impl Family {
    fn headers(self) -> &'static [&'static str] {
        let all = &[
            TRACEPARENT,
            "tracestate",
            "b3",
            "x-b3-traceid",
            "x-b3-spanid",
            "x-b3-parentspanid",
            "x-b3-sampled",
            "uber-trace-id",
            "x-request-id",
        ];
        match self {
            Family::None => &[],
            Family::Traceparent => &all[..2],
            Family::B3 => &all[2..3],
            Family::B3multi => &all[3..7],
            Family::UberTraceId => &all[7..8],
            Family::XRequestId => &all[8..],
            Family::All => all,
        }
    }
}

struct Service {
    options: Options,
    client: reqwest::Client,
    log: File,
    random: File,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut terminated = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((options.address, options.port)).await?;
    let client = reqwest::Client::builder().no_proxy();
    let client = if options.fresh { client.pool_max_idle_per_host(0) } else { client };
    let service = Arc::new(Service {
        client: client.build()?,
        log: File::options().append(true).create(true).open(&options.log)?,
        random: File::open("/dev/urandom")?,
        options,
    });
    println!("listening on {}", listener.local_addr()?);
    let once = service.options.once;
    let calls = service
        .options
        .cron
        .filter(|_| service.calling())
        .map(|period| tokio::spawn(service.clone().cron(Duration::from_millis(period))));
    let called = async {
        match calls {
            Some(calls) if once => calls.await,
            _ => std::future::pending().await,
        }
    };
    let router = Router::new().fallback(serve).with_state(service);
    // Without a delay, pieces of an answer are sent when they are there.
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    tokio::select! {
        ended = axum::serve(listener, router) => Ok(ended?),
        _ = terminated.recv() => Ok(()),
        called = called => Ok(called?),
    }
}

async fn serve(State(service): State<Arc<Service>>, uri: Uri, headers: HeaderMap, _body: Bytes) -> Response {
    let path = uri.to_string();
    let headers = service.passed(&headers);
    if service.fails(&path) {
        return service.answer(&path, StatusCode::SERVICE_UNAVAILABLE);
    }
    match service.options.mode {
        Mode::Stream => service.stream(path, headers),
        Mode::Late => {
            work(&path).await;
            let answer = service.answer(&path, StatusCode::OK);
            if service.calling() {
                tokio::spawn(async move {
                    time::sleep(LATE).await;
                    service.call(format!("{path}/late"), 0, &headers).await;
                });
            }
            answer
        }
        _ => {
            let status = service.calls(&path, &headers).await;
            work(&path).await;
            service.answer(&path, status)
        }
    }
}

/// What the service is busy with, for as long as `/slow/MS/...` says: nobody waits here for something else.
async fn work(path: &str) {
    let slow = path.strip_prefix("/slow/").and_then(|rest| rest.split_once('/'));
    let duration = slow.and_then(|(duration, _)| duration.parse().ok()).unwrap_or(0);
    time::sleep(Duration::from_millis(duration)).await;
}

impl Service {
    fn calling(&self) -> bool {
        !self.options.next.is_empty()
    }

    fn told(&self, side: &str, path: &str, status: u16) {
        let line = format!("{side} {path} {status}\n"); // which is one write
        (&self.log).write_all(line.as_bytes()).expect("the log takes a line");
    }

    /// Whether the request is to fail; with retries, only the first attempt.
    fn fails(&self, path: &str) -> bool {
        let marked = path.split('/').any(|part| part.strip_prefix("fail-") == Some(&self.options.name));
        marked && (self.options.mode != Mode::Retry || path.ends_with("/0"))
    }

    fn passed(&self, received: &HeaderMap) -> HeaderMap {
        let names = self.options.family.headers().iter().copied();
        names.filter_map(|name| Some((name.parse().ok()?, received.get(name)?.clone()))).collect()
    }

    /// The headers of one call.
    fn sent(&self, headers: &HeaderMap) -> HeaderMap {
        let mut headers = headers.clone();
        if let Some(parent) = headers.get_mut(TRACEPARENT).filter(|_| self.options.child) {
            *parent = self.child(parent).expect("a traceparent has four fields");
        }
        headers
    }

    fn begun(&self) -> HeaderMap {
        let parent = || -> Option<HeaderValue> {
            format!("00-{}{}-{}-01", self.number()?, self.number()?, self.number()?).parse().ok()
        };
        let parent = if self.options.begin { parent() } else { None };
        parent.into_iter().map(|parent| (HeaderName::from_static(TRACEPARENT), parent)).collect()
    }

    /// 16 digits.
    fn number(&self) -> Option<String> {
        let mut number = [0; 8];
        (&self.random).read_exact(&mut number).ok()?;
        Some(format!("{:016x}", u64::from_ne_bytes(number)))
    }

    fn child(&self, parent: &HeaderValue) -> Option<HeaderValue> {
        let mut fields: Vec<&str> = parent.to_str().ok()?.split('-').collect();
        let span = self.number()?;
        *fields.get_mut(2)? = &span;
        fields.join("-").parse().ok()
    }

    /// The status of the answer, 0 if there was none.
    async fn call(&self, path: String, number: usize, headers: &HeaderMap) -> u16 {
        let base = &self.options.next[number % self.options.next.len()];
        let request = self.client.get(format!("{base}{path}")).headers(self.sent(headers));
        let answer = async {
            let response = request.send().await?;
            let status = response.status();
            response.bytes().await.map(|_| status.as_u16())
        };
        let status = answer.await.unwrap_or(0);
        self.told("CLIENT", &path, status);
        status
    }

    /// Makes the calls of a request; the status to answer it with.
    async fn calls(&self, path: &str, headers: &HeaderMap) -> StatusCode {
        if !self.calling() {
            return StatusCode::OK;
        }
        let one = |number| self.call(format!("{path}/{number}"), number, headers);
        let statuses = match self.options.mode {
            Mode::Fan => join_all((0..FAN).map(one)).await,
            Mode::Sequence => vec![one(0).await, one(1).await, one(2).await],
            Mode::Retry => match one(0).await {
                503 => vec![one(1).await],
                status => vec![status],
            },
            _ => vec![one(0).await],
        };
        if statuses.iter().all(|status| (1..500).contains(status)) {
            StatusCode::OK
        } else {
            StatusCode::BAD_GATEWAY
        }
    }

    fn answer(&self, path: &str, status: StatusCode) -> Response {
        self.told("SERVER", path, status.as_u16());
        (status, BODY).into_response()
    }

    fn stream(self: Arc<Self>, path: String, headers: HeaderMap) -> Response {
        let chunks = unfold((0, self, path, headers), async |(sent, service, path, headers)| {
            if sent > 0 && service.calling() {
                service.call(format!("{path}/{}", sent - 1), sent - 1, &headers).await;
            }
            if sent == CHUNKS {
                work(&path).await;
                service.told("SERVER", &path, 200);
                return None;
            }
            Some((anyhow::Ok(BODY), (sent + 1, service, path, headers)))
        });
        Body::from_stream(chunks).into_response()
    }

    async fn cron(self: Arc<Self>, period: Duration) {
        let mut ticks = time::interval_at(time::Instant::now() + period, period);
        for number in 0..self.options.calls {
            ticks.tick().await;
            self.call(format!("/cron/{}/{number}", self.options.name), 0, &self.begun()).await;
        }
    }
}

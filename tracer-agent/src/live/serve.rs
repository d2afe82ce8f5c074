//! What the agent answers for itself over HTTP. A thread of its own takes the requests; what they ask is
//! answered by the capture's thread between two turns, so that nothing is shared.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
};

use super::clock;
use crate::export::prometheus::Format;

/// Requests that wait for the capture.
const WAITING: usize = 16;

/// Connections at a time: whoever asks more often waits.
const CONNECTIONS: usize = 32;

/// A client says what it wants within this time.
const HEAD: Duration = Duration::from_secs(5);

/// The capture answers between two turns, which take milliseconds.
const ANSWER: Duration = Duration::from_secs(5);

/// A capture that has not turned for so long hangs: 15 s.
const PULSE_MOST: u64 = 15_000_000_000;

const TEXT: &str = "text/plain; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    Metrics(Format),
    Ready,
    Config,
    Explain(u32),
}

pub struct Answer {
    pub status: u16,
    pub kind: &'static str,
    pub text: String,
}

impl Answer {
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        Self { status, kind: TEXT, text: text.into() }
    }
}

/// A question, and where the answer goes.
pub struct Ask {
    pub question: Question,
    answer: oneshot::Sender<Answer>,
}

impl Ask {
    pub fn answer(self, answer: Answer) {
        // Nobody may wait for it any more.
        let _ = self.answer.send(answer);
    }
}

pub struct Server {
    asks: Receiver<Ask>,
    pulse: Arc<AtomicU64>,
    pub address: SocketAddr,
}

impl Server {
    pub fn start(address: SocketAddr) -> Result<Self> {
        let listener =
            std::net::TcpListener::bind(address).with_context(|| format!("{address} cannot be served on"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (asked, asks) = sync_channel(WAITING);
        let pulse = Arc::new(AtomicU64::new(clock::monotonic()));
        let client = Client { asked, pulse: pulse.clone() };
        std::thread::Builder::new()
            .name("serve".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime.map(|runtime| runtime.block_on(accept(listener, client))) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) | Err(error) => tracing::error!("nothing can be served: {error}"),
                }
            })
            .context("no thread can be started")?;
        Ok(Self { asks, pulse, address })
    }

    /// The capture lives.
    pub fn beat(&self) {
        self.pulse.store(clock::monotonic(), Relaxed);
    }

    pub fn poll(&self) -> Option<Ask> {
        self.asks.try_recv().ok()
    }
}

#[derive(Clone)]
struct Client {
    asked: SyncSender<Ask>,
    pulse: Arc<AtomicU64>,
}

async fn accept(listener: std::net::TcpListener, client: Client) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Too many files, or the client went away: others come.
            Err(error) => {
                tracing::warn!("a connection could not be taken: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let client = client.clone();
        tokio::spawn(async move {
            serve(stream, client).await;
            drop(permit);
        });
    }
}

async fn serve(stream: TcpStream, client: Client) {
    let service = service_fn(|request| {
        let client = client.clone();
        async move { Ok::<_, std::convert::Infallible>(client.respond(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    // What a client does wrong is its own.
    if let Err(error) = connection.await {
        tracing::debug!("a connection ended: {error}");
    }
}

impl Client {
    async fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = made(Answer::text(405, "only GET is answered here\n"));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let answer = match request.uri().path() {
            "/healthz" => self.health(),
            "/readyz" => self.ask(Question::Ready).await,
            "/metrics" => {
                let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
                self.ask(Question::Metrics(Format::accepted(accept.unwrap_or_default()))).await
            }
            "/debug/config" => self.ask(Question::Config).await,
            "/" => Answer::text(200, INDEX),
            path => match path.strip_prefix("/debug/explain/").map(str::parse) {
                Some(Ok(process)) => self.ask(Question::Explain(process)).await,
                Some(Err(_)) => Answer::text(400, "the id of a process is a number\n"),
                None => Answer::text(404, INDEX),
            },
        };
        made(answer)
    }

    fn health(&self) -> Answer {
        let since = clock::monotonic().saturating_sub(self.pulse.load(Relaxed));
        match since <= PULSE_MOST {
            true => Answer::text(200, "ok\n"),
            false => {
                Answer::text(503, format!("the capture has not turned for {} s\n", since / 1_000_000_000))
            }
        }
    }

    async fn ask(&self, question: Question) -> Answer {
        let (answer, answered) = oneshot::channel();
        if self.asked.try_send(Ask { question, answer }).is_err() {
            return Answer::text(503, "too many ask at the same time\n");
        }
        match tokio::time::timeout(ANSWER, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Answer::text(503, "the agent is about to end\n"),
            Err(_) => Answer::text(503, "the capture is busy\n"),
        }
    }
}

const INDEX: &str = "tracer answers here:
/metrics            what it measures, for Prometheus
/healthz            whether it lives
/readyz             whether it captures, and what it lacks
/debug/config       its configuration, without secrets
/debug/explain/PID  what it sees of a process, and why not more
";

fn made(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.text));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

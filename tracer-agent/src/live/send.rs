//! OTLP to a collector, from a thread of its own, through a queue with a bound: a collector that is
//! slow, or not there, costs spans (counted by the reason) and nothing else.

pub mod endpoint;
mod queue;
mod route;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use self::{
    endpoint::{Endpoint, Signal},
    queue::Queue,
    route::{Answer, Content, Route, Transport},
};
use crate::{
    export::otlp::{Batch, Encoded},
    span::Span,
};

/// A batch is closed when it has so many spans or bytes, or is so old.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
const BATCH_AGE: Duration = Duration::from_secs(1);

/// The first and the longest pause before a request is tried again, of which up to a half is left to chance.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(8);

/// The pause when everything has to be over soon.
const RETRY_LAST: Duration = Duration::from_millis(500);

/// However long a collector asks to be left alone, it is asked again after this.
const AFTER_MOST: Duration = Duration::from_secs(300);

/// A batch that was tried for so long is given up.
const BATCH_MOST: Duration = Duration::from_secs(60);

/// What became of the spans that were to be sent.
#[derive(Debug, Default)]
struct Counts {
    /// All of them.
    made: AtomicU64,
    sent: AtomicU64,
    /// The queue was full.
    dropped: AtomicU64,
    /// The collector took the request, and said that it did not take them.
    rejected: AtomicU64,
    /// The collector refused the request for good.
    refused: AtomicU64,
    /// It was tried for long, and in vain.
    given_up: AtomicU64,
    /// The collector takes nothing at the moment.
    failing: AtomicBool,
}

/// The same at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// What is counted, for people.
    pub items: &'static str,
    pub sent: u64,
    pub dropped: u64,
    pub rejected: u64,
    pub refused: u64,
    pub given_up: u64,
    /// There was no time left.
    pub late: u64,
}

impl Sent {
    /// Spans that no collector has.
    pub fn lost(&self) -> u64 {
        self.dropped + self.rejected + self.refused + self.given_up + self.late
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} sent, {} dropped (queue full)", self.sent, self.items, self.dropped)?;
        let failed = self.refused + self.given_up + self.late;
        write!(f, ", {failed} failed, {} rejected", self.rejected)?;
        let reasons = [
            (self.refused, "refused"),
            (self.given_up, "given up after a minute"),
            (self.late, "not in time"),
        ];
        let reasons: Vec<String> = reasons
            .iter()
            .filter(|(spans, _)| *spans > 0)
            .map(|(spans, reason)| format!("{spans} {reason}"))
            .collect();
        if reasons.is_empty() { Ok(()) } else { write!(f, " (failed: {})", reasons.join(", ")) }
    }
}

pub struct Sender {
    batch: Batch,
    /// When the first span of the batch came.
    since: Option<Instant>,
    queue: Arc<Queue>,
    thread: JoinHandle<()>,
    counts: Arc<Counts>,
    url: String,
    signal: Signal,
}

impl Sender {
    pub fn start(endpoint: &Endpoint) -> Result<Self> {
        let queue = Arc::new(Queue::new(endpoint.queue));
        let counts = Arc::new(Counts::default());
        let mut post = Post {
            queue: queue.clone(),
            counts: counts.clone(),
            timeout: endpoint.timeout,
            url: endpoint.shown(),
            items: endpoint.signal.items(),
            failing: None,
            not_before: None,
        };
        let transport = Transport::new(endpoint)?;
        let thread = std::thread::Builder::new()
            .name("send".into())
            .spawn(move || {
                // Whoever waits for room must not wait for a thread that is gone.
                let _hope = Hope(post.queue.clone());
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(async { post.run(transport.open()).await }),
                    Err(error) => tracing::error!("nothing can be sent: {error}"),
                }
            })
            .context("no thread can be started")?;
        let (url, signal) = (endpoint.shown(), endpoint.signal);
        Ok(Self { batch: Batch::default(), since: None, queue, thread, counts, url, signal })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn signal(&self) -> Signal {
        self.signal
    }

    /// A request that is encoded already, of so many items.
    pub fn send_encoded(&mut self, encoded: Encoded) {
        self.counts.made.fetch_add(encoded.spans as u64, Relaxed);
        let dropped = self.queue.put(encoded);
        self.counts.dropped.fetch_add(dropped, Relaxed);
    }

    /// What became of all until now; `late` is what waits or is under way.
    pub fn sent(&self) -> Sent {
        let count = |count: &AtomicU64| count.load(Relaxed);
        let mut sent = Sent {
            items: self.signal.items(),
            sent: count(&self.counts.sent),
            dropped: count(&self.counts.dropped),
            rejected: count(&self.counts.rejected),
            refused: count(&self.counts.refused),
            given_up: count(&self.counts.given_up),
            late: 0,
        };
        // Neither gone nor lost: in the queue, or on the way.
        sent.late = count(&self.counts.made).saturating_sub(sent.sent + sent.lost());
        sent
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.queue.bytes()
    }

    /// Whether the receiver takes what it is sent.
    pub fn is_failing(&self) -> bool {
        self.counts.failing.load(Relaxed)
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
        self.counts.made.fetch_add(1, Relaxed);
        self.batch.spans() >= BATCH || self.batch.held() >= BATCH_BYTES
    }

    fn flush(&mut self) {
        if let Some(batch) = self.take() {
            let dropped = self.queue.put(batch);
            self.counts.dropped.fetch_add(dropped, Relaxed);
        }
    }

    /// As far as a batch has come, when there is time to wait for room.
    pub fn flush_waiting(&mut self) {
        if let Some(batch) = self.take() {
            let dropped = self.queue.put_waiting(batch);
            self.counts.dropped.fetch_add(dropped, Relaxed);
        }
    }

    fn take(&mut self) -> Option<Encoded> {
        self.since = None;
        (self.batch.spans() > 0).then(|| self.batch.take())
    }

    /// Sends what is left, for at most as long. Returns where to, and what became of all spans.
    pub fn finish(mut self, most: Duration) -> (String, Sent) {
        let until = Instant::now() + most;
        self.end(until);
        self.wait(until)
    }

    /// Nothing more comes; what is left is sent until then. Several do that side by side.
    pub fn end(&mut self, until: Instant) {
        self.flush();
        self.queue.end(until);
    }

    /// Waits for the end of one that was told to.
    pub fn wait(self, until: Instant) -> (String, Sent) {
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let sent = self.sent();
        (self.url, sent)
    }
}

/// While somebody sends there is hope.
struct Hope(Arc<Queue>);

impl Drop for Hope {
    fn drop(&mut self) {
        self.0.hope(false);
    }
}

/// The thread that sends.
struct Post {
    queue: Arc<Queue>,
    counts: Arc<Counts>,
    timeout: Duration,
    url: String,
    /// What is sent, for people.
    items: &'static str,
    /// Since when the collector takes nothing.
    failing: Option<Instant>,
    /// It asked not to be asked before.
    not_before: Option<Instant>,
}

impl Post {
    async fn run(&mut self, mut route: Route) {
        while let Some(batch) = self.queue.take().await {
            self.deliver(&mut route, &batch).await;
        }
    }

    /// Sends a batch, again and again while that makes sense and there is time.
    async fn deliver(&mut self, route: &mut Route, batch: &Encoded) {
        let spans = batch.spans as u64;
        let content = route.content(&batch.bytes);
        let give_up = Instant::now() + BATCH_MOST;
        let mut pause = RETRY_FIRST;
        loop {
            if !self.wait_turn().await {
                return;
            }
            let after = match self.ask(route, &content).await {
                Answer::Taken { rejected, reason } => {
                    let rejected = u64::try_from(rejected).unwrap_or(0).min(spans);
                    if rejected > 0 || !reason.is_empty() {
                        tracing::warn!(
                            "{} did not take {rejected} of {spans} {}: {reason}",
                            self.url,
                            self.items
                        );
                    }
                    self.counts.rejected.fetch_add(rejected, Relaxed);
                    self.counts.sent.fetch_add(spans - rejected, Relaxed);
                    return self.goes_on();
                }
                Answer::Refused(reason) => {
                    let lost = format!("{} are lost", self.items);
                    self.fails(&reason, &lost);
                    self.counts.refused.fetch_add(spans, Relaxed);
                    return;
                }
                Answer::Again { reason, after } => {
                    self.fails(&reason, "trying again");
                    after
                }
            };
            if Instant::now() >= give_up {
                self.counts.given_up.fetch_add(spans, Relaxed);
                self.queue.hope(false);
                return;
            }
            self.not_before = after.map(|after| Instant::now() + after.min(AFTER_MOST));
            let chance = pause.mul_f64(0.5 + 0.5 * chance());
            match self.queue.until() {
                // There is little time, and a word in it is better than none.
                Some(_) => tokio::time::sleep(RETRY_LAST).await,
                None => self.queue.pause(chance).await,
            }
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    /// Waits as long as the collector asked for. False if there is no time for that, or none at all.
    async fn wait_turn(&mut self) -> bool {
        loop {
            let left =
                self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            if self.queue.until().is_some_and(|until| Instant::now() + left >= until) {
                return false;
            }
            if left.is_zero() {
                self.not_before = None;
                return true;
            }
            self.queue.pause(left).await;
        }
    }

    async fn ask(&self, route: &mut Route, content: &Content) -> Answer {
        let most = match self.queue.until() {
            Some(until) => self.timeout.min(until.saturating_duration_since(Instant::now())),
            None => self.timeout,
        };
        let answer = tokio::time::timeout(most, route.export(content)).await;
        answer.unwrap_or_else(|_| Answer::Again {
            reason: format!("no answer within {}s", most.as_secs_f64()),
            after: None,
        })
    }

    /// Said once, until it goes on.
    fn fails(&mut self, reason: &str, what: &str) {
        if self.failing.is_none() {
            self.failing = Some(Instant::now());
            self.counts.failing.store(true, Relaxed);
            tracing::warn!("{} does not take {}: {reason}; {what}", self.url, self.items);
        } else {
            tracing::debug!("{} does not take {}: {reason}", self.url, self.items);
        }
    }

    fn goes_on(&mut self) {
        self.queue.hope(true);
        if let Some(since) = self.failing.take() {
            self.counts.failing.store(false, Relaxed);
            let dropped = self.counts.dropped.load(Relaxed);
            let seconds = since.elapsed().as_secs();
            tracing::warn!(
                "{} takes {items} again after {seconds}s; {dropped} {items} were dropped so far",
                self.url,
                items = self.items
            );
        }
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX)
}

//! Batches that wait to be sent, bounded in bytes: when there are too many the oldest go, counted.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use crate::export::otlp::Encoded;

/// Batches that wait are put together up to this size: what a collector takes in one request by default is
/// 4 MiB over gRPC.
const REQUEST_MAX: usize = 2 << 20;

pub(super) struct Queue {
    most: usize,
    state: Mutex<State>,
    /// There is something to send, or it is time to end.
    news: Notify,
    /// There is room again.
    room: Condvar,
}

#[derive(Default)]
struct State {
    batches: VecDeque<Encoded>,
    bytes: usize,
    /// Nothing more comes, and by then everything has to be over.
    until: Option<Instant>,
    /// Nobody takes anything.
    hopeless: bool,
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        Self { most, state: Mutex::default(), news: Notify::new(), room: Condvar::new() }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Returns how many spans had to go for it.
    pub(super) fn put(&self, batch: Encoded) -> u64 {
        let mut state = self.state();
        let mut dropped = 0;
        state.put(batch);
        // The newest stays, however large it is.
        while state.bytes > self.most
            && state.batches.len() > 1
            && let Some(oldest) = state.take()
        {
            dropped += oldest.spans as u64;
        }
        drop(state);
        self.news.notify_one();
        dropped
    }

    /// As [`Self::put`], but waits for room while there is hope.
    pub(super) fn put_waiting(&self, batch: Encoded) -> u64 {
        let mut state = self.state();
        while state.bytes > 0 && state.bytes + batch.bytes.len() > self.most && !state.hopeless {
            state = self.room.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        drop(state);
        self.put(batch)
    }

    /// Whether it makes sense to wait for room.
    pub(super) fn hope(&self, hope: bool) {
        self.state().hopeless = !hope;
        self.room.notify_all();
    }

    /// What waited for longest, put together to one request; none when all is sent and nothing more comes.
    pub(super) async fn take(&self) -> Option<Encoded> {
        loop {
            {
                let mut state = self.state();
                if let Some(first) = state.take() {
                    let batch = state.join(first);
                    self.room.notify_all();
                    return Some(batch);
                }
                if state.until.is_some() {
                    return None;
                }
            }
            self.news.notified().await;
        }
    }

    /// Waits; if the end is told meanwhile there may be no time for it, so it ends then. After that there is
    /// nothing to wait for but time.
    pub(super) async fn pause(&self, time: Duration) {
        if self.until().is_some() {
            return tokio::time::sleep(time).await;
        }
        let over = async {
            while self.until().is_none() {
                self.news.notified().await;
            }
        };
        let _ = tokio::time::timeout(time, over).await;
    }

    /// Nothing more comes; what is left may take until then.
    pub(super) fn end(&self, until: Instant) {
        self.state().until = Some(until);
        self.news.notify_one();
    }

    /// When everything has to be over, if that was told.
    pub(super) fn until(&self) -> Option<Instant> {
        self.state().until
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything can fail.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn put(&mut self, batch: Encoded) {
        self.bytes += batch.bytes.len();
        self.batches.push_back(batch);
    }

    fn take(&mut self) -> Option<Encoded> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.bytes.len();
        Some(batch)
    }

    /// Two requests one after the other are one with the fields of both.
    fn join(&mut self, first: Encoded) -> Encoded {
        let fits = |batch: &Encoded, length: usize| length + batch.bytes.len() <= REQUEST_MAX;
        if !self.batches.front().is_some_and(|next| fits(next, first.bytes.len())) {
            return first;
        }
        let mut bytes = BytesMut::from(&first.bytes[..]);
        let mut spans = first.spans;
        while self.batches.front().is_some_and(|next| fits(next, bytes.len()))
            && let Some(next) = self.take()
        {
            bytes.extend_from_slice(&next.bytes);
            spans += next.spans;
        }
        Encoded { bytes: Bytes::from(bytes), spans }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(spans: usize, length: usize) -> Encoded {
        Encoded { bytes: Bytes::from(vec![spans as u8; length]), spans }
    }

    #[test]
    fn the_oldest_go_when_there_is_no_room() {
        let queue = Queue::new(100);
        assert_eq!((queue.put(batch(1, 60)), queue.put(batch(2, 40))), (0, 0));
        assert_eq!(queue.put(batch(4, 30)), 1);
        // One that never fits has it for itself.
        assert_eq!(queue.put(batch(8, 101)), 2 + 4);
        assert_eq!(queue.put(batch(16, 1)), 8);
    }

    #[test]
    fn what_waits_goes_in_one_request() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let queue = Queue::new(1 << 30);
        for (spans, length) in [(1, 10), (2, 20), (4, REQUEST_MAX - 30), (8, 1)] {
            queue.put(batch(spans, length));
        }
        queue.end(Instant::now());
        let taken: Vec<(usize, usize)> = runtime.block_on(async {
            let mut taken = Vec::new();
            while let Some(batch) = queue.take().await {
                taken.push((batch.spans, batch.bytes.len()));
            }
            taken
        });
        assert_eq!(taken, [(7, REQUEST_MAX), (8, 1)]);
    }
}

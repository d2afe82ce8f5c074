//! All objects of a kind, and what becomes of them: listed once, then watched from there on. A watch that ends goes
//! on where it ended; where the API has forgotten that place, all is listed again.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc::Sender, time::Instant};

use super::{
    api::{self, Api, Resource, Trouble},
    room::News,
    slim::{Meta, Page, PageMeta, Refusal, Watched},
};

/// The first and the longest pause before the API is asked again, of which up to a half is left to chance: all
/// agents of a cluster lose it at the same time.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MOST: Duration = Duration::from_secs(15);

/// And for one that may not ask: somebody has to grant it first.
const PAUSE_DENIED: Duration = Duration::from_secs(10);

/// A server that asks to be left alone for longer is asked again after this.
const PAUSE_ASKED: Duration = Duration::from_secs(120);

/// A watch that has not been refused after this goes on.
const SURE: Duration = Duration::from_secs(1);

/// The server ends a watch after this, and up to as much again: seconds.
const WATCH: u64 = 300;

/// What a feed says.
#[derive(Debug)]
pub(super) enum Event<T> {
    /// All that there is follows; what does not come until `Listed` is gone.
    Begins,
    Is(T),
    Gone(T),
    Listed,
    /// Changes are told from here on.
    Heard,
    Lost(Lost),
}

/// Why nothing is heard.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    pub(super) reason: String,
    /// Rights are missing.
    pub(super) denied: bool,
}

pub(super) struct Feed<T> {
    pub(super) api: Arc<Api>,
    pub(super) resource: Resource,
    /// More of the query, from `&` on.
    pub(super) query: String,
    pub(super) news: Sender<News>,
    pub(super) wrap: fn(Event<T>) -> News,
}

/// Nobody listens any more.
struct Deaf;

enum Stop {
    Deaf,
    Trouble(Trouble),
}

impl From<Deaf> for Stop {
    fn from(_: Deaf) -> Self {
        Self::Deaf
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl<T: Watched> Feed<T> {
    pub(super) async fn run(self) {
        let mut pause = PAUSE_FIRST;
        // Where to go on, and how far it was heard at all.
        let (mut version, mut newest) = (String::new(), String::new());
        loop {
            let began = Instant::now();
            let done = match version.is_empty() {
                true => self.list(&newest).await.map(|listed| version = listed),
                false => self.watch(&mut version).await,
            };
            let least = match done {
                Ok(()) => {
                    pause = PAUSE_FIRST;
                    // A list is followed by a watch at once, a watch by the next one not too soon.
                    if newest != version || began.elapsed() >= PAUSE_FIRST {
                        Duration::ZERO
                    } else {
                        PAUSE_FIRST
                    }
                }
                Err(Stop::Deaf) => return,
                Err(Stop::Trouble(Trouble::Expired)) => {
                    // Asked for again without a version that the server cannot serve.
                    newest = if version.is_empty() { String::new() } else { std::mem::take(&mut version) };
                    version.clear();
                    self.api.count_restart(self.resource);
                    pause_after(&mut pause)
                }
                Err(Stop::Trouble(trouble)) => {
                    let (lost, least) = match trouble {
                        Trouble::Denied(reason) => {
                            (Lost { reason, denied: true }, PAUSE_DENIED.mul_f64(jitter()))
                        }
                        Trouble::Away(reason, after) => {
                            let after = after.unwrap_or_default().min(PAUSE_ASKED);
                            (Lost { reason, denied: false }, after + pause_after(&mut pause))
                        }
                        _ => {
                            let reason = format!("this API has no {}", self.resource.name);
                            (Lost { reason, denied: true }, PAUSE_DENIED.mul_f64(jitter()))
                        }
                    };
                    if self.tell(Event::Lost(lost)).await.is_err() {
                        return;
                    }
                    least
                }
            };
            if !version.is_empty() {
                newest.clone_from(&version);
            }
            tokio::time::sleep(least).await;
        }
    }

    /// Returns where a watch goes on.
    async fn list(&self, newest: &str) -> Result<String, Stop> {
        // A few of many objects come from the server's cache: without it all others are read to find them.
        let is_part = !self.query.is_empty();
        let from = match (is_part, newest) {
            (false, _) => String::new(),
            (true, "") => "&resourceVersion=0".to_owned(),
            (true, newest) => format!("&resourceVersion={newest}&resourceVersionMatch=NotOlderThan"),
        };
        let mut next = String::new();
        let mut version = String::new();
        loop {
            let query = if next.is_empty() { format!("{}{from}", self.query) } else { self.query.clone() };
            let asked = self.api.list(self.resource, &query, &next).await;
            let Page { metadata: PageMeta { resource_version, next: more }, items } = match asked {
                // A server that is behind, or lost what was heard before.
                Err(Trouble::Away(..)) if !newest.is_empty() && is_part && next.is_empty() => {
                    self.api.list(self.resource, &self.query, "").await?
                }
                other => other?,
            };
            if next.is_empty() {
                self.tell(Event::Begins).await?;
            }
            // Pages after the first are of the same version.
            version = if version.is_empty() { resource_version } else { version };
            for item in items {
                self.tell(Event::Is(item)).await?;
            }
            next = more;
            if next.is_empty() {
                break;
            }
        }
        self.tell(Event::Listed).await?;
        Ok(version)
    }

    /// Until it ends; the version is then where to go on.
    async fn watch(&self, version: &mut String) -> Result<(), Stop> {
        let seconds = WATCH + (WATCH as f64 * (jitter() - 0.5)) as u64;
        let query = format!("{}&resourceVersion={version}", self.query);
        let mut lines = self.api.watch(self.resource, &query, seconds).await?;
        let mut is_sure = false;
        loop {
            let next = lines.next(read::<T>);
            let line = match is_sure {
                true => next.await?,
                // A server that has forgotten the version says so at once, in the first line.
                false => match tokio::time::timeout(SURE, next).await {
                    Ok(line) => line?,
                    Err(_) => {
                        is_sure = true;
                        self.tell(Event::Heard).await?;
                        continue;
                    }
                },
            };
            let Some((event, at)) = line else { return Ok(()) };
            if let Some(event) = event {
                self.tell(event).await?;
            }
            if !at.is_empty() {
                *version = at;
            }
            if !std::mem::replace(&mut is_sure, true) {
                self.tell(Event::Heard).await?;
            }
        }
    }

    async fn tell(&self, event: Event<T>) -> Result<(), Deaf> {
        self.news.send((self.wrap)(event)).await.map_err(|_| Deaf)
    }
}

/// A line of a watch, and the version that it tells of.
fn read<T: Watched>(kind: &str, object: &str) -> Result<(Option<Event<T>>, String), Trouble> {
    let parse = |event: fn(T) -> Event<T>| {
        let object: T = serde_json::from_str(object).map_err(|error| api::unreadable(&error))?;
        let version = object.meta().resource_version.clone();
        Ok((Some(event(object)), version))
    };
    match kind {
        "ADDED" | "MODIFIED" => parse(Event::Is),
        "DELETED" => parse(Event::Gone),
        "BOOKMARK" => {
            let bookmark: Bookmark = serde_json::from_str(object).map_err(|error| api::unreadable(&error))?;
            Ok((None, bookmark.metadata.resource_version))
        }
        _ => {
            let refusal: Refusal = serde_json::from_str(object).unwrap_or_default();
            Err(api::trouble(refusal.code, &refusal))
        }
    }
}

#[derive(serde::Deserialize)]
struct Bookmark {
    metadata: Meta,
}

fn pause_after(pause: &mut Duration) -> Duration {
    let now = pause.mul_f64(jitter());
    *pause = (*pause * 2).min(PAUSE_MOST);
    now
}

/// From a half to one.
fn jitter() -> f64 {
    0.5 + 0.5 * f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX)
}

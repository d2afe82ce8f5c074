//! What made a ReplicaSet or a Job: asked for once each.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, mpsc::Sender};

use super::{
    api::{Api, JOBS, REPLICA_SETS, Resource, Trouble},
    room::News,
    slim::OwnerReference,
};
use crate::enrich::kubernetes::Owner;

/// Those that are remembered: the oldest goes.
const KNOWN_MAX: usize = 8192;

/// Look-ups at a time.
const AT_A_TIME: usize = 4;

/// One that failed is tried again after this, while anybody wants it; one that is not allowed later.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_DENIED: Duration = Duration::from_secs(30);

/// Whoever is made by something else than what runs pods for good.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Made {
    pub(super) resource: Resource,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Made {
    /// None for a kind whose owner is nobody's business.
    pub(super) fn of(namespace: &str, owner: &OwnerReference) -> Option<Self> {
        let resource = Self::resource(owner)?;
        Some(Self { resource, namespace: namespace.to_owned(), name: owner.name.clone() })
    }

    pub(super) fn resource(owner: &OwnerReference) -> Option<Resource> {
        match (owner.kind.as_str(), owner.api_version.split_once('/')) {
            ("ReplicaSet", Some(("apps", _))) => Some(REPLICA_SETS),
            ("Job", Some(("batch", _))) => Some(JOBS),
            _ => None,
        }
    }
}

/// What is known of an owner's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Is(Option<Owner>),
    /// It is being looked up.
    NotYet,
}

#[derive(Debug)]
enum Entry {
    Asked,
    Is(Option<Owner>),
    /// To be tried again from then on.
    Failed(Instant),
}

pub(super) struct Owners {
    api: Arc<Api>,
    news: Sender<News>,
    room: Arc<Semaphore>,
    entries: BTreeMap<Made, Entry>,
    /// As they were asked for.
    order: VecDeque<Made>,
    pub(super) pending: usize,
    told_denied: bool,
}

impl Owners {
    pub(super) fn new(api: Arc<Api>, news: Sender<News>) -> Self {
        Self {
            api,
            news,
            room: Arc::new(Semaphore::new(AT_A_TIME)),
            entries: BTreeMap::new(),
            order: VecDeque::new(),
            pending: 0,
            told_denied: false,
        }
    }

    /// Looks it up, if nobody has.
    pub(super) fn of(&mut self, made: &Made) -> Known {
        match self.entries.get_mut(made) {
            Some(Entry::Is(owner)) => return Known::Is(owner.clone()),
            Some(Entry::Asked) => return Known::NotYet,
            Some(Entry::Failed(again)) if Instant::now() < *again => return Known::NotYet,
            Some(entry) => *entry = Entry::Asked,
            None => {
                self.entries.insert(made.clone(), Entry::Asked);
                self.order.push_back(made.clone());
            }
        }
        self.pending += 1;
        self.forget();
        let (api, news, room, made) = (self.api.clone(), self.news.clone(), self.room.clone(), made.clone());
        tokio::spawn(async move {
            let Ok(_place) = room.acquire().await else { return };
            let found = api.metadata(made.resource, &made.namespace, &made.name).await;
            // Nobody may listen any more.
            let _ = news.send(News::Owner(made, found)).await;
        });
        Known::NotYet
    }

    /// The answer to a look-up. Returns whether anything is known now.
    pub(super) fn handle(&mut self, made: &Made, found: Result<super::slim::Partial, Trouble>) -> bool {
        self.pending = self.pending.saturating_sub(1);
        let entry = match found {
            Ok(found) => Entry::Is(
                found
                    .metadata
                    .controller()
                    .map(|owner| Owner { kind: owner.kind.clone(), name: owner.name.clone() }),
            ),
            // Gone already: nobody will ever know.
            Err(Trouble::Missing) => Entry::Is(None),
            Err(Trouble::Denied(reason)) => {
                if !std::mem::replace(&mut self.told_denied, true) {
                    tracing::warn!("kubernetes: who owns {} is not known: {reason}", made.resource.name);
                }
                Entry::Failed(Instant::now() + AGAIN_DENIED)
            }
            Err(trouble) => {
                tracing::debug!("kubernetes: {} {}: {trouble:?}", made.resource.name, made.name);
                Entry::Failed(Instant::now() + AGAIN)
            }
        };
        let known = matches!(entry, Entry::Is(_));
        self.told_denied &= !known;
        if let Some(place) = self.entries.get_mut(made) {
            *place = entry;
        }
        known
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn forget(&mut self) {
        while self.order.len() > KNOWN_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }
}

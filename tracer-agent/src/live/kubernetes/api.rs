//! Requests to the API: what they cost, what came of them, and how much of an answer is held.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, StatusCode, header::ACCEPT};
use http_body_util::BodyExt;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

use super::slim::{Line, Page, Partial, Refusal};

/// A server takes a connection within this time.
const CONNECT: Duration = Duration::from_secs(5);

/// What is no watch is answered within this time.
const ANSWER: Duration = Duration::from_secs(30);

/// A watch says something at least every minute (bookmarks): who is silent for longer is gone.
const SILENCE: Duration = Duration::from_secs(150);

/// Objects of a page, and bytes of an answer: 500 of the largest pods that etcd takes are more, and nobody has
/// those.
const PAGE: u32 = 500;
const PAGE_BYTES: usize = 64 << 20;

/// Bytes of an event: etcd takes objects of 1.5 MiB.
const LINE_BYTES: usize = 4 << 20;

/// A kind of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resource {
    pub(super) name: &'static str,
    pub(super) group: &'static str,
}

pub(super) const PODS: Resource = Resource { name: "pods", group: "/api/v1" };
pub(super) const NAMESPACES: Resource = Resource { name: "namespaces", group: "/api/v1" };
pub(super) const SERVICES: Resource = Resource { name: "services", group: "/api/v1" };
pub(super) const SLICES: Resource = Resource { name: "endpointslices", group: "/apis/discovery.k8s.io/v1" };
pub(super) const REPLICA_SETS: Resource = Resource { name: "replicasets", group: "/apis/apps/v1" };
pub(super) const JOBS: Resource = Resource { name: "jobs", group: "/apis/batch/v1" };

/// How the API is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// By a file that is named.
    File(PathBuf),
    /// By KUBECONFIG.
    Variable,
    /// By the pod's service account.
    Cluster,
}

impl Place {
    /// Where it is usually said; none if nowhere.
    pub fn usual() -> Option<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if variable("KUBECONFIG").is_some() {
            return Some(Self::Variable);
        }
        let file = variable("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
        match file.filter(|file| file.is_file()) {
            Some(file) => Some(Self::File(file)),
            None => variable("KUBERNETES_SERVICE_HOST").map(|_| Self::Cluster),
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// What was asked for is too old: it has to be listed again.
    Expired,
    /// There is no such object.
    Missing,
    /// Who asks may not.
    Denied(String),
    /// It is away, slow, or does not know; it may have said for how long to leave it alone.
    Away(String, Option<Duration>),
}

/// Requests by verb, resource and outcome.
pub(super) type Requests = BTreeMap<(&'static str, &'static str, &'static str), u64>;

pub(super) struct Api {
    place: Place,
    client: Mutex<Option<Client>>,
    requests: Mutex<Requests>,
    /// Lists that had to be made again, by what was listed.
    restarts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Api {
    pub(super) fn new(place: Place) -> Arc<Self> {
        Arc::new(Self {
            place,
            client: Mutex::default(),
            requests: Mutex::default(),
            restarts: Mutex::default(),
        })
    }

    pub(super) fn requests(&self) -> Requests {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn restarts(&self) -> BTreeMap<&'static str, u64> {
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn count_restart(&self, resource: Resource) {
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        *restarts.entry(resource.name).or_default() += 1;
    }

    /// A page of a list, and how to go on.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        resource: Resource,
        query: &str,
        next: &str,
    ) -> Result<Page<T>, Trouble> {
        let mut path = format!("{}/{}?limit={PAGE}{query}", resource.group, resource.name);
        if !next.is_empty() {
            path.push_str("&continue=");
            path.extend(url::form_urlencoded::byte_serialize(next.as_bytes()));
        }
        self.read(("list", resource), &path, "application/json").await
    }

    /// Only the metadata of one object.
    pub(super) async fn metadata(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Partial, Trouble> {
        let path = format!("{}/namespaces/{namespace}/{}/{name}", resource.group, resource.name);
        let partial = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
        self.read(("get", resource), &path, partial).await
    }

    pub(super) async fn watch(
        &self,
        resource: Resource,
        query: &str,
        seconds: u64,
    ) -> Result<Lines, Trouble> {
        let path = format!(
            "{}/{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}{query}",
            resource.group, resource.name
        );
        let what = ("watch", resource);
        let answer = tokio::time::timeout(ANSWER, self.ask(what, &path, "application/json")).await;
        let body = answer.unwrap_or_else(|_| self.is_late(what))?;
        Ok(Lines { body, held: Vec::new() })
    }

    async fn read<T: DeserializeOwned>(
        &self,
        what: (&'static str, Resource),
        path: &str,
        accept: &str,
    ) -> Result<T, Trouble> {
        let answer = tokio::time::timeout(ANSWER, async {
            let body = self.ask(what, path, accept).await?;
            whole(body, PAGE_BYTES).await
        });
        let bytes = answer.await.unwrap_or_else(|_| self.is_late(what))?;
        // Never with the text: it holds what a pod is told in secret.
        serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))
    }

    fn is_late<T>(&self, what: (&'static str, Resource)) -> Result<T, Trouble> {
        self.count(what, "late");
        Err(Trouble::Away(format!("no answer within {} s", ANSWER.as_secs()), None))
    }

    async fn ask(&self, what: (&'static str, Resource), path: &str, accept: &str) -> Result<Body, Trouble> {
        let client = self.client().await?;
        let request = Request::get(path).header(ACCEPT, accept).body(Body::empty());
        let request = request.map_err(|error| Trouble::Away(error.to_string(), None))?;
        let response = match client.send(request).await {
            Ok(response) => response,
            Err(error) => {
                self.count(what, "no answer");
                return Err(Trouble::Away(reason(&error), None));
            }
        };
        let status = response.status();
        if status.is_success() {
            self.count(what, "answered");
            return Ok(response.into_body());
        }
        self.count(what, "refused");
        let bytes = whole(response.into_body(), 1 << 20).await.unwrap_or_default();
        let refusal: Refusal = serde_json::from_slice(&bytes).unwrap_or_default();
        if status == StatusCode::UNAUTHORIZED {
            // What is known of it by now may have changed: all of it is read again.
            self.lock().take();
        }
        Err(trouble(status.as_u16(), &refusal))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self) -> Result<Client, Trouble> {
        if let Some(client) = self.lock().clone() {
            return Ok(client);
        }
        let client = connect(&self.place).await.map_err(|error| Trouble::Away(format!("{error:#}"), None))?;
        Ok(self.lock().insert(client).clone())
    }

    fn count(&self, (verb, resource): (&'static str, Resource), outcome: &'static str) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((verb, resource.name, outcome)).or_default() += 1;
    }
}

/// The lines of a watch.
pub(super) struct Lines {
    body: Body,
    held: Vec<u8>,
}

impl Lines {
    /// The next event, as `read` understands it. None at the end.
    pub(super) async fn next<T>(
        &mut self,
        read: impl FnOnce(&str, &str) -> Result<T, Trouble>,
    ) -> Result<Option<T>, Trouble> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.held[looked..].iter().position(|byte| *byte == b'\n') {
                let end = looked + end;
                let event = serde_json::from_slice::<Line<'_>>(&self.held[..end])
                    .map_err(|error| unreadable(&error))
                    .and_then(|line| read(&line.kind, line.object.get()));
                self.held.drain(..=end);
                return event.map(Some);
            }
            looked = self.held.len();
            if looked > LINE_BYTES {
                return Err(Trouble::Away(format!("an event of more than {LINE_BYTES} bytes"), None));
            }
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await;
            match frame {
                Err(_) => {
                    let reason = format!("a watch said nothing for {} s", SILENCE.as_secs());
                    return Err(Trouble::Away(reason, None));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(Trouble::Away(reason(&error), None)),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        // After a large event.
                        if self.held.is_empty() && self.held.capacity() > 64 << 10 {
                            self.held = Vec::new();
                            looked = 0;
                        }
                        self.held.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// What a refusal means, also one within a watch.
pub(super) fn trouble(code: u16, refusal: &Refusal) -> Trouble {
    let message = match refusal.message.as_str() {
        "" => format!("status {code}"),
        message => format!("status {code}: {}", message.chars().take(300).collect::<String>()),
    };
    let seconds = refusal.details.retry_after_seconds;
    match code {
        401 | 403 => Trouble::Denied(message),
        404 => Trouble::Missing,
        410 => Trouble::Expired,
        _ => Trouble::Away(message, (seconds > 0).then(|| Duration::from_secs(seconds))),
    }
}

pub(super) fn unreadable(error: &serde_json::Error) -> Trouble {
    // Only where and what kind: the error's own words can hold a value.
    let kind = error.classify();
    Trouble::Away(format!("an answer that cannot be read ({kind:?}, column {})", error.column()), None)
}

async fn whole(mut body: Body, most: usize) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let data: Bytes = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => return Err(Trouble::Away(reason(&error), None)),
        };
        if bytes.len() + data.len() > most {
            return Err(Trouble::Away(format!("an answer of more than {most} bytes"), None));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// With what is behind it: the outermost says the least.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

async fn connect(place: &Place) -> anyhow::Result<Client> {
    let mut config = match place {
        Place::File(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| path.display().to_string())?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        Place::Variable => {
            let file = Kubeconfig::from_env().context("KUBECONFIG")?.context("KUBECONFIG names no file")?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        Place::Cluster => Config::incluster()?,
    };
    config.connect_timeout = Some(CONNECT);
    // What is tried again is counted here.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

//! The agent's configuration: a file in YAML, of which each key has a type that knows what it takes. What is
//! wrong with a file is told with its line and column.

mod value;

use std::{collections::BTreeMap, fmt, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use tracer_common::config::RULES_MAX;

pub use self::value::{
    Address, Header, List, Pattern, Percent, Period, ProtocolName, RoutePattern, Secret, Share, Size,
    parse_period, parse_size,
};

/// What `tracer config example` prints: all keys with their defaults.
pub const EXAMPLE: &str = include_str!("config/example.yaml");

/// The agent's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which processes are traced.
    #[serde(deserialize_with = "or_default")]
    pub select: Select,
    /// Protocols whose exchanges are reported; all if none is named.
    #[serde(deserialize_with = "or_default")]
    pub protocols: List<ProtocolName>,
    /// How spans find their parents.
    #[serde(deserialize_with = "or_default")]
    pub stitching: Stitching,
    /// What of requests and responses may be told besides.
    #[serde(deserialize_with = "or_default")]
    pub redaction: Redaction,
    /// How paths become routes.
    #[serde(deserialize_with = "or_default")]
    pub routes: Routes,
    /// Which traces are sent.
    #[serde(deserialize_with = "or_default")]
    pub sampling: Sampling,
    /// What is measured of all exchanges.
    #[serde(deserialize_with = "or_default")]
    pub metrics: Metrics,
    /// Where spans and metrics go.
    #[serde(deserialize_with = "or_default")]
    pub export: Export,
    /// What the agent may take of the machine.
    #[serde(deserialize_with = "or_default")]
    pub budgets: Budgets,
    /// What is asked of Kubernetes.
    #[serde(deserialize_with = "or_default")]
    pub kubernetes: Kubernetes,
    /// Where the agent answers for itself: /metrics, /healthz, /readyz, /debug.
    #[serde(deserialize_with = "or_default")]
    pub serve: Serve,
    /// What the agent says on standard error.
    #[serde(deserialize_with = "or_default")]
    pub log: Log,
}

/// A process is traced if it meets a rule of `include` and none of `exclude`. At most 32 rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Select {
    #[serde(deserialize_with = "or_default")]
    pub include: Vec<Rule>,
    #[serde(deserialize_with = "or_default")]
    pub exclude: Vec<Rule>,
}

/// Values of one kind are alternatives; kinds have to hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// Running processes, with their children.
    #[serde(deserialize_with = "or_default")]
    pub pid: List<u32>,
    /// The name of the process or of its file; patterns such as python*.
    #[serde(deserialize_with = "or_default")]
    pub command: List<Pattern>,
    /// The whole path of its file; patterns such as /opt/*/bin/app.
    #[serde(deserialize_with = "or_default")]
    pub exe: List<Pattern>,
    /// A TCP port that it listens on.
    #[serde(deserialize_with = "or_default")]
    pub port: List<u16>,
    /// A cgroup (v2) that it is in or below: a path in the tree, or in the file system.
    #[serde(deserialize_with = "or_default")]
    pub cgroup: List<String>,
    /// Pods of these namespaces; patterns. This and what follows asks Kubernetes.
    #[serde(deserialize_with = "or_default")]
    pub namespace: List<Pattern>,
    /// Pods by their names, NAME or NAMESPACE/NAME; patterns.
    #[serde(deserialize_with = "or_default")]
    pub pod: List<Pattern>,
    /// Pods of a Deployment, StatefulSet and so on: NAME or KIND/NAME; patterns.
    #[serde(deserialize_with = "or_default")]
    pub workload: List<Pattern>,
    /// Pods with these labels: KEY or KEY=VALUE, and with commas several that hold together; values are patterns.
    #[serde(deserialize_with = "or_default")]
    pub label: List<Pattern>,
    /// Likewise by their annotations.
    #[serde(deserialize_with = "or_default")]
    pub annotation: List<Pattern>,
    /// Pods of the namespaces with these labels; likewise. To exclude, one that is not known counts as one of them.
    #[serde(deserialize_with = "or_default")]
    pub namespace_label: List<Pattern>,
    /// Containers by their names, patterns, or by their ids from 12 digits on: of pods that the same rule names, or
    /// else any of this machine, as Docker, Podman, containerd or CRI-O know them.
    #[serde(deserialize_with = "or_default")]
    pub container: List<Pattern>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Stitching {
    /// What makes a span the child of another.
    pub parents: Parents,
    /// Headers besides x-request-id and x-correlation-id with an id of the request that is passed on.
    #[serde(deserialize_with = "or_default")]
    pub correlation_headers: List<Header>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Parents {
    /// Ids in headers, the connection seen from both ends, threads that serve one request at a time.
    #[default]
    Evidence,
    /// Ids in headers alone.
    Header,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redaction {
    /// Names in a query whose values are told; all others are REDACTED.
    #[serde(deserialize_with = "or_default")]
    pub query_values: List<String>,
    /// Headers of requests whose values are told, as http.request.header.NAME.
    #[serde(deserialize_with = "or_default")]
    pub request_headers: List<Header>,
    /// Headers of responses whose values are told, as http.response.header.NAME.
    #[serde(deserialize_with = "or_default")]
    pub response_headers: List<Header>,
    /// Tells the text that servers of gRPC send with a status: it can hold secrets.
    pub grpc_messages: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Routes {
    /// Routes that are known, such as /users/{id}; the first that matches counts.
    #[serde(deserialize_with = "or_default")]
    pub patterns: List<RoutePattern>,
    /// Routes that a service can have; what is beyond shares one.
    pub per_service: u16,
}

impl Default for Routes {
    fn default() -> Self {
        Self { patterns: List::default(), per_service: 100 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Of the traces that nothing else keeps, the part that is sent: chosen by their ids, so that all agents
    /// choose the same.
    pub share: Share,
    /// Keeps traces with errors.
    pub errors: bool,
    /// Keeps so many of the slowest requests for each route and minute.
    pub slowest: u16,
    /// Keeps the first of each route and status.
    pub first: bool,
    /// What the sampled flag of W3C Trace Context says.
    pub sampled_flag: SampledFlag,
    /// Traces that a service may send in a second.
    pub per_second: Option<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            share: Share::ALL,
            errors: true,
            slowest: 5,
            first: true,
            sampled_flag: SampledFlag::Ignore,
            per_second: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SampledFlag {
    #[default]
    Ignore,
    /// A trace that is said to be sampled is kept.
    Keep,
    /// And one that is said not to be is dropped.
    Follow,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Buckets as the semantic conventions have them, or exponential ones (OTLP alone).
    pub histograms: Histograms,
    /// Series that are kept; what is beyond shares one for each metric and service.
    pub series: u32,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { histograms: Histograms::Explicit, series: 2000 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Histograms {
    #[default]
    Explicit,
    Exponential,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Export {
    /// Receivers of OTLP.
    #[serde(deserialize_with = "or_default")]
    pub otlp: Vec<Otlp>,
    /// How spans are printed on standard output.
    pub print: Print,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Otlp {
    /// Such as http://collector:4318.
    pub url: String,
    /// By default grpc for port 4317, else http/protobuf.
    #[serde(default)]
    pub protocol: Option<OtlpProtocol>,
    /// Headers of each request; ${NAME} stands for a variable of the environment.
    #[serde(default, deserialize_with = "or_default")]
    pub headers: BTreeMap<Header, Secret>,
    #[serde(default)]
    pub compression: Compression,
    /// How long a request may take.
    #[serde(default = "Otlp::timeout")]
    pub timeout: Period,
    /// Authorities to trust beside the system's (PEM).
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// The agent's own certificate and key (PEM).
    #[serde(default)]
    pub client_certificate: Option<PathBuf>,
    #[serde(default)]
    pub client_key: Option<PathBuf>,
    /// Whether spans are sent there.
    #[serde(default = "yes")]
    pub traces: bool,
    /// Whether metrics are sent there.
    #[serde(default = "yes")]
    pub metrics: bool,
    /// How often metrics are sent.
    #[serde(default = "Otlp::interval")]
    pub interval: Period,
}

impl Otlp {
    fn timeout() -> Period {
        Period(std::time::Duration::from_secs(10))
    }

    fn interval() -> Period {
        Period(std::time::Duration::from_secs(30))
    }
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OtlpProtocol {
    #[serde(rename = "grpc")]
    Grpc,
    #[serde(rename = "http/protobuf")]
    Http,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    #[default]
    None,
    Gzip,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Print {
    #[default]
    None,
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Budgets {
    /// Memory of the whole agent, 48Mi or more: it sizes the ring, the tables and the queues.
    pub memory: Size,
    /// Share of one core that the agent and its probes may take together; past it less is captured, counted.
    pub cpu: Option<Percent>,
}

/// The least that the agent runs in.
pub const MEMORY_MIN: u64 = 48 << 20;

impl Default for Budgets {
    fn default() -> Self {
        Self { memory: Size(128 << 20), cpu: None }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// Whether the API is asked.
    pub enabled: Enabled,
    /// A file that says where the API is; else KUBECONFIG does, else the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The node whose pods are told; else NODE_NAME says it, else it is called as the host.
    pub node: Option<String>,
    /// What the cluster is called: the API does not know.
    pub cluster: Option<String>,
    /// Labels of pods that are told; patterns such as team.example.com/*.
    #[serde(deserialize_with = "or_default")]
    pub labels: List<Pattern>,
    /// Annotations of pods that are told; patterns too.
    #[serde(deserialize_with = "or_default")]
    pub annotations: List<Pattern>,
    /// Whether services are called by the labels app.kubernetes.io/instance and app.kubernetes.io/name.
    pub service_name_from_labels: bool,
    /// Whose addresses are told by name.
    pub peers: KubernetesPeers,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enabled {
    /// In a pod, or where `kubeconfig` is said.
    #[default]
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KubernetesPeers {
    None,
    /// Services, and the pods of this node.
    #[default]
    Node,
    /// And the pods of all nodes.
    Cluster,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Serve {
    /// An IP address and a port.
    pub address: Address,
}

impl Default for Serve {
    fn default() -> Self {
        Self { address: Address(std::net::SocketAddr::from(([127, 0, 0, 1], 9464))) }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub level: Level,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Wrong {
    /// From 1 on; 0 if it is about the whole of it.
    pub line: u64,
    pub column: u64,
    pub what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.what),
            line => write!(f, "line {line}, column {}: {}", self.column, self.what),
        }
    }
}

impl Config {
    pub fn parse(text: &str) -> Result<Self, Wrong> {
        let config: Self = match serde_saphyr::from_str(text) {
            Ok(config) => config,
            Err(error) => return Err(wrong(&error)),
        };
        config.check(text)?;
        Ok(config)
    }

    /// What no key can tell alone.
    fn check(&self, text: &str) -> Result<(), Wrong> {
        let rules = self.select.include.len() + self.select.exclude.len();
        if rules > RULES_MAX {
            return Err(at(text, "select", format!("{rules} rules, and room for {RULES_MAX}")));
        }
        for (key, rules) in [("include", &self.select.include), ("exclude", &self.select.exclude)] {
            if rules.contains(&Rule::default()) {
                let what = format!("a rule under `{key}` that names nothing: it would be all processes");
                return Err(at(text, key, what));
            }
        }
        if self.budgets.memory.0 < MEMORY_MIN {
            return Err(at(text, "memory", "the agent runs in 48Mi or more".to_owned()));
        }
        for otlp in &self.export.otlp {
            if !otlp.traces && !otlp.metrics {
                return Err(at(text, "otlp", format!("nothing is sent to {}: traces or metrics?", otlp.url)));
            }
        }
        Ok(())
    }

    /// The JSON schema of the file.
    pub fn schema() -> String {
        let schema = schemars::schema_for!(Config);
        let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
        text.push('\n');
        text
    }
}

/// Where a key stands first.
fn at(text: &str, key: &str, what: String) -> Wrong {
    let found = text.lines().enumerate().find_map(|(line, content)| {
        let column = content.len() - content.trim_start_matches([' ', '-']).len();
        let rest = content[column..].strip_prefix(key)?;
        rest.starts_with(':').then_some((line as u64 + 1, column as u64 + 1))
    });
    let (line, column) = found.unwrap_or_default();
    Wrong { line, column, what }
}

fn wrong(error: &serde_saphyr::Error) -> Wrong {
    let (line, column) = error.location().map(|at| (at.line(), at.column())).unwrap_or_default();
    // The library's own words begin with the place and end with an excerpt, which can hold a secret.
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let place = format!("line {line} column {column}: ");
    let text = text.strip_prefix(&place).unwrap_or(text);
    Wrong { line, column, what: hinted(text) }
}

/// With the known word that is closest to one that is not known.
fn hinted(text: &str) -> String {
    let unknown = ["unknown field `", "unknown variant `"].iter().find_map(|start| text.strip_prefix(start));
    let words = unknown.and_then(|rest| rest.split_once('`')).and_then(|(word, rest)| {
        let (_, known) = rest.split_once("expected ")?;
        let known = known.trim_start_matches("one of ").trim_start_matches("there are no fields");
        Some((word, known))
    });
    let Some((word, known)) = words else {
        // What people call it.
        return text
            .replace("expected mapping start", "keys and values were expected here")
            .replace("expected sequence start", "a list was expected here")
            .replace("invalid u16", "a number from 0 to 65535 was expected")
            .replace("invalid u32", "a whole number was expected");
    };
    let known: Vec<&str> = known.split(", ").map(|known| known.trim_matches('`')).collect();
    let near = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&word.to_lowercase(), known), *known))
        .filter(|(distance, known)| *distance <= 2.max(known.len() / 3) || known.starts_with(word))
        .min();
    let kind = if text.starts_with("unknown field") { "key" } else { "value" };
    match near {
        Some((_, near)) => format!("there is no {kind} `{word}` here; did you mean `{near}`?"),
        None => format!("there is no {kind} `{word}` here; there are {}", known.join(", ")),
    }
}

/// A key without a value is as one that is not there.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;

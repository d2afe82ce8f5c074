//! What a configuration comes to: checked as far as that can be done without probes.

use std::{env, time::Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tracer_agent::{
    config::{
        self, Compression, Config, Enabled, Histograms, Kubernetes, KubernetesPeers, Otlp, OtlpProtocol,
        Parents, Print, Rule, SampledFlag,
    },
    enrich::kubernetes::Watch,
    filter::Filter,
    live::{
        facts,
        kubernetes::{self, Kept, Peers, Place},
        pods::PodWish,
        print::Format,
        select::{Selection, Wish},
        send::{
            Sender,
            endpoint::{self, Endpoint, Said, Signal},
        },
    },
    metrics,
    pipeline::Limits,
    propagation::CORRELATION,
    protocol::{Shown, ToldHeader},
    route, sample, stitch,
};

use super::super::variable;

pub(crate) struct Plan {
    pub(super) selection: Selection,
    pub(super) limits: Limits,
    pub(super) filter: Filter,
    pub(super) routes: route::Rules,
    pub(super) sampling: sample::Rules,
    pub(super) metrics: metrics::Options,
    /// What was said of each, and where it leads.
    pub(super) endpoints: Vec<(Otlp, Signal, Endpoint)>,
    pub(super) print: Format,
    /// What is asked of Kubernetes, if anything is.
    pub(super) kubernetes: Option<kubernetes::Options>,
    pub(super) shares: Shares,
    selected: String,
}

/// How the memory is shared out, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) ring: u32,
    /// Entries of the probes' table.
    pub(super) kernel_connections: u32,
    pub(super) connections: usize,
    pub(super) sampler: usize,
    pub(super) queue: usize,
}

impl Shares {
    /// The program itself, its threads and the kernel's type information take 16 MiB; the ring is seen twice in
    /// the memory of the process; a quarter of what is left is for what the allocator keeps.
    fn of(memory: u64) -> Self {
        let most = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let ring = 1u64 << (memory / 16).clamp(256 << 10, 16 << 20).ilog2();
        let rest = memory - (16 << 20) - 2 * ring;
        Self {
            ring: ring as u32,
            kernel_connections: (memory >> 11).clamp(8192, 131_072) as u32,
            // And a quarter of it for spans that wait for their parents.
            connections: most(rest / 10 * 3),
            sampler: most(rest / 10),
            queue: most(rest / 10),
        }
    }
}

impl Plan {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let kubernetes = watched(config)?;
        let selection = Self::selection(config)?;
        let shares = Shares::of(config.budgets.memory.0);
        let correlation = config.stitching.correlation_headers.0.iter().map(|header| &header.0);
        let endpoints = endpoints(&config.export.otlp, shares.queue)?;
        Ok(Self {
            selected: selection.to_string(),
            selection,
            limits: Limits {
                memory: shares.connections,
                parents: match config.stitching.parents {
                    Parents::Evidence => stitch::Parents::Evidence,
                    Parents::Header => stitch::Parents::Header,
                },
                shown: Shown {
                    grpc_message: config.redaction.grpc_messages,
                    correlation: kept(correlation.cloned(), CORRELATION),
                    query: kept(config.redaction.query_values.0.iter().cloned(), &[]),
                    request_headers: told("request", &config.redaction.request_headers),
                    response_headers: told("response", &config.redaction.response_headers),
                },
            },
            filter: Filter {
                protocols: config.protocols.0.iter().map(|name| name.0.to_owned()).collect(),
                ..Filter::default()
            },
            routes: route::Rules {
                patterns: config.routes.patterns.0.iter().filter_map(|text| text.0.parse().ok()).collect(),
                routes_max: config.routes.per_service.into(),
            },
            sampling: sample::Rules {
                share: config.sampling.share.0,
                errors: config.sampling.errors,
                slowest: config.sampling.slowest.into(),
                first: config.sampling.first,
                flag: match config.sampling.sampled_flag {
                    SampledFlag::Ignore => sample::Flag::Ignore,
                    SampledFlag::Keep => sample::Flag::Keep,
                    SampledFlag::Follow => sample::Flag::Follow,
                },
                per_second: config.sampling.per_second,
            },
            metrics: metrics::Options {
                exponential: config.metrics.histograms == Histograms::Exponential,
                series_max: config.metrics.series as usize,
                ..metrics::Options::default()
            },
            endpoints,
            print: match config.export.print {
                Print::None => Format::None,
                Print::Text => Format::Text,
                Print::Json => Format::Json,
            },
            kubernetes,
            shares,
        })
    }

    pub(super) fn selection(config: &Config) -> Result<Selection> {
        let wishes = |rules: &[Rule]| rules.iter().map(wish).collect::<Vec<_>>();
        let (mut include, mut exclude) = (wishes(&config.select.include), wishes(&config.select.exclude));
        // A pod may say for itself: to be traced where pods are traced at all, or not to be in any case.
        if is_asked(&config.kubernetes) {
            if include.iter().any(|wish| !wish.pods.is_empty()) {
                include.push(says_of_itself("true"));
            }
            let unwilling = says_of_itself("false");
            if !exclude.contains(&unwilling) {
                exclude.push(unwilling);
            }
        }
        let mut selection = Selection::new(&include, &exclude)?;
        if selection.asks_pods() && !is_asked(&config.kubernetes) {
            ensure!(
                config.kubernetes.enabled != Enabled::Off,
                "select: rules about pods ask Kubernetes, and kubernetes.enabled is off"
            );
            selection.missing.push(
                "select: rules about pods ask Kubernetes, and this is no pod: set kubernetes.enabled to on, or \
                 kubernetes.kubeconfig"
                    .to_owned(),
            );
        }
        Ok(selection)
    }

    pub(super) fn tell_missing(&self) {
        for missing in &self.selection.missing {
            tracing::warn!("{missing}; it is looked for again");
        }
    }

    /// What the file asks for and this machine does not have.
    pub(crate) fn missing(&self) -> &[String] {
        &self.selection.missing
    }

    /// For people.
    pub(crate) fn selected(&self) -> String {
        if self.selected.is_empty() {
            "no process (nothing is said under `select`)".to_owned()
        } else {
            self.selected.clone()
        }
    }
}

fn says_of_itself(answer: &str) -> Wish {
    Wish { pods: PodWish::saying(answer), ..Wish::default() }
}

fn is_in_cluster() -> bool {
    variable("KUBERNETES_SERVICE_HOST").is_some()
}

fn is_asked(said: &Kubernetes) -> bool {
    match said.enabled {
        Enabled::Auto => is_in_cluster() || said.kubeconfig.is_some(),
        Enabled::On => true,
        Enabled::Off => false,
    }
}

/// None where there is no Kubernetes, or nobody wants to hear of it.
pub(super) fn watched(config: &Config) -> Result<Option<kubernetes::Options>> {
    let said = &config.kubernetes;
    if !is_asked(said) {
        return Ok(None);
    }
    let place = match &said.kubeconfig {
        Some(path) => Place::File(path.clone()),
        None if variable("KUBECONFIG").is_some() => Place::Variable,
        None if is_in_cluster() => Place::Cluster,
        None => bail!(
            "kubernetes.enabled is on, and nothing says where the API is: this is no pod, and neither \
             kubernetes.kubeconfig nor KUBECONFIG names a file"
        ),
    };
    let texts = |patterns: &config::List<config::Pattern>| {
        patterns.0.iter().map(|pattern| pattern.0.clone()).collect::<Vec<_>>()
    };
    let (labels, annotations) = (texts(&said.labels), texts(&said.annotations));
    let told = Watch {
        cluster: said.cluster.clone(),
        labels: labels.clone(),
        annotations: annotations.clone(),
        named_by_labels: said.service_name_from_labels,
        ..Watch::default()
    };
    // Those that rules ask for are kept for them.
    let rules = config.select.include.iter().chain(&config.select.exclude);
    let wishes: Vec<PodWish> = rules.map(|rule| wish(rule).pods).collect();
    let labels =
        labels.iter().map(String::as_str).chain(wishes.iter().flat_map(|wish| PodWish::keys(&wish.labels)));
    let annotations = annotations
        .iter()
        .map(String::as_str)
        .chain(wishes.iter().flat_map(|wish| PodWish::keys(&wish.annotations)));
    let namespace_labels = wishes.iter().flat_map(|wish| PodWish::keys(&wish.namespace_labels));
    let kept =
        Kept::new(labels, annotations, namespace_labels).map_err(|error| anyhow!("kubernetes: {error}"))?;
    let node = said.node.clone().or_else(|| variable("NODE_NAME")).unwrap_or_else(facts::host_name);
    Ok(Some(kubernetes::Options {
        place,
        node,
        told,
        kept,
        peers: match said.peers {
            KubernetesPeers::None => Peers::None,
            KubernetesPeers::Node => Peers::Node,
            KubernetesPeers::Cluster => Peers::Cluster,
        },
    }))
}

fn wish(rule: &Rule) -> Wish {
    let texts =
        |patterns: &config::List<config::Pattern>| patterns.0.iter().map(|text| text.0.clone()).collect();
    Wish {
        pids: rule.pid.0.clone(),
        commands: texts(&rule.command),
        executables: texts(&rule.exe),
        ports: rule.port.0.clone(),
        cgroups: rule.cgroup.0.clone(),
        pods: PodWish {
            namespaces: texts(&rule.namespace),
            pods: texts(&rule.pod),
            workloads: texts(&rule.workload),
            labels: texts(&rule.label),
            annotations: texts(&rule.annotation),
            namespace_labels: texts(&rule.namespace_label),
            containers: texts(&rule.container),
        },
    }
}

/// Names for the life of the program, which reads them to its end: each time that they change a few bytes stay.
fn kept(names: impl Iterator<Item = String>, usual: &'static [&'static str]) -> &'static [&'static str] {
    let named: Vec<&'static str> = names.map(|name| &*name.leak()).collect();
    if named.is_empty() {
        return usual;
    }
    named.into_iter().chain(usual.iter().copied()).collect::<Vec<_>>().leak()
}

/// The attributes of headers (semantic conventions: `http.request.header.<key>`).
fn told(side: &str, headers: &config::List<config::Header>) -> &'static [ToldHeader] {
    let told = headers.0.iter().map(|header| ToldHeader {
        name: header.0.clone().leak(),
        key: format!("http.{side}.header.{}", header.0).leak(),
    });
    told.collect::<Vec<_>>().leak()
}

fn endpoints(receivers: &[Otlp], queue: usize) -> Result<Vec<(Otlp, Signal, Endpoint)>> {
    let mut endpoints = Vec::new();
    for otlp in receivers {
        let signals = [(otlp.traces, Signal::Traces), (otlp.metrics, Signal::Metrics)];
        for (_, signal) in signals.into_iter().filter(|(wanted, _)| *wanted) {
            let endpoint = endpoint(otlp, signal, queue / receivers.len())
                .with_context(|| format!("export.otlp: {}", otlp.url))?;
            endpoints.push((otlp.clone(), signal, endpoint));
        }
    }
    Ok(endpoints)
}

fn endpoint(otlp: &Otlp, signal: Signal, queue: usize) -> Result<Endpoint> {
    let headers = otlp
        .headers
        .iter()
        .map(|(name, value)| Ok((name.0.clone(), filled_in(&value.0).with_context(|| name.0.clone())?)))
        .collect::<Result<_>>()?;
    Endpoint::new(&Said {
        signal,
        url: otlp.url.clone(),
        exact: false,
        protocol: otlp.protocol.map(|protocol| match protocol {
            OtlpProtocol::Grpc => endpoint::Protocol::Grpc,
            OtlpProtocol::Http => endpoint::Protocol::Http,
        }),
        insecure: None,
        headers,
        compression: match otlp.compression {
            Compression::None => endpoint::Compression::None,
            Compression::Gzip => endpoint::Compression::Gzip,
        },
        timeout: Some(otlp.timeout.0),
        certificate: otlp.certificate.clone(),
        client_certificate: otlp.client_certificate.clone(),
        client_key: otlp.client_key.clone(),
        queue: Some(queue),
    })
}

/// With the values of variables: `${TOKEN}`.
fn filled_in(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').ok_or_else(|| anyhow!("`${{` without an end"))?;
        let value = env::var_os(name).and_then(|value| value.into_string().ok());
        let value = value.ok_or_else(|| anyhow!("the environment has no variable {name}"))?;
        out.push_str(before);
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// The receivers that are sent to, in the order of their senders.
#[derive(Default)]
pub(super) struct Exporters {
    all: Vec<Exporter>,
}

struct Exporter {
    said: Otlp,
    signal: Signal,
    /// When metrics were last sent there.
    sent: Option<Instant>,
}

impl Exporters {
    /// Those that stay as they are go on; the others end when they have sent what they have.
    pub(super) fn change(
        &mut self,
        wanted: &[(Otlp, Signal, Endpoint)],
        senders: Vec<Sender>,
    ) -> Vec<Sender> {
        let mut running: Vec<_> = std::mem::take(&mut self.all).into_iter().zip(senders).collect();
        let mut now = Vec::new();
        for (otlp, signal, endpoint) in wanted {
            let known = running.iter().position(|(known, _)| known.said == *otlp && known.signal == *signal);
            let (exporter, sender) = match known {
                Some(place) => running.swap_remove(place),
                None => match Sender::start(endpoint) {
                    Ok(sender) => (Exporter { said: otlp.clone(), signal: *signal, sent: None }, sender),
                    Err(error) => {
                        tracing::error!("{}: nothing can be sent: {error:#}", otlp.url);
                        continue;
                    }
                },
            };
            self.all.push(exporter);
            now.push(sender);
        }
        for (_, sender) in running {
            let ended = std::thread::Builder::new().name("send-rest".into()).spawn(move || {
                let (url, sent) = sender.finish(super::FLUSH);
                tracing::info!("otlp: {url} is not sent to any more: {sent}");
            });
            if let Err(error) = ended {
                tracing::warn!("no thread can be started: {error}");
            }
        }
        now
    }

    /// The places of those that metrics go to.
    pub(super) fn of_metrics(&self) -> Vec<usize> {
        let all = self.all.iter().enumerate().filter(|(_, exporter)| exporter.signal == Signal::Metrics);
        all.map(|(place, _)| place).collect()
    }

    /// The places of those that it is time to send metrics to: that is done then.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<usize> {
        let mut due = Vec::new();
        for (place, exporter) in self.all.iter_mut().enumerate() {
            let is_due =
                exporter.sent.is_none_or(|sent| now.duration_since(sent) >= exporter.said.interval.0);
            if exporter.signal == Signal::Metrics && is_due {
                exporter.sent = Some(now);
                due.push(place);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fit_into_the_memory() {
        for megabytes in [48u64, 64, 96, 128, 512, 8192] {
            let shares = Shares::of(megabytes << 20);
            let used = (16 << 20)
                + 2 * shares.ring as usize
                + shares.connections / 4 * 5
                + shares.sampler
                + shares.queue;
            assert!(used as u64 <= megabytes << 20, "{megabytes}: {used} {shares:?}");
            assert!(shares.ring.is_power_of_two() && shares.queue >= 1 << 20);
        }
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(filled_in("a $b }").unwrap(), "a $b }");
        assert!(
            filled_in("Bearer ${TRACER_NO_SUCH_VARIABLE}").unwrap_err().to_string().contains("no variable")
        );
        assert!(filled_in("${").is_err());
        assert_eq!(filled_in("<${CARGO_PKG_NAME}>").unwrap(), "<tracer-agent>");
    }
}

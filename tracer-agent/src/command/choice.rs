//! What is to be traced, and what of it is shown: the flags that subcommands share.

use std::{ffi::OsString, time::Duration};

use anyhow::anyhow;
use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use globset::GlobMatcher;
use tracer_agent::{
    enrich::kubernetes::{Object, Watch},
    filter::{Filter, StatusPattern, glob},
    live::{
        facts,
        kubernetes::{self, Kept, Watcher},
        pods::PodWish,
        select::{Selection, Wish},
    },
    propagation::CORRELATION,
    protocol::{exchanges, is_token},
    stitch::Parents,
};

use super::{Exit, Failure, OrExit, parse_duration};

/// So long is waited for Kubernetes to tell of the pods of this node.
const HEARD: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
#[command(next_help_heading = "Selection (values of one kind are alternatives, kinds have to hold together)")]
pub(crate) struct SelectionArguments {
    /// A running process, with its children, those that it has and those that it will have
    #[arg(long = "pid", value_name = "PID")]
    pub(crate) pids: Vec<u32>,

    /// Processes with this name, or whose file has it; a pattern such as python* in quotes
    #[arg(long = "command", value_name = "NAME|GLOB")]
    pub(crate) commands: Vec<String>,

    /// Processes that run this file, by its whole path; a pattern such as /opt/*/bin/app in quotes
    #[arg(long = "exe", value_name = "PATH|GLOB")]
    pub(crate) executables: Vec<String>,

    /// Processes that listen on this TCP port, and the workers that they fork
    #[arg(long = "port", value_name = "PORT")]
    pub(crate) ports: Vec<u16>,

    /// Processes in this cgroup (v2) or below it: a path in the tree, or in the file system
    #[arg(long = "cgroup", value_name = "PATH")]
    pub(crate) cgroups: Vec<String>,

    /// Processes of this pod, NAME or NAMESPACE/NAME; a pattern in quotes. This and what follows up to --container
    /// asks the API of Kubernetes (KUBECONFIG, ~/.kube/config, or the pod's own account) for the pods of this node (NODE_NAME, or
    /// the name of the host)
    #[arg(long = "pod", value_name = "[NS/]NAME|GLOB")]
    pub(crate) pods: Vec<String>,

    /// Processes of the pods of this namespace, but for those with the annotation tracer.dev/trace: "false"; so it is
    /// with all that follows
    #[arg(long = "namespace", value_name = "NS|GLOB")]
    pub(crate) namespaces: Vec<String>,

    /// Processes of pods with this label; several that have to hold together with commas
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    pub(crate) labels: Vec<String>,

    /// Processes of pods with this annotation; likewise
    #[arg(long = "annotation", value_name = "KEY[=VALUE]")]
    pub(crate) annotations: Vec<String>,

    /// Processes of the pods of namespaces with this label; likewise
    #[arg(long = "namespace-label", value_name = "KEY[=VALUE]")]
    pub(crate) namespace_labels: Vec<String>,

    /// Processes of the pods of this Deployment, StatefulSet and so on
    #[arg(long = "workload", value_name = "[KIND/]NAME|GLOB")]
    pub(crate) workloads: Vec<String>,

    /// Processes in this container: its name as Docker, Podman, containerd or CRI-O have it, or its id from 12 digits
    /// on. Asks no API by itself; with flags for pods, of these pods
    #[arg(long = "container", value_name = "NAME|GLOB")]
    pub(crate) containers: Vec<String>,

    /// A command to start and trace, with its children
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

impl SelectionArguments {
    pub(crate) fn choice(&self) -> Result<Choice, Failure> {
        let mut selection = self.selection()?;
        if !selection.asks_pods() {
            if selection.asks_containers() {
                selection.set_pods_told(&[]);
            }
            return Ok(Choice { selection, watcher: None, told: Vec::new() });
        }
        let mut watcher = Watcher::start(self.options().or_exit(Exit::Usage)?)?;
        let told = watcher.wait(HEARD).or_exit(Exit::CannotCapture)?;
        selection.set_pods_told(&told);
        Ok(Choice { selection, watcher: Some(watcher), told })
    }

    fn options(&self) -> Result<kubernetes::Options, anyhow::Error> {
        let place = kubernetes::Place::usual().ok_or_else(|| {
            anyhow!(
                "pods are asked for, and nothing says where the API of Kubernetes is: set KUBECONFIG, or run it in a pod"
            )
        })?;
        let keys = PodWish::keys;
        let kept = Kept::new(keys(&self.labels), keys(&self.annotations), keys(&self.namespace_labels))
            .map_err(|error| anyhow!("a key of a label or an annotation: {error}"))?;
        let node = super::variable("NODE_NAME").unwrap_or_else(facts::host_name);
        Ok(kubernetes::Options { place, node, told: Watch::default(), kept, peers: kubernetes::Peers::Node })
    }

    fn selection(&self) -> Result<Selection, Failure> {
        let starts = !self.command.is_empty();
        if !self.pids.is_empty() && starts {
            let error = anyhow!("--pid and a command exclude each other");
            return Err(Failure::new(Exit::Usage, error));
        }
        let wish = Wish {
            pids: self.pids.clone(),
            commands: self.commands.clone(),
            executables: self.executables.clone(),
            ports: self.ports.clone(),
            cgroups: self.cgroups.clone(),
            pods: PodWish {
                namespaces: self.namespaces.clone(),
                pods: self.pods.clone(),
                workloads: self.workloads.clone(),
                labels: self.labels.clone(),
                annotations: self.annotations.clone(),
                namespace_labels: self.namespace_labels.clone(),
                containers: self.containers.clone(),
            },
        };
        let selection = Selection::of(&wish, starts).or_exit(Exit::Usage)?;
        if selection.is_empty() {
            let error = anyhow!(
                "nothing is selected: name processes with --pid, --command, --exe, --port, --cgroup, \
                 --pod, --namespace, --label, --workload, --container, or a command after --"
            );
            return Err(Failure::new(Exit::Usage, error));
        }
        Ok(selection)
    }
}

/// What was chosen, with what was heard of pods for it.
pub(crate) struct Choice {
    pub(crate) selection: Selection,
    pub(crate) watcher: Option<Watcher>,
    pub(crate) told: Vec<Object>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Filter (of what is shown and sent)")]
pub(crate) struct FilterArguments {
    /// Responses with this status: 404, 5xx, of gRPC NOT_FOUND; none for requests that got no status
    #[arg(long = "status", value_name = "STATUS")]
    statuses: Vec<StatusPattern>,

    /// Requests for this path; a pattern such as '/api/*', where * stands for slashes too
    #[arg(long = "path", value_name = "GLOB", value_parser = glob)]
    paths: Vec<GlobMatcher>,

    /// Exchanges that took at least as long (200ms, 1s)
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    slower: Option<Duration>,

    /// Exchanges with a peer at this port
    #[arg(long = "peer-port", value_name = "PORT")]
    peer_ports: Vec<u16>,

    /// Exchanges of this protocol, whichever version of HTTP carries it; calls of gRPC are no http here
    #[arg(long = "protocol", value_name = "NAME", value_parser = PossibleValuesParser::new(exchanges()))]
    protocols: Vec<String>,

    /// Without the requests by which machines look whether a service is well (kubelet, load balancers)
    #[arg(long)]
    no_health_checks: bool,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Traces")]
pub(crate) struct StitchingArguments {
    /// What makes a span the child of another: all evidence (ids in headers, the connection seen from both
    /// ends, threads that serve one request at a time), or ids in headers alone
    #[arg(long, value_enum, default_value_t = Evidence::Evidence, value_name = "WHICH")]
    pub(crate) parents: Evidence,

    /// A header besides x-request-id and x-correlation-id that holds an id of the request and is passed on
    #[arg(long = "correlation-header", value_name = "NAME", value_parser = header)]
    correlation: Vec<String>,
}

/// As [`Parents`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Evidence {
    Evidence,
    Header,
}

impl From<Evidence> for Parents {
    fn from(chosen: Evidence) -> Self {
        match chosen {
            Evidence::Evidence => Parents::Evidence,
            Evidence::Header => Parents::Header,
        }
    }
}

impl StitchingArguments {
    /// The headers with ids of requests: those that were named come before the usual ones.
    pub(crate) fn correlation(&self) -> &'static [&'static str] {
        if self.correlation.is_empty() {
            return CORRELATION;
        }
        // Once in the life of the program, which reads them to its end.
        let named = self.correlation.iter().map(|name| &*name.clone().leak());
        named.chain(CORRELATION.iter().copied()).collect::<Vec<_>>().leak()
    }
}

/// The name of a header, in lower case.
fn header(name: &str) -> Result<String, String> {
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("`{name}` is no name of a header"));
    }
    const OTHERS: [&str; 6] =
        ["host", "user-agent", "content-type", "content-length", "transfer-encoding", "upgrade"];
    let name = name.to_ascii_lowercase();
    if OTHERS.contains(&&*name) || name.starts_with("grpc-") {
        return Err(format!("`{name}` says something else than which request it is"));
    }
    Ok(name)
}

impl FilterArguments {
    pub(crate) fn filter(&self) -> Filter {
        Filter {
            statuses: self.statuses.clone(),
            paths: self.paths.clone(),
            slower: self.slower.map(|least| least.as_nanos().try_into().unwrap_or(u64::MAX)),
            peer_ports: self.peer_ports.clone(),
            protocols: self.protocols.clone(),
            no_health_checks: self.no_health_checks,
        }
    }
}

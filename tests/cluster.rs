//! The whole on a cluster: the DaemonSet of deploy/, pods that log what they do, and a receiver outside of it. What
//! the pods logged is the truth. The cluster is that of `tests/cluster/cluster.sh up`, or of KUBECONFIG; `cargo xtask
//! test cluster` sees to that.

#[path = "cluster/chain.rs"]
mod chain;
#[path = "cluster/installed.rs"]
mod installed;
#[path = "cluster/kubectl.rs"]
mod kubectl;
#[path = "cluster/pods.rs"]
mod pods;
#[path = "cluster/refusals.rs"]
mod refusals;
#[path = "cluster/release.rs"]
mod release;
#[path = "cluster/shop.rs"]
mod shop;
#[path = "cluster/trouble.rs"]
mod trouble;
#[path = "cluster/truth.rs"]
mod truth;

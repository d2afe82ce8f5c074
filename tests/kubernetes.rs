//! What is told of pods and of addresses, against a real API server: what it holds is the truth. The API is that of
//! `tests/cluster/cluster.sh up --api-only`, or of KUBECONFIG; `cargo xtask test kubernetes` sees to that.

#[path = "kubernetes/cluster.rs"]
mod cluster;
#[path = "kubernetes/keys.rs"]
mod keys;
#[path = "kubernetes/peers.rs"]
mod peers;
#[path = "kubernetes/place.rs"]
mod place;
#[path = "kubernetes/pods.rs"]
mod pods;
#[path = "kubernetes/scale.rs"]
mod scale;
#[path = "kubernetes/select.rs"]
mod select;
#[path = "kubernetes/trouble.rs"]
mod trouble;

//! A real Kubernetes for tests: [`ControlPlane`] is etcd and a kube-apiserver, [`cluster`] is all of it with two
//! nodes that run pods.
//!
//! The servers are our Go module `tests/kubernetes/servers`, built by `cargo xtask k8s`; a directory named by
//! `KUBEBUILDER_ASSETS` is taken before that. [`Istiod`] is another module, which only a few tests ask for.
#![forbid(unsafe_code)]

pub mod cluster;
mod control_plane;
mod etcd;
pub mod etcd_store;
mod istiod;
mod keys;
mod kubeconfig;
mod ports;
mod proxy;
mod servers;

pub use control_plane::{ControlPlane, ControlPlaneOptions};
pub use istiod::{
    ISTIOD_AUDIENCE, ISTIOD_NAMESPACE, ISTIOD_SERVER_NAME, Istiod, IstiodBinary, IstiodOptions, istiod_roots,
};
pub use ports::free_port;
pub use proxy::{Answer, Proxy};
pub use servers::servers;

//! Who opens the connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_core::resource::{Labels, NamespacedName};
use weft_core::snapshot::{Membership, Workload, WorkloadLabels};
use weft_core::{Identity, Snapshot};

use super::{Question, SourceView, Unanswerable, unspecified};

/// The client of the question.
pub(super) struct Source {
    /// The pod; made up for clients that are none.
    pub(super) workload: Arc<Workload>,
    /// Its traffic is captured by an agent (or it speaks mTLS by itself).
    pub(super) in_mesh: bool,
    /// What it can prove to be.
    pub(super) identity: Option<Arc<Identity>>,
    kind: Kind,
}

enum Kind {
    Pod { plaintext: bool },
    Identity,
    Address(IpAddr),
    Outside,
}

impl Source {
    pub(super) fn parse(snapshot: &Snapshot, question: &Question) -> Result<Self, Unanswerable> {
        let from = question.from.trim();
        if from == "outside" {
            return Ok(Self::stranger(Kind::Outside, unspecified()));
        }
        if from.starts_with("spiffe://") {
            let identity: Identity =
                from.parse().map_err(|error| Unanswerable(format!("--from: {error}.")))?;
            return Ok(Self::identity(identity, question.plaintext));
        }
        if let Ok(ip) = from.trim_matches(['[', ']']).parse::<IpAddr>() {
            let ip = ip.to_canonical();
            return Ok(match snapshot.workload_by_ip(&ip) {
                Some(workload) => Self::pod(snapshot, workload, question.plaintext),
                None => Self::stranger(Kind::Address(ip), ip),
            });
        }
        let Some((namespace, name)) = from.split_once('/') else {
            return Err(Unanswerable(format!(
                "--from {from}: write NAMESPACE/POD, an IP address, spiffe://… or `outside`."
            )));
        };
        match snapshot.workload(&NamespacedName::new(namespace, name)) {
            Some(workload) => Ok(Self::pod(snapshot, workload, question.plaintext)),
            None => Err(Unanswerable(format!("--from {from}: there is no such Pod in the configuration."))),
        }
    }

    fn pod(snapshot: &Snapshot, workload: &Arc<Workload>, plaintext: bool) -> Self {
        let captured = workload.in_mesh() && !snapshot.bypassed(&workload.key);
        let in_mesh = captured && !plaintext;
        let identity = in_mesh.then(|| workload.identity.clone());
        Self {
            workload: workload.clone(),
            in_mesh,
            identity,
            kind: Kind::Pod { plaintext: captured && plaintext },
        }
    }

    fn identity(identity: Identity, plaintext: bool) -> Self {
        let workload = made_up(identity.clone(), unspecified(), Membership::InMesh);
        let identity = (!plaintext).then(|| Arc::new(identity));
        Self { workload: Arc::new(workload), in_mesh: !plaintext, identity, kind: Kind::Identity }
    }

    fn stranger(kind: Kind, ip: IpAddr) -> Self {
        let workload = made_up(Identity::new("unknown", "unknown", "unknown"), ip, Membership::OutOfMesh);
        Self { workload: Arc::new(workload), in_mesh: false, identity: None, kind }
    }

    /// The pod, where it is one.
    pub(super) fn as_pod(&self) -> Option<&Workload> {
        match self.kind {
            Kind::Pod { .. } => Some(&self.workload),
            Kind::Identity | Kind::Address(_) | Kind::Outside => None,
        }
    }

    /// The same client without its proxy: what it opens proves nothing.
    pub(super) fn uncaptured(self) -> Self {
        Self { in_mesh: false, identity: None, ..self }
    }

    /// The client as decisions are asked about it: without its proxy it is as good as outside the mesh.
    pub(super) fn seeing(&self) -> Arc<Workload> {
        match self.in_mesh == self.workload.in_mesh() {
            true => self.workload.clone(),
            false => Arc::new(Workload { membership: Membership::OutOfMesh, ..(*self.workload).clone() }),
        }
    }

    /// The namespace from which short names resolve.
    pub(super) fn namespace(&self) -> Option<&str> {
        match self.kind {
            Kind::Pod { .. } | Kind::Identity => Some(&self.workload.key.namespace),
            Kind::Address(_) | Kind::Outside => None,
        }
    }

    /// The address from which `destination` sees it.
    pub(super) fn address_towards(&self, destination: SocketAddr) -> IpAddr {
        let ips = &self.workload.ips;
        let same_family = ips.iter().find(|ip| ip.is_ipv4() == destination.is_ipv4());
        same_family.or(ips.first()).copied().unwrap_or_else(unspecified)
    }

    pub(super) fn view(&self) -> SourceView {
        let pod = match self.kind {
            Kind::Pod { .. } => Some(self.workload.key.to_string()),
            Kind::Identity | Kind::Address(_) | Kind::Outside => None,
        };
        SourceView {
            principal: self.identity.as_ref().map(|identity| identity.principal()),
            namespace: self.namespace().map(Into::into),
            pod,
        }
    }

    pub(super) fn sentence(&self) -> String {
        let Workload { key, identity, membership, .. } = &*self.workload;
        match (&self.kind, membership) {
            (Kind::Pod { plaintext: true }, _) => {
                format!("The client is Pod {key}, asked about without mTLS: it proves no identity.")
            }
            (Kind::Pod { .. }, Membership::InMesh) if !self.in_mesh => {
                format!(
                    "The client is Pod {key}, whose capture is off (`weft.dev/mesh: bypass`): it proves no identity."
                )
            }
            (Kind::Pod { .. }, Membership::InMesh) => {
                format!("The client is Pod {key} of the mesh; its identity is {}.", identity.principal())
            }
            (Kind::Pod { .. }, Membership::OutOfMesh) => {
                format!(
                    "The client is Pod {key}, which is not in the mesh: nothing captures it and it proves no identity."
                )
            }
            (Kind::Pod { .. }, Membership::Excluded(why)) => {
                format!("The client is Pod {key}, which is not enrolled ({why}): it proves no identity.")
            }
            (Kind::Identity, _) => {
                format!("The client proves by mTLS to be {}; its address is not known.", identity.principal())
            }
            (Kind::Address(ip), _) => {
                format!("The client is {ip}, no Pod of the configuration: it proves no identity.")
            }
            (Kind::Outside, _) => {
                "The client is outside the mesh: it proves no identity, and its address is not known.".into()
            }
        }
    }
}

fn made_up(identity: Identity, ip: IpAddr, membership: Membership) -> Workload {
    let unknown: Arc<str> = "unknown".into();
    Workload {
        key: NamespacedName::new(identity.namespace(), ""),
        ips: [ip].into_iter().collect(),
        node: None,
        labels: Arc::new(WorkloadLabels {
            workload: unknown.clone(),
            namespace: unknown.clone(),
            principal: identity.to_string().into(),
            app: unknown.clone(),
            version: unknown.clone(),
            canonical_service: unknown.clone(),
            canonical_revision: unknown,
        }),
        identity: Arc::new(identity),
        pod_labels: Arc::new(Labels::default()),
        membership,
        ready: true,
        encrypt_same_node: false,
    }
}

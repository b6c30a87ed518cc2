//! A client's policy for connections that are not taken apart: which endpoint, how many, for how long they may try
//! (D-12, D-16).

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use weft_core::decide::Candidate;
use weft_core::decide::http::{Cluster, source_ip_hash, under_policy};
use weft_core::decide::outbound::candidate;
use weft_core::resource::destination_rule::TcpKeepalive;
use weft_telemetry::ClusterEvent;

use super::exchange::Active;
use super::limits::{Limits, Slot};
use super::local::{LocalCluster, LocalHost, Wanted};
use super::origination::{self, TLS, Tls};
use super::outlier::Outcome;
use super::{Leg, Search};
use crate::account::Failure;
use crate::lifetime;
use crate::worker::Worker;

/// A cluster that a connection goes to.
#[derive(Clone)]
pub(crate) struct Opaque {
    local: Rc<LocalCluster>,
    cluster: Arc<Cluster>,
}

/// An endpoint for a connection.
pub(crate) struct Chosen {
    /// Where, and how it is reached.
    pub(crate) candidate: Candidate,
    host: Rc<LocalHost>,
}

/// A connection counted for its cluster and its endpoint until it is dropped.
pub(crate) struct Place {
    _slot: Slot,
    _active: Active,
}

impl Opaque {
    /// The cluster as the client's workload knows it.
    pub(crate) fn new(worker: &Worker, leg: &Leg<'_>, cluster: &Arc<Cluster>) -> Self {
        Self { local: worker.upstreams.cluster(worker, leg, cluster), cluster: cluster.clone() }
    }

    /// Chooses an endpoint that is not among `tried`; `None` when there is none.
    pub(crate) fn choose(&self, worker: &Worker, leg: &Leg<'_>, tried: &[SocketAddr]) -> Option<Chosen> {
        let tls = self.cluster.policy.tls.as_ref();
        let suits = |addr: &SocketAddr| leg.reaches(*addr, tls);
        let hash = self.cluster.policy.hash_key().map(|_| source_ip_hash(leg.client.ip()));
        let search = Search { hash, tried: tried.into(), ..Search::default() };
        let wanted = Wanted { search: &search, suits: &suits };
        let host = self.local.choose(worker, leg, &self.cluster, &wanted)?;
        let addr = host.host.addr;
        if tried.contains(&addr) {
            return None;
        }
        let found = candidate(leg.snapshot, &leg.source.workload, addr);
        Some(Chosen { candidate: under_policy(tls, found)?, host })
    }

    /// TLS of the client's own, where the policy asks for it; a policy that cannot be kept makes no connection (D-18).
    pub(crate) async fn tls(&self, worker: &Worker, leg: &Leg<'_>) -> Result<Option<Tls>, Failure> {
        origination::tls(worker, leg, &self.cluster, None).await.map_err(|why| {
            self.local.state.counters.count(ClusterEvent::TlsFailure);
            Failure::new("UF", TLS, why)
        })
    }

    /// `connectTimeout`, where the policy has one.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        self.cluster.policy.connection_pool.connect_timeout
    }

    /// `tcp.tcpKeepalive`.
    pub(crate) fn keepalive(&self) -> Option<TcpKeepalive> {
        self.cluster.policy.connection_pool.tcp_keepalive
    }

    /// `tcp.idleTimeout` and `tcp.maxConnectionDuration`.
    pub(crate) fn lifetime(&self) -> lifetime::Limits {
        lifetime::Limits::of(&self.cluster.policy.connection_pool)
    }

    /// Counts a connection. Beyond `maxConnections` it is refused: nothing makes sure that one of the others ends.
    pub(crate) fn place(&self, chosen: &Chosen) -> Result<Place, Failure> {
        let limit = Limits::of(&self.cluster.policy.connection_pool).connections;
        let state = &self.local.state;
        let Some(slot) = state.connect_within(limit, &chosen.host.host) else {
            state.counters.count(ClusterEvent::ConnectionOverflow);
            let details =
                format!("{} has maxConnections connections open; the limit is {limit}", self.cluster.name);
            return Err(Failure::new("UO", "overflow", details));
        };
        Ok(Place { _slot: slot, _active: Active::new(&chosen.host.host) })
    }

    /// Counts whether an endpoint could be reached (D-16).
    pub(crate) fn reached(&self, chosen: &Chosen, failure: Option<&Failure>) {
        let counters = &self.local.state.counters;
        let (event, outcome) = match failure {
            None => (ClusterEvent::Connection, Outcome::Status(200)),
            Some(_) => (ClusterEvent::ConnectFailure, Outcome::Local),
        };
        counters.count(event);
        if failure.is_some_and(|failure| failure.reason == TLS) {
            counters.count(ClusterEvent::TlsFailure);
        }
        let policy = self.cluster.policy.outlier_detection.as_ref();
        self.local.state.record(&chosen.host.host, outcome, policy);
    }
}

//! Who talks to whom, in the words of metrics (M-3 to M-8), and the series that count it.

use std::cell::RefCell;
use std::sync::Arc;

use weft_core::decide::Destination;
use weft_core::decide::protocol::{INBOUND_PASSTHROUGH, declared};
use weft_core::hashing::FastMap;
use weft_core::snapshot::{CompiledService, LocalWorkload, WorkloadLabels};
use weft_telemetry::{
    Metrics, Reporter, RequestLabels, RequestProtocol, SecurityPolicy, TcpLabels, TcpSeries,
};

/// Series that a worker keeps at hand; beyond that it forgets all and begins again.
const MAX_CACHED: usize = 8192;

/// What `destination_service` and its relatives say.
#[derive(Debug, Clone)]
pub(crate) enum Service {
    /// A Service.
    Known {
        /// The Service.
        service: Arc<CompiledService>,
        /// Its port that was addressed; 0 where only its host is known.
        port: u16,
    },
    /// Nobody the mesh knows, passed through (M-8).
    Passthrough,
    /// Nobody the mesh knows, refused (M-8).
    BlackHole,
    /// A pod was addressed.
    Unknown,
}

impl Service {
    /// What an outbound decision was addressed to.
    pub(crate) fn of(destination: &Destination, refused: bool) -> Self {
        match (destination, destination.service_port()) {
            (_, Some((service, port))) => Self::Known { service: service.clone(), port: port.port },
            (Destination::Service { service, .. }, None) => Self::Known { service: service.clone(), port: 0 },
            (Destination::Pod(_), None) => Self::Unknown,
            (Destination::Unknown, None) if refused => Self::BlackHole,
            (Destination::Unknown, None) => Self::Passthrough,
        }
    }

    /// `upstream_cluster` of the client's side (L-4).
    pub(crate) fn outbound_cluster(&self) -> String {
        match self {
            Self::Known { service, port } => format!("outbound|{port}||{}", service.host),
            Self::Passthrough | Self::Unknown => "PassthroughCluster".to_owned(),
            Self::BlackHole => "BlackHoleCluster".to_owned(),
        }
    }

    fn names(&self) -> (Arc<str>, Arc<str>, Arc<str>) {
        thread_local! {
            static TEXTS: [Arc<str>; 3] = ["unknown".into(), "PassthroughCluster".into(), "BlackHoleCluster".into()];
        }
        TEXTS.with(|[unknown, passthrough, black_hole]| match self {
            Self::Known { service, .. } => {
                (service.host.clone(), service.key.name.clone(), service.key.namespace.clone())
            }
            Self::Passthrough => (unknown.clone(), passthrough.clone(), unknown.clone()),
            Self::BlackHole => (unknown.clone(), black_hole.clone(), unknown.clone()),
            Self::Unknown => (unknown.clone(), unknown.clone(), unknown.clone()),
        })
    }

    fn id(&self) -> usize {
        match self {
            Self::Known { service, .. } => Arc::as_ptr(service).addr(),
            Self::Passthrough => 1,
            Self::BlackHole => 2,
            Self::Unknown => 3,
        }
    }
}

/// `upstream_cluster` of the server's side where it does not follow from the port alone: what reaches a port that no
/// Service has is passed through (L-4, X-14).
pub(crate) fn inbound_cluster(local: &LocalWorkload, port: u16) -> Option<Arc<str>> {
    thread_local! {
        static PASSTHROUGH: Arc<str> = INBOUND_PASSTHROUGH.into();
    }
    declared(local, port).is_none().then(|| PASSTHROUGH.with(Arc::clone))
}

/// Both ends of a connection. Absent facts become `unknown`.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    /// The client's workload.
    pub(crate) source: Option<Arc<WorkloadLabels>>,
    /// Its principal, where TLS or the kernel vouches for it.
    pub(crate) source_principal: Option<Arc<str>>,
    /// The server's workload.
    pub(crate) destination: Option<Arc<WorkloadLabels>>,
    /// Its principal, where TLS or the kernel vouches for it.
    pub(crate) destination_principal: Option<Arc<str>>,
    /// What was addressed.
    pub(crate) service: Service,
}

impl Ends {
    /// All labels.
    pub(crate) fn labels(&self, reporter: Reporter, tls: bool, flags: &'static str) -> TcpLabels {
        let (service, service_name, service_namespace) = self.service.names();
        TcpLabels {
            reporter,
            source: self.source.clone(),
            source_principal: self.source_principal.clone(),
            destination: self.destination.clone(),
            destination_principal: self.destination_principal.clone(),
            service,
            service_name,
            service_namespace,
            flags,
            security: security(reporter, tls),
        }
    }

    /// All labels of a request.
    pub(crate) fn request_labels(
        &self,
        reporter: Reporter,
        tls: bool,
        protocol: RequestProtocol,
    ) -> RequestLabels {
        let (service, service_name, service_namespace) = self.service.names();
        RequestLabels {
            reporter,
            source: self.source.clone(),
            source_principal: self.source_principal.clone(),
            destination: self.destination.clone(),
            destination_principal: self.destination_principal.clone(),
            service,
            service_name,
            service_namespace,
            protocol,
            security: security(reporter, tls),
        }
    }

    /// Addresses of the shared parts: equal ends have equal ones.
    pub(crate) fn parts(&self) -> [usize; 5] {
        let workload =
            |labels: &Option<Arc<WorkloadLabels>>| labels.as_ref().map_or(0, |it| Arc::as_ptr(it).addr());
        let text = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |it| Arc::as_ptr(it).addr());
        [
            workload(&self.source),
            text(&self.source_principal),
            workload(&self.destination),
            text(&self.destination_principal),
            self.service.id(),
        ]
    }
}

/// M-4: the client's side never says; the server's says whether TLS carried the bytes (ruling 4).
fn security(reporter: Reporter, tls: bool) -> SecurityPolicy {
    match (reporter, tls) {
        (Reporter::Source, _) => SecurityPolicy::Unknown,
        (Reporter::Destination, true) => SecurityPolicy::MutualTls,
        (Reporter::Destination, false) => SecurityPolicy::None,
    }
}

/// Identity of a series by the addresses of its shared parts, which the cache keeps alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    reporter: Reporter,
    tls: bool,
    parts: [usize; 5],
}

/// Series that this worker has used, found again without hashing text.
#[derive(Debug, Default)]
pub(crate) struct SeriesCache(RefCell<FastMap<Key, (TcpSeries, Ends)>>);

impl SeriesCache {
    /// The series of connections that are not refused.
    pub(crate) fn get(&self, metrics: &Metrics, ends: &Ends, reporter: Reporter, tls: bool) -> TcpSeries {
        let key = Key { reporter, tls, parts: ends.parts() };
        if let Some((series, _)) = self.0.borrow().get(&key) {
            return series.clone();
        }
        let series = metrics.tcp(&ends.labels(reporter, tls, "-"));
        let mut cache = self.0.borrow_mut();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(key, (series.clone(), ends.clone()));
        series
    }

    /// Forgets everything: after a new snapshot its parts may have other addresses.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(service: Service) -> Ends {
        Ends { source: None, source_principal: None, destination: None, destination_principal: None, service }
    }

    #[test]
    fn only_the_destination_says_what_carried_the_bytes() {
        let ends = ends(Service::Unknown);
        assert_eq!(ends.labels(Reporter::Source, true, "-").security, SecurityPolicy::Unknown);
        assert_eq!(ends.labels(Reporter::Destination, true, "-").security, SecurityPolicy::MutualTls);
        assert_eq!(ends.labels(Reporter::Destination, false, "-").security, SecurityPolicy::None);
    }

    #[test]
    fn unknown_destinations_have_istios_names() {
        let labels = ends(Service::Passthrough).labels(Reporter::Source, false, "-");
        assert_eq!((&*labels.service, &*labels.service_name), ("unknown", "PassthroughCluster"));
        assert_eq!(Service::of(&Destination::Unknown, true).outbound_cluster(), "BlackHoleCluster");
        assert_eq!(Service::of(&Destination::Unknown, false).outbound_cluster(), "PassthroughCluster");
    }

    #[test]
    fn the_cache_tells_reporters_apart_and_stays_bounded() {
        let (cache, metrics) = (SeriesCache::default(), Metrics::new());
        for _ in 0..3 {
            cache.get(&metrics, &ends(Service::Unknown), Reporter::Source, false);
            cache.get(&metrics, &ends(Service::Unknown), Reporter::Destination, false);
        }
        assert_eq!(cache.0.borrow().len(), 2);
        for index in 0..MAX_CACHED + 10 {
            let mut ends = ends(Service::Unknown);
            ends.source_principal = Some(format!("spiffe://td/ns/a/sa/{index}").into());
            cache.get(&metrics, &ends, Reporter::Source, false);
        }
        assert!(cache.0.borrow().len() <= MAX_CACHED);
    }
}

//! What one worker remembers of clusters: their shared state, their endpoints with connections, their hash table.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;
use weft_core::Identity;
use weft_core::Snapshot;
use weft_core::decide::http::{Cluster, ClusterPolicy, Group, Layout, layout};
use weft_core::hashing::FastMap;
use weft_core::resource::NamespacedName;
use weft_core::resource::destination_rule::{HashAlgorithm, LoadBalancer, Warmup};
use weft_core::snapshot::Endpoint;

use super::balance::{self, Draw, Endpoints};
use super::dial::{Dial, Way};
use super::pool::Pool;
use super::state::{ClusterState, Host};
use super::table::Table;
use super::{Leg, Search, UpstreamProtocol};
use crate::pod::Pod;
use crate::worker::Worker;

/// What is remembered before unused things are looked for.
const UNSWEPT: usize = 64;
/// How long an unused cluster is remembered. Its connections are closed with it.
const UNUSED: Duration = Duration::from_secs(3600);

/// The pools to one endpoint, by how it is reached.
#[derive(Default)]
struct Pools(RefCell<SmallVec<[Keyed; 1]>>);

struct Keyed {
    way: Way,
    identity: Option<Arc<Identity>>,
    protocol: UpstreamProtocol,
    pool: Rc<Pool>,
}

impl Pools {
    /// The pool for a way; those for ways that are not used any more go when they are empty.
    fn pool(&self, dial: &Dial, protocol: UpstreamProtocol) -> Rc<Pool> {
        let mut pools = self.0.borrow_mut();
        let serves = |keyed: &&Keyed| {
            keyed.protocol == protocol
                && keyed.way.is_same(&dial.way)
                && keyed.identity.as_ref() == dial.identity()
        };
        if let Some(keyed) = pools.iter().find(serves) {
            return keyed.pool.clone();
        }
        pools.retain(|keyed| !keyed.pool.is_empty() || Rc::strong_count(&keyed.pool) > 1);
        let pool = Rc::<Pool>::default();
        pools.push(Keyed {
            way: dial.way.clone(),
            identity: dial.identity().cloned(),
            protocol,
            pool: pool.clone(),
        });
        pool
    }

    fn is_empty(&self) -> bool {
        self.0.borrow().iter().all(|keyed| keyed.pool.is_empty() && Rc::strong_count(&keyed.pool) == 1)
    }
}

/// An endpoint with this worker's connections to it.
pub(super) struct LocalHost {
    /// What all workers know about it.
    pub(super) host: Arc<Host>,
    pools: Pools,
}

impl LocalHost {
    /// The connections for a way.
    pub(super) fn pool(&self, dial: &Dial, protocol: UpstreamProtocol) -> Rc<Pool> {
        self.pools.pool(dial, protocol)
    }
}

/// The endpoints of a cluster that may be chosen, of one address family.
struct View {
    endpoints: Arc<[Endpoint]>,
    hosts: Vec<Rc<LocalHost>>,
    /// The algorithm of consistent hashing and its table.
    table: Option<(HashAlgorithm, Arc<Table>)>,
    /// Which of them are near; `None` where that makes no difference.
    layout: Option<Layout>,
    /// The configuration that says so.
    revision: u64,
}

impl View {
    fn table(&self) -> Option<&Table> {
        self.table.as_ref().map(|(_, table)| &**table)
    }

    /// The endpoints of one place, by their indexes, of which `available` accepts at least one; not of those that were
    /// `left`.
    fn near(&self, available: Accepts<'_>, left: &[u32], draw: u64) -> Option<&[u32]> {
        let mut count = |group: &Group| match available {
            _ if left.contains(&group.priority) => 0,
            None => group.members.len(),
            Some(available) => group.members.iter().filter(|index| available(**index as usize)).count(),
        };
        self.layout.as_ref()?.choose(&mut count, draw).map(|group| group.members.as_slice())
    }

    /// The priorities that a request has left behind.
    fn left_behind(&self, search: &Search) -> SmallVec<[u32; 4]> {
        match &self.layout {
            Some(layout) if search.remote == Some(true) => {
                let place =
                    |addr: &SocketAddr| self.hosts.binary_search_by_key(addr, |local| local.host.addr);
                // Who is gone by now is nowhere.
                layout.left_behind(search.tried.iter().map(|addr| place(addr).unwrap_or(usize::MAX)))
            }
            Some(_) | None => SmallVec::new(),
        }
    }

    /// The endpoint that the client dialled itself: those of a headless Service are not chosen by us.
    fn dialled(&self, cluster: &Cluster, original: SocketAddr) -> Option<&Rc<LocalHost>> {
        if !cluster.service.vips.is_empty() {
            return None;
        }
        let at = self.hosts.binary_search_by_key(&original, |local| local.host.addr).ok()?;
        self.hosts.get(at)
    }

    /// Places and labels of endpoints are looked at anew with each configuration, where they matter at all.
    fn is_of(&self, cluster: &Cluster, snapshot: &Snapshot) -> bool {
        let placed = self.revision == snapshot.revision()
            || (self.layout.is_none() && !may_be_laid_out(cluster, snapshot));
        let same = Arc::ptr_eq(&self.endpoints, &cluster.endpoints) || self.endpoints == cluster.endpoints;
        placed && same && self.table.as_ref().map(|(algorithm, _)| *algorithm) == hash_algorithm(cluster)
    }
}

/// Whether [`layout`] may answer anything.
fn may_be_laid_out(cluster: &Cluster, snapshot: &Snapshot) -> bool {
    let policy = &cluster.policy;
    policy.locality.is_some()
        || cluster.service.distribution.is_some()
        || snapshot.mesh().http.locality.is_some()
        || (policy.outlier_detection.is_some() && !snapshot.localities().is_empty())
}

fn hash_algorithm(cluster: &Cluster) -> Option<HashAlgorithm> {
    match cluster.policy.load_balancer {
        LoadBalancer::ConsistentHash { algorithm, .. } => Some(algorithm),
        LoadBalancer::LeastRequest
        | LoadBalancer::RoundRobin
        | LoadBalancer::Random
        | LoadBalancer::Passthrough => None,
    }
}

/// Which endpoints may be chosen, by their index; `None` is all of them.
type Accepts<'a> = Option<&'a dyn Fn(usize) -> bool>;

/// What a request wants of its endpoint.
pub(super) struct Wanted<'a> {
    /// What the request says.
    pub(super) search: &'a Search,
    /// Whether the policy can be kept with an endpoint.
    pub(super) suits: &'a dyn Fn(&SocketAddr) -> bool,
}

impl Wanted<'_> {
    /// Endpoints that are avoided while there are others.
    fn avoided(&self) -> &[SocketAddr] {
        if self.search.again { &[] } else { &self.search.tried }
    }
}

/// One cluster as this worker knows it.
pub(super) struct LocalCluster {
    /// What all workers know about it.
    pub(super) state: Arc<ClusterState>,
    /// For IPv6 and IPv4.
    views: [RefCell<Option<Rc<View>>>; 2],
    /// Addresses that are not the cluster's endpoints (PASSTHROUGH).
    strays: RefCell<HashMap<SocketAddr, Rc<LocalHost>>>,
    used: Cell<Instant>,
}

impl LocalCluster {
    fn new(state: Arc<ClusterState>) -> Rc<Self> {
        Rc::new(Self {
            state,
            views: Default::default(),
            strays: RefCell::default(),
            used: Cell::new(Instant::now()),
        })
    }

    /// Chooses an endpoint: of those that are not ejected and that `suits` accepts one that was not tried, else any
    /// of them.
    pub(super) fn choose(
        &self,
        worker: &Worker,
        leg: &Leg<'_>,
        cluster: &Cluster,
        wanted: &Wanted<'_>,
    ) -> Option<Rc<LocalHost>> {
        let original = leg.original;
        if cluster.policy.load_balancer == LoadBalancer::Passthrough {
            return Some(self.stray(original)).filter(|local| (wanted.suits)(&local.host.addr));
        }
        let view = self.view(worker, leg, cluster);
        if let Some(dialled) = view.dialled(cluster, original) {
            return (wanted.suits)(&original).then(|| dialled.clone());
        }
        let chosen = self.choose_in(worker, cluster, &view, wanted, false)?;
        if (wanted.suits)(&chosen.host.addr) {
            return Some(chosen);
        }
        // Most often all endpoints suit or none does: only now is each of them asked.
        self.choose_in(worker, cluster, &view, wanted, true)
    }

    fn choose_in(
        &self,
        worker: &Worker,
        cluster: &Cluster,
        view: &View,
        wanted: &Wanted<'_>,
        ask: bool,
    ) -> Option<Rc<LocalHost>> {
        let hosts = &view.hosts;
        let any_ejected = self.any_ejected(&cluster.policy, hosts.len());
        let may = |index: usize, fresh: bool| {
            hosts.get(index).map(|local| &local.host).is_some_and(|host| {
                let tried = fresh && wanted.avoided().contains(&host.addr);
                let out = any_ejected && host.is_ejected();
                !tried && !out && (!ask || (wanted.suits)(&host.addr))
            })
        };
        let in_rotation = |index: usize| may(index, false);
        let untried = |index: usize| may(index, true);
        let available: Accepts<'_> = if any_ejected || ask { Some(&in_rotation) } else { None };
        let choose = |among: Option<&[u32]>, available| {
            self.choose_among(worker, cluster, view, (among, available), wanted.search.hash)
        };
        let left = view.left_behind(wanted.search);
        let near = |available| {
            let draw = wanted.search.hash.unwrap_or_else(|| worker.random());
            let elsewhere = if left.is_empty() { None } else { view.near(available, &left, draw) };
            elsewhere.or_else(|| view.near(available, &[], draw))
        };
        let among = match &view.layout {
            Some(_) => Some(near(available)?),
            None => None,
        };
        let again = wanted.avoided().is_empty();
        let chosen = if again { None } else { choose(among, Some(&untried)) };
        // Rather another place than what has failed already.
        let elsewhere = || match &view.layout {
            Some(_) if !again && wanted.search.remote != Some(false) => {
                choose(Some(near(Some(&untried))?), Some(&untried))
            }
            Some(_) | None => None,
        };
        hosts.get(chosen.or_else(elsewhere).or_else(|| choose(among, available))?).cloned()
    }

    /// Chooses by the policy's balancer, as an index of the view.
    fn choose_among(
        &self,
        worker: &Worker,
        cluster: &Cluster,
        view: &View,
        (among, available): (Option<&[u32]>, Accepts<'_>),
        hash: Option<u64>,
    ) -> Option<usize> {
        let hosts = &view.hosts;
        let active = |index: usize| hosts.get(index).map_or(u32::MAX, |local| local.host.active.get());
        let warming = cluster.policy.warmup.filter(|warmup| self.state.is_warming(warmup));
        let now = warming.map(|_| Instant::now());
        let warmth = warming.zip(now).map(|(warmup, now)| {
            move |index: usize| hosts.get(index).map_or(1.0, |local| self.warmth(&local.host, &warmup, now))
        });
        let endpoints = Endpoints {
            len: hosts.len(),
            among,
            available,
            active: &active,
            warmth: warmth.as_ref().map(|warmth| warmth as &dyn Fn(usize) -> f64),
            table: view.table(),
        };
        let mut random = |below: u64| worker.random() % below.max(1);
        let turn = || self.state.next_turn();
        let mut draw = Draw { random: &mut random, turn: &turn, hash };
        balance::choose(&cluster.policy.load_balancer, &endpoints, &mut draw)
    }

    /// The part of its share that an endpoint gets.
    fn warmth(&self, host: &Host, warmup: &Warmup, now: Instant) -> f64 {
        warmup.factor(self.state.age(host, now))
    }

    /// Whether ejections are to be looked at: below `minHealthPercent` they are not.
    fn any_ejected(&self, policy: &ClusterPolicy, hosts: usize) -> bool {
        let Some(outlier) = &policy.outlier_detection else { return false };
        if !self.state.any_ejected(Instant::now) {
            return false;
        }
        let healthy = hosts.saturating_sub(self.state.ejected()) as u128 * 100;
        outlier.min_health_percent == 0 || healthy >= hosts as u128 * u128::from(outlier.min_health_percent)
    }

    fn view(&self, worker: &Worker, leg: &Leg<'_>, cluster: &Cluster) -> Rc<View> {
        let [of_ipv6, of_ipv4] = &self.views;
        let ipv4 = leg.original.is_ipv4();
        let mut view = if ipv4 { of_ipv4 } else { of_ipv6 }.borrow_mut();
        if let Some(view) = view.as_ref().filter(|view| view.is_of(cluster, leg.snapshot)) {
            return view.clone();
        }
        // A client of one address family may have no route in the other.
        let may_be_chosen = |endpoint: &&Endpoint| endpoint.ready && endpoint.addr().is_ipv4() == ipv4;
        let ready = cluster.endpoints.iter().filter(may_be_chosen).map(|endpoint| endpoint.addr());
        let old: HashMap<_, _> =
            view.iter().flat_map(|view| &view.hosts).map(|local| (local.host.addr, local.clone())).collect();
        let local = |host: Arc<Host>| match old.get(&host.addr) {
            Some(local) => local.clone(),
            None => Rc::new(LocalHost { host, pools: Pools::default() }),
        };
        let hosts: Vec<_> = self.state.hosts(ready, &cluster.endpoints).into_iter().map(local).collect();
        let endpoints = cluster.endpoints.clone();
        let addresses = || hosts.iter().map(|local| local.host.addr).collect::<Vec<_>>();
        let table = hash_algorithm(cluster).map(|algorithm| {
            (algorithm, worker.shared.http.table(&endpoints, ipv4, algorithm, &addresses()))
        });
        let layout = if may_be_laid_out(cluster, leg.snapshot) {
            layout(leg.snapshot, &leg.source.workload, cluster, &addresses())
        } else {
            None
        };
        let revision = leg.snapshot.revision();
        view.insert(Rc::new(View { endpoints, hosts, table, layout, revision })).clone()
    }

    fn stray(&self, addr: SocketAddr) -> Rc<LocalHost> {
        let mut strays = self.strays.borrow_mut();
        if strays.len() >= UNSWEPT && !strays.contains_key(&addr) {
            strays.retain(|_, local| !local.pools.is_empty());
        }
        let new = || Rc::new(LocalHost { host: Host::new(addr), pools: Pools::default() });
        strays.entry(addr).or_insert_with(new).clone()
    }
}

/// By client pod and name.
type Clusters = FastMap<NamespacedName, FastMap<Arc<str>, Rc<LocalCluster>>>;

/// By the address of the pod whose namespace they are in, which is kept beside them, and the endpoint.
type Others = FastMap<(usize, SocketAddr), (Arc<Pod>, Pools)>;

/// Clusters and connections of one worker.
#[derive(Default)]
pub(crate) struct Upstreams {
    clusters: RefCell<Clusters>,
    /// The one that was asked for last: requests often go to the same one in a row.
    last: RefCell<Option<Last>>,
    /// Pools that belong to no cluster.
    others: RefCell<Others>,
    clusters_len: Cell<usize>,
    sweep_clusters_at: Cell<usize>,
    sweep_others_at: Cell<usize>,
}

/// A cluster by the addresses of what names it.
struct Last {
    pod: Arc<Pod>,
    name: Arc<str>,
    local: Rc<LocalCluster>,
}

impl Upstreams {
    /// The state of a cluster.
    pub(super) fn cluster(&self, worker: &Worker, leg: &Leg<'_>, cluster: &Cluster) -> Rc<LocalCluster> {
        let mut last = self.last.borrow_mut();
        if let Some(last) = &*last
            && Arc::ptr_eq(&last.pod, leg.pod)
            && Arc::ptr_eq(&last.name, &cluster.name)
        {
            return last.local.clone();
        }
        let local = self.by_name(worker, leg, cluster);
        let (pod, name) = (leg.pod.clone(), cluster.name.clone());
        let before = last.replace(Last { pod, name, local: local.clone() });
        before.inspect(|before| before.local.used.set(Instant::now()));
        local
    }

    fn by_name(&self, worker: &Worker, leg: &Leg<'_>, cluster: &Cluster) -> Rc<LocalCluster> {
        let mut clusters = self.clusters.borrow_mut();
        if let Some(known) = clusters.get(&leg.pod.key).and_then(|of_pod| of_pod.get(&cluster.name)) {
            known.used.set(Instant::now());
            return known.clone();
        }
        if self.clusters_len.get() >= self.sweep_clusters_at.get() {
            self.sweep_clusters(&mut clusters);
        }
        let labels = &leg.source.workload.labels;
        let new = || {
            let workload = format!("{}/{}", labels.namespace, labels.workload);
            let counters = worker.shared.context.metrics.cluster(&workload, &cluster.name);
            ClusterState::new(counters, usize::try_from(worker.random() >> 33).unwrap_or(0))
        };
        let local = LocalCluster::new(worker.shared.http.cluster(&leg.pod.key, &cluster.name, new));
        self.clusters_len.set(self.clusters_len.get() + 1);
        clusters.entry(leg.pod.key.clone()).or_default().insert(cluster.name.clone(), local.clone());
        local
    }

    /// The connections to an endpoint outside clusters.
    pub(super) fn pool(&self, dial: &Dial, protocol: UpstreamProtocol) -> Rc<Pool> {
        let mut others = self.others.borrow_mut();
        let key = (Arc::as_ptr(&dial.pod).addr(), dial.endpoint);
        if let Some((_, pools)) = others.get(&key) {
            return pools.pool(dial, protocol);
        }
        if others.len() >= self.sweep_others_at.get() {
            others.retain(|_, (_, pools)| !pools.is_empty());
            self.sweep_others_at.set(UNSWEPT.max(2 * others.len()));
        }
        let (_, pools) = others.entry(key).or_insert_with(|| (dial.pod.clone(), Pools::default()));
        pools.pool(dial, protocol)
    }

    fn sweep_clusters(&self, clusters: &mut Clusters) {
        clusters.retain(|_, of_pod| {
            of_pod.retain(|_, local| Rc::strong_count(local) > 1 || local.used.get().elapsed() < UNUSED);
            !of_pod.is_empty()
        });
        self.clusters_len.set(clusters.values().map(|of_pod| of_pod.len()).sum());
        self.sweep_clusters_at.set(UNSWEPT.max(2 * self.clusters_len.get()));
    }

    /// Lets go of a pod that is gone: idle connections are closed, others end with their requests.
    pub(crate) fn forget(&self, worker: &Worker, pod: &NamespacedName) {
        self.last.borrow_mut().take_if(|last| last.pod.key == *pod);
        let of_pod = self.clusters.borrow_mut().remove(pod);
        self.clusters_len.set(self.clusters_len.get() - of_pod.map_or(0, |of_pod| of_pod.len()));
        self.others.borrow_mut().retain(|_, (of, _)| of.key != *pod);
        worker.shared.http.forget(pod);
    }
}

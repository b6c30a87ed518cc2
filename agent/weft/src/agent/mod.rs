//! `weft agent`: everything wired together, top to bottom.

mod admin;
mod beginning;
mod certificates;
mod cgroups;
pub(crate) mod cni;
pub(crate) mod datapath_options;
mod direct_metrics;
pub(crate) mod exposition;
pub(crate) mod http;
mod node;
mod older;
mod options;
mod outside;
pub(crate) mod own_files;
mod places;
mod plan;
mod pods_api;
mod scrape;

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use weft_control::writer::Published;
use weft_core::kernel_view::LearnedPorts;
use weft_core::resource::NamespacedName;
use weft_identity::CertStore;
use weft_kernel::{Datapath, FlowEvents, NamespaceChanges};
use weft_proxy::{Context, Proxy, ProxyConfig};
use weft_telemetry::{AccessLog, AccessLogFormat, Metrics};

use self::admin::Facts;
use self::beginning::Beginning;
use self::cgroups::Kubelet;
use self::datapath_options::Resolved;
use self::direct_metrics::{Cuts, DirectAccounting};
use self::node::{Clocks, Event, Farewell, Node, NodeState, SharedDatapath, SharedProxy, lock};
use self::older::Older;
pub(crate) use self::options::Options;
use self::outside::{Outside, Shared};
use self::places::Places;
use self::plan::Pods;
use crate::config::Purpose;
use crate::controller::make_private_directory;
use crate::logging::{self, LogLevel};
use crate::shutdown::Signals;

/// How long the end may take once connections are drained.
const FLUSH: Duration = Duration::from_secs(2);

/// Runs until a signal asks for the end.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    let log = logging::start(&options.log_level, options.log_format)?;
    let metrics = Metrics::new();
    hook_panics(metrics.clone());
    raise_descriptor_limit();
    make_private_directory(&options.state_dir)?;
    let _lock = lock_state(&options.state_dir)?;
    let source = options.source.start(&options.node, Purpose::Node)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Agent { options, log, metrics }.run(source.published().clone()))
}

/// Panics are confined to a connection or task; here they are told and counted.
fn hook_panics(metrics: Metrics) {
    std::panic::set_hook(Box::new(move |info| {
        metrics.panicked();
        let payload = info.payload();
        let words = payload.downcast_ref::<&str>().copied();
        let words =
            words.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(thread, place, "panic: {words}");
    }));
}

/// Each connection needs two descriptors: the soft limit of 1024 is soon met.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of descriptors could not be raised");
    }
}

/// One pod may use half of the descriptors (a connection has two), so that it cannot starve the others.
fn connections_per_pod() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(limit / 4).unwrap_or(usize::MAX).clamp(1024, ProxyConfig::default().connections_per_pod)
}

/// One agent per state directory (ruling 13); the kernel releases the lock with the process.
fn lock_state(directory: &Path) -> anyhow::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::{FlockOperation, OFlags, flock};

    let path = directory.join("lock");
    let mut options = File::options();
    // Never through a link that somebody laid there.
    options.write(true).create(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let file = options.open(&path).with_context(|| format!("{} cannot be made", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "another agent uses the state directory {}: give this one its own with --state-dir",
            directory.display()
        );
    }
    Ok(file)
}

struct Agent {
    options: Options,
    log: LogLevel,
    metrics: Metrics,
}

impl Agent {
    async fn run(self, config: Published) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        let metrics_listener = http::bind("metrics", self.options.metrics_addr).await?;
        let readiness_listener = http::bind("readiness", self.options.readiness_addr).await?;
        let admin_path = self.options.admin_socket();
        let admin_listener = admin::bind(&admin_path)?;

        let node = &self.options.node;
        let beginning = Beginning::serve(metrics_listener, readiness_listener, admin_listener, node, &config);
        let mut outside = Outside::begin(&self.options).await?;
        if !beginning::configuration(&config, &mut signals).await? {
            return self.end_before_the_beginning(outside, &config).await;
        }

        let access_log = AccessLog::stdout();
        configure_access_log(&access_log, &config);
        let certs = self.certificates(&config)?;
        let (datapath, kubelet) = self.datapath()?;
        let places = Arc::new(Mutex::new(Places::open(self.options.state_dir.join("places"))?));
        let (changed, changes) = tokio::sync::watch::channel(());
        let shared = Shared { places: places.clone(), changed, kubelet };
        let facts = Facts {
            node: self.options.node.as_str().into(),
            config: config.clone(),
            state: Arc::new(ArcSwap::from_pointee(NodeState::default())),
            certs,
            metrics: self.metrics.clone(),
            datapath: datapath.clone(),
            proxy: Arc::new(Mutex::new(None)),
            log: self.log.clone(),
        };
        let direct = Arc::default();
        scrape::register(&facts, Arc::clone(&direct), access_log.clone());
        beginning.goes_on(&facts);

        let running = match datapath {
            Some(datapath) => Some(self.start(datapath, &facts, &access_log, direct, shared)?),
            None => None,
        };
        let reconciler = running.as_ref().map(|running| running.events.clone());
        outside.start(&self.options, &facts, (places, changes), reconciler.clone())?;
        tokio::spawn(follow(config, access_log.clone(), reconciler));
        tracing::info!(node = self.options.node, admin = %admin_path.display(), "the agent runs");

        let mut running = running;
        tokio::select! {
            () = signals.next() => {}
            () = ended(running.as_mut()) => bail!("the reconciler panicked: ending, so that a new agent takes over"),
        }
        let removed = outside.is_removed().await;
        if removed {
            self.leave_for_good(running, outside, signals).await;
        } else {
            self.stop(running, &facts.proxy, signals).await;
            tracing::info!("the agent ends; what it pinned stays in force, `weft cleanup` removes it");
        }
        access_log.flush(FLUSH);
        // Nobody is asked any more.
        let _ = std::fs::remove_file(&admin_path);
        if removed {
            own_files::remove(&self.options);
        }
        Ok(())
    }

    /// Nothing was begun; what an earlier agent left stays in force, unless this one is removed for good.
    async fn end_before_the_beginning(&self, outside: Outside, config: &Published) -> anyhow::Result<()> {
        let removed = outside.is_removed().await;
        if removed {
            tracing::info!("this node is leaving the mesh: what an earlier agent left is removed");
            outside.undo_earlier(&self.options, config).await;
        }
        // Nobody is asked any more.
        let _ = std::fs::remove_file(self.options.admin_socket());
        if removed {
            own_files::remove(&self.options);
        }
        Ok(())
    }

    fn certificates(&self, config: &Published) -> anyhow::Result<CertStore> {
        let place = (self.options.node.as_str(), self.options.state_dir.as_path());
        self.options.certificates.store(config, place, self.options.source.client().is_some())
    }

    /// The data path; `None` in break-glass, where what an earlier agent left is removed (ruling 12).
    fn datapath(&self) -> anyhow::Result<(Option<SharedDatapath>, Option<Kubelet>)> {
        let in_cluster = self.options.source.client().is_some();
        let Resolved { config: settings, kubelet } =
            self.options.datapath.resolve(&self.options.node, in_cluster)?;
        if !self.options.break_glass {
            let datapath = Datapath::open(settings).context("the data path cannot be opened")?;
            return Ok((Some(Arc::new(Mutex::new(datapath))), kubelet));
        }
        tracing::error!(
            "BREAK-GLASS: nothing is captured on this node, no policy is enforced and nothing is encrypted"
        );
        let report = Datapath::cleanup(&settings, None).context("capture cannot be switched off")?;
        for failure in &report.failures {
            tracing::error!(failure, "something of an earlier agent could not be removed");
        }
        Ok((None, None))
    }

    /// Starts proxy and reconciler.
    fn start(
        &self,
        datapath: SharedDatapath,
        facts: &Facts,
        access_log: &AccessLog,
        direct: Arc<Mutex<DirectAccounting>>,
        shared: Shared,
    ) -> anyhow::Result<Running> {
        let (learned, learning) = tokio::sync::mpsc::unbounded_channel();
        let (onward, tuples, changes) = {
            let datapath = lock(&datapath);
            (datapath.onward(), datapath.tuples(), datapath.changes())
        };
        let context = Context {
            snapshot: facts.config.cell().clone(),
            certs: facts.certs.clone(),
            onward,
            tuples,
            metrics: self.metrics.clone(),
            access_log: access_log.clone(),
            learned,
        };
        let settings = ProxyConfig {
            workers: self.options.workers(),
            connections_per_pod: connections_per_pod(),
            ..ProxyConfig::default()
        };
        let proxy = Proxy::start(settings, context).context("the proxy cannot be started")?;
        *lock(&facts.proxy) = Some(Arc::new(proxy));
        let flow_events = lock(&datapath).take_events().context("events of direct flows cannot be read")?;
        let cuts = Arc::new(Cuts::default());
        if let Some(flow_events) = flow_events {
            let (config, cuts, access_log) = (facts.config.clone(), cuts.clone(), access_log.clone());
            let work = move || log_direct_flows(flow_events, &config, &cuts, &access_log);
            std::thread::Builder::new().name("flow-log".into()).spawn(work)?;
        }
        let node = Node {
            config: facts.config.clone(),
            datapath,
            proxy: facts.proxy.clone(),
            certs: facts.certs.clone(),
            metrics: self.metrics.clone(),
            access_log: access_log.clone(),
            direct,
            cuts,
            flow_events: false,
            state: facts.state.clone(),
            changed: shared.changed,
            places: shared.places,
            kubelet: shared.kubelet,
            farewell: None,
            pods: Pods::default(),
            learned: LearnedPorts::default(),
            older: Older::default(),
            clocks: Clocks::new(Instant::now()),
        };
        let (events, received) = channel();
        let (alive, ended) = oneshot::channel();
        std::thread::Builder::new().name("node".into()).spawn(move || {
            // Dropped when the thread ends, however that comes about.
            let _alive: oneshot::Sender<()> = alive;
            node.run(&received);
        })?;
        tokio::spawn(forward_learned(learning, events.clone()));
        watch_namespaces(changes, events.clone())?;
        Ok(Running { events, ended })
    }

    /// The agent is taken out of the cluster: the node is to be as it was before it came. A second signal hurries.
    async fn leave_for_good(&self, running: Option<Running>, mut outside: Outside, mut signals: Signals) {
        /// The kubelet kills after its grace period; without open connections all is done long before.
        const LIMIT: Duration = Duration::from_secs(15);
        tracing::info!("the agent is being removed from this node: all pods leave the mesh");
        outside.remove_plugin();
        if let Some(running) = running {
            let until = Instant::now() + self.options.drain().min(LIMIT);
            let (done, report) = oneshot::channel();
            // A reconciler that has ended does not answer.
            let _ = running.events.send(Event::Uninstall(Farewell { until, done }));
            tokio::select! {
                report = report => match report {
                    Ok(report) => outside::tell(&report),
                    Err(_) => tracing::error!("the reconciler has ended; run `weft cleanup` on the node"),
                },
                () = signals.next() => tracing::warn!("ending at once; run `weft cleanup` on the node"),
            }
        }
        outside.remove_annotations().await;
    }

    /// The first signal drains, the second one cuts.
    async fn stop(&self, running: Option<Running>, proxy: &SharedProxy, mut signals: Signals) {
        let limit = self.options.drain();
        tracing::info!(seconds = limit.as_secs(), "stopping: connections may end; signal again to stop now");
        let Some(running) = running else { return };
        // A reconciler that has ended needs no telling.
        let _ = running.events.send(Event::Stop);
        // It stays where the reconciler finds it: what policy revokes meanwhile ends.
        let draining = lock(proxy).clone();
        if let Some(proxy) = draining {
            tokio::select! {
                () = proxy.drain(limit) => {}
                () = signals.next() => tracing::info!("stopping now"),
            }
        }
    }
}

struct Running {
    events: Sender<Event>,
    ended: oneshot::Receiver<()>,
}

/// Waits for the reconciler's end; for ever, where there is none.
async fn ended(running: Option<&mut Running>) {
    match running {
        Some(running) => drop((&mut running.ended).await),
        None => std::future::pending().await,
    }
}

fn configure_access_log(access_log: &AccessLog, config: &Published) {
    let snapshot = config.snapshot();
    let mesh = snapshot.mesh();
    let format = if mesh.access_log_json { AccessLogFormat::Json } else { AccessLogFormat::Text };
    access_log.configure(mesh.access_log, format);
}

/// Tells everybody of a new snapshot.
async fn follow(config: Published, access_log: AccessLog, reconciler: Option<Sender<Event>>) {
    let mut revisions = config.subscribe();
    let trust_domain = config.snapshot().mesh().trust_domain.clone();
    let mut told = trust_domain.clone();
    while revisions.changed().await.is_ok() {
        configure_access_log(&access_log, &config);
        let wanted = config.snapshot().mesh().trust_domain.clone();
        if wanted != trust_domain && wanted != told {
            tracing::error!(
                %wanted, in_force = %trust_domain,
                "MeshConfig names another trust domain: certificates keep the old one until controller and agents are started again"
            );
        }
        told = wanted;
        if let Some(reconciler) = &reconciler
            && reconciler.send(Event::Config).is_err()
        {
            return;
        }
    }
}

async fn forward_learned(mut learning: UnboundedReceiver<(NamespacedName, u16)>, reconciler: Sender<Event>) {
    while let Some((pod, port)) = learning.recv().await {
        tracing::debug!(%pod, port, "an undeclared port does not speak HTTP: it may go direct");
        if reconciler.send(Event::Learned(pod, port)).is_err() {
            return;
        }
    }
}

/// Tells the reconciler of changes in pods' namespaces, on a thread of its own that ends with the process.
fn watch_namespaces(changes: NamespaceChanges, reconciler: Sender<Event>) -> std::io::Result<()> {
    /// A pod that takes its rules out again and again occupies no more of the agent than this allows.
    const PAUSE: Duration = Duration::from_millis(50);
    let watch = move || {
        while changes.wait().is_ok() && reconciler.send(Event::Namespaces).is_ok() {
            std::thread::sleep(PAUSE);
        }
    };
    std::thread::Builder::new().name("namespaces".into()).spawn(watch).map(drop)
}

/// Writes the access log of direct flows, on a thread of its own that ends with the process.
fn log_direct_flows(mut flow_events: FlowEvents, config: &Published, cuts: &Cuts, access_log: &AccessLog) {
    use rustix::event::{PollFd, PollFlags, poll};

    loop {
        let polled = poll(&mut [PollFd::new(&flow_events, PollFlags::IN)], None);
        match polled {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "direct flows are not in the access log any more"),
        }
        let snapshot = config.snapshot();
        while let Some(event) = flow_events.next() {
            direct_metrics::log_event(&event, &snapshot, cuts, access_log);
        }
    }
}

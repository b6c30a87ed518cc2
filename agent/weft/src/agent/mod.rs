//! `weft agent`: everything wired together, top to bottom.

mod admin;
mod beginning;
mod certificates;
mod cgroups;
pub(crate) mod cni;
pub(crate) mod datapath_options;
mod direct_metrics;
mod doors;
mod ending;
pub(crate) mod exposition;
pub(crate) mod handover;
pub(crate) mod http;
mod node;
mod older;
mod options;
mod outside;
pub(crate) mod own_files;
mod place;
mod places;
mod plan;
mod pods_api;
mod private_socket;
mod scrape;
mod standing;
mod starting;

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use weft_control::writer::Published;
use weft_core::resource::NamespacedName;
use weft_identity::CertStore;
use weft_kernel::{Datapath, Listeners};
use weft_telemetry::{AccessLog, AccessLogFormat, Metrics};

use self::admin::Facts;
use self::beginning::Beginning;
use self::cgroups::Kubelet;
use self::datapath_options::Resolved;
use self::doors::Doors;
use self::ending::End;
use self::handover::{Keeper, Seat};
use self::node::{Event, NodeState, SharedDatapath};
pub(crate) use self::options::Options;
use self::outside::{Outside, Shared};
use self::place::Place;
use self::places::Places;
use self::standing::Standing;
use crate::config::Purpose;
use crate::controller::make_private_directory;
use crate::logging::{self, LogLevel};
use crate::memory;
use crate::shutdown::Signals;

/// How long the end may take once connections are drained.
const FLUSH: Duration = Duration::from_secs(2);

/// Runs until a signal asks for the end.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    let (log, _last_words) = logging::start(&options.log_level, options.log_format)?;
    let metrics = Metrics::new();
    hook_panics(metrics.clone());
    raise_descriptor_limit();
    make_private_directory(&options.state_dir)?;
    let seat = Seat::find(&options.state_dir)?;
    let source = options.source.start(&options.node, Purpose::Node)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Agent { options, log, metrics }.run(source.published().clone(), seat))
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
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of descriptors could not be raised");
    }
}

struct Agent {
    options: Options,
    log: LogLevel,
    metrics: Metrics,
}

impl Agent {
    async fn run(self, config: Published, seat: Seat) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        let is_occupied = matches!(seat, Seat::Occupied);
        let beginning = Beginning::new(&self.options.node, &config);
        let mut doors = Doors::open(&self.options, beginning, is_occupied).await?;
        let mut outside = Outside::begin(&self.options).await?;
        if !beginning::configuration(&config, &mut signals).await? {
            if is_occupied {
                // The agent that serves this node does what is to be done.
                return Ok(());
            }
            return self.end_before_the_beginning(outside, doors, &config).await;
        }

        let access_log = AccessLog::stdout();
        configure_access_log(&access_log, &config);
        let certs = self.certificates(&config)?;
        let Some(mut place) = self.take_place(seat, &certs, &config, &mut signals).await? else {
            return Ok(());
        };
        let (keeper, held) = Keeper::meet(self.options.holder_socket.clone());
        let (datapath, kubelet) = self.datapath(&mut place, held).await?;
        let places = Arc::new(Mutex::new(Places::open(self.options.state_dir.join("places"))?));
        let (changed, changes) = tokio::sync::watch::channel(());
        let shared = Shared { places: places.clone(), changed, kubelet, keeper };
        let facts = Facts {
            node: self.options.node.as_str().into(),
            config: config.clone(),
            state: Arc::new(ArcSwap::from_pointee(NodeState::default())),
            certs,
            metrics: self.metrics.clone(),
            datapath: datapath.clone(),
            proxy: Arc::new(Mutex::new(None)),
            log: self.log.clone(),
            standing: Standing::default(),
        };
        let direct = Arc::default();
        scrape::register(&facts, Arc::clone(&direct), access_log.clone());
        if !is_occupied {
            doors.goes_on(&facts);
        }

        let mut running = match datapath {
            Some(datapath) => Some(self.start(datapath, &facts, &access_log, direct, shared)?),
            None => None,
        };
        let reconciler = running.as_ref().map(|running| running.events.clone());
        tokio::spawn(follow(config, access_log.clone(), reconciler.clone()));
        place.commit(running.as_mut(), &facts.standing).await?;
        doors.open_rest().await?;
        if is_occupied {
            doors.goes_on(&facts);
        }
        outside.start(&self.options, &facts, (places, changes), reconciler.clone())?;
        let retired = place.offer(&self.options, reconciler.clone())?;
        tracing::info!(node = self.options.node, admin = %self.options.admin_socket().display(), "the agent runs");
        memory::give_back_start();

        let (limit, is_pod) = (self.options.drain(), self.is_pod());
        let (proxy, standing) = (facts.proxy.clone(), facts.standing.clone());
        let end = End { reconciler, proxy, outside, doors, signals, retired, standing, limit, is_pod };
        let removed = end.wait(running).await?;
        access_log.flush(FLUSH);
        if removed {
            own_files::remove(&self.options);
        }
        Ok(())
    }

    /// Nothing was begun; what an earlier agent left stays in force, unless this one is removed for good.
    async fn end_before_the_beginning(
        &self,
        outside: Outside,
        doors: Doors,
        config: &Published,
    ) -> anyhow::Result<()> {
        let removed = outside.is_removed().await;
        if removed {
            tracing::info!("this node is leaving the mesh: what an earlier agent left is removed");
            outside.undo_earlier(&self.options, config).await;
        }
        // Nobody is asked any more.
        drop(doors);
        if removed {
            own_files::remove(&self.options);
        }
        Ok(())
    }

    /// Whether the kubelet decides about its life.
    fn is_pod(&self) -> bool {
        self.options.source.client().is_some() && std::env::var_os("POD_NAME").is_some()
    }

    fn certificates(&self, config: &Published) -> anyhow::Result<CertStore> {
        let place = (self.options.node.as_str(), self.options.state_dir.as_path());
        self.options.certificates.store(config, place, self.options.source.client().is_some())
    }

    /// The data path; `None` in break-glass, where what an earlier agent left is removed (ruling 12).
    /// `held` are sockets that nobody accepts from at the moment.
    async fn datapath(
        &self,
        place: &mut Place,
        held: Vec<(NamespacedName, Listeners)>,
    ) -> anyhow::Result<(Option<SharedDatapath>, Option<Kubelet>)> {
        let in_cluster = self.options.source.client().is_some();
        let Resolved { config: settings, kubelet } =
            self.options.datapath.resolve(&self.options.node, in_cluster)?;
        let inheritance = place.inheritance(held);
        if !self.options.break_glass {
            let datapath =
                Datapath::inherit(settings, inheritance).context("the data path cannot be opened")?;
            let earlier = admin::earlier_programs(&datapath);
            if !earlier.is_empty() {
                tracing::warn!(
                    programs = earlier.join(", "),
                    "others see the connections of pods first: see `weft check`"
                );
            }
            return Ok((Some(Arc::new(Mutex::new(datapath))), kubelet));
        }
        tracing::error!(
            "BREAK-GLASS: nothing is captured on this node, no policy is enforced and nothing is encrypted"
        );
        // Pins that are still in use are not removed.
        drop(inheritance);
        place.commit(None, &Standing::default()).await?;
        let report = Datapath::cleanup(&settings, None).context("capture cannot be switched off")?;
        for failure in &report.failures {
            tracing::error!(failure, "something of an earlier agent could not be removed");
        }
        Ok((None, None))
    }
}

fn configure_access_log(access_log: &AccessLog, config: &Published) {
    let snapshot = config.snapshot();
    let mesh = snapshot.mesh();
    let format = match (&mesh.access_log_format, mesh.access_log_json) {
        (Some(format), _) => AccessLogFormat::Custom(format.clone()),
        (None, true) => AccessLogFormat::Json,
        (None, false) => AccessLogFormat::Text,
    };
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

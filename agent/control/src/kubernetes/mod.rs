//! The Kubernetes source: watches of the API server.
//!
//! - `client` finds the API server, `api` asks it, `wire` reads its answers.
//! - `kinds` says what is wanted, `discovery` asks what of it exists, `manager` starts a `watch` for each kind.
//! - `store` turns what the watches see into changes, `contact` notes when the server was last heard of.
//!
//! All of it runs on one thread. While the API server is away, forbids a kind or talks nonsense, what was read
//! last stays in force, and the status says how old that is.

mod api;
mod backoff;
mod client;
mod contact;
mod discovery;
mod entries;
mod findings;
mod kinds;
mod manager;
mod once;
mod overlay;
mod store;
mod watch;
mod wire;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::mpsc::SyncSender;

use kube::Client;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch as latest};
use weft_core::compile::CompileOptions;

use crate::handle::Handle;
use crate::writer::{self, Update, Writer, WriterError};
pub use client::{ClientError, ClientOptions, client};
pub use contact::{Freshness, KindFreshness};
use manager::Manager;
pub use once::{LoadError, load, load_over};
use store::Store;

/// What to watch, and where.
#[derive(Debug, Clone)]
pub struct KubernetesOptions {
    /// How to find the API server.
    pub client: ClientOptions,
    /// Whether kinds that the mesh only validates are watched as well, for their findings (controller).
    pub validated_kinds: bool,
    /// Whether lists are asked for as streams, with pages as the second choice.
    pub streaming_lists: bool,
}

impl Default for KubernetesOptions {
    fn default() -> Self {
        Self { client: ClientOptions::default(), validated_kinds: false, streaming_lists: true }
    }
}

/// The source could not begin. That the API server is away is no such error.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no way to the API server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No thread could be started.
    #[error("the thread that watches the API server could not be started; check the limit of processes")]
    Thread(#[source] io::Error),
    /// The writer could not begin.
    #[error(transparent)]
    Writer(#[from] WriterError),
    /// The thread ended at once.
    #[error("the watches of the API server could not begin; this is a fault of Weft, please report it")]
    Stopped,
}

/// What wakes the source from outside.
#[derive(Debug)]
enum Wake {
    /// The compiler needs everything again.
    Resync,
    Stop,
}

/// Begins to watch, and returns at once: [`writer::Status::complete`] tells when everything was read.
///
/// # Errors
///
/// When no API server is configured. Whether it answers shows in the status.
pub fn start(options: KubernetesOptions, compile: CompileOptions) -> Result<Handle, StartError> {
    let (wake, woken) = unbounded_channel();
    let resync = wake.clone();
    // A source that is gone needs no resync.
    let resync = Box::new(move || drop(resync.send(Wake::Resync)));
    let Writer { updates, published, thread } = writer::start("kubernetes", compile, resync)?;
    let (begun, beginning) = std::sync::mpsc::channel();
    let run = move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let local = tokio::task::LocalSet::new();
            runtime.block_on(local.run_until(run(options, updates, woken, begun)));
        }
        // Whoever waits for the beginning learns nothing more.
        Err(error) => drop(begun.send(Err(StartError::Thread(error)))),
    };
    let watcher = std::thread::Builder::new().name("weft-config".to_owned());
    let watcher = watcher.spawn(run).map_err(StartError::Thread)?;
    let handle = Handle::new(published, stop(wake), vec![watcher, thread]);
    beginning.recv().map_err(|_| StartError::Stopped)??;
    Ok(handle)
}

fn stop(wake: UnboundedSender<Wake>) -> Box<dyn Fn() -> bool + Send + Sync> {
    Box::new(move || wake.send(Wake::Stop).is_ok())
}

/// What all tasks share.
struct Shared {
    client: Client,
    store: RefCell<Store>,
    /// Something is to be handed over.
    changed: Notify,
    /// The API server is well again.
    reachable: Notify,
    /// Kinds may have come or gone.
    rediscover: Notify,
    /// Everything is to be listed again.
    anew: latest::Sender<()>,
    streaming: bool,
    validated_kinds: bool,
}

impl Shared {
    /// Whether a definition may be one of a kind that is wanted: its name ends in its group.
    fn concerns(&self, definition: &str) -> bool {
        let group = definition.split_once('.').map_or("", |(_, group)| group);
        kinds::custom_kinds(self.validated_kinds).any(|wanted| wanted.group == group)
    }
}

type Begun = std::sync::mpsc::Sender<Result<(), StartError>>;

async fn run(
    options: KubernetesOptions,
    updates: SyncSender<Update>,
    mut woken: UnboundedReceiver<Wake>,
    begun: Begun,
) {
    let client = match client::without_retries(&options.client).await {
        Ok(client) => client,
        Err(error) => return drop(begun.send(Err(error.into()))),
    };
    let shared = Rc::new(Shared {
        client,
        store: RefCell::new(Store::new(Store::decoder(), Freshness::default(), updates)),
        changed: Notify::new(),
        reachable: Notify::new(),
        rediscover: Notify::new(),
        anew: latest::Sender::new(()),
        streaming: options.streaming_lists,
        validated_kinds: options.validated_kinds,
    });
    // From here on the status says what is known.
    shared.store.borrow_mut().flush();
    if begun.send(Ok(())).is_err() {
        return;
    }
    let mut manager = Manager::new(shared.clone());
    let managing = manager.run();
    let handing = manager::hand_over(shared.clone());
    tokio::pin!(managing, handing);
    loop {
        tokio::select! {
            () = &mut managing => return,
            () = &mut handing => return,
            wake = woken.recv() => match wake {
                Some(Wake::Resync) => {
                    shared.store.borrow_mut().begin_anew();
                    shared.anew.send_replace(());
                }
                Some(Wake::Stop) | None => return,
            },
        }
    }
}

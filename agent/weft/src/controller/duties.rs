//! What the controller does for users' objects on a cluster: one of several is elected, writes statuses and
//! registers the webhook; all of them validate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::Api;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_control::writer::Published;
use weft_identity::{LiveCa, ServingTls};

use super::counters::Counters;
use super::lease::{self, Candidate, Leadership, Terms};
use super::status::{Mode, Writer, WriterOptions};
use super::{MANAGER, admission};

/// How long the Lease may take to be given back; then it runs out by itself.
const RELEASE: Duration = Duration::from_secs(5);

/// Settings of the duties.
#[derive(Debug, Clone, Args)]
pub(super) struct DutyOptions {
    /// What is written into the status of Istio's objects.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    status: Mode,
    /// After how many seconds without a sign of life another controller takes over; at least 3.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    lease_duration: u64,
    /// Address at which the API server asks whether an object is valid.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15017")]
    admission_addr: SocketAddr,
    /// Name of the ValidatingWebhookConfiguration that is told of our certificate's root.
    #[arg(long, value_name = "NAME", default_value = "weft-validation")]
    admission_config: String,
    /// Do not validate objects before they are stored.
    #[arg(long)]
    no_admission: bool,
}

/// What the duties need of the rest of the controller.
pub(super) struct Surroundings {
    pub(super) client: Client,
    /// Where the Lease is.
    pub(super) namespace: String,
    pub(super) published: Published,
    pub(super) ca: Arc<LiveCa>,
    /// DNS names under which the API server asks.
    pub(super) names: Vec<String>,
    pub(super) counters: Arc<Counters>,
}

/// The duties while they are being done.
pub(super) struct Duties {
    leadership: Leadership,
    /// Tasks that may write only while we lead.
    writers: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    election: JoinHandle<Candidate>,
    stop: oneshot::Sender<()>,
}

impl Duties {
    /// Begins them.
    ///
    /// # Errors
    /// The address cannot be bound, or the CA cannot issue a certificate for it.
    pub(super) async fn start(options: DutyOptions, around: Surroundings) -> anyhow::Result<Self> {
        let Surroundings { client, namespace, published, ca, names, counters } = around;
        let terms = Terms::new(Duration::from_secs(options.lease_duration));
        let identity = lease::identity();
        let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
        let (mut candidate, leadership) = Candidate::new(leases, MANAGER, identity.clone(), terms);
        let mut writers = Vec::new();
        let mut others = Vec::new();
        if !options.no_admission {
            let (address, name) = (options.admission_addr, options.admission_config);
            others.extend(listen(address, &ca, names, counters.clone()).await?);
            let roots = ca.subscribe();
            let kept = admission::keep_registered(client.clone(), name, roots, leadership.clone());
            writers.push(tokio::spawn(kept));
        }
        let mode = options.status;
        let of_writer =
            WriterOptions { mode, client, published, leadership: leadership.clone(), counters, identity };
        writers.push(tokio::spawn(Writer::new(of_writer).run()));
        let (stop, stopped) = oneshot::channel::<()>();
        let election = tokio::spawn(async move {
            // The sender is dropped or used: both mean the end.
            candidate.run(async move { drop(stopped.await) }).await;
            candidate
        });
        Ok(Self { leadership, writers, others, election, stop })
    }

    /// Whether this controller leads, for others who have something to write.
    pub(super) fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Ends them: first all writing, then the leadership.
    pub(super) async fn stop(self) {
        for task in self.writers.into_iter().chain(self.others) {
            task.abort();
            // Aborted, or ended before.
            let _ = task.await;
        }
        // An election that has ended listens no more.
        let _ = self.stop.send(());
        if let Ok(candidate) = self.election.await
            && tokio::time::timeout(RELEASE, candidate.release()).await.is_err()
        {
            tracing::debug!("the Lease could not be given back in time");
        }
    }
}

async fn listen(
    address: SocketAddr,
    ca: &Arc<LiveCa>,
    names: Vec<String>,
    counters: Arc<Counters>,
) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let tls = ServingTls::new(ca.clone(), names, &["http/1.1"])
        .context("there is no certificate for the validation of objects")?;
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("the address {address} for the validation of objects cannot be used; see --admission-addr")
    })?;
    let fresh = tls.clone();
    let renewal = tokio::spawn(async move { fresh.keep_fresh().await });
    Ok(vec![renewal, tokio::spawn(admission::serve(listener, tls, counters))])
}

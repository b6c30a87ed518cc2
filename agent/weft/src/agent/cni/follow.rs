//! Keeps the plugin installed and its rules true, while the agent runs.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use weft_cni::rules::{Rules, Workload};
use weft_control::writer::Published;
use weft_core::Snapshot;

use super::installer::Installation;

/// How often the node is looked at when nothing reports a change.
const LOOK: Duration = Duration::from_secs(30);
/// Another plugin's installer writes several files in a row.
const SETTLE: Duration = Duration::from_millis(50);

/// Ends [`follow`].
pub(crate) type Stop = oneshot::Receiver<()>;

/// Installs the plugin, again and again where somebody removes it, and writes its rules, until told to stop.
pub(crate) async fn follow(installation: Installation, config: Published, mut stop: Stop) {
    let (changed, mut changes) = mpsc::channel(1);
    let watcher = watch(&installation.conf_dir, changed);
    let mut revisions = config.subscribe();
    let mut written = None;
    let mut told = None;
    let mut look_at = Instant::now();
    loop {
        let rules = rules(&config.snapshot());
        if written.as_ref() != Some(&rules) {
            match installation.write_rules(&rules) {
                Ok(()) => written = Some(rules),
                Err(error) => tell(&mut told, &error),
            }
        }
        if look_at <= Instant::now() {
            match installation.install() {
                Ok(()) => told = None,
                Err(error) => tell(&mut told, &error),
            }
            look_at = Instant::now() + LOOK;
        }
        tokio::select! {
            // What was taken off must not come back.
            biased;
            _ = &mut stop => break,
            // The writer of the configuration has ended, and so will we.
            changed = revisions.changed() => if changed.is_err() { break },
            Some(()) = changes.recv() => look_at = look_at.min(Instant::now() + SETTLE),
            () = tokio::time::sleep_until(look_at) => {}
        }
    }
    drop(watcher);
}

/// Each reason once.
fn tell(told: &mut Option<String>, error: &anyhow::Error) {
    let reason = format!("{error:#}");
    if told.as_ref() != Some(&reason) {
        tracing::warn!(
            reason,
            "weft-cni is not (completely) installed: new pods may begin before they are enrolled"
        );
    }
    *told = Some(reason);
}

fn watch(directory: &Path, changed: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    // A full channel has the news already.
    let notice = move |_| {
        let _ = changed.try_send(());
    };
    let watcher = notify::recommended_watcher(notice).and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    match watcher {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::info!(directory = %directory.display(), %error, "the CNI configuration is looked at from time to time only");
            None
        }
    }
}

/// Who must not start without an agent, as far as names tell.
pub(crate) fn rules(snapshot: &Snapshot) -> Rules {
    let opted = snapshot.opted_namespaces();
    let by_label = snapshot.local().iter().map(|local| &local.workload);
    let by_label = by_label.filter(|pod| pod.in_mesh() && !opted.contains(&pod.key.namespace));
    let workloads: BTreeSet<_> = by_label
        .map(|pod| Workload {
            namespace: pod.key.namespace.to_string(),
            name: pod.labels.workload.to_string(),
        })
        .collect();
    Rules { namespaces: opted.iter().map(ToString::to_string).collect(), workloads }
}

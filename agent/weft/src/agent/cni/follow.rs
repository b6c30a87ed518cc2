//! Keeps the plugin installed and its rules true, while the agent runs.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
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
    let notice = move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| is_change(&event.kind)) {
            // A full channel has the news already.
            let _ = changed.try_send(());
        }
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

/// Reading is none: we read ourselves whenever something changes, and would never come to rest.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_reads_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("10-lab.conflist");
        std::fs::write(&list, "{}").unwrap();
        let (changed, mut changes) = mpsc::channel(100);
        let watcher = watch(dir.path(), changed).unwrap();
        std::fs::read(&list).unwrap();
        std::fs::read_dir(dir.path()).unwrap().for_each(drop);
        // Events come in order: what reading caused would come before this.
        std::fs::remove_file(&list).unwrap();
        let limit = Duration::from_secs(10);
        assert_eq!(tokio::time::timeout(limit, changes.recv()).await, Ok(Some(())));
        drop(watcher);
        assert_eq!(changes.recv().await, None, "there was one change");
    }
}

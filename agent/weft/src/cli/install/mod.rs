//! `weft install` and `weft uninstall`: what `kubectl apply -f deploy/weft.yaml` does, waited for, and taken back in
//! the order that un-enrols pods first.

mod apply;
mod manifest;
mod objects;
mod remove;
mod rollout;

use std::time::Duration;

use clap::{Args, ValueEnum};

use self::apply::Applied;
use self::manifest::{Manifest, Settings};
use self::objects::Object;
use self::rollout::Rollout;
use super::Ended;
use super::cluster::{Cluster, ClusterOptions};
use crate::output;

/// Who is named as the owner of the fields that an installation sets.
const MANAGER: &str = "weft-install";

#[derive(Debug, Args)]
pub(super) struct InstallOptions {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    settings: Settings,
    /// Install the definitions of Istio's kinds too; those that exist are left alone.
    #[arg(long)]
    crds: bool,
    /// Ask the API server what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the manifest instead, for kubectl or a repository; no cluster is needed.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<ManifestFormat>,
    /// Do not wait until agents and controller are ready.
    #[arg(long)]
    no_wait: bool,
    /// How many seconds to wait for them.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

#[derive(Debug, Args)]
pub(super) struct UninstallOptions {
    #[command(flatten)]
    cluster: ClusterOptions,
    /// Remove the CA's key as well: a later installation has a new root, which running applications that trust the
    /// old one do not know.
    #[arg(long)]
    purge: bool,
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// How many seconds the agents may take to let go of their pods.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

/// How the manifest is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ManifestFormat {
    /// With all comments.
    Yaml,
}

/// Installs, or says what that would do.
pub(super) fn install(options: &InstallOptions) -> anyhow::Result<Ended> {
    let manifest = Manifest::new(&options.settings)?;
    if options.output == Some(ManifestFormat::Yaml) {
        return output::write(manifest.text(options.crds).as_bytes()).map(|()| Ended::Fine);
    }
    let objects = manifest.objects()?;
    let definitions = if options.crds { manifest::definitions()? } else { Vec::new() };
    let cluster = options.cluster.connect()?;
    cluster.block_on(apply_all(&cluster, &definitions, &objects, options.dry_run))?;
    if options.dry_run || options.no_wait {
        return Ok(Ended::Fine);
    }
    wait(&cluster, &objects, Duration::from_secs(options.timeout))
}

async fn apply_all(
    cluster: &Cluster,
    definitions: &[Object],
    objects: &[Object],
    dry_run: bool,
) -> anyhow::Result<()> {
    for definition in definitions {
        tell(apply::create(cluster.client(), definition, dry_run).await?, dry_run, definition)?;
    }
    for object in objects {
        // Settings of the mesh belong to whoever changed them.
        let applied = match object.is_mesh_config() {
            true => apply::create(cluster.client(), object, dry_run).await?,
            false => apply::apply(cluster.client(), object, dry_run).await?,
        };
        tell(applied, dry_run, object)?;
    }
    Ok(())
}

fn tell(applied: Applied, dry_run: bool, object: &Object) -> anyhow::Result<()> {
    let word = match (applied, dry_run) {
        (Applied::Created, false) => "created",
        (Applied::Created, true) => "would be created",
        (Applied::Changed, false) => "changed",
        (Applied::Changed, true) => "would be changed",
        (Applied::Unchanged, _) => "unchanged",
        (Applied::Kept, _) => "left as it is",
    };
    output::write(format!("{object}: {word}\n").as_bytes())
}

/// Waits for the controller first: agents get their certificates from it.
fn wait(cluster: &Cluster, objects: &[Object], patience: Duration) -> anyhow::Result<Ended> {
    let deadline = std::time::Instant::now() + patience;
    for kind in ["Deployment", "DaemonSet"] {
        for object in objects.iter().filter(|object| object.kind() == kind) {
            let rollout = Rollout { client: cluster.client(), object, deadline };
            if let Some(reasons) = cluster.block_on(rollout.finish())? {
                output::write(format!("{object}: not ready after {} s\n", patience.as_secs()).as_bytes())?;
                for reason in reasons {
                    output::write(format!("  {reason}\n").as_bytes())?;
                }
                output::write(b"`weft check` says more.\n")?;
                return Ok(Ended::BadNews);
            }
        }
    }
    output::write(
        b"Weft is ready. Take a namespace into the mesh: kubectl label namespace NAME weft.dev/mesh=enabled\n",
    )?;
    Ok(Ended::Fine)
}

/// Uninstalls, or says what that would do.
pub(super) fn uninstall(options: &UninstallOptions) -> anyhow::Result<Ended> {
    let objects = Manifest::new(&Settings::default())?.objects()?;
    let cluster = options.cluster.connect()?;
    let removal = remove::Removal {
        client: cluster.client(),
        objects: &objects,
        dry_run: options.dry_run,
        purge: options.purge,
        patience: Duration::from_secs(options.timeout),
    };
    cluster.block_on(removal.run())
}

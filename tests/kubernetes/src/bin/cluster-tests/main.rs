//! Weft in a real cluster: two nodes, its own image, its own manifests. Run by `cargo xtask test-cluster`.
#![forbid(unsafe_code)]

mod steps;
mod suite;

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use weft_kubernetes_tests::cluster::world::{self, Inside};
use weft_kubernetes_tests::cluster::{CgroupLook, Cluster, ClusterOptions, Image, runc_without_limits};

use suite::Suite;

/// Image of the tests' own program and a shell.
const PEER_IMAGE: &str = "docker.io/weft-tests/peer:1";

#[derive(Debug, Parser)]
#[command(about = "Tests of Weft in a real cluster of two nodes")]
struct Args {
    /// Archive with the image of Weft.
    #[arg(long)]
    image: PathBuf,
    /// The manifest that installs Weft.
    #[arg(long)]
    manifest: PathBuf,
    /// `lab-peer`, linked statically.
    #[arg(long)]
    peer: PathBuf,
    /// Nodes that have cgroup2 and nothing else.
    #[arg(long)]
    cgroup2_only: bool,
    /// Start the cluster and wait for the end of standard input, instead of testing.
    #[arg(long)]
    hold: bool,
    /// Only steps whose name contains one of these.
    filters: Vec<String>,
}

fn main() -> ExitCode {
    let done = run();
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    runc_without_limits(&words)?;
    let args = Args::parse();
    match Inside::find() {
        Some(world) => inside(&world, &args),
        None => Ok(world::enter(&words)?.is_none_or(|status| status.success())),
    }
}

fn inside(world: &Inside, args: &Args) -> Result<bool> {
    let dir = world.dir();
    let manifest = std::fs::read_to_string(&args.manifest)
        .with_context(|| format!("{} cannot be read", args.manifest.display()))?;
    world.prepare()?;
    let busybox = PathBuf::from("/bin/busybox");
    let programs = [
        (args.peer.as_path(), "/bin/lab-peer"),
        (busybox.as_path(), "/bin/sh"),
        (busybox.as_path(), "/bin/sleep"),
    ];
    let peer = Image { tag: PEER_IMAGE, programs: &programs, command: &["/bin/sleep", "2147483647"] };
    let peer = peer.write(&dir)?;
    let options = ClusterOptions {
        nodes: ["one", "two"].map(str::to_owned).to_vec(),
        look: if args.cgroup2_only { CgroupLook::Cgroup2Only } else { CgroupLook::Machine },
        images: vec![args.image.clone(), peer],
    };
    let started = std::time::Instant::now();
    let cluster = Cluster::start(world, &options)?;
    println!("two nodes are ready after {:.1} s", started.elapsed().as_secs_f64());
    if args.hold {
        println!("KUBECONFIG={} {}", cluster.plane().kubeconfig().display(), world.programs().display());
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(true);
    }
    let mut suite = Suite::new(cluster, manifest, args.filters.clone());
    steps::run(&mut suite, options.look);
    Ok(suite.finish())
}

//! The mesh on one machine, shown on real traffic.

mod held;
mod report;
mod requests;
mod steps;
mod world;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{Output, build, setup};
pub(crate) use held::stage;
use report::Report;
use world::World;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How the steps are printed.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    /// Leave everything running until Ctrl-C, and say how to play with it.
    #[arg(long)]
    hold: bool,
    /// Programs that were built before, `target/debug` for example, instead of a release build.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// Shows the mesh; true when every step went as expected.
pub(crate) fn run(args: &DemoArgs) -> Result<bool> {
    setup::machine()?;
    let binaries = match &args.binaries {
        Some(built) => built.clone(),
        None => {
            eprintln!("Building (the first time takes minutes) …");
            build::release()?
        }
    };
    let mut report = Report::new(args.output);
    let mut world = World::new(binaries)?;
    steps::play(&mut world, &mut report);
    report.finish()?;
    if args.hold {
        world.hold();
    }
    Ok(report.all_good())
}

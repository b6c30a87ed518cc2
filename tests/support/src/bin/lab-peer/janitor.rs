//! Removal of a lab whose owner has died, and an owner to try it with.

use std::io::Read;

use anyhow::{Result, bail};
use clap::Args;
use weft_lab::{Lab, LabId, LabSpec, PodSpec, remove_everything};

#[derive(Debug, Args)]
pub(crate) struct JanitorArgs {
    /// Id of the lab.
    id: String,
}

pub(crate) fn run(args: &JanitorArgs) -> Result<()> {
    let Some(id) = LabId::parse(&args.id) else { bail!("{:?} is not the id of a lab", args.id) };
    // Ends when the owner closes it or dies.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let failures = remove_everything(&id);
    if !failures.is_empty() {
        eprintln!("lab {id}: {}", failures.join("; "));
    }
    Ok(())
}

/// Makes a lab with one pod in which a process runs, prints its id, and waits for the end of standard input.
pub(crate) fn own_a_lab() -> Result<()> {
    let lab = Lab::new(&LabSpec::new().node("a").pod(PodSpec::new("a", "default", "only")))?;
    let _server = lab.pod("default/only")?.serve(&["echo:7"])?;
    println!("{}", serde_json::json!({ "lab": lab.id().to_string() }));
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

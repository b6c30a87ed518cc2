//! Finds the kernel programs that are embedded in the agent.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs, io, process};

/// As new as the sources that `cargo xtask build-ebpf` last looked at.
const STAMP: &str = "stamp";
const SOURCES: [&str; 2] = ["../../ebpf/common/src", "../../ebpf/programs/src"];

fn main() {
    println!("cargo:rerun-if-env-changed=WEFT_EBPF_DIR");
    let given = env::var_os("WEFT_EBPF_DIR").map(PathBuf::from);
    if given.is_none() {
        refuse_outdated(&default_directory());
    }
    let directory = given.unwrap_or_else(default_directory);
    for (object, variable) in [("node", "WEFT_NODE_OBJECT"), ("steer", "WEFT_STEER_OBJECT")] {
        let path = directory.join(object);
        println!("cargo:rerun-if-changed={}", path.display());
        if !path.is_file() {
            refuse(&format!("The kernel programs are missing: {} does not exist.", path.display()));
        }
        println!("cargo:rustc-env={variable}={}", path.display());
    }
}

/// An agent with programs that are older than itself would find out at its start, on a node, by a map that differs.
fn refuse_outdated(directory: &Path) {
    let built = fs::metadata(directory.join(STAMP)).and_then(|stamp| stamp.modified());
    for sources in SOURCES.map(|sources| manifest().join(sources)) {
        println!("cargo:rerun-if-changed={}", sources.display());
        match (newest(&sources), &built) {
            (Ok(changed), Ok(built)) if changed <= *built => {}
            (Err(error), _) => refuse(&format!("{} cannot be read: {error}.", sources.display())),
            _ => refuse("The kernel programs are missing, or older than their sources."),
        }
    }
}

/// When a file below a directory was changed last.
fn newest(directory: &Path) -> io::Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let changed = match entry.file_type()?.is_dir() {
            true => self::newest(&entry.path())?,
            false => entry.metadata()?.modified()?,
        };
        newest = newest.max(changed);
    }
    Ok(newest)
}

fn refuse(why: &str) -> ! {
    eprintln!("{why} Run: cargo xtask build-ebpf");
    process::exit(1);
}

fn manifest() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default()
}

/// `ebpf` in the workspace's target directory, where `cargo xtask build-ebpf` puts the objects.
fn default_directory() -> PathBuf {
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest().join("../../target"), PathBuf::from);
    target.join("ebpf")
}

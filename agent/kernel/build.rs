//! Finds the kernel programs that are embedded in the agent.

use std::path::{Path, PathBuf};
use std::{env, process};

fn main() {
    println!("cargo:rerun-if-env-changed=WEFT_EBPF_DIR");
    let directory = env::var_os("WEFT_EBPF_DIR").map_or_else(default_directory, PathBuf::from);
    for (object, variable) in [("node", "WEFT_NODE_OBJECT"), ("steer", "WEFT_STEER_OBJECT")] {
        let path = directory.join(object);
        println!("cargo:rerun-if-changed={}", path.display());
        if !path.is_file() {
            eprintln!(
                "The kernel programs are missing: {} does not exist. Run: cargo xtask build-ebpf",
                path.display()
            );
            process::exit(1);
        }
        println!("cargo:rustc-env={variable}={}", path.display());
    }
}

/// `ebpf` in the workspace's target directory, where `cargo xtask build-ebpf` puts the objects.
fn default_directory() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(&manifest).join("../../target"), PathBuf::from);
    target.join("ebpf")
}

//! Everything that can be said about the code without running it.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::build::{cargo, cargo_command, root};
use crate::{setup, source_length};

type Check = fn() -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("format", format),
    ("clippy", clippy),
    ("documentation", documentation),
    ("core is pure", core_purity),
    ("one TLS library", tls_libraries),
    ("lengths", lengths),
    ("cargo deny", deny),
];

/// Runs all checks, also after one has failed; true when none has.
pub(crate) fn run() -> Result<bool> {
    let mut good = true;
    for (name, check) in CHECKS {
        let started = Instant::now();
        let outcome = check();
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => eprintln!("lint: {name}: fine ({seconds:.1} s)"),
            Err(e) => {
                eprintln!("lint: {name}: FAILED ({seconds:.1} s): {e:#}");
                good = false;
            }
        }
    }
    Ok(good)
}

fn format() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])
}

fn clippy() -> Result<()> {
    cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
}

fn documentation() -> Result<()> {
    let mut command = cargo_command(&[
        "doc",
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--locked",
    ])?;
    let status = command.env("RUSTDOCFLAGS", "-D warnings").stdout(std::io::stderr()).status()?;
    if !status.success() {
        bail!("`cargo doc` has warnings");
    }
    Ok(())
}

/// Names of the packages that cargo would compile for `package` (all of the workspace when empty).
fn compiled(package: &str) -> Result<Vec<String>> {
    let mut args = vec!["tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"];
    match package {
        "" => args.push("--workspace"),
        name => args.extend(["--package", name]),
    }
    let out = cargo_command(&args)?.stderr(Stdio::inherit()).output().context("cargo tree cannot be run")?;
    if !out.status.success() {
        bail!("`cargo tree` failed");
    }
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn forbid(package: &str, banned: &[&str], why: &str) -> Result<()> {
    let packages = compiled(package)?;
    let found: Vec<&str> = banned.iter().copied().filter(|name| packages.iter().any(|p| p == name)).collect();
    if !found.is_empty() {
        bail!("{} compiled: {why}; `cargo tree -i NAME` tells who wants it", found.join(", "));
    }
    Ok(())
}

fn core_purity() -> Result<()> {
    let banned =
        ["tokio", "rustls", "hyper", "h2", "kube", "aya", "rustix", "libc", "socket2", "tracing", "notify"];
    forbid(
        "weft-core",
        &banned,
        "weft-core decides and does nothing else, so no I/O, runtime or TLS belongs there",
    )
}

fn tls_libraries() -> Result<()> {
    let banned = ["ring", "openssl", "openssl-sys", "native-tls", "boring", "boring-sys"];
    forbid("", &banned, "rustls with aws-lc-rs is the only TLS and the only cryptography")
}

fn lengths() -> Result<()> {
    let findings = source_length::check(&root()?)?;
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    Ok(())
}

/// Licences, bans, sources and advisories. In CI a missing cargo-deny is installed, which takes minutes.
fn deny() -> Result<()> {
    let installed = setup::find("cargo-deny").is_some() || setup::succeeds("cargo", &["deny", "--version"]);
    if !installed {
        if std::env::var_os("CI").is_none() {
            println!("SKIPPED: cargo deny is not installed: cargo install cargo-deny --locked");
            return Ok(());
        }
        cargo(&["install", "--quiet", "cargo-deny", "--locked"])?;
    }
    cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"])?;
    advisories()
}

/// The advisories come from the network. Not to reach them says nothing about the code, so it is no failure,
/// but it is never silent.
fn advisories() -> Result<()> {
    if !setup::succeeds("cargo", &["deny", "--log-level", "off", "fetch", "db"]) {
        println!("SKIPPED: advisories: their database cannot be fetched: cargo deny check advisories");
        return Ok(());
    }
    cargo(&["deny", "--log-level", "error", "check", "advisories"])
}

//! Builds the kernel programs: `ebpf/programs` → `target/ebpf/{node,steer}`, and `balancer`, which only tests load.
//!
//! They need a compiler that knows the BPF target, which the workspace's pinned toolchain does not: a nightly
//! toolchain with `rust-src`, or Debian's `rustc-web` with its ready-made `core` for BPF. Either is used where
//! it is found; where neither is, the second is installed with `apt-get`, or the commands are printed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::setup::apt_install;

const TARGET: &str = "bpfel-unknown-none";
const OBJECTS: [&str; 3] = ["node", "steer", "balancer"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_COMPILER: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_LLVM: [&str; 4] = ["llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "^0.13";

/// Who compiles the programs.
enum Compiler {
    /// rustup's nightly, which builds `core` from `rust-src`.
    Nightly,
    /// Debian's `rustc-web`, which has `core` for BPF. The path is absolute, so that no `rust-toolchain.toml`
    /// applies.
    Debian,
}

/// Builds the objects; cargo decides what has to be compiled again. With `WEFT_EBPF_DEBUG_LOG` set, the
/// programs write a line per decision to the agent's log (level debug).
///
/// # Errors
/// The compiler or the linker is missing and cannot be installed (the text has the commands), or the build
/// fails.
pub(crate) fn build() -> Result<()> {
    let root = workspace_root()?;
    let compiler = find_or_install_compiler()?;
    let linker = find_or_install_linker()?;
    let target_dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let build_dir = target_dir.join("ebpf-build");
    let started = SystemTime::now();
    compile(&compiler, &linker, &root.join("ebpf/programs"), &build_dir)?;
    publish(&build_dir.join(TARGET).join("release"), &target_dir.join("ebpf"), started)
}

fn workspace_root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(Path::to_path_buf).context("xtask is not inside the workspace")
}

fn compile(compiler: &Compiler, linker: &Path, programs: &Path, build_dir: &Path) -> Result<()> {
    let mut cargo = match compiler {
        Compiler::Nightly => {
            let mut cargo = Command::new("rustup");
            cargo.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
            cargo
        }
        Compiler::Debian => {
            let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
            cargo.arg("build").env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
    };
    cargo.args(["--quiet", "--release", "--locked", "--target", TARGET, "--target-dir"]).arg(build_dir);
    if env::var_os("WEFT_EBPF_DEBUG_LOG").is_some() {
        cargo.args(["--features", "debug-log"]);
    }
    cargo.current_dir(programs).env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", rustflags(linker));
    run(&mut cargo, "build the kernel programs")
}

/// Flags of `rustc`, separated as `CARGO_ENCODED_RUSTFLAGS` wants them.
fn rustflags(linker: &Path) -> String {
    // Which registers hold arguments depends on the machine, and the bindings follow this flag.
    let arch = env::consts::ARCH;
    [
        format!("-Clinker={}", linker.display()),
        "-Cdebuginfo=2".to_owned(),
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Clink-arg=--btf".to_owned(),
    ]
    .join("\u{1f}")
}

/// Copies the objects to where the agent's build looks for them; leaves equal files alone, so that the agent
/// is not compiled again. `as_of` is when the sources were looked at.
fn publish(from: &Path, to: &Path, as_of: SystemTime) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for object in OBJECTS {
        let built = from.join(object);
        let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
        let wanted = to.join(object);
        if fs::read(&wanted).is_ok_and(|present| present == bytes) {
            continue;
        }
        // Renamed into place: a build of the agent that runs now sees the old object or the new one.
        let fresh = to.join(format!("{object}.new"));
        fs::write(&fresh, bytes).with_context(|| format!("cannot write {}", fresh.display()))?;
        fs::rename(&fresh, &wanted).with_context(|| format!("cannot write {}", wanted.display()))?;
    }
    // Whether or not the objects changed, they are what their sources make: the agent's build looks at this.
    let stamp = to.join("stamp");
    let dated = fs::File::create(&stamp).and_then(|file| file.set_modified(as_of));
    dated.with_context(|| format!("cannot write {}", stamp.display()))
}

fn find_or_install_compiler() -> Result<Compiler> {
    if nightly_has_source() {
        return Ok(Compiler::Nightly);
    }
    if !debian_has_bpf() {
        install(&DEBIAN_COMPILER).with_context(|| {
            "No compiler knows the BPF target. Install one of:\n  \
             rustup toolchain install nightly --component rust-src\n  \
             apt-get install rustc-web libstd-rust-web-dev-bpf"
        })?;
        ensure!(
            debian_has_bpf(),
            "{DEBIAN_RUSTC} has no standard library for {TARGET} after its installation"
        );
    }
    Ok(Compiler::Debian)
}

fn nightly_has_source() -> bool {
    let sysroot = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
    sysroot.is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir())
}

fn debian_has_bpf() -> bool {
    let sysroot = output(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]));
    sysroot.is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib").join(TARGET).is_dir())
}

fn find_or_install_linker() -> Result<PathBuf> {
    if let Some(linker) = find_linker() {
        return Ok(linker);
    }
    if !Path::new(LLVM_PREFIX).join("include/llvm-c").is_dir() {
        install(&DEBIAN_LLVM).with_context(|| {
            format!(
                "bpf-linker is missing, and so is the LLVM that it is built with. Run:\n  \
                 apt-get install {}\n  {}",
                DEBIAN_LLVM.join(" "),
                linker_command_text()
            )
        })?;
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"]);
    cargo.args(["--no-default-features", "--features", "llvm-22"]);
    cargo.env("LLVM_PREFIX", LLVM_PREFIX).env("LLVM_SYS_221_PREFIX", LLVM_PREFIX);
    run(&mut cargo, "install bpf-linker")?;
    find_linker().with_context(|| {
        format!(
            "bpf-linker was installed but is not in PATH. Add cargo's bin directory, or run:\n  {}",
            linker_command_text()
        )
    })
}

fn linker_command_text() -> String {
    format!(
        "LLVM_PREFIX={LLVM_PREFIX} LLVM_SYS_221_PREFIX={LLVM_PREFIX} cargo install bpf-linker \
         --version {LINKER_VERSION} --locked --no-default-features --features llvm-22"
    )
}

/// `bpf-linker` in `PATH` or where `cargo install` puts it.
fn find_linker() -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
}

/// Installs Debian packages, if this is Debian and we are root.
fn install(packages: &[&str]) -> Result<()> {
    eprintln!("installing {}", packages.join(" "));
    ensure!(apt_install(packages), "they can be installed for you only by root on a system with apt-get");
    Ok(())
}

/// First line of a program's output, if the program exists and succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot {what}: {command:?}"))?;
    ensure!(status.success(), "cannot {what}: {command:?} failed with {status}");
    Ok(())
}

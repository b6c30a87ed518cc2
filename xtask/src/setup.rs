//! What the machine must have, and how it gets it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program and the Debian package that has it.
struct Tool {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2", why: "makes the nodes and pods" },
    Tool { program: "nsenter", package: "util-linux", why: "runs programs in pods" },
    Tool { program: "chrt", package: "util-linux", why: "keeps processors awake in benchmarks" },
    Tool { program: "sysctl", package: "procps", why: "sets up the namespaces" },
    Tool { program: "tcpdump", package: "tcpdump", why: "looks at the packets between nodes" },
    Tool { program: "nft", package: "nftables", why: "gives pods packet filters of their own" },
];

/// What the nodes of a cluster consist of, besides Kubernetes' own programs.
const NODE_TOOLS: &[Tool] = &[
    Tool { program: "containerd", package: "containerd", why: "runs the containers" },
    Tool { program: "runc", package: "runc", why: "runs the containers" },
    Tool { program: "/usr/lib/cni/bridge", package: "containernetworking-plugins", why: "connects the pods" },
    Tool { program: "busybox", package: "busybox-static", why: "is the shell of the pods" },
    Tool { program: "nft", package: "nftables", why: "kube-proxy's rules" },
    Tool { program: "iptables", package: "iptables", why: "kubelet's rules" },
    Tool { program: "conntrack", package: "conntrack", why: "kube-proxy ends connections with it" },
];

/// What counts instructions.
const PROFILERS: &[Tool] =
    &[Tool { program: "valgrind", package: "valgrind", why: "counts instructions and allocations" }];

/// What compiles for arm64, and runs it on another processor.
const ARM64: &[Tool] = &[
    Tool { program: "aarch64-linux-gnu-gcc", package: "gcc-aarch64-linux-gnu", why: "compiles and links" },
    Tool { program: "qemu-aarch64-static", package: "qemu-user-static", why: "runs the tests" },
];

/// What boots another kernel.
const MACHINES: &[Tool] = &[
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", why: "is the machine" },
    Tool { program: "busybox", package: "busybox-static", why: "is its user space" },
    Tool { program: "xz", package: "xz-utils", why: "unpacks modules" },
];

/// The oldest kernel on which the programs are expected to load.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Checks everything that namespaces and eBPF need; installs tools where it may.
///
/// Without root the command is started again through `sudo`, when that asks for no password or there is a
/// terminal on which it can ask.
pub(crate) fn machine() -> Result<()> {
    require_linux()?;
    require_kernel()?;
    become_root()?;
    install_missing(TOOLS)?;
    weft_lab::mount_point()?;
    Ok(())
}

/// Installs what the nodes of a cluster need besides.
pub(crate) fn nodes() -> Result<()> {
    install_missing(NODE_TOOLS)
}

/// Installs what counts instructions.
pub(crate) fn profiler() -> Result<()> {
    install_missing(PROFILERS)
}

/// Installs what compiles and runs arm64.
pub(crate) fn arm64() -> Result<()> {
    install_missing(ARM64)
}

/// Installs what boots another kernel.
pub(crate) fn machines() -> Result<()> {
    install_missing(MACHINES)
}

fn require_linux() -> Result<()> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    bail!(
        "this needs Linux (network namespaces, cgroup2, eBPF); here it is {}. Run it in a Linux virtual \
         machine, for example `limactl start` or a cloud machine",
        std::env::consts::OS
    )
}

fn require_kernel() -> Result<()> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's version cannot be read")?;
    let Some(version) = kernel_version(&release) else { return Ok(()) };
    if version < OLDEST_KERNEL {
        bail!(
            "the kernel is {}, but {}.{} or newer is needed (sk_lookup and cgroup.kill); install a newer kernel",
            release.trim(),
            OLDEST_KERNEL.0,
            OLDEST_KERNEL.1
        );
    }
    Ok(())
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn become_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let silent = succeeds("sudo", &["-n", "true"]);
    let has_terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
    let program = std::env::current_exe()?;
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if find("sudo").is_some() && (silent || has_terminal) {
        eprintln!("Network namespaces and eBPF need root: going on through sudo.");
        let error = Command::new("sudo")
            .arg("--preserve-env=PATH,HOME,CARGO,CARGO_HOME,CARGO_TARGET_DIR,RUSTUP_HOME")
            .arg(program)
            .args(args)
            .exec();
        return Err(error).context("sudo cannot be run");
    }
    bail!("network namespaces and eBPF need root: run the same command as root, for example through sudo")
}

fn install_missing(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| find(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.dedup();
    let reasons: Vec<String> = missing.iter().map(|t| format!("{} ({})", t.program, t.why)).collect();
    let command = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if find("apt-get").is_none() {
        bail!(
            "missing: {}; install them with your system's packages (on Debian: {command})",
            reasons.join(", ")
        );
    }
    eprintln!("Installing {}: {command}", reasons.join(", "));
    if apt_install(&packages) {
        return Ok(());
    }
    bail!("{} cannot be installed; do it yourself: {command}", packages.join(" "))
}

/// Installs Debian packages; false when that is not possible here.
pub(crate) fn apt_install(packages: &[&str]) -> bool {
    let install = [&["install", "-y", "--no-install-recommends"], packages].concat();
    find("apt-get").is_some() && (apt_get(&install) || (apt_get(&["update"]) && apt_get(&install)))
}

fn apt_get(args: &[&str]) -> bool {
    let mut command = Command::new("apt-get");
    // A machine that has just been started may be at its own updates.
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(Stdio::null()).stdout(std::io::stderr()).status().is_ok_and(|status| status.success())
}

/// Whether a program runs and says yes; its output is thrown away.
pub(crate) fn succeeds(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Where a program is.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(Path::new).map(Path::to_path_buf);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_compared_as_numbers() {
        assert_eq!(kernel_version("6.18.2-cloud\n"), Some((6, 18)));
        assert_eq!(kernel_version("5.15-rc1"), Some((5, 15)));
        assert!(kernel_version("5.4.0-generic").unwrap() < OLDEST_KERNEL);
        assert_eq!(kernel_version("weird"), None);
    }
}

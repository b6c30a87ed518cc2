//! Checks of the machine on which the command runs: of a node, from outside or from within the agent's container.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use super::report::{Check, Group};
use crate::agent::datapath_options::find_cgroup2;

/// The oldest kernel on which the data path is expected to work (ruling 21).
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPFFS_MAGIC: u64 = 0xcafe_4a11;
const BPFFS: &str = "/sys/fs/bpf";
const CNI_CONF_DIR: &str = "/etc/cni/net.d";
/// Name of the group.
pub(super) const MACHINE: &str = "Node";
/// Our plugin, as it is called in a chain.
const PLUGIN: &str = "weft-cni";

/// Where things are on a node.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct NodeOptions {
    /// Directory with the configuration of CNI.
    #[arg(long, value_name = "DIR", default_value = CNI_CONF_DIR)]
    cni_conf_dir: PathBuf,
    /// Fail where Weft's plugin is not in the chain of CNI.
    #[arg(long)]
    expect_cni: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { cni_conf_dir: CNI_CONF_DIR.into(), expect_cni: false }
    }
}

/// Everything that can be seen on this machine.
pub(super) fn group(options: &NodeOptions) -> Group {
    let told =
        |name: &str| std::fs::read_to_string(name).map(|text| text.trim().to_owned()).unwrap_or_default();
    let release = told("/proc/sys/kernel/osrelease");
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut checks = vec![kernel_version(&release), kernel_features()];
    let cgroup2 = find_cgroup2(&mountinfo);
    checks.extend([
        self::cgroup2(cgroup2.as_deref()),
        pods_cgroup(cgroup2.as_deref()),
        bpffs(Path::new(BPFFS)),
    ]);
    checks.push(cni(&options.cni_conf_dir, options.expect_cni));
    let mut group = Group::new(MACHINE, checks);
    group.node = Some(told("/proc/sys/kernel/hostname")).filter(|name| !name.is_empty());
    group
}

/// `release` is what `uname -r` says, or a Node's `status.nodeInfo.kernelVersion`.
pub(super) fn kernel_version(release: &str) -> Check {
    const NAME: &str = "kernel-version";
    let (major, minor) = OLDEST_KERNEL;
    match version_of(release) {
        Some(version) if version >= OLDEST_KERNEL => Check::ok(NAME, format!("The kernel is {release}.")),
        Some(_) => Check::error(
            NAME,
            format!("The kernel is {release}; the data path needs {major}.{minor}."),
            "Upgrade the node's kernel, or keep Weft off this node with the DaemonSet's nodeSelector.",
        ),
        None => Check::warning(
            NAME,
            format!("The kernel calls itself {release}, which is no version."),
            format!("Make sure that it is {major}.{minor} or newer: `uname -a`."),
        ),
    }
}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel_features() -> Check {
    const NAME: &str = "kernel-features";
    let missing = match weft_kernel::missing_features() {
        Ok(missing) => missing,
        Err(error) => {
            let message = format!("What the kernel can do could not be found out: {error}.");
            return Check::warning(NAME, message, "Run `weft check --node` as root on the node.");
        }
    };
    if missing.is_empty() {
        return Check::ok(
            NAME,
            "The kernel has every feature that the data path needs, and this process may use them.",
        );
    }
    let ourselves = missing.iter().all(|what| what.contains("CAP_"));
    let message = format!("The data path cannot work: {}.", missing.join("; "));
    if ourselves && !rustix::process::geteuid().is_root() {
        let message = "Only root can try out the kernel's features.";
        return Check::warning(NAME, message, "Run `sudo weft check --node` on the node.");
    }
    let fix = if ourselves {
        "Give the agent's container the capabilities of deploy/weft.yaml."
    } else {
        "Upgrade the node's kernel, or turn the named features on."
    };
    Check::error(NAME, message, fix)
}

fn cgroup2(mount: Option<&Path>) -> Check {
    const NAME: &str = "cgroup2";
    match mount {
        Some(mount) => Check::ok(NAME, format!("cgroup2 is mounted at {}.", mount.display())),
        None => Check::error(
            NAME,
            "cgroup2 is not mounted: programs cannot be attached to the pods.",
            "Run `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with systemd.unified_cgroup_hierarchy=1.",
        ),
    }
}

/// The kubelet's cgroup, by either of its drivers.
fn pods_cgroup(mount: Option<&Path>) -> Check {
    const NAME: &str = "pods-cgroup";
    let Some(mount) = mount else { return Check::skipped(NAME, "The kubelet's cgroup was not looked for.") };
    let there =
        ["kubepods.slice", "kubepods"].map(|name| mount.join(name)).into_iter().find(|path| path.is_dir());
    match there {
        Some(path) => Check::ok(NAME, format!("The kubelet's pods are under {}.", path.display())),
        None => Check::skipped(NAME, format!("There are no pods of a kubelet under {}.", mount.display())),
    }
}

fn bpffs(place: &Path) -> Check {
    const NAME: &str = "bpffs";
    let mounted = rustix::fs::statfs(place).is_ok_and(|found| found.f_type as u64 == BPFFS_MAGIC);
    if mounted {
        return Check::ok(NAME, format!("bpffs is mounted at {}.", place.display()));
    }
    Check::error(
        NAME,
        format!(
            "There is no bpffs at {}: what the agent pins would not outlive it, and traffic would be cut at each restart.",
            place.display()
        ),
        format!("Run `mount -t bpf bpf {}` on the node, and put it into /etc/fstab.", place.display()),
    )
}

/// The configuration that the container runtime uses, and whether our plugin is in it.
fn cni(directory: &Path, expected: bool) -> Check {
    const NAME: &str = "cni-chain";
    let chain = match read_chain(directory) {
        Ok(Some(chain)) => chain,
        Ok(None) => {
            return Check::warning(
                NAME,
                format!(
                    "There is no configuration of CNI in {}: pods cannot start here.",
                    directory.display()
                ),
                "Install a CNI plugin, or name its directory with --cni-conf-dir (k3s: \
                 /var/lib/rancher/k3s/agent/etc/cni/net.d).",
            );
        }
        Err(error) => {
            return Check::error(
                NAME,
                error,
                "Correct the file: the container runtime cannot read it either.",
            );
        }
    };
    let Chain { file, plugins } = chain;
    let listed = plugins.join(" → ");
    let ours = plugins.iter().any(|plugin| plugin == PLUGIN);
    if ours && plugins.first().is_some_and(|first| first == PLUGIN) {
        let message =
            format!("{file} calls {listed}: {PLUGIN} stands before the plugin that makes the network.");
        return Check::error(
            NAME,
            message,
            "Restore the file of your CNI plugin; the agent adds itself at the end.",
        );
    }
    match (ours, expected) {
        (true, _) => {
            Check::ok(NAME, format!("{file} calls {listed}: new pods are enrolled before they start."))
        }
        (false, false) => Check::ok(NAME, format!("{file} calls {listed}.")),
        (false, true) => Check::error(
            NAME,
            format!(
                "{file} calls {listed}: {PLUGIN} is missing, so new pods are unprotected until they are enrolled."
            ),
            "Look for `cni` in the agent's log: `kubectl logs --namespace weft-system daemonset/weft-agent`.",
        ),
    }
}

/// A file of CNI and the plugins that it calls.
struct Chain {
    file: String,
    plugins: Vec<String>,
}

/// As container runtimes do: of all files the first by name.
fn read_chain(directory: &Path) -> Result<Option<Chain>, String> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read: {error}.", directory.display())),
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_ours = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json"))
    };
    let mut paths: Vec<PathBuf> = paths.filter(is_ours).collect();
    paths.sort();
    let Some(path) = paths.first() else { return Ok(None) };
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{file} cannot be read: {error}."))?;
    let conf: Value = serde_json::from_str(&text).map_err(|error| format!("{file} is not JSON: {error}."))?;
    Ok(Some(Chain { plugins: plugins(&conf), file }))
}

fn plugins(conf: &Value) -> Vec<String> {
    let kind = |plugin: &Value| plugin.get("type").and_then(Value::as_str).map(str::to_owned);
    match conf.get("plugins").and_then(Value::as_array) {
        Some(list) => list.iter().filter_map(kind).collect(),
        None => kind(conf).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Outcome;
    use super::*;

    #[test]
    fn kernels_are_old_enough_or_not() {
        for (release, outcome) in [
            ("5.15.0-1034-aws", Outcome::Ok),
            ("6.1.0", Outcome::Ok),
            ("10.0", Outcome::Ok),
            ("5.14.21-150500.55.44-default", Outcome::Error),
            ("4.18.0-513.el8.x86_64", Outcome::Error),
            ("weird", Outcome::Warning),
            ("6", Outcome::Warning),
        ] {
            assert_eq!(kernel_version(release).outcome, outcome, "{release}");
        }
    }

    fn chain(file: &str, text: &str, expected: bool) -> Check {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(file), text).unwrap();
        std::fs::write(dir.path().join("99-later.conflist"), r#"{"plugins": [{"type": "later"}]}"#).unwrap();
        std::fs::write(dir.path().join("00-notes.txt"), "no JSON").unwrap();
        cni(dir.path(), expected)
    }

    #[test]
    fn the_chain_is_that_of_the_first_file() {
        const BRIDGE: &str = r#"{"plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;
        const OURS: &str = r#"{"plugins": [{"type": "bridge"}, {"type": "weft-cni"}]}"#;
        let check = chain("10-bridge.conflist", BRIDGE, false);
        assert!(check.outcome == Outcome::Ok && check.message.contains("bridge → portmap"), "{check:?}");
        assert_eq!(chain("10-bridge.conflist", BRIDGE, true).outcome, Outcome::Error);
        assert_eq!(chain("10-bridge.conflist", OURS, true).outcome, Outcome::Ok);
        let first = chain("10-bridge.conf", r#"{"type": "weft-cni"}"#, true);
        assert!(first.outcome == Outcome::Error && first.message.contains("before"), "{first:?}");
        let broken = chain("10-bridge.conflist", "{", true);
        assert!(broken.outcome == Outcome::Error && broken.message.contains("not JSON"), "{broken:?}");
    }

    #[test]
    fn a_node_without_cni_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        for place in [dir.path().to_owned(), dir.path().join("nothing")] {
            let check = cni(&place, false);
            assert!(
                check.outcome == Outcome::Warning && check.message.contains("pods cannot start"),
                "{check:?}"
            );
        }
    }

    #[test]
    fn mounts_are_looked_at() {
        assert_eq!(cgroup2(None).outcome, Outcome::Error);
        assert_eq!(cgroup2(Some(Path::new("/sys/fs/cgroup"))).outcome, Outcome::Ok);
        let dir = tempfile::tempdir().unwrap();
        let none = bpffs(dir.path());
        assert!(none.outcome == Outcome::Error && none.fix.unwrap().contains("mount -t bpf"));
        assert_eq!(pods_cgroup(Some(dir.path())).outcome, Outcome::Skipped);
        std::fs::create_dir(dir.path().join("kubepods")).unwrap();
        assert_eq!(pods_cgroup(Some(dir.path())).outcome, Outcome::Ok);
    }

    #[test]
    fn the_group_names_every_check() {
        let group = group(&NodeOptions { cni_conf_dir: "/nonexistent".into(), expect_cni: false });
        let names: Vec<_> = group.checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(
            names,
            ["kernel-version", "kernel-features", "cgroup2", "pods-cgroup", "bpffs", "cni-chain"]
        );
    }
}

//! The namespaces around a cluster.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use weft_lab::{Place, Scope, run};

use super::{ADDRESS, BRIDGE, cgroups};
use crate::servers;

/// Where the world keeps its files: a tmpfs of its own. The directory is there on every Linux and nothing of
/// the system is in it.
const WORLD_DIR: &str = "/mnt";
/// How a program that [`enter`] starts knows that it is inside: the name of its cgroups.
const CGROUP: &str = "WEFT_WORLD_CGROUP";
const PROGRAMS: &str = "WEFT_WORLD_PROGRAMS";

/// kubelet wants these values and would write them for the whole machine. It finds them in files instead.
const SYSCTLS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Moves the shell into the cgroup, then the shell becomes the program.
const PLACE: &str = r#"cgroup=$1; shift; echo 0 > "$cgroup/cgroup.procs" && exec "$@""#;
/// The first process of the world: a shell, which waits for orphans too.
const FIRST: &str = r#""$@"; exit $?"#;

/// Runs this program again, inside of new namespaces, with the arguments `args`; what is left when it ends is
/// killed and removed. `None` when the Kubernetes servers are missing, which has been printed then.
///
/// # Errors
/// The namespaces cannot be made, or the servers are missing in CI.
pub fn enter(args: &[String]) -> Result<Option<ExitStatus>> {
    let Some(programs) = servers()? else { return Ok(None) };
    let scope = Scope::new()?;
    let name = scope.cgroup().file_name().context("a cgroup has a name")?;
    let own = scope.place()?.cgroup;
    let status = Command::new("sh")
        .args(["-c", PLACE, "sh"])
        .arg(own)
        .args(["unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "--", "sh", "-c", FIRST, "sh"])
        .arg(std::env::current_exe()?)
        .args(args)
        .env(CGROUP, name)
        .env(PROGRAMS, fs::canonicalize(&programs)?)
        .stdin(Stdio::inherit())
        .process_group(0)
        .status()
        .context("unshare cannot be run")?;
    Ok(Some(status))
}

/// The inside of a world.
#[derive(Debug, Clone)]
pub struct Inside {
    cgroup: String,
    programs: PathBuf,
}

impl Inside {
    /// Where this process is, if it was started by [`enter`].
    pub fn find() -> Option<Self> {
        let cgroup = std::env::var(CGROUP).ok()?;
        Some(Self { cgroup, programs: std::env::var_os(PROGRAMS)?.into() })
    }

    /// Directory of everything that the cluster writes.
    pub fn dir(&self) -> PathBuf {
        Path::new(WORLD_DIR).join("world")
    }

    /// Directory of Kubernetes' programs.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Name of the cgroup of everything in the world, in each hierarchy.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Where processes of the world that belong to no node run.
    ///
    /// # Errors
    /// The cgroup cannot be made.
    pub fn place(&self, name: &str) -> Result<Place> {
        let logs = self.dir().join("logs");
        fs::create_dir_all(&logs)?;
        let cgroup = weft_lab::mount_point()?.join(&self.cgroup).join(name);
        fs::create_dir_all(&cgroup)?;
        Ok(Place { cgroup, netns: "/proc/self/ns/net".into(), logs })
    }

    /// Mounts and network that all nodes have in common. To be called once.
    ///
    /// # Errors
    /// A mount or a link cannot be made.
    pub fn prepare(&self) -> Result<()> {
        for dir in ["/run", WORLD_DIR] {
            run("mount", &["-t", "tmpfs", "-o", "mode=0755", "weft-world", dir])?;
        }
        fs::create_dir_all(self.dir())?;
        self.hide_sysctls()?;
        for hierarchy in cgroups::hierarchies()? {
            hierarchy.make(&self.cgroup)?;
        }
        run("hostname", &["weft-world"])?;
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
        run("ip", &["addr", "add", &format!("{ADDRESS}/24"), "dev", BRIDGE])?;
        run("ip", &["link", "set", BRIDGE, "up"])?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("the world cannot forward")
    }

    fn hide_sysctls(&self) -> Result<()> {
        let dir = self.dir().join("sysctl");
        fs::create_dir_all(&dir)?;
        for (name, value) in SYSCTLS {
            let file = dir.join(name.replace('/', "."));
            fs::write(&file, format!("{value}\n"))?;
            let (Some(from), at) = (file.to_str(), format!("/proc/sys/{name}")) else {
                bail!("the world's directory is UTF-8");
            };
            run("mount", &["--bind", from, &at])?;
        }
        Ok(())
    }
}

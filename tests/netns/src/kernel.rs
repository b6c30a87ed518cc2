//! What the kernel and `/proc` show about pods and processes.

use std::fs;
use std::path::Path;

use weft_lab::{Pod, output, within};

/// Settings of a namespace that an agent changes.
const SYSCTLS: [&str; 3] = ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"];

/// Everything that an agent may change in a pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetnsState {
    rules: String,
    routes: String,
    listeners: String,
    sysctls: Vec<String>,
}

impl NetnsState {
    /// Looks at a pod.
    pub fn of(pod: &Pod) -> Self {
        let ip = |args: &[&str]| {
            let netns = format!("--net={}", pod.netns().display());
            output("nsenter", &[&[netns.as_str(), "--", "ip"], args].concat()).expect("ip works in a pod")
        };
        let read =
            |path: &str| within(pod.netns(), || Ok(fs::read_to_string(path)?)).expect("/proc can be read");
        // Port and inode of sockets in state LISTEN (0A), whoever owns them.
        let listening =
            |path: &str| read(path).lines().filter(|line| line.contains(" 0A ")).count().to_string();
        Self {
            rules: ip(&["-4", "rule"]) + &ip(&["-6", "rule"]),
            routes: ip(&["-4", "route", "show", "table", "all"])
                + &ip(&["-6", "route", "show", "table", "all"]),
            listeners: listening("/proc/thread-self/net/tcp")
                + "/"
                + &listening("/proc/thread-self/net/tcp6"),
            sysctls: SYSCTLS.map(|name| read(&format!("/proc/sys/net/{name}"))).into(),
        }
    }

    /// Whether our policy rule is there, in both families.
    pub fn has_our_rules(&self) -> bool {
        self.rules.matches("fwmark 0x10000000/0x10000000").count() == 2
    }
}

/// Number of open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).map_or(0, Iterator::count)
}

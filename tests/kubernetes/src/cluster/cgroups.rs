//! Every cgroup hierarchy of the machine: one (version 2), or a dozen.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) at: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub(super) kind: String,
    /// What to give `mount -o`: the controllers.
    pub(super) options: String,
}

/// The hierarchies that are mounted here.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo cannot be read")?;
    Ok(parse(&table))
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = mountinfo.lines().filter_map(parse_line).collect();
    found.sort_by(|a, b| a.at.cmp(&b.at));
    found.dedup_by(|a, b| a.at == b.at);
    found
}

fn parse_line(line: &str) -> Option<Hierarchy> {
    let (mount, rest) = line.split_once(" - ")?;
    let mut rest = rest.split(' ');
    let kind = rest.next().filter(|kind| kind.starts_with("cgroup"))?.to_owned();
    let options = rest.nth(1)?.split(',').filter(|option| !["rw", "ro"].contains(option));
    let options: Vec<String> = match kind.as_str() {
        // Options of the one hierarchy of version 2 are the whole machine's.
        "cgroup2" => Vec::new(),
        _ => options.map(str::to_owned).collect(),
    };
    let named = options.iter().any(|option| option.starts_with("name="));
    let options = if named { [vec!["none".to_owned()], options].concat() } else { options };
    Some(Hierarchy { at: mount.split(' ').nth(4)?.into(), kind, options: options.join(",") })
}

impl Hierarchy {
    /// Makes a group (and those above it) that processes can be put into.
    pub(super) fn make(&self, group: &str) -> Result<PathBuf> {
        let mut at = self.at.clone();
        for part in Path::new(group) {
            let parent = at.clone();
            at.push(part);
            fs::create_dir_all(&at).with_context(|| format!("{} cannot be made", at.display()))?;
            // A new group of `cpuset` has no processors, and takes no process before it has some.
            for name in ["cpuset.cpus", "cpuset.mems"] {
                let copied = self.kind == "cgroup" && at.join(name).exists();
                if copied && fs::read_to_string(at.join(name))?.trim().is_empty() {
                    fs::write(at.join(name), fs::read_to_string(parent.join(name))?.trim())?;
                }
            }
        }
        Ok(at)
    }

    /// Name of its directory below `/sys/fs/cgroup`; empty when it is mounted there itself.
    pub(super) fn name(&self) -> &Path {
        self.at.strip_prefix("/sys/fs/cgroup").unwrap_or(&self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_machines_have_many() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                     32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                     40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = parse(table);
        let text: Vec<String> =
            found.iter().map(|h| format!("{} {} {}", h.name().display(), h.kind, h.options)).collect();
        assert_eq!(text, ["cpu cgroup cpu,cpuacct", "systemd cgroup none,name=systemd", "unified cgroup2 "]);
    }

    #[test]
    fn machines_with_version_2_have_one() {
        let found = parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name(), Path::new(""));
    }
}

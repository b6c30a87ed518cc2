//! Where the programs are that tests have built from Go modules of ours: the servers of a real Kubernetes, and istiod.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A Go module that is built to one binary, which is called by several names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoModule {
    /// What it is, for people.
    pub title: &'static str,
    /// The command that builds it.
    pub command: &'static str,
    /// Name of the binary.
    pub binary: &'static str,
    /// The programs that the binary is, by their names; none where it is only called by its own.
    pub programs: &'static [&'static str],
    source: &'static str,
    cache: &'static str,
}

/// The servers of Kubernetes, and kubectl.
pub const KUBERNETES: GoModule = GoModule {
    title: "the Kubernetes servers",
    command: "cargo xtask k8s",
    binary: "k8s-for-tests",
    programs: &[
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "kubectl",
    ],
    source: "../kubernetes/servers",
    cache: "k8s",
};

/// istiod, and clients that were written for it.
pub const ISTIOD: GoModule = GoModule {
    title: "istiod",
    command: "cargo xtask k8s --istiod",
    binary: "istiod-for-tests",
    programs: &[],
    source: "../kubernetes/istiod",
    cache: "istiod",
};

impl GoModule {
    /// The directory of the source.
    pub fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.source)
    }

    /// Beginning of the name of every directory with a build of today's source: `<key>-<version of Go>`.
    ///
    /// # Errors
    /// A file of the source cannot be read.
    pub fn source_key(&self) -> Result<String> {
        let source = self.source();
        let entries =
            fs::read_dir(&source).with_context(|| format!("{} cannot be read", source.display()))?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        let mut hash = Fnv::new();
        for name in names {
            let path = source.join(&name);
            hash.add(&fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?);
            hash.add(name.as_bytes());
        }
        Ok(format!("{:016x}", hash.0))
    }

    /// Directories that hold builds: Cargo's target directory, and one of the user that survives a fresh clone.
    pub fn caches(&self) -> Vec<PathBuf> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        let user = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
        let of_user = user.map(|cache| cache.join("weft").join(self.cache));
        [Some(target.join(self.cache)), of_user].into_iter().flatten().collect()
    }

    /// The directory of a build of today's source; `None` when there is none.
    ///
    /// # Errors
    /// The source cannot be read.
    pub fn built(&self) -> Result<Option<PathBuf>> {
        let key = self.source_key()?;
        Ok(self.caches().iter().find_map(|cache| self.build_in(cache, &key)))
    }

    fn build_in(&self, cache: &Path, key: &str) -> Option<PathBuf> {
        let prefix = format!("{key}-");
        let builds = fs::read_dir(cache).ok()?.flatten().filter(|entry| {
            let name = entry.file_name();
            // A build that goes on has a name that ends so.
            name.to_str().is_some_and(|name| name.starts_with(&prefix) && !name.ends_with(".new"))
        });
        let programs = || self.programs.iter().chain([&self.binary]);
        let complete = |dir: &PathBuf| programs().all(|name| dir.join(name).is_file());
        builds.map(|entry| entry.path()).find(complete)
    }
}

/// The directory of Kubernetes' servers: `KUBEBUILDER_ASSETS` when that is set, otherwise a build of today's source.
/// `None` when there is none.
///
/// # Errors
/// The source cannot be read.
pub fn kubernetes_servers() -> Result<Option<PathBuf>> {
    match std::env::var_os("KUBEBUILDER_ASSETS") {
        Some(given) => Ok(Some(given.into())),
        None => KUBERNETES.built(),
    }
}

/// FNV-1a: the key must be the same in every build of the tests, which the standard hasher does not promise.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_stable_and_follows_the_source() {
        let key = KUBERNETES.source_key().unwrap();
        assert_eq!(key, KUBERNETES.source_key().unwrap());
        assert_ne!(key, ISTIOD.source_key().unwrap());
        let mut other = Fnv::new();
        other.add(b"a");
        assert_eq!(other.0, 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn unfinished_builds_are_none() {
        let cache = std::env::temp_dir().join(format!("weft-k8s-key-{}", std::process::id()));
        let (whole, half) = (cache.join("k-go1"), cache.join("k-go2.new"));
        for dir in [&whole, &half] {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("etcd"), "").unwrap();
        }
        assert_eq!(KUBERNETES.build_in(&cache, "k"), None);
        let names = || KUBERNETES.programs.iter().chain([&KUBERNETES.binary]);
        for name in names() {
            fs::write(half.join(name), "").unwrap();
        }
        assert_eq!(KUBERNETES.build_in(&cache, "k"), None);
        for name in names() {
            fs::write(whole.join(name), "").unwrap();
        }
        assert_eq!(KUBERNETES.build_in(&cache, "k"), Some(whole));
        fs::remove_dir_all(&cache).unwrap();
    }
}

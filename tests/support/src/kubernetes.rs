//! Where the servers of a real Kubernetes are: our module `tests/kubernetes/servers`, built.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The programs of which the servers' directory consists; `kubectl` is one of them.
pub const KUBERNETES_PROGRAMS: &[&str] = &[
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];

/// The source of the module. A change of any of them is another build.
const SOURCES: &[&str] = &["go.mod", "go.sum", "main.go"];

/// The source of the servers.
pub fn kubernetes_source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kubernetes/servers")
}

/// Beginning of the name of every directory with a build of today's source: `<key>-<version of Go>`.
///
/// # Errors
/// A file of the source cannot be read.
pub fn kubernetes_source_key() -> Result<String> {
    let mut hash = Fnv::new();
    for name in SOURCES {
        let path = kubernetes_source().join(name);
        hash.add(&fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?);
        hash.add(name.as_bytes());
    }
    Ok(format!("{:016x}", hash.0))
}

/// Directories that hold builds: Cargo's target directory, and one of the user that survives a fresh clone.
pub fn kubernetes_caches() -> Vec<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let user = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    [Some(target.join("k8s")), user.map(|cache| cache.join("weft/k8s"))].into_iter().flatten().collect()
}

/// The directory of the servers: `KUBEBUILDER_ASSETS` when that is set, otherwise a build of today's source.
/// `None` when there is none.
///
/// # Errors
/// The source cannot be read.
pub fn kubernetes_servers() -> Result<Option<PathBuf>> {
    if let Some(given) = std::env::var_os("KUBEBUILDER_ASSETS") {
        return Ok(Some(given.into()));
    }
    let key = kubernetes_source_key()?;
    Ok(kubernetes_caches().iter().find_map(|cache| build_in(cache, &key)))
}

fn build_in(cache: &Path, key: &str) -> Option<PathBuf> {
    let prefix = format!("{key}-");
    let builds = fs::read_dir(cache).ok()?.flatten().filter(|entry| {
        let name = entry.file_name();
        // A build that goes on has a name that ends so.
        name.to_str().is_some_and(|name| name.starts_with(&prefix) && !name.ends_with(".new"))
    });
    let complete = |dir: &PathBuf| KUBERNETES_PROGRAMS.iter().all(|name| dir.join(name).is_file());
    builds.map(|entry| entry.path()).find(complete)
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
        let key = kubernetes_source_key().unwrap();
        assert_eq!(key, kubernetes_source_key().unwrap());
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
        assert_eq!(build_in(&cache, "k"), None);
        for program in KUBERNETES_PROGRAMS {
            fs::write(half.join(program), "").unwrap();
        }
        assert_eq!(build_in(&cache, "k"), None);
        for program in KUBERNETES_PROGRAMS {
            fs::write(whole.join(program), "").unwrap();
        }
        assert_eq!(build_in(&cache, "k"), Some(whole));
        fs::remove_dir_all(&cache).unwrap();
    }
}

//! Where the network namespaces of this node's pods are, as far as the network plugin told.
//!
//! What it told is kept in files, one for each sandbox: a new agent would not be told again. All other pods are found by
//! their processes ([`weft_kernel::ProcessTable`]), which is why no socket of a container runtime is needed: kubelet and
//! runtimes keep every process of a pod in a cgroup that is named after the pod, and the kernel's own checks (not the
//! host's namespace, holds the pod's addresses) say whether the namespace is the pod's.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use weft_core::resource::NamespacedName;

/// Sandboxes of one node; the kubelet's own limit is some hundred pods.
const LIMIT: usize = 8192;

/// What the plugin told of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) container_id: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: Option<String>,
    pub(crate) netns: PathBuf,
    pub(crate) ips: Vec<IpAddr>,
}

impl Told {
    pub(crate) fn key(&self) -> NamespacedName {
        NamespacedName::new(self.namespace.as_str(), self.pod.as_str())
    }
}

/// What the plugin told of this node.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Where the files are; `None` keeps nothing beyond this process.
    directory: Option<PathBuf>,
    by_pod: HashMap<NamespacedName, Told>,
}

impl Places {
    /// Reads what earlier agents were told.
    pub(crate) fn open(directory: PathBuf) -> anyhow::Result<Self> {
        crate::controller::make_private_directory(&directory)?;
        let mut places = Self { directory: None, by_pod: HashMap::new() };
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("the directory {} cannot be read", directory.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            match fs::read(&path).map(|text| serde_json::from_slice::<Told>(&text)) {
                Ok(Ok(told)) if told.netns.exists() => {
                    places.by_pod.insert(told.key(), told);
                }
                // The sandbox went meanwhile, or the agent died while it wrote.
                Ok(_) | Err(_) => drop(fs::remove_file(&path)),
            }
        }
        places.directory = Some(directory);
        Ok(places)
    }

    /// What was told of a pod; not of another one of the same name.
    pub(crate) fn of(&self, key: &NamespacedName, uid: Option<&str>) -> Option<&Told> {
        let told = self.by_pod.get(key)?;
        let same = match (&told.uid, uid) {
            (Some(told), Some(uid)) => told == uid,
            (Some(_) | None, None) | (None, Some(_)) => true,
        };
        same.then_some(told)
    }

    /// A sandbox was made.
    ///
    /// # Errors
    /// It could not be written down: a new agent would have to look for the pod.
    pub(crate) fn insert(&mut self, told: Told) -> io::Result<()> {
        let key = told.key();
        if self.by_pod.len() >= LIMIT && !self.by_pod.contains_key(&key) {
            return Err(io::Error::other(format!("there are {LIMIT} sandboxes already")));
        }
        let written = self.write(&told);
        if let Some(before) = self.by_pod.insert(key, told.clone())
            && before.container_id != told.container_id
        {
            self.erase(&before.container_id);
        }
        written
    }

    /// A sandbox goes. One that has taken its place for the same pod stays.
    pub(crate) fn remove(&mut self, container_id: &str) -> Option<NamespacedName> {
        self.erase(container_id);
        let key = self.by_pod.iter().find(|(_, told)| told.container_id == container_id)?.0.clone();
        self.by_pod.remove(&key);
        Some(key)
    }

    /// Only these sandboxes exist.
    pub(crate) fn keep(&mut self, container_ids: &[String]) -> usize {
        let gone: Vec<_> = self.by_pod.values().map(|told| told.container_id.clone()).collect();
        let gone = gone.iter().filter(|id| !container_ids.contains(id));
        gone.filter(|id| self.remove(id).is_some()).count()
    }

    fn file(&self, container_id: &str) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{container_id}.json")))
    }

    fn write(&self, told: &Told) -> io::Result<()> {
        let Some(path) = self.file(&told.container_id) else { return Ok(()) };
        write_whole(&path, &serde_json::to_vec(told)?)
    }

    fn erase(&self, container_id: &str) {
        if let Some(path) = self.file(container_id)
            && let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a file about a sandbox that is gone cannot be removed");
        }
    }
}

/// Writes a file that is there whole or not at all.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".weft-new");
    let staged = path.with_file_name(name);
    fs::write(&staged, content)?;
    fs::rename(&staged, path).inspect_err(|_| drop(fs::remove_file(&staged)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(id: &str, pod: &str, netns: &Path) -> Told {
        Told {
            container_id: id.into(),
            namespace: "shop".into(),
            pod: pod.into(),
            uid: Some("u-1".into()),
            netns: netns.into(),
            ips: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    fn key(name: &str) -> NamespacedName {
        NamespacedName::new("shop", name)
    }

    #[test]
    fn what_was_told_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().join("places");
        let mut places = Places::open(here.clone()).unwrap();
        places.insert(told("c1", "cart", dir.path())).unwrap();
        places.insert(told("c2", "gone", &dir.path().join("none"))).unwrap();
        fs::write(here.join("torn.json"), "{").unwrap();

        let again = Places::open(here.clone()).unwrap();
        assert_eq!(again.of(&key("cart"), Some("u-1")), Some(&told("c1", "cart", dir.path())));
        assert_eq!(again.of(&key("cart"), None).unwrap().container_id, "c1");
        assert!(again.of(&key("cart"), Some("u-2")).is_none(), "another pod of the same name");
        assert!(again.of(&key("gone"), Some("u-1")).is_none());
        assert_eq!(fs::read_dir(here).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_sandbox_that_was_replaced_takes_nothing_along() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = Places::open(dir.path().join("places")).unwrap();
        places.insert(told("c1", "cart", dir.path())).unwrap();
        places.insert(told("c2", "cart", dir.path())).unwrap();
        assert_eq!(places.remove("c1"), None);
        assert_eq!(places.of(&key("cart"), None).unwrap().container_id, "c2");
        assert_eq!(places.remove("c2"), Some(key("cart")));
        assert!(places.of(&key("cart"), None).is_none());
        assert_eq!(fs::read_dir(dir.path().join("places")).unwrap().count(), 0);
    }

    #[test]
    fn only_what_exists_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = Places::open(dir.path().join("places")).unwrap();
        for (id, pod) in [("c1", "a"), ("c2", "b"), ("c3", "c")] {
            places.insert(told(id, pod, dir.path())).unwrap();
        }
        assert_eq!(places.keep(&["c2".to_owned()]), 2);
        assert!(places.of(&key("b"), None).is_some());
        assert!(places.of(&key("a"), None).is_none());
    }
}

//! What is pinned where, and whether it may be taken over.
//!
//! ```text
//! <pin_dir>/v<ABI_MAJOR>/maps/NAME
//!                        links/PROGRAM
//!                        pods/<namespace>_<name>_<cookie>/{STEER,LISTENERS,link}
//! ```

use std::fs;
use std::io::{self, ErrorKind};
use std::mem::size_of;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use weft_core::resource::NamespacedName;
use weft_ebpf_common::{
    ABI_MAJOR, Addr, Aggregate, AggregateKey, EndpointInfo, EndpointKey, Flow, LocalPod, Meta, PodConfig,
    PolicyKey, PortRuleKey, ServiceInfo, ServiceKey, SteerConfig, Tuple, TupleInfo, capacity,
};

use crate::bpffs;
use crate::error::{Doing, KernelError};
use crate::maps::RangeKeyWithLength;

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;

/// What a map must look like to be shared between an old agent's programs and ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    pub(crate) max_entries: u32,
    flags: u32,
}

const fn layout<K, V>(name: &'static str, kind: MapType, max_entries: u32, flags: u32) -> Layout {
    Layout { name, kind, key: size_of::<K>(), value: size_of::<V>(), max_entries, flags }
}

/// Maps of the node.
pub(crate) const NODE_MAPS: [Layout; 17] = [
    layout::<u32, Meta>("META", MapType::Array, 1, 0),
    layout::<u64, PodConfig>("PODS", MapType::Hash, capacity::PODS, NO_PREALLOC),
    layout::<Addr, LocalPod>("LOCAL", MapType::Hash, capacity::LOCAL, NO_PREALLOC),
    layout::<PolicyKey, u8>("POLICY", MapType::Hash, capacity::POLICY, NO_PREALLOC),
    layout::<PortRuleKey, u8>("PORT_RULES", MapType::Hash, capacity::PORT_RULES, NO_PREALLOC),
    layout::<RangeKeyWithLength, u8>("RANGE_RULES", MapType::LpmTrie, capacity::RANGE_RULES, NO_PREALLOC),
    layout::<ServiceKey, ServiceInfo>("SERVICES", MapType::Hash, capacity::SERVICES, NO_PREALLOC),
    layout::<EndpointKey, EndpointInfo>("ENDPOINTS", MapType::Hash, capacity::ENDPOINTS, NO_PREALLOC),
    layout::<Tuple, TupleInfo>("DIRECT", MapType::LruHash, capacity::DIRECT, 0),
    layout::<Tuple, u64>("PROBES", MapType::LruHash, capacity::PROBES, 0),
    layout::<Tuple, u64>("ONWARD", MapType::Hash, capacity::ONWARD, NO_PREALLOC),
    layout::<u64, u32>("CAPTURES", MapType::SockHash, capacity::CAPTURES, 0),
    layout::<u64, Flow>("FLOWS", MapType::Hash, capacity::FLOWS, NO_PREALLOC),
    layout::<AggregateKey, Aggregate>("AGGREGATES", MapType::PerCpuHash, capacity::AGGREGATES, NO_PREALLOC),
    layout::<(), ()>("EVENTS", MapType::RingBuf, capacity::EVENTS, 0),
    layout::<u32, u64>("COUNTERS", MapType::PerCpuArray, capacity::COUNTERS, 0),
    layout::<u32, Flow>("SOCKETS", MapType::SkStorage, 0, NO_PREALLOC),
];

/// Maps of a pod.
pub(crate) const POD_MAPS: [Layout; 2] = [
    layout::<u32, SteerConfig>("STEER", MapType::Array, 1, 0),
    layout::<u32, u32>("LISTENERS", MapType::SockMap, capacity::LISTENERS, 0),
];

/// Paths below one pin directory.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    base: PathBuf,
    version: PathBuf,
}

/// The pins of one pod.
#[derive(Debug, Clone)]
pub(crate) struct PodPins {
    pub(crate) directory: PathBuf,
    pub(crate) pod: NamespacedName,
    pub(crate) cookie: u64,
}

impl Pins {
    pub(crate) fn new(base: &Path) -> Self {
        Self { base: base.to_path_buf(), version: base.join(format!("v{ABI_MAJOR}")) }
    }

    /// The pins of some other major version.
    fn of_version(&self, major: u32) -> Self {
        Self { base: self.base.clone(), version: self.base.join(format!("v{major}")) }
    }

    /// Creates the directories.
    pub(crate) fn create(&self) -> Result<(), KernelError> {
        for directory in ["maps", "links", "pods"] {
            let path = self.version.join(directory);
            bpffs::create(&path).doing(|| format!("create {}", path.display()))?;
        }
        Ok(())
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.version.join("maps").join(name)
    }

    pub(crate) fn link(&self, program: &str) -> PathBuf {
        self.version.join("links").join(program)
    }

    /// Where a pod's objects are pinned.
    pub(crate) fn pod(&self, pod: &NamespacedName, cookie: u64) -> PodPins {
        let name = format!("{}_{}_{cookie}", encode(&pod.namespace), encode(&pod.name));
        PodPins { directory: self.version.join("pods").join(name), pod: pod.clone(), cookie }
    }

    /// All pods that have pins.
    pub(crate) fn pods(&self) -> Vec<PodPins> {
        let directory = self.version.join("pods");
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| parse_pod(&directory, entry.file_name().to_str()?)).collect()
    }

    /// Refuses pins of a newer schema, whose programs this version does not know how to replace.
    pub(crate) fn refuse_newer(&self) -> Result<(), KernelError> {
        let newer = self.versions().into_iter().filter(|major| *major > ABI_MAJOR).max();
        newer.map_or(Ok(()), |major| {
            Err(KernelError::IncompatiblePins(format!(
                "{} holds the state of a newer Weft (schema {major}; this one knows {ABI_MAJOR}): run the newer \
                 version, or remove its state with `weft cleanup`, which ends the capture of all pods",
                self.base.display()
            )))
        })
    }

    /// Pins of older schemata.
    pub(crate) fn older(&self) -> Vec<Self> {
        let older = self.versions().into_iter().filter(|major| *major < ABI_MAJOR);
        older.map(|major| self.of_version(major)).collect()
    }

    /// Pins of all schemata.
    pub(crate) fn all(&self) -> Vec<Self> {
        self.versions().into_iter().map(|major| self.of_version(major)).collect()
    }

    fn versions(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.base).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix('v')?.parse().ok()).collect()
    }

    /// Checks every map that an earlier agent pinned, since the loader reuses them without looking.
    pub(crate) fn check_maps(&self) -> Result<(), KernelError> {
        for layout in NODE_MAPS {
            check(&self.map(layout.name), &layout)?;
        }
        Ok(())
    }

    /// Unpins links or maps of the node; a link that is pinned nowhere detaches. Returns how many there were.
    pub(crate) fn remove_node(&self, kind: &str) -> io::Result<usize> {
        remove_files(&self.version.join(kind))
    }

    /// Removes the directory of this schema when nothing is pinned in it.
    pub(crate) fn remove_empty(&self) -> io::Result<()> {
        for directory in ["maps", "links", "pods", "."] {
            let path = self.version.join(directory);
            // `rmdir(".../.")` is refused by the kernel; the last round is the version itself.
            let path = if directory == "." { &self.version } else { &path };
            unless_missing(fs::remove_dir(path))?;
        }
        Ok(())
    }
}

impl PodPins {
    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn link(&self) -> PathBuf {
        self.directory.join("link")
    }

    /// Whether an earlier agent enrolled the pod.
    pub(crate) fn exist(&self) -> bool {
        self.link().exists()
    }

    /// Checks the pod's maps before they are reused.
    pub(crate) fn check_maps(&self) -> Result<(), KernelError> {
        POD_MAPS.iter().try_for_each(|layout| check(&self.map(layout.name), layout))
    }

    /// Unpins everything of the pod: the link detaches. Returns the number of maps.
    pub(crate) fn remove(&self) -> io::Result<usize> {
        // The link first: without it no connection sees the maps half gone.
        unless_missing(fs::remove_file(self.link()))?;
        let maps = remove_files(&self.directory)?;
        unless_missing(fs::remove_dir(&self.directory))?;
        Ok(maps)
    }
}

fn remove_files(directory: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        unless_missing(fs::remove_file(entry?.path()))?;
        removed += 1;
    }
    Ok(removed)
}

pub(crate) fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn check(path: &Path, layout: &Layout) -> Result<(), KernelError> {
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(path).doing(|| format!("look at the pinned map {}", path.display()))?;
    let kind = info.map_type().doing(|| format!("look at the pinned map {}", path.display()))?;
    let differences = [
        ("type", format!("{kind:?}"), format!("{:?}", layout.kind)),
        ("key size", info.key_size().to_string(), layout.key.to_string()),
        ("value size", info.value_size().to_string(), layout.value.to_string()),
        ("capacity", info.max_entries().to_string(), layout.max_entries.to_string()),
        ("flags", format!("{:#x}", info.map_flags()), format!("{:#x}", layout.flags)),
    ];
    match differences.iter().find(|(_, found, wanted)| found != wanted) {
        None => Ok(()),
        Some((field, found, wanted)) => Err(KernelError::IncompatiblePins(format!(
            "the pinned map {} has {field} {found}, but this version needs {wanted}: run the version that pinned \
             it, or remove its state with `weft cleanup`, which ends the capture of all pods",
            path.display()
        ))),
    }
}

/// bpffs refuses dots in names, and `_` separates the parts: everything but letters, digits and `-` becomes
/// `~` and two hexadecimal digits.
fn encode(part: &str) -> String {
    let mut encoded = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => encoded.push(char::from(byte)),
            other => encoded.push_str(&format!("~{other:02x}")),
        }
    }
    encoded
}

fn decode(part: &str) -> Option<String> {
    let mut pieces = part.split('~');
    let mut decoded = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (code, rest) = (piece.get(..2)?, piece.get(2..)?);
        decoded.push(u8::from_str_radix(code, 16).ok()?);
        decoded.extend(rest.bytes());
    }
    String::from_utf8(decoded).ok()
}

fn parse_pod(directory: &Path, name: &str) -> Option<PodPins> {
    let mut parts = name.split('_');
    let (namespace, pod, cookie) = (parts.next()?, parts.next()?, parts.next()?);
    let pod = NamespacedName::new(decode(namespace)?, decode(pod)?);
    Some(PodPins { directory: directory.join(name), pod, cookie: cookie.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pods_survive_the_file_system() {
        let pins = Pins::new(Path::new("/nowhere"));
        for (namespace, name) in [("shop", "cart-7d9"), ("a", "web.v2"), ("x_y", "ü ~")] {
            let pod = pins.pod(&NamespacedName::new(namespace, name), 4711);
            let file = pod.directory.file_name().unwrap().to_str().unwrap();
            assert!(!file.contains('.'), "bpffs refuses dots: {file}");
            let parsed = parse_pod(Path::new("/nowhere/v1/pods"), file).unwrap();
            assert_eq!((parsed.pod, parsed.cookie), (NamespacedName::new(namespace, name), 4711));
        }
    }

    #[test]
    fn strange_directories_are_not_pods() {
        for name in ["", "a_b", "a_b_c", "a~zz_b_1", "a~_b_1"] {
            assert!(parse_pod(Path::new("/"), name).is_none(), "{name}");
        }
    }
}

//! What is pinned where, and whether it may be taken over.
//!
//! ```text
//! <pin_dir>/v<ABI_MAJOR>/maps/NAME
//!                        links/PROGRAM
//!                        pods/<namespace>_<name>_<cookie>/{STEER,LISTENERS,link}
//! ```
//!
//! A name of Kubernetes is longer than a file's may be: of a long part the directory has the beginning and a
//! hash, and holds a symbolic link `name` whose target is the whole `<namespace>_<name>`.

use std::borrow::Cow;
use std::fs;
use std::io::{self, ErrorKind};
use std::mem::size_of;
use std::os::fd::AsFd;
use std::os::unix;
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
use crate::sys;

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;

/// Longest part of a directory's name: two of them and a cookie fit into a file name (255 bytes).
const LONGEST_PART: usize = 110;
/// What stands between the beginning of a long part and its hash; no code of [`encode`] looks like it.
const SHORTENED: &str = "~~";
/// Symbolic link in the directory of a pod with a long name.
const NAME: &str = "name";

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
pub(crate) const NODE_MAPS: [Layout; 18] = [
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
    layout::<u64, u64>("AGENTS", MapType::Hash, capacity::AGENTS, NO_PREALLOC),
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
        let (namespace, name) = (encode(&pod.namespace), encode(&pod.name));
        let name = format!("{}_{}_{cookie}", shorten(&namespace), shorten(&name));
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

    /// Pins of the schema in which a pod is.
    pub(crate) fn holding(&self, pod: &PodPins) -> Self {
        let found = self.all().into_iter().find(|pins| pod.directory.starts_with(&pins.version));
        found.unwrap_or_else(|| self.clone())
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

    /// Detaches and unpins the links of the node. Returns how many there were.
    pub(crate) fn remove_links(&self) -> io::Result<usize> {
        let links = files(&self.version.join("links"))?;
        links.iter().try_for_each(|link| remove_link(link))?;
        Ok(links.len())
    }

    /// Unpins the maps of the node. Returns how many there were.
    pub(crate) fn remove_maps(&self) -> io::Result<usize> {
        remove_files(&self.version.join("maps"))
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

    /// Creates the directory.
    pub(crate) fn create(&self) -> io::Result<()> {
        bpffs::create(&self.directory)?;
        let (namespace, name) = (encode(&self.pod.namespace), encode(&self.pod.name));
        if namespace.len().max(name.len()) <= LONGEST_PART {
            return Ok(());
        }
        unix::fs::symlink(format!("{namespace}_{name}"), self.directory.join(NAME))
    }

    /// Whether an earlier agent enrolled the pod.
    pub(crate) fn exist(&self) -> bool {
        self.link().exists()
    }

    /// Checks the pod's maps before they are reused.
    pub(crate) fn check_maps(&self) -> Result<(), KernelError> {
        POD_MAPS.iter().try_for_each(|layout| check(&self.map(layout.name), layout))
    }

    /// Detaches and unpins everything of the pod. Returns the number of maps.
    pub(crate) fn remove(&self) -> io::Result<usize> {
        // The link first: without it no connection sees the maps half gone.
        remove_link(&self.link())?;
        unless_missing(fs::remove_file(self.directory.join(NAME)))?;
        let maps = remove_files(&self.directory)?;
        unless_missing(fs::remove_dir(&self.directory))?;
        Ok(maps)
    }
}

/// Detaches a link and unpins it. Unpinning alone detaches as well, but the kernel takes its time for that, in which the
/// program goes on to decide.
pub(crate) fn remove_link(pin: &Path) -> io::Result<()> {
    if let Ok(link) = sys::obj_get(pin) {
        // Of what has gone already there is nothing to detach; what refuses is detached by the next line.
        let _ = sys::link_detach(link.as_fd());
    }
    unless_missing(fs::remove_file(pin))
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_files(directory: &Path) -> io::Result<usize> {
    let files = files(directory)?;
    files.iter().try_for_each(|file| unless_missing(fs::remove_file(file)))?;
    Ok(files.len())
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

/// A part that fits: of one that is too long, the beginning and a hash.
fn shorten(encoded: &str) -> Cow<'_, str> {
    const HASH_DIGITS: usize = 16;
    if encoded.len() <= LONGEST_PART {
        return Cow::Borrowed(encoded);
    }
    let beginning: String = encoded.chars().take(LONGEST_PART - SHORTENED.len() - HASH_DIGITS).collect();
    Cow::Owned(format!("{beginning}{SHORTENED}{:016x}", fnv1a(encoded.as_bytes())))
}

/// FNV-1a, 64 bits: the same in every version of the agent. Cookies keep the directories of pods apart.
fn fnv1a(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
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
    let (key, cookie) = name.rsplit_once('_')?;
    let directory = directory.join(name);
    let pod = if key.contains(SHORTENED) { whole_name(&directory, key) } else { parse_key(key)? };
    Some(PodPins { directory, pod, cookie: cookie.parse().ok()? })
}

fn parse_key(key: &str) -> Option<NamespacedName> {
    let (namespace, name) = key.split_once('_')?;
    Some(NamespacedName::new(decode(namespace)?, decode(name)?))
}

/// The name of a pod whose directory has a part of it only. Where the link is missing, since an agent ended
/// between two steps, the short one: what is left can be removed all the same.
fn whole_name(directory: &Path, key: &str) -> NamespacedName {
    let whole = fs::read_link(directory.join(NAME)).ok();
    whole.and_then(|whole| parse_key(whole.to_str()?)).unwrap_or_else(|| {
        let (namespace, name) = key.split_once('_').unwrap_or(("", key));
        NamespacedName::new(namespace, name)
    })
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
    fn long_names_fit_and_stay_apart() {
        let pins = Pins::new(Path::new("/nowhere"));
        let file = |name: &str| {
            let pod = pins.pod(&NamespacedName::new("n".repeat(63), name), u64::MAX);
            pod.directory.file_name().unwrap().to_str().unwrap().to_owned()
        };
        let (one, other) = (file(&"a.".repeat(126)), file(&("a.".repeat(125) + "a-")));
        assert!(one.len() <= 255 && !one.contains('.'), "{one}");
        assert_ne!(one, other);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8, "the published test vector");
    }

    #[test]
    fn strange_directories_are_not_pods() {
        for name in ["", "a_b", "a_b_c", "a~zz_b_1", "a~_b_1"] {
            assert!(parse_pod(Path::new("/"), name).is_none(), "{name}");
        }
    }
}

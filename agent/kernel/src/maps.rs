//! Typed tables of the kernel, and how they are made to say what is wanted.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::Pod;
use weft_ebpf_common::classify::{from_octets, is_v4, mapped, to_octets};
use weft_ebpf_common::{Addr, RangeKey, Tuple};

use crate::error::{Doing, KernelError};
use crate::pins::{NODE_MAPS, Pins};
use crate::sys;

/// Key of the trie `RANGE_RULES` as the kernel wants it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RangeKeyWithLength {
    /// Bits of `data` that count.
    pub(crate) length: u32,
    pub(crate) data: RangeKey,
}

// SAFETY: `repr(C)`, integers only, no padding: 4 + 24 bytes of alignment 4.
unsafe impl Pod for RangeKeyWithLength {}

/// A map of the kernel and what this agent knows to be in it. Nobody else writes these maps.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    name: &'static str,
    fd: OwnedFd,
    content: HashMap<K, V>,
    max_entries: usize,
}

/// What a change of tables did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) written: usize,
    pub(crate) removed: usize,
    pub(crate) overflow: usize,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Table<K, V> {
    /// Opens a pinned map, whose layout has been checked, and reads what an earlier agent left in it.
    pub(crate) fn open(pins: &Pins, name: &'static str) -> Result<Self, KernelError> {
        let path = pins.map(name);
        let fd = sys::obj_get(&path).doing(|| format!("open the pinned map {}", path.display()))?;
        let content = entries(fd.as_fd()).doing(|| format!("read map {name}"))?.collect();
        let layout = NODE_MAPS.iter().find(|layout| layout.name == name);
        let max_entries = layout.map_or(0, |layout| layout.max_entries as usize);
        Ok(Self { name, fd, content, max_entries })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn len(&self) -> usize {
        self.content.len()
    }

    pub(crate) fn max_entries(&self) -> usize {
        self.max_entries
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.content.contains_key(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.content.iter()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.content.get(key)
    }

    /// Removes every entry whose key `keep` does not want.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) -> Result<Changes, KernelError> {
        self.retain_entries(|key, _| keep(key))
    }

    /// Removes every entry that `keep` does not want.
    pub(crate) fn retain_entries(&mut self, keep: impl Fn(&K, &V) -> bool) -> Result<Changes, KernelError> {
        let unwanted = self.content.iter().filter(|(key, value)| !keep(key, value));
        let unwanted: Vec<K> = unwanted.map(|(key, _)| *key).collect();
        for key in &unwanted {
            sys::map_delete(self.fd.as_fd(), key)
                .doing(|| format!("remove an entry of map {}", self.name))?;
            self.content.remove(key);
        }
        Ok(Changes { removed: unwanted.len(), ..Changes::default() })
    }

    /// Writes every entry that is missing or different. An entry that does not fit is counted.
    pub(crate) fn write(&mut self, wanted: &HashMap<K, V>) -> Result<Changes, KernelError> {
        let mut changes = Changes::default();
        for (key, value) in wanted {
            if self.content.get(key) == Some(value) {
                continue;
            }
            match sys::map_update(self.fd.as_fd(), key, value) {
                Ok(()) => {
                    self.content.insert(*key, *value);
                    changes.written += 1;
                }
                Err(error) if is_full(&error) => changes.overflow += 1,
                Err(error) => return Err(error).doing(|| format!("write an entry of map {}", self.name)),
            }
        }
        Ok(changes)
    }

    /// Makes the map equal to `wanted`.
    pub(crate) fn set(&mut self, wanted: &HashMap<K, V>) -> Result<Changes, KernelError> {
        let removed = self.retain(|key| wanted.contains_key(key))?;
        Ok(removed + self.write(wanted)?)
    }
}

impl std::ops::Add for Changes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            written: self.written + other.written,
            removed: self.removed + other.removed,
            overflow: self.overflow + other.overflow,
        }
    }
}

impl std::ops::AddAssign for Changes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM))
}

/// Entries of a map. Exact when nobody writes meanwhile; otherwise each entry is one that was there.
pub(crate) fn entries<K: Pod + Eq + Hash, V: Pod>(
    map: BorrowedFd<'_>,
) -> io::Result<std::collections::hash_map::IntoIter<K, V>> {
    let mut found = HashMap::new();
    let mut at = None;
    // When the key on which we stand disappears, the kernel starts over: that has to end some time.
    for _ in 0..MAX_STEPS {
        let Some(key) = sys::map_next_key::<K>(map, at.as_ref())? else { break };
        if let Some(value) = sys::map_lookup(map, &key)? {
            found.insert(key, value);
        }
        at = Some(key);
    }
    Ok(found.into_iter())
}

/// How many entries a map has; about right while somebody writes.
pub(crate) fn count<K: Pod>(map: BorrowedFd<'_>) -> io::Result<usize> {
    let mut at = None;
    for found in 0..MAX_STEPS {
        at = sys::map_next_key::<K>(map, at.as_ref())?;
        if at.is_none() {
            return Ok(found);
        }
    }
    Ok(MAX_STEPS)
}

/// Removes every entry that is there when this is called.
pub(crate) fn clear<K: Pod + Eq + Hash, V: Pod>(map: BorrowedFd<'_>) -> io::Result<()> {
    for (key, _) in entries::<K, V>(map)? {
        sys::map_delete(map, &key)?;
    }
    Ok(())
}

/// More than twice the entries of the largest map.
const MAX_STEPS: usize = 600_000;

/// An address as the maps have it.
pub(crate) fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => mapped(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => from_octets(v6.octets()),
    }
}

/// An address as the standard library has it.
pub(crate) fn ip(addr: Addr) -> IpAddr {
    let octets = to_octets(addr);
    match octets {
        [.., a, b, c, d] if is_v4(&addr) => Ipv4Addr::new(a, b, c, d).into(),
        _ => Ipv6Addr::from(octets).into(),
    }
}

/// A connection as the maps have it.
pub(crate) fn tuple(source: SocketAddr, destination: SocketAddr) -> Tuple {
    Tuple {
        source: addr(source.ip()),
        destination: addr(destination.ip()),
        source_port: source.port(),
        destination_port: destination.port(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in ["10.1.2.3", "0.0.0.0", "fd00::1", "::", "::1", "2001:db8:1:2:3:4:5:6"] {
            let wanted: IpAddr = text.parse().unwrap();
            assert_eq!(ip(addr(wanted)), wanted);
        }
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(ip(addr(mapped)), "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(addr(mapped), addr("10.0.0.1".parse().unwrap()));
    }
}

//! System calls that no library offers: `bpf(2)` on raw descriptors, and one socket option.

use std::ffi::{CString, c_int, c_void};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

/// Commands of `bpf(2)` (`enum bpf_cmd`).
#[derive(Clone, Copy)]
pub(crate) enum Command {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgLoad = 5,
    ObjGet = 7,
    #[cfg(test)]
    ProgTestRun = 10,
    ProgFdById = 13,
    ObjInfo = 15,
    ProgQuery = 16,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// Arguments of `bpf(2)`: `repr(C)`, a prefix of `union bpf_attr`, every pointer in it valid for the call.
///
/// # Safety
/// The implementor promises just that.
pub(crate) unsafe trait Attr {}

/// `bpf(2)`. Results are descriptors or zero.
pub(crate) fn bpf<A: Attr>(command: Command, attr: &mut A) -> io::Result<c_int> {
    // SAFETY: `attr` is a valid prefix of `bpf_attr` of the given size, by the contract of `Attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as c_int, &raw mut *attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as c_int) }
}

/// As [`bpf`] for commands that open a descriptor.
pub(crate) fn bpf_fd<A: Attr>(command: Command, attr: &mut A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command has just opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address<T>(of: &T) -> u64 {
    std::ptr::from_ref(of) as u64
}

#[repr(C)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

// SAFETY: laid out like the anonymous struct of BPF_MAP_*_ELEM; the callers below point at live values.
unsafe impl Attr for ElementAttr {}

impl ElementAttr {
    fn new(map: BorrowedFd<'_>, key: u64, value: u64) -> Self {
        Self { map: map.as_raw_fd() as u32, padding: 0, key, value, flags: 0 }
    }
}

/// Writes one entry. The caller knows that the map has these types: pinned maps are checked before use.
pub(crate) fn map_update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    bpf(Command::MapUpdate, &mut ElementAttr::new(map, address(key), address(value))).map(drop)
}

/// Removes one entry; false when there was none.
pub(crate) fn map_delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    found(bpf(Command::MapDelete, &mut ElementAttr::new(map, address(key), 0)))
}

/// Reads one entry.
pub(crate) fn map_lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::zeroed();
    let attr = &mut ElementAttr::new(map, address(key), value.as_mut_ptr() as u64);
    let present = found(bpf(Command::MapLookup, attr))?;
    // SAFETY: the kernel has written a whole value, and every bit pattern is one.
    Ok(present.then(|| unsafe { value.assume_init() }))
}

/// The key after `key`, or the first; `None` at the end. Starts over when `key` has gone meanwhile.
pub(crate) fn map_next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::zeroed();
    let attr = &mut ElementAttr::new(map, key.map_or(0, address), next.as_mut_ptr() as u64);
    let present = found(bpf(Command::MapNextKey, attr))?;
    // SAFETY: the kernel has written a whole key, and every bit pattern is one.
    Ok(present.then(|| unsafe { next.assume_init() }))
}

fn found(result: io::Result<c_int>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

// SAFETY: laid out like the anonymous struct of BPF_OBJ_*; the caller below points at a live string.
unsafe impl Attr for ObjectAttr {}

/// Opens a pinned object.
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf_fd(Command::ObjGet, &mut ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 })
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

// SAFETY: laid out like `link_update`; it has no pointers.
unsafe impl Attr for LinkUpdateAttr {}

/// Replaces the program of an attached link without a gap.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link, program) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    bpf(Command::LinkUpdate, &mut LinkUpdateAttr { link, program, flags: 0, old_program: 0 }).map(drop)
}

/// Error of a replacement without link and program: tells whether the kernel has the command.
pub(crate) fn link_update_nothing() -> Option<i32> {
    let mut attr = LinkUpdateAttr { link: u32::MAX, program: u32::MAX, flags: 0, old_program: 0 };
    bpf(Command::LinkUpdate, &mut attr).err()?.raw_os_error()
}

#[repr(C)]
struct LinkDetachAttr {
    link: u32,
}

// SAFETY: laid out like `link_detach`; it has no pointers.
unsafe impl Attr for LinkDetachAttr {}

/// Takes a link's program from where it is attached, before this returns.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::LinkDetach, &mut LinkDetachAttr { link: link.as_raw_fd() as u32 }).map(drop)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

// SAFETY: laid out like `info`; the caller below points at a live structure of the given length.
unsafe impl Attr for InfoAttr {}

/// What a link is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    /// A cgroup by id; zero when the cgroup has gone.
    Cgroup(u64),
    /// A network namespace by inode; zero when the namespace has gone.
    Netns(u32),
    /// Something that this program does not attach to.
    Other,
}

/// `struct bpf_link_info` with the members of both kinds of link that we use.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    target: [u32; 4],
}

/// Fills a structure that is a prefix of what the kernel tells about an object of its kind.
fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let attr = &mut InfoAttr {
        fd: object.as_raw_fd() as u32,
        length: size_of::<T>() as u32,
        info: (&raw mut *info) as u64,
    };
    bpf(Command::ObjInfo, attr).map(drop)
}

/// Asks what a link is attached to.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    const CGROUP: u32 = 3;
    const NETNS: u32 = 5;
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    let [low, high, _, _] = info.target;
    Ok(match info.kind {
        CGROUP if cfg!(target_endian = "little") => {
            LinkTarget::Cgroup(u64::from(high) << 32 | u64::from(low))
        }
        CGROUP => LinkTarget::Cgroup(u64::from(low) << 32 | u64::from(high)),
        NETNS => LinkTarget::Netns(low),
        _ => LinkTarget::Other,
    })
}

/// The number of the program that a link runs at present.
pub(crate) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    Ok(info.program)
}

#[repr(C)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

// SAFETY: laid out like the anonymous struct of BPF_*_GET_FD_BY_ID; it has no pointers.
unsafe impl Attr for IdAttr {}

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
struct ProgramInfo {
    before: [u64; 8],
    name: [u8; 16],
}

/// The name of a loaded program, cut by the kernel after fifteen bytes.
pub(crate) fn program_name(id: u32) -> io::Result<String> {
    let program = bpf_fd(Command::ProgFdById, &mut IdAttr { id, next: 0, flags: 0 })?;
    let mut info = ProgramInfo { before: [0; 8], name: [0; 16] };
    object_info(program.as_fd(), &mut info)?;
    let name = info.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

#[repr(C)]
struct QueryAttr {
    target: u32,
    attach: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

// SAFETY: laid out like `query`; the caller below points at room for `count` numbers.
unsafe impl Attr for QueryAttr {}

/// Numbers of the programs at a cgroup or in a network namespace, in the order in which they run (the first 256).
/// `attach` is of `enum bpf_attach_type`; with `effective`, which only cgroups know, those of its parents follow.
pub(crate) fn attached(target: BorrowedFd<'_>, attach: u32, effective: bool) -> io::Result<Vec<u32>> {
    const ROOM: usize = 256;
    let mut ids = vec![0_u32; ROOM];
    let mut attr = QueryAttr {
        target: target.as_raw_fd() as u32,
        attach,
        flags: u32::from(effective),
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ROOM as u32,
        padding: 0,
    };
    match bpf(Command::ProgQuery, &mut attr) {
        Err(error) if error.raw_os_error() != Some(libc::ENOSPC) => return Err(error),
        Ok(_) | Err(_) => {}
    }
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// `getsockopt` of an eight-byte option.
fn socket_option_u64(socket: BorrowedFd<'_>, option: c_int) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `value` and `length` live for the call, and `length` is the size of `value`.
    let result = unsafe {
        let value = (&raw mut value).cast::<c_void>();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Cookie of the network namespace in which a socket lives (`SO_NETNS_COOKIE`, Linux 5.14).
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: c_int = 71;
    socket_option_u64(socket.as_fd(), SO_NETNS_COOKIE)
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of the programs.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

//! Ports for servers that bind them only later, and perhaps again.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

/// Where to look: beyond what services usually have.
const CANDIDATES: RangeInclusive<u16> = 10_000..=u16::MAX;

/// What this process has taken; never given back, so that a server may be started again at its port.
static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A port that nobody has, that no other test gets while this process lives, and that no client's connection takes
/// before its server has bound it: it is none of those that the kernel chooses.
///
/// # Errors
/// All are in use, or the kernel does not say which ones it chooses from.
pub fn free_port() -> Result<u16> {
    let of_clients = ports_of_clients()?;
    let mut ports: Vec<u16> = CANDIDATES.filter(|port| !of_clients.contains(port)).collect();
    // Processes that run side by side begin at different places.
    let start = usize::try_from(std::process::id())? % ports.len().max(1);
    ports.rotate_left(start);
    let taken = ports.into_iter().find_map(|port| Some((port, take(port)?)));
    let (port, reservation) = taken.context("no port is free")?;
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(reservation);
    Ok(port)
}

/// Whoever has the port's name among the abstract Unix sockets has the port.
fn take(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("weft-tests-port-{port}")).ok()?;
    let reservation = UnixListener::bind_addr(&name).ok()?;
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok()?;
    Some(reservation)
}

fn ports_of_clients() -> Result<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let (first, last) = text.trim().split_once(char::is_whitespace).context("two numbers")?;
    Ok(first.parse()?..=last.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_none_is_a_clients() {
        let mut ports: Vec<u16> = (0..20).map(|_| free_port().unwrap()).collect();
        let of_clients = ports_of_clients().unwrap();
        assert!(ports.iter().all(|port| !of_clients.contains(port)), "{ports:?}");
        assert!(ports.iter().all(|port| take(*port).is_none()), "they stay reserved");
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    }
}

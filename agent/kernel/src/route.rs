//! The policy rule and route that loop marked connections of a pod to `lo`, and what the pod's namespace holds.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_ebpf_common::CAPTURE_MARK;

use crate::netlink::{Family, Message, NetlinkSocket, attributes, flag, u16_at, u32_at};

/// Table of the route; a number of our own ("we").
pub(crate) const TABLE: u32 = 0x7765;
/// Before the main table (32766), behind the local one (0).
pub(crate) const PRIORITY: u32 = 10;

/// Types and attributes of `linux/rtnetlink.h`, `linux/fib_rules.h`, `linux/if_addr.h`.
mod rt {
    pub(super) const NEW_LINK: u16 = 16;
    pub(super) const GET_LINK: u16 = 18;
    pub(super) const NEW_ADDRESS: u16 = 20;
    pub(super) const GET_ADDRESS: u16 = 22;
    pub(super) const NEW_ROUTE: u16 = 24;
    pub(super) const DELETE_ROUTE: u16 = 25;
    pub(super) const GET_ROUTE: u16 = 26;
    pub(super) const NEW_RULE: u16 = 32;
    pub(super) const DELETE_RULE: u16 = 33;
    pub(super) const GET_RULE: u16 = 34;

    pub(super) const RULE_PRIORITY: u16 = 6;
    pub(super) const RULE_MARK: u16 = 10;
    pub(super) const RULE_TABLE: u16 = 15;
    pub(super) const RULE_MASK: u16 = 16;
    pub(super) const RULE_TO_TABLE: u8 = 1;

    pub(super) const ROUTE_DEVICE: u16 = 4;
    pub(super) const ROUTE_SOURCE: u16 = 7;
    pub(super) const ROUTE_TABLE: u16 = 15;
    pub(super) const ROUTE_LOCAL: u8 = 2;
    pub(super) const ROUTE_STATIC: u8 = 4;
    pub(super) const SCOPE_HOST: u8 = 254;

    pub(super) const ADDRESS: u16 = 1;
    pub(super) const ADDRESS_LOCAL: u16 = 2;
    pub(super) const DEVICE_LOOPBACK: u16 = 772;

    /// Length of `rtmsg` and `fib_rule_hdr`.
    pub(super) const FIXED: usize = 12;
}

/// Index of `lo`, the first device of every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    /// The family of an address.
    pub(crate) fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Rule, route, addresses and devices of one network namespace.
#[derive(Debug)]
pub(crate) struct Routes {
    socket: NetlinkSocket,
}

impl Routes {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: NetlinkSocket::open(Family::Route)? })
    }

    /// Adds rule and route of a family; what exists already stays. `source` is what marked connections get as
    /// their source address.
    pub(crate) fn add(&mut self, family: IpFamily, source: Option<IpAddr>) -> io::Result<()> {
        let create = flag::CREATE | flag::EXCLUSIVE;
        let route = route(rt::NEW_ROUTE, create, family);
        let route = match source {
            Some(IpAddr::V4(addr)) => route.attribute(rt::ROUTE_SOURCE, &addr.octets()),
            Some(IpAddr::V6(addr)) => route.attribute(rt::ROUTE_SOURCE, &addr.octets()),
            None => route,
        };
        // The route first: a rule without it would send marked connections on to the next table.
        unless(self.socket.request(route), ErrorKind::AlreadyExists)?;
        unless(self.socket.request(rule(rt::NEW_RULE, create, family)), ErrorKind::AlreadyExists)
    }

    /// Removes rule and route of a family; succeeds when they have gone.
    pub(crate) fn remove(&mut self, family: IpFamily) -> io::Result<()> {
        unless_gone(self.socket.request(rule(rt::DELETE_RULE, 0, family)))?;
        unless_gone(self.socket.request(route(rt::DELETE_ROUTE, 0, family)))
    }

    /// Whether rule and route of a family are in place.
    pub(crate) fn present(&mut self, family: IpFamily) -> io::Result<bool> {
        let wanted = [
            (rt::RULE_PRIORITY, PRIORITY),
            (rt::RULE_MARK, CAPTURE_MARK),
            (rt::RULE_MASK, CAPTURE_MARK),
            (rt::RULE_TABLE, TABLE),
        ];
        let mut has_rule = false;
        let list = Message::new(rt::GET_RULE, 0, &fixed(family, 0, 0, 0));
        self.socket.dump(list, |kind, body| {
            has_rule |= kind == rt::NEW_RULE && has_numbers(body, &wanted);
        })?;
        if !has_rule {
            return Ok(false);
        }
        let mut has_route = false;
        let list = Message::new(rt::GET_ROUTE, 0, &fixed(family, 0, 0, 0)).number(rt::ROUTE_TABLE, TABLE);
        self.socket.dump(list, |kind, body| {
            has_route |= kind == rt::NEW_ROUTE && has_numbers(body, &[(rt::ROUTE_TABLE, TABLE)]);
        })?;
        Ok(has_route)
    }

    /// All addresses of the namespace but those of loopback, without repetition.
    pub(crate) fn addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        const FIXED: usize = 8;
        let mut found = BTreeSet::new();
        self.socket.dump(Message::new(rt::GET_ADDRESS, 0, &[0; FIXED]), |kind, body| {
            if kind != rt::NEW_ADDRESS {
                return;
            }
            let value =
                |wanted| attributes(body, FIXED).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
            // For IPv4 the local end differs from the address on point-to-point devices.
            let addr = value(rt::ADDRESS_LOCAL).or_else(|| value(rt::ADDRESS)).and_then(ip);
            found.extend(addr.filter(|addr| !addr.is_loopback()));
        })?;
        Ok(found)
    }

    /// Whether the namespace has a device besides `lo`.
    pub(crate) fn has_device(&mut self) -> io::Result<bool> {
        const FIXED: usize = 16;
        const TYPE_AT: usize = 2;
        let mut found = false;
        self.socket.dump(Message::new(rt::GET_LINK, 0, &[0; FIXED]), |kind, body| {
            found |= kind == rt::NEW_LINK && u16_at(body, TYPE_AT) != Some(rt::DEVICE_LOOPBACK);
        })?;
        Ok(found)
    }
}

/// `rtmsg` and `fib_rule_hdr` have the same shape; `last` is the type of a route, the action of a rule.
fn fixed(family: IpFamily, protocol: u8, scope: u8, last: u8) -> [u8; rt::FIXED] {
    [family.number(), 0, 0, 0, 0, protocol, scope, last, 0, 0, 0, 0]
}

fn rule(kind: u16, flags: u16, family: IpFamily) -> Message {
    Message::new(kind, flags, &fixed(family, 0, 0, rt::RULE_TO_TABLE))
        .number(rt::RULE_PRIORITY, PRIORITY)
        .number(rt::RULE_MARK, CAPTURE_MARK)
        .number(rt::RULE_MASK, CAPTURE_MARK)
        .number(rt::RULE_TABLE, TABLE)
}

fn route(kind: u16, flags: u16, family: IpFamily) -> Message {
    Message::new(kind, flags, &fixed(family, rt::ROUTE_STATIC, rt::SCOPE_HOST, rt::ROUTE_LOCAL))
        .number(rt::ROUTE_TABLE, TABLE)
        .number(rt::ROUTE_DEVICE, LOOPBACK_INDEX)
}

fn has_numbers(body: &[u8], wanted: &[(u16, u32)]) -> bool {
    wanted.iter().all(|(kind, value)| {
        attributes(body, rt::FIXED).any(|(found, bytes)| found == *kind && u32_at(bytes, 0) == Some(*value))
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

fn unless(result: io::Result<()>, accepted: ErrorKind) -> io::Result<()> {
    result.or_else(|error| if error.kind() == accepted { Ok(()) } else { Err(error) })
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    const GONE: [i32; 4] = [libc::ENOENT, libc::ESRCH, libc::EAFNOSUPPORT, libc::ENODEV];
    result.or_else(|error| match error.raw_os_error() {
        Some(code) if GONE.contains(&code) => Ok(()),
        _ => Err(error),
    })
}

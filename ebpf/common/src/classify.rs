//! Pure decisions of the programs, unit-tested on the host.

use crate::{Addr, TUPLE_LIFETIME_NS};

/// TCP states as the kernel numbers them (`include/net/tcp_states.h`).
pub mod tcp_state {
    /// `TCP_ESTABLISHED`.
    pub const ESTABLISHED: u32 = 1;
    /// `TCP_FIN_WAIT1`.
    pub const FIN_WAIT1: u32 = 4;
    /// `TCP_FIN_WAIT2`.
    pub const FIN_WAIT2: u32 = 5;
    /// `TCP_TIME_WAIT`.
    pub const TIME_WAIT: u32 = 6;
    /// `TCP_CLOSE`.
    pub const CLOSE: u32 = 7;
    /// `TCP_CLOSE_WAIT`.
    pub const CLOSE_WAIT: u32 = 8;
    /// `TCP_LAST_ACK`.
    pub const LAST_ACK: u32 = 9;
    /// `TCP_CLOSING`.
    pub const CLOSING: u32 = 11;
}

/// Third word of a v4-mapped address.
pub const V4_MARKER: u32 = 0xffff_u32.to_be();

/// An IPv4 address (network order in memory) as an [`Addr`].
#[inline(always)]
pub const fn mapped(v4: u32) -> Addr {
    [0, 0, V4_MARKER, v4]
}

/// An address in network order as an [`Addr`].
pub const fn from_octets(octets: [u8; 16]) -> Addr {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// An [`Addr`] in network order.
pub const fn to_octets(addr: Addr) -> [u8; 16] {
    let [a, b, c, d] =
        [addr[0].to_ne_bytes(), addr[1].to_ne_bytes(), addr[2].to_ne_bytes(), addr[3].to_ne_bytes()];
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// Whether two addresses are the same (by words: the programs have no `memcmp`).
#[inline(always)]
pub fn same(a: &Addr, b: &Addr) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}

/// The highest bit is set unless `bits` is zero: conditions can be joined without branches, each of which the verifier
/// follows both ways.
#[inline(always)]
fn sign_unless_zero(bits: u32) -> u32 {
    bits | bits.wrapping_neg()
}

/// Whether it is an IPv4 address.
#[inline(always)]
pub fn is_v4(a: &Addr) -> bool {
    a[0] | a[1] == 0 && a[2] == V4_MARKER
}

/// `127.0.0.0/8` or `::1`.
#[inline(always)]
pub fn is_loopback(a: &Addr) -> bool {
    const NET: u32 = 0xff00_0000_u32.to_be();
    let high = a[0] | a[1];
    let v4 = high | (a[2] ^ V4_MARKER) | ((a[3] & NET) ^ 0x7f00_0000_u32.to_be());
    let v6 = high | a[2] | (a[3] ^ 1_u32.to_be());
    (sign_unless_zero(v4) & sign_unless_zero(v6)) >> 31 == 0
}

/// `0.0.0.0` or `::`.
#[inline(always)]
pub fn is_unspecified(a: &Addr) -> bool {
    a[0] | a[1] | a[3] == 0 && (a[2] == 0 || a[2] == V4_MARKER)
}

/// `169.254.0.0/16` or `fe80::/10`.
#[inline(always)]
pub fn is_link_local(a: &Addr) -> bool {
    if is_v4(a) { u32::from_be(a[3]) >> 16 == 0xa9fe } else { u32::from_be(a[0]) >> 22 == 0xfe80 >> 6 }
}

/// `224.0.0.0/4` or `ff00::/8`.
#[inline(always)]
pub fn is_multicast(a: &Addr) -> bool {
    if is_v4(a) { u32::from_be(a[3]) >> 28 == 0xe } else { u32::from_be(a[0]) >> 24 == 0xff }
}

/// Destinations that never leave the pod or its link: not the mesh's business.
#[inline(always)]
pub fn never_captured(a: &Addr) -> bool {
    is_loopback(a) || is_unspecified(a) || is_link_local(a) || is_multicast(a)
}

/// Whether `then` lies at most `lifetime` nanoseconds before `now`. A clock that another CPU read a moment
/// later than ours is fresh, too.
#[inline(always)]
pub fn fresh(now: u64, then: u64, lifetime: u64) -> bool {
    then != 0 && now.saturating_sub(then) <= lifetime
}

/// Whether a tuple that was published at `then` may still be honoured.
#[inline(always)]
pub fn tuple_fresh(now: u64, then: u64) -> bool {
    fresh(now, then, TUPLE_LIFETIME_NS)
}

/// Bytes that the application sent and the peer has, of a socket that opened a connection.
///
/// `bytes_acked` counts the SYN, and the FIN once it is acknowledged; `state` is the socket's (for a closing
/// socket: the last before `CLOSE`).
#[inline(always)]
pub fn payload_sent(bytes_acked: u64, state: u32) -> u64 {
    let fin = matches!(
        state,
        tcp_state::FIN_WAIT2 | tcp_state::TIME_WAIT | tcp_state::LAST_ACK | tcp_state::CLOSING
    );
    // In LAST_ACK and CLOSING the socket closes when the FIN has been acknowledged; live sockets still wait.
    bytes_acked.saturating_sub(1 + fin as u64)
}

/// Bytes that the application's peer sent: `bytes_received` counts the peer's FIN.
///
/// A socket in FIN-WAIT-2 either has just received the FIN or is left by its process without one: then
/// nothing has arrived since it entered that state (`at_fin_wait`, the low half of its count then).
#[inline(always)]
pub fn payload_received(bytes_received: u64, state: u32, at_fin_wait: u32) -> u64 {
    let fin = match state {
        tcp_state::CLOSE_WAIT | tcp_state::LAST_ACK | tcp_state::CLOSING | tcp_state::TIME_WAIT => true,
        tcp_state::FIN_WAIT2 => bytes_received as u32 != at_fin_wait,
        _ => false,
    };
    bytes_received.saturating_sub(fin as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(text: &str) -> Addr {
        from_octets(text.parse::<core::net::Ipv6Addr>().unwrap().octets())
    }

    fn v4(octets: [u8; 4]) -> Addr {
        mapped(u32::from_ne_bytes(octets))
    }

    #[test]
    fn octets_round_trip() {
        let octets = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6];
        assert_eq!(to_octets(from_octets(octets)), octets);
        assert_eq!(to_octets(v4([10, 0, 0, 1])), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
    }

    #[test]
    fn same_sees_a_difference_in_every_word() {
        let addr = v6("2001:db8::1");
        assert!(same(&addr, &addr));
        for at in 0..4 {
            let mut other = addr;
            other[at] ^= 0x100;
            assert!(!same(&addr, &other), "word {at}");
        }
    }

    #[test]
    fn families() {
        assert!(is_v4(&v4([0, 0, 0, 0])));
        assert!(!is_v4(&v6("::1")));
        assert!(!is_v4(&v6("1::ffff:1.2.3.4")));
    }

    #[test]
    fn loopback_is_what_the_standard_library_takes_for_it() {
        for octets in
            [[127, 0, 0, 1], [127, 255, 1, 9], [126, 0, 0, 1], [128, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 127]]
        {
            let expected = core::net::Ipv4Addr::from(octets).is_loopback();
            assert_eq!(is_loopback(&v4(octets)), expected, "{octets:?}");
        }
        for addr in [
            "::1",
            "::",
            "::2",
            "::7f00:1",
            "1::1",
            "0:1::1",
            "0:0:0:0:1::1",
            "::1:0:0:1",
            "::fffe:127.0.0.1",
        ] {
            let expected = addr.parse::<core::net::Ipv6Addr>().unwrap().is_loopback();
            assert_eq!(is_loopback(&v6(addr)), expected, "{addr}");
        }
    }

    #[test]
    fn addresses_that_are_never_captured() {
        for addr in ["127.0.0.1", "127.255.0.9", "0.0.0.0", "169.254.169.254", "224.0.0.1", "239.1.2.3"] {
            let octets = addr.parse::<core::net::Ipv4Addr>().unwrap().octets();
            assert!(never_captured(&v4(octets)), "{addr}");
        }
        for addr in ["::1", "::", "fe80::1", "febf::1", "ff02::1"] {
            assert!(never_captured(&v6(addr)), "{addr}");
        }
    }

    #[test]
    fn addresses_that_are_captured() {
        for octets in
            [[10, 0, 0, 1], [128, 0, 0, 1], [126, 0, 0, 1], [169, 253, 0, 1], [240, 0, 0, 1], [223, 0, 0, 1]]
        {
            assert!(!never_captured(&v4(octets)), "{octets:?}");
        }
        for addr in ["::2", "fd00::1", "fec0::1", "2001:db8::1", "::1:0:0:1"] {
            assert!(!never_captured(&v6(addr)), "{addr}");
        }
    }

    #[test]
    fn freshness() {
        assert!(fresh(100, 90, 10));
        assert!(!fresh(101, 90, 10));
        assert!(fresh(80, 90, 10), "the other CPU's clock is ahead");
        assert!(!fresh(5, 0, 10), "never written");
        assert!(tuple_fresh(TUPLE_LIFETIME_NS + 7, 7));
        assert!(!tuple_fresh(TUPLE_LIFETIME_NS + 8, 7));
    }

    #[test]
    fn handshake_and_fin_are_no_payload() {
        assert_eq!(payload_sent(101, tcp_state::ESTABLISHED), 100);
        assert_eq!(payload_sent(102, tcp_state::FIN_WAIT2), 100);
        assert_eq!(payload_sent(0, tcp_state::ESTABLISHED), 0);
        assert_eq!(payload_received(100, tcp_state::ESTABLISHED, 0), 100);
        assert_eq!(payload_received(101, tcp_state::CLOSE_WAIT, 0), 100);
        assert_eq!(payload_received(100, tcp_state::FIN_WAIT2, 100), 100, "left without a FIN");
        assert_eq!(payload_received(101, tcp_state::FIN_WAIT2, 100), 100, "FIN just arrived");
    }
}

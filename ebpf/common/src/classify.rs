//! Pure decisions of the programs, unit-tested on the host.

use crate::Addr;

/// Prefix of a v4-mapped address.
pub const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An IPv4 address (network order) as an [`Addr`].
#[inline(always)]
pub fn mapped(v4: [u8; 4]) -> Addr {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

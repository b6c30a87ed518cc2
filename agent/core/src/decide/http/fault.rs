//! Injected faults (V-26, E20 to E24).

use std::time::Duration;

use crate::resource::virtual_service::{AbortStatus, Fault, PerMillion};

/// The faults of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultDraw {
    /// The request waits so long; the route's timeout does not count it (E22).
    pub delay: Option<Duration>,
    /// After the delay the mesh answers, and no retry follows (E20, E23).
    pub abort: Option<AbortStatus>,
}

/// Draws delay and abort independently (S-08). `random(n)` answers a number below `n`.
pub fn draw_fault(fault: &Fault, random: &mut dyn FnMut(u64) -> u64) -> FaultDraw {
    let delay = fault.delay.filter(|(share, _)| drawn(*share, random)).map(|(_, delay)| delay);
    let abort = fault.abort.filter(|(share, _)| drawn(*share, random)).map(|(_, status)| status);
    FaultDraw { delay, abort }
}

/// Whether one request belongs to a share of all. `random(n)` answers a number below `n`.
pub fn drawn(share: PerMillion, random: &mut dyn FnMut(u64) -> u64) -> bool {
    match share {
        PerMillion(0) => false,
        PerMillion(1_000_000..) => true,
        PerMillion(part) => random(u64::from(PerMillion::ALL.0)) < u64::from(part),
    }
}

//! What never reaches the client's proxy: the pod's own addresses, and what its annotations exclude (C-2, C-3).

use std::net::IpAddr;

use weft_core::Snapshot;
use weft_core::snapshot::CaptureRules;

use super::source::Source;
use super::target::{Target, To};

/// Why a captured pod's connection is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeftAlone {
    /// It goes to the pod itself, where nobody is asked either.
    Own,
    /// The pod's annotations exclude it: the client's side does not apply.
    Excluded,
}

impl LeftAlone {
    /// `None` for what is captured, and for clients whose capture is not known here.
    pub(super) fn of(snapshot: &Snapshot, source: &Source, target: &Target) -> Option<Self> {
        let workload = source.as_pod().filter(|_| source.in_mesh)?;
        let addresses = addresses(target);
        let every = |test: &dyn Fn(&IpAddr) -> bool| !addresses.is_empty() && addresses.iter().all(test);
        if every(&|ip| workload.ips.contains(ip)) {
            return Some(Self::Own);
        }
        let rules: &CaptureRules = &snapshot.local_workload(&workload.key)?.capture;
        // Where a name leads that only DNS knows, nobody knows here.
        let excluded = match rules.captures_outbound_port(target.port) {
            Some(captured) => !captured,
            None => every(&|ip| !rules.captures_outbound_address(ip)),
        };
        excluded.then_some(Self::Excluded)
    }

    /// In words.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Own => "This is the client's own address: nothing is captured, and no rule applies.",
            Self::Excluded => {
                "Annotations of the client's Pod exclude this destination from capture: it is reached in plaintext, and no rule of the client's side applies."
            }
        }
    }
}

fn addresses(target: &Target) -> Vec<IpAddr> {
    match &target.to {
        To::Address(ip) => vec![*ip],
        To::Service(service) if service.vips.is_empty() => {
            let endpoints = service.ports.iter().flat_map(|port| port.endpoints.iter());
            endpoints.map(|endpoint| endpoint.addr().ip()).collect()
        }
        To::Service(service) => service.vips.iter().copied().collect(),
        To::Stranger(_) => Vec::new(),
    }
}

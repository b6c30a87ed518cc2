//! Envoys that do the same hop: a pair with mTLS between two pods, and a single one without.

use anyhow::Result;
use weft_lab::{Lab, Process};

use super::{GRPC, HTTP};
use crate::bench::envoy::{Hop, Protocol, Starter, Tls, at};

/// Where the client's Envoy listens in its pod: HTTP/1.1 and HTTP/2 over mTLS to the other node, HTTP/1.1 over mTLS on the own one, one plain hop.
pub(super) const PAIR: u16 = 1101;
pub(super) const PAIR_H2: u16 = 1102;
pub(super) const PAIR_NEAR: u16 = 1104;
pub(super) const HOP: u16 = 1103;
/// Where the server's Envoy takes TLS.
const INBOUND: u16 = 1111;
const INBOUND_H2: u16 = 1112;

/// All Envoys of the bench. Killed when dropped.
#[derive(Debug)]
pub(super) struct Envoys {
    client: Process,
    far: Process,
    near: Process,
    hop: Process,
}

impl Envoys {
    /// Starts them in the pods of namespace `envoy`.
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        use Protocol::{Http1, Http2};
        let (starter, tls) = (Starter::new(lab)?, Tls::new(&lab.dir())?);
        let [client, far, near] = ["envoy/client", "envoy/far", "envoy/near"].map(|pod| lab.pod(pod));
        let (client, far, near) = (client?, far?, near?);
        let egress = [
            Hop::egress(PAIR, Http1, at(far, INBOUND), &tls),
            Hop::egress(PAIR_H2, Http2, at(far, INBOUND_H2), &tls),
            Hop::egress(PAIR_NEAR, Http1, at(near, INBOUND), &tls),
        ];
        let ingress = [Hop::ingress(INBOUND, Http1, HTTP, &tls), Hop::ingress(INBOUND_H2, Http2, GRPC, &tls)];
        Ok(Self {
            client: starter.start(client, "egress", &egress)?,
            far: starter.start(far, "ingress-far", &ingress)?,
            near: starter.start(near, "ingress-near", &ingress)?,
            hop: starter.start(client, "hop", &[Hop::plain(HOP, Http1, at(near, HTTP))])?,
        })
    }

    /// The pair between two nodes.
    pub(super) fn cross_pair(&self) -> [u32; 2] {
        [self.client.pid(), self.far.pid()]
    }

    /// The pair on one node.
    pub(super) fn same_pair(&self) -> [u32; 2] {
        [self.client.pid(), self.near.pid()]
    }

    /// The one without TLS.
    pub(super) fn hop(&self) -> [u32; 1] {
        [self.hop.pid()]
    }
}

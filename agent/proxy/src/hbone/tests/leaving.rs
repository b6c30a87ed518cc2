//! Tunnels over time: bursts, and peers that go away, in good order and without.

use super::*;
use crate::foreign::Foreign;

/// A peer that ends no stream by itself, and the address of a pod behind it.
async fn far() -> (Bed, Foreign, SocketAddr) {
    let bed = Bed::new("b");
    let peer = Foreign::serve(&bed).await;
    let addr = SocketAddr::new(bed.server_ip, 80);
    (bed, peer, addr)
}

#[test]
fn however_many_tunnels_break_at_once_a_new_stream_finds_another_one() {
    run(async {
        let (bed, peer, addr) = far().await;
        let opened = futures_util::future::join_all((0..350).map(|_| open(&bed, addr))).await;
        let streams: Vec<_> = opened.into_iter().map(|it| it.map_err(failure).unwrap()).collect();
        assert_eq!((streams.len(), peer.tunnels(), bed.worker.tunnels.open()), (350, 4, 4));
        // Nobody on this thread can have noticed when the next stream asks for a place.
        drop(peer.stop().await);
        let next = open(&bed, addr).await.map_err(failure).unwrap();
        assert_eq!((peer.tunnels(), bed.worker.tunnels.open()), (1, 1));
        drop((streams, next));
    });
}

#[test]
fn a_tunnel_whose_peer_goes_away_is_out_of_the_pool_before_anybody_asks() {
    run(async {
        let (bed, peer, addr) = far().await;
        let stream = open(&bed, addr).await.map_err(failure).unwrap();
        assert_eq!(bed.worker.tunnels.open(), 1);
        peer.leave();
        bed.until("an empty pool", |bed| bed.worker.tunnels.open() == 0).await;
        assert_eq!(peer.ended(), 0, "its stream goes on");
        drop(stream);
        bed.until("the end of the tunnel", |_| peer.ended() == 1).await;
    });
}

#[test]
fn after_a_burst_streams_gather_in_one_tunnel() {
    run(async {
        let (bed, _peer, addr) = far().await;
        let burst = futures_util::future::join_all((0..350).map(|_| open(&bed, addr))).await;
        assert_eq!((bed.worker.tunnels.open(), bed.worker.tunnels.busy()), (4, 4));
        drop(burst);
        let mut few = Vec::new();
        for _ in 0..5 {
            few.push(open(&bed, addr).await.map_err(failure).unwrap());
        }
        assert_eq!((bed.worker.tunnels.open(), bed.worker.tunnels.busy()), (4, 1));
    });
}

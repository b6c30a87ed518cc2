//! Connections in tunnels whose peers go away.

use super::*;
use crate::foreign::Foreign;
use crate::testbed::run;

fn far(client: &Client) -> Arc<Cluster> {
    cluster(&[SocketAddr::new(client.bed.server_ip, 80)], policy())
}

#[test]
fn what_rests_in_a_tunnel_ends_when_its_peer_goes_away() {
    run(async {
        let client = Client::new(Bed::new("b"), UpstreamProtocol::Http1);
        let (peer, cluster) = (Foreign::serve(&client.bed).await, far(&client));
        assert_eq!(client.get(&cluster).await.unwrap().0, StatusCode::OK);
        assert_eq!(client.get(&cluster).await.unwrap().0, StatusCode::OK);
        assert_eq!((peer.tunnels(), peer.ended()), (1, 0));
        peer.leave();
        // The peer ends no stream: this side has to.
        client.bed.until("the end of the tunnel", |_| peer.ended() == 1).await;
        assert_eq!(client.get(&cluster).await.unwrap().0, StatusCode::OK);
        assert_eq!(peer.tunnels(), 2);
    });
}

#[test]
fn a_request_in_a_tunnel_whose_peer_goes_away_is_answered_and_then_it_ends() {
    run(async {
        let client = Client::new(Bed::new("b"), UpstreamProtocol::Http1);
        let (peer, cluster) = (Foreign::serve(&client.bed).await, far(&client));
        peer.gate.forget_permits(Semaphore::MAX_PERMITS);
        let asked = client.spawn_get(&cluster);
        client.bed.until("a request", |_| peer.requests() == 1).await;
        peer.leave();
        client.bed.until("an empty pool", |bed| bed.worker.tunnels.open() == 0).await;
        assert_eq!(peer.ended(), 0);
        peer.gate.add_permits(1);
        assert_eq!(asked.await.unwrap().unwrap().0, StatusCode::OK);
        client.bed.until("the end of the tunnel", |_| peer.ended() == 1).await;
    });
}

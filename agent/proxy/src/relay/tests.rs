use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use weft_kernel::Netns;

use super::*;
use crate::pod::Pod;
use crate::registry::Registry;
use crate::testbed::{connected, much_both_ways, name, run};

/// An application on each side of a relay.
struct Relayed {
    client: TcpStream,
    server: TcpStream,
    registry: Rc<Registry>,
    pod: Arc<Pod>,
    end: JoinHandle<(End, (u64, u64))>,
}

async fn relayed() -> Relayed {
    let ((client, downstream), (server, upstream)) = (connected().await, connected().await);
    let pod =
        Arc::new(Pod::new(name("pod"), Arc::new(Netns::current().unwrap()), &crate::ProxyConfig::default()));
    let registry = Rc::new(Registry::default());
    let live = registry.connection(&pod, None);
    let end = tokio::task::spawn_local(async move {
        let meter = Meter::new([None, None], None);
        let end = relay(Pair::Tcp(downstream, upstream), Ahead::default(), &meter, &live).await;
        (end, meter.bytes())
    });
    Relayed { client, server, registry, pod, end }
}

#[test]
fn each_direction_ends_on_its_own() {
    run(async {
        let mut it = relayed().await;
        it.client.write_all(b"question").await.unwrap();
        it.client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        it.server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"question");
        // The server goes on after the client's end of stream.
        it.server.write_all(b"a longer answer").await.unwrap();
        it.server.shutdown().await.unwrap();
        heard.clear();
        it.client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"a longer answer");
        assert_eq!(it.end.await.unwrap(), (End::Clean, (8, 15)));
    });
}

#[test]
fn the_server_may_end_first() {
    run(async {
        let mut it = relayed().await;
        it.server.write_all(b"banner").await.unwrap();
        it.server.shutdown().await.unwrap();
        let mut heard = Vec::new();
        it.client.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"banner");
        it.client.write_all(b"thanks").await.unwrap();
        it.client.shutdown().await.unwrap();
        heard.clear();
        it.server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"thanks");
        assert_eq!(it.end.await.unwrap().0, End::Clean);
    });
}

#[test]
fn a_reset_passes_through_as_a_reset() {
    run(async {
        let mut it = relayed().await;
        it.client.write_all(b"x").await.unwrap();
        it.server.read_exact(&mut [0]).await.unwrap();
        net::reset(it.client);
        let error = it.server.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(it.end.await.unwrap().0, End::Reset);
    });
}

#[test]
fn a_cut_resets_both_sides() {
    run(async {
        let mut it = relayed().await;
        it.client.write_all(b"x").await.unwrap();
        it.server.read_exact(&mut [0]).await.unwrap();
        it.registry.cut(Some(&it.pod), &Cut::PodRemoved);
        for side in [&mut it.client, &mut it.server] {
            assert_eq!(side.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        assert_eq!(it.end.await.unwrap().0, End::Cut(Cut::PodRemoved));
        assert!(it.registry.is_empty(None));
    });
}

#[test]
fn much_arrives_as_it_was_sent_in_both_directions() {
    run(async {
        let it = relayed().await;
        much_both_ways(it.client, it.server, 64 << 20).await;
        assert_eq!(it.end.await.unwrap(), (End::Clean, (64 << 20, 64 << 20)));
    });
}

#[test]
fn a_reader_that_pauses_bounds_what_is_held() {
    run(async {
        let mut it = relayed().await;
        // As much as the kernel and the relay take; then nothing more.
        let mut taken = 0;
        let chunk = vec![7; 256 * 1024];
        while let Ok(Ok(count)) =
            tokio::time::timeout(std::time::Duration::from_millis(300), it.client.write(&chunk)).await
        {
            taken += count;
            assert!(taken < 64 << 20, "nobody slows the sender down");
        }
        let held = taken;
        tokio::task::spawn_local(async move {
            it.client.shutdown().await.unwrap();
            let _ = it.client.read(&mut [0]).await;
        });
        let mut heard = 0;
        let mut buf = vec![0; 1 << 20];
        loop {
            match it.server.read(&mut buf).await.unwrap() {
                0 => break,
                count => heard += count,
            }
        }
        assert_eq!(heard, held);
    });
}

#[test]
fn urgent_data_does_not_break_a_connection() {
    run(async {
        let mut it = relayed().await;
        it.client.write_all(b"before").await.unwrap();
        assert_eq!(socket2::SockRef::from(&it.client).send_out_of_band(b"!").unwrap(), 1);
        it.client.write_all(b"after").await.unwrap();
        it.client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        it.server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"beforeafter");
        drop(it.server);
        assert_eq!(it.end.await.unwrap().0, End::Clean);
    });
}

#[test]
fn an_idle_relay_is_small() {
    // What an idle connection keeps of the relay; buffers are not among it.
    assert!(size_of::<TcpToTcp>() <= 48, "{}", size_of::<TcpToTcp>());
    assert!(size_of::<H2ToTcp>() <= 48, "{}", size_of::<H2ToTcp>());
    assert!(size_of::<TcpToH2>() <= 32, "{}", size_of::<TcpToH2>());
}

#[test]
fn reads_grow_under_load_and_shrink_again() {
    let mut size = ReadSize::new();
    assert_eq!(size.get(), SMALLEST_READ);
    for _ in 0..3 {
        size.after(size.get(), size.get());
    }
    assert_eq!(size.get(), LARGEST_READ);
    for _ in 0..8 {
        size.after(100, size.get());
    }
    assert_eq!(size.get(), SMALLEST_READ);
}

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use weft_core::resource::NamespacedName;

use super::wire::{Listener, Wire};
use super::*;
use crate::agent::node::Event;

/// An agent with a reconciler that is the test.
struct Bed {
    dir: tempfile::TempDir,
    events: Receiver<Event>,
    retired: UnboundedReceiver<Retirement>,
    _events: Sender<Event>,
}

impl Bed {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let Seat::Free(lock) = Seat::find(dir.path()).unwrap() else { panic!("nobody else is here") };
        let (events, received) = channel();
        let (retired, retirement) = unbounded_channel();
        let giver = Giver {
            node: "a".into(),
            instance: "first".into(),
            replaced: vec!["before".into()],
            lock,
            reconciler: Some(events.clone()),
            retired,
        };
        giver.start(&dir.path().join(SOCKET)).unwrap();
        Self { dir, events: received, retired: retirement, _events: events }
    }

    fn take(&self, hello: &Hello) -> anyhow::Result<Result<Taken, File>> {
        Seat::take(self.dir.path(), hello)
    }

    /// Answers for the reconciler; the receiver is its wait for the end.
    fn offer(&self) -> Receiver<()> {
        let Event::Successor(take) = self.events.recv().unwrap() else { panic!("a successor asks") };
        let (taken_over, outcome) = channel();
        let socket = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners =
            weft_kernel::Listeners { inbound: vec![socket(), socket()], outbound: vec![socket()] };
        let lock = File::open(self.dir.path()).unwrap().into();
        let listeners = vec![(NamespacedName::new("shop", "cart"), listeners)];
        take.send(Ok(Offer { lock, listeners, taken_over })).unwrap();
        outcome
    }
}

fn hello(node: &str, instance: &str) -> Hello {
    Hello::of(node, instance).unwrap()
}

#[test]
fn a_successor_gets_locks_and_sockets_and_the_predecessor_its_word() {
    let mut bed = Bed::start();
    assert!(matches!(Seat::find(bed.dir.path()).unwrap(), Seat::Occupied));
    std::thread::scope(|scope| {
        let here = bed.dir.path();
        let taking = scope.spawn(|| Seat::take(here, &hello("a", "second")).unwrap().unwrap());
        let outcome = bed.offer();
        let mut taken = taking.join().unwrap();
        assert_eq!(taken.replaced, ["before", "first"]);
        let inheritance = std::mem::take(&mut taken.inheritance);
        assert!(inheritance.lock.is_some());
        let [(pod, listeners)] = inheritance.listeners.as_slice() else { panic!("one pod") };
        assert_eq!(pod, &NamespacedName::new("shop", "cart"));
        assert_eq!((listeners.inbound.len(), listeners.outbound.len()), (2, 1));
        let at = listeners.inbound[0].local_addr().unwrap();
        std::net::TcpStream::connect(at).expect("it is the socket itself");
        assert!(outcome.try_recv().is_err(), "nothing has been decided");

        let committing = scope.spawn(|| taken.commit().unwrap());
        outcome.recv().unwrap();
        let retirement = bed.retired.blocking_recv().unwrap();
        assert_eq!((retirement.by.instance.as_str(), retirement.same_netns), ("second", true));
        retirement.done.send(()).unwrap();
        committing.join().unwrap();
    });
    // The predecessor's thread lets go of its copy after its last word.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !matches!(Seat::find(bed.dir.path()).unwrap(), Seat::Free(_)) {
        assert!(Instant::now() < deadline, "the lock went to the successor, which has ended");
        std::thread::yield_now();
    }
}

#[test]
fn a_successor_that_fails_leaves_everything_as_it_was() {
    let bed = Bed::start();
    for _ in 0..2 {
        std::thread::scope(|scope| {
            let here = bed.dir.path();
            let taking = scope.spawn(|| Seat::take(here, &hello("a", "second")).unwrap().unwrap());
            let outcome = bed.offer();
            drop(taking.join().unwrap());
            assert!(outcome.recv().is_err(), "nobody will say a word");
        });
    }
    assert!(matches!(Seat::find(bed.dir.path()).unwrap(), Seat::Occupied));
}

#[test]
fn agents_of_other_nodes_and_those_that_were_replaced_are_refused() {
    let bed = Bed::start();
    for (hello, why) in [
        (hello("b", "other"), "for node b"),
        (hello("a", "before"), "was replaced"),
        (Hello { protocol: PROTOCOL + 1, ..hello("a", "newer") }, "speaks version"),
    ] {
        let error = bed.take(&hello).map(drop).unwrap_err();
        assert!(error.is::<Refused>(), "{error:#}");
        assert!(error.to_string().contains(why), "{error:#}");
    }
    assert!(bed.events.try_recv().is_err(), "the reconciler is not even asked");
}

#[test]
fn nonsense_and_silence_do_no_harm() {
    let bed = Bed::start();
    let path = bed.dir.path().join(SOCKET);
    for text in ["", "{", "7", "\"commit\"", "{\"pod\":{}}"] {
        let wire = Wire::connect(&path).unwrap();
        wire.send(&text, &[]).unwrap();
    }
    drop(Wire::connect(&path).unwrap());
    assert!(bed.take(&hello("b", "other")).is_err_and(|error| error.is::<Refused>()), "it goes on to answer");
}

#[test]
fn descriptors_arrive_with_their_message() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wire.sock");
    let listener = Listener::replace(&path).unwrap();
    let one = Wire::connect(&path).unwrap();
    let other = listener.accept().unwrap();
    let file = File::open(dir.path()).unwrap();
    one.send(&"with two", &[file.as_fd(), file.as_fd()]).unwrap();
    one.send(&"with none", &[]).unwrap();
    assert!(one.send(&"with too many", &[file.as_fd(); 17]).is_err());
    assert!(one.send(&"x".repeat(100_000), &[]).is_ok(), "what is too long is found by who hears it");
    drop(one);
    let (text, descriptors) = other.receive::<String>().unwrap().unwrap();
    assert_eq!((text.as_str(), descriptors.len()), ("with two", 2));
    let (text, descriptors) = other.receive::<String>().unwrap().unwrap();
    assert_eq!((text.as_str(), descriptors.len()), ("with none", 0));
    assert!(other.receive::<String>().is_err());
    assert!(other.receive::<String>().unwrap().is_none(), "the end");
}

/// A pod's sockets.
fn sockets() -> weft_kernel::Listeners {
    let socket = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    weft_kernel::Listeners { inbound: vec![socket()], outbound: vec![socket()] }
}

#[test]
fn a_holder_gives_back_what_an_agent_that_is_gone_had() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hold.sock");
    let listener = Listener::replace(&path).unwrap();
    let mut holder = holder::Holder::new(std::time::Duration::from_secs(6));
    let pod = |name: &str| NamespacedName::new("shop", name);
    let meet = |holder: &mut holder::Holder| {
        std::thread::scope(|scope| {
            let met = scope.spawn(|| Keeper::meet(Some(path.clone())));
            for _ in 0..2 {
                holder.step(&listener).unwrap();
            }
            met.join().unwrap()
        })
    };
    let (mut keeper, found) = meet(&mut holder);
    assert!(found.is_empty() && !keeper.is_missing());
    let (cart, web) = (sockets(), sockets());
    let at = cart.inbound[0].local_addr().unwrap();
    keeper.keep(&pod("cart"), &cart.inbound, &cart.outbound);
    keeper.keep(&pod("web"), &web.inbound, &web.outbound);
    keeper.forget(&pod("web"));
    for _ in 0..3 {
        holder.step(&listener).unwrap();
    }
    assert_eq!(holder.pods(), 1);
    drop((keeper, cart, web));
    holder.step(&listener).unwrap();
    let waiting = std::net::TcpStream::connect(at).expect("it listens without an agent");

    let (keeper, found) = meet(&mut holder);
    let [(key, listeners)] = found.as_slice() else { panic!("one pod") };
    assert_eq!((key, listeners.outbound.len()), (&pod("cart"), 1));
    let (_, peer) = listeners.inbound[0].accept().unwrap();
    assert_eq!(peer, waiting.local_addr().unwrap());
    drop((keeper, found));
    holder.step(&listener).unwrap();
    while holder.pods() > 0 {
        holder.step(&listener).unwrap();
    }
    assert!(std::net::TcpStream::connect(at).is_err(), "patience is over");
}

#[test]
fn without_a_holder_an_agent_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut keeper, found) = Keeper::meet(Some(dir.path().join("hold.sock")));
    assert!(found.is_empty() && keeper.is_missing() && !keeper.meet_again());
    let sockets = sockets();
    keeper.keep(&NamespacedName::new("shop", "cart"), &sockets.inbound, &sockets.outbound);
    let (mut keeper, _) = Keeper::meet(None);
    assert!(!keeper.is_missing(), "none is wanted");
}

#[test]
fn a_holder_that_ends_is_missed_and_the_next_one_gets_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hold.sock");
    let start = || (Listener::replace(&path).unwrap(), holder::Holder::new(Duration::from_secs(60)));
    let (cart, key) = (sockets(), NamespacedName::new("shop", "cart"));
    let (listener, mut holder) = start();
    let mut keeper = std::thread::scope(|scope| {
        let met = scope.spawn(|| Keeper::meet(Some(path.clone())).0);
        for _ in 0..2 {
            holder.step(&listener).unwrap();
        }
        met.join().unwrap()
    });
    keeper.keep(&key, &cart.inbound, &cart.outbound);
    assert!(!keeper.is_missing());
    drop((listener, holder));
    assert!(keeper.is_missing(), "nothing had to be said to it");
    assert!(!keeper.meet_again(), "nobody is there");

    let (listener, mut holder) = start();
    std::thread::scope(|scope| {
        let met = scope.spawn(|| keeper.meet_again());
        for _ in 0..2 {
            holder.step(&listener).unwrap();
        }
        assert!(met.join().unwrap());
    });
    assert!(!keeper.is_missing());
    keeper.keep(&key, &cart.inbound, &cart.outbound);
    holder.step(&listener).unwrap();
    assert_eq!(holder.pods(), 1);
}

#[test]
fn agents_and_holders_that_do_not_understand_each_other_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hold.sock");
    let listener = Listener::replace(&path).unwrap();
    // A holder of a version to come.
    std::thread::scope(|scope| {
        let met = scope.spawn(|| Keeper::meet(Some(path.clone())));
        let wire = listener.accept().unwrap();
        assert!(matches!(wire.receive::<Message>().unwrap(), Some((Message::Begin, _))));
        wire.send(&serde_json::json!({"perhaps": {}}), &[]).unwrap();
        let (mut keeper, found) = met.join().unwrap();
        assert!(found.is_empty() && keeper.is_missing(), "it is done without");
    });
    // An agent of a version to come: what it gave is held for the next one.
    let mut holder = holder::Holder::new(Duration::from_secs(60));
    let agent = Wire::connect(&path).unwrap();
    holder.step(&listener).unwrap();
    let pod = Message::Pod { namespace: "shop".into(), name: "cart".into(), inbound: 1 };
    agent.send(&pod, &[listener.as_fd()]).unwrap();
    agent.send(&serde_json::json!({"perhaps": {}}), &[]).unwrap();
    for _ in 0..2 {
        holder.step(&listener).unwrap();
    }
    assert_eq!(holder.pods(), 1);
    assert!(agent.receive::<Message>().unwrap().is_none(), "it is not heard any more");
}

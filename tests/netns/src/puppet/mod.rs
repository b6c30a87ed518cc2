//! Puppets: processes in a pod's network namespace and cgroup whose sockets a test moves one call at a time.
//!
//! One order or answer is one line of JSON. A puppet answers every order exactly once, in order; servers that
//! it was told to start run on threads of their own.

mod client;
mod handle;
mod orders;
mod pattern;
mod raw;
mod server;

use std::collections::HashMap;
use std::io::{self, BufRead, Write};

use rustix::process::{Resource, Rlimit, setrlimit};

pub use handle::{Connection, Puppet, Server};
pub use orders::{Answer, Connect, End, Failure, Held, Order, Role};
pub use pattern::Pattern;

use client::Clients;
use server::Servers;

/// Descriptors that a puppet may have open, where the machine permits.
const DESCRIPTORS: u64 = 20_000;

/// The life of a puppet: reads orders from standard input until it ends.
///
/// # Errors
/// Standard input or output failed, or an order is not understood.
pub fn play() -> io::Result<()> {
    raise_limit();
    let mut clients = Clients { sockets: HashMap::new(), held: Vec::new(), next: 0 };
    let mut servers = Servers::default();
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let answer = obey(order, &mut clients, &mut servers);
        let answer = answer.unwrap_or_else(|error| Answer::Failed(Failure::from(&error)));
        serde_json::to_writer(&mut output, &answer)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    Ok(())
}

/// Without the privilege the limit stays; tests that need more then fail with the number of open sockets.
fn raise_limit() {
    let wanted = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    let _ = setrlimit(Resource::Nofile, wanted);
}

fn obey(order: Order, clients: &mut Clients, servers: &mut Servers) -> io::Result<Answer> {
    match order {
        Order::Serve { address, role } => servers.start(address, role),
        Order::Tally { server } => servers.tally(server),
        Order::Broadcast { server } => servers.broadcast(server),
        Order::Stop { server } => servers.stop(server),
        Order::Connect(connect) => clients.connect(&connect),
        Order::Send { connection, bytes } => clients.send(connection, &bytes),
        Order::SendUrgent { connection, byte } => clients.send_urgent(connection, byte),
        Order::Stuff { connection } => clients.stuff(connection),
        Order::Receive { connection, at_least, wait_ms } => clients.receive(connection, at_least, wait_ms),
        Order::Exchange { connection, length } => clients.exchange(connection, length),
        Order::Shutdown { connection } => clients.shutdown(connection),
        Order::Close { connection, abort } => clients.close(connection, abort),
        Order::Options { connection } => clients.options(connection),
        Order::Hold { to, count } => Ok(clients.hold(to, count)),
        Order::HeldAlive => Ok(clients.held_alive()),
        Order::Churn { to, count, parallel } => Ok(client::churn(to, count, parallel)),
        Order::Handshake { source, to, mark, wait_ms } => raw::handshake(source, to, mark, wait_ms),
        Order::Flood { to, count } => raw::flood(to, count),
        Order::AskUdp { to, payload } => client::ask_udp(to, &payload),
    }
}

//! The test's end of a puppet.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::orders::{Answer, Connect, End, Failure, Held, Order, Role};

/// Longest wait for something that is expected to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running puppet. Dropping it ends the process.
///
/// Calls panic when the puppet itself is broken; what its sockets do is in the answers.
#[derive(Debug)]
pub struct Puppet {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// A connection of a puppet, open until told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    id: u64,
    /// `getsockname` of the client.
    pub local: SocketAddr,
    /// `getpeername` of the client.
    pub remote: SocketAddr,
}

/// A server of a puppet.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    id: usize,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Puppet {
    /// Starts `executable` in a cgroup and a network namespace.
    pub fn start(executable: &str, cgroup: &Path, netns: &Path) -> Self {
        let enter = "echo $$ > \"$1/cgroup.procs\" && exec nsenter --net=\"$2\" \"$3\"";
        let mut child = Command::new("sh")
            .args(["-c", enter, "sh"])
            .args([cgroup.as_os_str(), netns.as_os_str(), executable.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell can be started");
        let orders = child.stdin.take().expect("standard input is a pipe");
        let answers = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        Self { child, orders, answers }
    }

    /// The puppet's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order and waits for its answer.
    pub fn order(&mut self, order: &Order) -> Answer {
        let mut line = serde_json::to_string(order).expect("orders can be written as JSON");
        line.push('\n');
        self.orders.write_all(line.as_bytes()).expect("the puppet takes orders");
        line.clear();
        self.answers.read_line(&mut line).expect("the puppet answers");
        serde_json::from_str(&line).expect("the puppet lives and its answers are understood")
    }

    /// Starts a server.
    pub fn serve(&mut self, address: SocketAddr, role: Role) -> Server {
        let answer = self.order(&Order::Serve { address, role });
        let Answer::Serving { server, address } = answer else { unexpected("a server", &answer) };
        Server { id: server, address }
    }

    /// Connections accepted and bytes received by a server.
    pub fn tally(&mut self, server: Server) -> (u64, u64) {
        let (accepted, bytes, _) = self.whole_tally(server);
        (accepted, bytes)
    }

    /// Connections of a server that clients reset.
    pub fn resets(&mut self, server: Server) -> u64 {
        self.whole_tally(server).2
    }

    fn whole_tally(&mut self, server: Server) -> (u64, u64, u64) {
        let answer = self.order(&Order::Tally { server: server.id });
        let Answer::Tally { accepted, bytes, resets } = answer else { unexpected("a tally", &answer) };
        (accepted, bytes, resets)
    }

    /// Makes a `Hold` server send one byte on each connection; gives their number.
    pub fn broadcast(&mut self, server: Server) -> u64 {
        let answer = self.order(&Order::Broadcast { server: server.id });
        let Answer::Count(count) = answer else { unexpected("a count", &answer) };
        count
    }

    /// Stops a server; its port is closed from then on.
    pub fn stop(&mut self, server: Server) {
        done("stop a server", self.order(&Order::Stop { server: server.id }));
    }

    /// Tries to connect.
    pub fn try_connect(&mut self, how: Connect) -> Result<Connection, Failure> {
        match self.order(&Order::Connect(how)) {
            Answer::Connected { connection, local, remote } => {
                Ok(Connection { id: connection, local, remote })
            }
            Answer::Failed(failure) => Err(failure),
            answer => unexpected("a connection", &answer),
        }
    }

    /// Connects; it must succeed.
    pub fn connect(&mut self, to: SocketAddr) -> Connection {
        let opened = self.try_connect(Connect::to(to));
        assert!(opened.is_ok(), "{to} cannot be reached: {opened:?}");
        opened.expect("it was just checked")
    }

    /// Opens a connection that is reset before it brings a byte. Where the reset comes even before the connection is
    /// seen as open there is nothing to ask about, and another one is opened.
    pub fn connect_in_vain(&mut self, to: SocketAddr) -> Connection {
        loop {
            match self.try_connect(Connect::to(to)) {
                Ok(connection) => {
                    assert_eq!(self.receive(connection, 1), (Vec::new(), End::Reset), "{to}");
                    return connection;
                }
                Err(failure) => assert!(failure.is(ErrorKind::ConnectionReset), "{to}: {failure:?}"),
            }
        }
    }

    /// Sends bytes.
    pub fn send(&mut self, connection: Connection, bytes: &[u8]) -> Result<(), Failure> {
        match self.order(&Order::Send { connection: connection.id, bytes: bytes.to_vec() }) {
            Answer::Done => Ok(()),
            Answer::Failed(failure) => Err(failure),
            answer => unexpected("sent", &answer),
        }
    }

    /// Sends a byte of urgent data.
    pub fn send_urgent(&mut self, connection: Connection, byte: u8) {
        done("send urgent data", self.order(&Order::SendUrgent { connection: connection.id, byte }));
    }

    /// Sends pattern bytes until the socket takes no more for now.
    pub fn stuff(&mut self, connection: Connection) -> u64 {
        let answer = self.order(&Order::Stuff { connection: connection.id });
        let Answer::Count(count) = answer else { unexpected("stuffed bytes", &answer) };
        count
    }

    /// Receives until there are so many bytes, or the end, or patience is over.
    pub fn receive(&mut self, connection: Connection, at_least: usize) -> (Vec<u8>, End) {
        self.receive_for(connection, at_least, PATIENCE)
    }

    /// The same with another patience.
    pub fn receive_for(&mut self, connection: Connection, at_least: usize, wait: Duration) -> (Vec<u8>, End) {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        match self.order(&Order::Receive { connection: connection.id, at_least, wait_ms }) {
            Answer::Received { bytes, end } => (bytes, end),
            answer => unexpected("received bytes", &answer),
        }
    }

    /// Receives a line with at most one more byte-wise call than it has bytes; without its end.
    pub fn line(&mut self, connection: Connection) -> String {
        let mut line = Vec::new();
        loop {
            let (bytes, end) = self.receive(connection, 1);
            line.extend_from_slice(&bytes);
            if line.ends_with(b"\n") {
                line.pop();
                return String::from_utf8_lossy(&line).into_owned();
            }
            assert_eq!(end, End::Enough, "no whole line came, only {:?}", String::from_utf8_lossy(&line));
        }
    }

    /// Reads the greeting of a server: the peer and the local address that the application sees.
    pub fn greeting(&mut self, connection: Connection) -> (SocketAddr, SocketAddr) {
        let line = self.line(connection);
        let (peer, local) = line.split_once(' ').expect("a greeting is two addresses");
        (parse(peer), parse(local))
    }

    /// Sends so many bytes and compares the echo; the number that came back right.
    pub fn exchange(&mut self, connection: Connection, length: u64) -> Result<u64, Failure> {
        match self.order(&Order::Exchange { connection: connection.id, length }) {
            Answer::Count(count) => Ok(count),
            Answer::Failed(failure) => Err(failure),
            answer => unexpected("an exchange", &answer),
        }
    }

    /// Whether bytes still make it there and back.
    pub fn echoes(&mut self, connection: Connection) -> bool {
        self.exchange(connection, 100).is_ok_and(|count| count == 100)
    }

    /// Ends the sending direction.
    pub fn shutdown(&mut self, connection: Connection) {
        done("shut down", self.order(&Order::Shutdown { connection: connection.id }));
    }

    /// Closes.
    pub fn close(&mut self, connection: Connection) {
        done("close", self.order(&Order::Close { connection: connection.id, abort: false }));
    }

    /// Closes with a reset.
    pub fn abort(&mut self, connection: Connection) {
        done("abort", self.order(&Order::Close { connection: connection.id, abort: true }));
    }

    /// SO_MARK and SO_BINDTODEVICE as the application sees them.
    pub fn options(&mut self, connection: Connection) -> (u32, Option<String>) {
        let answer = self.order(&Order::Options { connection: connection.id });
        let Answer::Options { mark, device } = answer else { unexpected("options", &answer) };
        (mark, device)
    }

    /// Opens many connections to a `Hold` server.
    pub fn hold(&mut self, to: SocketAddr, count: usize) -> Held {
        held(self.order(&Order::Hold { to, count }))
    }

    /// Reads the byte of one broadcast from every held connection.
    pub fn held_alive(&mut self) -> Held {
        held(self.order(&Order::HeldAlive))
    }

    /// Opens, uses and closes many connections to a `Silent` server.
    pub fn churn(&mut self, to: SocketAddr, count: usize, parallel: usize) -> Held {
        held(self.order(&Order::Churn { to, count, parallel }))
    }

    /// Opens a connection with raw packets from `source`: the server's greeting, and how it ended.
    pub fn handshake(&mut self, source: SocketAddr, to: SocketAddr, mark: Option<u32>) -> (Vec<u8>, End) {
        match self.order(&Order::Handshake { source, to, mark, wait_ms: 1_000 }) {
            Answer::Received { bytes, end } => (bytes, end),
            answer => unexpected("a handshake", &answer),
        }
    }

    /// Begins so many connections from addresses that are nobody's.
    pub fn flood(&mut self, to: SocketAddr, count: u32) {
        let answer = self.order(&Order::Flood { to, count });
        assert!(matches!(answer, Answer::Count(_)), "the puppet could not flood {to}: {answer:?}");
    }

    /// Asks a `Udp` server; its answer, unless none came.
    pub fn ask_udp(&mut self, to: SocketAddr, payload: &str) -> Option<String> {
        match self.order(&Order::AskUdp { to, payload: payload.to_owned() }) {
            Answer::Received { bytes, end: End::Enough } => {
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => None,
        }
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        // It has ended already, or the lab kills what is left in its cgroups.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(text: &str) -> SocketAddr {
    let address: SocketAddr = text.parse().expect("greetings hold addresses");
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn done(what: &str, answer: Answer) {
    assert!(matches!(answer, Answer::Done), "the puppet could not {what}: {answer:?}");
}

fn held(answer: Answer) -> Held {
    let Answer::Held(held) = answer else { unexpected("held connections", &answer) };
    held
}

#[expect(clippy::panic, reason = "a puppet that does not answer to the point is a failure of the test")]
fn unexpected(wanted: &str, answer: &Answer) -> ! {
    panic!("wanted {wanted}, the puppet answered {answer:?}")
}

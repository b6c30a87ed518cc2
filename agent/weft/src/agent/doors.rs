//! Where the agent can be asked: metrics and readiness by TCP, everything else at the admin socket.

use std::io::ErrorKind;
use std::path::PathBuf;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::admin::Facts;
use super::beginning::Beginning;
use super::options::Options;
use super::{http, private_socket};

/// One address of the agent.
struct Door {
    what: &'static str,
    address: std::net::SocketAddr,
    serving: Option<JoinHandle<()>>,
}

/// What is served, and what is not yet because an agent that is to be replaced has it.
pub(super) struct Doors {
    beginning: Beginning,
    metrics: Door,
    readiness: Door,
    admin: PathBuf,
    /// The admin socket is ours.
    is_admin: bool,
}

impl Doors {
    /// Opens what can be opened: everything, unless another agent runs that is to be replaced.
    pub(super) async fn open(
        options: &Options,
        beginning: Beginning,
        is_occupied: bool,
    ) -> anyhow::Result<Self> {
        let door = |what, address| Door { what, address, serving: None };
        let mut doors = Self {
            beginning,
            metrics: door("metrics", options.metrics_addr),
            readiness: door("readiness", options.readiness_addr),
            admin: options.admin_socket(),
            is_admin: false,
        };
        let tcp = doors.open_tcp().await;
        match (tcp, is_occupied) {
            (Err(error), true) if is_in_use(&error) => {}
            (tcp, _) => tcp?,
        }
        if !is_occupied {
            doors.serve_admin(private_socket::claim(&doors.admin)?);
        }
        Ok(doors)
    }

    /// Opens the rest, once the other agent has given it up.
    pub(super) async fn open_rest(&mut self) -> anyhow::Result<()> {
        self.open_tcp().await?;
        if !self.is_admin {
            self.serve_admin(private_socket::replace(&self.admin)?);
        }
        Ok(())
    }

    async fn open_tcp(&mut self) -> anyhow::Result<()> {
        for (door, handler) in
            [(&mut self.metrics, self.beginning.metrics()), (&mut self.readiness, self.beginning.readiness())]
        {
            if door.serving.is_none() {
                let listener: TcpListener = http::bind(door.what, door.address).await?;
                door.serving = Some(tokio::spawn(http::serve_tcp(listener, handler)));
            }
        }
        Ok(())
    }

    fn serve_admin(&mut self, listener: tokio::net::UnixListener) {
        tokio::spawn(http::serve_unix(listener, self.beginning.admin()));
        self.is_admin = true;
    }

    /// From now on everything is answered.
    pub(super) fn goes_on(&self, facts: &Facts) {
        self.beginning.goes_on(facts);
    }

    /// Another agent has taken over: the socket is its own, and where both have the same addresses, these.
    pub(super) async fn give_up(&mut self, same_addresses: bool) {
        self.is_admin = false;
        for door in [&mut self.metrics, &mut self.readiness] {
            if let Some(serving) = door.serving.take_if(|_| same_addresses) {
                serving.abort();
                // The listener is closed when the task has really ended.
                let _ = serving.await;
            }
        }
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        if self.is_admin {
            // Nobody is asked any more.
            let _ = std::fs::remove_file(&self.admin);
        }
    }
}

fn is_in_use(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::AddrInUse)
}

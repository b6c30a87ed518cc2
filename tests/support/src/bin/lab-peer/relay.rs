//! A relay that does nothing but copy: what a proxy costs that has no work.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::Result;
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};

use crate::serve::listen;

#[derive(Debug, Args)]
pub(crate) struct RelayArgs {
    /// Port to listen on.
    port: u16,
    /// Where connections go.
    to: SocketAddr,
}

pub(crate) fn run(args: &RelayArgs) -> Result<()> {
    let listener = listen(args.port)?;
    println!("{}", serde_json::json!({ "listening": [args.port] }));
    let to = args.to;
    loop {
        let Ok((client, _)) = listener.accept() else { continue };
        // What the ends do to their connections is not the relay's failure.
        std::thread::Builder::new().spawn(move || copy(client, to).unwrap_or_default())?;
    }
}

/// Until either end has nothing more to say.
fn copy(mut client: TcpStream, to: SocketAddr) -> Result<()> {
    let mut server = TcpStream::connect(to)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut buffer = [0; 16 * 1024];
    loop {
        let ready = {
            let mut ends = [&client, &server].map(|end| PollFd::new(end, PollFlags::IN));
            poll(&mut ends, None)?;
            ends.map(|end| !end.revents().is_empty())
        };
        for (ready, outwards) in ready.into_iter().zip([true, false]) {
            let (from, to) = if outwards { (&mut client, &mut server) } else { (&mut server, &mut client) };
            if ready {
                let read = from.read(&mut buffer)?;
                if read == 0 {
                    return Ok(());
                }
                to.write_all(buffer.get(..read).unwrap_or_default())?;
            }
        }
    }
}

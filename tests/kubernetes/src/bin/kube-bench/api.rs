//! Requests to the API server without a program for each: `kubectl proxy` does TLS and credentials.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use weft_kubernetes_tests::ControlPlane;

/// `kubectl proxy`. Killed when dropped.
pub(crate) struct Api {
    kubectl: Child,
    address: SocketAddr,
}

impl Api {
    pub(crate) fn start(plane: &ControlPlane) -> Result<Self> {
        let mut kubectl = Command::new(plane.programs().join("kubectl"))
            .args(["proxy", "--port=0"])
            .env("KUBECONFIG", plane.kubeconfig())
            .stdout(Stdio::piped())
            .spawn()
            .context("kubectl cannot be run")?;
        let mut line = String::new();
        BufReader::new(kubectl.stdout.take().context("it is piped")?).read_line(&mut line)?;
        let address = line.trim().rsplit(' ').next().unwrap_or_default();
        let address = address.parse().with_context(|| format!("kubectl says {line:?}"))?;
        Ok(Self { kubectl, address })
    }

    /// Merges into an object; when the answer came, in nanoseconds since 1970.
    pub(crate) fn patch(&self, path: &str, body: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(
            stream,
            "PATCH {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        let mut first = [0; 12];
        stream.read_exact(&mut first)?;
        let answered = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
        let mut rest = String::new();
        stream.read_to_string(&mut rest)?;
        ensure!(first.ends_with(b"200"), "PATCH {path}: {}{rest}", String::from_utf8_lossy(&first));
        Ok(answered)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// Lets the processes of a network namespace reach a port of our own loopback interface under the same address.
pub(crate) fn forward(netns: &Path, address: SocketAddr) -> Result<()> {
    // A socket stays in the namespace in which it was made.
    let listener = weft_lab::within(netns, || Ok(TcpListener::bind(address)?))?;
    std::thread::spawn(move || {
        for inside in listener.incoming().map_while(Result::ok) {
            let Ok(outside) = TcpStream::connect(address) else { continue };
            let (Ok(to), Ok(from)) = (outside.try_clone(), inside.try_clone()) else { continue };
            std::thread::spawn(move || copy(inside, to));
            std::thread::spawn(move || copy(outside, from));
        }
    });
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    // Whichever side ends, ends both.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

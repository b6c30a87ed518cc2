//! An HTTP proxy in front of the real API server, which answers differently where a test wants that.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::ControlPlane;
use anyhow::{Context, Result};

/// What is done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The real API server answers.
    Real,
    /// A status with `Retry-After: 1`.
    Status(u16),
    /// A page of HTML with status 200.
    Html,
    /// JSON that is no event and no list.
    WrongJson,
    /// The real answer, of which only the first bytes arrive.
    Truncated(usize),
    /// The connection is closed without an answer.
    Nothing,
    /// The real answer to the same watch, which is asked to last so many seconds.
    Lasting(u64),
    /// The real answer, with this pause before every part of it.
    Slow(std::time::Duration),
}

type Rule = dyn Fn(&str) -> Answer + Send + Sync;

struct Shared {
    behind: SocketAddr,
    rule: Mutex<Arc<Rule>>,
    requests: AtomicUsize,
    over: AtomicBool,
    /// Both sides of every connection.
    open: Mutex<Vec<TcpStream>>,
}

/// The proxy. TLS and credentials are `kubectl proxy`'s, which stands behind it.
pub struct Proxy {
    kubectl: Child,
    address: SocketAddr,
    kubeconfig: PathBuf,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts it as administrator, letting everything through.
    ///
    /// # Errors
    /// kubectl cannot be run, or there is no port.
    pub fn start(plane: &ControlPlane) -> Result<Self> {
        let mut kubectl = Command::new(plane.programs().join("kubectl"))
            .args(["proxy", "--port=0"])
            .env("KUBECONFIG", plane.kubeconfig())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(kubectl.stdout.take().context("it is piped")?).read_line(&mut line)?;
        let behind =
            line.trim().rsplit(' ').next().unwrap_or_default().parse().context("kubectl names its port")?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            behind,
            rule: Mutex::new(Arc::new(|_: &str| Answer::Real)),
            requests: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let served = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if served.over.load(Ordering::Relaxed) {
                    return;
                }
                let served = served.clone();
                std::thread::spawn(move || drop(served.serve(stream)));
            }
        });
        let kubeconfig = plane.dir().join(format!("proxy-{}.yaml", address.port()));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: \"http://{address}\"}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{}}}}]\n"
        );
        std::fs::write(&kubeconfig, text)?;
        Ok(Self { kubectl, address, kubeconfig, shared })
    }

    /// A configuration that leads to it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    /// From now on requests are answered as the rule says of their path; open connections are cut.
    ///
    /// # Panics
    /// An earlier rule panicked.
    pub fn answer(&self, rule: impl Fn(&str) -> Answer + Send + Sync + 'static) {
        *self.shared.rule.lock().expect("nobody panics with it") = Arc::new(rule);
        self.cut();
    }

    /// Cuts every open connection.
    ///
    /// # Panics
    /// An earlier rule panicked.
    pub fn cut(&self) {
        for stream in self.shared.open.lock().expect("nobody panics with it").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.cut();
        let _ = TcpStream::connect(self.address);
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

impl Shared {
    /// One request for each connection.
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        self.open.lock().expect("nobody panics with it").push(stream.try_clone()?);
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut out = stream;
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        self.requests.fetch_add(1, Ordering::Relaxed);
        let (mut head, mut length) = (first.clone(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            let name = line.to_ascii_lowercase();
            if let Some(value) = name.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or_default();
            }
            if !name.starts_with("connection:") {
                head += &line;
            }
        }
        head += "Connection: close\r\n\r\n";
        let mut request = head.into_bytes();
        reader.take(length).read_to_end(&mut request)?;
        let rule = self.rule.lock().expect("nobody panics with it").clone();
        let of_text = |status: &str, kind: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        };
        match rule(&path) {
            Answer::Lasting(seconds) => self.forward(&lasting(&request, seconds), &mut out, None, None),
            Answer::Real => self.forward(&request, &mut out, None, None),
            Answer::Slow(pause) => self.forward(&request, &mut out, None, Some(pause)),
            Answer::Truncated(bytes) => self.forward(&request, &mut out, Some(bytes), None),
            Answer::Status(status) => {
                out.write_all(of_text(&format!("{status} X"), "text/plain", "not now").as_bytes())
            }
            Answer::Html => {
                let page = "<html><body>\nPlease log in\n</body></html>\n";
                out.write_all(of_text("200 OK", "text/html", page).as_bytes())
            }
            Answer::WrongJson => {
                out.write_all(of_text("200 OK", "application/json", "{\"a\":[1,2,{}]}\n").as_bytes())
            }
            Answer::Nothing => Ok(()),
        }?;
        out.shutdown(Shutdown::Both)
    }

    fn forward(
        &self,
        request: &[u8],
        out: &mut TcpStream,
        limit: Option<usize>,
        pause: Option<std::time::Duration>,
    ) -> std::io::Result<()> {
        let mut behind = TcpStream::connect(self.behind)?;
        self.open.lock().expect("nobody panics with it").push(behind.try_clone()?);
        behind.write_all(request)?;
        let mut left = limit.unwrap_or(usize::MAX);
        let mut buffer = [0; 16 << 10];
        loop {
            let read = behind.read(&mut buffer)?.min(left);
            if read == 0 {
                return Ok(());
            }
            if let Some(pause) = pause {
                std::thread::sleep(pause);
            }
            out.write_all(buffer.get(..read).unwrap_or_default())?;
            left -= read;
        }
    }
}

/// The request with another `timeoutSeconds`.
fn lasting(request: &[u8], seconds: u64) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    let Some((before, after)) = text.split_once("timeoutSeconds=") else { return request.to_vec() };
    let rest = after.trim_start_matches(|letter: char| letter.is_ascii_digit());
    format!("{before}timeoutSeconds={seconds}{rest}").into_bytes()
}

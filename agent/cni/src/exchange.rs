//! One question to the agent.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::protocol::{Answer, MESSAGE_LIMIT, Request};

/// Pause between attempts while no agent answers.
const PAUSE: Duration = Duration::from_millis(100);
/// How much longer than the agent's patience the plugin waits for its words.
const MARGIN: Duration = Duration::from_millis(500);

/// Asks, again and again until `deadline` while nobody answers and `persist` says so.
pub(crate) fn ask(
    socket: &Path,
    request: &Request,
    deadline: Instant,
    persist: bool,
) -> Result<Answer, String> {
    loop {
        let patience = deadline.saturating_duration_since(Instant::now());
        let told = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let request = Request { patience_ms: told, ..request.clone() };
        let failure = match once(socket.to_owned(), request, patience + MARGIN) {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if !persist || Instant::now() + PAUSE >= deadline {
            return Err(failure);
        }
        std::thread::sleep(PAUSE);
    }
}

/// On a thread of its own: to connect may block, and there is no limit for that.
fn once(socket: PathBuf, request: Request, patience: Duration) -> Result<Answer, String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || drop(sender.send(converse(&socket, &request, patience))));
    match receiver.recv_timeout(patience) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it does not answer in time".to_owned()),
    }
}

fn converse(socket: &Path, request: &Request, patience: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    let limit = Some(patience.max(Duration::from_millis(1)));
    stream.set_write_timeout(limit)?;
    stream.set_read_timeout(limit)?;
    let mut message = serde_json::to_vec(request)?;
    message.push(b'\n');
    stream.write_all(&message)?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MESSAGE_LIMIT)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it closed the connection without an answer",
        ));
    }
    Ok(serde_json::from_slice(&line)?)
}

//! Heads and bodies as they are written.

use std::cell::RefCell;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, StatusCode, request, response};
use hyper::body::Body as HttpBody;

use super::super::body::Body;
use super::super::headers::decimal;
use super::Broken;
use super::case::{Case, Cased};
use super::decoder::Framing;
use super::head::{self, Phrase};
use super::wire::Out;

/// Writes a body as its head has announced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoder {
    /// There is none; what comes is left out.
    Nothing,
    /// So many bytes to come.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection is closed.
    UntilClose,
}

impl Encoder {
    /// Writes a part.
    pub(super) fn data(&mut self, mut bytes: Bytes, out: &mut Out) {
        match self {
            Self::Nothing => {}
            Self::UntilClose => out.push(bytes, b""),
            Self::Length(left) => {
                // More than was announced would be read as the next message.
                bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= bytes.len() as u64;
                out.push(bytes, b"");
            }
            // An empty chunk would be the last one.
            Self::Chunked if bytes.is_empty() => {}
            Self::Chunked => {
                // Writing to a Vec cannot fail.
                let _ = write!(out.small(), "{:x}\r\n", bytes.len());
                out.push(bytes, b"\r\n");
            }
        }
    }

    /// Ends the body.
    pub(super) fn end(self, out: &mut Out) -> Result<(), Broken> {
        match self {
            Self::Nothing | Self::Length(0) | Self::UntilClose => Ok(()),
            Self::Length(_) => Err(Broken::Incomplete),
            Self::Chunked => {
                out.end_chunks();
                Ok(())
            }
        }
    }
}

/// How much there is, as far as body and head know. `None`: chunks.
fn length_of(body: &Body, headers: &HeaderMap) -> Option<u64> {
    body.size_hint().exact().or_else(|| head::length(headers.get(CONTENT_LENGTH)?))
}

/// The fields that say where a body ends, written once, where the head has such a field or at its end.
struct Lengths {
    /// The right one; `None` for none.
    framing: Option<Framing>,
    written: bool,
}

impl Lengths {
    fn write(&mut self, cased: &mut Cased<'_>, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.written, true) {
            return;
        }
        match self.framing {
            Some(Framing::Length(length)) => {
                cased.write(&CONTENT_LENGTH, out);
                out.extend_from_slice(b": ");
                decimal(length, |digits| out.extend_from_slice(digits));
                out.extend_from_slice(b"\r\n");
            }
            Some(Framing::Chunked) => {
                cased.write(&TRANSFER_ENCODING, out);
                out.extend_from_slice(b": chunked\r\n");
            }
            Some(Framing::UntilClose) | None => {}
        }
    }
}

fn field(name: &HeaderName, value: &[u8], cased: &mut Cased<'_>, out: &mut Vec<u8>) {
    cased.write(name, out);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes a request's head; says how its body follows, and whether the connection is to be closed after it.
pub(super) fn request(parts: &request::Parts, body: &Body, out: &mut Vec<u8>) -> (Encoder, bool) {
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    match parts.uri.path_and_query() {
        Some(target) if parts.uri.authority().is_none() => out.extend_from_slice(target.as_str().as_bytes()),
        // Writing to a Vec cannot fail.
        Some(_) | None => _ = write!(out, "{}", parts.uri),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let (framing, encoder) = match length_of(body, &parts.headers) {
        // Only where the client has said so, too.
        _ if body.is_end_stream() => (Some(Framing::Length(0)), Encoder::Nothing),
        Some(length) => (Some(Framing::Length(length)), Encoder::Length(length)),
        None => (Some(Framing::Chunked), Encoder::Chunked),
    };
    let mut lengths = Lengths { framing, written: false };
    let mut cased = Cased::new(parts.extensions.get::<Case>());
    let mut closes = false;
    for (name, value) in &parts.headers {
        if *name == CONTENT_LENGTH {
            lengths.write(&mut cased, out);
        } else if *name == TRANSFER_ENCODING {
            if encoder != Encoder::Nothing {
                lengths.write(&mut cased, out);
            }
        } else {
            closes |= *name == CONNECTION && head::lists(value, "close");
            field(name, value.as_bytes(), &mut cased, out);
        }
    }
    if encoder != Encoder::Nothing {
        lengths.write(&mut cased, out);
    }
    out.extend_from_slice(b"\r\n");
    (encoder, closes)
}

/// What an answer has to keep to.
pub(super) struct Asker {
    /// It asked HEAD.
    pub(super) head: bool,
    /// It does not know chunks.
    pub(super) http10: bool,
    /// The connection stays; unset where the answer's body ends with it.
    pub(super) keep_alive: bool,
}

impl Asker {
    /// Of a request.
    pub(super) fn new(parts: &request::Parts, keep_alive: bool) -> Self {
        let http10 = parts.version != http::Version::HTTP_11;
        Self { head: parts.method == Method::HEAD, http10, keep_alive }
    }

    fn framing(&mut self, parts: &response::Parts, body: &Body) -> (Option<Framing>, Encoder) {
        let status = parts.status;
        if self.head || status.is_informational() || head::has_no_body(status) {
            let told = (self.head || status == StatusCode::NOT_MODIFIED)
                .then(|| parts.headers.get(CONTENT_LENGTH).and_then(head::length).map(Framing::Length));
            return (told.flatten(), Encoder::Nothing);
        }
        if body.is_end_stream() {
            return (Some(Framing::Length(0)), Encoder::Nothing);
        }
        match length_of(body, &parts.headers) {
            Some(length) => (Some(Framing::Length(length)), Encoder::Length(length)),
            None if self.http10 => {
                self.keep_alive = false;
                (None, Encoder::UntilClose)
            }
            None => (Some(Framing::Chunked), Encoder::Chunked),
        }
    }
}

/// Writes an answer's head; says how its body follows.
pub(super) fn answer(parts: &response::Parts, body: &Body, asker: &mut Asker, out: &mut Vec<u8>) -> Encoder {
    let (framing, encoder) = asker.framing(parts, body);
    status_line(parts, out);
    let mut lengths = Lengths { framing, written: false };
    let mut cased = Cased::new(parts.extensions.get::<Case>());
    let (mut dated, mut closing) = (false, false);
    for (name, value) in &parts.headers {
        if *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING {
            lengths.write(&mut cased, out);
            continue;
        }
        dated |= *name == DATE;
        closing |= *name == CONNECTION && head::lists(value, "close");
        field(name, value.as_bytes(), &mut cased, out);
    }
    lengths.write(&mut cased, out);
    asker.keep_alive &= !closing;
    let switching = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    if !asker.keep_alive && !closing && !switching {
        out.extend_from_slice(b"connection: close\r\n");
    }
    if !dated && !switching {
        date(out);
    }
    out.extend_from_slice(b"\r\n");
    encoder
}

fn status_line(parts: &response::Parts, out: &mut Vec<u8>) {
    let phrase = parts.extensions.get::<Phrase>();
    if parts.status == StatusCode::OK && phrase.is_none() {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(parts.status.as_str().as_bytes());
    out.push(b' ');
    let usual = parts.status.canonical_reason().unwrap_or_default().as_bytes();
    out.extend_from_slice(phrase.map_or(usual, |Phrase(phrase)| phrase));
    out.extend_from_slice(b"\r\n");
}

/// The answer to a head that is not understood.
pub(super) fn refusal(status: u16, out: &mut Vec<u8>) {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let phrase = status.canonical_reason().unwrap_or_default();
    // Writing to a Vec cannot fail.
    let _ =
        write!(out, "HTTP/1.1 {} {phrase}\r\ncontent-length: 0\r\nconnection: close\r\n", status.as_str());
    date(out);
    out.extend_from_slice(b"\r\n");
}

/// The line with the date, which is put into words once in a second.
fn date(out: &mut Vec<u8>) {
    thread_local! {
        static LINE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LINE.with_borrow_mut(|(of, line)| {
        if *of != second || line.is_empty() {
            (*of, *line) = (second, format!("date: {}\r\n", httpdate::fmt_http_date(now)));
        }
        out.extend_from_slice(line.as_bytes());
    });
}

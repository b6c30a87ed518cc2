//! What HTTP/1 heads say that the parser does not tell: length given twice over, a fragment in the target.
//!
//! The parser already acts safely (RFC 9112 6.3: Transfer-Encoding wins, the length is dropped), but E42 asks
//! for a refusal. The scanner follows the framing of requests just well enough to find the next head; if it
//! loses its way it only looks no more.

use smallvec::SmallVec;

/// Bytes that are kept of a line which is not complete yet.
const KEPT: usize = 64;

/// What is wrong with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Smell {
    /// Both `Content-Length` and `Transfer-Encoding` (E42).
    TwoLengths,
    /// A fragment in the request target (E42).
    Fragment,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub(crate) struct Scan {
    state: State,
    /// Heads that began.
    heads: u64,
    /// The first head that smells, counted from 1; the connection ends with it.
    smell: Option<(u64, Smell)>,
    line: SmallVec<[u8; KEPT]>,
    length: Option<u64>,
    chunked: bool,
    fragment: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first byte of a head.
    Between,
    /// In the request line.
    RequestLine,
    /// In a line of the head.
    Field,
    /// In a body, with so many bytes to come.
    Body(u64),
    /// In the line that gives a chunk's size.
    ChunkSize,
    /// In the lines after the last chunk.
    Trailer,
    /// Nothing more is looked at.
    Lost,
}

impl Scan {
    /// A connection of which nothing was read yet.
    pub(crate) fn new() -> Self {
        Self {
            state: State::Between,
            heads: 0,
            smell: None,
            line: SmallVec::new(),
            length: None,
            chunked: false,
            fragment: false,
        }
    }

    /// Whether a head has begun and is not complete.
    pub(crate) fn in_head(&self) -> bool {
        matches!(self.state, State::RequestLine | State::Field)
    }

    /// Whether a request's body has begun and is not complete.
    pub(crate) fn in_body(&self) -> bool {
        matches!(self.state, State::Body(_) | State::ChunkSize | State::Trailer)
    }

    /// What is wrong with the request of this number, counted from 1.
    pub(crate) fn smell(&self, request: u64) -> Option<Smell> {
        self.smell.filter(|(at, _)| *at == request).map(|(_, smell)| smell)
    }

    /// Looks at bytes that were read.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.state != State::Lost {
            bytes = match self.state {
                State::Body(left) => self.body(left, bytes),
                State::Between => self.between(bytes),
                State::RequestLine | State::Field | State::ChunkSize | State::Trailer => self.lines(bytes),
                State::Lost => return,
            };
        }
    }

    fn body<'a>(&mut self, left: u64, bytes: &'a [u8]) -> &'a [u8] {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - count as u64;
        self.state = match (left, self.chunked) {
            (0, true) => State::ChunkSize,
            (0, false) => State::Between,
            (left, _) => State::Body(left),
        };
        bytes.get(count..).unwrap_or_default()
    }

    /// Empty lines before a request are skipped (RFC 9112 2.2).
    fn between<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let rest = bytes.get(blank..).unwrap_or_default();
        if !rest.is_empty() {
            self.state = State::RequestLine;
            self.heads += 1;
            self.length = None;
            self.chunked = false;
            self.fragment = false;
        }
        rest
    }

    fn lines<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        if self.state == State::RequestLine {
            self.fragment |= part.contains(&b'#');
        }
        let Some(end) = end else {
            self.keep(part);
            return &[];
        };
        if self.line.is_empty() {
            self.line_ends(part);
        } else {
            self.keep(part);
            let line = std::mem::take(&mut self.line);
            self.line_ends(&line);
        }
        bytes.get(end + 1..).unwrap_or_default()
    }

    fn keep(&mut self, part: &[u8]) {
        let room = KEPT - self.line.len().min(KEPT);
        self.line.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
    }

    fn line_ends(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.state {
            State::RequestLine => self.state = State::Field,
            State::Field if line.is_empty() => self.head_ends(),
            State::Field => self.field(line),
            State::ChunkSize => self.chunk(line),
            State::Trailer if line.is_empty() => self.state = State::Between,
            State::Trailer | State::Between | State::Body(_) | State::Lost => {}
        }
    }

    fn field(&mut self, line: &[u8]) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = line.split_at(colon);
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = value.iter().filter(|byte| byte.is_ascii_digit());
            let length = digits
                .fold(0u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
            self.length = Some(length);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        }
    }

    fn head_ends(&mut self) {
        let smell = match (self.fragment, self.chunked, self.length) {
            (true, ..) => Some(Smell::Fragment),
            (false, true, Some(_)) => Some(Smell::TwoLengths),
            (false, ..) => None,
        };
        if let Some(smell) = smell {
            self.smell = Some((self.heads, smell));
            self.state = State::Lost;
            return;
        }
        self.state = match (self.chunked, self.length) {
            (true, _) => State::ChunkSize,
            (false, Some(length)) if length > 0 => State::Body(length),
            (false, _) => State::Between,
        };
    }

    fn chunk(&mut self, line: &[u8]) {
        let hex = line.iter().map_while(|byte| char::from(*byte).to_digit(16));
        let size = hex.fold(0u64, |sum, digit| sum.saturating_mul(16).saturating_add(u64::from(digit)));
        self.state = match size {
            0 => State::Trailer,
            // With the line end after the data.
            size => State::Body(size.saturating_add(2)),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn smells(stream: &[u8], step: usize) -> (u64, Option<(u64, Smell)>) {
        let mut scan = Scan::new();
        stream.chunks(step.max(1)).for_each(|part| scan.feed(part));
        (scan.heads, scan.smell)
    }

    type Case = (&'static [u8], u64, Option<(u64, Smell)>);

    const CASES: &[Case] = &[
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 2, None),
        (b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n#\r\n\nGET / HTTP/1.1\r\n\r\n", 2, None),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            1,
            Some((1, Smell::TwoLengths)),
        ),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nab\r\n#\r\n0\r\nA: #\r\n\r\nGET /#a HTTP/1.1\r\n\r\n",
            2,
            Some((2, Smell::Fragment)),
        ),
        (b"\r\n\r\nGET / HTTP/1.1\r\nReferer: /#a\r\n\r\n", 1, None),
    ];

    #[test]
    fn finds_what_smells_however_the_bytes_arrive() {
        for (stream, heads, smell) in CASES {
            for step in [1, 2, 3, 7, stream.len()] {
                let found = smells(stream, step);
                assert_eq!(found, (*heads, *smell), "{step} {:?}", String::from_utf8_lossy(stream));
            }
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_does_not_depend_on_the_cuts(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1usize..20) {
            prop_assert_eq!(smells(&bytes, step).0, smells(&bytes, 1).0);
        }
    }
}

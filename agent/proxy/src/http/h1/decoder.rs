//! Where the body of a message ends (RFC 9112 6 and 7).

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::Broken;
use super::head;

/// The longest line with the size of a chunk, with its extensions, in bytes.
const LONGEST_LINE: usize = 4 * 1024;
/// The longest trailers, in bytes.
const LONGEST_TRAILERS: usize = 16 * 1024;

/// How a message says where its body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// Takes a body out of what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoder {
    /// So many bytes to come; 0 is the end.
    Length(u64),
    /// In a chunked body.
    Chunked(Chunk),
    /// Everything that comes.
    UntilClose,
    /// A message whose head has not come yet, or one that broke.
    Unknown,
}

/// A place in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Before the line with a chunk's size.
    Size,
    /// In a chunk, so many bytes before its end.
    Data(u64),
    /// Before the end of line after a chunk.
    End,
    /// After the last chunk.
    Trailers,
}

/// A part of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// More has to be read first.
    More,
    /// Bytes.
    Data(Bytes),
    /// The end, with trailers.
    Trailers(HeaderMap),
    /// The end.
    End,
}

const OVER: Decoder = Decoder::Length(0);

impl From<Framing> for Decoder {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunk::Size),
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

impl Decoder {
    /// Whether the whole body was taken.
    pub(super) fn is_over(self) -> bool {
        self == OVER
    }

    /// The connection is closed: whether that is the body's end.
    pub(super) fn closed(&mut self) -> bool {
        let end = *self == Self::UntilClose;
        if end {
            *self = OVER;
        }
        end
    }

    /// The next part. A body that is none breaks the decoder for good.
    pub(super) fn decode(&mut self, ahead: &mut BytesMut) -> Result<Decoded, Broken> {
        loop {
            match self {
                Self::Length(0) => return Ok(Decoded::End),
                Self::Length(left) => return Ok(data(left, ahead)),
                Self::UntilClose if ahead.is_empty() => return Ok(Decoded::More),
                Self::UntilClose => return Ok(Decoded::Data(ahead.split().freeze())),
                Self::Unknown => return Err(Broken::Incomplete),
                Self::Chunked(Chunk::Data(left)) if *left > 0 => return Ok(data(left, ahead)),
                Self::Chunked(Chunk::Data(_)) => *self = Self::Chunked(Chunk::End),
                Self::Chunked(Chunk::End) => match ahead.get(..2) {
                    Some(b"\r\n") => {
                        ahead.advance(2);
                        *self = Self::Chunked(Chunk::Size);
                    }
                    None if ahead.is_empty() || **ahead == *b"\r" => return Ok(Decoded::More),
                    Some(_) | None => return self.broken("a chunk does not end where it should"),
                },
                Self::Chunked(Chunk::Size) => match size(ahead) {
                    Ok(Some(0)) => *self = Self::Chunked(Chunk::Trailers),
                    Ok(Some(size)) => *self = Self::Chunked(Chunk::Data(size)),
                    Ok(None) => return Ok(Decoded::More),
                    Err(reason) => return self.broken(reason),
                },
                Self::Chunked(Chunk::Trailers) => return self.trailers(ahead),
            }
        }
    }

    fn trailers(&mut self, ahead: &mut BytesMut) -> Result<Decoded, Broken> {
        if ahead.starts_with(b"\r\n") {
            ahead.advance(2);
            *self = OVER;
            return Ok(Decoded::End);
        }
        match head::trailers(ahead) {
            Ok(Some(trailers)) => {
                *self = OVER;
                Ok(Decoded::Trailers(trailers))
            }
            Ok(None) if ahead.len() < LONGEST_TRAILERS => Ok(Decoded::More),
            Ok(None) => self.broken("the trailers are too large"),
            Err(malformed) => self.broken(malformed.reason),
        }
    }

    fn broken(&mut self, reason: &'static str) -> Result<Decoded, Broken> {
        *self = Self::Unknown;
        Err(Broken::Malformed(reason))
    }
}

fn data(left: &mut u64, ahead: &mut BytesMut) -> Decoded {
    if ahead.is_empty() {
        return Decoded::More;
    }
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(ahead.len());
    *left -= count as u64;
    Decoded::Data(ahead.split_to(count).freeze())
}

/// The size of the chunk that begins, taken with its line. Extensions are read over.
fn size(ahead: &mut BytesMut) -> Result<Option<u64>, &'static str> {
    let Some(end) = ahead.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n') else {
        let long = ahead.len() >= LONGEST_LINE;
        return if long { Err("the line with a chunk's size is too long") } else { Ok(None) };
    };
    let line = ahead.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").ok_or("the line with a chunk's size does not end as it should")?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at_checked(digits).unwrap_or_default();
    let extension = rest.trim_ascii_start();
    let proper = extension.is_empty() || extension.starts_with(b";");
    if digits.is_empty() || digits.len() > 16 || !proper || rest.contains(&b'\r') {
        return Err("the size of a chunk is no number");
    }
    let value = digits.iter().filter_map(|digit| char::from(*digit).to_digit(16));
    let size = value.fold(0u64, |sum, digit| (sum << 4) | u64::from(digit));
    ahead.advance(end + 1);
    Ok(Some(size))
}

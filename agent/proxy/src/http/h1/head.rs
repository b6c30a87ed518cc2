//! Heads as they are read.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, request, response};
use httparse::{Error, Header, Status};
use smallvec::SmallVec;

use super::case::Case;
use super::decoder::Framing;
use super::{Malformed, Smell, names};

/// Fields of a head, as Envoy takes them (H-10).
const FIELDS: usize = 100;
/// Bytes of a request's head (H-10), and of an answer's.
pub(super) const REQUEST_BYTES: usize = 60 * 1024;
pub(super) const ANSWER_BYTES: usize = 256 * 1024;
/// Fields that requests and answers get on their way: room for them is taken with that for those they have.
const ADDED: usize = 8;

const TOO_LARGE: Malformed = Malformed { status: 431, reason: "the head is too large" };
const TARGET: Malformed = Malformed::new("the target of the request is no URI");
const FIELD: Malformed = Malformed::new("a header field is malformed");
const LENGTH: Malformed = Malformed::new("the length of the body is malformed, or given twice");
const CODED: Malformed = Malformed::new("the body of the answer has a transfer coding that is not known");
const CODING: Malformed = Malformed::new("the transfer coding does not end with `chunked`");

/// A request's head.
pub(super) struct Asked {
    pub(super) parts: request::Parts,
    /// `None` where there is no body.
    pub(super) framing: Option<Framing>,
    pub(super) keep_alive: bool,
    /// The client waits for 100 before it sends the body.
    pub(super) expects: bool,
    pub(super) smell: Option<Smell>,
}

/// An answer's head.
pub(super) struct Answered {
    pub(super) parts: response::Parts,
    /// `None` where there is no body.
    pub(super) framing: Option<Framing>,
    pub(super) keep_alive: bool,
}

/// What the server said instead of the status' usual phrase.
#[derive(Debug, Clone)]
pub(super) struct Phrase(pub(super) Bytes);

/// A part of a buffer: where it begins and ends. Heads are far shorter than 4 GiB.
type Span = (u32, u32);

fn span(buffer: &[u8], part: &[u8]) -> Span {
    let start = part.as_ptr().addr().wrapping_sub(buffer.as_ptr().addr());
    let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    (place(start), place(start + part.len()))
}

fn part((start, end): Span, buffer: &[u8]) -> &[u8] {
    buffer.get(start as usize..end as usize).unwrap_or_default()
}

fn slice((start, end): Span, buffer: &Bytes) -> Bytes {
    buffer.slice(start as usize..end as usize)
}

/// Names and values.
type Spans = SmallVec<[(Span, Span); 24]>;

/// Notes where they are; the list is large, and stays where it is.
fn note(spans: &mut Spans, buffer: &[u8], fields: &[Header<'_>]) {
    spans.extend(fields.iter().map(|field| (span(buffer, field.name.as_bytes()), span(buffer, field.value))));
}

impl From<Error> for Malformed {
    fn from(error: Error) -> Self {
        match error {
            Error::TooManyHeaders => TOO_LARGE,
            Error::HeaderName | Error::HeaderValue => FIELD,
            Error::NewLine => Self::new("a line of the head does not end as it should"),
            Error::Status => Self::new("the status of the answer is malformed"),
            Error::Token => Self::new("the first line of the head is malformed"),
            Error::Version => Self::new("this is no version of HTTP/1"),
        }
    }
}

/// Whether a head that was incomplete may be complete, of which `before` bytes were looked at.
///
/// A head that comes byte by byte is not parsed as often.
pub(super) fn may_be_complete(ahead: &[u8], before: usize) -> bool {
    let new = ahead.get(before.saturating_sub(3)..).unwrap_or_default();
    before == 0 || new.windows(2).any(|two| two == b"\n\n") || new.windows(3).any(|three| three == b"\n\r\n")
}

/// Takes a request's head; `None` when it is not complete. `spare` is emptied memory for its fields.
pub(super) fn request(ahead: &mut BytesMut, spare: &mut HeaderMap) -> Result<Option<Asked>, Malformed> {
    let mut room = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let status = parsed.parse_with_uninit_headers(ahead, &mut room)?;
    let Some(length) = complete(status, ahead.len(), REQUEST_BYTES)? else { return Ok(None) };
    let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes())
        .map_err(|_| Malformed::new("the method of the request is malformed"))?;
    let target = parsed.path.unwrap_or_default().as_bytes();
    let fragment = target.contains(&b'#');
    let target = span(ahead, target);
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut spans = Spans::new();
    note(&mut spans, ahead, parsed.headers);
    let head = ahead.split_to(length).freeze();
    let uri = Uri::from_maybe_shared(slice(target, &head)).map_err(|_| TARGET)?;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.headers = std::mem::take(spare);
    let (said, case) = fields(&head, &spans, &mut parts.headers)?;
    (parts.method, parts.uri, parts.version) = (method, uri, version);
    if let Some(case) = case {
        parts.extensions.insert(case);
    }
    // RFC 9112 6.3: a request whose coding is not understood has no end, and HTTP/1.0 knows no codings.
    let framing = match (said.coding, said.length) {
        (Coding::Other, _) => return Err(CODING),
        (Coding::Chunked, _) if version == Version::HTTP_10 => return Err(CODING),
        (Coding::Chunked, _) => Some(Framing::Chunked),
        (Coding::None, length) => length.filter(|length| *length > 0).map(Framing::Length),
    };
    let smell = match (fragment, said.coding, said.length) {
        (true, ..) => Some(Smell::Fragment),
        (false, Coding::Chunked, Some(_)) => Some(Smell::TwoLengths),
        (false, ..) => None,
    };
    let keep_alive = said.keeps_alive(version) && smell.is_none();
    let expects = said.expects && framing.is_some() && version == Version::HTTP_11;
    Ok(Some(Asked { parts, framing, keep_alive, expects, smell }))
}

/// Takes an answer's head; `None` when it is not complete. `to_head` says that HEAD was asked.
pub(super) fn answer(
    ahead: &mut BytesMut,
    to_head: bool,
    spare: &mut HeaderMap,
) -> Result<Option<Answered>, Malformed> {
    let mut room = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut parsed, ahead, &mut room)?;
    let Some(length) = complete(status, ahead.len(), ANSWER_BYTES)? else { return Ok(None) };
    let status = StatusCode::from_u16(parsed.code.unwrap_or_default())
        .map_err(|_| Malformed::new("the status of the answer is malformed"))?;
    let phrase = parsed.reason.filter(|phrase| status.canonical_reason() != Some(phrase));
    let phrase = phrase.map(|phrase| span(ahead, phrase.as_bytes()));
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut spans = Spans::new();
    note(&mut spans, ahead, parsed.headers);
    let head = ahead.split_to(length).freeze();
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.headers = std::mem::take(spare);
    let (said, case) = fields(&head, &spans, &mut parts.headers)?;
    (parts.status, parts.version) = (status, version);
    if let Some(case) = case {
        parts.extensions.insert(case);
    }
    if let Some(phrase) = phrase {
        parts.extensions.insert(Phrase(slice(phrase, &head)));
    }
    let bodiless = to_head || status.is_informational() || has_no_body(status);
    let framing = match (said.coding, said.length) {
        _ if bodiless => None,
        // What else was done to the body would be lost with the field that says so.
        _ if said.coded => return Err(CODED),
        (Coding::Chunked | Coding::Other, _) if version == Version::HTTP_10 => return Err(CODING),
        (Coding::Chunked, _) => Some(Framing::Chunked),
        (Coding::Other, _) => Some(Framing::UntilClose),
        (Coding::None, Some(length)) => Some(length).filter(|length| *length > 0).map(Framing::Length),
        (Coding::None, None) => Some(Framing::UntilClose),
    };
    Ok(Some(Answered { parts, framing, keep_alive: said.keeps_alive(version) }))
}

/// Answers with these have no body, whatever they say (RFC 9110 6.4.1).
pub(super) fn has_no_body(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Takes the trailers of a chunked body, to the empty line after them; `None` when they are not complete.
pub(super) fn trailers(ahead: &mut BytesMut) -> Result<Option<HeaderMap>, Malformed> {
    let mut room = [httparse::EMPTY_HEADER; FIELDS];
    let Status::Complete((length, parsed)) = httparse::parse_headers(ahead, &mut room)? else {
        return Ok(None);
    };
    let mut spans = Spans::new();
    note(&mut spans, ahead, parsed);
    let block = ahead.split_to(length).freeze();
    // What comes next begins where these end: that has to be beyond doubt.
    if block.first() == Some(&b'\n')
        || block.windows(2).any(|two| matches!(two, [before, b'\n'] if *before != b'\r'))
    {
        return Err(Error::NewLine.into());
    }
    let mut trailers = HeaderMap::with_capacity(spans.len());
    for (name, value) in spans {
        let name = HeaderName::from_bytes(part(name, &block));
        let value = HeaderValue::from_maybe_shared(slice(value, &block));
        if let (Ok(name), Ok(value)) = (name, value)
            && ![CONTENT_LENGTH, TRANSFER_ENCODING].contains(&name)
        {
            trailers.append(name, value);
        }
    }
    Ok(Some(trailers))
}

/// Leaves out empty lines before a request (RFC 9112 2.2).
pub(super) fn skip_empty_lines(ahead: &mut BytesMut) {
    while let Some(b'\r' | b'\n') = ahead.first() {
        ahead.advance(1);
    }
}

fn complete(status: Status<usize>, read: usize, most: usize) -> Result<Option<usize>, Malformed> {
    match status {
        Status::Complete(length) if length > most => Err(TOO_LARGE),
        Status::Complete(length) => Ok(Some(length)),
        Status::Partial if read >= most => Err(TOO_LARGE),
        Status::Partial => Ok(None),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Coding {
    #[default]
    None,
    Chunked,
    /// Another one comes last.
    Other,
}

/// What a head says about its message and its connection.
#[derive(Debug, Default)]
struct Said {
    length: Option<u64>,
    coding: Coding,
    /// There are codings that change the bytes.
    coded: bool,
    close: bool,
    keep_alive: bool,
    expects: bool,
}

impl Said {
    fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }

    /// Whether the field belongs into the map.
    fn hear(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<bool, Malformed> {
        if *name == CONTENT_LENGTH {
            let length = length(value).ok_or(LENGTH)?;
            if self.length.is_some_and(|before| before != length) {
                return Err(LENGTH);
            }
            // The same once more is left out.
            return Ok(self.length.replace(length).is_none());
        }
        if *name == TRANSFER_ENCODING {
            for coding in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                let chunked = coding.eq_ignore_ascii_case(b"chunked");
                self.coding = if chunked { Coding::Chunked } else { Coding::Other };
                self.coded |= !chunked && !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity");
            }
        } else if *name == CONNECTION {
            self.close |= lists(value, "close");
            self.keep_alive |= lists(value, "keep-alive");
        } else if *name == EXPECT {
            self.expects = value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        }
        Ok(true)
    }
}

/// Whether a list has an element.
pub(super) fn lists(list: &HeaderValue, element: &str) -> bool {
    let mut elements = list.as_bytes().split(|byte| *byte == b',');
    elements.any(|it| it.trim_ascii().eq_ignore_ascii_case(element.as_bytes()))
}

/// A `Content-Length`: digits alone (RFC 9110 8.6).
pub(super) fn length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if all { value.to_str().ok()?.parse().ok() } else { None }
}

/// A name, and whether it was written in lower case.
fn name(raw: &[u8]) -> Result<(HeaderName, bool), Malformed> {
    if let Some(known) = names::frequent(raw) {
        let text = known.as_str().as_bytes();
        if text == raw {
            return Ok((known, true));
        }
        if text.eq_ignore_ascii_case(raw) {
            return Ok((known, false));
        }
    }
    let name = HeaderName::from_bytes(raw).map_err(|_| FIELD)?;
    Ok((name, !raw.iter().any(u8::is_ascii_uppercase)))
}

/// Puts the fields into the map. Of two kinds of length only the one that counts is kept (RFC 9112 6.3).
fn fields(head: &Bytes, spans: &Spans, headers: &mut HeaderMap) -> Result<(Said, Option<Case>), Malformed> {
    headers.reserve(spans.len() + ADDED);
    let mut said = Said::default();
    let mut lower = true;
    for (of_name, of_value) in spans {
        let (name, is_lower) = name(part(*of_name, head))?;
        lower &= is_lower;
        let value = HeaderValue::from_maybe_shared(slice(*of_value, head)).map_err(|_| FIELD)?;
        if said.hear(&name, &value)? {
            headers.append(name, value);
        }
    }
    if said.coding != Coding::None && said.length.is_some() {
        headers.remove(CONTENT_LENGTH);
    }
    // One in capitals is enough: of several fields of one name each has its own case.
    let case = (!lower).then(|| spans.iter().map(|(name, _)| slice(*name, head)).collect());
    Ok((said, case))
}

//! The messages of `envoy.service.auth.v3`, as far as they are used (protobuf's encoding, without a library).

use std::net::SocketAddr;
use std::sync::Arc;

use super::{GrpcCheck, address_parts};
use crate::resource::virtual_service::HeaderChanges;

/// Wire types (protobuf, "Message Structure").
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// A message that is being written.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value);
        }
        self
    }

    /// Text, bytes; empty ones are left out.
    fn bytes(self, field: u64, value: &[u8]) -> Self {
        if value.is_empty() { self } else { self.message(field, value) }
    }

    fn message(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }
}

/// `CheckRequest`.
pub(super) fn request(check: &GrpcCheck<'_>) -> Vec<u8> {
    let source = SocketAddr::new(check.connection.source_ip, check.source_port);
    let principal = check.connection.identity.map(ToString::to_string).unwrap_or_default();
    let time = Writer::default().number(1, u64::try_from(check.now).unwrap_or_default());
    let request = Writer::default().message(1, &time.0).message(2, &http_request(check));
    let session = Writer::default().bytes(1, check.connection.sni.unwrap_or_default().as_bytes());
    let attributes = Writer::default()
        .message(1, &peer(source, &principal))
        .message(2, &peer(check.connection.destination, check.destination_principal))
        .message(4, &request.0)
        .bytes(14, &session.0);
    Writer::default().message(1, &attributes.0).0
}

/// `AttributeContext.Peer`.
fn peer(address: SocketAddr, principal: &str) -> Vec<u8> {
    let (ip, port) = address_parts(address);
    let socket = Writer::default().bytes(2, ip.as_bytes()).number(3, port.into());
    let address = Writer::default().message(1, &socket.0);
    Writer::default().message(1, &address.0).bytes(4, principal.as_bytes()).0
}

/// `AttributeContext.HttpRequest`. Values of one header are joined, as a map has one for each name.
fn http_request(check: &GrpcCheck<'_>) -> Vec<u8> {
    let request = &check.request;
    let id = request.headers.get("x-request-id").map(|value| value.as_bytes()).unwrap_or_default();
    let mut writer = Writer::default().bytes(1, id).bytes(2, request.method.as_bytes());
    let pseudo = [
        (":authority", request.authority),
        (":method", request.method),
        (":path", request.target),
        (":scheme", request.scheme),
    ];
    for (name, value) in pseudo {
        writer = writer.message(3, &entry(name, value));
    }
    for name in request.headers.keys() {
        let values =
            request.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let values: Vec<_> = values.collect();
        writer = writer.message(3, &entry(name.as_str(), &values.join(",")));
    }
    writer
        .bytes(4, request.target.as_bytes())
        .bytes(5, request.authority.as_bytes())
        .bytes(6, request.scheme.as_bytes())
        .number(9, check.body.len() as u64)
        .bytes(10, check.protocol.as_bytes())
        .bytes(11, String::from_utf8_lossy(check.body).as_bytes())
        .0
}

fn entry(name: &str, value: &str) -> Vec<u8> {
    Writer::default().bytes(1, name.as_bytes()).bytes(2, value.as_bytes()).0
}

/// What a `CheckResponse` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Response {
    /// `status.code`, a code of gRPC.
    pub(super) code: i64,
    /// `denied_response.status.code`, an HTTP status; 0 for none.
    pub(super) status: u16,
    /// `denied_response.headers`.
    pub(super) denial: Vec<(Arc<str>, String)>,
    /// `denied_response.body`.
    pub(super) body: Vec<u8>,
    /// `ok_response.headers` and `headers_to_remove`.
    pub(super) request: HeaderChanges,
    /// `ok_response.response_headers_to_add`.
    pub(super) response: HeaderChanges,
}

/// A field's value.
enum Value<'m> {
    Number(u64),
    Bytes(&'m [u8]),
    /// Of a type that no message here uses.
    Other,
}

/// The fields of a message, in order; `None` in place of a field ends a message that is cut off or no message.
struct Fields<'m>(&'m [u8]);

impl<'m> Iterator for Fields<'m> {
    type Item = Option<(u64, Value<'m>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'m> Fields<'m> {
    fn field(&mut self) -> Option<(u64, Value<'m>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            VARINT => Value::Number(self.varint()?),
            BYTES => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            FIXED64 => self.take(8).map(|_| Value::Other)?,
            FIXED32 => self.take(4).map(|_| Value::Other)?,
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn take(&mut self, length: usize) -> Option<&'m [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

/// `CheckResponse`; `None` for bytes that are none.
pub(super) fn response(message: &[u8]) -> Option<Response> {
    let mut response = Response::default();
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(status)) => response.code = number_of(status, 1)? as i64,
            (2, Value::Bytes(denied)) => read_denied(denied, &mut response)?,
            (3, Value::Bytes(allowed)) => read_allowed(allowed, &mut response)?,
            (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
        }
    }
    Some(response)
}

/// A number of a message that has little else; 0 where it is missing.
fn number_of(message: &[u8], wanted: u64) -> Option<u64> {
    let mut found = 0;
    for field in Fields(message) {
        if let (at, Value::Number(number)) = field?
            && at == wanted
        {
            found = number;
        }
    }
    Some(found)
}

/// `DeniedHttpResponse`.
fn read_denied(message: &[u8], response: &mut Response) -> Option<()> {
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(status)) => {
                response.status = u16::try_from(number_of(status, 1)?).unwrap_or_default();
            }
            (2, Value::Bytes(option)) => {
                let (name, value, _) = header_option(option)?;
                response.denial.push((name, value));
            }
            (3, Value::Bytes(body)) => response.body = body.to_vec(),
            (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
        }
    }
    Some(())
}

/// `OkHttpResponse`.
fn read_allowed(message: &[u8], response: &mut Response) -> Option<()> {
    for field in Fields(message) {
        match field? {
            (2, Value::Bytes(option)) => add(header_option(option)?, &mut response.request),
            (5, Value::Bytes(name)) => response.request.remove.push(text(name)?.to_ascii_lowercase().into()),
            (6, Value::Bytes(option)) => add(header_option(option)?, &mut response.response),
            (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
        }
    }
    Some(())
}

/// Without `append` a header replaces the one that is there.
fn add((name, value, append): (Arc<str>, String, bool), changes: &mut HeaderChanges) {
    let list = if append { &mut changes.add } else { &mut changes.set };
    list.push((name, value.into()));
}

/// `HeaderValueOption`: name in lower case, value, `append`.
fn header_option(message: &[u8]) -> Option<(Arc<str>, String, bool)> {
    let (mut name, mut value, mut append) = (Arc::default(), String::new(), false);
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(header)) => (name, value) = header_value(header)?,
            (2, Value::Bytes(flag)) => append = number_of(flag, 1)? != 0,
            (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
        }
    }
    Some((name, value, append))
}

/// `HeaderValue`, the value as text or as bytes.
fn header_value(message: &[u8]) -> Option<(Arc<str>, String)> {
    let (mut name, mut value) = (String::new(), String::new());
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => name = text(bytes)?.to_ascii_lowercase(),
            (2 | 3, Value::Bytes(bytes)) if !bytes.is_empty() => text(bytes)?.clone_into(&mut value),
            (_, Value::Number(_) | Value::Bytes(_) | Value::Other) => {}
        }
    }
    Some((name.into(), value))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A `HeaderValueOption`.
    pub(crate) fn option(name: &str, value: &str, append: bool) -> Vec<u8> {
        let flag = Writer::default().number(1, append.into());
        Writer::default().message(1, &entry(name, value)).message(2, &flag.0).0
    }

    pub(crate) fn denied(status: u64, headers: &[Vec<u8>], body: &str) -> Vec<u8> {
        let code = Writer::default().number(1, status);
        let mut denied = Writer::default().message(1, &code.0);
        for header in headers {
            denied = denied.message(2, header);
        }
        let code = Writer::default().number(1, 7);
        Writer::default().message(1, &code.0).message(2, &denied.bytes(3, body.as_bytes()).0).0
    }

    pub(crate) fn allowed(headers: &[Vec<u8>], remove: &[&str], response: &[Vec<u8>]) -> Vec<u8> {
        let mut allowed = Writer::default();
        for header in headers {
            allowed = allowed.message(2, header);
        }
        for name in remove {
            allowed = allowed.message(5, name.as_bytes());
        }
        for header in response {
            allowed = allowed.message(6, header);
        }
        Writer::default().message(1, &[]).message(3, &allowed.0).0
    }

    #[test]
    fn numbers_of_any_size_are_read_back() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let message = Writer::default().number(9, number).0;
            assert_eq!(number_of(&message, 9), Some(number));
        }
        assert_eq!(number_of(&[0xff; 11], 1), None);
    }

    #[test]
    fn unknown_fields_are_skipped_and_cut_messages_refused() {
        let message = [&[0x09][..], &[0; 8], &[0x15], &[0; 4], &[0x18, 5]].concat();
        assert_eq!(response(&message), Some(Response::default()));
        let whole = denied(401, &[option("a", "b", false)], "no");
        assert!(response(&whole).is_some());
        assert_eq!(response(&whole[..whole.len() - 1]), None);
        assert_eq!(response(&[0x0b]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = response(&bytes);
        }
    }
}

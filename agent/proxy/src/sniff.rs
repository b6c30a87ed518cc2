//! What do the first bytes of a connection say that it speaks? Pure; never delays a byte.
//!
//! Only used on ports that no Service declares, to learn that they may go direct (ruling 5).

/// What a chunk of first bytes looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 connection preface (RFC 9113 3.4).
    Http2,
    /// A TLS ClientHello: opaque to the mesh (ruling 19).
    Tls,
    /// None of these.
    Other,
    /// Too short to tell.
    Undecided,
}

impl Protocol {
    /// Whether a user would expect request metrics; `None` when that cannot be told.
    pub(crate) fn is_http(self) -> Option<bool> {
        match self {
            Self::Http1 | Self::Http2 => Some(true),
            Self::Tls | Self::Other => Some(false),
            Self::Undecided => None,
        }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that counts as one (RFC 9110 has up to 7, WebDAV up to 16).
const LONGEST_METHOD: usize = 20;

/// Classifies the first bytes that a client sent.
pub(crate) fn classify(first: &[u8]) -> Protocol {
    let common = first.len().min(PREFACE.len());
    if first.get(..common) == PREFACE.get(..common) {
        return if common == PREFACE.len() { Protocol::Http2 } else { Protocol::Undecided };
    }
    match first {
        [] | [0x16] | [0x16, 0x03] => Protocol::Undecided,
        [0x16, 0x03, minor, ..] if *minor <= 4 => Protocol::Tls,
        _ => request_line(first),
    }
}

/// An HTTP/1 request line: a method of capital letters, a blank, then a target (RFC 9112 3).
fn request_line(first: &[u8]) -> Protocol {
    let method =
        first.iter().take(LONGEST_METHOD).take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-');
    let length = method.count();
    match (first.get(length), first.get(length + 1)) {
        (None, _) if length > 0 => Protocol::Undecided,
        (Some(b' '), None) if length > 1 => Protocol::Undecided,
        (Some(b' '), Some(b'/' | b'*' | b'h' | b'H')) if length > 1 => Protocol::Http1,
        (Some(b' '), Some(target))
            if length > 1 && first.starts_with(b"CONNECT ") && target.is_ascii_graphic() =>
        {
            Protocol::Http1
        }
        _ => Protocol::Other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn classifies_first_bytes() {
        let cases: &[(&[u8], Protocol)] = &[
            (b"GET / HTTP/1.1\r\n", Protocol::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Protocol::Http1),
            (b"GET http://a/ HTTP/1.1\r\n", Protocol::Http1),
            (b"CONNECT a:443 HTTP/1.1\r\n", Protocol::Http1),
            (b"VERSION-CONTROL /x HTTP/1.1", Protocol::Http1),
            (PREFACE, Protocol::Http2),
            (b"PRI * HTTP", Protocol::Undecided),
            (b"P", Protocol::Undecided),
            (b"POST", Protocol::Undecided),
            (b"POST ", Protocol::Undecided),
            (b"", Protocol::Undecided),
            (&[0x16, 0x03, 0x01, 0x02, 0x00], Protocol::Tls),
            (&[0x16, 0x03], Protocol::Undecided),
            (&[0x16, 0x99, 0x01], Protocol::Other),
            (b"*1\r\n$4\r\nPING\r\n", Protocol::Other),
            (b"SSH-2.0-OpenSSH_9\r\n", Protocol::Other),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Protocol::Other),
            (b"get / HTTP/1.1", Protocol::Other),
        ];
        for (bytes, expected) in cases {
            assert_eq!(classify(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    /// What protocols begin with, in any order, and anything else.
    fn beginnings() -> impl Strategy<Value = Vec<u8>> {
        let pieces: [&[u8]; 12] = [
            b"GET ",
            b"P",
            b"PRI",
            b" * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"CONNECT ",
            b"A-",
            b"ABCDEFGHIJ",
            b" ",
            b"/",
            b"\x16",
            b"\x03",
            b"\x05",
        ];
        let known = proptest::sample::select(pieces.to_vec()).prop_map(<[u8]>::to_vec);
        let piece = prop_oneof![4 => known, 1 => any::<u8>().prop_map(|byte| vec![byte])];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        /// More bytes may settle an open question but never change an answer.
        #[test]
        fn answers_are_stable(bytes in beginnings(), cut in 0usize..40) {
            let head = &bytes[..cut.min(bytes.len())];
            let early = classify(head);
            prop_assert!(early == Protocol::Undecided || early == classify(&bytes));
        }
    }
}

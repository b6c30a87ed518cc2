//! The TLS 1.3 record layer after the handshake (RFC 8446, section 5), over keys that rustls derived.
//!
//! rustls does the handshake and keeps the key schedule; this file seals and opens application records in
//! the buffers that the socket is read into and written from. That spares two copies and one allocation per
//! record, which is a quarter of a tunnel's user-space time. Everything that is not application data is
//! rare and strict: whatever is not expected ends the connection.

use std::fmt;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Plaintext in one record (section 5.1).
pub(crate) const MAX_PLAINTEXT: usize = 16 * 1024;
/// Ciphertext in one record (section 5.2).
const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;
/// Type, version and length.
pub(crate) const HEADER_LEN: usize = 5;
const TAG_LEN: usize = 16;
/// What sealing adds to the plaintext of one record.
pub(crate) const OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;
/// Records under one key before it is replaced: half of what AES-GCM permits (section 5.5: 2^24.5).
const KEY_LIFETIME_RECORDS: u64 = 1 << 23;

/// Content types (section 5.1).
pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const APPLICATION_DATA: u8 = 23;

/// What ends a connection at the record layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A record that is longer than section 5.2 permits.
    #[error("the peer sent a TLS record of {0} bytes, more than the protocol permits")]
    TooLong(usize),
    /// An outer type that has no place after the handshake.
    #[error("the peer sent a TLS record of type {0} after the handshake")]
    UnexpectedType(u8),
    /// Forged or damaged.
    #[error("a TLS record from the peer does not authenticate")]
    Forged,
    /// A cipher suite that is never offered.
    #[error("the connection uses a cipher suite that was never offered")]
    UnknownSuite,
    /// Keys are replaced at our cost, and nobody needs so many.
    #[error("the peer replaces its keys again and again")]
    TooManyUpdates,
    /// 2^64 records: unreachable while keys are replaced.
    #[error("the sequence number of TLS records is exhausted")]
    Exhausted,
}

/// One direction's key with its sequence number.
struct Keyed {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Keyed {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key.as_ref(), iv.as_ref()),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key.as_ref(), iv.as_ref()),
            _ => return Err(RecordError::UnknownSuite),
        };
        let unbound = UnboundKey::new(algorithm, key).map_err(|_| RecordError::UnknownSuite)?;
        let iv = iv.try_into().map_err(|_| RecordError::UnknownSuite)?;
        Ok(Self { key: LessSafeKey::new(unbound), iv, sequence })
    }

    /// The nonce of the next record (section 5.3): the IV with the sequence number XORed into its end.
    fn next_nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce.iter_mut().skip(NONCE_LEN - 8).zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::Exhausted)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// Seals what we send.
#[derive(Debug)]
pub(crate) struct Sealer(Keyed);

impl Sealer {
    pub(crate) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Keyed::new(secrets).map(Self)
    }

    /// Whether the key has served long enough (section 5.5).
    pub(crate) fn wants_new_key(&self) -> bool {
        self.0.sequence >= KEY_LIFETIME_RECORDS
    }

    /// Seals one record in place. `record` is header space, plaintext, and [`OVERHEAD`] − [`HEADER_LEN`]
    /// bytes of space, in this order; the plaintext is at most [`MAX_PLAINTEXT`] long.
    pub(crate) fn seal(&mut self, content_type: u8, record: &mut [u8]) -> Result<(), RecordError> {
        let (header, body) = record.split_at_mut(HEADER_LEN);
        let length = u16::try_from(body.len()).map_err(|_| RecordError::TooLong(body.len()))?;
        let [high, low] = length.to_be_bytes();
        let header_bytes = [APPLICATION_DATA, 3, 3, high, low];
        header.copy_from_slice(&header_bytes);
        let (inner, tag_space) = body.split_at_mut(body.len() - TAG_LEN);
        if let Some(last) = inner.last_mut() {
            *last = content_type;
        }
        let nonce = self.0.next_nonce()?;
        let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::from(header_bytes), inner);
        tag_space.copy_from_slice(tag.map_err(|_| RecordError::Exhausted)?.as_ref());
        Ok(())
    }
}

/// A whole record at the front of the received bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Framed {
    header: [u8; HEADER_LEN],
    /// Bytes behind the header.
    body: usize,
}

impl Framed {
    /// Bytes of the record, its header included.
    pub(crate) fn len(&self) -> usize {
        HEADER_LEN + self.body
    }
}

/// Opens what we receive.
#[derive(Debug)]
pub(crate) struct Opener(Keyed);

impl Opener {
    pub(crate) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Keyed::new(secrets).map(Self)
    }

    /// Records that were opened with this key.
    pub(crate) fn opened(&self) -> u64 {
        self.0.sequence
    }

    /// The record at the front of `received`; `None` while it is not complete.
    pub(crate) fn frame(received: &[u8]) -> Result<Option<Framed>, RecordError> {
        let Some(header) = received.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let [outer_type, _, _, high, low] = *header;
        let body = usize::from(u16::from_be_bytes([high, low]));
        if outer_type != APPLICATION_DATA {
            return Err(RecordError::UnexpectedType(outer_type));
        }
        if body > MAX_CIPHERTEXT {
            return Err(RecordError::TooLong(body));
        }
        if body <= TAG_LEN {
            return Err(RecordError::Forged);
        }
        Ok((received.len() >= HEADER_LEN + body).then_some(Framed { header: *header, body }))
    }

    /// Opens the record at the front of `received` where it lies. Answers content type and length of the content,
    /// which begins behind the header.
    pub(crate) fn open(&mut self, framed: Framed, received: &mut [u8]) -> Result<(u8, usize), RecordError> {
        let body = received.get_mut(HEADER_LEN..framed.len()).ok_or(RecordError::Forged)?;
        let (content, tag) = body.split_at_mut(framed.body - TAG_LEN);
        let nonce = self.0.next_nonce()?;
        let opened = self.0.key.open_in_place_separate_tag(nonce, Aad::from(framed.header), tag, content);
        let out = opened.map_err(|_| RecordError::Forged)?;
        // Section 5.4: the type is the last byte that is not padding.
        let end = out.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Forged)?;
        if end > MAX_PLAINTEXT {
            return Err(RecordError::TooLong(end));
        }
        out.get(end).map(|content_type| (*content_type, end)).ok_or(RecordError::Forged)
    }
}

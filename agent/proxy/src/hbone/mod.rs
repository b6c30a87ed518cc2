//! HBONE: connections as HTTP/2 CONNECT streams inside mTLS, as ztunnel speaks it.

pub(crate) mod client;
pub(crate) mod driver;
pub(crate) mod headers;
pub(crate) mod lanes;
pub(crate) mod pool;
pub(crate) mod server;
#[cfg(test)]
mod tests;

pub(crate) use headers::Baggage;
pub(crate) use pool::Pool;

/// The port of HBONE.
pub(crate) const PORT: u16 = 15008;
/// Streams that we open in one tunnel, unless the peer allows fewer.
pub(crate) const STREAMS: usize = 100;
/// Streams that a peer may open in one tunnel; as ztunnel's.
pub(crate) const ACCEPTED_STREAMS: u32 = 200;
/// What one stream may send before its reader has taken it, in bytes.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
/// What all streams of a tunnel that a peer opened may send before their readers have taken it, in bytes.
///
/// It bounds what one peer makes us keep. Up to 63 stalled readers cannot block another stream of the tunnel.
pub(crate) const ACCEPTED_WINDOW: u32 = 64 * STREAM_WINDOW;
/// The largest frame that we accept, in bytes; as ztunnel's.
pub(crate) const MAX_FRAME: u32 = 1024 * 1024;

/// A connection window in which stalled readers of all streams but one cannot block the last.
pub(crate) const fn connection_window(streams: u32) -> u32 {
    (streams + 1) * STREAM_WINDOW
}

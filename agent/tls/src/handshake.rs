//! Handshakes, driven through rustls' unbuffered API, and the hand-over to the record layer.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpStream;

use crate::buffers::{Incoming, Outgoing};
use crate::record::{Opener, Sealer};
use crate::stream::{MOST_UPDATES, Schedule, TlsStream, invalid_data};

/// A handshake under way.
struct Handshake {
    io: TcpStream,
    incoming: Incoming,
    outgoing: Outgoing,
    /// Application data that came with the peer's last flight.
    early: Vec<u8>,
}

/// What one step of rustls came to.
enum Step {
    Again,
    NeedsInput,
    Complete,
}

impl TlsStream {
    /// Completes the client's side of a handshake. The configuration has `enable_secret_extraction` and offers
    /// TLS 1.3 with AES-GCM only.
    ///
    /// # Errors
    /// Socket errors, and TLS errors as [`io::ErrorKind::InvalidData`] with the [`rustls::Error`] inside.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn connect(
        io: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let mut connection = UnbufferedClientConnection::new(config, name).map_err(invalid_data)?;
        let mut handshake = Handshake::new(io);
        std::future::poll_fn(|cx| {
            handshake.poll(cx, |incoming, outgoing, early| {
                let status = connection.process_tls_records(incoming);
                (status.discard, advance(status.state, outgoing, early))
            })
        })
        .await?;
        let peer = peer_facts(connection.peer_certificates(), connection.alpn_protocol());
        let (secrets, schedule) = connection.dangerous_into_kernel_connection().map_err(invalid_data)?;
        handshake.into_stream(secrets, Schedule::Client(schedule), peer)
    }

    /// Completes the server's side of a handshake. Errors and cancel safety as [`TlsStream::connect`].
    pub async fn accept(io: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let mut connection = UnbufferedServerConnection::new(config).map_err(invalid_data)?;
        let mut handshake = Handshake::new(io);
        std::future::poll_fn(|cx| {
            handshake.poll(cx, |incoming, outgoing, early| {
                let status = connection.process_tls_records(incoming);
                (status.discard, advance(status.state, outgoing, early))
            })
        })
        .await?;
        let peer = peer_facts(connection.peer_certificates(), connection.alpn_protocol());
        let (secrets, schedule) = connection.dangerous_into_kernel_connection().map_err(invalid_data)?;
        handshake.into_stream(secrets, Schedule::Server(schedule), peer)
    }
}

type PeerFacts = (Vec<CertificateDer<'static>>, Option<Vec<u8>>);

fn peer_facts(chain: Option<&[CertificateDer<'static>]>, alpn: Option<&[u8]>) -> PeerFacts {
    (chain.unwrap_or_default().to_vec(), alpn.map(<[u8]>::to_vec))
}

impl Handshake {
    fn new(io: TcpStream) -> Self {
        Self { io, incoming: Incoming::default(), outgoing: Outgoing::default(), early: Vec::new() }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut process: impl FnMut(&mut [u8], &mut Outgoing, &mut Vec<u8>) -> (usize, io::Result<Step>),
    ) -> Poll<io::Result<()>> {
        loop {
            let (discard, step) = process(self.incoming.unopened_mut(), &mut self.outgoing, &mut self.early);
            self.incoming.discard(discard);
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Complete) => return self.outgoing.poll_flush(&mut self.io, cx),
                Ok(Step::NeedsInput) => {
                    ready!(self.outgoing.poll_flush(&mut self.io, cx))?;
                    if ready!(self.incoming.poll_fill(&mut self.io, cx))? == 0 {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                Err(error) => return Poll::Ready(Err(self.fail(cx, error, &mut process))),
            }
        }
    }

    /// Sends the alert that rustls has queued, once, and passes the error on.
    fn fail(
        &mut self,
        cx: &mut Context<'_>,
        error: io::Error,
        process: &mut impl FnMut(&mut [u8], &mut Outgoing, &mut Vec<u8>) -> (usize, io::Result<Step>),
    ) -> io::Error {
        while let (_, Ok(Step::Again)) =
            process(self.incoming.unopened_mut(), &mut self.outgoing, &mut self.early)
        {}
        let _ = self.outgoing.poll_flush(&mut self.io, cx);
        error
    }

    fn into_stream(
        self,
        secrets: rustls::ExtractedSecrets,
        schedule: Schedule,
        (peer_certificates, alpn): PeerFacts,
    ) -> io::Result<TlsStream> {
        Ok(TlsStream {
            io: self.io,
            schedule,
            sealer: Sealer::new(secrets.tx).map_err(invalid_data)?,
            opener: Opener::new(secrets.rx).map_err(invalid_data)?,
            incoming: self.incoming,
            outgoing: self.outgoing,
            early: self.early,
            failed: None,
            peer_closed: false,
            close_sent: false,
            updates_left: MOST_UPDATES,
            peer_certificates,
            alpn,
        })
    }
}

/// Handles one state of rustls; the same for both sides.
fn advance<Data>(
    state: Result<ConnectionState<'_, '_, Data>, rustls::Error>,
    outgoing: &mut Outgoing,
    early: &mut Vec<u8>,
) -> io::Result<Step> {
    match state.map_err(invalid_data)? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                early.extend_from_slice(record.map_err(invalid_data)?.payload);
            }
            Ok(Step::Again)
        }
        ConnectionState::EncodeTlsData(mut data) => encode(&mut data, outgoing).map(|()| Step::Again),
        ConnectionState::TransmitTlsData(transmit) => {
            // The bytes wait in `outgoing`, which leaves in order: for rustls they are sent.
            transmit.done();
            Ok(Step::Again)
        }
        ConnectionState::WriteTraffic(_) => Ok(Step::Complete),
        ConnectionState::BlockedHandshake => Ok(Step::NeedsInput),
        ConnectionState::PeerClosed | ConnectionState::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::other("early data was never offered")),
    }
}

fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, outgoing: &mut Outgoing) -> io::Result<()> {
    let needed = match data.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => required_size,
        Err(error) => return Err(invalid_data(error)),
    };
    let written = data.encode(outgoing.space(needed)).map_err(invalid_data)?;
    outgoing.commit(written);
    Ok(())
}

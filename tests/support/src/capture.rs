//! Looking at packets: what goes over a link, and whether it is TLS.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::process::{Place, Process};
use crate::wait::poll_until;

/// A running capture of all TCP on one interface.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

/// One TCP segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// From where.
    pub source: SocketAddr,
    /// To where.
    pub destination: SocketAddr,
    /// Sequence number.
    pub sequence: u32,
    /// Whether it opens a connection (SYN, with or without ACK).
    pub syn: bool,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// What was captured.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// In the order of arrival.
    pub packets: Vec<Packet>,
}

/// What the bytes of a port look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TlsProof {
    /// One-way streams that were seen from their first byte on and consist of TLS records.
    pub tls_streams: usize,
    /// Streams that do not.
    pub other_streams: usize,
    /// TLS records of application data.
    pub data_records: usize,
}

impl Capture {
    /// Starts to capture on `interface`, seen from `place`.
    pub fn start(place: &Place, interface: &str) -> Result<Self> {
        let file =
            place.logs.with_file_name(format!("{interface}-{}.pcap", fs::read_dir(&place.logs)?.count()));
        let name = file.to_str().context("the lab's directory is UTF-8")?;
        let args =
            ["-i", interface, "-Z", "root", "-U", "--immediate-mode", "-B", "32768", "-w", name, "tcp"];
        let process = Process::spawn(place, "tcpdump", Path::new("tcpdump"), &args)?;
        poll_until(Duration::from_secs(30), || {
            if process.stderr().contains("listening on") {
                return Ok(());
            }
            bail!("{}", process.report("does not listen (is it installed?)"))
        })?;
        Ok(Self { process, file })
    }

    /// Ends the capture and gives the packets.
    pub fn stop(mut self) -> Result<Captured> {
        self.process.signal(Signal::INT)?;
        self.process.wait(Duration::from_secs(30))?;
        let bytes = fs::read(&self.file)?;
        let _ = fs::remove_file(&self.file);
        parse_file(&bytes).context("the capture is not a pcap file")
    }

    /// The packets so far; the capture goes on.
    pub fn so_far(&self) -> Result<Captured> {
        parse_file(&fs::read(&self.file)?).context("the capture is not a pcap file")
    }
}

impl Captured {
    /// Whether the text occurs in the payload of any one packet.
    pub fn contains(&self, marker: &str) -> bool {
        let marker = marker.as_bytes();
        self.packets.iter().any(|packet| packet.payload.windows(marker.len()).any(|window| window == marker))
    }

    /// Bytes of payload to or from a port.
    pub fn bytes_on_port(&self, port: u16) -> usize {
        self.on_port(port).map(|packet| packet.payload.len()).sum()
    }

    fn on_port(&self, port: u16) -> impl Iterator<Item = &Packet> {
        self.packets.iter().filter(move |p| p.source.port() == port || p.destination.port() == port)
    }

    /// Whether everything on the port is TLS, judged by reassembling each direction of each connection.
    pub fn tls_on_port(&self, port: u16) -> TlsProof {
        let mut streams: BTreeMap<(SocketAddr, SocketAddr), Vec<&Packet>> = BTreeMap::new();
        for packet in self.on_port(port) {
            streams.entry((packet.source, packet.destination)).or_default().push(packet);
        }
        let mut proof = TlsProof::default();
        for packets in streams.values() {
            let Some(bytes) = reassemble(packets) else { continue };
            match data_records(&bytes) {
                Some(records) => {
                    proof.tls_streams += 1;
                    proof.data_records += records;
                }
                None => proof.other_streams += 1,
            }
        }
        proof
    }
}

/// The bytes of one direction up to the first hole; `None` when its beginning was not seen or it has none.
fn reassemble(packets: &[&Packet]) -> Option<Vec<u8>> {
    let first = packets.iter().find(|packet| packet.syn)?.sequence.wrapping_add(1);
    let mut segments: Vec<(u32, &[u8])> = packets
        .iter()
        .filter(|packet| !packet.payload.is_empty())
        .map(|packet| (packet.sequence.wrapping_sub(first), packet.payload.as_slice()))
        .collect();
    segments.sort_by_key(|(at, _)| *at);
    let mut bytes = Vec::new();
    for (at, payload) in segments {
        let overlap = bytes.len().checked_sub(usize::try_from(at).ok()?);
        match overlap {
            Some(known) => bytes.extend(payload.get(known..).unwrap_or_default()),
            None => break,
        }
    }
    (!bytes.is_empty()).then_some(bytes)
}

/// Number of application data records when the bytes are nothing but TLS records (the last may be cut).
fn data_records(mut bytes: &[u8]) -> Option<usize> {
    let mut records = 0;
    while let [kind, 3, minor, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if !(20..=23).contains(kind) || *minor > 4 || length > 16_384 + 256 {
            return None;
        }
        records += usize::from(*kind == 23);
        bytes = rest.get(length..).unwrap_or_default();
    }
    (bytes.len() < 5).then_some(records)
}

fn parse_file(bytes: &[u8]) -> Option<Captured> {
    let magic = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    if magic != 0xa1b2_c3d4 && magic != 0xa1b2_3c4d {
        return None;
    }
    let mut rest = bytes.get(24..)?;
    let mut captured = Captured::default();
    while let Some(length) = rest.get(8..12) {
        let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
        // The last packet may be half written while the capture goes on.
        let Some(frame) = rest.get(16..16 + length) else { break };
        captured.packets.extend(parse_frame(frame));
        rest = rest.get(16 + length..)?;
    }
    Some(captured)
}

fn parse_frame(frame: &[u8]) -> Option<Packet> {
    let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
    let packet = frame.get(14..)?;
    match kind {
        0x0800 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
            let source = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?);
            let destination = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?);
            // A total of 0 means a segment larger than 64 KiB: then the frame says how long it is.
            let end = if total == 0 { packet.len() } else { total };
            parse_segment(source.into(), destination.into(), packet.get(header..end)?)
        }
        0x86dd => {
            let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
            let source = Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?);
            let destination = Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?);
            let end = if length == 0 { packet.len() } else { 40 + length };
            parse_segment(source.into(), destination.into(), packet.get(40..end)?)
        }
        _ => None,
    }
}

fn parse_segment(source: IpAddr, destination: IpAddr, segment: &[u8]) -> Option<Packet> {
    let port = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(Packet {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        sequence: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
        syn: segment.get(13)? & 0x02 != 0,
        payload: segment.get(header..)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(sequence: u32, syn: bool, payload: &[u8]) -> Packet {
        let address = |last| SocketAddr::new(IpAddr::from([10, 0, 0, last]), 15008);
        Packet { source: address(1), destination: address(2), sequence, syn, payload: payload.to_vec() }
    }

    #[test]
    fn tls_is_told_from_other_bytes() {
        let record = [23, 3, 3, 0, 2, 7, 7];
        let tls = Captured {
            packets: vec![
                packet(10, true, b""),
                packet(14, false, &record[3..]),
                packet(11, false, &record[..3]),
            ],
        };
        assert_eq!(tls.tls_on_port(15008), TlsProof { tls_streams: 1, other_streams: 0, data_records: 1 });
        let plain = Captured { packets: vec![packet(10, true, b""), packet(11, false, b"GET / HTTP/1.1")] };
        assert_eq!(plain.tls_on_port(15008), TlsProof { tls_streams: 0, other_streams: 1, data_records: 0 });
        assert!(plain.contains("HTTP"));
        assert!(!plain.contains("secret"));
    }
}

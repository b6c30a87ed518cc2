use std::sync::mpsc;

use proptest::prelude::*;

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

fn line() -> ConnectionLog {
    ConnectionLog {
        start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_123),
        duration: Duration::from_micros(61_999),
        direction: Direction::Outbound,
        flags: "-",
        details: None,
        bytes_received: 1033,
        bytes_sent: 3015,
        downstream_remote: "10.8.0.5:41232".parse().unwrap(),
        downstream_local: "10.96.0.7:443".parse().unwrap(),
        upstream_remote: Some("10.8.1.9:8443".parse().unwrap()),
        upstream_local: Some("10.8.0.5:41234".parse().unwrap()),
        upstream_cluster: "outbound|443||stock.shop.svc.cluster.local".into(),
        path: "hbone",
        source_principal: Some("spiffe://cluster.local/ns/shop/sa/cart".into()),
        destination_principal: Some("spiffe://cluster.local/ns/shop/sa/stock".into()),
        source_pod: Some("shop/cart-1".into()),
        destination_pod: Some("shop/stock-1".into()),
        policy: None,
    }
}

fn denied() -> ConnectionLog {
    ConnectionLog {
        direction: Direction::Inbound,
        flags: "DENY",
        details: Some("AuthorizationPolicy shop/stock, rule 0, denies \"cart\"".into()),
        upstream_remote: None,
        upstream_local: None,
        upstream_cluster: "inbound|8443||".into(),
        downstream_local: "[fd00::9]:8443".parse().unwrap(),
        downstream_remote: "[fd00::5]:41232".parse().unwrap(),
        policy: Some("ns[shop]-policy[stock]-rule[0]".into()),
        ..line()
    }
}

fn unidentified() -> ConnectionLog {
    ConnectionLog {
        flags: "UF",
        details: Some("connection refused".into()),
        source_principal: None,
        destination_principal: None,
        source_pod: None,
        destination_pod: None,
        ..line()
    }
}

/// An output whose writes come out at the receiver; a write waits until somebody receives it.
struct Pipe(mpsc::SyncSender<Vec<u8>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn pipe() -> (AccessLog, mpsc::Receiver<Vec<u8>>) {
    let (sender, receiver) = mpsc::sync_channel(0);
    (AccessLog::to(Box::new(Pipe(sender))), receiver)
}

fn rendered(format: AccessLogFormat) -> String {
    let mut out = String::new();
    [line(), denied(), unidentified()].iter().for_each(|entry| crate::format::line(entry, format, &mut out));
    out
}

#[test]
fn text_is_istios() {
    insta::assert_snapshot!(rendered(AccessLogFormat::Text));
}

#[test]
fn json_has_istios_keys_and_ours() {
    insta::assert_snapshot!(rendered(AccessLogFormat::Json));
}

#[test]
fn only_failures_are_written_unless_everything_was_asked_for() {
    let (log, receiver) = pipe();
    log.write(line());
    log.write(denied());
    let first = String::from_utf8(receiver.recv_timeout(LIMIT).unwrap()).unwrap();
    assert_eq!(first.lines().count(), 1);
    assert!(first.contains("DENY"));
    log.configure(true, AccessLogFormat::Json);
    log.write(line());
    let second = String::from_utf8(receiver.recv_timeout(LIMIT).unwrap()).unwrap();
    assert!(second.starts_with('{') && second.contains("\"response_flags\":\"-\""), "{second}");
}

#[test]
fn a_full_queue_loses_ordinary_lines_first_and_counts_them() {
    let (log, receiver) = pipe();
    log.configure(true, AccessLogFormat::Text);
    // The writer takes some lines and then waits in its write: from there on the queue fills.
    for _ in 0..QUEUE + BATCH + 1 {
        log.write(line());
    }
    let lost = log.lost();
    assert!(lost >= 1);
    log.write(denied());
    assert_eq!(log.lost(), lost, "there is room for failures");
    drop(log);
    let all: Vec<u8> = receiver.iter().flatten().collect();
    let text = String::from_utf8(all).unwrap();
    assert!(text.lines().last().unwrap().contains("DENY"), "what was queued is written when the log ends");
    assert_eq!(text.lines().count() as u64, (QUEUE + BATCH + 2) as u64 - lost);
}

#[test]
fn an_output_that_fails_counts_as_loss() {
    let (log, receiver) = pipe();
    drop(receiver);
    log.write(denied());
    log.flush(LIMIT);
    assert_eq!(log.lost(), 1);
}

proptest! {
    #[test]
    fn nothing_breaks_out_of_its_line(details in "\\PC*|[\"\\\\\n\r\t\u{85} ]{1,20}") {
        let entry = ConnectionLog { details: Some(details.clone()), ..denied() };
        for format in [AccessLogFormat::Text, AccessLogFormat::Json] {
            let mut out = String::new();
            crate::format::line(&entry, format, &mut out);
            prop_assert_eq!(out.chars().filter(|c| *c < ' ').count(), 1, "only the line's end");
        }
        let mut out = String::new();
        crate::format::line(&entry, AccessLogFormat::Json, &mut out);
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        prop_assert_eq!(json["upstream_transport_failure_reason"].as_str(), Some(details.as_str()));
    }
}

//! Names, hosts, addresses, protocols and durations as Istio's admission understands them.

use std::net::IpAddr;

/// A DNS label: letters of either case, digits and `-`, not at the ends, 63 at most.
pub(in crate::decode) fn is_label(text: &str) -> bool {
    let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
}

/// A label, or one behind `*` or `*-`, or `*`.
fn is_wildcard_label(text: &str) -> bool {
    let label = text.strip_prefix("*-").or_else(|| text.strip_prefix('*')).unwrap_or(text);
    text.len() <= 63 && (text == "*" || is_label(label))
}

/// Why a host is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::decode) enum BadHost {
    Empty,
    TooLong,
    NumericEnd(String),
    Label(String),
}

impl std::fmt::Display for BadHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("a host must not be empty"),
            Self::TooLong => f.write_str("a host has 255 characters at most"),
            Self::NumericEnd(label) => write!(f, "its last label `{label}` is a number"),
            Self::Label(label) => write!(f, "`{label}` is not a DNS label"),
        }
    }
}

fn length(host: &str) -> Result<(), BadHost> {
    match host.len() {
        0 => Err(BadHost::Empty),
        256.. => Err(BadHost::TooLong),
        _ => Ok(()),
    }
}

/// Labels between dots; the last may be empty (`istio.io.`), and is not a number.
fn labels(domain: &str) -> Result<(), BadHost> {
    let last = domain.rsplit('.').next().unwrap_or_default();
    if last.parse::<i64>().is_ok() {
        return Err(BadHost::NumericEnd(last.to_owned()));
    }
    if domain.is_empty() {
        return Ok(());
    }
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    match domain.split('.').find(|label| !is_label(label)) {
        Some(label) => Err(BadHost::Label(super::schema::shortened(label))),
        None => Ok(()),
    }
}

/// A host name without wildcard.
pub(in crate::decode) fn host(text: &str) -> Result<(), BadHost> {
    length(text)?;
    labels(text)
}

/// A host name whose first label may begin with `*`.
pub(in crate::decode) fn wildcard_host(text: &str) -> Result<(), BadHost> {
    length(text)?;
    let (first, rest) = text.split_once('.').map_or((text, None), |(first, rest)| (first, Some(rest)));
    if !is_wildcard_label(first) {
        return Err(BadHost::Label(super::schema::shortened(first)));
    }
    rest.map_or(Ok(()), labels)
}

/// A `*` that is neither the whole host nor its whole first label.
pub(in crate::decode) fn is_partial_wildcard(host: &str) -> bool {
    host.contains('*') && host != "*" && !host.starts_with("*.")
}

/// An IP address as Go reads it: IPv6 may have a zone.
pub(in crate::decode) fn is_address(text: &str) -> bool {
    match text.split_once('%') {
        Some((address, zone)) => address.parse::<std::net::Ipv6Addr>().is_ok() && !zone.is_empty(),
        None => text.parse::<IpAddr>().is_ok(),
    }
}

/// An address or a range.
pub(in crate::decode) fn is_address_or_range(text: &str) -> bool {
    if text.matches('/').count() == 1 { text.parse::<ipnet::IpNet>().is_ok() } else { is_address(text) }
}

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::decode) enum Protocol {
    Tcp,
    Udp,
    Grpc,
    GrpcWeb,
    Http,
    HttpProxy,
    Http2,
    Https,
    Tls,
    Mongo,
    Redis,
    MySql,
}

impl Protocol {
    /// The protocol of this name, whatever its case.
    pub(in crate::decode) fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "http" => Self::Http,
            "http_proxy" => Self::HttpProxy,
            "http2" => Self::Http2,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "mongo" => Self::Mongo,
            "redis" => Self::Redis,
            "mysql" => Self::MySql,
            _ => return None,
        })
    }

    pub(in crate::decode) fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::HttpProxy | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    pub(in crate::decode) fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }
}

/// What stands behind `unix://`: an absolute path to a file, or an abstract socket.
pub(in crate::decode) fn is_socket_path(path: &str) -> bool {
    path.starts_with('@') || (path.starts_with('/') && !path.ends_with('/'))
}

/// A name that Kubernetes allows as the key of a label: an optional DNS prefix and a name of 63 characters.
pub(in crate::decode) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let prefix_holds =
        prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_unbounded_label));
    prefix_holds && name.len() <= 63 && is_qualified(name)
}

fn is_unbounded_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
    !text.is_empty() && !text.starts_with('-') && !text.ends_with('-') && text.bytes().all(inner)
}

/// The value of a label: empty, or letters, digits, `-`, `_` and `.`, not at the ends.
pub(in crate::decode) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_qualified(text)
}

fn is_qualified(text: &str) -> bool {
    let edge = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// A duration as Go writes it (`1h2m3.5s`), in nanoseconds; `None` if it is none or does not fit.
pub(in crate::decode) fn duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (if text.starts_with('-') { -1 } else { 1 }, rest),
        None => (1, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    loop {
        let (value, unit_and_rest) = decimal(rest)?;
        let (unit, behind) = unit(unit_and_rest)?;
        let (whole, fraction, scale) = value;
        total = total.checked_add(whole.checked_mul(unit)?)?.checked_add(fraction * unit / scale)?;
        rest = behind;
        if rest.is_empty() {
            break;
        }
    }
    (total <= i128::from(i64::MAX)).then_some(sign * total)
}

/// Whole part, fraction and the scale of the fraction; then what follows.
fn decimal(text: &str) -> Option<((i128, i128, i128), &str)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at_checked(digits(text))?;
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at_checked(digits(rest))?,
        None => ("", rest),
    };
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 19 {
        return None;
    }
    let fraction = fraction.get(..fraction.len().min(15))?;
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse().ok() };
    Some(((parse(whole)?, parse(fraction)?, scale), rest))
}

/// The nanoseconds of a unit, and what follows it.
fn unit(text: &str) -> Option<(i128, &str)> {
    const UNITS: [(&str, i128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    UNITS.iter().find_map(|(name, length)| Some((*length, text.strip_prefix(name)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_labels_and_no_number_at_the_end() {
        for good in ["a.b", "foo", "istio.io.", "A-1.b"] {
            assert_eq!(host(good), Ok(()), "{good}");
        }
        for bad in ["", "-", "a..b", "*.b", "1.2.3.4", "a.b_c", "a:80", &"a".repeat(64), &"a.".repeat(128)] {
            assert!(host(bad).is_err(), "{bad}");
        }
        for good in ["*", "*.a.b", "*-a.b", "*a.b", "a.b"] {
            assert_eq!(wildcard_host(good), Ok(()), "{good}");
        }
        for bad in ["a.*.b", "**", "*-", "a*.b", "*."] {
            assert_eq!(wildcard_host(bad).is_err(), bad != "*.", "{bad}");
        }
    }

    #[test]
    fn durations_are_read_as_go_does() {
        let milliseconds = |text: &str| duration(text).map(|nanoseconds| nanoseconds / 1_000_000);
        assert_eq!(milliseconds("1h2m3.5s"), Some(3_723_500));
        assert_eq!(
            (milliseconds("0"), milliseconds("10ms"), milliseconds("-1s")),
            (Some(0), Some(10), Some(-1000))
        );
        for bad in ["", "1", "s", "1x", "1s ", ".s", "99999999999h", "1d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn labels_follow_kubernetes() {
        assert!(
            is_label_key("a.b/c_d") && is_label_key("x") && is_label_value("") && is_label_value("a.B-1")
        );
        for bad in ["", "/a", "a/", "a/b/c", "-a", "a b"] {
            assert!(!is_label_key(bad), "{bad}");
        }
        assert!(!is_label_value("-") && !is_label_value("a/b"));
    }

    #[test]
    fn addresses_may_have_zones() {
        assert!(is_address("fe80::1%eth0") && is_address("10.0.0.1") && !is_address("10.0.0.1%a"));
        assert!(is_address_or_range("10.0.0.0/8") && !is_address_or_range("10.0.0.0/33"));
    }
}

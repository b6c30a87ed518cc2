//! Header changes (V-17, E31, E32).

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::resource::virtual_service::HeaderChanges;

/// Makes the changes: `remove` first, then `set`, then `add` (E32). Host and pseudo headers are not touched: their
/// change is [`Outgoing::authority`](super::Outgoing::authority). A name or value that HTTP does not allow is left
/// out.
pub fn apply(changes: &HeaderChanges, headers: &mut HeaderMap) {
    for name in &changes.remove {
        if let Some(name) = ordinary(name) {
            headers.remove(name);
        }
    }
    for (name, value) in &changes.set {
        if let (Some(name), Ok(value)) = (ordinary(name), HeaderValue::from_bytes(value.as_bytes())) {
            headers.insert(name, value);
        }
    }
    for (name, value) in &changes.add {
        if let (Some(name), Ok(value)) = (ordinary(name), HeaderValue::from_bytes(value.as_bytes())) {
            headers.append(name, value);
        }
    }
}

fn ordinary(name: &str) -> Option<HeaderName> {
    if is_host(name) {
        return None;
    }
    HeaderName::from_bytes(name.as_bytes()).ok()
}

/// Whether a name in `set` or `add` means the authority.
pub(crate) fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

//! Headers of a CONNECT request and its answer, as ztunnel sends and reads them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use weft_core::Snapshot;
use weft_core::resource::NamespacedName;
use weft_core::snapshot::{CompiledService, Workload, WorkloadLabels};

use crate::worker::Worker;

/// W3C Baggage: who the sender is, for labels at the other end. Never for decisions.
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// RFC 7239; `host=` names the Service that was addressed.
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
/// W3C Trace Context.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Rendered values that a worker keeps; beyond that it forgets all and begins again.
const MAX_CACHED: usize = 4096;

/// Rendered `baggage`, by workload. Keeps its keys alive, so their addresses are unique.
#[derive(Debug, Default)]
pub(crate) struct Baggage(RefCell<HashMap<usize, (Arc<WorkloadLabels>, HeaderValue)>>);

impl Baggage {
    /// The value for a workload.
    pub(crate) fn of(&self, workload: &Workload) -> HeaderValue {
        let labels = &workload.labels;
        let key = Arc::as_ptr(labels).addr();
        if let Some((_, value)) = self.0.borrow().get(&key) {
            return value.clone();
        }
        let value = render(workload);
        let mut cache = self.0.borrow_mut();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(key, (labels.clone(), value.clone()));
        value
    }
}

fn render(workload: &Workload) -> HeaderValue {
    let labels = &workload.labels;
    let kind = if *labels.workload == *workload.key.name { "pod" } else { "deployment" };
    let text = format!(
        "k8s.cluster.name=Kubernetes,k8s.namespace.name={},k8s.{kind}.name={},service.name={},service.version={}",
        labels.namespace, labels.workload, labels.canonical_service, labels.canonical_revision
    );
    // Names of Kubernetes objects and label values are visible ASCII; others are not worth a refusal.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The request for a connection to `authority` in the name of `client`.
pub(crate) fn connect_request(
    worker: &Worker,
    source: &Workload,
    authority: SocketAddr,
    client: SocketAddr,
    service: Option<&CompiledService>,
) -> Result<Request<()>, http::Error> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::builder().authority(authority.to_string()).build()?;
    let headers = request.headers_mut();
    let forwarded = match service {
        Some(service) => format!("for=\"{client}\";host={}", service.host),
        None => format!("for=\"{client}\""),
    };
    headers.insert(FORWARDED, never_indexed(forwarded)?);
    headers.insert(BAGGAGE, worker.baggage.of(source));
    headers.insert(
        TRACEPARENT,
        never_indexed(traceparent([worker.random(), worker.random(), worker.random()]))?,
    );
    Ok(request)
}

/// A value that is different every time has no place in HPACK's table.
fn never_indexed(text: String) -> Result<HeaderValue, http::Error> {
    let mut value = HeaderValue::try_from(text)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A trace of its own for each connection. Ids must not be zero.
fn traceparent([high, low, span]: [u64; 3]) -> String {
    format!("00-{high:016x}{low:016x}-{:016x}-00", span | 1)
}

/// The `baggage` of an answer.
pub(crate) fn add_baggage(headers: &mut HeaderMap, value: HeaderValue) {
    headers.insert(BAGGAGE, value);
}

/// The Service that the client's agent says was addressed. A hint for metrics, never for decisions.
pub(crate) fn forwarded_service(headers: &HeaderMap, snapshot: &Snapshot) -> Option<Arc<CompiledService>> {
    let host = forwarded_host(headers.get(FORWARDED)?.to_str().ok()?)?;
    let mut labels = host.split('.');
    let (name, namespace) = (labels.next()?, labels.next()?);
    let service = snapshot.service(&NamespacedName::new(namespace, name))?;
    (*service.host == *host).then(|| service.clone())
}

fn forwarded_host(forwarded: &str) -> Option<&str> {
    // Only the first element: the last proxy before us.
    let element = forwarded.split(',').next()?;
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("host").then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_host_of_a_forwarded_header() {
        for (header, host) in [
            ("for=\"10.0.0.1:4711\";host=cart.shop.svc.cluster.local", Some("cart.shop.svc.cluster.local")),
            ("host=\"a.b\" ; for=x", Some("a.b")),
            ("for=\"[fd00::1]:80\"", None),
            ("for=x, host=second", None),
            ("", None),
        ] {
            assert_eq!(forwarded_host(header), host, "{header}");
        }
    }

    #[test]
    fn traces_have_the_w3c_form() {
        assert_eq!(traceparent([1, 2, 0]), "00-00000000000000010000000000000002-0000000000000001-00");
    }

    proptest! {
        #[test]
        fn no_header_panics(header in ".*") {
            let _ = forwarded_host(&header);
        }
    }
}

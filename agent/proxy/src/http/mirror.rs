//! Mirrors: the same request to somebody whose answer nobody waits for (V-27, E29).

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use weft_core::decide::http::Cluster;

use super::call::Call;
use super::forward::Outward;
use super::headers::X_FORWARDED_FOR;
use super::upload::Upload;
use super::upstream::{self, Leg, Search, UpstreamProtocol};

/// How long a mirror may take where the route has no timeout.
const LIMIT: Duration = Duration::from_secs(60);
const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");

/// To whom a request is mirrored.
pub(crate) struct Mirrored {
    pub(crate) cluster: Arc<Cluster>,
    /// What is spoken there, whatever the request itself travels in.
    pub(crate) protocol: UpstreamProtocol,
    pub(crate) timeout: Option<Duration>,
}

/// Sends a copy of the request in a task of its own. Call before the request itself is sent.
pub(crate) fn send((out, call): (&Outward<'_>, &Call), upload: &Upload, mirrored: Mirrored) {
    let mut call = call.copy();
    out.finish(&mut call);
    call.parts.headers.insert(INTERNAL, HeaderValue::from_static("true"));
    if let Ok(client) = HeaderValue::try_from(out.leg.client.ip().to_string()) {
        call.parts.headers.append(X_FORWARDED_FOR, client);
    }
    call.body = upload.mirror();
    let (worker, protocol) = (out.downstream.worker.clone(), mirrored.protocol);
    let (pod, source, snapshot) = (out.leg.pod.clone(), out.leg.source.clone(), out.leg.snapshot.clone());
    let (client, original) = (out.leg.client, out.leg.original);
    let task = worker.clone();
    worker.spawn(async move {
        let leg =
            Leg { pod: &pod, source: &source, client, original, snapshot: &snapshot, local: Cell::default() };
        let mut search = Search::default();
        let whole = async {
            let sent = upstream::send(&task, &leg, &mirrored.cluster, &mut search, call, protocol);
            let Ok(sent) = sent.await else { return };
            let mut body = sent.response.into_body();
            while let Some(Ok(_)) = body.frame().await {}
        };
        // Whatever becomes of it concerns nobody.
        let _ = tokio::time::timeout(mirrored.timeout.unwrap_or(LIMIT), whole).await;
    });
}

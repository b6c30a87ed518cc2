//! CORS (V-28, E38).

use std::sync::Arc;

use super::pattern::Pattern;
use super::{LocalReply, Request};
use crate::resource::virtual_service as written;

/// What a CORS policy makes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cors {
    /// The mesh answers the preflight.
    Preflight(LocalReply),
    /// The application's answer gets these headers.
    Headers(Vec<(Arc<str>, String)>),
    /// Nothing: no `origin`, or one that is not allowed.
    None,
}

/// A `corsPolicy` with its origins compiled.
#[derive(Debug, Clone)]
pub struct CorsPolicy {
    /// As it was written.
    pub written: written::CorsPolicy,
    pub(crate) origins: Box<[Pattern]>,
}

const ALLOW_ORIGIN: &str = "access-control-allow-origin";
const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";

/// Applies a policy to a request.
pub fn cors(policy: &CorsPolicy, request: &Request<'_>) -> Cors {
    let Some(origin) = request.headers.get(http::header::ORIGIN).filter(|origin| !origin.is_empty()) else {
        return Cors::None;
    };
    let asked = request.headers.get(http::header::ACCESS_CONTROL_REQUEST_METHOD);
    let preflight = request.method == "OPTIONS" && asked.is_some_and(|method| !method.is_empty());
    // What covers `*` itself is for every origin.
    let allows = |pattern: &Pattern| pattern.matches(b"*") || pattern.matches(origin.as_bytes());
    let allowed = policy.origins.iter().any(allows);
    if !allowed {
        let ignored = preflight && policy.written.ignore_unmatched_preflights;
        return if ignored { Cors::Preflight(answer(Vec::new())) } else { Cors::None };
    }
    let mut headers =
        vec![(Arc::from(ALLOW_ORIGIN), String::from_utf8_lossy(origin.as_bytes()).into_owned())];
    if policy.written.allow_credentials == Some(true) {
        headers.push((ALLOW_CREDENTIALS.into(), "true".into()));
    }
    push_list(&mut headers, "access-control-expose-headers", &policy.written.expose_headers);
    if !preflight {
        return Cors::Headers(headers);
    }
    push_list(&mut headers, "access-control-allow-methods", &policy.written.allow_methods);
    push_list(&mut headers, "access-control-allow-headers", &policy.written.allow_headers);
    if let Some(age) = policy.written.max_age {
        headers.push(("access-control-max-age".into(), age.as_secs().to_string()));
    }
    Cors::Preflight(answer(headers))
}

fn push_list(headers: &mut Vec<(Arc<str>, String)>, name: &str, values: &[Arc<str>]) {
    if !values.is_empty() {
        headers.push((name.into(), values.join(",")));
    }
}

fn answer(headers: Vec<(Arc<str>, String)>) -> LocalReply {
    LocalReply {
        status: 200,
        headers,
        body: Arc::default(),
        flag: "-",
        details: "cors_preflight",
        by: "cors",
    }
}

//! RequestAuthentication.

use serde::Deserialize;
use weft_core::resource::{Kind, RequestAuthentication, Resource};

use super::Read;
use super::fields::Body;
use super::intern::Interner;
use super::meta::{self, MetaWire};
use super::report::Place;

#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct Wire<'a> {
    #[serde(borrow)]
    metadata: MetaWire<'a>,
}

pub(super) fn request_authentication<'a>(
    body: Body<'_>,
    place: Place<'a>,
    interner: &mut Interner,
) -> Read<'a> {
    let wire: Wire<'_> = body.read()?;
    let (meta, report) = meta::namespaced(&wire.metadata, Kind::RequestAuthentication, place, interner);
    Ok((
        Resource::RequestAuthentication(RequestAuthentication {
            meta,
            selector: None,
            targets_gateway: false,
            rules: Vec::new(),
        }),
        report,
    ))
}

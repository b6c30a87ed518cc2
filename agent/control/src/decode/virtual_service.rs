//! VirtualService.

use serde::Deserialize;
use weft_core::resource::{Kind, Resource, VirtualService};

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

pub(super) fn virtual_service<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let wire: Wire<'_> = body.read()?;
    let (meta, report) = meta::namespaced(&wire.metadata, Kind::VirtualService, place, interner);
    Ok((
        Resource::VirtualService(VirtualService {
            meta,
            hosts: Vec::new(),
            gateways: Vec::new(),
            export_to: Vec::new(),
            http: Vec::new(),
            tls: Vec::new(),
            tcp: Vec::new(),
        }),
        report,
    ))
}

//! DestinationRule.

use serde::Deserialize;
use weft_core::resource::{DestinationRule, Kind, Resource};

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

pub(super) fn destination_rule<'a>(body: Body<'_>, place: Place<'a>, interner: &mut Interner) -> Read<'a> {
    let wire: Wire<'_> = body.read()?;
    let (meta, report) = meta::namespaced(&wire.metadata, Kind::DestinationRule, place, interner);
    Ok((
        Resource::DestinationRule(DestinationRule {
            meta,
            host: "".into(),
            policy: None,
            subsets: Vec::new(),
            export_to: Vec::new(),
            workload_selector: None,
        }),
        report,
    ))
}

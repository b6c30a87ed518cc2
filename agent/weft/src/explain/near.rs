//! Which endpoints are preferred for where they are (D-10, D-11).

use std::net::SocketAddr;

use weft_core::decide::http::{Cluster, Group, layout};

use super::Inquiry;
use super::destination::Destination;

/// What an endpoint's share is given in: enough for the shares of a group's members to be whole numbers.
const WHOLE: u32 = 100;

impl Inquiry<'_> {
    /// Notes on the destination's endpoints what they get while all are healthy, and says so.
    pub(super) fn prefer(&self, cluster: &Cluster, destination: &mut Destination) {
        let addresses: Vec<SocketAddr> = destination.hops.iter().map(|hop| hop.addr).collect();
        let Some(layout) = layout(self.snapshot, &self.source.workload, cluster, &addresses) else { return };
        let shared = layout.groups().iter().filter(|group| group.priority == 0).count() > 1;
        for (index, endpoint) in (0..).zip(&mut destination.view.endpoints) {
            let group = layout.groups().iter().find(|group| group.members.contains(&index));
            endpoint.weight = match group {
                Some(group) if shared => {
                    group.weight * WHOLE / u32::try_from(group.members.len()).unwrap_or(1)
                }
                Some(group) => u32::from(group.priority == 0),
                // Not ready, or given nothing.
                None => 0,
            };
        }
        let groups = layout.groups().iter().map(|group| told(group, shared)).collect::<Vec<_>>();
        let text = match (groups.is_empty(), shared) {
            (true, _) => {
                "has endpoints, but `distribute` gives none of them anything (response flag UH)".into()
            }
            (false, true) => format!("divides by place: {}", groups.join(", ")),
            (false, false) => format!(
                "prefers near ones: {}; the next are taken as far as those before them are ejected",
                groups.join(", then ")
            ),
        };
        let choice = destination.choice.take().map(|choice| format!("{text}; {choice}"));
        destination.choice = Some(choice.unwrap_or_default());
    }
}

fn told(group: &Group, shared: bool) -> String {
    let place = match &group.locality {
        Some(place) if *place != Default::default() => format!(" in {place}"),
        Some(_) => " whose place is not known".into(),
        None => String::new(),
    };
    let share = if shared { format!("{} parts for ", group.weight) } else { String::new() };
    format!("{share}{} endpoint(s){place}", group.members.len())
}

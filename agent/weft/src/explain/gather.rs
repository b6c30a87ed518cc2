//! Puts the decisions about all destinations into one answer.

use super::destination::Destination;
use super::hop::{self, Outcome};
use super::{Explanation, RequestView, reply};

/// Fills everything in that the destinations decide.
pub(super) fn gather(answer: &mut Explanation, destinations: Vec<Destination>) {
    let several = destinations.len() > 1;
    for destination in &destinations {
        if several {
            answer.steps.push(introduction(destination));
        }
        answer.steps.extend(destination.changes.iter().cloned());
        answer.steps.extend(destination.choice.iter().map(|how| format!("{} {how}.", name(destination))));
        hop::describe(&destination.hops, &mut answer.steps);
    }
    let Some(outcome) = verdict(&destinations) else { return };
    answer.verdict = outcome.as_str().into();
    if let Some(decisive) = destinations.iter().find(|destination| destination.outcome == outcome) {
        decide(answer, decisive);
    }
    answer.request = common_request(&destinations);
    answer.response_headers = common(&destinations, |destination| &destination.response_headers);
    answer.hash = match destinations.split_first() {
        Some((first, rest)) if rest.iter().all(|other| other.hash == first.hash) => first.hash.clone(),
        Some(_) | None => None,
    };
    answer.steps.push(sentence(outcome, &destinations));
    let others = destinations.iter().filter(|destination| destination.outcome != outcome);
    answer.steps.extend(others.map(exception));
    answer.destinations = destinations.into_iter().map(|destination| own(answer, destination)).collect();
}

/// Denied only where every destination denies.
fn verdict(destinations: &[Destination]) -> Option<Outcome> {
    let allowed = destinations.iter().find(|destination| destination.outcome == Outcome::Allow);
    let other = || destinations.iter().find(|destination| destination.outcome != Outcome::Deny);
    allowed.or_else(other).or(destinations.first()).map(|destination| destination.outcome)
}

fn decide(answer: &mut Explanation, decisive: &Destination) {
    answer.response.clone_from(&decisive.response);
    let Some(hop) = decisive.decisive() else { return };
    answer.path = Some(hop.path.into());
    answer.peer_authentication.clone_from(&hop.peer_authentication);
    answer.request_authentication.clone_from(&hop.request_authentication);
    answer.authorization = hop.authorization.clone();
}

/// What leaves alike for all destinations.
fn common_request(destinations: &[Destination]) -> Option<RequestView> {
    let mut requests = destinations.iter().filter_map(|destination| destination.request.as_ref());
    let mut shared = requests.next()?.clone();
    for other in requests {
        if other.authority != shared.authority {
            shared.authority = None;
        }
        if other.path != shared.path {
            shared.path = None;
        }
        shared.headers.retain(|line| other.headers.contains(line));
    }
    Some(shared)
}

fn common<T: Clone + PartialEq>(
    destinations: &[Destination],
    of: impl Fn(&Destination) -> &Vec<T>,
) -> Vec<T> {
    let Some((first, rest)) = destinations.split_first() else { return Vec::new() };
    let everywhere = |item: &&T| rest.iter().all(|other| of(other).contains(item));
    of(first).iter().filter(everywhere).cloned().collect()
}

/// One that differs from what is common carries its own.
fn own(answer: &Explanation, destination: Destination) -> super::DestinationView {
    let mut view = destination.view;
    let verdict = destination.outcome.as_str();
    if verdict != answer.verdict {
        view.verdict = Some(verdict.into());
        view.response = destination.response;
    }
    view.request = destination.request.filter(|request| answer.request.as_ref() != Some(request));
    if destination.response_headers != answer.response_headers {
        view.response_headers = Some(destination.response_headers);
    }
    view.hash = destination.hash.filter(|hash| answer.hash.as_ref() != Some(hash));
    view
}

fn name(destination: &Destination) -> String {
    let view = &destination.view;
    match &view.subset {
        Some(subset) => format!("{}:{}, subset {subset}", view.host, view.port),
        None => format!("{}:{}", view.host, view.port),
    }
}

fn introduction(destination: &Destination) -> String {
    let what = if destination.request.is_some() { "requests" } else { "connections" };
    format!("{} % of the {what} go to {}:", destination.view.weight, name(destination))
}

/// What becomes of the part that goes to another destination than the one that decides.
fn exception(destination: &Destination) -> String {
    let what = match &destination.response {
        Some(response) => format!("the mesh answers: {}", reply::told(response)),
        None => format!("the verdict is {}", destination.outcome.as_str()),
    };
    format!("But for the {} % that go to {}, {what}.", destination.view.weight, name(destination))
}

fn sentence(outcome: Outcome, destinations: &[Destination]) -> String {
    let hops: Vec<_> = destinations.iter().flat_map(|destination| &destination.hops).collect();
    let like_this = hops.iter().filter(|hop| hop.outcome == outcome).count();
    let what = match destinations.first().and_then(|destination| destination.request.as_ref()) {
        Some(_) => "request",
        None => "connection",
    };
    let answered = destinations.iter().find(|destination| destination.outcome == outcome);
    let answered = answered.and_then(|destination| destination.response.as_ref());
    match outcome {
        Outcome::Allow if like_this < hops.len() => {
            format!("The {what} is allowed by {like_this} of {} endpoints.", hops.len())
        }
        Outcome::Allow => format!("The {what} is allowed."),
        Outcome::Deny => match answered {
            Some(response) => format!("The request is denied: {}.", reply::told(response)),
            None => "The connection is denied: it is closed without a byte.".into(),
        },
        Outcome::Respond => match answered {
            Some(response) => format!("The mesh answers itself: {}.", reply::told(response)),
            None => "The mesh answers itself.".into(),
        },
        Outcome::Passthrough => format!("The {what} goes to its original address, unrouted."),
        Outcome::Unreachable => "The connection is closed: there is nobody to send it to.".into(),
    }
}

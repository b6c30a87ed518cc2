//! The compiled decision against an interpreter that reads the objects as they were written.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const PATHS: [&str; 5] = ["/", "/a", "/ab", "/a/b", "/B"];
const HOSTS: [&str; 5] = [
    "b.default.svc.cluster.local",
    "c.default.svc.cluster.local",
    "*.default.svc.cluster.local",
    "x.example.com",
    "*.example.com",
];

fn text(values: &'static [&'static str]) -> impl Strategy<Value = TextMatch> {
    let value = prop::sample::select(values);
    (0..4_u8, value).prop_map(|(kind, value)| match kind {
        0 => TextMatch::Exact(value.into()),
        1 => TextMatch::Prefix(value.into()),
        2 => TextMatch::Regex(format!("{value}.?").into()),
        _ => TextMatch::Present,
    })
}

fn entry() -> impl Strategy<Value = HttpMatch> {
    let fields = |name: &'static str| {
        let one = (Just(Arc::from(name)), text(&["1", "12", ""]));
        prop_oneof![2 => Just(vec![]), 1 => one.prop_map(|pair| vec![pair])]
    };
    let uri = prop::option::of(text(&PATHS));
    let port = prop_oneof![4 => Just(None), 1 => Just(Some(80)), 1 => Just(Some(81))];
    let namespace = prop_oneof![4 => Just(None), 1 => Just(Some("default")), 1 => Just(Some("other"))];
    let gateways = prop_oneof![5 => Just(vec![]), 1 => Just(vec!["mesh"]), 1 => Just(vec!["x/gw"])];
    let labelled = prop_oneof![4 => Just(""), 1 => Just("app=client"), 1 => Just("app=no")];
    let parts = (
        uri,
        prop::bool::ANY,
        fields("x-a"),
        fields("x-b"),
        fields("q"),
        port,
        namespace,
        gateways,
        labelled,
    );
    parts.prop_map(
        |(
            uri,
            ignore_uri_case,
            headers,
            without_headers,
            query_params,
            port,
            namespace,
            gateways,
            labelled,
        )| {
            HttpMatch {
                uri,
                ignore_uri_case,
                headers,
                without_headers,
                query_params,
                port,
                source_namespace: namespace.map(Into::into),
                source_labels: labels(labelled),
                gateways: gateways.into_iter().map(Into::into).collect(),
                ..HttpMatch::default()
            }
        },
    )
}

fn object() -> impl Strategy<Value = VirtualService> {
    let hosts = prop::sample::subsequence(HOSTS.to_vec(), 1..=2);
    let rules = prop::collection::vec(prop::collection::vec(entry(), 0..3), 0..4);
    let export = prop_oneof![4 => Just(None), 1 => Just(Some("default")), 1 => Just(Some("other"))];
    (hosts, rules, export, prop::bool::weighted(0.8), 0..3_i64).prop_map(
        |(hosts, rules, export, mesh, created)| {
            let rules = rules.into_iter().map(|matches| answers(200, matches)).collect();
            let mut object = virtual_service("default/x", &hosts, rules);
            object.meta.created = Some(created);
            object.export_to = export.map(|name| ExportTo::Namespace(name.into())).into_iter().collect();
            if !mesh {
                object.gateways = vec!["x/gw".into()];
            }
            object
        },
    )
}

fn objects() -> impl Strategy<Value = Vec<VirtualService>> {
    prop::collection::vec(object(), 0..5).prop_map(|mut objects| {
        for (at, object) in objects.iter_mut().enumerate() {
            object.meta.key = NamespacedName::new("default", format!("vs-{at}"));
            // The status tells which rule it was.
            for (own, rule) in object.http.iter_mut().enumerate() {
                *rule = answers((at * 100 + own + 200) as u16, std::mem::take(&mut rule.matches));
            }
        }
        objects
    })
}

fn asked() -> impl Strategy<Value = Ask> {
    const NAMED: [&str; 5] = ["b", "c.default", "x.example.com", "y.example.com", "nobody.org"];
    let values = prop::collection::vec(prop::sample::select(&["", "1", "12", "13"][..]), 0..3);
    let query = prop::sample::select(&["", "?q=1", "?q", "?a=b&q=12&q=1"][..]);
    let parts =
        (prop::sample::select(&NAMED[..]), prop::sample::select(&PATHS[..]), query, values.clone(), values);
    (parts, prop::bool::ANY).prop_map(|((host, path, query, a, b), other)| {
        let mut ask = ask(host, &format!("{path}{query}"));
        ask = a.into_iter().fold(ask, |ask, value| ask.header("x-a", value));
        ask = b.into_iter().fold(ask, |ask, value| ask.header("x-b", value));
        if other && host != "b" { ask.from("other/client") } else { ask }
    })
}

fn text_matches(text: &TextMatch, value: &str, ignore_case: bool) -> bool {
    let fold = |text: &str| if ignore_case { text.to_lowercase() } else { text.to_owned() };
    match text {
        TextMatch::Exact(wanted) => fold(value) == fold(wanted),
        TextMatch::Prefix(wanted) => fold(value).starts_with(&fold(wanted)),
        TextMatch::Present => true,
        TextMatch::Regex(wanted) => {
            // Only `TEXT.?` is generated.
            let wanted = wanted.strip_suffix(".?").expect("the generated form");
            value.strip_prefix(wanted).is_some_and(|rest| rest.len() < 2)
        }
    }
}

fn serves_client(entry: &HttpMatch, namespace: &str) -> bool {
    if entry.port.is_some_and(|port| port != 80) {
        return false;
    }
    if !entry.gateways.is_empty() {
        return entry.gateways.iter().any(|name| &**name == "mesh");
    }
    entry.source_namespace.as_ref().is_none_or(|wanted| &**wanted == namespace)
        && entry.source_labels.get("app").is_none_or(|app| app == "client")
}

fn takes(entry: &HttpMatch, ask: &Ask) -> bool {
    let (path, query) = ask.target.split_once('?').unwrap_or((&ask.target, ""));
    let values = |name: &str| -> Vec<String> {
        ask.headers.get_all(name).iter().map(|value| value.to_str().expect("text").to_owned()).collect()
    };
    let parameter = |name: &str| {
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    let present =
        |name: &str, text: &TextMatch| values(name).iter().any(|value| text_matches(text, value, false));
    let absent = |name: &str, text: &TextMatch| match values(name).as_slice() {
        [] => *text == TextMatch::Present || !text_matches(text, "", false),
        values => !values.iter().any(|value| text_matches(text, value, false)),
    };
    let ignore_case = |text: &TextMatch| entry.ignore_uri_case && !matches!(text, TextMatch::Regex(_));
    entry.uri.as_ref().is_none_or(|text| text_matches(text, path, ignore_case(text)))
        && entry.headers.iter().all(|(name, text)| present(name, text))
        && entry.without_headers.iter().all(|(name, text)| absent(name, text))
        && entry
            .query_params
            .iter()
            .all(|(name, text)| parameter(name).is_some_and(|value| text_matches(text, &value, false)))
}

/// The answer by the rules as they are told in the documents.
fn interpret(objects: &[VirtualService], ask: &Ask) -> String {
    let namespace = ask.from.split('/').next().expect("a namespace");
    let service = match ask.authority.as_str() {
        "b" => Some(HOSTS[0]),
        "c.default" => Some(HOSTS[1]),
        _ => None,
    };
    let host = service.unwrap_or(&ask.authority);
    let covers = |written: &str| match written.strip_prefix('*') {
        Some(suffix) => {
            host.ends_with(suffix) && (service.is_some() || suffix != ".default.svc.cluster.local")
        }
        None => written == host,
    };
    // A host without a Service: on the ports of the Services named with it, which include 80, or on 80.
    let mut candidates: Vec<_> = objects
        .iter()
        .filter(|object| object.gateways.iter().any(|name| &**name == "mesh"))
        .filter(|object| object.export_to.iter().all(|to| *to == ExportTo::Namespace(namespace.into())))
        .flat_map(|object| object.hosts.iter().filter(|host| covers(host)).map(move |host| (host, object)))
        .collect();
    let audience = |object: &VirtualService| match object.export_to.is_empty() {
        true => 2,
        false => u8::from(*object.meta.key.namespace != *namespace),
    };
    candidates.sort_by_key(|(host, object)| {
        (
            host.starts_with('*'),
            std::cmp::Reverse(host.len()),
            audience(object),
            object.meta.created,
            object.meta.key.name.clone(),
        )
    });
    // A Service has those that name it, or else the first of the most specific wildcard alone.
    if service.is_some() {
        let naming = candidates.iter().filter(|(host, _)| !host.starts_with('*')).count();
        candidates.truncate(naming.max(1));
    }
    for (_, object) in candidates {
        let acting = object.http.iter().any(|rule| {
            rule.matches.is_empty() || rule.matches.iter().any(|entry| serves_client(entry, namespace))
        });
        if !acting {
            continue;
        }
        let hit = object.http.iter().find(|rule| {
            let mut serving = rule.matches.iter().filter(|entry| serves_client(entry, namespace));
            rule.matches.is_empty() || serving.any(|entry| takes(entry, ask))
        });
        return match hit.map(|rule| &rule.action) {
            Some(HttpAction::DirectResponse(response)) => format!("{} direct_response", response.status),
            _ => "404 no_route".into(),
        };
    }
    service.map_or("passthrough".into(), |host| format!("80||{}", short_name(host)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn decides_as_the_interpreter(objects in objects(), asks in prop::collection::vec(asked(), 1..12)) {
        let snapshot = with(objects.iter().cloned().map(Resource::VirtualService));
        for ask in asks {
            prop_assert_eq!(ask.goes(&snapshot), interpret(&objects, &ask), "{:?}", ask);
        }
    }

    #[test]
    fn what_is_remembered_is_what_would_be_decided(
        objects in objects(),
        asks in prop::collection::vec(asked(), 1..12),
    ) {
        let snapshot = with(objects.into_iter().map(Resource::VirtualService));
        let mut memory = RouteMemory::default();
        for ask in asks.iter().chain(&asks) {
            let (plain, remembered) = ask.with(&snapshot, |caller, request| {
                (route(&snapshot, caller, request), route_remembering(&mut memory, &snapshot, caller, request))
            });
            prop_assert_eq!(format!("{plain:?}"), format!("{remembered:?}"), "{:?}", ask);
        }
    }

    /// Whatever the order in which objects come, change and go: the decisions are those of a compiler that sees
    /// only the last state.
    #[test]
    fn the_order_of_changes_does_not_count(
        states in prop::collection::vec(objects(), 1..5),
        asks in prop::collection::vec(asked(), 1..8),
    ) {
        let mut compiler = compiler();
        applied(&mut compiler, world().into_iter().map(upsert));
        let mut known = BTreeMap::new();
        for objects in &states {
            let wanted: BTreeMap<_, _> = objects.iter().map(|object| (object.meta.key.clone(), object.clone())).collect();
            let gone = known.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect::<Vec<NamespacedName>>();
            let deletes = gone.into_iter().map(|name| Change::Delete(ResourceKey { kind: Kind::VirtualService, name }));
            let upserts = wanted.values().rev().cloned().map(|object| upsert(Resource::VirtualService(object)));
            applied(&mut compiler, deletes.chain(upserts));
            known = wanted;
        }
        let grown = compiler.snapshot();
        let fresh = with(states.last().expect("a state").iter().cloned().map(Resource::VirtualService));
        prop_assert_eq!(grown.problems(), fresh.problems());
        for ask in asks {
            prop_assert_eq!(ask.goes(&grown), ask.goes(&fresh), "{:?}", ask);
        }
    }
}

//! What decoder, compiler and analyzers find about objects: the same as `weft analyze` does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use weft_control::decode::{Decoder, Outcome, Trust};
use weft_core::Snapshot;
use weft_core::analyze::{ObjectSet, analyze};
use weft_core::problem::Problem;

use super::report::{Standing, Verdict};
use super::{kinds, pods};

/// The name of an object of one of the kinds that get a status.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) kind: &'static str,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

impl Key {
    /// Whom a finding is about; `None` if that is nobody who gets a status.
    fn of(problem: &Problem) -> Option<Self> {
        let object = problem.object.as_ref()?;
        let kind = kinds::name(&object.kind)?;
        Some(Self { kind, namespace: object.namespace.clone(), name: object.name.clone() })
    }
}

/// An object with the text that was judged, and what was found.
pub(super) type Judged = BTreeMap<Key, (Arc<str>, Verdict)>;

/// What objects are compared with.
#[derive(Debug, Default)]
pub(super) struct Context {
    /// Objects of Kubernetes; `None` where they, or objects of Istio, cannot be read: then nobody can say what
    /// is missing.
    pub(super) surroundings: Option<ObjectSet>,
    /// The configuration that has the pods.
    pub(super) snapshot: Option<Arc<Snapshot>>,
    /// Findings of the compiler.
    pub(super) compiled: Arc<[Problem]>,
}

/// Judges all objects. The context is given back for the next time.
pub(super) fn judge(objects: Vec<(Key, Arc<str>)>, mut context: Context) -> (Judged, Context) {
    let noted = context.surroundings.take();
    let can_compare = noted.is_some();
    let mut decoder = Decoder::noting_beside(Trust::Api, noted.unwrap_or_default());
    let mut found: HashMap<Key, (Arc<str>, Standing, Vec<Problem>)> = HashMap::with_capacity(objects.len());
    for (key, text) in objects {
        let (standing, problems) = decode(&mut decoder, &text);
        found.insert(key, (text, standing, problems));
    }
    let mut add = |problem: &Problem| {
        if let Some((_, _, problems)) = Key::of(problem).and_then(|key| found.get_mut(&key)) {
            problems.push(problem.clone());
        }
    };
    context.compiled.iter().for_each(&mut add);
    let mut noted = decoder.into_facts();
    let snapshot = context.snapshot.take();
    if can_compare {
        if let Some(snapshot) = snapshot {
            pods::add(&mut noted, &snapshot);
        }
        let place = |problem: &Problem| (problem.code, problem.object.clone(), problem.field.clone());
        // The compiler tells some of it already, of the pods that it enrols.
        let known: HashSet<_> = context.compiled.iter().map(place).collect();
        let new = analyze(&noted).into_iter().filter(|problem| !known.contains(&place(problem)));
        new.filter(|problem| !needs_secrets(problem)).for_each(|problem| add(&problem));
        noted.forget_istio_and_pods();
        context.surroundings = Some(noted);
    }
    let judged = found
        .into_iter()
        .map(|(key, (text, standing, problems))| (key, (text, Verdict::new(standing, problems))))
        .collect();
    (judged, context)
}

fn decode(decoder: &mut Decoder, text: &str) -> (Standing, Vec<Problem>) {
    let mut decoded = Vec::new();
    decoder.json(text, None, &mut decoded);
    let mut standing = Standing::InForce;
    let mut problems = Vec::new();
    for one in decoded {
        standing = match one.outcome {
            Outcome::Accepted(_) => Standing::InForce,
            Outcome::Ignored => Standing::NotApplied,
            Outcome::Rejected(_) | Outcome::Refused => Standing::Rejected,
        };
        problems.extend(one.problems);
    }
    (standing, problems)
}

/// The controller may not read Secrets of users, so it cannot say whether one is there.
fn needs_secrets(problem: &Problem) -> bool {
    let of_gateway = problem.object.as_ref().is_some_and(|object| *object.kind == *"Gateway");
    of_gateway && problem.field.ends_with(".tls.credentialName")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &'static str, name: &str) -> Key {
        Key { kind, namespace: "shop".into(), name: name.into() }
    }

    fn object(kind: &'static str, api_version: &str, name: &str, spec: &str) -> (Key, Arc<str>) {
        let text = format!(
            r#"{{"apiVersion":"{api_version}","kind":"{kind}","metadata":{{"name":"{name}","namespace":"shop"}},"spec":{spec}}}"#
        );
        (key(kind, name), text.into())
    }

    fn route(name: &str, host: &str) -> (Key, Arc<str>) {
        let spec =
            format!(r#"{{"hosts":["{host}"],"http":[{{"route":[{{"destination":{{"host":"{host}"}}}}]}}]}}"#);
        object("VirtualService", "networking.istio.io/v1", name, &spec)
    }

    fn surroundings() -> ObjectSet {
        let mut decoder = Decoder::noting(Trust::Api);
        let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"cart","namespace":"shop"},"spec":{"ports":[{"port":80}]}}"#;
        decoder.json(service, None, &mut Vec::new());
        decoder.into_facts()
    }

    fn codes(judged: &Judged, kind: &'static str, name: &str) -> Vec<&'static str> {
        judged[&key(kind, name)].1.problems.iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn objects_are_judged_beside_their_surroundings_again_and_again() {
        let mut context = Context { surroundings: Some(surroundings()), ..Context::default() };
        let broken = object("VirtualService", "networking.istio.io/v1", "broken", r#"{"hosts":["pay"]}"#);
        for round in 0..2 {
            let objects = vec![route("good", "cart"), route("lost", "nobody"), broken.clone()];
            let (judged, after) = judge(objects, context);
            assert_eq!(codes(&judged, "VirtualService", "good"), Vec::<&str>::new(), "round {round}");
            assert_eq!(codes(&judged, "VirtualService", "lost"), ["IST0101"], "round {round}");
            assert_eq!(judged[&key("VirtualService", "lost")].1.standing, Standing::InForce);
            assert!(codes(&judged, "VirtualService", "broken").contains(&"IST0106"), "round {round}");
            assert_eq!(judged[&key("VirtualService", "broken")].1.standing, Standing::Rejected);
            assert_eq!(after.surroundings, Some(surroundings()));
            context = after;
        }
    }

    #[test]
    fn where_surroundings_cannot_be_read_nothing_is_said_to_be_missing() {
        let (judged, after) = judge(vec![route("lost", "nobody")], Context::default());
        assert_eq!(codes(&judged, "VirtualService", "lost"), Vec::<&str>::new());
        assert_eq!(after.surroundings, None);
    }

    #[test]
    fn kinds_that_are_not_applied_say_so() {
        let filter = object("EnvoyFilter", "networking.istio.io/v1alpha3", "lua", "{}");
        let plugin = object("WasmPlugin", "extensions.istio.io/v1alpha1", "wasm", r#"{"url":"oci://x/y:1"}"#);
        let (judged, _) = judge(vec![filter, plugin], Context::default());
        for (kind, name) in [("EnvoyFilter", "lua"), ("WasmPlugin", "wasm")] {
            let (_, verdict) = &judged[&key(kind, name)];
            assert_eq!(verdict.standing, Standing::NotApplied, "{kind}");
            assert_eq!(verdict.reason(), "NotApplied");
            assert!(verdict.message().contains("not applied"), "{}", verdict.message());
        }
    }

    #[test]
    fn findings_of_the_compiler_count_once() {
        let (judged, _) = judge(
            vec![route("lost", "nobody")],
            Context { surroundings: Some(surroundings()), ..Context::default() },
        );
        let told = judged[&key("VirtualService", "lost")].1.problems[0].clone();
        let context = Context {
            surroundings: Some(surroundings()),
            compiled: [told.clone()].into(),
            ..Context::default()
        };
        let (again, _) = judge(vec![route("lost", "nobody")], context);
        assert_eq!(again[&key("VirtualService", "lost")].1.problems, [told]);
    }
}

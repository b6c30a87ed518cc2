//! What the analyzers find: a golden file for each family, and hostile input.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use weft_control::decode::documents::{self, Format};
use weft_control::decode::{Decoder, Trust};
use weft_core::analyze::ObjectSet;
use weft_core::compile::CompileOptions;
use weft_core::problem::Origin;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/analyze").join(name)
}

/// All findings of `weft analyze` with a code of Istio's; what this version does not apply stands elsewhere.
fn golden(name: &str) {
    let options = CompileOptions { node: None, adopt_istio_labels: true, endpoints_from_pods: true };
    let loaded = weft_control::analyze(&[data(name)], options).unwrap();
    let mut text = String::new();
    for problem in loaded.problems.iter().filter(|problem| problem.code.starts_with("IST")) {
        writeln!(text, "{problem}").unwrap();
    }
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(format!("analyze-{name}"), text);
    });
}

macro_rules! golden {
    ($($test:ident: $file:literal,)*) => {
        $(#[test]
        fn $test() {
            golden($file);
        })*

        const FILES: &[&str] = &[$($file),*];
    };
}

golden! {
    annotations: "annotations.yaml",
    authorization_policies: "authorization.yaml",
    deployments: "deployment.yaml",
    destination_rules: "destination-rule.yaml",
    gateways: "gateway.yaml",
    membership: "membership.yaml",
    services: "service.yaml",
    service_entries: "service-entry.yaml",
    sidecars: "sidecar.yaml",
    telemetries: "telemetry.yaml",
    virtual_services: "virtual-service.yaml",
}

/// What the analyzers know of a text.
fn facts(text: &[u8], format: Format) -> ObjectSet {
    let mut decoder = Decoder::noting(Trust::Files);
    let mut decoded = Vec::new();
    documents::read(&mut &*text, format, &mut |document| {
        let origin = Origin { file: "test.yaml".into(), document: document.number, line: document.line };
        decoder.document(document, &origin, &mut decoded);
    })
    .unwrap();
    decoder.into_facts()
}

#[test]
fn without_anybody_asking_nothing_is_noted() {
    let text = std::fs::read(data("gateway.yaml")).unwrap();
    let mut decoder = Decoder::new(Trust::Files);
    let mut decoded = Vec::new();
    documents::read(&mut &*text, Format::Yaml, &mut |document| {
        let origin = Origin { file: "test.yaml".into(), document: document.number, line: document.line };
        decoder.document(document, &origin, &mut decoded);
    })
    .unwrap();
    assert!(!decoded.is_empty());
    assert_eq!(decoder.into_facts(), ObjectSet::default());
}

#[test]
fn of_an_object_that_stands_twice_the_first_counts() {
    let text = std::fs::read(data("gateway.yaml")).unwrap();
    let twice = [text.as_slice(), b"\n---\n", text.as_slice()].concat();
    assert_eq!(weft_core::analyze::analyze(&facts(&twice, Format::Yaml)).len(), {
        weft_core::analyze::analyze(&facts(&text, Format::Yaml)).len()
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Fields of the wrong type, missing fields, cut texts: findings or none, never a panic.
    #[test]
    fn no_mutation_makes_it_panic(
        file in 0..FILES.len(),
        edits in common::edits(),
    ) {
        let mut text = std::fs::read(data(FILES[file])).unwrap();
        common::damage(&mut text, edits);
        for problem in weft_core::analyze::analyze(&facts(&text, Format::Yaml)) {
            prop_assert!(!problem.message.is_empty() && !problem.fix.is_empty());
        }
    }

    /// Every field of an object replaced by something else.
    #[test]
    fn no_type_makes_it_panic(file in 0..FILES.len(), which in any::<prop::sample::Index>(), with in 0..6_usize) {
        let text = String::from_utf8(std::fs::read(data(FILES[file])).unwrap()).unwrap();
        let mut documents: Vec<serde_json::Value> =
            text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
        let mut paths = Vec::new();
        for (at, document) in documents.iter().enumerate() {
            pointers(document, String::new(), &mut |path| paths.push((at, path)));
        }
        let (at, path) = paths[which.index(paths.len())].clone();
        let values = [
            serde_json::json!(null), serde_json::json!(-1), serde_json::json!("x/y*"), serde_json::json!([{}]),
            serde_json::json!({"a": [1]}), serde_json::json!(true),
        ];
        *documents[at].pointer_mut(&path).unwrap() = values[with].clone();
        let lines: Vec<String> = documents.iter().map(ToString::to_string).collect();
        let set = facts(lines.join("\n").as_bytes(), Format::JsonLines);
        drop(weft_core::analyze::analyze(&set));
    }
}

/// The JSON pointers of everything within a value.
fn pointers(value: &serde_json::Value, path: String, found: &mut dyn FnMut(String)) {
    if let Some(fields) = value.as_object() {
        for (name, value) in fields {
            let name = name.replace('~', "~0").replace('/', "~1");
            pointers(value, format!("{path}/{name}"), found);
        }
    }
    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
        pointers(item, format!("{path}/{at}"), found);
    }
    found(path);
}

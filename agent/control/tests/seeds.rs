//! The documents of the tutorials and manuals that users work from: as printed, and as they were meant
//! (`mesh-semantics` table 1.2). What Istio accepts is accepted, what it refuses is refused with a way out.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fmt::Write;
use std::path::Path;

use weft_control::decode::documents::Format;
use weft_control::decode::{Decoded, Outcome};
use weft_core::Severity;

/// What becomes of the documents of a file, in their order: nothing, or a part of the text of an error.
type Expected = &'static [Option<&'static str>];

const OK: Option<&str> = None;
/// A separator between documents that is indented does not separate.
const NO_YAML: Expected = &[Some("not valid YAML")];
const NO_TARGET: Expected = &[Some("The rule has no target")];

const PRINTED: &[(&str, Expected)] = &[
    // `...` ends a document: neither half is an object.
    ("vs-reviews-excerpt", &[Some("missing field `metadata`"), Some("not a Kubernetes object")]),
    ("dr-bookinfo-ratings-least-request", &[OK]),
    ("vs-my-gateway", &[Some("has no rules")]),
    ("vs-bookinfo-dump", &[OK]),
    ("dr-reviews-random", &[OK]),
    ("vs-reviews-v1", &[OK]),
    ("vs-reviews-80-20", &[OK]),
    ("vs-reviews-v2-indented", &[OK]),
    ("vs-reviews-jason-v2", &[OK]),
    ("dr-reviews-commented", &[OK]),
    ("vs-reviews-jason-v3", &[OK]),
    ("dr-bookinfo-ratings-random", &[OK]),
    ("vs-details-delay", NO_TARGET),
    ("vs-details-abort", NO_TARGET),
    ("vs-ratings-timeout", &[OK]),
    ("vs-reviews-three-rules", &[OK]),
    ("vs-ratings-delay", &[OK]),
    ("bookinfo-gateway", &[OK, OK]),
    ("vs-product-weights", NO_YAML),
    ("dr-card", &[OK]),
    ("vs-stock", &[OK]),
    ("vs-product-timeouts", NO_YAML),
    ("vs-product-retries", &[OK]),
    ("vs-product-mirror", NO_YAML),
    ("vs-product-gateways", &[OK]),
    ("vs-product-egress", &[Some("unknown field `host`")]),
    ("dr-user", &[OK]),
    ("vs-usrv", &[Some("unknown field `rewrite`")]),
    ("vs-usrv-reordered", &[Some("unknown field `rewrite`")]),
    ("vs-ratings-retries", NO_TARGET),
];

const CORRECTED: &[(&str, Expected)] = &[
    ("product-weights", &[OK, OK]),
    ("product-timeouts", &[OK, OK]),
    ("product-mirror", &[OK, OK]),
    ("vs-product-egress", &[OK]),
    ("vs-usrv", &[OK]),
    ("vs-usrv-reordered", &[OK]),
    ("vs-ratings-retries", &[OK]),
];

fn read(folder: &str, name: &str) -> Vec<Decoded> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds").join(folder).join(name);
    common::decode(&std::fs::read(path.with_extension("yaml")).unwrap(), Format::Yaml)
}

fn check(folder: &str, files: &[(&str, Expected)]) {
    for (name, expected) in files {
        let decoded = read(folder, name);
        assert_eq!(decoded.len(), expected.len(), "{folder}/{name}: {decoded:#?}");
        for (Decoded { outcome, problems }, expected) in decoded.iter().zip(*expected) {
            let errors: Vec<String> = problems
                .iter()
                .filter(|problem| problem.severity == Severity::Error)
                .map(ToString::to_string)
                .collect();
            match expected {
                None => assert!(errors.is_empty(), "{folder}/{name}: {errors:#?}"),
                Some(part) => {
                    assert!(matches!(outcome, Outcome::Rejected(_)), "{folder}/{name}: {outcome:?}");
                    assert!(errors.iter().any(|error| error.contains(part)), "{folder}/{name}: {errors:#?}");
                    assert!(problems.iter().all(|problem| !problem.fix.is_empty()), "{folder}/{name}");
                }
            }
        }
    }
}

#[test]
fn as_printed() {
    check("printed", PRINTED);
}

#[test]
fn as_meant() {
    check("corrected", CORRECTED);
}

/// Every document is checked: a file that is added stands in the table.
#[test]
fn every_file_is_in_the_table() {
    for (folder, files) in [("printed", PRINTED), ("corrected", CORRECTED)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds").join(folder);
        let mut found: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        let mut listed: Vec<_> = files.iter().map(|(name, _)| (*name).to_owned()).collect();
        found.sort();
        listed.sort();
        assert_eq!(found, listed, "{folder}");
    }
}

/// What the documents say arrives: the golden text of all that are accepted.
#[test]
fn what_they_mean() {
    let mut text = String::new();
    for (folder, files) in [("printed", PRINTED), ("corrected", CORRECTED)] {
        for (name, _) in files {
            for decoded in read(folder, name) {
                if let Outcome::Accepted(resource) = decoded.outcome {
                    writeln!(text, "# {folder}/{name}\n{}\n", common::compact(&resource)).unwrap();
                }
            }
        }
    }
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("seeds", text);
    });
}

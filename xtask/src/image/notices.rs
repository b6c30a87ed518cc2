//! What the image is made of: licence notices for people, SPDX 2.3 (<https://spdx.github.io/spdx-spec/v2.3/>)
//! for programs. Both come from `cargo metadata`, of the workspace and of the kernel programs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::libraries;
use crate::build::{cargo_command, root};

/// Where our binaries begin; what is compiled into them is found from there.
const OURS: &[&str] = &["weft", "weft-cni"];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_members: BTreeSet<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// Nothing for what is linked; else `dev` or `build`.
    kind: Option<String>,
}

/// Writes `THIRD-PARTY.txt` and `weft.spdx.json`.
pub(super) fn write(folder: &Path, libraries: &[libraries::Package]) -> Result<()> {
    let packages = all_packages()?;
    fs::write(folder.join("THIRD-PARTY.txt"), third_party(&packages, libraries)?)?;
    let spdx = spdx(&packages, libraries);
    fs::write(folder.join("weft.spdx.json"), serde_json::to_vec_pretty(&spdx)?)?;
    Ok(())
}

/// What the binaries and the kernel programs are compiled from, by name and version.
fn all_packages() -> Result<BTreeMap<(String, String), Package>> {
    let mut all = BTreeMap::new();
    let workspace = root()?.join("Cargo.toml");
    let programs = root()?.join("ebpf/programs/Cargo.toml");
    for (manifest, roots) in [(workspace, Some(OURS)), (programs, None)] {
        let metadata = metadata(&manifest)?;
        for package in linked(metadata, roots) {
            all.insert((package.name.clone(), package.version.clone()), package);
        }
    }
    Ok(all)
}

fn metadata(manifest: &Path) -> Result<Metadata> {
    let target = super::host_target()?;
    let args =
        ["metadata", "--format-version=1", "--locked", "--filter-platform", &target, "--manifest-path"];
    let out = cargo_command(&args)?.arg(manifest).output().context("cargo metadata cannot be run")?;
    ensure!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr).trim());
    serde_json::from_slice(&out.stdout).context("cargo metadata cannot be read")
}

/// Packages that are linked into these members, or into all members.
fn linked(metadata: Metadata, roots: Option<&[&str]>) -> Vec<Package> {
    let nodes: HashMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let is_root = |package: &&Package| {
        metadata.workspace_members.contains(&package.id)
            && roots.is_none_or(|roots| roots.contains(&package.name.as_str()))
    };
    let mut open: Vec<&str> = metadata.packages.iter().filter(is_root).map(|package| &*package.id).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        let normal =
            dependencies.filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        open.extend(normal.map(|dependency| dependency.pkg.as_str()));
    }
    metadata.packages.iter().filter(|package| seen.contains(package.id.as_str())).cloned().collect()
}

type Packages = BTreeMap<(String, String), Package>;

/// Name, version and licence of each package, then each licence's text once.
fn third_party(packages: &Packages, libraries: &[libraries::Package]) -> Result<String> {
    let mut text =
        "Weft is licensed under the Apache License, version 2.0 (see LICENSE). It contains:\n\n".to_owned();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages.values().filter(|package| package.source.is_some()) {
        let title = format!("{} {}", package.name, package.version);
        let license = package.license.as_deref().unwrap_or("see its text");
        writeln!(text, "{title}: {license} {}", package.repository.as_deref().unwrap_or_default())?;
        for found in license_texts(package)? {
            texts.entry(found).or_default().push(title.clone());
        }
    }
    for library in libraries {
        let title = format!("{} {} (Debian, shared library)", library.name, library.version);
        writeln!(text, "{title}: see its text")?;
        if let Ok(found) = fs::read_to_string(&library.copyright) {
            texts.entry(found).or_default().push(title);
        }
    }
    for (license, titles) in texts {
        let line = "-".repeat(100);
        write!(text, "\n{line}\n{}\n{line}\n\n{}\n", titles.join(", "), license.trim_end())?;
    }
    Ok(text)
}

/// Files of a package that are its licence or its notices.
fn license_texts(package: &Package) -> Result<Vec<String>> {
    let folder = package.manifest_path.parent().context("a manifest without a folder")?;
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_uppercase();
        let is_license = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE", "COPYRIGHT"];
        if path.is_file() && is_license.iter().any(|prefix| name.starts_with(prefix)) {
            texts.push(String::from_utf8_lossy(&fs::read(&path)?).into_owned());
        }
    }
    texts.sort();
    Ok(texts)
}

fn spdx(packages: &Packages, libraries: &[libraries::Package]) -> Value {
    let crates = packages.values().map(crate_entry);
    let debian = libraries.iter().map(library_entry);
    let entries: Vec<Value> = crates.chain(debian).collect();
    let contained = entries.iter().map(|entry| {
        json!({
            "spdxElementId": "SPDXRef-DOCUMENT",
            "relationshipType": "DESCRIBES",
            "relatedSpdxElement": entry.get("SPDXID"),
        })
    });
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "weft",
        "documentNamespace": format!("https://weft.dev/spdx/weft-{}", env!("CARGO_PKG_VERSION")),
        // The same parts give the same document.
        "creationInfo": {"created": "1970-01-01T00:00:00Z", "creators": ["Tool: cargo-xtask-image"]},
        "relationships": contained.collect::<Vec<_>>(),
        "packages": entries,
    })
}

fn crate_entry(package: &Package) -> Value {
    let Package { name, version, .. } = package;
    let location = match &package.source {
        Some(_) => format!("https://crates.io/crates/{name}/{version}"),
        None => "NOASSERTION".to_owned(),
    };
    let mut entry = entry(name, version, &location, package.license.as_deref());
    if package.source.is_some()
        && let Some(entry) = entry.as_object_mut()
    {
        entry.insert("externalRefs".into(), json!([purl(&format!("pkg:cargo/{name}@{version}"))]));
    }
    entry
}

fn library_entry(library: &libraries::Package) -> Value {
    let libraries::Package { name, version, .. } = library;
    let mut entry = entry(name, version, "NOASSERTION", None);
    if let Some(entry) = entry.as_object_mut() {
        entry.insert("externalRefs".into(), json!([purl(&format!("pkg:deb/debian/{name}@{version}"))]));
    }
    entry
}

fn entry(name: &str, version: &str, location: &str, license: Option<&str>) -> Value {
    // Older crates write `MIT/Apache-2.0`, which SPDX does not know.
    let license = license.map_or_else(|| "NOASSERTION".to_owned(), |license| license.replace('/', " OR "));
    json!({
        "SPDXID": reference(name, version),
        "name": name,
        "versionInfo": version,
        "downloadLocation": location,
        "licenseDeclared": license,
        "licenseConcluded": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "filesAnalyzed": false,
    })
}

/// Letters, digits, points and hyphens are all that an identifier may have.
fn reference(name: &str, version: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    format!("SPDXRef-{name}-{version}").chars().map(legal).collect()
}

fn purl(locator: &str) -> Value {
    json!({"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_programs_and_agent_are_in_the_list_and_test_tools_are_not() {
        let packages = all_packages().unwrap();
        let has = |name: &str| packages.keys().any(|(found, _)| found == name);
        assert!(has("rustls") && has("aya") && has("aya-ebpf") && has("weft") && has("weft-cni"));
        assert!(!has("insta") && !has("proptest") && !has("xtask"));
        let document = spdx(&packages, &[]);
        let entries = document["packages"].as_array().unwrap();
        let references: BTreeSet<_> = entries.iter().map(|entry| entry["SPDXID"].as_str().unwrap()).collect();
        assert_eq!(references.len(), entries.len(), "identifiers are unique");
        assert!(
            entries.iter().all(|entry| entry["licenseDeclared"] != "NOASSERTION"),
            "every crate has a licence"
        );
    }
}

//! Which of the kinds whose definitions may be missing the cluster has, and in which version.

use std::collections::BTreeMap;

use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::api::{self, Failure};
use super::kinds::{Target, Wanted};

#[derive(Debug, Deserialize)]
struct GroupsWire {
    groups: Vec<GroupWire>,
}

#[derive(Debug, Deserialize)]
struct GroupWire {
    name: String,
    versions: Vec<VersionWire>,
}

#[derive(Debug, Deserialize)]
struct VersionWire {
    version: String,
}

#[derive(Debug, Deserialize)]
struct ResourcesWire {
    resources: Vec<ResourceWire>,
}

#[derive(Debug, Deserialize)]
struct ResourceWire {
    name: String,
    kind: String,
}

/// Asks which of `wanted` exist: one request, and one more for each version of each group that matters.
pub(super) async fn discover(
    client: &Client,
    wanted: impl Iterator<Item = Wanted> + Clone,
) -> Result<Vec<Target>, Failure> {
    let groups: GroupsWire = read(client, "/apis").await?;
    let groups: BTreeMap<_, _> =
        groups.groups.into_iter().map(|group| (group.name, group.versions)).collect();
    let mut known: BTreeMap<(&str, &str), Vec<ResourceWire>> = BTreeMap::new();
    let mut found = Vec::new();
    for wanted in wanted {
        let Some(served) = groups.get(wanted.group) else { continue };
        for version in wanted.versions.iter().copied() {
            if !served.iter().any(|served| served.version == version) {
                continue;
            }
            let resources = match known.entry((wanted.group, version)) {
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::btree_map::Entry::Vacant(unknown) => {
                    unknown.insert(resources(client, wanted.group, version).await?)
                }
            };
            let is_it =
                |resource: &ResourceWire| resource.name == wanted.plural && resource.kind == wanted.kind;
            if resources.iter().any(is_it) {
                found.push(Target { wanted, version });
                break;
            }
        }
    }
    Ok(found)
}

async fn resources(client: &Client, group: &str, version: &str) -> Result<Vec<ResourceWire>, Failure> {
    match read::<ResourcesWire>(client, &format!("/apis/{group}/{version}")).await {
        Ok(answer) => Ok(answer.resources),
        // It has gone since we asked for the groups.
        Err(Failure::NotFound) => Ok(Vec::new()),
        Err(failure) => Err(failure),
    }
}

async fn read<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, Failure> {
    let body = api::read(client, path, false).await?;
    serde_json::from_slice(&body).map_err(|error| Failure::Garbage(error.to_string()))
}

//! Applies one object.

use anyhow::anyhow;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, Error};

use super::super::cluster::is_forbidden;
use super::MANAGER;
use super::objects::Object;
use crate::output::chain;

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applied {
    Created,
    Changed,
    Unchanged,
    /// It existed, and is somebody else's.
    Kept,
}

/// Makes the cluster's object what the manifest says, whoever set the fields before.
pub(super) async fn apply(client: &Client, object: &Object, dry_run: bool) -> anyhow::Result<Applied> {
    let api = object.api(client);
    let before = api.get_opt(object.name()).await.map_err(|error| failed("read", object, &error))?;
    let mut params = PatchParams::apply(MANAGER).force().validation_strict();
    params.dry_run = dry_run;
    match api.patch(object.name(), &params, &Patch::Apply(&object.value)).await {
        Ok(_) if before.is_none() => Ok(Applied::Created),
        Ok(after) => {
            let is_same = before.is_some_and(|before| is_same(&before, &after));
            Ok(if is_same { Applied::Unchanged } else { Applied::Changed })
        }
        // A namespace that would be created is not there yet.
        Err(Error::Api(status)) if status.code == 404 && dry_run && before.is_none() => Ok(Applied::Created),
        Err(error) => Err(failed("applied", object, &error)),
    }
}

/// The resource version would not do: a trial leaves it as it is.
fn is_same(before: &DynamicObject, after: &DynamicObject) -> bool {
    let written =
        |object: &DynamicObject| (object.metadata.labels.clone(), object.metadata.annotations.clone());
    before.data == after.data && written(before) == written(after)
}

/// Creates an object unless there is one of its name.
pub(super) async fn create(client: &Client, object: &Object, dry_run: bool) -> anyhow::Result<Applied> {
    let api = object.api(client);
    if api.get_opt(object.name()).await.map_err(|error| failed("read", object, &error))?.is_some() {
        return Ok(Applied::Kept);
    }
    let wanted = serde_json::from_value(object.value.clone())?;
    let params = PostParams { dry_run, field_manager: Some(MANAGER.to_owned()) };
    match api.create(&params, &wanted).await {
        Ok(_) => Ok(Applied::Created),
        Err(Error::Api(status)) if status.is_already_exists() => Ok(Applied::Kept),
        Err(Error::Api(status)) if status.code == 404 && dry_run => Ok(Applied::Created),
        Err(error) => Err(failed("created", object, &error)),
    }
}

/// `done` completes "cannot be …".
pub(super) fn failed(done: &str, object: &Object, error: &Error) -> anyhow::Error {
    match error {
        error if is_forbidden(error) => anyhow!(
            "{object} cannot be {done}: this needs the rights of a cluster administrator ({})",
            chain(error)
        ),
        Error::Api(status) => anyhow!("{object} cannot be {done}: {}", status.message),
        error => anyhow!("{object} cannot be {done}: {}", chain(error)),
    }
}

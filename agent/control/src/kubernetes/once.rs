//! Reads a cluster once, for tools.

use std::collections::HashSet;
use std::path::PathBuf;

use kube::Client;
use weft_core::Problem;
use weft_core::compile::{CompileOptions, Compiler};
use weft_core::resource::Change;

use super::api::Failure;
use super::client::{ClientError, ClientOptions, client};
use super::discovery::discover;
use super::findings;
use super::kinds::{BUILT_IN, Target, custom_kinds};
use super::overlay::Overlay;
use super::watch::pages;
use super::wire::Page;
use crate::Loaded;
use crate::decode::{Decoded, Decoder, ObjectCounts, Outcome, Trust};
use crate::directory::{StartError, each_document};

/// The cluster could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no way to the API server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The files that are put on top cannot be read.
    #[error(transparent)]
    Files(#[from] StartError),
    /// The API server does not answer as it should.
    #[error("{what} cannot be read from the API server: {reason}")]
    Unreadable {
        /// What was asked for.
        what: String,
        /// Why not.
        reason: String,
    },
}

/// Reads all objects of a cluster once. With `analyze`, what the analyzers find is added.
///
/// Kinds that may not be read are findings.
///
/// # Errors
///
/// When the API server cannot be reached, or a list does not come to its end.
pub async fn load(
    options: &ClientOptions,
    compile: CompileOptions,
    analyze: bool,
) -> Result<Loaded, LoadError> {
    load_over(options, compile, analyze, &[]).await
}

/// Reads as [`load`] does, with the objects of files and directories in place of the cluster's own: as if the files
/// had been applied. The path `-` is standard input.
///
/// # Errors
///
/// As for [`load`], and when a path cannot be read.
pub async fn load_over(
    options: &ClientOptions,
    compile: CompileOptions,
    analyze: bool,
    files: &[PathBuf],
) -> Result<Loaded, LoadError> {
    let client = client(options).await?;
    let unreadable = |what: &str, failure: &Failure| LoadError::Unreadable {
        what: what.to_owned(),
        reason: failure.to_string(),
    };
    let custom = discover(&client, custom_kinds(true)).await;
    let custom = custom.map_err(|failure| unreadable("the list of kinds", &failure))?;
    let decoder = if analyze { Decoder::noting(Trust::Api) } else { Decoder::new(Trust::Api) };
    let mut reading = Reading {
        decoder,
        compiler: Compiler::new(compile),
        problems: Vec::new(),
        objects: ObjectCounts::default(),
        overlay: Overlay::default(),
    };
    reading.files(files)?;
    let mut denied = Vec::new();
    for target in BUILT_IN.iter().copied().map(Target::of).chain(custom) {
        match reading.read(&client, &target).await {
            Ok(()) => {}
            Err(failure @ Failure::Denied(_)) => denied.push((target, failure.to_string())),
            Err(failure) => return Err(unreadable(&target.label(), &failure)),
        }
    }
    let denied = denied.iter().map(|(target, failure)| (*target, failure.as_str(), true));
    let problems = findings::of_source(denied, None, false);
    Ok(reading.finish(problems))
}

struct Reading {
    decoder: Decoder,
    compiler: Compiler,
    problems: Vec<Problem>,
    objects: ObjectCounts,
    overlay: Overlay,
}

impl Reading {
    /// Objects of files come first; the cluster's own of the same name are left out.
    fn files(&mut self, files: &[PathBuf]) -> Result<(), LoadError> {
        let mut decoded = Vec::new();
        each_document(files, &mut |document, origin| {
            self.overlay.note(document);
            self.decoder.document(document, origin, &mut decoded);
        })?;
        self.take(&mut decoded);
        Ok(())
    }

    fn take(&mut self, decoded: &mut Vec<Decoded>) {
        for decoded in decoded.drain(..) {
            self.objects.count(&decoded.outcome);
            self.problems.extend(decoded.problems);
            if let Outcome::Accepted(resource) = decoded.outcome {
                self.compiler.apply([Change::Upsert(resource)]);
            }
        }
    }

    async fn read(&mut self, client: &Client, target: &Target) -> Result<(), Failure> {
        let api_version = target.api_version();
        let mut decoded = Vec::new();
        let mut take = |page: &Page<'_>| {
            for object in &page.objects {
                let header = (api_version.as_str(), target.wanted.kind);
                let head = object.head();
                if !self.overlay.hides(header, head.namespace, head.name) {
                    self.decoder.known(object.text, header, &mut decoded);
                }
            }
            self.take(&mut decoded);
        };
        pages(client, target, &mut take).await.map(drop)
    }

    fn finish(self, mut problems: Vec<Problem>) -> Loaded {
        let Self { decoder, mut compiler, problems: of_objects, objects, overlay: _ } = self;
        let snapshot = compiler.snapshot();
        problems.extend(of_objects);
        problems.extend(snapshot.problems().iter().cloned());
        let found = weft_core::analyze::analyze(&decoder.into_facts());
        let place = |problem: &Problem| (problem.code, problem.object.clone(), problem.field.clone());
        // The compiler tells some of it already.
        let known: HashSet<_> = problems.iter().map(place).collect();
        problems.extend(found.into_iter().filter(|problem| !known.contains(&place(problem))));
        Loaded { snapshot, problems, objects }
    }
}

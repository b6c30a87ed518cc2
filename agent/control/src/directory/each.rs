//! All documents of files, once and without keeping anything: for tools that put files on top of something else.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_core::problem::Origin;

use super::tree::Tree;
use super::{StartError, check_readable};
use crate::decode::documents::{self, Document, Format};

/// Calls `visit` for each document of files and directories, and of standard input where the path is `-`.
///
/// # Errors
///
/// When a path cannot be read.
pub(crate) fn each_document(
    paths: &[PathBuf],
    visit: &mut dyn FnMut(&Document<'_>, &Origin),
) -> Result<(), StartError> {
    let is_stdin = |path: &&PathBuf| path.as_path() == Path::new("-");
    let on_disk: Vec<PathBuf> = paths.iter().filter(|path| !is_stdin(path)).cloned().collect();
    check_readable(&on_disk)?;
    if paths.iter().any(|path| is_stdin(&path)) {
        let mut text = Vec::new();
        let unreadable = |source| StartError::Unreadable { path: "-".into(), source };
        io::stdin().lock().read_to_end(&mut text).map_err(unreadable)?;
        let read = documents_of("stdin", &mut &*text, Format::sniff(&text), visit);
        read.map_err(unreadable)?;
    }
    for (path, _) in Tree::new(on_disk).walk(&mut |_| {}).files.values() {
        let read = File::open(path).and_then(|file| {
            let mut reader = BufReader::new(file);
            let format = match Format::of(path) {
                Some(format) => format,
                None => Format::sniff(reader.fill_buf()?),
            };
            documents_of(&path.display().to_string(), &mut reader, format, visit)
        });
        read.map_err(|source| StartError::Unreadable { path: path.clone(), source })?;
    }
    Ok(())
}

fn documents_of(
    name: &str,
    reader: &mut dyn BufRead,
    format: Format,
    visit: &mut dyn FnMut(&Document<'_>, &Origin),
) -> io::Result<()> {
    let file: Arc<str> = name.into();
    documents::read(reader, format, &mut |document| {
        let origin = Origin { file: Arc::clone(&file), document: document.number, line: document.line };
        visit(document, &origin);
    })
}

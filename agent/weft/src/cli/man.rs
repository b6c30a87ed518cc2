//! `weft man`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};

use super::Ended;
use crate::output;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Directory for one page of each command; without it the main page is printed.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Writes or prints manual pages, made from the same definitions as `--help`.
pub(super) fn run(options: &Options, command: Command) -> anyhow::Result<Ended> {
    match &options.directory {
        Some(directory) => {
            std::fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(command, directory))
                .with_context(|| {
                    format!(
                        "the pages cannot be written to {}; name a directory that you may write to",
                        directory.display()
                    )
                })?;
            eprintln!("Read them with: man -l {}", directory.join("weft.1").display());
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            output::write(&page)?;
        }
    }
    Ok(Ended::Fine)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { directory: Some(dir.path().join("man1")) };
        assert_eq!(run(&options, super::super::Cli::command()).unwrap(), Ended::Fine);
        for command in super::super::Cli::command().get_subcommands() {
            let page = dir.path().join("man1").join(format!("weft-{}.1", command.get_name()));
            let text = std::fs::read_to_string(&page).unwrap_or_else(|_| panic!("no {}", page.display()));
            assert!(text.contains(".SH SYNOPSIS"), "{}", page.display());
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let error =
            run(&Options { directory: Some(file.path().join("x")) }, Command::new("weft")).unwrap_err();
        assert!(error.to_string().contains("name a directory"), "{error}");
    }
}

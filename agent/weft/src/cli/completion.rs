//! `weft completion SHELL`, and the candidates that kubectl asks its plugins for.

use std::fmt::Write;

use clap::{Arg, Args, Command};
use clap_complete::Shell;

use super::Ended;
use crate::output;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The shell whose completion script is printed.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script of one shell.
pub(super) fn run(options: &Options, mut command: Command) -> anyhow::Result<Ended> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command, "weft", &mut script);
    output::write(&script)?;
    Ok(Ended::Fine)
}

/// What kubectl reads from `kubectl_complete-weft`: a candidate with its description on each line, then what the
/// shell is to do (cobra's `ShellCompDirective`: 4 offers no files, 0 offers files).
pub(super) fn for_kubectl(command: &Command, words: &[String]) -> String {
    let (candidates, takes_files) = candidates(command, words);
    let mut out = String::new();
    for (word, about) in &candidates {
        // Writing to a String cannot fail.
        let _ = if about.is_empty() { writeln!(out, "{word}") } else { writeln!(out, "{word}\t{about}") };
    }
    let _ = writeln!(out, ":{}", if takes_files { 0 } else { 4 });
    out
}

type Candidate = (String, String);

/// How the last of `words` may go on, and whether it may be a file.
fn candidates(root: &Command, words: &[String]) -> (Vec<Candidate>, bool) {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut command = root;
    let mut pending: Option<&Arg> = None;
    for word in before {
        if pending.take().is_some() {
            continue;
        }
        match option(command, word) {
            Some(found) => pending = found.get_action().takes_values().then_some(found),
            None => command = command.find_subcommand(word).unwrap_or(command),
        }
    }
    let mut found = match pending {
        Some(option) => values(option, ""),
        None => match last.split_once('=') {
            Some((name, _)) => option_named(command, name)
                .map(|option| values(option, &format!("{name}=")))
                .unwrap_or_default(),
            None if last.starts_with('-') => options(command),
            None => subcommands(command).chain(positional(command)).collect(),
        },
    };
    let takes_files = found.is_empty() && (pending.is_some() || last.contains('='));
    found.retain(|(word, _)| word.starts_with(last));
    found.sort();
    (found, takes_files)
}

/// The option that a word is, when its value is yet to come.
fn option<'c>(command: &'c Command, word: &str) -> Option<&'c Arg> {
    if word.contains('=') { None } else { option_named(command, word) }
}

fn option_named<'c>(command: &'c Command, word: &str) -> Option<&'c Arg> {
    let long = word.strip_prefix("--");
    let short =
        word.strip_prefix('-').filter(|rest| rest.chars().count() == 1).and_then(|rest| rest.chars().next());
    command.get_arguments().find(|arg| match long {
        Some(long) => arg.get_long() == Some(long),
        None => short.is_some() && arg.get_short() == short,
    })
}

fn values(arg: &Arg, prefix: &str) -> Vec<Candidate> {
    let values = arg.get_possible_values().into_iter().filter(|value| !value.is_hide_set());
    let about = |value: &clap::builder::PossibleValue| value.get_help().map(ToString::to_string);
    values.map(|value| (format!("{prefix}{}", value.get_name()), about(&value).unwrap_or_default())).collect()
}

fn options(command: &Command) -> Vec<Candidate> {
    let visible = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let named =
        visible.filter_map(|arg| Some((format!("--{}", arg.get_long()?), first_line(arg.get_help()))));
    named.chain([("--help".to_owned(), "Print help".to_owned())]).collect()
}

fn subcommands(command: &Command) -> impl Iterator<Item = Candidate> {
    let visible = command.get_subcommands().filter(|command| !command.is_hide_set());
    visible.map(|command| (command.get_name().to_owned(), first_line(command.get_about())))
}

fn positional(command: &Command) -> impl Iterator<Item = Candidate> {
    command.get_positionals().flat_map(|arg| values(arg, ""))
}

fn first_line(text: Option<&clap::builder::StyledStr>) -> String {
    let text = text.map(ToString::to_string).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn words(line: &[&str]) -> (Vec<String>, bool) {
        let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        let (found, files) = candidates(&super::super::Cli::command(), &words);
        (found.into_iter().map(|(word, _)| word).collect(), files)
    }

    #[test]
    fn subcommands_options_and_values_go_on() {
        assert_eq!(words(&["sta"]), (vec!["status".into()], false));
        assert_eq!(words(&["status", "--kubec"]), (vec!["--kubeconfig".into()], false));
        assert_eq!(words(&["status", "-o", "j"]), (vec!["json".into()], false));
        assert_eq!(words(&["status", "--output=y"]), (vec!["--output=yaml".into()], false));
        assert_eq!(words(&["completion", "ba"]), (vec!["bash".into()], false));
        assert_eq!(words(&["analyze", "--config", "dep"]), (Vec::new(), true));
        assert_eq!(words(&["nothing-such", "--zzz"]), (Vec::new(), false));
        assert!(words(&[]).0.contains(&"check".to_owned()));
        // The value of an option is no subcommand.
        assert_eq!(words(&["status", "--context", "dump", "--wat"]).0, ["--watch"]);
    }

    #[test]
    fn kubectl_gets_descriptions_and_a_directive() {
        let out = for_kubectl(&super::super::Cli::command(), &["sta".to_owned()]);
        let (line, rest) = out.split_once('\n').unwrap();
        assert!(line.starts_with("status\t") && rest == ":4\n", "{out}");
        let out = for_kubectl(
            &super::super::Cli::command(),
            &["analyze".to_owned(), "--config".to_owned(), String::new()],
        );
        assert_eq!(out, ":0\n");
    }

    #[test]
    fn every_shell_has_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut super::super::Cli::command(), "weft", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("bug-report") && script.contains("kubeconfig"), "{shell}");
        }
    }
}

//! Tests of the README and of the architecture: what they name exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::build::root;

const DOCUMENTS: [&str; 2] = ["README.md", "agent/ARCHITECTURE.md"];

/// What is in the repository.
#[derive(Default)]
struct Tree {
    /// Files and directories.
    paths: BTreeSet<String>,
    /// Rust sources.
    code: String,
    /// Everything else that is text, but for documents.
    rest: String,
}

impl Tree {
    fn read() -> Self {
        let (mut tree, root) = (Self::default(), root().unwrap());
        for top in [".ci", "agent", "deploy", "ebpf", "tests", "xtask"] {
            tree.add(&root, &root.join(top));
        }
        tree
    }

    fn add(&mut self, root: &Path, path: &Path) {
        self.paths.insert(path.strip_prefix(root).unwrap().display().to_string());
        if path.is_dir() {
            let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
            return entries
                .filter(|entry| !entry.ends_with("target"))
                .for_each(|entry| self.add(root, &entry));
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        let into = match extension {
            Some("rs") => &mut self.code,
            Some("md") => return,
            _ => &mut self.rest,
        };
        into.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap()));
    }

    /// A path from the root, or its end: documents leave out what is clear from where they speak.
    fn has_path(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let ends = [path.to_owned(), format!("{path}.rs"), format!("{path}/mod.rs")];
        let is_it = |known: &str, end: &str| {
            known.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('/'))
        };
        self.paths.iter().any(|known| ends.iter().any(|end| is_it(known, end)))
    }

    fn has_item(&self, name: &str) -> bool {
        ["fn", "struct", "enum", "trait", "type", "mod", "const"].iter().any(|kind| {
            let declared = format!("{kind} {name}");
            self.code.match_indices(&declared).any(|(at, _)| {
                let after = self.code[at + declared.len()..].chars().next();
                after.is_none_or(|next| !next.is_alphanumeric() && next != '_')
            })
        })
    }

    fn mentions(&self, text: &str) -> bool {
        self.code.contains(text) || self.rest.contains(text)
    }

    /// What is wrong with a piece of a document that stands in code font.
    fn objection(&self, span: &str) -> Option<String> {
        // Patterns and placeholders.
        let is_placeholder = |part: &str| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase());
        if span.contains(['…', '*', '<', '=', '|'])
            || span.contains("://")
            || span.split('/').any(is_placeholder)
        {
            return None;
        }
        if span.contains(' ') {
            return self.objection_to_command(span);
        }
        let is_word = span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let is_series = ["istio_", "envoy_", "weft_"].iter().any(|start| span.starts_with(start));
        let exists = if is_word && !is_series && span.matches('_').count() >= 2 {
            self.has_item(span) || self.has_field(span)
        } else if let Some((_, item)) = span.rsplit_once("::") {
            self.has_item(item) || self.has_field(item)
        } else if span.contains('/') || [".rs", ".txt", ".yaml"].iter().any(|end| span.ends_with(end)) {
            self.has_path(span) || self.mentions(span)
        } else {
            self.mentions(span) || span.strip_prefix("--").is_some_and(|flag| self.has_flag(flag))
        };
        (!exists).then(|| format!("`{span}` does not exist"))
    }

    fn objection_to_command(&self, command: &str) -> Option<String> {
        let mut words = command.split_whitespace();
        let name = match (words.next()?, words.next()?) {
            ("weft", name) => name,
            ("cargo", "xtask") => words.next()?,
            _ => return None,
        };
        let variant: String = name.split('-').map(capitalised).collect();
        let known = ["(", ",\n"].iter().any(|end| self.code.contains(&format!("\n    {variant}{end}")));
        if !name.starts_with('-') && !known {
            return Some(format!("`{command}`: there is no command `{name}`"));
        }
        let mut flags = words.filter_map(|word| word.strip_prefix("--")).filter(|flag| *flag != "help");
        let unknown = flags.find(|flag| !self.has_flag(flag));
        unknown.map(|flag| format!("`{command}`: there is no flag `{flag}`"))
    }

    /// Flags are fields.
    fn has_flag(&self, flag: &str) -> bool {
        self.has_field(&flag.replace('-', "_"))
    }

    fn has_field(&self, name: &str) -> bool {
        [" ", "r#"].iter().any(|before| self.code.contains(&format!("{before}{name}: ")))
    }
}

fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at(word.len().min(1));
    first.to_uppercase() + rest
}

/// What stands in code font, within the text or as a block of its own.
fn spans(document: &str) -> Vec<&str> {
    let (blocks, text): (Vec<_>, Vec<_>) = document.lines().partition(|line| line.starts_with("    "));
    let within = text.into_iter().flat_map(|line| line.split('`').skip(1).step_by(2));
    let commands = blocks.into_iter().map(|line| line.split("  #").next().unwrap_or_default().trim());
    within.chain(commands.filter(|line| line.starts_with("weft ") || line.starts_with("cargo "))).collect()
}

#[test]
fn what_the_documents_name_exists() {
    let tree = Tree::read();
    let mut objections = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root().unwrap().join(document)).unwrap();
        let spans = spans(&text);
        assert!(spans.len() > 50, "{document}: {spans:?}");
        let found = spans.into_iter().filter_map(|span| tree.objection(span));
        objections.extend(found.map(|objection| format!("{document}: {objection}")));
    }
    assert!(objections.is_empty(), "{}", objections.join("\n"));
}

/// Steps of the cluster's tests are named in quotes.
#[test]
fn steps_that_the_architecture_names_exist() {
    let text = fs::read_to_string(root().unwrap().join(DOCUMENTS[1])).unwrap().replace("\n    ", " ");
    let (tree, text) = (Tree::read(), text.replace("\n   ", " "));
    let quoted = text.split('"').skip(1).step_by(2);
    let steps: Vec<_> = quoted.filter(|quoted| quoted.split(' ').count() > 3).collect();
    assert!(steps.len() >= 3, "{steps:?}");
    for step in steps {
        assert!(tree.code.contains(&format!("\"{step}\"")), "there is no step \"{step}\"");
    }
}

#[test]
fn what_does_not_exist_is_found() {
    let tree = Tree::read();
    for wrong in [
        "no_test_has_such_a_name",
        "kernel/no_such_file.rs",
        "weft_no_such_series_total",
        "Published::no_such_method",
        "weft fly",
        "weft status --no-such-flag",
        "cargo xtask fly",
    ] {
        // Here it stands, and only here.
        let mut without = Tree { paths: tree.paths.clone(), ..Tree::default() };
        without.code = tree.code.replace(&format!("\"{wrong}\""), "");
        assert!(without.objection(wrong).is_some(), "{wrong}");
    }
    for right in ["weft bug-report", "cargo xtask test-cluster --istiod", "agent/cni/server"] {
        assert_eq!(tree.objection(right), None);
    }
}

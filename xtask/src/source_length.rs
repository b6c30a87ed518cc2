//! Length of files and functions.
//!
//! Counts lines of code: neither blank lines nor comments, and not the tests at the end of a file. Finds
//! functions by their indentation, which `cargo fmt` guarantees.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

const LONGEST_FILE: usize = 600;
const LONGEST_FUNCTION: usize = 100;

/// One sentence for each file or function that is too long.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for top in ["agent", "ebpf", "tests", "xtask"] {
        for file in rust_files(&root.join(top))? {
            let text = fs::read_to_string(&file)?;
            let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            findings.extend(check_text(&name, &text));
        }
    }
    Ok(findings)
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

fn check_text(name: &str, text: &str) -> Vec<String> {
    let product = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text);
    let mut findings = Vec::new();
    let lines = product.lines().filter(|line| is_code(line)).count();
    if lines > LONGEST_FILE {
        findings
            .push(format!("{name} has {lines} lines of code, more than {LONGEST_FILE}: split it by topic"));
    }
    let mut open: Option<(usize, String, usize)> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        match &mut open {
            None if begins_function(line) => open = Some((indent, function_name(line), 1)),
            None => {}
            Some((at, function, length)) => {
                *length += usize::from(is_code(line));
                if indent == *at && line.trim_start().starts_with('}') {
                    if *length > LONGEST_FUNCTION {
                        findings.push(format!(
                            "{name}: fn {function} has {length} lines, more than {LONGEST_FUNCTION}: give its phases names"
                        ));
                    }
                    open = None;
                }
            }
        }
    }
    findings
}

fn begins_function(line: &str) -> bool {
    let line = line.trim_start();
    let starts = [
        "fn ",
        "pub fn ",
        "async fn ",
        "pub async fn ",
        "unsafe fn ",
        "const fn ",
        "pub const fn ",
        "pub(crate) fn ",
        "pub(crate) async fn ",
        "pub(super) fn ",
        "pub(super) async fn ",
    ];
    starts.iter().any(|start| line.starts_with(start)) && !line.trim_end().ends_with([';', '}'])
}

fn function_name(line: &str) -> String {
    let after = line.split("fn ").nth(1).unwrap_or_default();
    after.split(['(', '<']).next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(lines: usize) -> String {
        format!("impl X {{\n    fn long(&self) {{\n{}    }}\n}}\n", "        step();\n".repeat(lines))
    }

    #[test]
    fn long_functions_are_found_by_name() {
        let [finding] = check_text("a.rs", &function(100)).try_into().unwrap();
        assert!(finding.starts_with("a.rs: fn long has 102 lines"), "{finding}");
        assert_eq!(check_text("a.rs", &function(98)), Vec::<String>::new());
    }

    #[test]
    fn comments_and_tests_do_not_count_for_files() {
        let code = "struct A;\n".repeat(600);
        let rest = "// why\n\n".repeat(50) + "\n#[cfg(test)]\nmod tests {\n    struct B;\n}\n";
        assert_eq!(check_text("a.rs", &(code.clone() + &rest)), Vec::<String>::new());
        assert_eq!(check_text("a.rs", &(code + "struct C;\n")).len(), 1);
    }
}

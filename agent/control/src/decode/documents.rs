//! Cuts a file into documents, as `kubectl` does.
//!
//! Files are read as a stream: memory is needed for one document, not for the file (only a `.json` file is
//! read as a whole).

use std::io::{self, BufRead};
use std::path::Path;

use serde_json::value::RawValue;

/// How a file is cut into documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// YAML: documents are separated by lines that begin with `---`.
    Yaml,
    /// JSON: one object or List, or several, one after the other.
    Json,
    /// JSON Lines: one object per line.
    JsonLines,
}

impl Format {
    /// The format by the extension of the file's name; `None` for files that are no configuration.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            "jsonl" => Some(Self::JsonLines),
            _ => None,
        }
    }

    /// The format by the beginning of the content, for standard input and files without a known extension.
    pub fn sniff(beginning: &[u8]) -> Self {
        let brace = beginning.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        // A flow mapping of YAML begins with a brace as well, but its key is seldom in quotes.
        let quote = beginning.iter().filter(|byte| !byte.is_ascii_whitespace()).nth(1);
        if brace && matches!(quote, Some(b'"' | b'}')) { Self::Json } else { Self::Yaml }
    }
}

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// YAML.
    Yaml,
    /// JSON.
    Json,
}

/// One document.
#[derive(Debug, Clone, Copy)]
pub struct Document<'a> {
    /// Its number, from 1. Empty documents (nothing but comments) do not count.
    pub number: u32,
    /// The line of the file on which its content begins, from 1.
    pub line: u32,
    /// Its text.
    pub text: &'a [u8],
    /// How it is written.
    pub syntax: Syntax,
}

/// Calls `visit` for each document.
///
/// # Errors
///
/// Only reading can fail; a document that is broken is `visit`'s to find out.
pub fn read(
    reader: &mut dyn BufRead,
    format: Format,
    visit: &mut dyn FnMut(&Document<'_>),
) -> io::Result<()> {
    match format {
        Format::Yaml => yaml(reader, visit),
        Format::Json => json(reader, visit),
        Format::JsonLines => json_lines(reader, visit),
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn yaml(reader: &mut dyn BufRead, visit: &mut dyn FnMut(&Document<'_>)) -> io::Result<()> {
    let mut current = YamlDocument::default();
    let mut line = Vec::new();
    let (mut number, mut at) = (0, 0);
    while read_line(reader, &mut line, &mut at)? {
        let Some(rest) = separator(&line) else {
            current.push(&line, at);
            continue;
        };
        current.finish(&mut number, visit);
        // What follows `---` on its line belongs to the new document.
        current.push(rest, at);
    }
    current.finish(&mut number, visit);
    Ok(())
}

/// The rest of a line that separates two documents: `---` or `...`, alone or followed by white space.
fn separator(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"---").or_else(|| line.strip_prefix(b"..."))?;
    rest.first().is_none_or(u8::is_ascii_whitespace).then_some(rest)
}

fn is_blank_or_comment(line: &[u8]) -> bool {
    matches!(line.trim_ascii_start().first(), None | Some(b'#'))
}

/// The document that is being collected.
#[derive(Default)]
struct YamlDocument {
    text: Vec<u8>,
    /// The line of its first content; 0 while there is none.
    line: u32,
}

impl YamlDocument {
    fn push(&mut self, text: &[u8], at: u32) {
        // Directives (`%YAML 1.2`) are no content.
        if self.line == 0 && !text.starts_with(b"%") && !is_blank_or_comment(text) {
            self.line = at;
        }
        if self.line != 0 {
            self.text.extend_from_slice(text);
        }
    }

    fn finish(&mut self, number: &mut u32, visit: &mut dyn FnMut(&Document<'_>)) {
        if self.line != 0 {
            *number += 1;
            visit(&Document { number: *number, line: self.line, text: &self.text, syntax: Syntax::Yaml });
        }
        self.text.clear();
        self.line = 0;
    }
}

fn json_lines(reader: &mut dyn BufRead, visit: &mut dyn FnMut(&Document<'_>)) -> io::Result<()> {
    let mut line = Vec::new();
    let (mut number, mut at) = (0, 0);
    while read_line(reader, &mut line, &mut at)? {
        let text = line.trim_ascii();
        if !text.is_empty() {
            number += 1;
            visit(&Document { number, line: at, text, syntax: Syntax::Json });
        }
    }
    Ok(())
}

fn json(reader: &mut dyn BufRead, visit: &mut dyn FnMut(&Document<'_>)) -> io::Result<()> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<&RawValue>();
    let (mut number, mut line, mut counted) = (0, 1, 0);
    loop {
        let begin = values.byte_offset();
        let next = values.next();
        let rest = bytes.get(begin..).unwrap_or_default();
        let text = match next {
            None => return Ok(()),
            Some(Ok(value)) => value.get().as_bytes(),
            // Where the next document would begin cannot be known: the rest is one broken document.
            Some(Err(_)) => rest.trim_ascii(),
        };
        let space = rest.len() - rest.trim_ascii_start().len();
        let before = bytes.get(counted..begin + space).unwrap_or_default();
        line += u32::try_from(before.iter().filter(|byte| **byte == b'\n').count()).unwrap_or(u32::MAX);
        counted = begin + space;
        number += 1;
        visit(&Document { number, line, text, syntax: Syntax::Json });
        if matches!(next, Some(Err(_))) {
            return Ok(());
        }
    }
}

/// Reads a line into `line` and counts it; false at the end of the file.
fn read_line(reader: &mut dyn BufRead, line: &mut Vec<u8>, at: &mut u32) -> io::Result<bool> {
    line.clear();
    let more = reader.read_until(b'\n', line)? > 0;
    if *at == 0 && line.starts_with(BYTE_ORDER_MARK) {
        line.drain(..BYTE_ORDER_MARK.len());
    }
    *at = at.saturating_add(1);
    Ok(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, format: Format) -> Vec<(u32, u32, String)> {
        let mut found = Vec::new();
        read(&mut text.as_bytes(), format, &mut |document| {
            let text = String::from_utf8_lossy(document.text).into_owned();
            found.push((document.number, document.line, text));
        })
        .unwrap();
        found
    }

    fn document(number: u32, line: u32, text: &str) -> (u32, u32, String) {
        (number, line, text.to_owned())
    }

    #[test]
    fn yaml_is_cut_at_separators() {
        let text = "\u{feff}%YAML 1.2\n--- # first\n# comment\na: 1\n---\n---\t\n# nothing\n--- \nb: |\n  ---\n  c\r\n---x: 1\n...\n--- {d: 1}\n";
        assert_eq!(
            cut(text, Format::Yaml),
            [
                document(1, 4, "a: 1\n"),
                document(2, 9, "b: |\n  ---\n  c\r\n---x: 1\n"),
                document(3, 14, " {d: 1}\n"),
            ]
        );
        assert_eq!(cut("", Format::Yaml), []);
    }

    #[test]
    fn json_lines_are_cut_at_lines() {
        let text = "{\"a\":1}\r\n\n  {\"b\":2}";
        assert_eq!(cut(text, Format::JsonLines), [document(1, 1, "{\"a\":1}"), document(2, 3, "{\"b\":2}")]);
    }

    #[test]
    fn json_values_follow_one_another() {
        let text = "\n{\"a\":\n1}\n[2]\n{\"c\":]\n{}";
        let expected = [document(1, 2, "{\"a\":\n1}"), document(2, 4, "[2]"), document(3, 5, "{\"c\":]\n{}")];
        assert_eq!(cut(text, Format::Json), expected);
        assert_eq!(cut(" \n", Format::Json), []);
    }

    #[test]
    fn the_format_is_known_by_extension_or_beginning() {
        let of = |name: &str| Format::of(Path::new(name));
        assert_eq!(of("a/b.yaml"), Some(Format::Yaml));
        assert_eq!(of("b.jsonl"), Some(Format::JsonLines));
        assert_eq!((of("yaml"), of("a.yaml~"), of("a.txt")), (None, None, None));
        assert_eq!(Format::sniff(b"\n {\n\"kind\": 1}"), Format::Json);
        assert_eq!(Format::sniff(b"{kind: Pod}"), Format::Yaml);
        assert_eq!(Format::sniff(b"kind: Pod"), Format::Yaml);
    }
}

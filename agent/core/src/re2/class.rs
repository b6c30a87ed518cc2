//! `[…]`, `\d` and `\pL`.

use super::Re2Error;
use super::parse::{Parser, push_literal, write_all};

/// Names between `[:` and `:]`.
const POSIX: &[&str] = &[
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

/// What the ASCII classes stand for inside of brackets, and whether they are negated.
pub(super) fn perl(letter: char) -> Option<(&'static str, bool)> {
    match letter {
        'd' | 'D' => Some(("0-9", letter == 'D')),
        's' | 'S' => Some((r"\t\n\f\r\x20", letter == 'S')),
        'w' | 'W' => Some(("0-9A-Za-z_", letter == 'W')),
        _ => None,
    }
}

/// `\pL`, `\p{Greek}`, `\P{^Greek}`: the group as the other dialect writes it.
pub(super) fn unicode(parser: &mut Parser<'_>) -> Result<String, Re2Error> {
    let before = parser.rest;
    let mut negated = before.starts_with(r"\P");
    parser.skip(2);
    let invalid = || Re2Error::Class(before.chars().take(16).collect());
    let name = if let Some(inside) = parser.rest.strip_prefix('{') {
        let (name, after) = inside.split_once('}').ok_or_else(invalid)?;
        parser.rest = after;
        name.to_owned()
    } else {
        parser.take().ok_or_else(invalid)?.to_string()
    };
    let name = name.strip_prefix('^').map_or(name.as_str(), |name| {
        negated = !negated;
        name
    });
    // Names are spelt exactly; the other dialect is more generous and knows properties besides.
    let spelt = name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|c| c.is_ascii_alphabetic() || c == b'_');
    let group = format!(r"\{}{{{name}}}", if negated { 'P' } else { 'p' });
    if spelt && regex::Regex::new(&group).is_ok() { Ok(group) } else { Err(invalid()) }
}

/// `[…]`.
pub(super) fn class(parser: &mut Parser<'_>) -> Result<(), Re2Error> {
    parser.skip(1);
    parser.out.push('[');
    if parser.rest.starts_with('^') {
        parser.skip(1);
        parser.out.push('^');
    }
    let mut first = true;
    while first || !parser.rest.starts_with(']') {
        first = false;
        if parser.rest.is_empty() {
            return Err(Re2Error::MissingBracket);
        }
        if !named(parser)? {
            range(parser)?;
        }
    }
    parser.skip(1);
    parser.out.push(']');
    Ok(())
}

/// A class inside of the brackets; false if there is none.
fn named(parser: &mut Parser<'_>) -> Result<bool, Re2Error> {
    if let Some(inside) = parser.rest.strip_prefix("[:")
        && let Some((name, after)) = inside.split_once(":]")
    {
        if !POSIX.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return Err(Re2Error::Class(format!("[:{name}:]")));
        }
        write_all(&mut parser.out, format_args!("[:{name}:]"));
        parser.rest = after;
        return Ok(true);
    }
    let Some(letter) = parser.rest.strip_prefix('\\').and_then(|rest| rest.chars().next()) else {
        return Ok(false);
    };
    if matches!(letter, 'p' | 'P') {
        let group = unicode(parser)?;
        parser.out.push_str(&group);
        return Ok(true);
    }
    let Some((inside, negated)) = perl(letter) else { return Ok(false) };
    parser.skip(2);
    if negated {
        write_all(&mut parser.out, format_args!("[^{inside}]"));
    } else {
        parser.out.push_str(inside);
    }
    Ok(true)
}

/// One character, or a range of them.
fn range(parser: &mut Parser<'_>) -> Result<(), Re2Error> {
    let before = parser.rest;
    let low = member(parser)?;
    let mut high = low;
    if parser.rest.starts_with('-') && parser.rest.len() > 1 && !parser.rest.starts_with("-]") {
        parser.skip(1);
        high = member(parser)?;
    }
    if high < low {
        let taken = before.len() - parser.rest.len();
        return Err(Re2Error::Class(before.get(..taken).unwrap_or(before).to_owned()));
    }
    push_literal(&mut parser.out, low);
    if high != low {
        parser.out.push('-');
        push_literal(&mut parser.out, high);
    }
    Ok(())
}

fn member(parser: &mut Parser<'_>) -> Result<char, Re2Error> {
    if parser.rest.starts_with('\\') {
        return parser.escape();
    }
    parser.take().ok_or(Re2Error::MissingBracket)
}

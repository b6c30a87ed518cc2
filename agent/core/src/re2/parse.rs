//! Everything but classes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use super::Re2Error;
use super::class;

/// Most repetitions, counted through all levels of nesting.
const MAX_REPEAT: u32 = 1000;

/// What a repetition operator would apply to.
#[derive(Clone, Copy)]
enum Last {
    /// Nothing: the beginning of an expression or of an alternative.
    Nothing,
    /// An expression with so many repetitions inside.
    Expression(u32),
    /// A repetition, which cannot be repeated again.
    Repetition(u32),
}

impl Last {
    /// Repetitions inside.
    fn weight(self) -> u32 {
        match self {
            Self::Nothing => 1,
            Self::Expression(weight) | Self::Repetition(weight) => weight,
        }
    }
}

/// An open group.
struct Group {
    last: Last,
    /// Most repetitions inside any part of the group.
    weight: u32,
}

/// Reads an expression from front to back and writes it in the other dialect.
pub(super) struct Parser<'p> {
    pub(super) rest: &'p str,
    pub(super) out: String,
    groups: Vec<Group>,
    last: Last,
    weight: u32,
    names: BTreeSet<&'p str>,
}

impl<'p> Parser<'p> {
    pub(super) fn new(pattern: &'p str) -> Self {
        Self {
            rest: pattern,
            out: String::with_capacity(pattern.len() + 8),
            groups: Vec::new(),
            last: Last::Nothing,
            weight: 1,
            names: BTreeSet::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<String, Re2Error> {
        while let Some(next) = self.rest.chars().next() {
            match next {
                '(' => self.open()?,
                ')' => self.close()?,
                '|' => {
                    self.skip(1);
                    self.out.push('|');
                    self.last = Last::Nothing;
                }
                '*' => self.repeat("*", 1, 1)?,
                '+' => self.repeat("+", 1, 1)?,
                '?' => self.repeat("?", 1, 1)?,
                '{' => self.braces()?,
                '[' => {
                    class::class(&mut self)?;
                    self.expression();
                }
                '^' | '$' | '.' => {
                    self.skip(1);
                    self.out.push(next);
                    self.expression();
                }
                '\\' => self.backslash()?,
                literal => {
                    self.skip(literal.len_utf8());
                    self.literal(literal);
                }
            }
        }
        if self.groups.is_empty() { Ok(self.out) } else { Err(Re2Error::MissingParenthesis) }
    }

    pub(super) fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    /// Takes one character.
    pub(super) fn take(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.skip(next.len_utf8());
        Some(next)
    }

    /// Something that can be repeated has been written.
    fn expression(&mut self) {
        self.last = Last::Expression(1);
    }

    fn literal(&mut self, literal: char) {
        push_literal(&mut self.out, literal);
        self.expression();
    }

    /// An operator of so many bytes that repeats what stands before it.
    fn repeat(&mut self, operator: &str, bytes: usize, times: u32) -> Result<(), Re2Error> {
        let weight = match self.last {
            Last::Nothing => return Err(Re2Error::NothingToRepeat(operator.to_owned())),
            Last::Repetition(_) => return Err(Re2Error::NestedRepeat(operator.to_owned())),
            Last::Expression(weight) => weight,
        };
        let weight = weight.saturating_mul(times.max(1));
        if weight > MAX_REPEAT {
            return Err(Re2Error::RepeatCount(operator.to_owned()));
        }
        self.skip(bytes);
        self.out.push_str(operator);
        if self.rest.starts_with('?') {
            self.skip(1);
            self.out.push('?');
        }
        self.last = Last::Repetition(weight);
        self.weight = self.weight.max(weight);
        Ok(())
    }

    /// `{n}`, `{n,}`, `{n,m}`; anything else in braces is text.
    fn braces(&mut self) -> Result<(), Re2Error> {
        let Some((bytes, least, most)) = bounds(self.rest) else {
            self.skip(1);
            self.literal('{');
            return Ok(());
        };
        let operator = self.rest.get(..bytes).unwrap_or_default().to_owned();
        let valid = |count: Option<u32>| count.is_none_or(|count| count <= MAX_REPEAT);
        if !valid(Some(least)) || !valid(most) || most.is_some_and(|most| most < least) {
            return Err(Re2Error::RepeatCount(operator));
        }
        self.repeat(&operator, bytes, most.unwrap_or(least))
    }

    fn open(&mut self) -> Result<(), Re2Error> {
        self.skip(1);
        if let Some(rest) = self.rest.strip_prefix('?') {
            if rest.starts_with("P<") || rest.starts_with('<') {
                self.named(rest)?;
                self.out.push('(');
            } else if self.flags(rest)? {
                // Flags without a group: they hold up to the end of the group around them.
                self.last = Last::Nothing;
                return Ok(());
            }
        } else {
            self.out.push('(');
        }
        self.groups.push(Group { last: self.last, weight: self.weight });
        (self.last, self.weight) = (Last::Nothing, 1);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Re2Error> {
        let Some(group) = self.groups.pop() else { return Err(Re2Error::UnexpectedParenthesis) };
        self.skip(1);
        self.out.push(')');
        let inside = self.weight.max(self.last.weight());
        self.last = Last::Expression(inside);
        self.weight = group.weight.max(group.last.weight()).max(inside);
        Ok(())
    }

    /// `?P<name>` and `?<name>`: the name does not matter, for replacements count groups.
    fn named(&mut self, rest: &'p str) -> Result<(), Re2Error> {
        let from_name = rest.trim_start_matches('P').strip_prefix('<').unwrap_or_default();
        let unknown = || Re2Error::Unknown(format!("(?{}", rest.chars().take(20).collect::<String>()));
        let (name, after) = from_name.split_once('>').ok_or_else(unknown)?;
        let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
        if name.is_empty() || !name.bytes().all(word) || !self.names.insert(name) {
            return Err(unknown());
        }
        self.rest = after;
        Ok(())
    }

    /// `?flags)` (true) or `?flags:` (false).
    fn flags(&mut self, rest: &'p str) -> Result<bool, Re2Error> {
        let unknown = || Re2Error::Unknown(format!("(?{}", rest.chars().take(8).collect::<String>()));
        let end = rest.find([':', ')']).ok_or_else(unknown)?;
        let flags = rest.get(..end).unwrap_or_default();
        let (on, off) = flags.split_once('-').map_or((flags, None), |(on, off)| (on, Some(off)));
        let known = |flags: &str| flags.bytes().all(|flag| matches!(flag, b'i' | b'm' | b's' | b'U'));
        if !known(on) || off.is_some_and(|off| off.is_empty() || !known(off)) {
            return Err(unknown());
        }
        let alone = rest.get(end..).is_some_and(|rest| rest.starts_with(')'));
        self.rest = rest.get(end + 1..).unwrap_or_default();
        if !(alone && flags.is_empty()) {
            // The same flag twice is an error there and none here.
            let unique = |flags: &str| flags.chars().collect::<BTreeSet<_>>().into_iter().collect::<String>();
            let off = off.map(unique).unwrap_or_default();
            let on: String = unique(on).chars().filter(|flag| !off.contains(*flag)).collect();
            let dash = if off.is_empty() { "" } else { "-" };
            let end = if alone { ")" } else { ":" };
            write_all(&mut self.out, format_args!("(?{on}{dash}{off}{end}"));
        }
        Ok(alone)
    }

    fn backslash(&mut self) -> Result<(), Re2Error> {
        let Some(next) = self.rest.chars().nth(1) else { return Err(Re2Error::TrailingBackslash) };
        let plain = match next {
            'A' => r"\A",
            'z' => r"\z",
            'b' => r"(?-u:\b)",
            'B' => r"\B",
            'Q' => {
                self.quoted();
                return Ok(());
            }
            'p' | 'P' => {
                let group = class::unicode(self)?;
                self.out.push_str(&group);
                self.expression();
                return Ok(());
            }
            other => match class::perl(other) {
                Some((inside, negated)) => {
                    self.skip(2);
                    write_all(&mut self.out, format_args!("[{}{inside}]", if negated { "^" } else { "" }));
                    self.expression();
                    return Ok(());
                }
                None => {
                    let literal = self.escape()?;
                    self.literal(literal);
                    return Ok(());
                }
            },
        };
        self.skip(2);
        self.out.push_str(plain);
        self.expression();
        Ok(())
    }

    /// `\Q` up to `\E` or the end: all of it is text.
    fn quoted(&mut self) {
        self.skip(2);
        let (text, after) = self.rest.split_once(r"\E").unwrap_or((self.rest, ""));
        for literal in text.chars() {
            self.literal(literal);
        }
        self.rest = after;
    }

    /// A backslash and what stands for one character.
    pub(super) fn escape(&mut self) -> Result<char, Re2Error> {
        let before = self.rest;
        self.skip(1);
        let Some(next) = self.take() else { return Err(Re2Error::TrailingBackslash) };
        let octal = |rest: &str| rest.starts_with(|c: char| ('0'..='7').contains(&c));
        let code = match next {
            '0' => self.number(8, 0..=2),
            '1'..='7' if octal(self.rest) => {
                self.rest = before.get(1..).unwrap_or_default();
                self.number(8, 2..=3)
            }
            'x' if self.rest.starts_with('{') => {
                self.skip(1);
                let code = self.number(16, 1..=8);
                let closed = self.rest.starts_with('}');
                self.skip(1);
                code.filter(|_| closed)
            }
            'x' => self.number(16, 2..=2),
            'a' => Some(7),
            'f' => Some(12),
            'n' => Some(10),
            'r' => Some(13),
            't' => Some(9),
            'v' => Some(11),
            other => Some(other as u32).filter(|_| other.is_ascii() && !other.is_ascii_alphanumeric()),
        };
        code.and_then(char::from_u32).ok_or_else(|| {
            let end = before.len().min(before.len() - self.rest.len());
            Re2Error::Unknown(before.get(..end.max(2)).unwrap_or(before).to_owned())
        })
    }

    /// As many digits as `length` allows.
    fn number(&mut self, radix: u32, length: RangeInclusive<usize>) -> Option<u32> {
        let digits = self.rest.chars().take(*length.end()).take_while(|c| c.is_digit(radix)).count();
        let text = self.rest.get(..digits)?;
        if !length.contains(&digits) {
            return None;
        }
        self.skip(digits);
        if text.is_empty() { Some(0) } else { u32::from_str_radix(text, radix).ok() }
    }
}

/// Writing to a string cannot fail.
pub(super) fn write_all(out: &mut String, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok());
}

/// One character as text, outside and inside of classes.
pub(super) fn push_literal(out: &mut String, literal: char) {
    match literal {
        '0'..='9' | 'a'..='z' | 'A'..='Z' | '_' => out.push(literal),
        '!'..='~' if !matches!(literal, '<' | '>') => {
            out.push('\\');
            out.push(literal);
        }
        _ => write_all(out, format_args!(r"\x{{{:X}}}", literal as u32)),
    }
}

/// The bytes of a `{n,m}` at the beginning, and its numbers; numbers beyond all limits are kept as such.
fn bounds(text: &str) -> Option<(usize, u32, Option<u32>)> {
    let inside = text.strip_prefix('{')?;
    let inside = inside.get(..inside.find('}')?)?;
    let number = |text: &str| {
        let zeros = text.len() > 1 && text.starts_with('0');
        let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()) && !zeros;
        digits.then(|| text.parse().unwrap_or(u32::MAX))
    };
    let bytes = inside.len() + 2;
    match inside.split_once(',') {
        None => number(inside).map(|count| (bytes, count, Some(count))),
        Some((least, "")) => Some((bytes, number(least)?, None)),
        Some((least, most)) => Some((bytes, number(least)?, Some(number(most)?))),
    }
}

//! Whether a text is an expression of the Common Expression Language. Only its grammar is checked: names and types
//! are known to whoever evaluates it.

use std::fmt;

/// Why a text is no expression. Positions count characters from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CelError {
    /// Something else was expected.
    Unexpected { at: usize, found: String },
    /// The text ends too early.
    Incomplete,
    /// A string without end.
    OpenString { at: usize },
    /// Parentheses within parentheses without measure.
    TooDeep,
}

impl fmt::Display for CelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unexpected { at, found } => write!(f, "`{found}` is unexpected at character {at}"),
            Self::Incomplete => f.write_str("it ends too early"),
            Self::OpenString { at } => write!(f, "the string that begins at character {at} has no end"),
            Self::TooDeep => f.write_str("it is nested too deeply"),
        }
    }
}

/// Checks an expression.
pub(super) fn check(text: &str) -> Result<(), CelError> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens: &tokens, next: 0, depth: 0 };
    parser.expression()?;
    match parser.peek() {
        None => Ok(()),
        Some(_) => Err(parser.unexpected()),
    }
}

/// Deeper nesting is nobody's filter.
const DEEPEST: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    Literal(String),
    Symbol(&'static str),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(text) | Self::Literal(text) => f.write_str(text),
            Self::Symbol(text) => f.write_str(text),
        }
    }
}

/// Longer symbols stand before their beginnings.
const SYMBOLS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}",
];

type Located = (usize, Token);

fn tokens(text: &str) -> Result<Vec<Located>, CelError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let position = |rest: &str| text.chars().count() - rest.chars().count() + 1;
    while let Some(first) = rest.chars().next() {
        let behind = if first.is_ascii_whitespace() {
            rest.get(1..)
        } else if rest.starts_with("//") {
            Some(rest.split_once('\n').map_or("", |(_, behind)| behind))
        } else {
            let at = position(rest);
            let (token, length) = token(rest, at)?;
            tokens.push((at, token));
            rest.get(length..)
        };
        rest = behind.unwrap_or_default();
    }
    Ok(tokens)
}

/// The token at the beginning of `rest` and its length in bytes.
fn token(rest: &str, at: usize) -> Result<(Token, usize), CelError> {
    if let Some(length) = string(rest, at)? {
        return Ok((Token::Literal(rest.get(..length).unwrap_or_default().to_owned()), length));
    }
    let first = rest.bytes().next().unwrap_or_default();
    let second = rest.as_bytes().get(1).copied().unwrap_or_default();
    if first.is_ascii_digit() || (first == b'.' && second.is_ascii_digit()) {
        let length = number(rest);
        return Ok((Token::Literal(rest.get(..length).unwrap_or_default().to_owned()), length));
    }
    if first.is_ascii_alphabetic() || first == b'_' {
        let length = rest.bytes().take_while(|c| c.is_ascii_alphanumeric() || *c == b'_').count();
        let name = rest.get(..length).unwrap_or_default().to_owned();
        let is_literal = matches!(name.as_str(), "true" | "false" | "null");
        return Ok((if is_literal { Token::Literal(name) } else { Token::Name(name) }, length));
    }
    match SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
        Some(symbol) => Ok((Token::Symbol(symbol), symbol.len())),
        None => Err(CelError::Unexpected { at, found: rest.chars().take(1).collect() }),
    }
}

/// The length of a string at the beginning, with its prefix (`r"…"`, `b'…'`).
fn string(rest: &str, at: usize) -> Result<Option<usize>, CelError> {
    let prefix = rest.bytes().take(2).take_while(|c| matches!(c, b'r' | b'R' | b'b' | b'B')).count();
    let raw = rest.bytes().take(prefix).any(|c| matches!(c, b'r' | b'R'));
    let body = rest.get(prefix..).unwrap_or_default();
    let Some(quote) = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| body.starts_with(*quote)) else {
        return Ok(None);
    };
    let mut inner = body.get(quote.len()..).unwrap_or_default();
    loop {
        if inner.starts_with(quote) {
            return Ok(Some(rest.len() - inner.len() + quote.len()));
        }
        let mut characters = inner.chars();
        match characters.next() {
            Some('\\') if !raw => drop(characters.next()),
            Some('\n') if quote.len() == 1 => return Err(CelError::OpenString { at }),
            None => return Err(CelError::OpenString { at }),
            Some(_) => {}
        }
        inner = characters.as_str();
    }
}

fn number(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let run = |from: usize, of: fn(&u8) -> bool| {
        bytes.get(from..).unwrap_or_default().iter().take_while(|c| of(c)).count()
    };
    let is = |at: usize, wanted: &[u8]| bytes.get(at).is_some_and(|c| wanted.contains(c));
    if rest.starts_with("0x") && bytes.get(2).is_some_and(u8::is_ascii_hexdigit) {
        let end = 2 + run(2, u8::is_ascii_hexdigit);
        return end + usize::from(is(end, b"uU"));
    }
    let mut end = run(0, u8::is_ascii_digit);
    if is(end, b".") && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end += 1 + run(end + 1, u8::is_ascii_digit);
    }
    if is(end, b"eE") {
        let sign = usize::from(is(end + 1, b"+-"));
        let digits = run(end + 1 + sign, u8::is_ascii_digit);
        if digits > 0 {
            return end + 1 + sign + digits;
        }
    }
    end + usize::from(is(end, b"uU"))
}

struct Parser<'t> {
    tokens: &'t [Located],
    next: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next).map(|(_, token)| token)
    }

    fn unexpected(&self) -> CelError {
        match self.tokens.get(self.next) {
            Some((at, token)) => CelError::Unexpected { at: *at, found: token.to_string() },
            None => CelError::Incomplete,
        }
    }

    fn takes(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Symbol(next)) if *next == symbol);
        self.next += usize::from(found);
        found
    }

    fn expects(&mut self, symbol: &str) -> Result<(), CelError> {
        if self.takes(symbol) { Ok(()) } else { Err(self.unexpected()) }
    }

    /// `a ? b : c`, or what binds more tightly.
    fn expression(&mut self) -> Result<(), CelError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(CelError::TooDeep);
        }
        self.operations()?;
        if self.takes("?") {
            self.operations()?;
            self.expects(":")?;
            self.expression()?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Operands with operators between them: how they bind does not matter to whether they are valid.
    fn operations(&mut self) -> Result<(), CelError> {
        const BETWEEN: [&str; 13] = ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%"];
        loop {
            self.unary()?;
            let is_in = matches!(self.peek(), Some(Token::Name(name)) if name == "in");
            if is_in {
                self.next += 1;
            } else if !BETWEEN.iter().any(|operator| self.takes(operator)) {
                return Ok(());
            }
        }
    }

    /// `!` or `-`, as often as you like but not mixed, and an operand.
    fn unary(&mut self) -> Result<(), CelError> {
        if self.takes("!") {
            while self.takes("!") {}
        } else {
            while self.takes("-") {}
        }
        self.primary()?;
        loop {
            if self.takes(".") {
                self.takes("?");
                self.name()?;
                if self.takes("(") {
                    self.list(")")?;
                } else if self.takes("{") {
                    self.fields()?;
                }
            } else if self.takes("[") {
                self.takes("?");
                self.expression()?;
                self.expects("]")?;
            } else {
                return Ok(());
            }
        }
    }

    fn name(&mut self) -> Result<(), CelError> {
        match self.peek() {
            Some(Token::Name(name)) if name != "in" => {
                self.next += 1;
                Ok(())
            }
            _ => Err(self.unexpected()),
        }
    }

    fn primary(&mut self) -> Result<(), CelError> {
        match self.peek() {
            Some(Token::Literal(_)) => {
                self.next += 1;
                return Ok(());
            }
            Some(Token::Symbol("(")) => {
                self.next += 1;
                self.expression()?;
                return self.expects(")");
            }
            Some(Token::Symbol("[")) => {
                self.next += 1;
                return self.list("]");
            }
            Some(Token::Symbol("{")) => {
                self.next += 1;
                return self.entries();
            }
            Some(Token::Symbol(_) | Token::Name(_)) | None => {}
        }
        self.takes(".");
        self.name()?;
        if self.takes("(") {
            self.list(")")?;
        } else if self.takes("{") {
            self.fields()?;
        }
        Ok(())
    }

    /// Expressions between commas up to `end`; a list may end with a comma.
    fn list(&mut self, end: &str) -> Result<(), CelError> {
        while !self.takes(end) {
            self.takes("?");
            self.expression()?;
            if !self.takes(",") {
                return self.expects(end);
            }
            if end == ")" && matches!(self.peek(), Some(Token::Symbol(")"))) {
                return Err(self.unexpected());
            }
        }
        Ok(())
    }

    /// `key: value` between commas up to `}`.
    fn entries(&mut self) -> Result<(), CelError> {
        while !self.takes("}") {
            self.takes("?");
            self.expression()?;
            self.expects(":")?;
            self.expression()?;
            if !self.takes(",") {
                return self.expects("}");
            }
        }
        Ok(())
    }

    /// `name: value` between commas up to `}`.
    fn fields(&mut self) -> Result<(), CelError> {
        while !self.takes("}") {
            self.takes("?");
            self.name()?;
            self.expects(":")?;
            self.expression()?;
            if !self.takes(",") {
                return self.expects("}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn expressions_are_valid() {
        for good in [
            "response.code >= 400",
            "response.code",
            "true",
            "!has(request.headers['x']) && a.b.exists(x, x > -1.5e3)",
            "a ? b : c ? d : e",
            "{'a': 1u, 'b': [1, 2,]}",
            "r'\\' == \"\"\"a\nb\"\"\" || 0xFFu in [1]",
            "Message{field: 1, other: .a.b}.x[0]",
            "a // comment",
            "--a + !!b",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn others_are_not() {
        for bad in [
            "", ")++++", "a b", "a.", "'a", "1 +", "f(a,)", "a &", "!-a", "a in", "{1}", "M{1: 2}", "a ? b",
            "#",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert_eq!(check(&"(".repeat(10_000)), Err(CelError::TooDeep));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-a-c0-9.,!?:()\\[\\]{}'\"\\\\ réin\n]{0,40}") {
            let _ = check(&text);
        }
    }
}

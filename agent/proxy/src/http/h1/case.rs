//! The case of header names: HTTP has none, some applications do (H-12). Names in lower case need no memory.

use bytes::Bytes;
use http::HeaderName;

/// How the names of a head were written, where not all of them were in lower case.
#[derive(Debug, Clone)]
pub(super) struct Case {
    names: Vec<Bytes>,
}

impl FromIterator<Bytes> for Case {
    fn from_iter<I: IntoIterator<Item = Bytes>>(names: I) -> Self {
        Self { names: names.into_iter().collect() }
    }
}

/// Names in the case in which they came, asked for one after the other.
pub(super) struct Cased<'a> {
    names: &'a [Bytes],
    /// Most often the next one is asked for.
    next: usize,
}

impl<'a> Cased<'a> {
    /// The names of a head, or none.
    pub(super) fn new(case: Option<&'a Case>) -> Self {
        Self { names: case.map_or(&[], |case| &case.names), next: 0 }
    }

    /// Writes a name; those of which nothing is known in lower case.
    #[inline]
    pub(super) fn write(&mut self, name: &HeaderName, out: &mut Vec<u8>) {
        let name = name.as_str().as_bytes();
        if self.names.is_empty() {
            return out.extend_from_slice(name);
        }
        self.write_cased(name, out);
    }

    fn write_cased(&mut self, name: &[u8], out: &mut Vec<u8>) {
        let same = |at: &usize| self.names.get(*at).is_some_and(|known| known.eq_ignore_ascii_case(name));
        let found = (self.next..self.names.len()).chain(0..self.next).find(same);
        let known = found.and_then(|at| self.names.get(at));
        if let Some(at) = found {
            self.next = at + 1;
        }
        out.extend_from_slice(known.map_or(name, |known| known));
    }
}

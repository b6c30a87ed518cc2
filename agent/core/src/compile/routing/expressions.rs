//! Compiled expressions, each kept once: many VirtualServices carry the same ones.

use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;

use crate::re2::{self, Re2Error};

/// The fewest expressions that are worth looking through for unused ones.
const SMALLEST_SWEEP: usize = 256;

/// Expressions that have to match a whole value, by their text. Those that nothing holds any more are dropped when
/// their number has doubled.
#[derive(Debug)]
pub(crate) struct Expressions {
    compiled: HashMap<Arc<str>, Result<Arc<Regex>, Re2Error>>,
    sweep_at: usize,
}

impl Default for Expressions {
    fn default() -> Self {
        Self { compiled: HashMap::new(), sweep_at: SMALLEST_SWEEP }
    }
}

impl Expressions {
    /// The compiled form of an expression.
    ///
    /// # Errors
    /// Why it has none.
    pub(crate) fn whole(&mut self, expression: &Arc<str>) -> Result<Arc<Regex>, Re2Error> {
        if let Some(known) = self.compiled.get(expression) {
            return known.clone();
        }
        if self.compiled.len() >= self.sweep_at {
            self.compiled.retain(|_, known| known.as_ref().is_ok_and(|regex| Arc::strong_count(regex) > 1));
            self.sweep_at = (self.compiled.len() * 2).max(SMALLEST_SWEEP);
        }
        let compiled = re2::whole(expression).map(Arc::new);
        self.compiled.insert(expression.clone(), compiled.clone());
        compiled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_equal_ones_once_and_forgets_unused_ones() {
        let mut expressions = Expressions::default();
        let first = expressions.whole(&"a+".into()).expect("valid");
        assert!(Arc::ptr_eq(&first, &expressions.whole(&"a+".into()).expect("valid")));
        assert!(expressions.whole(&"a(".into()).is_err() && expressions.whole(&"a(".into()).is_err());
        for at in 0..SMALLEST_SWEEP * 3 {
            assert!(expressions.whole(&at.to_string().into()).is_ok());
        }
        assert!(expressions.compiled.len() <= SMALLEST_SWEEP);
        assert!(Arc::ptr_eq(&first, &expressions.whole(&"a+".into()).expect("valid")));
    }
}

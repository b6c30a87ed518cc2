//! Hashing for maps that requests look into: a few instructions for a word, where SipHash takes a hundred.
//!
//! Every map has a seed of its own. That is enough for keys that come from the configuration or are bounded in number; where
//! peers choose keys that are kept without bound, the standard library's map is the right one.

use std::collections::{HashMap, HashSet};

/// Makes the hashers of one map.
pub type FastState = hashbrown::DefaultHashBuilder;

/// A map whose keys no peer chooses.
pub type FastMap<K, V> = HashMap<K, V, FastState>;

/// A set whose members no peer chooses.
pub type FastSet<T> = HashSet<T, FastState>;

//! Who sees an object.

use std::sync::Arc;

use crate::resource::virtual_service::ExportTo;

/// The namespaces whose clients see an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Visibility {
    /// All of them.
    #[default]
    Everywhere,
    /// These, sorted; none is nobody.
    Namespaces(Box<[Arc<str>]>),
}

impl Visibility {
    /// What `exportTo` of an object in namespace `own` says; where it says nothing, `default` does, and where that says
    /// nothing, everybody sees it.
    pub fn new(export_to: &[ExportTo], default: &[ExportTo], own: &Arc<str>) -> Self {
        let entries = if export_to.is_empty() { default } else { export_to };
        if entries.is_empty() {
            return Self::Everywhere;
        }
        let mut namespaces = Vec::new();
        for entry in entries {
            match entry {
                ExportTo::All => return Self::Everywhere,
                ExportTo::Own => namespaces.push(own.clone()),
                ExportTo::Namespace(namespace) => namespaces.push(namespace.clone()),
                ExportTo::Nobody => {}
            }
        }
        namespaces.sort_unstable();
        namespaces.dedup();
        Self::Namespaces(namespaces.into())
    }

    /// Whether clients of a namespace see the object.
    pub fn reaches(&self, namespace: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Namespaces(namespaces) => namespaces.iter().any(|known| &**known == namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_speaks_before_the_mesh() {
        let namespace = |name: &str| ExportTo::Namespace(name.into());
        let seen = |export_to: &[ExportTo], default: &[ExportTo]| {
            let visibility = Visibility::new(export_to, default, &"own".into());
            ["own", "a", "b"].map(|client| visibility.reaches(client))
        };
        for (export_to, default, expected) in [
            (vec![], vec![], [true, true, true]),
            (vec![], vec![ExportTo::All], [true, true, true]),
            (vec![], vec![ExportTo::Own], [true, false, false]),
            (vec![], vec![ExportTo::Nobody], [false, false, false]),
            (vec![ExportTo::Own, namespace("a")], vec![ExportTo::All], [true, true, false]),
            (vec![namespace("b")], vec![ExportTo::Own], [false, false, true]),
            (vec![namespace("b"), ExportTo::All], vec![], [true, true, true]),
            (vec![ExportTo::Nobody], vec![ExportTo::All], [false, false, false]),
        ] {
            assert_eq!(seen(&export_to, &default), expected, "{export_to:?} {default:?}");
        }
    }
}

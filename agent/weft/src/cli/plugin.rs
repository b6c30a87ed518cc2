//! The binary under its other names: `kubectl-weft` is the plugin `kubectl weft`, `kubectl_complete-weft` tells
//! kubectl's completion how a line goes on.

use std::ffi::OsString;
use std::path::Path;

/// How the binary was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CalledAs {
    /// `weft`, or any name that means nothing.
    Weft,
    /// `kubectl weft …`.
    Plugin,
    /// `kubectl __complete weft …`.
    Completion,
}

impl CalledAs {
    /// By the name in `argv[0]`. kubectl turns dashes of a plugin's name into underscores.
    pub(super) fn of(name: Option<&OsString>) -> Self {
        let name = name.map(Path::new).and_then(Path::file_stem).unwrap_or_default();
        match name.to_string_lossy().as_ref() {
            "kubectl-weft" => Self::Plugin,
            "kubectl_complete-weft" => Self::Completion,
            _ => Self::Weft,
        }
    }

    /// What the user typed before the first argument.
    pub(super) fn command_name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Plugin | Self::Completion => "kubectl weft",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides() {
        let of = |name: &str| CalledAs::of(Some(&name.into()));
        assert_eq!(of("/usr/local/bin/weft"), CalledAs::Weft);
        assert_eq!(of("/root/.krew/bin/kubectl-weft"), CalledAs::Plugin);
        assert_eq!(of("kubectl_complete-weft"), CalledAs::Completion);
        assert_eq!(of("else"), CalledAs::Weft);
        assert_eq!(CalledAs::of(None), CalledAs::Weft);
        assert_eq!(of("kubectl-weft").command_name(), "kubectl weft");
    }
}

//! Files that say where the API server is and who one is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What every client needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) url: String,
    /// File with the root.
    pub(crate) authority: PathBuf,
}

impl Server {
    /// For a certificate.
    pub(crate) fn write_for_certificate(&self, at: &Path, pair: (&Path, &Path)) -> Result<()> {
        let (certificate, key) = pair;
        self.write(at, &json!({ "client-certificate": certificate, "client-key": key }))
    }

    /// For a token.
    pub(crate) fn write_for_token(&self, at: &Path, token: &str) -> Result<()> {
        self.write(at, &json!({ "token": token }))
    }

    /// JSON, which is YAML.
    fn write(&self, at: &Path, user: &Value) -> Result<()> {
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "tests",
                "cluster": { "server": self.url, "certificate-authority": self.authority },
            }],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": "user" } }],
            "current-context": "tests",
        });
        fs::write(at, text.to_string()).with_context(|| format!("{} cannot be written", at.display()))
    }
}

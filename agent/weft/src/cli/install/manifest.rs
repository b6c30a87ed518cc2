//! The manifest that is built in, and what an installation may change in it.

use anyhow::ensure;
use clap::Args;

use super::objects::{self, Object};

/// The rendering of the chart: `cargo xtask manifests`.
const WEFT: &str = include_str!("../../../../../deploy/weft.yaml");

macro_rules! definitions {
    ($($name:literal)*) => {
        &[$(include_str!(concat!("../../../../../deploy/crds/", $name, ".istio.io.yaml"))),*]
    };
}

/// Definitions of Istio's kinds: `cargo xtask crd`.
const DEFINITIONS: &[&str] = definitions! {
    "authorizationpolicies.security" "destinationrules.networking" "envoyfilters.networking"
    "gateways.networking" "peerauthentications.security" "proxyconfigs.networking"
    "requestauthentications.security" "serviceentries.networking" "sidecars.networking"
    "telemetries.telemetry" "trafficextensions.extensions" "virtualservices.networking"
    "wasmplugins.extensions" "workloadentries.networking" "workloadgroups.networking"
};

/// What the chart renders where an installation may want something else. A test counts them.
const IMAGE: &str = concat!("image: docker.io/weft/weft:", env!("CARGO_PKG_VERSION"), "\n");
const TRUST_DOMAIN: &str = "    trustDomain: cluster.local\n";
const ADOPT: &str = "- --adopt-istio-labels=false\n";
const LEVEL: &str = "- --log-level=info\n";

/// What users want to set without Helm; everything else is a value of the chart.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Settings {
    /// The image of agent and controller [default: the one of this version].
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Trust domain of all identities; only when there is no MeshConfig yet [default: cluster.local].
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Let Istio's opt-in labels take pods into the mesh as well.
    #[arg(long)]
    adopt_istio_labels: bool,
    /// Level of the log of agents and controller.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// The objects to install.
pub(super) struct Manifest {
    text: String,
}

impl Manifest {
    /// # Errors
    /// A setting cannot stand where it would be written.
    pub(super) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let Settings { image, trust_domain, adopt_istio_labels, log_level } = settings;
        let mut text = WEFT.to_owned();
        if let Some(image) = image {
            check("--image", image, "/:@._-")?;
            text = text.replace(IMAGE, &format!("image: {image}\n"));
        }
        if let Some(domain) = trust_domain {
            check("--trust-domain", domain, "._-")?;
            text = text.replace(TRUST_DOMAIN, &format!("    trustDomain: \"{domain}\"\n"));
        }
        if *adopt_istio_labels {
            text = text.replace(ADOPT, "- --adopt-istio-labels=true\n");
        }
        if let Some(level) = log_level {
            check("--log-level", level, "_=,:")?;
            text = text.replace(LEVEL, &format!("- --log-level={level}\n"));
        }
        Ok(Self { text })
    }

    /// As a file, with the definitions of Istio's kinds before it if wanted.
    pub(super) fn text(&self, definitions: bool) -> String {
        let before: String = DEFINITIONS
            .iter()
            .filter(|_| definitions)
            .map(|definition| format!("---\n{definition}"))
            .collect();
        before + &self.text
    }

    pub(super) fn objects(&self) -> anyhow::Result<Vec<Object>> {
        objects::parse(&self.text)
    }
}

/// Definitions of Istio's kinds.
pub(super) fn definitions() -> anyhow::Result<Vec<Object>> {
    let mut all = Vec::new();
    for text in DEFINITIONS {
        all.extend(objects::parse(text)?);
    }
    Ok(all)
}

/// Values are written into YAML: letters, digits and what their format has.
fn check(option: &str, value: &str, marks: &str) -> anyhow::Result<()> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || marks.contains(c);
    ensure!(!value.is_empty() && value.chars().all(is_legal), "{option}: `{value}` is not possible");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(settings: &Settings) -> Vec<Object> {
        Manifest::new(settings).unwrap().objects().unwrap()
    }

    #[test]
    fn everything_that_can_be_set_stands_in_the_manifest() {
        for (place, times) in [(IMAGE, 3), (TRUST_DOMAIN, 1), (ADOPT, 2), (LEVEL, 2)] {
            assert_eq!(WEFT.matches(place).count(), times, "{place}");
        }
    }

    #[test]
    fn settings_are_found_again() {
        let settings = Settings {
            image: Some("registry.example:5000/mesh/weft@sha256:abc".into()),
            trust_domain: Some("corp.example".into()),
            adopt_istio_labels: true,
            log_level: Some("info,weft_proxy=debug".into()),
        };
        let text = Manifest::new(&settings).unwrap().text(false);
        for (place, times) in [
            ("image: registry.example:5000/mesh/weft@sha256:abc\n", 3),
            ("trustDomain: \"corp.example\"\n", 1),
            ("--adopt-istio-labels=true\n", 2),
            ("--log-level=info,weft_proxy=debug\n", 2),
        ] {
            assert_eq!(text.matches(place).count(), times, "{place}");
        }
        assert_eq!(manifest(&settings).len(), manifest(&Settings::default()).len());
    }

    #[test]
    fn a_setting_cannot_add_anything_else() {
        for image in ["", "a b", "a\nb: c", "a\"", "{}"] {
            let settings = Settings { image: Some(image.into()), ..Settings::default() };
            assert!(Manifest::new(&settings).is_err(), "{image:?}");
        }
    }

    #[test]
    fn the_namespace_comes_first_and_every_object_has_a_name() {
        let objects = manifest(&Settings::default());
        assert_eq!(objects[0].to_string(), "Namespace weft-system");
        let kinds: Vec<_> = objects.iter().map(Object::kind).collect();
        for kind in ["DaemonSet", "Deployment", "Service", "ClusterRole", "ValidatingWebhookConfiguration"] {
            assert!(kinds.contains(&kind), "{kind}");
        }
        assert_eq!(definitions().unwrap().len(), 15);
        assert!(definitions().unwrap().iter().all(|object| object.kind() == "CustomResourceDefinition"));
    }
}

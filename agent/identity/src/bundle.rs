//! PEM texts with one or several certificates, as CAs and operators hand them over.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// One certificate of a PEM text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    /// From its first line to its last one, with a newline at the end.
    pub(crate) pem: String,
    pub(crate) der: CertificateDer<'static>,
}

impl Block {
    pub(crate) fn parse(&self) -> Result<X509Certificate<'_>, String> {
        let (_, certificate) =
            x509_parser::parse_x509_certificate(&self.der).map_err(|error| error.to_string())?;
        Ok(certificate)
    }
}

/// All certificates of a text, in their order; anything else in it is skipped.
pub(crate) fn blocks(text: &str) -> Result<Vec<Block>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(BEGIN) {
        let Some((body, next)) = after.split_once(END) else {
            return Err("a certificate has no end line".to_owned());
        };
        let pem = format!("{BEGIN}{body}{END}\n");
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
        let block = Block { pem, der };
        block.parse()?;
        found.push(block);
        rest = next;
    }
    Ok(found)
}

/// The certificates of several texts, each once, in their order.
pub(crate) fn merged(texts: &[&str]) -> Result<Vec<Block>, String> {
    let mut all: Vec<Block> = Vec::new();
    for text in texts {
        for block in blocks(text)? {
            if !all.iter().any(|known| known.der == block.der) {
                all.push(block);
            }
        }
    }
    Ok(all)
}

/// One PEM text of them all.
pub(crate) fn text(blocks: &[Block]) -> String {
    blocks.iter().map(|block| block.pem.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn certificates_are_found_in_any_surroundings_and_each_once() {
        let (one, two) = (TestCa::new().root_pem(), TestCa::new().root_pem());
        let joined = format!("# first\r\n{}{}", one.trim_end(), two.replace('\n', "\r\n"));
        assert_eq!(blocks(&joined).unwrap().len(), 2);
        let all = merged(&[&joined, &one, &two]).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(merged(&[&text(&all)]).unwrap(), all, "what is written can be read");
        assert_eq!(blocks("nothing").unwrap(), []);
    }

    #[test]
    fn damage_is_named() {
        let one = TestCa::new().root_pem();
        assert!(blocks(one.split_at(100).0).unwrap_err().contains("no end line"));
        for bad in [format!("{BEGIN}\n!\n{END}\n"), format!("{BEGIN}\nAAAA\n{END}\n")] {
            blocks(&bad).unwrap_err();
        }
    }
}

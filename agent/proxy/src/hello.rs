//! The server name that a TLS client asks for, read without taking part in the handshake (V-30).

use std::future::poll_fn;

use rustls::server::Acceptor;
use tokio::time::timeout;

use crate::ProxyConfig;
use crate::http::io::Transport;

/// A ClientHello that is longer is not waited for.
const LONGEST: usize = 16 * 1024;

/// Reads ahead until the ClientHello is there. `None` where the client does not speak TLS, names no server, or says
/// nothing for as long as a handshake may take.
pub(crate) async fn server_name(client: &mut Transport, config: &ProxyConfig) -> Option<String> {
    let name = async {
        loop {
            match parse(client.first_bytes()) {
                Hello::Name(name) => return name,
                Hello::Incomplete => {}
            }
            match poll_fn(|cx| client.poll_more(cx)).await {
                Ok(true) if client.first_bytes().len() <= LONGEST => {}
                Ok(_) | Err(_) => return None,
            }
        }
    };
    timeout(config.handshake_timeout, name).await.ok().flatten()
}

#[derive(Debug, PartialEq, Eq)]
enum Hello {
    Incomplete,
    Name(Option<String>),
}

fn parse(mut bytes: &[u8]) -> Hello {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Hello::Name(None);
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Hello::Name(accepted.client_hello().server_name().map(str::to_owned));
            }
            Ok(None) => {}
            Err(_) => return Hello::Name(None),
        }
    }
    Hello::Incomplete
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client =
            ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_name_is_known_with_the_last_byte_of_the_hello() {
        let bytes = hello("shop.example.com");
        for length in [0, 1, 5, bytes.len() / 2, bytes.len() - 1] {
            assert_eq!(parse(&bytes[..length]), Hello::Incomplete, "{length} bytes");
        }
        assert_eq!(parse(&bytes), Hello::Name(Some("shop.example.com".into())));
    }

    #[test]
    fn an_address_is_no_name_and_other_protocols_have_none() {
        assert_eq!(parse(&hello("10.0.0.1")), Hello::Name(None));
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n"), Hello::Name(None));
    }

    proptest! {
        /// Whatever arrives: an answer and no panic.
        #[test]
        fn any_bytes_have_an_answer(mut bytes in prop::collection::vec(any::<u8>(), 0..200), damage in 0..400_usize) {
            parse(&bytes);
            bytes = hello("shop.example.com");
            let at = damage % bytes.len();
            bytes[at] ^= 1 << (damage % 8);
            parse(&bytes);
        }
    }
}

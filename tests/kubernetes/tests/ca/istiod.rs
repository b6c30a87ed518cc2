//! istiod as the CA of our agents, and Istio's own clients at our CA.
#![allow(clippy::indexing_slicing, reason = "what a JSON value lacks is null")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use weft_core::Identity;
use weft_identity::csr_api::{NetworkCaClient, NetworkCaOptions};
use weft_identity::{CaClient, CertStore, IdentityError};
use weft_kubernetes_tests::{
    ISTIOD_AUDIENCE, ISTIOD_NAMESPACE, ISTIOD_SERVER_NAME, Istiod, IstiodBinary, IstiodOptions, istiod_roots,
};

use super::world::{AGENT_A, Controller, Token, World, background_runtime, csr, identity};
use super::{LIMIT, connect};

#[test]
fn istiod_as_a_peer() -> Result<()> {
    let Some(binary) = IstiodBinary::find()? else { return Ok(()) };
    let Some(world) = World::start()? else { return Ok(()) };
    its_ca_serves_our_agents(&world, &binary).context("istiod's CA serves our agents")?;
    our_ca_serves_its_clients(&world, &binary).context("our CA serves istiod's clients")
}

/// An istiod that takes our agents for its node proxies.
struct Peer<'w> {
    world: &'w World,
    istiod: Istiod,
    root_file: PathBuf,
}

impl<'w> Peer<'w> {
    fn start(world: &'w World, binary: &IstiodBinary) -> Result<Self> {
        world
            .plane
            .apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {ISTIOD_NAMESPACE}}}}}"))?;
        let trusted_accounts = "weft-system/weft-agent";
        let options = IstiodOptions { root_namespace: ISTIOD_NAMESPACE, trusted_accounts, mesh: "" };
        let istiod = Istiod::start(binary, &world.plane, world.scope(), &options)?;
        let root_file = world.write("istiod-root.pem", &istiod_roots(&world.plane)?)?;
        Ok(Self { world, istiod, root_file })
    }

    /// The client of an agent that holds this token, with the options of `weft agent`.
    fn client(&self, token: Token<'_>) -> Result<NetworkCaClient> {
        let name = format!("token-{}-{}-{}", token.namespace, token.pod, token.audience);
        Ok(NetworkCaClient::new(NetworkCaOptions {
            address: format!("https://{}", self.istiod.secure_address()),
            token_file: self.world.write(&name, &self.world.token(token)?)?,
            root_file: self.root_file.clone(),
            server_name: Some(ISTIOD_SERVER_NAME.to_owned()),
            cluster_id: "Kubernetes".to_owned(),
            lifetime: Duration::ZERO,
        })?)
    }
}

fn its_ca_serves_our_agents(world: &World, binary: &IstiodBinary) -> Result<()> {
    let peer = Peer::start(world, binary)?;
    let (runtime, _ends) = background_runtime()?;
    let agent = Token { audience: ISTIOD_AUDIENCE, ..AGENT_A };
    let (cart, store) = (identity("shop", "cart"), identity("shop", "store"));

    // The whole way of an agent's certificate, and mTLS with what came of it, between two nodes.
    let wanted = [(agent, &cart), (Token { pod: "weft-agent-b", ..agent }, &store)];
    let mut ends = Vec::new();
    for (token, identity) in wanted {
        let certificates = CertStore::new(Arc::new(peer.client(token)?), runtime.clone());
        certificates.follow_roots(&peer.root_file);
        certificates.want(BTreeSet::from([identity.clone()]));
        let served = runtime.block_on(certificates.wait(identity, LIMIT));
        ends.push(served.with_context(|| peer.istiod.log())?);
    }
    let [client, server] = ends.as_slice() else { bail!("two were asked for") };
    runtime.block_on(connect(client, server))?;

    let refused = |token: Token<'_>, wanted: &Identity| -> Result<()> {
        let client = peer.client(token)?;
        match runtime.block_on(client.sign(&csr(), wanted)) {
            Err(IdentityError::Refused(_)) => Ok(()),
            other => bail!("{wanted} for {token:?}: {other:?}"),
        }
    };
    // Of another node, of no pod, of another audience, of somebody who is no node proxy.
    refused(agent, &store)?;
    refused(agent, &identity("shop", "nobody"))?;
    refused(AGENT_A, &cart)?;
    refused(Token { namespace: "shop", account: "cart", pod: "cart", ..agent }, &identity("shop", "outside"))
}

/// What an Istio client is asked to do.
struct Request<'a> {
    like: &'a str,
    key: &'a str,
    token: &'a str,
    identity: &'a Identity,
}

fn our_ca_serves_its_clients(world: &World, binary: &IstiodBinary) -> Result<()> {
    let controller = world.controller("peers", &[])?;
    controller.wait_ready()?;
    let (cart, store) = (identity("shop", "cart"), identity("shop", "store"));
    let own = world.token(Token { namespace: "shop", account: "cart", pod: "cart", ..AGENT_A })?;
    let node = world.token(AGENT_A)?;
    let istio = world.token(Token { audience: ISTIOD_AUDIENCE, ..AGENT_A })?;
    for (like, key, token) in [
        ("agent", "rsa", &own),
        ("agent", "ecdsa", &own),
        ("ztunnel", "ecdsa", &node),
        ("ztunnel", "rsa", &node),
    ] {
        let request = Request { like, key, token, identity: &cart };
        let answer = ask(&controller, binary, &request).with_context(|| format!("{like} with {key}"))?;
        ensure!(answer["identity"] == cart.to_string() && answer["roots"] == 1, "{answer}");
        let lifetime = answer["lifetime_seconds"].as_f64().unwrap_or_default();
        ensure!((3600.0..=2.0 * 86_400.0).contains(&lifetime), "{answer}");
    }
    for (like, token, identity, reason) in [
        ("agent", &own, &store, "sa/store`, but spiffe://cluster.local/ns/shop/sa/cart is asked for"),
        ("ztunnel", &node, &store, "is assigned to node node-a"),
        ("ztunnel", &istio, &cart, "is invalid for the target audiences"),
    ] {
        let request = Request { like, key: "ecdsa", token, identity };
        let Err(refusal) = ask(&controller, binary, &request) else { bail!("{like} got {identity}") };
        ensure!(refusal.to_string().contains(reason), "expected `{reason}`, got: {refusal}");
    }
    Ok(())
}

fn ask(controller: &Controller<'_>, binary: &IstiodBinary, request: &Request<'_>) -> Result<Value> {
    let Request { like, key, token, identity } = request;
    let token_file = controller.token_file(token).display().to_string();
    let (address, identity) = (format!("127.0.0.1:{}", controller.port), identity.to_string());
    let root_file = controller.root_file().display().to_string();
    let who = ["--like", like, "--key", key, "--identity", &identity, "--token-file", &token_file];
    let whom = ["--address", &address, "--server-name", controller.name(), "--root-file", &root_file];
    binary.ask(&[&["csr"], &who[..], &whom[..]].concat())
}

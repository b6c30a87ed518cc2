//! Certificates on a cluster: `weft controller` and our client of it, with the tokens, Secrets and ConfigMaps of a
//! real API server.

mod istiod;
mod jwt;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_core::Identity;
use weft_identity::tls::Hbone;
use weft_identity::{CaClient, CaMaterial, CertStore, IdentityError};
use weft_lab::poll_until;

use jwt::Claims;
use world::{AGENT_A, Controller, LIMIT, Token, World, csr, identity};

#[test]
fn certificates_on_a_cluster() -> Result<()> {
    let Some(world) = World::start()? else { return Ok(()) };
    two_controllers_make_one_ca(&world).context("two controllers make one CA")?;
    a_restart_keeps_the_ca(&world).context("a restart keeps the CA")?;
    an_agent_gets_what_its_node_has(&world).context("an agent gets what its node has")?;
    each_refusal_has_its_own_words(&world).context("each refusal has its own words")?;
    tokens_run_out(&world).context("tokens run out")?;
    a_deleted_pod_has_no_say(&world).context("a deleted pod has no say")?;
    a_deleted_secret_comes_back(&world).context("a deleted Secret comes back")?;
    a_damaged_secret_is_never_replaced(&world).context("a damaged secret is never replaced")?;
    an_intermediate_of_cert_manager_serves(&world).context("an intermediate of cert-manager serves")?;
    a_rotation_breaks_no_connection(&world).context("a rotation breaks no connection")?;
    an_outage_is_not_felt(&world).context("an outage is not felt")?;
    an_api_server_that_is_away_is_no_refusal(&world).context("an API server that is away is no refusal")
}

/// Asks a controller once.
fn ask(controller: &Controller<'_>, token: &str, wanted: &Identity) -> Result<(), IdentityError> {
    let client = controller.client(token, Duration::ZERO);
    controller.runtime.block_on(async { client.sign(&csr(), wanted).await }).map(drop)
}

fn refusal(controller: &Controller<'_>, token: &str, wanted: &Identity) -> Result<String> {
    match ask(controller, token, wanted) {
        Err(IdentityError::Refused(reason)) => Ok(reason),
        other => bail!("{other:?}\n{}", controller.log()),
    }
}

fn two_controllers_make_one_ca(world: &World) -> Result<()> {
    let controllers = [world.controller("race", &[])?, world.controller("race", &[])?];
    for controller in &controllers {
        controller.wait_ready()?;
    }
    let root = world.root("race")?;
    let token = world.token(AGENT_A)?;
    for controller in &controllers {
        let client = controller.client(&token, Duration::ZERO);
        let signed =
            controller.runtime.block_on(async { client.sign(&csr(), &identity("shop", "cart")).await })?;
        ensure!(signed.roots_pem.concat() == root, "both hand out the one root");
    }
    let made = controllers.iter().filter(|one| one.log().contains("a new CA")).count();
    ensure!(made == 1, "{made} controllers say that they made the CA");
    Ok(())
}

fn a_restart_keeps_the_ca(world: &World) -> Result<()> {
    let before = world.root("race")?;
    let controller = world.controller("race", &[])?;
    controller.wait_ready()?;
    ensure!(!controller.log().contains("a new CA"));
    ask(&controller, &world.token(AGENT_A)?, &identity("shop", "cart"))?;
    ensure!(world.root("race")? == before);
    // Somebody else's ConfigMap is put right.
    world.plane.kubectl(&["delete", "configmap", "weft-ca-root-cert", "-n", "race"])?;
    poll_until(LIMIT, || {
        world.root("race").and_then(|root| {
            ensure!(root == before);
            Ok(())
        })
    })
}

fn an_agent_gets_what_its_node_has(world: &World) -> Result<()> {
    let controller = world.controller("issue", &[])?;
    controller.wait_ready()?;
    let token = world.token(AGENT_A)?;
    ask(&controller, &token, &identity("shop", "cart"))?;
    // Everybody gets his own.
    ask(&controller, &token, &identity("weft-system", "weft-agent"))?;
    ask(
        &controller,
        &world.token(Token { account: "cart", namespace: "shop", pod: "cart", ..AGENT_A })?,
        &identity("shop", "cart"),
    )?;
    let audit = controller.log();
    for expected in
        ["certificate issued", "node-a", "weft-system/weft-agent (weft-agent-a)", "sa/cart", "serial"]
    {
        ensure!(audit.contains(expected), "{expected} is missing in the audit log: {audit}");
    }
    ensure!(!audit.contains(&token), "no token is ever logged");
    let metrics = controller.metrics()?;
    for expected in
        ["weft_ca_requests_total{result=\"issued\"} 3", "weft_ca_roots 1", "weft_ca_secret_failed 0"]
    {
        ensure!(metrics.contains(expected), "{expected} is missing: {metrics}");
    }
    Ok(())
}

fn each_refusal_has_its_own_words(world: &World) -> Result<()> {
    let controller = world.controller("issue", &[])?;
    controller.wait_ready()?;
    let cart = identity("shop", "cart");
    let agent = world.token(AGENT_A)?;
    let wrong_audience = world.token(Token { audience: "istio-ca", ..AGENT_A })?;
    let other_node = world.token(Token { pod: "weft-agent-b", ..AGENT_A })?;
    let unbound =
        world.plane.kubectl(&["create", "token", "weft-agent", "-n", "weft-system", "--audience=weft-ca"])?;
    let untrusted = world.token(Token { account: "cart", namespace: "shop", pod: "cart", ..AGENT_A })?;
    for (token, wanted, expected) in [
        (wrong_audience.as_str(), &cart, "is invalid for the target audiences"),
        (
            &other_node,
            &cart,
            "no pod of the mesh with identity spiffe://cluster.local/ns/shop/sa/cart is assigned to node node-b",
        ),
        (&agent, &identity("shop", "store"), "sa/store is assigned to node node-a"),
        (&agent, &identity("shop", "nobody"), "sa/nobody is assigned to node node-a"),
        (&agent, &identity("shop", "outside"), "sa/outside is assigned to node node-a"),
        (unbound.trim(), &cart, "does not say on which node it is used"),
        (&untrusted, &identity("shop", "store"), "shop/cart may only have its own identity"),
        ("garbage", &cart, "the token is refused"),
        (
            &agent,
            &Identity::new("other.example", "shop", "cart"),
            "no pod of the mesh with identity spiffe://other.example",
        ),
    ] {
        let reason = refusal(&controller, token, wanted)?;
        ensure!(reason.contains(expected), "expected `{expected}`, got: {reason}");
    }
    let audit = controller.log();
    ensure!(audit.matches("certificate refused").count() == 9, "{audit}");
    Ok(())
}

fn tokens_run_out(world: &World) -> Result<()> {
    let controller = world.controller("issue", &[])?;
    controller.wait_ready()?;
    let cart = identity("shop", "cart");
    let sign = |change: &dyn Fn(&mut Claims)| world.forge(AGENT_A, change);
    ask(&controller, &sign(&|_| {})?, &cart).context("a token as the API server makes it")?;
    let hour = 3600;
    for (token, expected) in [
        (
            sign(&|claims| {
                claims.issued -= 2 * hour;
                claims.expires -= 2 * hour;
            })?,
            "token has expired",
        ),
        (
            sign(&|claims| {
                claims.issued += hour;
                claims.expires += hour;
            })?,
            "not valid yet",
        ),
        (
            sign(&|claims| claims.pod_uid = "00000000-0000-0000-0000-000000000000".to_owned())?,
            "does not match service account pod ref claim",
        ),
        (world.forge_with_other_key(AGENT_A)?, "invalid"),
    ] {
        let reason = refusal(&controller, &token, &cart)?;
        ensure!(reason.contains(expected), "expected `{expected}`, got: {reason}");
    }
    Ok(())
}

fn a_deleted_pod_has_no_say(world: &World) -> Result<()> {
    let controller = world.controller("issue", &[])?;
    controller.wait_ready()?;
    world.pod("weft-system", "weft-agent-old", ("weft-agent", "node-a"), "10.1.0.9", false)?;
    let token = world.token(Token { pod: "weft-agent-old", ..AGENT_A })?;
    let cart = identity("shop", "cart");
    ask(&controller, &token, &cart)?;
    world.plane.kubectl(&[
        "delete",
        "pod",
        "weft-agent-old",
        "-n",
        "weft-system",
        "--force",
        "--grace-period=0",
    ])?;
    // Its review is remembered for some seconds.
    let reason = poll_until(LIMIT, || refusal(&controller, &token, &cart))?;
    ensure!(reason.contains("invalidated"), "{reason}");
    Ok(())
}

fn a_damaged_secret_is_never_replaced(world: &World) -> Result<()> {
    world.namespace("damaged")?;
    let made = CaMaterial::generate("cluster.local")?;
    let other = CaMaterial::generate("cluster.local")?;
    let damaged = CaMaterial { key_pem: other.key_pem.clone(), ..made.clone() };
    world.put_secret("damaged", &damaged)?;
    let before = world.secret("damaged")?;
    let mut controller = world.controller("damaged", &[])?;
    controller.process().wait(LIMIT)?;
    let log = controller.log();
    ensure!(
        log.contains("damaged/weft-ca is not usable") && log.contains("does not belong to the key"),
        "{log}"
    );
    ensure!(world.secret("damaged")? == before);
    // Damage while it runs: what was there before serves on.
    world.put_secret("damaged", &made)?;
    let controller = world.controller("damaged", &[])?;
    controller.wait_ready()?;
    world.put_secret("damaged", &damaged)?;
    poll_until(LIMIT, || {
        ensure!(controller.metrics()?.contains("weft_ca_secret_failed 1"));
        Ok(())
    })?;
    ask(&controller, &world.token(AGENT_A)?, &identity("shop", "cart"))?;
    Ok(())
}

/// Nobody can take the CA from running controllers by deleting its Secret, also while they do not see it.
fn a_deleted_secret_comes_back(world: &World) -> Result<()> {
    world.namespace("deleted")?;
    let controllers = [world.controller("deleted", &[])?, world.controller("deleted", &[])?];
    for controller in &controllers {
        controller.wait_ready()?;
    }
    let (before, root) = (world.secret("deleted")?, world.root("deleted")?);
    let delete = || world.plane.kubectl(&["delete", "secret", "weft-ca", "-n", "deleted"]);
    let is_back = || {
        poll_until(LIMIT, || {
            ensure!(world.secret("deleted")? == before, "another key was made");
            Ok(())
        })
        .with_context(|| controllers.iter().map(|one| one.log()).collect::<String>())
    };
    delete()?;
    is_back()?;
    poll_until(LIMIT, || {
        let texts: Vec<String> = controllers.iter().map(|one| one.metrics()).collect::<Result<_>>()?;
        let restored = texts.iter().filter(|text| text.contains("weft_ca_secret_restored_total 1")).count();
        ensure!(restored == 1, "{restored} controllers say that they put it back");
        ensure!(texts.iter().all(|text| text.contains("weft_ca_secret_failed 0")), "it is still missed");
        let events = world.plane.kubectl(&["get", "events.events.k8s.io", "-n", "deleted", "-o", "yaml"])?;
        ensure!(events.contains("reason: Restored") && events.contains("name: weft-ca"), "{events}");
        Ok(())
    })?;

    // Deleted while watches are being opened again.
    world.plane.kill_api_server();
    world.plane.start_api_server()?;
    delete()?;
    is_back()?;
    for controller in &controllers {
        ask(controller, &world.token(AGENT_A)?, &identity("shop", "cart"))?;
    }
    ensure!(world.root("deleted")? == root);

    // Who replaces it by deleting it first is not in the way of himself.
    let made = CaMaterial::generate("cluster.local")?;
    delete()?;
    world.put_secret("deleted", &made)?;
    poll_until(LIMIT, || {
        ensure!(world.root("deleted")? == made.roots_pem, "the new root is not handed out");
        Ok(())
    })
}

fn an_intermediate_of_cert_manager_serves(world: &World) -> Result<()> {
    world.namespace("certmanager")?;
    let root = world.put_intermediate("certmanager")?;
    let controller = world.controller("certmanager", &[])?;
    controller.wait_ready()?;
    ensure!(world.root("certmanager")? == root);
    let store = controller.store(&world.token(AGENT_A)?, Duration::ZERO);
    let hbone = controller.runtime.block_on(wait(&store))?;
    controller.runtime.block_on(connect(&hbone, &hbone)).map(drop)
}

const CART: (&str, &str) = ("shop", "cart");

async fn wait(store: &CertStore) -> Result<Arc<Hbone>> {
    let cart = identity(CART.0, CART.1);
    store.want(BTreeSet::from([cart.clone()]));
    Ok(store.wait(&cart, LIMIT).await?)
}

type Ends = (
    tokio_rustls::client::TlsStream<tokio::io::DuplexStream>,
    tokio_rustls::server::TlsStream<tokio::io::DuplexStream>,
);

/// A connection of two workloads.
async fn connect(client: &Hbone, server: &Hbone) -> Result<Ends> {
    let (near, far) = tokio::io::duplex(65_536);
    let name = rustls_pki_types::ServerName::try_from("10.0.0.1")?;
    let dialling = TlsConnector::from(client.client(server.identity())).connect(name, near);
    let accepting = TlsAcceptor::from(server.server()).accept(far);
    let (dialled, accepted) = tokio::join!(dialling, accepting);
    let mut ends = (dialled?, accepted?);
    echo(&mut ends).await?;
    Ok(ends)
}

async fn echo((client, server): &mut Ends) -> Result<()> {
    let mut bytes = [0; 5];
    client.write_all(b"hello").await?;
    client.flush().await?;
    server.read_exact(&mut bytes).await?;
    server.write_all(&bytes).await?;
    server.flush().await?;
    client.read_exact(&mut bytes).await?;
    ensure!(&bytes == b"hello");
    Ok(())
}

/// The order of the handbook: publish both roots, wait, switch the CA, wait, remove the old root.
fn a_rotation_breaks_no_connection(world: &World) -> Result<()> {
    let controller = world.controller("rotation", &["--cert-lifetime=120"])?;
    controller.wait_ready()?;
    let (old, new) = (world.material("rotation")?, CaMaterial::generate("cluster.local")?);
    let both = format!("{}{}", old.roots_pem, new.roots_pem);
    let token = world.token(AGENT_A)?;
    let store = |controller: &Controller<'_>| controller.store(&token, Duration::from_secs(120));
    let early = store(&controller);
    controller.runtime.block_on(async {
        let before = wait(&early).await?;
        let mut oldest = connect(&before, &before).await?;

        world.put_secret("rotation", &CaMaterial { roots_pem: both.clone(), ..old.clone() })?;
        poll_until(LIMIT, || {
            ensure!(world.root("rotation")? == both);
            Ok(())
        })?;
        controller.update_root_file(&both)?;
        trusted(&early, 2).await?;

        world.put_secret("rotation", &CaMaterial { roots_pem: both.clone(), ..new.clone() })?;
        let end = Instant::now() + LIMIT;
        while !controller.signs_with(&new, &token).await? {
            ensure!(Instant::now() < end, "the CA is not switched: {}", controller.log());
        }
        // A node that starts now.
        let late_store = store(&controller);
        let late = wait(&late_store).await?;
        connect(&before, &late).await?;
        connect(&late, &before).await?;

        world.put_secret("rotation", &new)?;
        poll_until(LIMIT, || {
            ensure!(world.root("rotation")? == new.roots_pem);
            Ok(())
        })?;
        controller.update_root_file(&new.roots_pem)?;
        trusted(&early, 1).await?;
        trusted(&late_store, 1).await?;
        let renewed = early.get(&identity(CART.0, CART.1))?;
        connect(&renewed, &late).await?;
        connect(&late, &renewed).await?;
        ensure!(connect(&renewed, &before).await.is_err(), "the old root is trusted no more");
        echo(&mut oldest).await.context("a connection from before the rotation")
    })
}

/// Waits until a store trusts so many roots.
async fn trusted(store: &CertStore, number: usize) -> Result<()> {
    let mut changes = store.subscribe();
    let end = Instant::now() + LIMIT;
    while store.trusted_roots().len() != number {
        let left = end.saturating_duration_since(Instant::now());
        let roots = || format!("{:?}", store.trusted_roots());
        tokio::time::timeout(left, changes.changed()).await.with_context(roots)??;
    }
    Ok(())
}

/// Certificates of a minute, and a CA that is away for a while (ruling 23).
fn an_outage_is_not_felt(world: &World) -> Result<()> {
    let mut controller = world.controller("outage", &["--cert-lifetime=60"])?;
    controller.wait_ready()?;
    let store = controller.store(&world.token(AGENT_A)?, Duration::from_secs(60));
    let runtime = controller.runtime.clone();
    let cart = identity(CART.0, CART.1);
    let before = runtime.block_on(wait(&store))?;
    controller.process().kill();
    // The renewal at half life fails; what there is serves on.
    let failed = || {
        ensure!(store.infos().iter().any(|info| info.error.is_some()));
        Ok(())
    };
    runtime.block_on(async { until(&store, failed).await })?;
    let error = store.infos().into_iter().find_map(|info| info.error).context("an error")?;
    ensure!(error.contains("cannot be reached") && error.contains("refused"), "{error}");
    ensure!(Arc::ptr_eq(&before, &store.get(&cart)?));
    let again = world.controller_on("outage", controller.port, &["--cert-lifetime=60"])?;
    again.wait_ready()?;
    let renewed = || {
        ensure!(!Arc::ptr_eq(&before, &store.get(&cart)?));
        Ok(())
    };
    runtime.block_on(async { until(&store, renewed).await })?;
    ensure!(store.infos().iter().all(|info| info.error.is_none()));
    Ok(())
}

async fn until(store: &CertStore, done: impl Fn() -> Result<()>) -> Result<()> {
    let mut changes = store.subscribe();
    let end = Instant::now() + LIMIT;
    loop {
        let Err(error) = done() else { return Ok(()) };
        let left = end.saturating_duration_since(Instant::now());
        if tokio::time::timeout(left, changes.changed()).await.is_err() {
            return Err(error);
        }
    }
}

fn an_api_server_that_is_away_is_no_refusal(world: &World) -> Result<()> {
    let controller = world.controller("outage", &[])?;
    controller.wait_ready()?;
    let (known, unknown) = (world.token(AGENT_A)?, world.token(Token { audience: "istio-ca", ..AGENT_A })?);
    let cart = identity("shop", "cart");
    world.plane.kill_api_server();
    let answer = ask(&controller, &unknown, &cart);
    ensure!(
        matches!(&answer, Err(IdentityError::Unavailable(why)) if why.contains("cannot be reviewed now")),
        "{answer:?}"
    );
    world.plane.start_api_server()?;
    poll_until(LIMIT, || ask(&controller, &known, &cart).map_err(Into::into))
}

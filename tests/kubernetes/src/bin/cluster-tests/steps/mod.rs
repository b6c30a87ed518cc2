//! What is tried, in this order.

mod commands;
mod enrol;
mod faults;
mod install;
mod outside;
mod pods;
mod strict;
mod travel;

use weft_kubernetes_tests::cluster::CgroupLook;

use crate::suite::Suite;
use install::Before;

/// The namespace of the applications.
const SHOP: &str = "shop";
/// A namespace that is never in the mesh.
const OUTSIDE: &str = "outside";

/// Runs all steps.
pub(crate) fn run(suite: &mut Suite, look: CgroupLook) {
    let mut before = Before::default();
    let foundation = suite.required("pods of both nodes reach each other", |cluster, _| pods::plain(cluster))
        && suite.required(
            "the manifest is applied, agents and controllers become ready",
            |cluster, manifest| {
                before = Before::of(cluster)?;
                install::apply(cluster, manifest)
            },
        );
    if !foundation {
        return;
    }
    suite.step("the label takes running pods in", |cluster, _| enrol::label(cluster));
    suite.step("a Service leads into the mesh", |cluster, _| pods::service(cluster));
    suite.step("metrics name both ends", |cluster, _| enrol::metrics(cluster));
    suite
        .step("the command line asks the agents through the API server", |cluster, _| commands::ask(cluster));
    suite.step("pods that stay outside keep their plain way and say why", |cluster, _| {
        outside::excluded(cluster)
    });
    suite.step("probes pass under STRICT, strangers do not", |cluster, _| strict::strict(cluster));
    suite.step("break-glass takes out a pod, a namespace and a node", |cluster, _| {
        outside::break_glass(cluster)
    });
    suite.step("new pods are protected from their first instruction", |cluster, _| {
        pods::first_instruction(cluster)
    });
    suite.step("a Job comes to its end", |cluster, _| pods::job(cluster));
    suite.step("a Deployment moves when its node is drained", |cluster, _| pods::drained(cluster));
    suite.step("without an agent pods of the mesh wait and others start", |cluster, _| {
        outside::no_agent(cluster)
    });
    suite.step("a node that is not selected any more is left as it was", |cluster, _| {
        outside::not_selected(cluster, &before.files)
    });
    suite.step("connections wait for an agent that was killed, and nothing was plain", |cluster, _| {
        faults::killed(cluster)
    });
    suite.step("agents are replaced, and no request fails", |cluster, _| faults::replaced(cluster));
    // Where cgroup2 has no controllers, kubelet does not start beside pods that run already.
    if look == CgroupLook::Machine {
        suite.step("kubelet is away for a while", |cluster, _| faults::kubelet(cluster));
    }
    suite.step("without the label pods are out again", |cluster, _| enrol::unlabel(cluster));
    suite.step("uninstall leaves the nodes as they were", |cluster, manifest| {
        install::remove(cluster, manifest, &before)
    });
}

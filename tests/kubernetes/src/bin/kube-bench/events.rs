//! What an API server tells in a cluster of 5,000 nodes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::objects::{NODES, PODS_PER_SERVICE, Stage, Templates};

/// Changes of pods in a second: 25 lives of pods end and begin.
const RATE: u32 = 100;
/// Pods that are between two lives at the same time, one of each Service.
const AT_ONCE: usize = 100;
/// A kubelet tells of its node at least so often.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// One after the other, as they come with each pod's end and the next one's beginning.
#[derive(Clone, Copy)]
enum Step {
    End,
    Bind,
    Run,
    Serve,
}

const LIFE: [Step; 4] = [Step::End, Step::Bind, Step::Run, Step::Serve];

/// Tells events until it is said to stop, and all pods are there again: of each life of a pod four changes of the
/// pod and two of its Service's EndpointSlice, and the heartbeats of the nodes. Gives changes of pods per second.
pub(crate) fn run(templates: &Templates, services: usize, stop: &AtomicBool) -> Result<f64> {
    let began = Instant::now();
    let mut told = Told::default();
    while !stop.load(Ordering::Relaxed) {
        for step in LIFE {
            for place in 0..AT_ONCE {
                let due = Duration::from_secs(told.pods) / RATE;
                std::thread::sleep(due.saturating_sub(began.elapsed()));
                told.pod(templates, (told.lives + place) % services, step)?;
                told.heartbeats(templates, began.elapsed())?;
            }
        }
        told.lives += AT_ONCE;
    }
    let changes = f64::from(u32::try_from(told.pods)?);
    Ok(changes / began.elapsed().as_secs_f64())
}

#[derive(Default)]
struct Told {
    pods: u64,
    lives: usize,
    heartbeats: usize,
}

impl Told {
    /// Brings the first pod of a Service one step on.
    fn pod(&mut self, templates: &Templates, service: usize, step: Step) -> Result<()> {
        let pod = service * PODS_PER_SERVICE;
        let writes = match step {
            Step::End => vec![templates.slice(service, true)?, Templates::no_pod(pod)],
            Step::Bind => vec![templates.pod(pod, Stage::Bound)?],
            Step::Run => vec![templates.pod(pod, Stage::Running)?],
            Step::Serve => vec![templates.pod(pod, Stage::Ready)?, templates.slice(service, false)?],
        };
        self.pods += 1;
        templates.write(&writes)
    }

    fn heartbeats(&mut self, templates: &Templates, elapsed: Duration) -> Result<()> {
        let all = f64::from(u32::try_from(NODES)?);
        while f64::from(u32::try_from(self.heartbeats)?)
            < all * elapsed.as_secs_f64() / HEARTBEAT.as_secs_f64()
        {
            templates.write(&[templates.node(self.heartbeats % NODES)?])?;
            self.heartbeats += 1;
        }
        Ok(())
    }
}

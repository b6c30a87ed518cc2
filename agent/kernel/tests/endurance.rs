//! What happens a thousand times.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests")]

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use aya::maps::{MapInfo, loaded_maps};
use aya::programs::loaded_programs;
use lab::{Lab, accept, eventually, pins};
use weft_kernel::Datapath;

/// What must be the same before and after: open files by what they are, pins, entries of maps.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    files: BTreeMap<String, usize>,
    pins: BTreeSet<PathBuf>,
    entries: Vec<(String, usize)>,
}

impl Held {
    fn now(lab: &Lab, datapath: &Datapath) -> Self {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
            // `socket:[4711]`, `anon_inode:bpf-map`, `net:[4026531840]`, or a path.
            let what = fs::read_link(entry.path()).map(|path| path.display().to_string()).unwrap_or_default();
            *files.entry(what.split('[').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        // The listing itself.
        files.retain(|what, _| !what.starts_with("/proc/"));
        let maps = datapath.maps().into_iter().chain(datapath.tuple_maps());
        Self {
            files,
            pins: pins(&lab.config.pin_dir),
            entries: maps.map(|map| (map.name, map.entries)).collect(),
        }
    }
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// The kernel's numbers of a pod's maps.
fn map_ids(lab: &Lab) -> Vec<u32> {
    let files = pins(&lab.pins_of_schema().join("pods"));
    let maps = files.iter().filter(|path| path.ends_with("STEER") || path.ends_with("LISTENERS"));
    maps.map(|path| MapInfo::from_pin(path).unwrap().id()).collect()
}

#[test]
fn a_thousand_enrolments_leave_nothing_behind() {
    let lab = Lab::new();
    let before = lab.b.state();
    let mut datapath = lab.open();
    let _a = datapath.enrol(&lab.a.to_enrol()).unwrap();
    let (view, without) = (lab.direct_view(&[80]), lab.view());
    let app = lab.b.listen("[::]:80".parse().unwrap());
    let (mut ids, stay) = (BTreeSet::new(), map_ids(&lab));
    let mut cycle = |datapath: &mut Datapath, round: usize| {
        let enrolled = datapath.enrol(&lab.b.to_enrol()).unwrap();
        datapath.apply(&view).unwrap();
        if round.is_multiple_of(20) {
            datapath.heartbeat().unwrap();
            ids.extend(map_ids(&lab).into_iter().filter(|id| !stay.contains(id)));
            let _direct = lab.a.connect(lab.b.at(80)).unwrap();
            accept(&app);
            let _proxied = lab.c.connect(lab.b.at6(80)).unwrap();
            accept(&enrolled.inbound[1]);
        }
        datapath.unenrol(&lab.b.key).unwrap();
        datapath.apply(&without).unwrap();
    };
    for round in 0..40 {
        cycle(&mut datapath, round);
    }
    eventually("flows of the beginning are over", || datapath.direct_flows().is_empty());
    let (held, memory) = (Held::now(&lab, &datapath), resident_bytes());
    for round in 0..1000 {
        cycle(&mut datapath, round);
    }
    eventually("flows are over", || datapath.direct_flows().is_empty());
    assert_eq!(Held::now(&lab, &datapath), held);
    assert_eq!(lab.b.state(), before);
    let grown = resident_bytes().saturating_sub(memory);
    assert!(grown < 8 << 20, "{grown} bytes more after a thousand enrolments");

    // The kernel frees what nobody refers to when all processors have moved on.
    assert!(ids.len() >= 100, "{}", ids.len());
    eventually("the maps of all enrolments are gone, and so is what used them", || {
        let maps = loaded_maps().flatten().filter(|map| ids.contains(&map.id())).count();
        let uses = |ids_of: Option<Vec<u32>>| ids_of.is_some_and(|of| of.iter().any(|id| ids.contains(id)));
        let programs = loaded_programs().flatten().filter(|p| uses(p.map_ids().ok().flatten())).count();
        maps + programs == 0
    });
}

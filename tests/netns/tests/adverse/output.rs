//! An agent whose output nobody reads any more.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weft_lab::{AgentOptions, output};
use weft_netns_tests::puppet::{Connect, Role};
use weft_netns_tests::{Family, Mesh};

use crate::{PATHS, PUPPET};

/// A pipe with a name that takes nothing more.
fn full_pipe(path: &Path) -> File {
    output("mkfifo", &[path.to_str().unwrap()]).unwrap();
    // Both ends at once, or opening waits for the other one.
    let mut pipe = OpenOptions::new().read(true).write(true).open(path).unwrap();
    loop {
        let mut polled = [PollFd::new(&pipe, PollFlags::OUT)];
        if poll(&mut polled, Some(&Timespec::default())).unwrap() == 0 {
            return pipe;
        }
        pipe.write_all(&[b'x'; 4096]).unwrap();
    }
}

#[test]
fn a_log_that_nobody_reads_stops_no_traffic() {
    let Some(mut mesh) = Mesh::usual(PUPPET) else { return };
    let servers: Vec<_> = PATHS.map(|(pod, _)| mesh.serve(pod, Role::Greet)).into();
    let (pipe, starter) = (mesh.lab().dir().join("nobody-reads"), mesh.lab().dir().join("start-weft"));
    let _unread = full_pipe(&pipe);
    // Commands are asked by the same name, and their answers are read.
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = agent ] && exec 2>'{0}'\nexec '{1}' \"$@\"\n",
        pipe.display(),
        mesh.lab().weft().display()
    );
    fs::write(&starter, script).unwrap();
    fs::set_permissions(&starter, Permissions::from_mode(0o755)).unwrap();
    let options = AgentOptions { binary: Some(starter), ..AgentOptions::default() };
    mesh.agent_mut("a").kill();
    mesh.start_agent_with("a", &options);
    mesh.wait_enrolled("a", &["client", "near", "seven"]);

    let mut client = mesh.puppet("client");
    for (pod, path) in PATHS {
        let connection = mesh.connect_by(&mut client, &Connect::to(mesh.target(Family::V4, pod)), path);
        assert_eq!(client.exchange(connection, 50_000), Ok(50_000), "{pod}");
    }
    drop(servers);
}

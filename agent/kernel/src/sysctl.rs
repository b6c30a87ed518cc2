//! Settings of a pod's network namespace without which marked connections lose their way.
//!
//! Each is a switch: it is on while the pod is enrolled, and as it was found afterwards.

use std::fs;
use std::io;

/// What an application's answer to an onward connection needs, in the order of the bits that remember them.
const SWITCHES: [&str; 3] = [
    // The accepted socket inherits the mark, so its answers are looped back to the agent.
    "/proc/sys/net/ipv4/tcp_fwmark_accept",
    // So does the reset of a port on which nobody listens.
    "/proc/sys/net/ipv4/fwmark_reflect",
    "/proc/sys/net/ipv6/fwmark_reflect",
];

/// Which switches are on in this thread's namespace, one bit each.
pub(crate) fn read() -> io::Result<u32> {
    let mut on = 0;
    for (bit, path) in SWITCHES.iter().enumerate() {
        match fs::read_to_string(path) {
            Ok(text) if text.trim() == "0" => {}
            Ok(_) => on |= 1 << bit,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(on)
}

/// Turns all switches on.
pub(crate) fn enable() -> io::Result<()> {
    restore(u32::MAX)
}

/// Whether all switches that exist are on.
pub(crate) fn enabled() -> io::Result<bool> {
    let existing = SWITCHES.iter().enumerate().filter(|(_, path)| fs::exists(path).unwrap_or(false));
    let all = existing.fold(0, |bits, (bit, _)| bits | 1 << bit);
    Ok(read()? == all)
}

/// Makes the switches as `on` says.
pub(crate) fn restore(on: u32) -> io::Result<()> {
    for (bit, path) in SWITCHES.iter().enumerate() {
        let value = if on & (1 << bit) == 0 { "0" } else { "1" };
        match fs::write(path, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

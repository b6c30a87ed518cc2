//! A process that lives in a pod and does with sockets what it is told on standard input.
#![forbid(unsafe_code)]

fn main() -> std::io::Result<()> {
    weft_netns_tests::puppet::play()
}

//! Programs that are attached once per node: `out4`, `out6`, `tuple`, `probe`, `name4`, `name6`.
#![no_std]
#![no_main]

#[path = "../runtime.rs"]
mod runtime;

#[path = "../maps.rs"]
mod maps;

#[path = "../maps_node.rs"]
mod maps_node;

#[path = "../name.rs"]
mod name;

#[path = "../out.rs"]
mod out;

#[path = "../tuple.rs"]
mod tuple;

//! The program that is attached to the network namespace of every enrolled pod.
#![no_std]
#![no_main]

#[path = "../runtime.rs"]
mod runtime;

#[path = "../maps.rs"]
mod maps;

#[path = "../steer.rs"]
mod steer;

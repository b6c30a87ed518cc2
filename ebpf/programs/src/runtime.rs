//! What every object needs besides its programs.

/// Helpers such as `bpf_sk_storage_get` are only given to programs with a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// A line in the agent's log when the objects were built with `debug-log`, nothing otherwise.
#[cfg(feature = "debug-log")]
macro_rules! debug_line {
    ($($argument:tt)*) => { aya_log_ebpf::debug!($($argument)*) };
}
#[cfg(not(feature = "debug-log"))]
macro_rules! debug_line {
    ($ctx:expr, $($argument:tt)*) => {
        let _ = $ctx;
    };
}
pub(crate) use debug_line;

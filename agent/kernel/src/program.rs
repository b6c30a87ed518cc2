//! The memory that the program itself takes.

use std::ffi::{c_int, c_void};
use std::io;
use std::ops::Range;

/// Takes those pages of the program out of this process that nobody can have written to: its code, and what its code
/// only reads.
///
/// To start, an agent runs through much code that it never needs again, and the kernel maps the neighbours of each page
/// as well. Whatever is still needed comes back by itself, from the page cache, where these pages stay for as long as
/// the machine has room for them; no other thread notices anything but that.
///
/// # Errors
/// The kernel refuses.
pub fn release_pages() -> io::Result<()> {
    advise(libc::MADV_DONTNEED)
}

fn advise(advice: c_int) -> io::Result<()> {
    for Range { start, end } in constant_parts() {
        let address = std::ptr::with_exposed_provenance_mut::<c_void>(start);
        // SAFETY: all pages of the range are private ones of the program's file that nothing can write to, and they
        // stay mapped as long as the process lives. Their content is that of the file, also after it was read anew.
        let result = unsafe { libc::madvise(address, end - start, advice) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Where the parts of the program are that are never written to, not even by the loader: whole pages of them.
fn constant_parts() -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    // SAFETY: the callback is called before this returns, and with the pointer to `parts`, which nothing else uses
    // meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(note_program), (&raw mut parts).cast()) };
    parts
}

/// Called by the loader for each object of the process, the program itself first.
unsafe extern "C" fn note_program(info: *mut libc::dl_phdr_info, _: usize, parts: *mut c_void) -> c_int {
    let page = rustix::param::page_size();
    // SAFETY: the loader gives a valid description, whose headers live as long as the process; `parts` is what
    // `constant_parts` has handed to the loader.
    let (info, headers, parts) = unsafe {
        let headers = std::slice::from_raw_parts((*info).dlpi_phdr, usize::from((*info).dlpi_phnum));
        (&*info, headers, &mut *parts.cast::<Vec<Range<usize>>>())
    };
    for header in
        headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
    {
        let start = info.dlpi_addr as usize + header.p_vaddr as usize;
        // At its edges a part may share a page with another one.
        let pages = start.next_multiple_of(page)..(start + header.p_memsz as usize) / page * page;
        if pages.start < pages.end {
            parts.push(pages);
        }
    }
    // No further objects.
    1
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Resident memory of the part at an address, in bytes.
    fn resident(part: &Range<usize>) -> usize {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let first = line.split_ascii_whitespace().next().unwrap_or_default();
            if let Some((start, end)) = first.split_once('-')
                && let (Ok(start), Ok(end)) =
                    (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                inside = start <= part.start && part.start < end;
            } else if let Some(kib) = line.strip_prefix("Rss:").filter(|_| inside) {
                return kib.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024;
            }
        }
        panic!("the part is not mapped");
    }

    #[test]
    fn released_pages_come_back_one_by_one() {
        let parts = constant_parts();
        let code = parts.iter().find(|part| part.contains(&(release_pages as fn() -> _ as usize)));
        let code = code.expect("the program's code is one of the parts");
        let size = code.end - code.start;
        // Tests beside this one use the program too, but not all of it at once.
        advise(libc::MADV_POPULATE_READ).unwrap();
        let full = resident(code);
        assert!(full > size * 9 / 10, "{full} bytes of {size} are there at first");
        release_pages().unwrap();
        let left = resident(code);
        assert!(left < size * 3 / 4, "{left} bytes of {size} are still there");
    }
}

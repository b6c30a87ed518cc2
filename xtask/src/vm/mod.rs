//! The tests of the kernel's half, on a kernel that is not this machine's.
//!
//! A virtual machine of QEMU gets a kernel, the modules that the tests need, and a file system in memory with the test
//! programs and the tools that they call. It runs them, says what came of it on its serial console, and ends.

mod archive;
mod kernel;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use self::archive::Archive;
use self::kernel::Kernel;
use crate::build::{cargo_command, target_dir};
use crate::test::{Counts, parse_result};
use crate::{ebpf, setup};

#[derive(Debug, Args)]
pub(crate) struct TestKernelArgs {
    /// A kernel (bzImage) in place of Debian's.
    #[arg(long, requires = "modules")]
    kernel: Option<PathBuf>,
    /// The directory of its modules.
    #[arg(long, requires = "kernel")]
    modules: Option<PathBuf>,
    /// Let the processor run the machine: much faster, where it can (`/dev/kvm` alone does not say that it can).
    #[arg(long)]
    kvm: bool,
    /// Debian's package of the kernel.
    #[arg(long, default_value = "linux-image-cloud-amd64")]
    package: String,
    /// Only tests whose name contains one of these.
    filters: Vec<String>,
}

/// Without `--kvm` every instruction is translated.
const PATIENCE: Duration = Duration::from_secs(90 * 60);
/// What the machine says when it is through with all tests.
const DONE: &str = "weft-vm: done";
/// Programs that tests and their set-up call.
const TOOLS: [&str; 4] = ["ip", "sysctl", "nsenter", "sleep"];

pub(crate) fn run(args: &TestKernelArgs) -> Result<bool> {
    if env::consts::ARCH != "x86_64" {
        bail!("the virtual machine is an x86-64 one, and this is {}", env::consts::ARCH);
    }
    setup::machines()?;
    ebpf::build()?;
    let directory = target_dir()?.join("vm");
    fs::create_dir_all(&directory)?;
    let kernel = match (&args.kernel, &args.modules) {
        (Some(image), Some(modules)) => Kernel { image: image.clone(), modules: modules.clone() },
        _ => kernel::of_debian(&args.package, &directory)?,
    };
    let tests = test_programs()?;
    let image = directory.join("initramfs");
    pack(&image, &kernel, &tests, &args.filters)?;
    println!("booting {}", kernel.image.display());
    let counts = watch(boot(&kernel.image, &image, args.kvm)?)?;
    let Counts { passed, failed, skipped } = counts;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(failed == 0 && passed > 0)
}

/// Builds the test programs of `weft-kernel`.
fn test_programs() -> Result<Vec<PathBuf>> {
    let args = ["test", "--locked", "--no-run", "--message-format", "json", "-p", "weft-kernel"];
    let output = cargo_command(&args)?.stderr(Stdio::inherit()).output().context("cargo cannot be run")?;
    if !output.status.success() {
        bail!("the tests of weft-kernel do not compile");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_test = |message: &Value| message.pointer("/profile/test").is_some_and(|test| test == true);
    let programs =
        messages.filter(is_test).filter_map(|message| Some(message.get("executable")?.as_str()?.into()));
    Ok(programs.collect())
}

/// Makes the file system in memory.
fn pack(image: &Path, kernel: &Kernel, tests: &[PathBuf], filters: &[String]) -> Result<()> {
    let mut archive = Archive::new();
    for directory in ["proc", "sys", "dev", "tmp", "run/netns", "cgroup", "etc", "root"] {
        archive.directory(Path::new(directory))?;
    }
    let busybox = setup::find("busybox").context("busybox was installed")?;
    archive.file(Path::new("bin/busybox"), &fs::read(busybox)?, 0o755)?;
    for tool in TOOLS {
        archive.program(&setup::find(tool).with_context(|| format!("{tool} is missing"))?)?;
    }
    let mut names = Vec::new();
    for (number, test) in tests.iter().enumerate() {
        let name = format!("tests/{number}");
        archive.libraries(test)?;
        archive.file(Path::new(&name), &stripped(test)?, 0o755)?;
        names.push(name);
    }
    let modules = kernel.add_modules(&mut archive)?;
    archive.file(Path::new("init"), init(&modules, &names, filters).as_bytes(), 0o755)?;
    fs::write(image, archive.finish()?).with_context(|| format!("cannot write {}", image.display()))
}

/// A program without what only a debugger reads.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let small = target_dir()?.join("vm/stripped");
    let status = Command::new("strip").arg("-o").arg(&small).arg(program).status();
    if !status.is_ok_and(|status| status.success()) {
        return Ok(fs::read(program)?);
    }
    Ok(fs::read(&small)?)
}

/// The first program of the machine. CI means that nothing is skipped.
fn init(modules: &[String], tests: &[String], filters: &[String]) -> String {
    let load: Vec<String> = modules.iter().map(|module| format!("insmod /{module}")).collect();
    let filters: Vec<String> = filters.iter().map(|filter| format!("'{filter}'")).collect();
    let run: Vec<String> =
        tests.iter().map(|test| format!("/{test} --test-threads=1 {} 2>&1", filters.join(" "))).collect();
    format!(
        "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmount -t proc proc /proc\nmount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\nmount -t tmpfs tmp /tmp\nmount -t tmpfs run /run\nmount -t cgroup2 none /cgroup\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin CI=true RUST_BACKTRACE=1\nulimit -n 65536\nip link set lo up\n\
         {}\nuname -r\n{}\necho '{DONE}'\npoweroff -f\n",
        load.join("\n"),
        run.join("\n")
    )
}

fn boot(kernel: &Path, initramfs: &Path, kvm: bool) -> Result<Child> {
    Command::new("qemu-system-x86_64")
        .args(["-accel", if kvm { "kvm" } else { "tcg,thread=multi" }])
        .args(["-cpu", "max", "-smp", "2", "-m", "3072", "-nographic", "-no-reboot", "-net", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64 cannot be run")
}

/// Passes on what the machine says until it ends, and sums what the tests report.
fn watch(mut machine: Child) -> Result<Counts> {
    let lines = lines(&mut machine)?;
    let until = Instant::now() + PATIENCE;
    let mut counts = Counts::default();
    let mut done = false;
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                done |= line.contains(DONE);
                parse_result(&line).into_iter().for_each(|found| counts.add(found));
                counts.skipped += u64::from(line.starts_with("SKIPPED"));
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = machine.kill();
                let _ = machine.wait();
                bail!("the machine is not through after {} minutes", PATIENCE.as_secs() / 60);
            }
        }
    }
    let status = machine.wait()?;
    if !done {
        bail!("the machine ended ({status}) before the tests did");
    }
    Ok(counts)
}

fn lines(machine: &mut Child) -> Result<Receiver<String>> {
    let output = machine.stdout.take().context("the output was asked for")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}

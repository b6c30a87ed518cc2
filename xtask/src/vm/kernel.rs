//! A kernel to boot: the one that is given, or one of Debian's packages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::archive::Archive;

/// What the tests need besides what every kernel has built in: links between namespaces, and looking at sockets.
const MODULES: [&str; 2] = ["veth", "tcp_diag"];

/// A kernel and its modules.
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// A directory with all of them.
    pub(super) modules: PathBuf,
}

/// Gets the kernel of a package that is not installed; what was fetched before is used again.
pub(super) fn of_debian(package: &str, directory: &Path) -> Result<Kernel> {
    let package = whole_package(package)?;
    let unpacked = directory.join(&package);
    if !unpacked.join("boot").is_dir() {
        fetch(&package, directory, &unpacked)?;
    }
    let first = |below: &str, prefix: &str| {
        let found = fs::read_dir(unpacked.join(below)).into_iter().flatten().flatten();
        let mut paths = found.map(|entry| entry.path());
        let wanted =
            |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
        paths.find(wanted).with_context(|| format!("{package} has no {below}/{prefix}…"))
    };
    let modules = first("lib/modules", "").or_else(|_| first("usr/lib/modules", ""))?;
    Ok(Kernel { image: first("boot", "vmlinuz")?, modules })
}

/// A name without a version depends on the package that has the kernel.
fn whole_package(package: &str) -> Result<String> {
    let text = output("apt-cache", &["depends", "--important", package])?;
    let depends = text.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    Ok(depends.map_or_else(|| package.to_owned(), |rest| format!("linux-image-{rest}")))
}

fn fetch(package: &str, directory: &Path, unpacked: &Path) -> Result<()> {
    println!("fetching {package}");
    let status = Command::new("apt-get")
        .args(["-q", "download", package])
        .current_dir(directory)
        .stdin(Stdio::null())
        .status()
        .context("apt-get cannot be run")?;
    let archives = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let prefix = format!("{package}_");
    let archive = archives
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    let Some(archive) = archive.filter(|_| status.success()) else {
        bail!("{package} cannot be fetched: apt-get update && apt-get download {package}");
    };
    let staging = unpacked.with_extension("new");
    let _ = fs::remove_dir_all(&staging);
    let paths = [archive.to_string_lossy(), staging.to_string_lossy()];
    output("dpkg-deb", &["-x", &paths[0], &paths[1]])?;
    fs::remove_file(archive)?;
    fs::rename(&staging, unpacked)?;
    Ok(())
}

fn output(program: &str, args: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("{program} cannot be run"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Kernel {
    /// Adds [`MODULES`] and what they depend on, uncompressed; gives the paths in the order of loading.
    pub(super) fn add_modules(&self, archive: &mut Archive) -> Result<Vec<String>> {
        let mut files = BTreeMap::new();
        list(&self.modules, &mut files)?;
        let mut loaded = Vec::new();
        for module in MODULES {
            add(module, &files, archive, &mut loaded)?;
        }
        Ok(loaded)
    }
}

/// A module after all on which it depends. One that is not there is built in, or the tests will miss it.
fn add(
    module: &str,
    files: &BTreeMap<String, PathBuf>,
    archive: &mut Archive,
    loaded: &mut Vec<String>,
) -> Result<()> {
    let path = format!("modules/{module}.ko");
    let Some(file) = files.get(module).filter(|_| !loaded.contains(&path)) else { return Ok(()) };
    let content = read_module(file)?;
    for needed in depends(&content) {
        add(&needed, files, archive, loaded)?;
    }
    archive.file(Path::new(&path), &content, 0o644)?;
    loaded.push(path);
    Ok(())
}

/// Every module below a directory, by name.
fn list(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            list(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

/// What section `.modinfo` says: strings that end with a zero, one of them `depends=a,b`.
fn depends(module: &[u8]) -> Vec<String> {
    let words = module.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok());
    let found = words.filter_map(|word| word.strip_prefix("depends="));
    found.flat_map(|list| list.split(',')).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn read_module(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let output = Command::new("xz").arg("-dc").arg(file).output().context("xz cannot be run")?;
    if !output.status.success() {
        bail!("{} cannot be unpacked", file.display());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_know_their_names_and_what_they_need() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/drivers/net/veth.ko"), Some("veth".to_owned()));
        assert_eq!(name("kernel/net/nf-tables.ko.xz"), Some("nf_tables".to_owned()));
        assert_eq!(name("modules.order"), None);
        let content = b"\x7fELF\0license=GPL\0depends=inet_diag,libcrc32c\0name=x\0";
        assert_eq!(depends(content), ["inet_diag", "libcrc32c"]);
        assert_eq!(depends(b"\0depends=\0"), Vec::<String>::new());
    }
}

//! Shared libraries in the image, and where they come from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A package of the distribution from which libraries were copied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// The distribution's statement of its licences.
    pub(super) copyright: PathBuf,
}

/// Copies what `binary` is linked to, at the paths where the loader looks; tells the packages that have it.
pub(super) fn install(binary: &Path, image: &Path) -> Result<Vec<Package>> {
    let mut packages = Vec::new();
    for library in linked(binary)? {
        let inside = library.strip_prefix("/").context("the path of a library is not absolute")?;
        let to = image.join(inside);
        fs::create_dir_all(to.parent().context("a library without a folder")?)?;
        fs::copy(&library, &to).with_context(|| format!("cannot copy {}", library.display()))?;
        packages.extend(owner(&library));
    }
    packages.sort();
    packages.dedup();
    Ok(packages)
}

fn linked(binary: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(binary).output().context("ldd cannot be run")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if text.contains("statically linked") {
        return Ok(Vec::new());
    }
    ensure!(out.status.success(), "ldd cannot read {}", binary.display());
    parse(&text)
}

/// `libm.so.6 => /lib/libm.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, `linux-vdso.so.1 (0x…)`.
fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.ends_with("not found") {
            bail!("a shared library is missing: {line}");
        }
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        let path = path.split(' ').next().unwrap_or(path);
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

/// The Debian package of a file; `None` on another distribution.
fn owner(library: &Path) -> Option<Package> {
    let real = fs::canonicalize(library).ok()?;
    // dpkg knows files of /usr/lib by the path at which the package had them, which may lack the /usr.
    let short = Path::new("/").join(real.strip_prefix("/usr").unwrap_or(&real));
    let name = [real.as_path(), short.as_path()].into_iter().find_map(|path| {
        let found = output(Command::new("dpkg").arg("-S").arg(path))?;
        found.split(':').next().map(str::to_owned)
    })?;
    let version = output(Command::new("dpkg-query").args(["-W", "-f=${Version}"]).arg(&name))?;
    // A package with several architectures installed is named once for each.
    let version = version.lines().next()?.to_owned();
    let copyright = Path::new("/usr/share/doc").join(&name).join("copyright");
    Some(Package { name, version, copyright })
}

fn output(command: &mut Command) -> Option<String> {
    let out = command.output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_loader_would_load() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x0)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse(text).unwrap(), expected.map(PathBuf::from));
        assert!(parse("\tlibfoo.so => not found\n").is_err());
    }
}

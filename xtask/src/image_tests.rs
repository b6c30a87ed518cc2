use super::*;

#[test]
fn the_dockerfile_makes_the_same_image() {
    let read = |name: &str| fs::read_to_string(root().unwrap().join(name)).unwrap();
    let (dockerfile, toolchain) = (read("deploy/Dockerfile"), read("rust-toolchain.toml"));
    let channel =
        toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    let (release, _) = channel.rsplit_once('.').unwrap();
    let config = config("").unwrap();
    let entry_point = config["config"]["Entrypoint"].to_string();
    for line in [
        format!("FROM rust:{release}-bookworm AS build"),
        "    apt-get update && cargo xtask image --files-only".to_owned(),
        "COPY --from=build /weft/target/image/files/ /".to_owned(),
        format!("ENV {}", config["config"]["Env"][0].as_str().unwrap()),
        format!("ENTRYPOINT {entry_point}"),
    ] {
        assert!(dockerfile.lines().any(|found| found == line), "{line}");
    }
    let tag = format!("--tag {REPOSITORY}:{} .", version().unwrap());
    assert!(dockerfile.contains(&tag), "{tag}");
}

/// Removed when the test ends.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn an_archive_depends_on_its_files_alone() {
    let folder = Folder(std::env::temp_dir().join(format!("weft-image-{}", std::process::id())));
    let files = folder.0.join("files");
    fs::create_dir_all(files.join("usr/bin")).unwrap();
    fs::write(files.join("usr/bin/weft"), "a program").unwrap();
    let archive = fs::read(pack(&files).unwrap()).unwrap();
    let again = pack(&files).unwrap();
    assert!(archive == fs::read(&again).unwrap());

    let unpacked = folder.0.join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let status = Command::new("tar").arg("-xf").arg(&again).arg("-C").arg(&unpacked).status().unwrap();
    assert!(status.success());
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(unpacked.join(name)).unwrap()).unwrap()
    };
    let (manifest, config) = (json("manifest.json"), json("config.json"));
    let tags = [version().unwrap(), "dev".to_owned()].map(|tag| format!("{REPOSITORY}:{tag}"));
    assert_eq!(manifest[0]["RepoTags"], json!(tags));
    let layer = sha256(&unpacked.join(manifest[0]["Layers"][0].as_str().unwrap())).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{layer}")]));
}

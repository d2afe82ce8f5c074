//! `cargo xtask image`: the tracer as an image of one layer, written without a container engine. The file is an
//! OCI layout and what `docker save` writes at once: `ctr images import`, `docker load` and `podman load` take it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    setup,
    shell::{self, Toolchain},
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = "tracer.tar")]
    pub(crate) out: PathBuf,

    /// The name of the image
    #[arg(long, value_name = "NAME:TAG", default_value = NAME)]
    pub(crate) tag: String,

    /// The authorities that the tracer trusts when it sends (PEM)
    #[arg(long, value_name = "FILE", default_value = AUTHORITIES)]
    pub(crate) authorities: PathBuf,
}

/// What deploy/ asks for.
pub(crate) const NAME: &str = concat!("localhost/tracer:", env!("CARGO_PKG_VERSION"));

/// Where Debian has them, and where the tracer looks for them in the image.
pub(crate) const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Without a library of the system: there is none in the image.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";

/// Where nothing else is said.
const ARGUMENTS: [&str; 3] = ["run", "--config", "/etc/tracer/config.yaml"];

/// The service of the tests on a cluster.
const WORKLOAD: &str = "chain-rust";

/// Those that files are in, and those that a container runtime mounts something on.
const FOLDERS: [&str; 12] = [
    "dev",
    "etc",
    "etc/ssl",
    "etc/ssl/certs",
    "etc/tracer",
    "proc",
    "run",
    "sys",
    "usr",
    "usr/bin",
    "var",
    "var/run",
];

/// The same bytes whenever it is built.
const CREATED: &str = "1970-01-01T00:00:00Z";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    write(&setup::ensure(false)?, arguments)
}

pub(crate) fn write(toolchain: &Toolchain, arguments: &Arguments) -> Result<()> {
    ensure!(is_name(&arguments.tag), "{}: an image is called NAME:TAG", arguments.tag);
    setup::install_static(toolchain)?;
    let program = build(toolchain)?;
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let files = [
        File { path: &AUTHORITIES[1..], mode: 0o644, content: read(&arguments.authorities)? },
        File { path: "usr/bin/tracer", mode: 0o755, content: read(&program)? },
    ];
    let starts = Start { program: "/usr/bin/tracer", arguments: &ARGUMENTS, labels: labels() };
    let image = image(&arguments.tag, &files, &starts)?;
    save(&image, &arguments.tag, &files, &arguments.out)
}

fn save(image: &Image, name: &str, files: &[File<'_>], out: &Path) -> Result<()> {
    std::fs::write(out, &image.bytes).with_context(|| out.display().to_string())?;
    println!(
        "{}: {name} ({} KiB, of which the program is {} KiB), image {}",
        out.display(),
        image.bytes.len() >> 10,
        files.last().map_or(0, |file| file.content.len()) >> 10,
        image.digest,
    );
    Ok(())
}

/// A service of the tests, as an image of the same form.
pub(crate) fn write_workload(toolchain: &Toolchain, name: &str, out: &Path) -> Result<()> {
    setup::install_static(toolchain)?;
    shell::run(shell::cargo(toolchain).env("CARGO_PROFILE_RELEASE_DEBUG", "none").args([
        "build",
        "--release",
        "--locked",
        "--package",
        "workloads",
        "--bin",
        WORKLOAD,
        "--target",
        TARGET,
    ]))?;
    let program = shell::target().join(TARGET).join("release").join(WORKLOAD);
    let content = std::fs::read(&program).with_context(|| program.display().to_string())?;
    let path = format!("usr/bin/{WORKLOAD}");
    let files = [File { path: &path, mode: 0o755, content }];
    let starts = Start { program: &format!("/{path}"), arguments: &[], labels: json!({}) };
    save(&image(name, &files, &starts)?, name, &files, out)
}

/// The release, the same bytes in whichever folder it is built; returns where it is.
fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    let rustc = match toolchain {
        Toolchain::Rustup(channel) => {
            shell::output("rustup", &["run", channel, "rustc", "--print", "sysroot"])
        }
        Toolchain::Debian => shell::output("rustc", &["--print", "sysroot"]),
    };
    let sysroot = rustc.context("the compiler does not say where it is")?;
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .context("there is no home folder")?;
    let flags = [
        format!("--remap-path-prefix={}=/tracer", shell::root().display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
        format!("--remap-path-prefix={sysroot}=/rust"),
    ];
    shell::run(
        shell::cargo(toolchain)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            .args(["build", "--release", "--locked", "--package", "tracer-agent", "--target", TARGET]),
    )?;
    Ok(shell::target().join(TARGET).join("release/tracer"))
}

struct File<'path> {
    /// From the root of the image, without a slash in front.
    path: &'path str,
    mode: u32,
    content: Vec<u8>,
}

struct Image {
    bytes: Vec<u8>,
    /// Of its manifest.
    digest: String,
}

/// What a container of an image runs.
struct Start<'text> {
    program: &'text str,
    /// Where none are said.
    arguments: &'text [&'text str],
    labels: Value,
}

fn image(name: &str, files: &[File<'_>], start: &Start<'_>) -> Result<Image> {
    let layer = Blob::new(layer(files)?);
    let config = Blob::of(&json!({
        "architecture": "amd64",
        "config": {
            "Cmd": start.arguments,
            "Entrypoint": [start.program],
            "Env": ["PATH=/usr/bin"],
            "Labels": start.labels,
            "WorkingDir": "/",
        },
        "created": CREATED,
        "history": [{ "created": CREATED, "created_by": "cargo xtask image" }],
        "os": "linux",
        "rootfs": { "diff_ids": [layer.digest()], "type": "layers" },
    }))?;
    let manifest = Blob::of(&json!({
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
        "mediaType": MANIFEST,
        "schemaVersion": 2,
    }))?;
    let mut listed = manifest.descriptor(MANIFEST);
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    listed["annotations"] =
        json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
    listed["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    let index = json!({
        "manifests": [listed],
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "schemaVersion": 2,
    });
    // What an engine reads that does not know the layout.
    let docker = json!([{ "Config": config.path(), "Layers": [layer.path()], "RepoTags": [name] }]);
    let mut archive = Archive::default();
    archive.folder("blobs", 0o755)?;
    archive.folder("blobs/sha256", 0o755)?;
    let mut blobs = [&layer, &config, &manifest];
    blobs.sort_by_key(|blob| blob.path());
    for blob in blobs {
        archive.file(&blob.path(), 0o644, &blob.bytes)?;
    }
    archive.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
    archive.file("manifest.json", 0o644, &serde_json::to_vec(&docker)?)?;
    archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(Image { bytes: archive.end()?, digest: manifest.digest() })
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn labels() -> Value {
    json!({
        "org.opencontainers.image.description": "Sees every request of services that nobody instrumented",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.title": "tracer",
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
    })
}

fn layer(files: &[File<'_>]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in FOLDERS {
        archive.folder(folder, 0o755)?;
    }
    archive.folder("tmp", 0o1777)?;
    for file in files {
        archive.file(file.path, file.mode, &file.content)?;
    }
    archive.end()
}

/// Letters, digits and `._-/:` with a tag behind the last colon.
fn is_name(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|char: char| char.is_ascii_alphanumeric())
            && part.chars().all(|char| char.is_ascii_alphanumeric() || "._-".contains(char))
    };
    text.rsplit_once(':').is_some_and(|(name, tag)| {
        part(tag) && name.split('/').all(|word| word.split(':').all(part)) && name == name.to_lowercase()
    })
}

struct Blob {
    bytes: Vec<u8>,
    hash: String,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { bytes, hash }
    }

    fn of(value: &Value) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hash)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hash)
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({ "digest": self.digest(), "mediaType": kind, "size": self.bytes.len() })
    }
}

/// A tar that says nothing of when and by whom it was made.
struct Archive(tar::Builder<Vec<u8>>);

impl Default for Archive {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Archive {
    fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add(&format!("{path}/"), tar::EntryType::Directory, mode, &[])
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.add(path, tar::EntryType::Regular, mode, content)
    }

    fn add(&mut self, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        Ok(self.0.append_data(&mut header, path, content)?)
    }

    fn end(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io::Read};

    use super::*;

    fn sample(name: &str) -> Image {
        let file = |path, mode, content: &[u8]| File { path, mode, content: content.to_owned() };
        let files = [file(&AUTHORITIES[1..], 0o644, b"-"), file("usr/bin/tracer", 0o755, b"program")];
        let starts = Start { program: "/usr/bin/tracer", arguments: &ARGUMENTS, labels: labels() };
        image(name, &files, &starts).unwrap()
    }

    /// Path, mode, time and content of each entry.
    fn entries(bytes: &[u8]) -> BTreeMap<String, (u32, u64, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let header = entry.header();
            let said = (header.mode().unwrap(), header.mtime().unwrap(), content);
            (entry.path().unwrap().display().to_string(), said)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn an_image_has_the_same_bytes_twice() {
        assert_eq!(sample(NAME).bytes, sample(NAME).bytes);
        assert_ne!(sample(NAME).bytes, sample("localhost/tracer:other").bytes);
    }

    #[test]
    fn both_forms_lead_to_blobs_of_the_right_digest() {
        let image = sample("registry.example:5000/tools/tracer:1");
        let entries = entries(&image.bytes);
        let value = |path: &str| serde_json::from_slice::<Value>(&entries[path].2).unwrap();
        for (path, (_, time, content)) in &entries {
            assert_eq!(*time, 0, "{path}");
            if let Some(hash) = path.strip_prefix("blobs/sha256/").filter(|hash| !hash.is_empty()) {
                assert_eq!(Blob::new(content.clone()).hash, hash);
            }
        }
        let blob = |descriptor: &Value| {
            let path = descriptor["digest"].as_str().unwrap().replace(':', "/");
            let path = format!("blobs/{path}");
            assert_eq!(entries[&path].2.len() as u64, descriptor["size"].as_u64().unwrap());
            path
        };
        let listed = &value("index.json")["manifests"][0];
        assert_eq!(listed["annotations"]["io.containerd.image.name"], "registry.example:5000/tools/tracer:1");
        assert_eq!(listed["annotations"]["org.opencontainers.image.ref.name"], "1");
        let manifest = value(&blob(listed));
        let config = blob(&manifest["config"]);
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(value(&config)["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let docker = &value("manifest.json")[0];
        assert_eq!(docker["Config"], config);
        assert_eq!(docker["Layers"], json!([layer]));
        assert_eq!(docker["RepoTags"], json!(["registry.example:5000/tools/tracer:1"]));
    }

    #[test]
    fn the_layer_has_the_program_and_no_more_than_it_needs() {
        let files =
            entries(&layer(&[File { path: "usr/bin/tracer", mode: 0o755, content: vec![1] }]).unwrap());
        assert_eq!(files["usr/bin/tracer"], (0o755, 0, vec![1]));
        assert_eq!(files["tmp/"].0, 0o1777);
        assert_eq!(files.len(), FOLDERS.len() + 2);
    }

    #[test]
    fn names_have_a_tag() {
        for name in [NAME, "tracer:1", "registry.example:5000/a/b_c:v1.2-3"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["tracer", "Tracer:1", "a b:1", "a:", ":1", "a/:1", "host:5000/tracer"] {
            assert!(!is_name(name), "{name}");
        }
    }
}

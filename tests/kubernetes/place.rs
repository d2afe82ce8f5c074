//! Where the kubelet and a container runtime would put processes.

use std::{fs, path::PathBuf, process::Command};

/// Where a container runtime would put a process: a cgroup that goes with the test.
pub(crate) struct Place {
    root: PathBuf,
    pub(crate) path: PathBuf,
}

impl Place {
    pub(crate) fn new(name: &str, uid: &str, container: &str) -> Self {
        let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
        let unified =
            mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroups v2");
        let root = PathBuf::from(unified.split(' ').nth(1).expect("its place"));
        let path = root.join(name).join(format!("kubepods/burstable/pod{uid}/{container}"));
        fs::create_dir_all(&path).expect("a cgroup");
        Self { root: root.join(name), path }
    }
}

impl Place {
    /// A command that is run in it from its start.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.path.display());
        command.args(["-c", &enter, "sh"]).args(words);
        command
    }

    pub(crate) fn take(&self, process: u32) {
        fs::write(self.path.join("cgroup.procs"), process.to_string()).expect("it moves");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut path = self.path.as_path();
        while path.starts_with(&self.root) {
            // Whoever was in it is about to be gone.
            for _ in 0..200 {
                if fs::remove_dir(path).is_ok() || !path.exists() {
                    break;
                }
                std::thread::park_timeout(std::time::Duration::from_millis(10));
            }
            path = path.parent().expect("a folder above");
        }
    }
}

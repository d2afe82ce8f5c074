//! The container that a process is in, by its cgroup.

/// Digits of the ids that container runtimes give.
const ID: usize = 64;

/// The last id in the path: nested containers have several.
pub fn id_of(cgroup: &str) -> Option<&str> {
    let parts = cgroup.rsplit(['/', '-', '.', ':']);
    let mut ids = parts.filter(|part| part.len() == ID && part.bytes().all(|byte| byte.is_ascii_hexdigit()));
    ids.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_the_paths_of_all_drivers() {
        let id = "0123456789abcdef".repeat(4);
        let paths = [
            format!("/kubepods/burstable/pod7f9c/{id}"),
            format!("/kubepods.slice/kubepods-burstable-pod7f9c.slice/cri-containerd-{id}.scope"),
            format!("/../../system.slice/docker-{id}.scope"),
            format!("/docker/{}/docker/{id}", "f".repeat(64)),
        ];
        for path in &paths {
            assert_eq!(id_of(path), Some(id.as_str()), "{path}");
        }
        assert_eq!(id_of("/system.slice/ssh.service"), None);
    }
}

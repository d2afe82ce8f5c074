//! Whatever a cgroup is called, nothing is told of it that its path does not say.

use proptest::{collection::vec, prelude::*};
use tracer_agent::enrich::container::{Image, Place};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UID: &str = "7f9c2ba4-e88f-4c1b-9d3e-0123456789ab";
const SLICE: &str = "kubepods-burstable-pod7f9c2ba4_e88f_4c1b_9d3e_0123456789ab.slice";

/// What paths are made of, and what is near to it.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "/",
            ":",
            "-",
            ".",
            "..",
            "pod",
            "kubepods",
            "docker",
            "ecs",
            "cri-containerd-",
            "crio-conmon-",
            "libpod-",
            ".scope",
            ".slice",
            ".service",
            "@",
            ID,
            UID,
            SLICE,
            "4752cdc26d79e024da287ffaf6307884",
        ])
        .prop_map(str::to_owned),
        "[0-9a-f]{1,70}",
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn nothing_is_invented(pieces in vec(piece(), 0..12)) {
        let path = pieces.concat();
        let place = Place::of(&path);
        if let Some(id) = &place.id {
            prop_assert!(path.contains(id.as_str()));
            prop_assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'));
        }
        if let Some(pod) = &place.pod {
            prop_assert!(path.contains(pod.as_str()) || path.contains(&pod.replace('-', "_")) || path.replace('_', "-").contains(pod.as_str()));
            prop_assert!(matches!(pod.len(), 32 | 36));
        }
        if let Some(unit) = &place.unit {
            prop_assert!(path.contains(&[unit, ".service"].concat()));
        }
        if let Some(image) = Image::of(&path) {
            prop_assert!(path.starts_with(image.name));
        }
    }

    /// What stands outside of a pod changes nothing of what is in it.
    #[test]
    fn the_innermost_pod_counts(outside in vec(piece(), 0..8)) {
        let inside = format!("/pod{UID}/{ID}");
        let place = Place::of(&format!("{}{inside}", outside.concat()));
        prop_assert_eq!(place, Place::of(&inside));
    }
}

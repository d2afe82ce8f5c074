//! Processes that are there already.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

/// The processes and all that descend from them, without this one.
pub fn with_descendants(roots: &BTreeSet<u32>) -> Result<BTreeSet<u32>> {
    let parents = parents()?;
    let own = std::process::id();
    let descends = |process: u32| {
        let mut at = Some(process);
        // A process that ends while this goes on can leave a loop of numbers used again.
        for _ in 0..parents.len() + 1 {
            match at {
                Some(id) if roots.contains(&id) => return true,
                Some(id) => at = parents.get(&id).copied(),
                None => return false,
            }
        }
        false
    };
    Ok(parents.keys().copied().filter(|process| *process != own && descends(*process)).collect())
}

/// The parent of each process.
fn parents() -> Result<BTreeMap<u32, u32>> {
    let entries = std::fs::read_dir("/proc").context("/proc cannot be read")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|process: u32| Some((process, parent(process)?)))
        .collect())
}

/// Fields 3 and 4 of `/proc/PID/stat`: of one that has ended and was not waited for there is no more to
/// see. The name in field 2 can hold anything, also brackets.
fn parent(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.next()?.parse().ok(),
    }
}

/// Whether a process that runs (and not only a thread) has this number.
pub fn exists(process: u32) -> bool {
    parent(process).is_some()
}

/// Whether this runs among all processes of the machine: the probes know no other numbers.
pub fn sees_all_processes() -> bool {
    // PROC_PID_INIT_INO (include/linux/proc_ns.h)
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

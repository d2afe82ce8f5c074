//! What is asked of the cluster, by kubectl, as people do it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;

/// What it prints; it has to go well.
pub(crate) fn kubectl(arguments: &[&str]) -> String {
    attempt(arguments, "").unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
}

/// What it prints, or what is wrong.
pub(crate) fn attempt(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`cargo xtask test cluster` has kubectl on the path");
    let written = child.stdin.take().expect("an input").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("its output");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    match written {
        Ok(()) if output.status.success() => Ok(String::from_utf8(output.stdout).expect("text")),
        _ => Err(errors),
    }
}

pub(crate) fn apply(object: &Value) {
    let text = object.to_string();
    attempt(&["apply", "--filename", "-"], &text).unwrap_or_else(|error| panic!("{text}: {error}"));
}

pub(crate) fn get(arguments: &[&str]) -> Value {
    let all = [&["get", "--output", "json"], arguments].concat();
    serde_json::from_str(&kubectl(&all)).expect("JSON")
}

/// The items of a list.
pub(crate) fn list(arguments: &[&str]) -> Vec<Value> {
    get(arguments)["items"].as_array().expect("a list").clone()
}

/// A text in an object.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

//! Spans and metrics as bytes: what is sent or written is made here, how it gets out is up to `live`.

pub mod json;
#[cfg(feature = "live")]
pub mod otlp;
pub mod prometheus;
pub mod text;
pub mod tree;

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

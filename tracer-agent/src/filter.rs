//! Which spans are asked for. Values of one kind are alternatives, kinds are conditions that all hold.

use globset::{GlobBuilder, GlobMatcher};

use crate::span::Span;

#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub statuses: Vec<StatusPattern>,
    pub paths: Vec<GlobMatcher>,
    /// Nanoseconds.
    pub slower: Option<u64>,
    pub peer_ports: Vec<u16>,
    /// Names of the registry.
    pub protocols: Vec<String>,
    pub no_health_checks: bool,
}

/// `503`, `5xx`, or a word such as `NOT_FOUND` that a protocol has for a status; `none` for a request
/// that got no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPattern(String);

impl std::str::FromStr for StatusPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let word = |char: char| char.is_ascii_alphanumeric() || char == '_';
        // A number has three digits, or an x for any.
        let number = text.starts_with(|char: char| char.is_ascii_digit());
        let short = number && !(text.len() == 3 && text.chars().all(|char| "0123456789xX".contains(char)));
        // Three letters are a word such as `foo` only by mistake: no protocol has one.
        let lower = text.to_ascii_lowercase();
        let is_class = text.len() == 3
            && lower.contains('x')
            && lower.bytes().all(|byte| byte == b'x' || byte.is_ascii_digit());
        let is_word = text.contains(|char: char| char.is_ascii_uppercase() || char == '_') && !is_class;
        let known = number || is_class || is_word || lower == "none";
        let class = !number || matches!(text.as_bytes().first(), Some(b'1'..=b'5'));
        if text.is_empty() || short || !known || !class || !text.chars().all(word) {
            return Err(format!("`{text}` is no status; say for example 404, 5xx, NOT_FOUND (gRPC) or none"));
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl StatusPattern {
    fn matches(&self, status: Option<&str>) -> bool {
        let Some(status) = status else { return self.0 == "none" };
        // Where the pattern has an x, any digit will do.
        self.0.len() == status.len()
            && self.0.bytes().zip(status.bytes()).all(|(pattern, byte)| {
                pattern == byte.to_ascii_lowercase() || (pattern == b'x' && byte.is_ascii_digit())
            })
    }
}

/// `*` stands for anything, also for a slash.
pub fn glob(text: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(text).build().map_err(|error| format!("`{text}` is no pattern: {error}"))?;
    Ok(glob.compile_matcher())
}

impl Filter {
    pub fn matches(&self, span: &Span) -> bool {
        let view = &span.view;
        let status = view.status.as_deref();
        let path = || view.target.split('?').next().unwrap_or_default();
        fn any<T>(values: &[T], matches: impl FnMut(&T) -> bool) -> bool {
            values.is_empty() || values.iter().any(matches)
        }
        any(&self.statuses, |pattern| pattern.matches(status))
            && any(&self.paths, |pattern| pattern.is_match(path()))
            && self.slower.is_none_or(|least| span.end.saturating_sub(span.start) >= least)
            && any(&self.peer_ports, |port| view.peer_port == Some(*port))
            && any(&self.protocols, |name| name == view.protocol)
            && !(self.no_health_checks && view.health_check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_match_by_number_class_or_word() {
        let matches = |pattern: &str, status| pattern.parse::<StatusPattern>().unwrap().matches(status);
        assert!(matches("404", Some("404")) && !matches("404", Some("405")));
        assert!(matches("5xx", Some("503")) && matches("5XX", Some("500")) && !matches("5xx", Some("404")));
        assert!(matches("none", None) && !matches("none", Some("200")) && !matches("2xx", None));
        assert!(matches("NOT_FOUND", Some("NOT_FOUND")) && !matches("OK", Some("NOT_FOUND")));
        assert!("".parse::<StatusPattern>().is_err() && "5*".parse::<StatusPattern>().is_err());
        for wrong in ["foo", "abc", "600", "6xx", "0xx", "x"] {
            assert!(wrong.parse::<StatusPattern>().is_err(), "{wrong}");
        }
        assert!("5x".parse::<StatusPattern>().is_err() && "20".parse::<StatusPattern>().is_err());
    }
}

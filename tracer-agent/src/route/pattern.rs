//! Routes that the user has written down.

use std::{fmt, str::FromStr};

use super::Text;

/// `/users/{id}/orders`: `{name}` is one part, `{*rest}` at the end is all the rest, everything else is itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Part>,
    text: Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Text),
    One,
    Rest,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{text}` is no route: {why}"));
        let Some(path) = text.strip_prefix('/') else { return wrong("it does not begin with a slash") };
        if path.contains(['?', '#']) {
            return wrong("it has a query or a fragment, and only the path is compared");
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut parts = Vec::new();
        for part in path.split('/').filter(|_| !path.is_empty()) {
            if parts.last() == Some(&Part::Rest) {
                return wrong("nothing can follow `{*…}`, which is all the rest");
            }
            let inner = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
            parts.push(match inner {
                _ if part.is_empty() => return wrong("one of its parts is empty"),
                None if part.contains(['{', '}']) => {
                    return wrong("a brace stands within a part; `{name}` has to be a whole one");
                }
                None => Part::Literal(Text::new(part)),
                Some(name) => {
                    let (name, part) = match name.strip_prefix('*') {
                        Some(name) => (name, Part::Rest),
                        None => (name, Part::One),
                    };
                    let letter = |char: char| char.is_ascii_alphanumeric() || "_-.".contains(char);
                    if name.is_empty() && part == Part::One {
                        return wrong("`{}` has no name");
                    } else if !name.chars().all(letter) {
                        return wrong("a name has letters, digits, `_`, `-` and `.` only");
                    }
                    part
                }
            });
        }
        Ok(Self { parts, text: Text::new(text) })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Pattern {
    /// As it was written.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// Whether the parts of a path, none of them empty, are of this route.
    pub(super) fn matches<'a>(&self, mut parts: impl Iterator<Item = &'a str>) -> bool {
        for part in &self.parts {
            let here = parts.next();
            let fits = match part {
                Part::Literal(literal) => here == Some(literal.as_str()),
                Part::One => here.is_some(),
                Part::Rest => return true,
            };
            if !fits {
                return false;
            }
        }
        parts.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, path: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(path.split('/').filter(|part| !part.is_empty()))
    }

    #[test]
    fn parts_are_compared_one_by_one() {
        assert!(matches("/users/{id}/orders", "/users/alice/orders"));
        assert!(
            !matches("/users/{id}/orders", "/users/alice") && !matches("/users/{id}", "/users/alice/orders")
        );
        assert!(matches("/files/{*rest}", "/files/a/b/c") && matches("/files/{*}", "/files"));
        assert!(matches("/", "/") && !matches("/", "/a") && matches("/users/", "/users"));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (text, why) in [
            ("users", "begin with a slash"),
            ("/a//b", "is empty"),
            ("/{}", "no name"),
            ("/{*rest}/a", "follow"),
            ("/a{id}", "within a part"),
            ("/{a b}", "letters"),
            ("/a?b=1", "query"),
            ("", "begin"),
        ] {
            let error = text.parse::<Pattern>().unwrap_err();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
        assert_eq!("/a/{id}".parse::<Pattern>().unwrap().to_string(), "/a/{id}");
    }
}

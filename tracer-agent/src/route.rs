//! The route of a request, as far as its path tells: parts that stand for one thing among many are left out.

/// Parts longer than this are no words.
const WORD_MAX: usize = 40;

/// Hexadecimal digits that are a name given by a machine.
const HEX_MIN: usize = 12;

/// `/users/{id}/orders` of `/users/4711/orders`, without the query.
pub fn of(target: &str) -> String {
    if target == "?" {
        // What was not seen.
        return target.to_owned();
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let mut route = String::with_capacity(path.len());
    for (index, part) in path.split('/').enumerate() {
        if index > 0 {
            route.push('/');
        }
        route.push_str(if is_id(part) { "{id}" } else { part });
    }
    route
}

fn is_id(part: &str) -> bool {
    let hex = part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    let number = !part.is_empty() && digits == part.len();
    number || part.len() > WORD_MAX || (hex && digits > 0 && part.len() >= HEX_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_one_among_many_is_left_out() {
        assert_eq!(of("/users/4711/orders?page=2"), "/users/{id}/orders");
        assert_eq!(of("/a/123e4567-e89b-12d3-a456-426614174000"), "/a/{id}");
        assert_eq!(of("/blob/da39a3ee5e6b4b0d3255bfef95601890afd80709"), "/blob/{id}");
        assert_eq!(of("/v1/feedface"), "/v1/feedface");
        assert_eq!((of("/"), of(""), of("*")), ("/".to_owned(), String::new(), "*".to_owned()));
        assert_eq!(of("/index.html"), "/index.html");
    }
}

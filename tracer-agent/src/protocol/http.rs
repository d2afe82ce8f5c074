//! What HTTP says of an exchange, whichever version carries it (RFC 9110): names, attributes, status.

use smallvec::smallvec;
use smol_str::format_smolstr;

use super::{
    Attribute, Attributes, Common, Kind, RequestHead, ResponseHead, Text,
    measure::{Active, BOUNDS, End, Instrument, Measure},
};
use crate::noise::{self, Noise};

/// Methods that keep their name in `http.request.method` (semantic conventions, HTTP).
pub(super) const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];

/// Attributes that a request has, about: room for them is made once.
pub(super) const ATTRIBUTES: usize = 12;

/// The longest text that a span carries: longer ones are cut, and the span says so.
pub(super) const TEXT_MAX: usize = 4096;

/// The protocol of an exchange, for filters.
pub(super) const NAME: &str = "http";

/// What stands for a target that was not seen, for people.
pub(super) const UNSEEN: &str = "?";

/// docs/http/http-metrics.md
pub(super) const MEASURE: Measure = Measure {
    exchange: NAME,
    bounds: BOUNDS,
    server: End {
        duration: Instrument {
            name: "http.server.request.duration",
            help: "Duration of HTTP server requests",
        },
        sizes: Some([
            Instrument { name: "http.server.request.body.size", help: "Size of HTTP server request bodies" },
            Instrument {
                name: "http.server.response.body.size",
                help: "Size of HTTP server response bodies",
            },
        ]),
        active: Some(Active {
            instrument: Instrument {
                name: "http.server.active_requests",
                help: "Number of HTTP server requests under way",
            },
            attributes: &["http.request.method", "url.scheme"],
        }),
        attributes: &[
            "http.request.method",
            "url.scheme",
            "error.type",
            "http.response.status_code",
            "http.route",
            "network.protocol.name",
            "network.protocol.version",
        ],
        route: Some("http.route"),
    },
    client: End {
        duration: Instrument {
            name: "http.client.request.duration",
            help: "Duration of HTTP client requests",
        },
        sizes: Some([
            Instrument { name: "http.client.request.body.size", help: "Size of HTTP client request bodies" },
            Instrument {
                name: "http.client.response.body.size",
                help: "Size of HTTP client response bodies",
            },
        ]),
        active: None,
        attributes: &[
            "http.request.method",
            "url.scheme",
            "error.type",
            "http.response.status_code",
            "server.address",
            "server.port",
            "url.template",
            "network.protocol.name",
            "network.protocol.version",
        ],
        route: Some("url.template"),
    },
};

/// What a request says of itself. None is what was not seen, or not said.
pub(super) struct Asked<'a> {
    pub(super) method: Option<&'a str>,
    pub(super) target: Option<Target<'a>>,
    pub(super) host: Option<&'a str>,
    pub(super) version: &'static str,
    pub(super) user_agent: Option<Text>,
    /// What the reader of the head has to add.
    pub(super) notes: Attributes,
    /// Names in its query whose values are told.
    pub(super) told: &'static [&'static str],
}

impl Asked<'_> {
    pub(super) fn authority(&self) -> Option<&str> {
        self.target.and_then(|target| target.authority).or(self.host.map(limited))
    }

    /// Adds what is said of the server.
    pub(super) fn describe_server(&self, attributes: &mut Vec<Attribute>) {
        let (host, port) = self.authority().map_or((None, None), split_authority);
        if let Some(host) = host {
            attributes.push(Attribute::text("server.address", host));
        }
        if let Some(port) = port {
            attributes.push(Attribute::number("server.port", port));
        }
    }

    pub(super) fn agent(&self) -> Option<&[u8]> {
        self.user_agent.as_ref().map(|agent| agent.as_bytes())
    }

    pub(super) fn path(&self) -> Option<&str> {
        self.target.map(|target| target.path)
    }
}

pub(super) fn request(asked: &Asked<'_>, kind: Kind) -> RequestHead {
    let known = asked.method.and_then(|method| METHODS.iter().find(|known| **known == method));
    let known = known.map(|known| Text::new_static(known));
    let operation = match (&known, asked.method) {
        (Some(known), _) => known.clone(),
        (None, Some(method)) => text(method.as_bytes()),
        (None, None) => Text::new_static(UNSEEN),
    };
    let mut attributes = Vec::with_capacity(ATTRIBUTES);
    match &known {
        Some(known) => attributes.push(Attribute::text("http.request.method", known.clone())),
        None if asked.method.is_some() => {
            attributes.push(Attribute::word("http.request.method", "_OTHER"));
            attributes.push(Attribute::text("http.request.method_original", operation.clone()));
        }
        None => {}
    }
    attributes.push(Attribute::word("network.protocol.name", "http"));
    attributes.push(Attribute::word("network.protocol.version", asked.version));
    if let Some(agent) = &asked.user_agent {
        attributes.push(Attribute::text("user_agent.original", agent.clone()));
    }
    attributes.extend(asked.notes.iter().cloned());
    if asked.target.is_some_and(|target| target.truncated) {
        attributes.push(Attribute::flag("tracer.truncated", true));
    }
    asked.describe_server(&mut attributes);
    match asked.target.and_then(|target| target.scheme) {
        Some("http") => attributes.push(Attribute::word("url.scheme", "http")),
        Some(scheme) => attributes.push(Attribute::text("url.scheme", text(scheme.as_bytes()))),
        None => {}
    }
    let path = asked.path().map_or(Text::default(), Text::new);
    let noise = noise::of(asked.agent(), &path, matches!(asked.method, Some("GET" | "HEAD")));
    if let Some(Noise::HealthCheck(evidence)) = noise {
        attributes.push(Attribute::word("tracer.health_check", evidence));
    }
    let authority = asked.authority();
    let query = asked.target.and_then(|target| target.query).map(|query| redacted(query, asked.told));
    let shown = match (&query, asked.target) {
        (Some(query), _) => format_smolstr!("{path}?{query}"),
        (None, None) => Text::new_static(UNSEEN),
        (None, Some(_)) if path.is_empty() => Text::new(authority.unwrap_or_default()),
        (None, Some(_)) => path.clone(),
    };
    let scheme = asked.target.and_then(|target| target.scheme);
    match (authority, scheme) {
        (Some(authority), Some(scheme)) if kind == Kind::Client && path.starts_with('/') => {
            let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let full = format_smolstr!("{scheme}://{authority}{shown}");
            attributes.push(Attribute::text("url.full", full));
        }
        // Without a host there is no whole URL: what there is of it stands for it.
        _ => {
            if !path.is_empty() {
                attributes.push(Attribute::text("url.path", path));
            }
            if let Some(query) = query {
                attributes.push(Attribute::text("url.query", query));
            }
        }
    }
    let name = known.unwrap_or(Text::new_static("HTTP"));
    RequestHead {
        name,
        operation,
        target: shown,
        protocol: NAME,
        common: Common::new(attributes),
        propagated: None,
        noise,
        vague: false,
    }
}

/// `notes`: what the reader of the head has to add.
pub(super) fn response(status: u16, stream: Option<&'static str>, notes: Attributes) -> ResponseHead {
    let mut attributes: Attributes = smallvec![Attribute::number("http.response.status_code", status)];
    attributes.extend(notes);
    let text = digits(status);
    ResponseHead {
        attributes,
        stream,
        client_error: status >= 400,
        server_error: status >= 500,
        error_type: text.clone(),
        status: text,
    }
}

/// Whether methods and names of fields can have it (RFC 9110, section 5.6.2).
pub fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether content is a stream of events, by its type.
pub(super) fn is_event_stream(content_type: &[u8]) -> bool {
    let kind = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// A status has three where it is one.
pub(super) fn digits(status: u16) -> Text {
    let digits = [status / 100 % 10, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
    Text::new(std::str::from_utf8(&digits).unwrap_or_default())
}

pub(super) fn text(value: &[u8]) -> Text {
    match std::str::from_utf8(value) {
        Ok(text) => Text::new(limited(text)),
        Err(_) => Text::new(limited(&String::from_utf8_lossy(value))),
    }
}

/// The start of a text, as much of it as a span may carry.
pub(super) fn limited(text: &str) -> &str {
    if text.len() <= TEXT_MAX {
        return text;
    }
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

/// What is asked of whom.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// None if it was not seen.
    scheme: Option<&'a str>,
    authority: Option<&'a str>,
    path: &'a str,
    query: Option<&'a str>,
    truncated: bool,
}

impl<'a> Target<'a> {
    /// In one of its four forms (RFC 9112, section 3.2).
    pub(super) fn of(target: &'a str, connect: bool) -> Self {
        let truncated = target.len() > TEXT_MAX;
        let target = limited(target);
        if connect {
            return Self { scheme: Some("http"), authority: Some(target), path: "", query: None, truncated };
        }
        let absolute = if target.starts_with('/') { None } else { target.split_once("://") };
        let (scheme, authority, rest) = match absolute {
            Some((scheme, rest)) if !scheme.contains(['/', '?']) => {
                let end = rest.find(['/', '?']).unwrap_or(rest.len());
                (scheme, Some(&rest[..end]), &rest[end..])
            }
            _ => ("http", None, target),
        };
        let (path, query) = split_path(rest);
        let path = if path.is_empty() && authority.is_some() { "/" } else { path };
        Self { scheme: Some(scheme), authority, path, query, truncated }
    }

    /// In parts, as HTTP/2 has them (RFC 9113, section 8.3.1). There is no path to CONNECT.
    pub(super) fn of_parts(scheme: Option<&'a str>, authority: Option<&'a str>, path: &'a str) -> Self {
        let (whole, shown) = (path, limited(path));
        let (path, query) = split_path(shown);
        Self { scheme, authority: authority.map(limited), path, query, truncated: shown.len() < whole.len() }
    }
}

fn split_path(target: &str) -> (&str, Option<&str>) {
    let target = &target[..memchr::memchr(b'#', target.as_bytes()).unwrap_or(target.len())];
    match memchr::memchr(b'?', target.as_bytes()) {
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    }
}

/// Host and port; without user information.
pub(super) fn split_authority(authority: &str) -> (Option<&str>, Option<u16>) {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    // An IPv6 address stands in brackets there, and without them in an attribute.
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (Some(host).filter(|host| !host.is_empty()), port)
}

/// The names of a query without their values, but for those that are `told`: the others stay with the process.
fn redacted(query: &str, told: &[&str]) -> String {
    let mut out = String::with_capacity(query.len());
    for (index, pair) in query.split('&').enumerate() {
        if index > 0 {
            out.push('&');
        }
        match pair.split_once('=') {
            Some((name, "")) => {
                out.push_str(name);
                out.push('=');
            }
            Some((name, _)) if told.contains(&name) => out.push_str(pair),
            Some((name, _)) => {
                out.push_str(name);
                out.push_str("=REDACTED");
            }
            None if pair.is_empty() => {}
            // A lone word may be a value as well as a name.
            None => out.push_str("REDACTED"),
        }
    }
    out
}

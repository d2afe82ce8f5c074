//! The fields of a block that spans are made of.

use std::{cell::OnceCell, sync::Arc};

use super::hpack::{Field, Value};
use crate::propagation::Reader;
use crate::protocol::{
    Attribute, Attributes, Kind, RequestHead, ResponseHead, Shown, Text,
    grpc::{self, Flavor},
    http::{self, Asked, Target},
};

/// Why a field is not known whose table is.
const UNREADABLE: &str = "unreadable";

/// None is what was not said, or is not known.
#[derive(Debug, Default)]
pub(super) struct Fields {
    method: Option<Text>,
    scheme: Option<Text>,
    authority: Option<Text>,
    path: Option<Text>,
    /// Of an extended CONNECT (RFC 8441).
    protocol: Option<Text>,
    pub(super) status: Option<u16>,
    host: Option<Text>,
    user_agent: Option<Text>,
    content_type: Option<Text>,
    timeout: Option<Text>,
    propagation: Reader,
    shown: Shown,
    /// Values that are asked for, of requests and of responses.
    told: [Attributes; 2],
    trailers: grpc::Trailers,
    /// There are fields that only the head of a request has, or that of a response.
    pub(super) asks: bool,
    pub(super) answers: bool,
    /// Why a name or a value is not known.
    missing: Option<&'static str>,
    /// Heads that were made of them: of a request; of a response, and of trailers, for a call or not.
    request: OnceCell<Arc<RequestHead>>,
    response: OnceCell<(bool, Arc<ResponseHead>)>,
    trailing: OnceCell<Arc<ResponseHead>>,
}

impl Fields {
    pub(super) fn new(shown: Shown) -> Self {
        Self { propagation: Reader::new(shown.correlation), shown, ..Self::default() }
    }

    /// `missing`: why something of the field may not be known.
    pub(super) fn take(&mut self, field: Field<'_>, missing: Option<&'static str>) {
        let Some(name) = field.name else {
            self.missing = missing.or(Some(UNREADABLE));
            return;
        };
        if !field.value.is_known() {
            self.missing = missing.or(Some(UNREADABLE));
        }
        for (side, asked) in [self.shown.request_headers, self.shown.response_headers].into_iter().enumerate()
        {
            if let Some(asked) = asked.iter().find(|asked| asked.name == name) {
                tell(&mut self.told[side], asked.key, field.value.text());
            }
        }
        let place = match name {
            ":method" => &mut self.method,
            ":scheme" => &mut self.scheme,
            ":authority" => &mut self.authority,
            ":path" => &mut self.path,
            ":protocol" => &mut self.protocol,
            "host" => &mut self.host,
            "user-agent" => &mut self.user_agent,
            "content-type" => &mut self.content_type,
            "grpc-timeout" => &mut self.timeout,
            _ => return self.take_other(name, field.value),
        };
        self.asks |= name.starts_with(':');
        // The first counts; what is too long for a span is cut there, and said to be.
        if place.is_none() {
            *place = field.value.text().map(|text| match text.len() <= http::TEXT_MAX {
                true => text,
                false => Text::new(&text[..text.floor_char_boundary(http::TEXT_MAX + 1)]),
            });
            if place.is_none() {
                self.missing = missing.or(Some(UNREADABLE));
            }
        }
    }

    fn take_other(&mut self, name: &str, value: Value<'_>) {
        match name {
            ":status" => {
                let status = value.text().and_then(|value| value.parse().ok());
                self.status = status.filter(|status| (100..1000).contains(status));
                self.answers = true;
            }
            _ if name.starts_with("grpc-") => {
                if let Some(value) = value.text() {
                    self.trailers.add(name, &value);
                }
            }
            _ => self.propagation.take(name, || value.text()),
        }
    }

    pub(super) fn call(&self) -> Option<Flavor> {
        self.content_type.as_ref().and_then(|kind| Flavor::of(kind.as_bytes()))
    }

    /// Whether it is not known what the content is.
    pub(super) fn is_vague(&self) -> bool {
        self.content_type.is_none() && self.missing.is_some()
    }

    pub(super) fn missing(&self) -> Option<&'static str> {
        self.missing
    }

    pub(super) fn is_interim(&self) -> bool {
        self.status.is_some_and(|status| status < 200)
    }

    /// The head of a request; `kind` is the same whenever they are asked.
    pub(super) fn request(&self, kind: Kind) -> Arc<RequestHead> {
        self.request.get_or_init(|| Arc::new(self.request_as(kind, self.call().is_some()))).clone()
    }

    /// The same, for a call or not.
    pub(super) fn request_as(&self, kind: Kind, is_call: bool) -> RequestHead {
        let (scheme, authority) = (self.scheme.as_deref(), self.authority.as_deref());
        let connects = self.method.as_deref() == Some("CONNECT") && self.path.is_none();
        let target = match &self.path {
            Some(path) => Some(Target::of_parts(scheme, authority, path)),
            None if connects => authority.map(|authority| Target::of(authority, true)),
            None => None,
        };
        let asked = Asked {
            method: self.method.as_deref(),
            // The server is known by its name also where nothing else is.
            host: self.authority.as_deref().or(self.host.as_deref()),
            target,
            version: "2",
            user_agent: self.user_agent.clone(),
            notes: self.missing.map(captured).into_iter().chain(self.told[0].iter().cloned()).collect(),
            told: self.shown.query,
        };
        let head = match is_call {
            true => grpc::request(&asked, self.timeout.as_deref()),
            false => http::request(&asked, kind),
        };
        RequestHead { vague: self.missing.is_some(), propagated: self.propagation.read(), ..head }
    }

    /// The last head of a response; `tells`: the exchange does not say yet that something of it is missing.
    pub(super) fn response(
        &self,
        is_call: bool,
        connects: bool,
        tells: bool,
        shown: Shown,
    ) -> Arc<ResponseHead> {
        let make = || Arc::new(self.response_as(is_call, connects, tells, shown));
        if connects || tells {
            return make();
        }
        let (made_for, head) = self.response.get_or_init(|| (is_call, make()));
        if *made_for == is_call { head.clone() } else { make() }
    }

    fn response_as(&self, is_call: bool, connects: bool, tells: bool, shown: Shown) -> ResponseHead {
        let stream = match self.status {
            Some(200..300) if connects => Some("tunnel"),
            Some(200..300)
                if self.content_type.as_ref().is_some_and(|kind| http::is_event_stream(kind.as_bytes())) =>
            {
                Some("event_stream")
            }
            _ => None,
        };
        let mut head = match (is_call, self.status) {
            (true, status) => grpc::response(status, &self.trailers, shown),
            (false, Some(status)) => http::response(status, stream, Attributes::new()),
            (false, None) => ResponseHead { stream, ..ResponseHead::default() },
        };
        head.attributes.extend(self.told[1].iter().cloned());
        head.attributes.extend(self.missing.filter(|_| tells).map(captured));
        head
    }

    /// What follows the content, for a call or not.
    pub(super) fn trailers(&self, is_call: bool, tells: bool, shown: Shown) -> Option<Arc<ResponseHead>> {
        if !is_call {
            return None;
        }
        let make = || {
            let mut head = self.trailers.response(shown);
            head.attributes.extend(self.missing.filter(|_| tells).map(captured));
            Arc::new(head)
        };
        let head = if tells { make() } else { self.trailing.get_or_init(make).clone() };
        (!head.is_empty()).then_some(head)
    }

    pub(super) fn connects(&self) -> bool {
        self.method.as_deref() == Some("CONNECT")
    }

    /// Bytes of memory besides their own, with the heads that are made of them, about.
    pub(super) fn held(&self) -> usize {
        const REQUEST: usize = 1024;
        const RESPONSE: usize = size_of::<ResponseHead>();
        let head = if self.asks { REQUEST } else { RESPONSE };
        let named = [&self.method, &self.scheme, &self.authority, &self.path, &self.protocol];
        let others = [&self.host, &self.user_agent, &self.content_type, &self.timeout];
        let texts = named.into_iter().chain(others).flatten().map(|text| text.len()).sum::<usize>();
        head + 2 * texts + self.propagation.held()
    }

    /// Whether only calls have such trailers.
    pub(super) fn ends_a_call(&self) -> bool {
        self.trailers.has_status()
    }
}

/// Says why something of an exchange is not known.
fn captured(why: &'static str) -> Attribute {
    Attribute::word("tracer.capture", why)
}

/// Adds a value that is asked for; a name that comes again has a list of them.
fn tell(told: &mut Attributes, key: &'static str, value: Option<Text>) {
    let Some(value) = value else { return };
    let before = told.iter_mut().find(|attribute| attribute.key == key);
    match before {
        Some(Attribute { value: super::super::Value::Text(before), .. }) => {
            *before = http::text(format!("{before}, {value}").as_bytes());
        }
        _ => told.push(Attribute::text(key, http::text(value.as_bytes()))),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::ToldHeader, *};

    #[test]
    fn only_what_is_asked_for_is_told() {
        let shown = Shown {
            query: &["page"],
            request_headers: &[ToldHeader { name: "accept", key: "http.request.header.accept" }],
            ..Shown::default()
        };
        let mut fields = Fields::new(shown);
        for (name, value) in [
            (":method", "GET"),
            (":path", "/a?page=2&token=abc"),
            ("accept", "b"),
            ("cookie", "d"),
            ("accept", "c"),
        ] {
            fields.take(Field { name: Some(name), value: Value::Known(value) }, None);
        }
        let head = fields.request_as(Kind::Server, false);
        let told = format!("{:?}", head.common.attributes);
        assert!(told.contains("page=2&token=REDACTED") && told.contains(r#"Text("b, c")"#), "{told}");
        assert!(!told.contains("cookie"), "{told}");
    }
}

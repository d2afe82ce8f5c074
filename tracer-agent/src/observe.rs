//! What becomes of spans where an agent runs: they get their route, all of them are measured, and then some are
//! chosen to be sent.

use smol_str::format_smolstr;

use crate::{
    metrics::{Active, Metrics},
    protocol::{Attribute, Kind, Text, Value, measure},
    route::{self, Learned, Routes},
    sample::{self, Sampler},
    span::Span,
};

/// The route of whatever is beyond what a service may have.
const OTHER_ROUTES: Text = Text::new_static("_OTHER");

/// How often series are looked at for those that went stale.
const TIDY: u64 = 10_000_000_000;

pub struct Observer {
    routes: Routes,
    pub metrics: Metrics,
    sampler: Sampler,
    /// Room for the name under which routes are learned, kept.
    learner: String,
    now: u64,
    /// When series were last looked at.
    tidied: u64,
}

impl Observer {
    pub fn new(routes: route::Rules, metrics: Metrics, sampler: Sampler) -> Self {
        Self { routes: Routes::new(routes), metrics, sampler, learner: String::new(), now: 0, tidied: 0 }
    }

    /// What was learned and decided stays.
    pub fn set_rules(&mut self, routes: route::Rules, sampling: sample::Rules) {
        self.routes.set_rules(routes);
        self.sampler.set_rules(sampling);
    }

    pub fn take(&mut self, mut span: Span) {
        let route = self.name_route(&mut span);
        self.metrics.observe(&span, route.as_ref());
        self.sampler.take(span, self.now);
    }

    /// A span that is to be sent.
    pub fn poll_output(&mut self) -> Option<Span> {
        let span = self.sampler.poll_output()?;
        let key = route_key(&span);
        let route = key.and_then(|key| span.attributes.iter().find(|attribute| attribute.key == key));
        match route.map(|route| &route.value) {
            Some(Value::Text(route)) => self.metrics.exemplar(&span, Some(route)),
            _ => self.metrics.exemplar(&span, None),
        }
        Some(span)
    }

    /// `wall`: the same time, since 1970.
    pub fn handle_timeout(&mut self, now: u64, wall: u64) {
        self.now = self.now.max(now);
        self.sampler.handle_timeout(now);
        if now.saturating_sub(self.tidied) >= TIDY {
            self.tidied = now;
            self.metrics.handle_timeout(wall);
        }
    }

    /// Lets all go that waits.
    pub fn finish(&mut self) {
        self.sampler.finish();
    }

    pub fn sampled(&self) -> &sample::Counts {
        self.sampler.counts()
    }

    /// Traces that wait to be decided on.
    pub fn undecided(&self) -> usize {
        self.sampler.len()
    }

    pub fn routes(&self) -> usize {
        self.routes.len()
    }

    /// Bytes of memory, about.
    pub fn held(&self) -> usize {
        self.routes.held() + self.metrics.held() + self.sampler.held()
    }

    pub fn set_active<'a>(&mut self, wall: u64, active: impl IntoIterator<Item = Active<'a>>) {
        self.metrics.set_active(wall, active);
    }

    /// Puts the route into the span, and into its name, if that is known.
    fn name_route(&mut self, span: &mut Span) -> Option<Text> {
        let key = route_key(span)?;
        self.learner.clear();
        self.learner.push_str(&span.resource.service);
        if span.kind == Kind::Client {
            // Paths are those of whom it calls.
            self.learner.push('\0');
            let request = span.request.common.attributes.iter();
            let server = request.chain(&span.attributes).find(|attribute| attribute.key == "server.address");
            match server.map(|server| &server.value) {
                Some(Value::Text(server)) => self.learner.push_str(server),
                _ => self.learner.push_str(span.view.peer.as_deref().unwrap_or_default()),
            }
        }
        let route = match self.routes.learn(&self.learner, &span.view.target, teaches(span)) {
            Learned::Route(route) => route,
            Learned::Overflow => OTHER_ROUTES,
            Learned::Undecided => return None,
        };
        span.attributes.push(Attribute::text(key, route.clone()));
        span.name = format_smolstr!("{} {route}", span.name);
        Some(route)
    }
}

/// The attribute that a route has in such a span, if it has one.
fn route_key(span: &Span) -> Option<&'static str> {
    let measure = measure::of(span.view.protocol)?;
    match span.kind {
        Kind::Server => measure.server.route,
        Kind::Client => measure.client.route,
    }
}

/// Whether there is such a thing as the span asked for: what is not found says nothing of a service's routes.
fn teaches(span: &Span) -> bool {
    span.view.status.as_deref().is_some_and(|status| !status.starts_with('4'))
}

//! By which metrics a protocol's exchanges are counted (semantic conventions): each says it of its own, so
//! that what counts names none.

/// What spans of one of [`super::Protocol::exchanges`] are counted by.
#[derive(Debug)]
pub struct Measure {
    pub exchange: &'static str,
    pub server: End,
    pub client: End,
    /// Upper bounds of the buckets of durations, in nanoseconds.
    pub bounds: &'static [u64],
}

/// The same for one end.
#[derive(Debug)]
pub struct End {
    pub duration: Instrument,
    /// Sizes of the content, by side.
    pub sizes: Option<[Instrument; 2]>,
    /// How many are under way.
    pub active: Option<Active>,
    /// Attributes of spans by which series are told apart.
    pub attributes: &'static [&'static str],
    /// The one for a route, which spans do not say themselves.
    pub route: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
pub struct Instrument {
    pub name: &'static str,
    /// For people.
    pub help: &'static str,
}

#[derive(Debug)]
pub struct Active {
    pub instrument: Instrument,
    pub attributes: &'static [&'static str],
}

/// The buckets of durations that most conventions name: 5 ms to 10 s.
pub(super) const BOUNDS: &[u64] = &[
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    75_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    750_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    7_500_000_000,
    10_000_000_000,
];

/// The measure of an exchange, by its name.
pub fn of(exchange: &str) -> Option<&'static Measure> {
    all().find(|measure| measure.exchange == exchange)
}

/// Those of the whole registry, each once.
pub fn all() -> impl Iterator<Item = &'static Measure> {
    let measures = || super::PROTOCOLS.iter().flat_map(|protocol| protocol.measures().iter().copied());
    measures().enumerate().filter_map(move |(place, measure)| {
        let known = measures().take(place).any(|other| other.exchange == measure.exchange);
        (!known).then_some(measure)
    })
}
